"""REQUIRETLS over two relays, with what a man in the middle records: no octet of the message in clear (RFC 8689)."""

import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import pytest

from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess, until
from tests.support.tls import Authority, authority

__all__ = ["authority"]

SECRET = b"the secret of the message"
CONTENT = b"From: alice@example.test\r\nSubject: plans\r\n\r\n" + SECRET + b"\r\n"


class RecordingProxy:
    """Passes TCP connections on and records what they carry; it can take STARTTLS out of EHLO."""

    def __init__(self) -> None:
        self.upstream = ("", 0)
        self.recorded: list[bytes] = []
        self._strips = False
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @contextmanager
    def stripping(self) -> Iterator[None]:
        """Close what is open, and strip STARTTLS in the block."""
        for one in self._open:
            _close(one)
        self._strips = True
        try:
            yield
        finally:
            self._strips = False

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.upstream)
                self._open += client, server
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while octets := source.recv(65536):
                self.recorded.append(octets)
                to.sendall(octets.replace(b"250-STARTTLS\r\n", b"") if self._strips else octets)
        for one in (source, to):
            _close(one)

    @property
    def clear(self) -> bytes:
        return b"".join(self.recorded)


def _close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


class Pair:
    """Two relays: mail for two.test goes from the first through the proxy to bob at the second."""

    def __init__(self, authority: Authority, proxy: RecordingProxy) -> None:
        shown = authority.issue("DNS:localhost")
        listener: dict[str, Any] = {
            "listen": "127.0.0.1:0", "trusted_networks": ["127.0.0.1/32"],
            "tls": {"certificate": shown.certificate, "key": shown.key},
        }  # fmt: skip
        strict = {"tls": "verify", "ca": authority.certificate, "requiretls": "verified"}
        routes = [
            {"domain": "two.test", "next_hop": f"smtp://localhost:{proxy.port}", **strict},
            {"domain": "away.test", "next_hop": "smtp://localhost:9", **strict},
            {"domain": "other.test", "next_hop": f"smtp://127.0.0.1:{proxy.port}"},
        ]
        self.proxy = proxy
        self.first = RelayProcess(
            config={"smtp": [listener], "delivery": {"retry": ["1h"]}, "route": routes}
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
    with RecordingProxy() as proxy:
        made = Pair(authority, proxy)
        with made.second as second, made.first:
            proxy.upstream = second.smtp_address()
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
def test_no_octet_of_the_message_is_in_clear_over_two_relays(pair: Pair, recipient: str) -> None:
    journey = pair.first.until_final(pair.submit(recipient))
    attempt = last_attempt(journey)
    assert (attempt["outcome"], attempt["verified"]) == ("relayed", "name")
    assert attempt["policy"] == "requiretls: verify"
    there = pair.second.until_final(attempt["reply"].rpartition(" ")[2])
    assert routed(journey)["tls"] == routed(there)["tls"] == "requiretls"
    assert there["recipients"][0]["state"] == "delivered"
    assert b"STARTTLS" in pair.proxy.clear
    for octets in (SECRET, b"plans", b"MAIL FROM", b"bob@"):
        assert octets not in pair.proxy.clear
    shown = pair.first.cli("queue", "show", journey["id"]).stdout
    assert "TLS demanded by the message: requiretls" in shown


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [
        ("bob@two.test", "the host does not offer STARTTLS, and TLS is required; the message demands"),
        ("x@other.test", "no DANE, MTA-STS policy or route vouches for 127.0.0.1"),
    ],
)  # fmt: skip
def test_mail_that_no_host_may_have_fails_and_its_bounce_has_the_header_only(
    pair: Pair, recipient: str, reply: str
) -> None:
    before = len(pair.bounces())
    with pair.proxy.stripping():
        journey = pair.first.until_final(pair.submit(recipient))
    attempt = last_attempt(journey)
    assert (attempt["outcome"], attempt["status"]) == ("failed", "5.7.30")
    assert reply in attempt["reply"]
    assert b"MAIL" not in pair.proxy.clear
    bounce = until("a bounce", lambda: pair.bounces()[before:])[0]
    assert b"5.7.30" in bounce
    assert b"Subject: plans" in bounce
    assert SECRET not in bounce


def test_the_demand_holds_over_a_restart_and_a_reroute(pair: Pair) -> None:
    ids = [pair.submit("bob@away.test") for _ in range(2)]
    for identity in ids:
        assert last_attempt(pair.first.until_state(identity, "deferred"))["status"] == "4.4.1"
    pair.first.restart()
    for identity, host in zip(ids, ("localhost", "127.0.0.1"), strict=True):
        to = f"smtp://{host}:{pair.proxy.port}"
        done = pair.first.cli("queue", "reroute", identity, "--to", to)
        assert done.returncode == 0, done.stderr
    found = [last_attempt(pair.first.until_final(identity)) for identity in ids]
    # no route vouches for the other host
    assert [(one["status"], one["verified"]) for one in found] == [
        ("2.0.0", "name"),
        ("5.7.30", "none"),
    ]


def test_a_message_of_the_graph_api_can_do_without_tls(pair: Pair) -> None:
    content = CONTENT.replace(b"Subject", b"To: bob@two.test\r\nTLS-Required: No\r\nSubject")
    answer = pair.first.graph(
        "POST", "/me/sendMail", b64encode(content), headers={"Content-Type": "text/plain"}
    )
    assert answer.status == 202, answer.body
    journey = pair.first.until_final(answer.headers["x-relay-message-id"])
    assert routed(journey)["tls"] == "optional"
