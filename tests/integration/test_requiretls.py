"""REQUIRETLS over two relays, a restart and a reroute; no host without TLS gets a message (RFC 8689).

What a man in the middle gets is shown by tests/unit/delivery/test_requiretls.py.
"""

import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess
from tests.support.remotes import Remotes
from tests.support.tls import Authority, authority

__all__ = ["authority"]

SECRET = b"the secret of the message"
CONTENT = b"From: alice@example.test\r\nSubject: plans\r\n\r\n" + SECRET + b"\r\n"


class Pair:
    """Two relays: mail for two.test goes from the first to bob at the second, that for clear.test and
    other.test to `clear`, which offers no TLS.
    """

    def __init__(self, authority: Authority, remotes: Remotes) -> None:
        shown = authority.issue("DNS:localhost")
        listener: dict[str, Any] = {
            "listen": f"127.0.0.1:{free_port()}",
            "trusted_networks": ["127.0.0.1/32"],
            "tls": {"certificate": shown.certificate, "key": shown.key},
        }
        self.clear = remotes.start("clear.test", extensions=["REQUIRETLS"])
        to_second, to_clear = (listener["listen"].rpartition(":")[2], self.clear.port)
        strict = {"tls": "verify", "ca": authority.certificate, "requiretls": "verified"}
        routes = [
            {"domain": "two.test", "next_hop": f"smtp://localhost:{to_second}", **strict},
            {"domain": "away.test", "next_hop": "smtp://localhost:9", **strict},
            {"domain": "clear.test", "next_hop": f"smtp://{self.clear.host}:{to_clear}", **strict},
            {"domain": "other.test", "next_hop": f"smtp://{self.clear.host}:{to_clear}"},
        ]
        self.to_second = int(to_second)
        own = [listener | {"listen": "127.0.0.1:0"}]
        self.first = RelayProcess(
            config={
                "smtp": own,
                "delivery": {"retry": ["1h"]},
                "route": routes,
                "dns": {"timeout": "20s"},  # of the look-up of localhost
            }
        )
        with (self.first.folder / "accounts.toml").open("a") as file:
            file.write('[[alias]]\naddress = "team@example.test"\nto = ["bob@two.test"]\n')
        self.second = RelayProcess(
            config={"smtp": [listener], "mailboxes": {"domains": ["two.test", "example.test"]}},
            accounts=[account("bob") | {"address": "bob@two.test", "token": "plain:two"}],
        )

    def submit(self, recipient: str, *, content: bytes = CONTENT, strict: bool = True) -> str:
        """Send a message under TLS to the first relay; return its queue id."""
        with self.first.smtp() as session:
            session.starttls(context=ssl._create_unverified_context())
            session.ehlo()
            assert session.has_extn("requiretls")
            assert session.mail("alice@example.test", ["REQUIRETLS"] * strict)[0] == 250
            assert session.rcpt(recipient)[0] == 250
            code, reply = session.data(content)
            assert code == 250
        return reply.decode().rpartition(" ")[2]

    def bounces(self) -> list[bytes]:
        """The reports that alice has."""
        return [bytes(one) for one in self.first.maildir() if "MAILER-DAEMON" in str(one["from"])]


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Iterator[Pair]:
    with Remotes() as remotes:
        made = Pair(authority, remotes)
        with made.second, made.first:
            yield made


def routed(journey: dict[str, Any]) -> dict[str, Any]:
    """What step 5 says."""
    (step,) = [one for one in journey["steps"] if one["step"] == 5]
    assert isinstance(step["detail"], dict)
    return step["detail"]


def last_attempt(journey: dict[str, Any]) -> dict[str, Any]:
    (found,) = [one for one in journey["recipients"] if one["attempts"]]
    assert isinstance(found["attempts"][-1], dict)
    return found["attempts"][-1]


@pytest.mark.parametrize("recipient", ["bob@two.test", "team@example.test"])
def test_the_demand_goes_with_the_message_over_two_relays(pair: Pair, recipient: str) -> None:
    journey = pair.first.until_final(pair.submit(recipient))
    attempt = last_attempt(journey)
    assert (attempt["outcome"], attempt["verified"]) == ("relayed", "name")
    assert attempt["policy"] == "requiretls: verify"
    there = pair.second.until_final(attempt["reply"].rpartition(" ")[2])
    assert routed(journey)["tls"] == routed(there)["tls"] == "requiretls"
    assert there["recipients"][0]["state"] == "delivered"
    assert there["client"]["tls"] == "TLSv1.3"
    shown = pair.first.cli("queue", "show", journey["id"]).stdout
    assert "TLS demanded by the message: requiretls" in shown


def test_the_demand_holds_over_a_restart_and_a_reroute(pair: Pair) -> None:
    ids = [pair.submit("bob@away.test") for _ in range(2)]
    for identity in ids:
        assert last_attempt(pair.first.until_state(identity, "deferred"))["status"] == "4.4.1"
    pair.first.restart()
    for identity, host in zip(ids, ("localhost", "127.0.0.1"), strict=True):
        to = f"smtp://{host}:{pair.to_second}"
        done = pair.first.cli("queue", "reroute", identity, "--to", to)
        assert done.returncode == 0, done.stderr
    found = [last_attempt(pair.first.until_final(identity)) for identity in ids]
    # no route vouches for the other host
    assert [(one["status"], one["verified"]) for one in found] == [
        ("2.0.0", "name"),
        ("5.7.30", "none"),
    ]
