"""Certificates against TLSA records: usages 2 and 3, chains, names, dates; and real sessions."""

import ssl
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256, sha512
from time import thread_time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from relay.base.message.outcome import DeferralClass, Relayed
from relay.base.message.tls_policy import TlsaRecord, TlsPolicy
from relay.delivery.smtp.connect import ConnectError
from relay.delivery.smtp.dane import dane_mismatch
from relay.transport.routing.resolver import usable_records
from tests.support.remote_mx import DROP, RemoteMx
from tests.support.tables import each_row

NOW = datetime.now(UTC)
CA = x509.BasicConstraints(ca=True, path_length=None)
NO_CA = x509.BasicConstraints(ca=False, path_length=None)
NO_USE = x509.KeyUsage(True, *[False] * 8)


def made(name, by=None, *extensions, key=None, days=1, san=(), version=3):
    """A certificate and its key; `by` is a pair of these."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(
        by[0].subject if by else subject,
        subject,
        key.public_key(),
        x509.random_serial_number(),
        NOW - timedelta(days=9),
        NOW + timedelta(days=days),
    )
    if san:
        names = x509.SubjectAlternativeName(map(x509.DNSName, san))
        builder = builder.add_extension(names, critical=False)
    for one in extensions:
        builder = builder.add_extension(one, critical=isinstance(one, x509.BasicConstraints))
    return builder.sign(by[1] if by else key, SHA256()), key


ROOT = made("root", None, CA)
MIDDLE = made("middle", ROOT, CA)
LEAF = made("mx", MIDDLE, san=["mx.test"])
BARE_ROOT = made("bare root")
OTHER_ROOT = made("root", None, CA)
MX = {"san": ["mx.test"]}


def record(text, pair):
    """The record "2 1 1" of a certificate."""
    usage, selector, matching = map(int, text.split())
    data = pair[0].public_bytes(Encoding.DER)
    if selector:
        data = pair[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if matching:
        data = (sha256, sha512)[matching - 1](data).digest()
    return TlsaRecord(usage, selector, matching, data)


def result(records, *pairs, names=("mx.test",)):
    usable = usable_records(records)
    assert usable
    found = dane_mismatch(usable, [one.public_bytes(Encoding.DER) for one, _ in pairs], names)
    return found.result if found else ""


KINDS = [f"{selector} {matching}" for selector in (0, 1) for matching in (0, 1, 2)]


@each_row("kind", KINDS)
def test_usage_3_is_the_certificate_whatever_its_name_and_dates(kind):
    expired = made("mx", ROOT, san=["other.test"], days=-1)
    nameless = made("mx")
    for pair in (LEAF, expired, nameless):
        right, wrong = record(f"3 {kind}", pair), record(f"3 {kind}", ROOT)
        assert result([right], pair, ROOT) == ""
        assert result([wrong, right, TlsaRecord(0, 0, 1, bytes(32))], pair) == ""
        assert result([wrong], pair, ROOT) == "validation-failure"  # ROOT is in the chain


@each_row("kind", KINDS)
def test_usage_2_is_an_authority_that_is_shown_or_in_the_record(kind):
    for anchor in (ROOT, MIDDLE):
        assert result([record(f"2 {kind}", anchor)], LEAF, MIDDLE, ROOT) == ""
        assert result([record(f"2 {kind}", anchor)], LEAF, ROOT, MIDDLE) == ""
    expected = "" if kind.endswith("0") else "validation-failure"
    assert result([record(f"2 {kind}", ROOT)], LEAF, MIDDLE) == expected
    assert result([record(f"2 {kind}", MIDDLE)], LEAF) == expected
    assert result([record(f"2 {kind}", OTHER_ROOT)], LEAF, MIDDLE, ROOT) != ""
    assert (
        result([record(f"2 {kind}", OTHER_ROOT)], LEAF, MIDDLE, OTHER_ROOT)
        == "certificate-not-trusted"
    )


UNTRUSTED = "certificate-not-trusted"


@each_row(
    "anchor, chain, expected",
    [
        (BARE_ROOT, [made("mx", BARE_ROOT, **MX), BARE_ROOT], ""),
        (BARE_ROOT, [made("mx", BARE_ROOT, NO_CA, **MX), BARE_ROOT], ""),
        (ROOT, [made("mx", ROOT, san=["*.test", "mx.test"]), ROOT], ""),
        (ROOT, [made("mx", ROOT, san=["other.test"]), ROOT], "certificate-host-mismatch"),
        (ROOT, [made("mx.test", ROOT), ROOT], "certificate-host-mismatch"),
        (ROOT, [made("mx", ROOT, days=-1, **MX), ROOT], "certificate-expired"),
        (MIDDLE, [made("mx", OTHER_ROOT, **MX), MIDDLE], UNTRUSTED),
        (ROOT, [made("mx", ROOT, **MX), OTHER_ROOT, ROOT], ""),
    ],
)
def test_what_an_authority_may_leave_out_and_what_counts(anchor, chain, expected):
    assert result([record("2 0 1", anchor)], *chain) == expected
    assert result([record("2 0 1", anchor), record("3 1 1", OTHER_ROOT)], *chain) == expected


@cache
def anchored(*extensions, days=1):
    return made("anchor", None, *extensions, days=days)


@each_row(
    "anchor, issuer, expected",
    [
        (ROOT, [CA], ""),
        (ROOT, [], UNTRUSTED),  # a certificate of a host issued another
        (BARE_ROOT, [], UNTRUSTED),
        (ROOT, [NO_CA], UNTRUSTED),
        (ROOT, [CA, NO_USE], UNTRUSTED),
        (anchored(NO_CA), [CA], UNTRUSTED),
        (anchored(NO_USE), [CA], UNTRUSTED),
        (anchored(x509.BasicConstraints(ca=True, path_length=0)), [CA], UNTRUSTED),
        (anchored(x509.NameConstraints([x509.DNSName("other.test")], None)), [CA], UNTRUSTED),
        (anchored(CA, days=-1), [CA], "certificate-expired"),
        (anchored(days=-1), [CA], "certificate-expired"),
    ],
)
def test_who_may_issue_a_certificate(anchor, issuer, expected):
    between = made("between", anchor, *issuer)
    leaf = made("mx", between, **MX)
    assert result([record("2 1 1", anchor)], leaf, between, anchor) == expected


def test_names_are_those_of_the_policy_and_may_have_a_wildcard():
    leaf = made("mx", ROOT, san=["*.mx.test"])
    anchor = [record("2 1 1", ROOT)]
    assert result(anchor, leaf, ROOT, names=("a.mx.test",)) == ""
    assert result(anchor, leaf, ROOT, names=("x.test", "A.MX.test")) == ""
    for name in ("mx.test", "a.b.mx.test", "x.test"):
        assert result(anchor, leaf, ROOT, names=(name,)) == "certificate-host-mismatch"


def test_a_chain_in_which_all_issue_all_is_judged_at_once():
    same = made("same", None, CA)
    chain = [
        made("mx", same, **MX),
        *(made("same", same, CA, key=same[1]) for _ in range(60)),
        ROOT,
    ]
    began = thread_time()
    assert result([record("2 1 1", ROOT)], *chain) == "validation-failure"  # beyond what counts
    assert result([record("2 0 0", OTHER_ROOT)], *chain) == UNTRUSTED
    assert thread_time() - began < 2  # else 60 ** 8 signatures


def test_octets_that_are_no_certificate_have_a_result():
    leaf = LEAF[0].public_bytes(Encoding.DER)
    records = usable_records([record("2 0 1", ROOT), record("3 1 1", ROOT)])
    chain = [MIDDLE[0].public_bytes(Encoding.DER), ROOT[0].public_bytes(Encoding.DER)]
    for place in range(len(leaf)):
        for changed in (
            leaf[:place] + bytes([leaf[place] ^ 0x55]) + leaf[place + 1 :],
            leaf[:place],
        ):
            assert dane_mismatch(records, [changed, *chain], ("mx.test",)) is not None
            assert dane_mismatch(records, [leaf, changed], ("mx.test",)) is not None
    assert dane_mismatch(records, [], ("mx.test",)).text == "the host shows no certificate"


@each_row(
    "octets, changed",
    [
        (b"\x55\x1d\x0f", b"\x55\x1d\x11"),  # keyUsage: a second subjectAltName
        (b"\x82\x07mx.test", b"\xa3\x07mx.test"),  # dNSName: x400Address
        (b"\x82\x07mx.test", b"\x82\x07mx\xfftest"),
        (b"\x55\x1d\x13", b"\x55\x1d\x1e"),  # basicConstraints: nameConstraints
    ],
)
def test_an_authority_with_odd_extensions_has_a_result(octets, changed):
    der = made("middle", None, CA, NO_USE, **MX)[0].public_bytes(Encoding.DER)
    odd = der.replace(octets, changed)
    assert odd != der
    shown = [one[0].public_bytes(Encoding.DER) for one in (LEAF, MIDDLE)]
    for record in (TlsaRecord(2, 0, 0, odd), TlsaRecord(2, 0, 1, sha256(odd).digest())):
        found = dane_mismatch((record,), [shown[0], odd], ("mx.test",))
        assert found.result in ("validation-failure", UNTRUSTED)


def test_a_key_that_cannot_be_read_does_not_match_the_digest_of_nothing():
    key = ed25519.Ed25519PrivateKey.generate()
    der = made("mx", ROOT, key=key)[0].public_bytes(Encoding.DER)
    unknown = der.replace(b"\x2b\x65\x70", b"\x2b\x65\x7a")  # another OID
    nothing = TlsaRecord(3, 1, 1, sha256(b"").digest())
    found = dane_mismatch((nothing,), [unknown], ())
    assert found.text.endswith(f"it is 3 0 1 {sha256(unknown).hexdigest()}")


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A server that shows LEAF and MIDDLE."""
    file = tmp_path_factory.mktemp("dane") / "chain.pem"
    key = LEAF[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(key + b"".join(one[0].public_bytes(Encoding.PEM) for one in (LEAF, MIDDLE)))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(file)
    return made


def dane(*records, **fields):
    return TlsPolicy("dane", tlsa=usable_records(records), **fields)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("records", "verified"),
    [
        ([record("3 1 1", LEAF)], "dane"),
        ([record("2 0 1", MIDDLE)], "dane"),
        ([record("2 0 0", ROOT), record("3 1 1", ROOT)], "dane"),
        ([record("0 0 1", ROOT)], "none"),  # none is usable
    ],
)
async def test_a_host_that_matches_gets_the_mail(
    connected, message, context, implicit, records, verified
):
    async with RemoteMx(tls=context, implicit_tls=implicit) as mx:
        connection = await connected(mx, host="mx.test", tls=dane(*records, implicit=implicit))
        sent = await connection.transact(message())
        assert isinstance(sent.outcomes[0], Relayed)
        assert mx.envelopes[0].tls
    session = connection.peer.session
    assert (session.verified, session.level) == (verified, "dane")


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("names", "expected"), [((), "mx.test"), (("base.test", "domain.test"), "base.test")]
)
async def test_a_host_is_asked_by_the_name_that_has_the_records(
    connected, context, implicit, names, expected
):
    asked = []
    context.sni_callback = lambda _tls, name, _context: asked.append(name)
    policy = dane(record("3 1 1", LEAF), implicit=implicit, names=names)
    try:
        async with RemoteMx(tls=context, implicit_tls=implicit) as mx:
            await connected(mx, host="mx.test", tls=policy)
    finally:
        context.sni_callback = None
    assert asked == [expected]


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("records", "host", "kind", "said"),
    [
        (
            [record("3 1 1", ROOT)],
            "mx.test",
            "validation-failure",
            "matches none of 1 TLSA records: it is 3 1 1",
        ),
        (
            [record("2 0 1", ROOT)],
            "mx.test",
            "validation-failure",
            "matches none of 1 TLSA records: it is 3 1 1",
        ),
        (
            [record("2 0 1", MIDDLE)],
            "a.test",
            "certificate-host-mismatch",
            "the certificate is for mx.test, not a.test",
        ),
        ([record("2 0 0", OTHER_ROOT)], "mx.test", UNTRUSTED, "did not issue the certificate"),
    ],
)
async def test_a_host_that_does_not_match_is_told_nothing(
    connected, context, implicit, records, host, kind, said
):
    async with RemoteMx(tls=context, implicit_tls=implicit) as mx:
        with pytest.raises(ConnectError) as caught:
            await connected(mx, host=host, tls=dane(*records, implicit=implicit))
        assert mx.commands == ([] if implicit else ["EHLO relay.test", "STARTTLS"])
        assert mx.sessions == 1
    outcome = caught.value.outcome
    assert (outcome.kind, outcome.evidence.status) == (DeferralClass.TLS, "4.7.5")
    assert caught.value.tls_result == kind
    assert said in outcome.evidence.reply
    assert outcome.evidence.reply.endswith("; the TLSA records of the host demand TLS (DANE)")
    assert outcome.evidence.session.verified == "none"


@pytest.mark.parametrize("records", [[record("3 1 1", LEAF)], []])
@pytest.mark.parametrize(
    ("replies", "has_tls", "kind"),
    [
        ({}, False, "starttls-not-supported"),
        ({"STARTTLS": "454 4.7.0 not now"}, True, "validation-failure"),
        ({"STARTTLS": DROP}, True, "validation-failure"),
    ],
)
async def test_under_dane_nothing_goes_in_the_clear(
    connected, context, records, replies, has_tls, kind
):
    async with RemoteMx(tls=context if has_tls else None, replies=replies) as mx:
        with pytest.raises(ConnectError) as caught:
            await connected(mx, host="mx.test", tls=dane(*records))
        assert mx.sessions == 1
    error = caught.value
    assert (error.outcome.evidence.status, error.tls_result) == ("4.7.5", kind)
    assert error.outcome.evidence.reply.endswith("; the TLSA records of the host demand TLS (DANE)")


async def test_a_certificate_of_its_own_matches_usage_3_alone(connected, certificate):
    pair = (x509.load_pem_x509_certificate(certificate.certificate.read_bytes()), None)
    async with RemoteMx(tls=certificate.server_context()) as mx:
        assert (
            await connected(mx, tls=dane(record("3 1 2", pair)))
        ).peer.session.verified == "dane"
        with pytest.raises(ConnectError, match=r"it is 3 1 1 [0-9a-f]{64}"):
            await connected(mx, tls=dane(record("2 1 2", pair)))
