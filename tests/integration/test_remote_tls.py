"""Routes with a login: only over TLS with a valid certificate."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.relay_process import RelayProcess
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes, received
from tests.support.tls import Authority, Certificate, authority, certificate

__all__ = ["authority", "certificate"]

LOGIN = {"users": {"me": "secret"}}


def routed(remotes: Remotes, tmp_path: Path, routes: dict[str, dict[str, Any]]) -> RelayProcess:
    """A relay with a login for mx.DOMAIN of each domain; `routes` has what else its route says."""
    (tmp_path / "password").write_text("secret\n")
    auth = {"user": "me", "password_file": str(tmp_path / "password")}
    tables = [
        {"domain": domain, "next_hop": f"smtp://mx.{domain}:{remotes.port}", "auth": auth} | more
        for domain, more in routes.items()
    ]
    # where nothing else is said, the most trusting level that there is
    delivery = {"tls": "opportunistic", "retry": ["1h"]}
    return remotes.relay(config={"route": tables, "delivery": delivery})


def deferral(relay: RelayProcess, address: str) -> dict[str, Any]:
    """The attempt of a message to `address` that was put off."""
    identity = relay.submit("alice@example.test", [address])
    found = relay.until_state(identity, "deferred")
    ((attempt,),) = [one["attempts"] for one in found["recipients"]]
    assert isinstance(attempt, dict)
    return attempt


def received_no_login(server: RemoteMx) -> bool:
    """Whether the server never saw the login or the message."""
    assert not server.envelopes
    return not [line for line in server.commands if line.startswith(("AUTH", "MAIL"))]


def test_a_password_is_not_sent_in_the_clear_where_tls_is_not_offered(
    remotes: Remotes, tmp_path: Path
) -> None:
    routes = {"a.test": {}, "b.test": {"tls": "required"}, "c.test": {"tls": "opportunistic"}}
    servers = {domain: remotes.start(domain, **LOGIN) for domain in routes}
    with routed(remotes, tmp_path, routes) as relay:
        for domain, server in servers.items():
            place = f"{server.host}:{server.port}"
            told = "the host does not offer STARTTLS, and a password is not sent without TLS"
            assert deferral(relay, f"x@{domain}")["reply"] == f"{place}: {told}"
            assert received_no_login(server)
        assert relay.metric("relay_attempts_total", outcome="deferred", **{"class": "tls"}) == 3


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "smtps"])
def test_a_login_requires_a_trusted_certificate_with_the_host_name(
    remotes: Remotes, tmp_path: Path, certificate: Certificate, authority: Authority, implicit: bool
) -> None:
    servers = {
        "self.test": certificate,
        "other.test": authority.issue("DNS:mx.self.test"),
        "old.test": authority.issue("DNS:mx.old.test", days=-1),
        "unknown.test": authority.issue("DNS:mx.unknown.test"),
        "good.test": authority.issue("DNS:mx.good.test"),
        "required.test": certificate,
    }
    running = {
        domain: remotes.start(domain, tls=shown.server_context(), implicit_tls=implicit, **LOGIN)
        for domain, shown in servers.items()
    }
    scheme = "smtps" if implicit else "smtp"
    routes: dict[str, dict[str, Any]] = {
        domain: {
            "next_hop": f"{scheme}://mx.{domain}:{remotes.port}",
            "ca": str(authority.certificate),
        }
        for domain in servers
    }
    del routes["unknown.test"]["ca"]
    routes["required.test"] |= {"tls": "required"}
    del routes["required.test"]["ca"]
    with routed(remotes, tmp_path, routes) as relay:
        for domain, reported in {
            "self.test": "the certificate is refused: self-signed certificate; correct",
            "other.test": "the certificate is for mx.self.test, not mx.other.test; correct",
            "old.test": "the certificate is refused: certificate has expired; correct",
            "unknown.test": "the certificate is refused: unable to get local issuer certificate",
        }.items():
            attempt = deferral(relay, f"x@{domain}")
            server = running[domain]
            assert attempt["reply"].startswith(f"{server.host}:{server.port}: {reported}")
            assert received_no_login(server)
        for domain in ("good.test", "required.test"):
            relay.until_final(relay.submit("alice@example.test", [f"x@{domain}"]))
            assert received(running[domain], f"x@{domain}").tls
