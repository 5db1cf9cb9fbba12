"""What mail with REQUIRETLS or TLS-Required: No leaves by, next to other mail for the same hosts (RFC 8689).

A man in the middle strips STARTTLS, shows a certificate of his own, or breaks the handshake.
"""

import asyncio
import ssl
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate
from msgspec.structs import replace

from relay.base.message.mta_sts import StsFinding, StsPolicy
from relay.base.message.nexthop import NextHop
from relay.base.message.tls_policy import NO_TLSA, TlsaFinding, TlsaRecord, TlsPolicy
from relay.delivery.smtp.tls import verifying_context
from relay.transport.routing.mx_hosts import Host, Hosts
from tests.support.journeys import states
from tests.support.remote_mx import EXTENSIONS, RemoteMx

STRICT = {"extensions": (*EXTENSIONS, "REQUIRETLS")}
ENFORCE = StsFinding(policy=StsPolicy("enforce", frozenset({"mx0.a.test"}), 600))
OPPORTUNISTIC = TlsPolicy()
NO_STS = StsFinding()
LEVELS = {
    "opportunistic": (OPPORTUNISTIC, NO_STS),
    "required": (TlsPolicy("required"), NO_STS),
    "verify": (TlsPolicy("verify"), NO_STS),
    "enforce": (OPPORTUNISTIC, ENFORCE),
    "dane": (OPPORTUNISTIC, NO_STS),
    "dane, MX not validated": (OPPORTUNISTIC, NO_STS),
}


@pytest.fixture(autouse=True)
def trusted(authority, monkeypatch):
    """The system trusts the tests' CA."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    verifying_context.cache_clear()
    yield
    verifying_context.cache_clear()


@pytest.fixture
def issued(authority):
    return authority.issue("DNS:mx0.a.test", "DNS:mx1.a.test")


@pytest.fixture
def good(issued):
    return issued.server_context()


def tlsa_of(level, certificate):
    """The finding of a TLSA record for the key of a certificate, where the level is of DANE."""
    if not level.startswith("dane"):
        return NO_TLSA
    key = load_pem_x509_certificate(certificate.certificate.read_bytes()).public_key()
    octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    record = TlsaRecord(3, 1, 1, sha256(octets).digest())
    return TlsaFinding(1, (record,), ("mx0.a.test",), is_known=level == "dane")


@pytest.fixture
def attacks(certificate, good):
    """The TLS that a man in the middle has in place of the host's."""
    broken = certificate.server_context()
    broken.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # for which it has no key
    broken.maximum_version = ssl.TLSVersion.TLSv1_2
    return {
        "none": good,
        "stripped": None,
        "self-signed": certificate.server_context(),
        "broken": broken,
    }


def at(delivery, *servers, tls=OPPORTUNISTIC, sts=ENFORCE, tlsa=NO_TLSA):
    delivery.table.at("a.test", *servers)
    hosts = tuple(replace(one, tlsa=tlsa) for one in delivery.table.hosts["a.test"].hosts)
    delivery.table.hosts["a.test"] = Hosts(hosts, sts=sts)
    delivery.table.tls["a.test"] = tls
    delivery.retry_s = (600.0,)


async def attempted(delivery, demand="", **changes):
    """The state of a message after its first attempt, and that attempt."""
    identity = await delivery.send("x@a.test", tls=demand, **changes)
    async with asyncio.timeout(120):
        while not (journey := await delivery.spool.journey(identity)).recipients[0].attempts:
            await delivery.changed.get()
    return states(journey)["x@a.test"], journey.recipients[0].attempts[-1]


CLEAR, TLS = "clear", "tls"
STARTTLS_ONLY = {"none": TLS}
LAX = {"none": TLS, "stripped": CLEAR, "self-signed": TLS, "broken": CLEAR}


@pytest.mark.parametrize("attack", LAX)
@pytest.mark.parametrize(
    ("level", "demand", "got"),
    [  # what the host gets, by the attack
        ("opportunistic", "", LAX),
        ("required", "", {"none": TLS, "self-signed": TLS}),
        ("verify", "", STARTTLS_ONLY),
        ("enforce", "", STARTTLS_ONLY),
        ("enforce", "optional", LAX),
        ("required", "optional", {"none": TLS, "self-signed": TLS}),
        ("enforce", "requiretls", STARTTLS_ONLY),
        ("verify", "requiretls", {}),
        ("opportunistic", "requiretls", {}),
        ("enforce", "requiretls if offered", STARTTLS_ONLY),
        ("opportunistic", "requiretls if offered", LAX),
        ("dane", "", STARTTLS_ONLY),
        ("dane", "optional", LAX),
        ("dane", "requiretls", STARTTLS_ONLY),
        ("dane, MX not validated", "", STARTTLS_ONLY),
        ("dane, MX not validated", "requiretls", {}),
    ],
)
async def test_a_man_in_the_middle_at_each_level(
    delivery, attacks, issued, level, demand, got, attack
) -> None:
    tls, sts = LEVELS[level]
    async with RemoteMx(tls=attacks[attack], **STRICT) as mx:
        at(delivery, mx, tls=tls, sts=sts, tlsa=tlsa_of(level, issued))
        await delivery.start()
        state, attempt = await attempted(delivery, demand)
        assert [TLS if one.tls else CLEAR for one in mx.envelopes] == [
            *filter(None, [got.get(attack)])
        ]
    for one in mx.envelopes:
        assert ("REQUIRETLS" in one.parameters) is (demand.startswith("requiretls") and one.tls)
    if attack in got:
        assert state == "relayed"
    elif demand == "requiretls":  # a broken handshake is no answer of the host
        is_unknown = attack == "broken" and level in ("enforce", "dane")
        expected = ("deferred", "4.7.5") if is_unknown else ("failed", "5.7.30")
        assert (state, attempt.status) == expected, attempt.reply


@pytest.mark.parametrize("vouched", [False, True])
async def test_a_host_of_the_configuration_needs_a_route_that_says_so(
    delivery, good, authority, vouched
) -> None:
    async with RemoteMx(tls=good, **STRICT) as mx:
        at(delivery, mx, tls=TlsPolicy("verify", ca=authority.certificate), sts=StsFinding())
        delivery.table.limits["a.test"] = {"requiretls": vouched}
        await delivery.start()
        state, attempt = await attempted(delivery, "requiretls")
    assert (state, attempt.verified, attempt.policy) == (
        ("relayed", "name", "requiretls: verify") if vouched else ("failed", "none", attempt.policy)
    )


async def test_the_next_host_that_qualifies_gets_the_message(delivery, good) -> None:
    """The first does not offer REQUIRETLS, and is told QUIT."""
    sts = StsFinding(policy=StsPolicy("enforce", frozenset({"*.a.test"}), 600))
    async with (
        RemoteMx(tls=good) as first,
        RemoteMx(host="127.0.0.2", tls=good, **STRICT) as second,
    ):
        at(delivery, first, second, sts=sts)
        await delivery.start()
        state, attempt = await attempted(delivery, "requiretls")
        assert (state, len(first.envelopes), len(second.envelopes)) == ("relayed", 0, 1)
        assert first.commands[-1] == "QUIT"
    assert attempt.policy == "requiretls: verify; by mta-sts"


@pytest.mark.parametrize(
    ("silent", "trouble", "status"),
    [
        (False, "", "5.7.30"),
        (True, "", "4.4.1"),
        (False, "its TLSA records are not known", "4.7.5"),
    ],
)
async def test_it_fails_when_every_host_answered_and_waits_while_one_did_not(
    delivery, good, silent, trouble, status
) -> None:
    sts = StsFinding(policy=StsPolicy("enforce", frozenset({"*.a.test"}), 600))
    async with RemoteMx(tls=good) as first:
        async with RemoteMx(host="127.0.0.2") as second:
            at(delivery, first, second, sts=sts)
            found = delivery.table.hosts["a.test"]
            unknown = replace(found.hosts[1], tlsa=TlsaFinding(trouble=trouble))
            delivery.table.hosts["a.test"] = replace(found, hosts=(found.hosts[0], unknown))
            if not silent:
                await delivery.start()
                _, attempt = await attempted(delivery, "requiretls")
        if silent:
            await delivery.start()
            _, attempt = await attempted(delivery, "requiretls")
    assert attempt.status == status
    assert trouble in attempt.reply


@pytest.mark.parametrize(
    "unknown", [StsFinding(trouble="HTTP status 500"), StsFinding(unasked="SERVFAIL")]
)
async def test_it_waits_while_it_is_not_known_whether_there_is_a_policy(delivery, good, unknown):
    async with RemoteMx(tls=good, **STRICT) as mx:
        at(delivery, mx, sts=unknown)
        await delivery.start()
        state, attempt = await attempted(delivery, "requiretls")
        assert (state, attempt.status, mx.sessions) == ("deferred", "4.7.5", 0)
        assert (await attempted(delivery))[0] == "relayed"  # other mail is not held back


async def test_connections_are_shared_only_by_mail_with_the_same_demand(delivery, good) -> None:
    async with RemoteMx(tls=good, **STRICT) as mx:
        at(delivery, mx)
        delivery.idle_s = 30.0
        await delivery.start()
        demands = ("", "requiretls", "optional", "requiretls if offered")
        for one in (*demands, *demands):
            await delivery.done(await delivery.send("x@a.test", tls=one))
        assert [one.session for one in mx.envelopes] == [1, 2, 3, 1, 1, 2, 3, 1]


async def test_strict_mail_that_waits_does_not_lower_the_level_of_other_mail(delivery, attacks):
    async with RemoteMx(tls=attacks["broken"], **STRICT) as mx:
        at(delivery, mx)
        await delivery.start()
        next_hop = NextHop.parse("mx:a.test")
        for demand, is_reached in [("optional", True), ("requiretls", True), ("", False)]:
            await attempted(delivery, demand)
            assert (next_hop in delivery.active_queue._reached) is is_reached, demand


async def test_lmtp_on_a_socket_of_this_machine_qualifies(delivery, tmp_path) -> None:
    async with RemoteMx(lmtp=True, path=str(tmp_path / "lmtp")) as mx:
        delivery.table.hosts["a.test"] = Hosts((Host("relay.test", 0, (mx.path,), 0, lmtp=True),))
        await delivery.start()
        identity = await delivery.send("x@a.test", tls="requiretls")
        assert states(await delivery.done(identity)) == {"x@a.test": "delivered"}
