"""DANE: unbound validates zones that the test signs; hosts with every certificate (RFC 7672)."""

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.transport.routing.resolver import RECORDS_MAX
from tests.support.relay_process import RelayProcess
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes
from tests.support.signed_dns import NoUnboundError, SignedRoot, Unbound
from tests.support.tls import Authority, Certificate, new_authority, self_signed

LAX = "configuration: opportunistic"
WRONG = "3 1 1 " + "ab" * 32
NO_ANSWER = "its TLSA records are not known: name server 127.0.0.1 port"
NONE_USABLE = "it has no TLSA record that can be used"


def tlsa(usage: int, selector: int, certificate: Path) -> str:
    """A record of the certificate (selector 0) or its public key, by SHA-256."""
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    key = found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    octets = key if selector else found.public_bytes(Encoding.DER)
    return f"{usage} {selector} 1 {sha256(octets).hexdigest()}"


class Internet:
    """Domains with hosts and TLSA records; unbound validates all but `insecure`."""

    insecure = ("insecure.test",)

    def __init__(self, remotes: Remotes, folder: Path) -> None:
        self.remotes, self.folder = remotes, folder
        self.authority: Authority = new_authority(folder)
        self.zone = remotes.dns.zone
        self.root = SignedRoot(remotes.dns)

    def domain(self, name: str, *records: str, certificate: Certificate | None = None) -> RemoteMx:
        """Start the MX host of a domain; without `certificate` it has none, and no STARTTLS."""
        tls = certificate.server_context() if certificate else None
        server = self.remotes.start(name, tls=tls)
        if records:
            self.publish(f"mx.{name}", *records)
        return server

    def publish(self, host: str, *records: str) -> None:
        self.zone[f"_{self.remotes.port}._tcp.{host}"] = {"TLSA": list(records)}

    def self_signed(self, name: str) -> Certificate:
        """A certificate for another name."""
        (folder := self.folder / name).mkdir()
        return self_signed(folder, "DNS:elsewhere.test")


@pytest.fixture(scope="module")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with Remotes() as remotes:
        made = Internet(remotes, tmp_path_factory.mktemp("dane"))
        publish_all(made)
        yield made


def publish_all(made: Internet) -> None:
    """Start the hosts, and publish what the tests ask for."""
    own = made.self_signed("own")
    old = made.authority.issue("DNS:mx.old.test", days=-1)
    right = tlsa(3, 1, own.certificate)
    ca = tlsa(2, 0, made.authority.certificate)
    made.domain("right.test", right, certificate=own)
    made.domain("whole.test", tlsa(3, 0, own.certificate), certificate=own)
    made.domain("roll.test", WRONG, right, certificate=own)
    made.domain("old.test", tlsa(3, 1, old.certificate), certificate=old)
    chain, of_domain = [
        made.authority.issue(f"DNS:{name}") for name in ("mx.ca.test", "ca-domain.test")
    ]
    for one in (chain, of_domain):  # with the authority
        with one.certificate.open("ab") as file:
            file.write(made.authority.certificate.read_bytes())
    made.domain("ca.test", ca, certificate=chain)
    made.domain("ca-domain.test", ca, certificate=of_domain)
    made.domain("ca-name.test", ca, certificate=chain)
    made.domain("wrong.test", WRONG, certificate=own)
    made.domain("plain.test", right)
    made.domain("none.test", certificate=own)
    made.domain("unusable.test", "3 1 9 " + "ab" * 32, "3 1 1 " + "ab" * 31, certificate=own)
    made.domain("many.test", *(f"3 1 1 {n:064x}" for n in range(299)), right, certificate=own)
    made.domain("fails.test", right, certificate=own)
    made.domain("bogus.test", right, certificate=own)
    made.domain("insecure.test", WRONG, certificate=own)  # not validated
    made.domain("key.test", WRONG, certificate=own)
    fails = f"_{made.remotes.port}._tcp.mx.fails.test"
    made.zone[fails] = "SERVFAIL"
    made.root.bogus |= {f"_{made.remotes.port}._tcp.mx.bogus.test"}
    made.zone |= {
        "must-mx.test": {"MX": ["10 mx.right.test."]},
        "must.insecure.test": {"MX": ["10 mx.right.test."]},
        "next.test": {"MX": ["5 mx.fails.test.", "10 mx.right.test."]},
        # an MX answer that is not validated, with a host that is
        "to-right.insecure.test": {"MX": ["10 mx.right.test."]},
        "to-wrong.insecure.test": {"MX": ["10 mx.wrong.test."]},
        "to-ca.insecure.test": {"MX": ["10 mx.ca-domain.test."]},
        "aka.test": {"CNAME": ["ca-domain.test."]},
        # CNAMEs: the name that they lead to comes first, then the original
        "alias.test": {"MX": ["10 mx.alias.test."]},
        "mx.alias.test": {"CNAME": ["mx.right.test."]},
        "alias2.test": {"MX": ["10 mx.alias2.test."]},
        "mx.alias2.test": {"CNAME": ["mx.none.test."]},
        # a CNAME to a name that is not validated: no record counts
        "alias3.test": {"MX": ["10 mx.alias3.test."]},
        "mx.alias3.test": {"CNAME": ["mx.insecure.test."]},
        "self.test": {"A": made.zone["mx.right.test"]["A"]},  # type: ignore[index]
    }
    made.publish("mx.alias2.test", right)
    made.publish("mx.alias.test", WRONG)
    made.publish("mx.alias3.test", WRONG)
    made.publish("self.test", right)


@pytest.fixture(scope="module")
def unbound(internet: Internet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unbound]:
    internet.root.sign()
    try:
        made = Unbound(
            internet.root, tmp_path_factory.mktemp("unbound"), insecure=internet.insecure
        )
    except NoUnboundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture(scope="module")
def relay(internet: Internet, unbound: Unbound) -> Iterator[RelayProcess]:
    with relay_of(internet, unbound) as running:
        yield running


def relay_of(internet: Internet, unbound: Unbound) -> RelayProcess:
    port = internet.remotes.port
    must = {"tls": "dane"}
    routes: list[dict[str, str]] = [
        {"domain": "whole.test", "next_hop": "mx", "tls": "none", "name": "lax"},
        {"domain": "must-right.test", "next_hop": f"smtp://mx.right.test:{port}", **must},
        {"domain": "must-none.test", "next_hop": f"smtp://mx.none.test:{port}", **must},
        {"domain": "must-unusable.test", "next_hop": f"smtp://mx.unusable.test:{port}", **must},
        {"domain": "must-mx.test", "next_hop": "mx", **must},
        {"domain": "must.insecure.test", "next_hop": "mx", **must},
        {"domain": "host.test", "next_hop": f"smtp://mx.wrong.test:{port}"},
    ]
    for one in routes:
        one.setdefault("name", one["domain"].partition(".")[0])
    return RelayProcess(
        dns=unbound.address,
        mx_port=port,
        config={
            "dns": {"validating": True},
            "route": routes,
            "delivery": {"tls": "opportunistic", "retry": ["1h"]},
        },
    )


def attempt_of(relay: RelayProcess, domain: str, state: str) -> dict[str, Any]:
    """The one attempt of a message to a domain, which leads to `state`."""
    identity = relay.submit("alice@example.test", [f"x@{domain}"])
    (attempt,) = relay.until_state(identity, state)["recipients"][0]["attempts"]
    assert isinstance(attempt, dict)
    return attempt


@pytest.mark.parametrize(
    ("domain", "verified", "policy"),
    [
        ("right.test", "dane", "dane: dane"),
        ("roll.test", "dane", "dane: dane"),
        ("old.test", "dane", "dane: dane"),
        ("ca.test", "dane", "dane: dane"),
        ("ca-domain.test", "dane", "dane: dane"),
        ("aka.test", "dane", "dane: dane"),
        ("self.test", "dane", "dane: dane"),
        ("next.test", "dane", "dane: dane"),
        ("alias.test", "dane", "dane: dane"),
        ("alias2.test", "dane", "dane: dane"),
        ("to-right.insecure.test", "dane", "dane: dane; MX answer not validated"),
        ("must-mx.test", "dane", "route must-mx: dane"),
        ("must-right.test", "dane", "route must-right: dane"),
        ("unusable.test", "none", "dane: dane; no TLSA record can be used"),
        ("none.test", "none", LAX),
        ("insecure.test", "none", LAX),
        ("alias3.test", "none", LAX),
        ("host.test", "none", LAX),
        ("whole.test", "none", "route lax: none; policy overridden by route"),
    ],
)
def test_mail_that_leaves(relay: RelayProcess, domain: str, verified: str, policy: str) -> None:
    attempt = attempt_of(relay, domain, "relayed")
    assert (attempt["policy"], attempt["verified"]) == (policy, verified)
    assert bool(attempt["tls"]) is (domain != "whole.test")


@pytest.mark.parametrize(
    ("domain", "reply"),
    [
        ("wrong.test", "matches none of 1 TLSA records"),
        ("ca-name.test", "the certificate is for mx.ca.test, not mx.ca-name.test"),
        ("to-ca.insecure.test", "the certificate is for ca-domain.test, not mx.ca-domain.test"),
        ("to-wrong.insecure.test", "matches none of 1 TLSA records"),
        ("plain.test", "the host does not offer STARTTLS"),
        ("many.test", f"matches none of {RECORDS_MAX} TLSA records"),
        ("fails.test", f"no host may be used: mx.fails.test: {NO_ANSWER}"),
        ("bogus.test", f"no host may be used: mx.bogus.test: {NO_ANSWER}"),
        ("must-none.test", f"no host may be used: mx.none.test: {NONE_USABLE}"),
        ("must-unusable.test", f"no host may be used: mx.unusable.test: {NONE_USABLE}"),
        ("must.insecure.test", "the MX answer of the domain was not validated"),
    ],
)
def test_mail_that_waits(internet: Internet, relay: RelayProcess, domain: str, reply: str) -> None:
    attempt = attempt_of(relay, domain, "deferred")
    assert (attempt["status"], reply in attempt["reply"]) == ("4.7.5", True), attempt
    assert not any(server.received(f"x@{domain}") for server in internet.remotes.servers)


def test_sessions_and_look_ups_are_counted(relay: RelayProcess) -> None:
    for domain, state, result in [
        ("right.test", "relayed", "success"),
        ("unusable.test", "relayed", "tlsa-invalid"),
        ("wrong.test", "deferred", "validation-failure"),
        ("plain.test", "deferred", "starttls-not-supported"),
        ("fails.test", "deferred", "dnssec-invalid"),
        ("must-none.test", "deferred", "dane-required"),
    ]:
        attempt_of(relay, domain, state)
        assert relay.metric("relay_tls_policy_total", policy="tlsa", result=result) > 0, result


@pytest.mark.parametrize(
    ("domain", "level", "policy"),
    [
        ("right.test", "dane", "dane"),
        ("to-right.insecure.test", "dane", "dane; MX answer not validated"),
        ("must-right.test", "dane", "route must-right"),
        ("unusable.test", "dane", "dane; no TLSA record can be used"),
        ("none.test", "opportunistic", "configuration"),
        ("fails.test", "", ""),
    ],
)
def test_explain(relay: RelayProcess, domain: str, level: str, policy: str) -> None:
    tls = level and {
        "level": level,
        "policy": policy,
        "requiretls": domain in ("right.test", "must-right.test"),
    }
    assert explained(relay, domain)["tls"] == (tls or None)


def explained(relay: RelayProcess, domain: str) -> dict[str, Any]:
    found = relay.graph("GET", f"/relay/v1/explain?address=x@{domain}", token="operator").json()
    assert isinstance(found, dict)
    return found


def test_a_new_key_costs_no_attempt(
    internet: Internet, relay: RelayProcess, unbound: Unbound
) -> None:
    """The relay has the old record in its cache."""
    assert explained(relay, "key.test")["tls"]["level"] == "dane"
    internet.zone[f"_{internet.remotes.port}._tcp.mx.key.test"] = internet.zone[
        f"_{internet.remotes.port}._tcp.mx.right.test"
    ]
    unbound.flush()
    assert attempt_of(relay, "key.test", "relayed")["verified"] == "dane"
