"""MTA-STS: real policy servers by HTTPS, a real DNS server, and hosts with every certificate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.policy_server import PolicyServer
from tests.support.relay_process import RelayProcess
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes
from tests.support.tables import each_row
from tests.support.tls import Authority, Certificate, new_authority

WEB, ELSEWHERE, NOBODY = "127.0.0.1", "127.0.0.77", "127.0.0.78"
WEBS = (  # that have a certificate
    "good",
    "wild",
    "other",
    "old",
    "plain",
    "unlisted",
    "second",
    "testing",
    "lax",
    "odd",
    "none",
    "drip",
    "html",
    "moved",
    "error",
    "big",
    "kept",
    "changed",
)
DEMANDED = "the MTA-STS policy of the domain demands TLS and its name"
NO_STARTTLS = f"the host does not offer STARTTLS, and TLS is required; {DEMANDED}"


@dataclass
class Internet:
    """Domains with hosts and policies; the certificates of `authority` are the ones that count."""

    remotes: Remotes
    authority: Authority
    web: PolicyServer

    def domain(
        self,
        name: str,
        mode: str = "",
        *mx: str,
        certificate: Certificate | str = "",
        web: str = WEB,
    ) -> RemoteMx:
        """Start the MX host of a domain; without `mx` its policy lists that. "good" is a certificate
        for the host, another text one for that name, "" none: no STARTTLS.
        """
        if isinstance(certificate, str) and certificate:
            shown = f"mx.{name}" if certificate == "good" else certificate
            certificate = self.authority.issue(f"DNS:{shown}")
        tls = certificate.server_context() if isinstance(certificate, Certificate) else None
        server = self.remotes.start(name, tls=tls)
        self.remotes.dns.zone[f"mta-sts.{name}"] = {"A": [web]}
        if mode:
            self.web.put(name, mode, *(mx or (f"mx.{name}",)))
            self.record(name)
        return server

    def record(self, name: str, id_: str = "1") -> None:
        self.remotes.dns.zone[f"_mta-sts.{name}"] = {"TXT": [f'"v=STSv1; id={id_};"']}

    def relay(self, **delivery: Any) -> RelayProcess:
        changes = {
            "tls": "opportunistic",
            "retry": ["1h"],
            "mta_sts_port": self.web.port,
            "mta_sts_ca": str(self.authority.certificate),
            "mta_sts_allow": [f"{WEB}/32", f"{NOBODY}/32"],
        }
        routes = [{"domain": "route.test", "next_hop": "mx", "tls": "none", "name": "lax"}]
        return self.remotes.relay(
            config={"delivery": changes | delivery, "route": routes},
            environment={"SSL_CERT_FILE": str(self.authority.certificate)},
        )

    def asked(self, name: str) -> int:
        return self.remotes.dns.asked(f"_mta-sts.{name}", "TXT")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return new_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def web_certificate(authority: Authority) -> Certificate:
    return authority.issue(*(f"DNS:mta-sts.{name}.test" for name in WEBS))


@pytest.fixture(scope="module")
def internet(authority: Authority, web_certificate: Certificate) -> Iterator[Internet]:
    with Remotes() as remotes, PolicyServer(web_certificate) as web:
        made = Internet(remotes, authority, web)
        yield made


@pytest.fixture(scope="module")
def relay(internet: Internet) -> Iterator[RelayProcess]:
    made = internet
    old = made.authority.issue("DNS:mx.old.test", days=-1)
    made.domain("good.test", "enforce", certificate="good")
    made.domain("wild.test", "enforce", "*.wild.test", certificate="good")
    made.domain("other.test", "enforce", certificate="mx.good.test")
    made.domain("old.test", "enforce", certificate=old)
    made.domain("plain.test", "enforce")
    made.domain("unlisted.test", "enforce", "mx.elsewhere.test", certificate="good")
    made.domain("second.test", "enforce", "*.second.test", certificate="good")
    made.domain("testing.test", "testing", certificate=old)
    made.domain("lax.test", "testing")
    made.domain("odd.test", "testing", "mx.elsewhere.test", certificate="good")
    made.domain("none.test", "none")
    made.domain("route.test", "enforce")
    made.domain("free.test")
    for name in ("html", "moved", "error", "big", "twice", "down", "private", "untrusted"):
        web = {"down": NOBODY, "private": ELSEWHERE}.get(name, WEB)
        made.domain(f"{name}.test", "enforce", web=web)
    made.web.answers |= {
        "html.test": (200, "<!DOCTYPE html>\n<title>not here</title>\n"),
        "moved.test": (302, f"https://mta-sts.good.test:{made.web.port}/.well-known/mta-sts.txt"),
        "error.test": (500, made.web.answers["good.test"][1]),
        "big.test": (200, made.web.answers["good.test"][1] + "x" * (1 << 20)),
    }
    zone = made.remotes.dns.zone
    zone["_mta-sts.twice.test"] = {"TXT": ['"v=STSv1; id=1;"', '"v=STSv1; id=2;"']}
    # the first host of the domain is one without STARTTLS, the last is not in its policy
    mx = ["5 mx1.second.test.", "10 mx.second.test.", "20 mx.free.test."]
    zone |= {"second.test": {"MX": mx}, "mx1.second.test": zone["mx.plain.test"]}
    with made.relay() as running:
        yield running


def attempt_of(relay: RelayProcess, domain: str, state: str) -> dict[str, Any]:
    """The one attempt of a message to a domain, which leads to `state`."""
    identity = relay.submit("alice@example.test", [f"x@{domain}"])
    found = relay.until_state(identity, state)
    (attempt,) = found["recipients"][0]["attempts"]
    assert isinstance(attempt, dict)
    return attempt


LAX = "configuration: opportunistic"
WHY = f"{LAX}; mta-sts policy not fetched ("


@each_row(
    "domain, verified, policy, fetches",
    [
        ("good.test", "name", "mta-sts: verify", 1),
        ("wild.test", "name", "mta-sts: verify", 1),
        ("second.test", "name", "mta-sts: verify", 1),
        ("testing.test", "none", f"{LAX}; mta-sts testing; certificate-expired", 1),
        ("lax.test", "none", f"{LAX}; mta-sts testing; starttls-not-supported", 1),
        ("odd.test", "name", f"{LAX}; mta-sts testing: the host is not in the policy", 1),
        ("none.test", "none", LAX, 1),
        ("free.test", "none", LAX, 0),
        ("twice.test", "none", LAX, 0),
        ("route.test", "none", "route lax: none; policy overridden by route", 0),
        ("html.test", "none", f"{WHY}line 1: found '<!DOCTYPE html>', expected KEY: VALUE)", 1),
        ("moved.test", "none", f"{WHY}HTTP status 302)", 1),
        ("error.test", "none", f"{WHY}HTTP status 500)", 1),
        ("big.test", "none", f"{WHY}mta-sts.big.test:PORT: the answer is longer than", 1),
        ("down.test", "none", f"{WHY}mta-sts.down.test:PORT: connection refused)", 0),
        ("private.test", "none", f"{WHY}mta-sts.private.test:PORT: {ELSEWHERE} is no public", 0),
        ("untrusted.test", "none", f"{WHY}mta-sts.untrusted.test:PORT: TLS: hostname mismatch", 0),
    ],
)
def test_mail_that_leaves(
    internet: Internet, relay: RelayProcess, domain: str, verified: str, policy: str, fetches: int
) -> None:
    attempt = attempt_of(relay, domain, "relayed")
    assert attempt["policy"].startswith(policy.replace("PORT", str(internet.web.port)))
    assert attempt["verified"] == verified
    assert bool(attempt["tls"]) is (verified == "name" or domain == "testing.test")
    assert attempt_of(relay, domain, "relayed")["policy"] == attempt["policy"]
    assert (internet.web.fetched.count(domain), internet.asked(domain)) == (fetches, 1)


@each_row(
    "domain, reply",
    [
        ("other.test", f"the certificate is for mx.good.test, not mx.other.test; {DEMANDED}"),
        ("old.test", f"the certificate is refused: certificate has expired; {DEMANDED}"),
        ("plain.test", NO_STARTTLS),
        (
            "unlisted.test",
            "no host may be used: mx.unlisted.test: not in the MTA-STS policy of the domain",
        ),
    ],
)
def test_mail_that_waits(internet: Internet, relay: RelayProcess, domain: str, reply: str) -> None:
    attempt = attempt_of(relay, domain, "deferred")
    assert (attempt["status"], attempt["reply"].endswith(reply)) == ("4.7.5", True), attempt
    skipped = [one["skipped"] for one in attempt["mx"]]
    assert skipped == ["not in the MTA-STS policy of the domain" if "unlisted" in domain else ""]
    host = f"mx.{domain}"
    address = internet.remotes.dns.zone[host]["A"][0]
    (server,) = [one for one in internet.remotes.servers if one.host == address]
    assert not any(line.startswith("MAIL") for line in server.commands)


@each_row(
    "domain, tls",
    [
        ("good.test", {"level": "verify", "policy": "mta-sts"}),
        ("testing.test", {"level": "opportunistic", "policy": "configuration; mta-sts testing"}),
        ("none.test", {"level": "opportunistic", "policy": "configuration"}),
        ("route.test", {"level": "none", "policy": "route lax; policy overridden by route"}),
    ],
)
def test_explain(relay: RelayProcess, domain: str, tls: dict[str, Any]) -> None:
    found = relay.graph("GET", f"/relay/v1/explain?address=x@{domain}", token="operator").json()
    tls["requiretls"] = domain == "good.test"
    assert found["tls"] == tls


@each_row("name", ["good", "other", "old", "plain", "unlisted", "route"])
def test_a_message_may_do_without_the_policy(relay: RelayProcess, name: str) -> None:
    content = b"TLS-Required: No\r\nSubject: your TLS is broken\r\n\r\nSee above.\r\n"
    identity = relay.submit("alice@example.test", [f"x@{name}.test"], content)
    (recipient,) = relay.until_final(identity)["recipients"]
    (attempt,) = recipient["attempts"]
    lax = (
        "route lax: none; policy overridden by route"
        if name == "route"
        else f"{LAX}; TLS-Required: No"
    )
    assert (attempt["outcome"], attempt["policy"]) == ("relayed", lax)


def test_a_policy_that_is_kept_holds_when_all_else_has_gone(
    internet: Internet, web_certificate: Certificate
) -> None:
    zone = internet.remotes.dns.zone
    internet.domain("kept.test", "enforce", certificate="good")
    internet.domain("clear.test")
    with PolicyServer(web_certificate, host=NOBODY, port=internet.web.port) as web:
        web.put("kept.test", "enforce", "mx.kept.test")
        zone["mta-sts.kept.test"] = {"A": [NOBODY]}
        relay = internet.relay(retry=["0.2s"])
        relay.start()
        try:
            assert attempt_of(relay, "kept.test", "relayed")["policy"] == "mta-sts: verify"
            web.close()
            del zone["_mta-sts.kept.test"], zone["mta-sts.kept.test"]
            zone["mx.kept.test"] = zone["mx.clear.test"]
            relay.restart()
            identity = relay.submit("alice@example.test", ["x@kept.test"])
            (recipient,) = relay.until_state(identity, "deferred")["recipients"]
            assert recipient["attempts"][0]["reply"].endswith(NO_STARTTLS)
            # a damaged file is as none: there is nothing to fetch any more
            file = relay.folder / "state" / "mta-sts" / "kept.test"
            file.write_bytes(file.read_bytes()[:-9])
            relay.restart()
            found = relay.until_final(identity)["recipients"][0]["attempts"][-1]
            assert (found["outcome"], found["policy"]) == ("relayed", LAX)
        finally:
            relay.close()


def test_another_id_fetches_the_policy_anew(internet: Internet) -> None:
    internet.remotes.dns.server.ttl_s, before_s = 1, internet.remotes.dns.server.ttl_s
    internet.domain("changed.test", "enforce")
    try:
        with internet.relay(retry=["0.2s"]) as relay:
            identity = relay.submit("alice@example.test", ["x@changed.test"])
            relay.until_state(identity, "deferred")
            internet.web.put("changed.test", "none")
            internet.record("changed.test", "2")
            found = relay.until_final(identity)["recipients"][0]["attempts"]
            assert found[-1]["policy"] == LAX
            assert found[0]["policy"] == "mta-sts: verify"
    finally:
        internet.remotes.dns.server.ttl_s = before_s
    assert internet.web.fetched.count("changed.test") == 2
