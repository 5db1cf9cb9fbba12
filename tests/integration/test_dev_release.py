"""Captured mail of `relay dev` leaves it only to the host of --release-to, and only by a release: to
addresses that a person names, and to its own recipients where --release-allow matches them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope

from tests.support.dev_process import DevProcess
from tests.support.graph_client import Answer
from tests.support.ports import free_port
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import until
from tests.support.tables import each_row


class OtherServer:
    """Takes every message (a handler of aiosmtpd)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.received: list[tuple[str, list[str], bytes]] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.original_content or b""
        self.received.append((envelope.mail_from or "", envelope.rcpt_tos, content))
        return "250 2.0.0 taken"


@pytest.fixture(scope="module")
def other() -> Iterator[OtherServer]:
    port = free_port()
    handler = OtherServer(f"127.0.0.1:{port}")
    controller = Controller(handler, hostname="127.0.0.1", port=port)
    controller.start()
    yield handler
    controller.stop()


@pytest.fixture(scope="module")
def relay(other: OtherServer, dev_module) -> DevProcess:
    options = ("--release-to", f"smtp://{other.address}", "--release-allow", "*@elsewhere.test")
    return dev_module("--no-demo", *options)


@pytest.fixture(scope="module")
def closed(dev_module) -> DevProcess:
    """A relay without --release-to."""
    return dev_module("--no-demo")


def released(running: DevProcess, key: str, to: Any = None, token: str = OPERATOR) -> Answer:
    body = None if to is None else {"to": to}
    return running.graph("POST", f"/relay/v1/messages/{key}/release", body, token=token)


def captured(running: DevProcess, subject: str, *, domain: str = "elsewhere.test") -> str:
    """Send a message that is captured; return its id."""
    content = f"Subject: {subject}\r\n\r\nx\r\n".encode()
    return running.send_captured(f"{subject}@{domain}", content)


def states(running: DevProcess, key: str) -> list[str]:
    return [one["state"] for one in running.journey(key)["recipients"]]


def test_a_release_sends_a_message_to_the_host(relay: DevProcess, other: OtherServer) -> None:
    key, kept = captured(relay, "first"), captured(relay, "kept")
    answer = released(relay, key, token="alice")
    assert (answer.status, answer.json()["done"]) == (200, 1)
    until("it is relayed", lambda: states(relay, key) == ["relayed"])
    sender, recipients, content = other.received[-1]
    assert (sender, recipients) == ("app@example.test", ["first@elsewhere.test"])
    assert b"\r\nSubject: first\r\n" in content
    assert states(relay, kept) == ["captured"]
    assert released(relay, key).json()["matched"] == 0
    assert released(relay, "unknown").status == 404


def test_the_command_releases_it_too(relay: DevProcess, other: OtherServer) -> None:
    key = captured(relay, "second")
    done = relay.cli("queue", "release", key)
    assert done.returncode == 0, done.stderr
    until("it is relayed", lambda: states(relay, key) == ["relayed"])
    assert other.received[-1][1] == ["second@elsewhere.test"]


def test_nothing_goes_elsewhere(relay: DevProcess, closed: DevProcess, other: OtherServer) -> None:
    for running in (relay, closed):
        key = captured(running, "door")
        for place in ("smtp://192.0.2.1:25", "smtps://192.0.2.1:465", "smtp://mail.example.org:25"):
            done = running.cli("queue", "reroute", key, "--to", place)
            assert done.returncode == 64, done.stderr
            assert "which is not on this machine" in done.stderr
            assert "--release-to" in done.stderr
        assert states(running, key) == ["captured"]
    # a server on loopback is fine without the option
    key = captured(closed, "near")
    done = closed.cli("queue", "reroute", key, "--to", f"smtp://{other.address}")
    assert done.returncode == 0, done.stderr
    until("it is relayed", lambda: states(closed, key) == ["relayed"])
    # MX hosts are those of the simulated internet
    key = captured(closed, "far")
    assert closed.cli("queue", "reroute", key, "--to", "mx").returncode == 0
    until("it is relayed", lambda: states(closed, key) == ["relayed"])
    journey = closed.journey(key)
    assert journey["steps"][-1]["detail"]["host"] == "mx1.elsewhere.test"


def test_without_the_option_a_release_says_how(closed: DevProcess) -> None:
    key = captured(closed, "how")
    answer = released(closed, key)
    assert answer.status == 403
    assert "relay dev --release-to smtp://HOST:PORT" in answer.message
    done = closed.cli("queue", "release", key)
    assert "--release-to smtp://HOST:PORT" in done.stdout
    assert states(closed, key) == ["captured"]


def test_mailpits_release_has_the_same_guards(
    relay: DevProcess, closed: DevProcess, other: OtherServer
) -> None:
    def released(running: DevProcess, key: str, body: bytes) -> tuple[int, str]:
        answer = running.request("POST", f"/api/v1/message/{key}/release", body)
        return answer.status, answer.body.decode()

    key, to = captured(relay, "mailpit", domain="closed.test"), b'{"To": ["me@office.test"]}'
    assert released(relay, key, to) == (200, "ok")
    until("it has arrived", lambda: other.received and other.received[-1][1] == ["me@office.test"])
    for running, body, expected in (
        (relay, b"{}", (400, "to: found 0 addresses")),
        (relay, b'{"To": ["mailpit@closed.test"]}', (403, "No --release-allow matches mailpit@")),
        (closed, to, (403, "No mail leaves this machine.")),
    ):
        key = captured(running, "mailpit", domain="closed.test")
        status, text = released(running, key, body)
        assert (status, text[: len(expected[1])]) == expected
    webui = [one.request("GET", "/api/v1/webui").json()["MessageRelay"] for one in (relay, closed)]
    assert [(one["Enabled"], one["SMTPServer"]) for one in webui] == [
        (True, other.address),
        (False, ""),
    ]


def test_a_password_for_the_host_is_not_shown(dev) -> None:
    running = dev("--no-demo", RELAY_DEV_RELEASE_TO="smtps://me:secret@192.0.2.1")
    assert "to smtps://192.0.2.1:465" in running.log
    assert "secret" not in running.log


def test_a_copy_goes_to_the_addresses_that_were_named(
    relay: DevProcess, other: OtherServer
) -> None:
    key = captured(relay, "copy", domain="closed.test")
    to = ["Me@Office.Test", "you@office.test", "you@office.test"]
    answer = released(relay, key, to)
    assert (answer.status, answer.json()["done"]) == (200, 1)
    until("it is relayed", lambda: states(relay, key) == ["captured", "relayed", "relayed"])
    sender, recipients, content = other.received[-1]
    assert (sender, recipients) == ("app@example.test", ["Me@office.test", "you@office.test"])
    assert b"\r\nSubject: copy\r\n" in content
    assert b"office.test" not in content
    journey = relay.journey(key)
    (event,) = [one["detail"] for one in journey["steps"] if "operation" in one["detail"]]
    assert event["copies"] == ["Me@office.test", "you@office.test"]
    assert event["to"] == [f"smtp://{other.address}"]
    shown = relay.cli("trace", key).stdout
    assert "a copy for Me@office.test, you@office.test" in shown
    # another copy, of a message that was released before
    again = released(relay, key, ["third@office.test"])
    assert again.json()["done"] == 1
    until("it is relayed", lambda: states(relay, key) == ["captured", *["relayed"] * 3])


def test_own_recipients_need_a_release_allow(relay: DevProcess, other: OtherServer) -> None:
    before = len(other.received)
    key = captured(relay, "own", domain="closed.test")
    answer = released(relay, key)
    assert answer.status == 403
    text = answer.message
    assert "No --release-allow matches own@closed.test" in text
    # nor by its name
    for to in (["Own@Closed.Test"], ["me@office.test", "own@closed.test"]):
        named = released(relay, key, to)
        assert (named.status, named.message) == (403, text)
    assert f"--release-to smtp://{other.address} --release-allow GLOB" in text
    done = relay.cli("queue", "release", key)
    assert "no --release-allow matches its recipients" in done.stdout
    done = relay.cli("queue", "reroute", key, "--to", f"smtp://{other.address}")
    assert "none of its recipients" in done.stdout
    assert states(relay, key) == ["captured"]
    assert len(other.received) == before


def test_a_message_is_released_to_all_of_its_recipients_or_to_none(
    relay: DevProcess, other: OtherServer
) -> None:
    recipients = ["a@elsewhere.test", "b@closed.test"]
    found = relay.submit("app@example.test", recipients)
    relay.until_state(found, "captured")
    assert released(relay, found).status == 403
    assert states(relay, found) == ["captured", "captured"]
    # the command takes recipients one by one
    done = relay.cli("queue", "release", found)
    assert done.returncode == 0, done.stderr
    until("one is relayed", lambda: sorted(states(relay, found)) == ["captured", "relayed"])
    assert other.received[-1][1] == ["a@elsewhere.test"]


@each_row(
    "to, text",
    [
        ([], "to: found 0 addresses, expected 1 to 100."),
        (
            [f"u{number}@office.test" for number in range(1000)],
            "to: found 1,000 addresses, expected 1 to 100.",
        ),
        (["me@office.test", "Ann Smith"], "to: found 'Ann Smith': expected local-part@domain"),
        (["me@office.test\r\nRCPT TO:<x@y.test>"], "to: found 'me@office.test\\r\\n"),
        (["me@"], "to: found 'me@': the domain after the @ is missing."),
        (["ü@office.test"], "is not ASCII and needs SMTPUTF8"),
        ("me@office.test", "The body: Expected `array | null`"),
    ],
)
def test_what_is_no_list_of_addresses_is_refused(
    relay: DevProcess, other: OtherServer, to: Any, text: str
) -> None:
    key, before = captured(relay, "bad", domain="closed.test"), len(other.received)
    answer = released(relay, key, to)
    assert (answer.status, text in answer.message) == (400, True), answer.body
    assert states(relay, key) == ["captured"]
    assert len(other.received) == before


def test_only_captured_mail_is_released_as_a_copy(relay: DevProcess, closed: DevProcess) -> None:
    local = relay.submit("app@example.test", ["bob@example.test"])
    relay.until_final(local)
    to = ["me@office.test"]
    answer = released(relay, local, to)
    assert (answer.status, answer.code) == (409, "ErrorIrresolvableConflict")
    assert "Nothing of this message is captured" in answer.message
    key_of_closed = captured(closed, "copy")
    answer = released(closed, key_of_closed, to)
    assert answer.status == 403
    assert "relay dev --release-to smtp://HOST:PORT" in answer.message
    assert released(closed, key_of_closed, to, token="alice").status == 403


def test_a_rule_sends_nothing_elsewhere(other: OtherServer, tmp_path: Path, dev) -> None:
    hosts = {
        "far": "smtp://192.0.2.1:25",
        "named": "smtps://mail.example.org:465",
        "released": f"smtp://{other.address}",
        "near": f"lmtp:unix:{tmp_path}/no-socket",
    }
    rules = [
        f'[[rule]]\nname = "{name}"\nwhen = {{ recipient = "{name}@*" }}\n'
        f'then = [ {{ next_hop = "{host}" }} ]\n'
        for name, host in hosts.items()
    ]
    (tmp_path / "10.toml").write_text("\n".join(rules))
    options = ("--no-demo", "--rules", str(tmp_path), "--release-to", f"smtp://{other.address}")
    before = len(other.received)
    running = dev(*options)
    for name in ("far", "named", "released"):
        assert states(running, captured(running, name)) == ["captured"]
        key = captured(running, name, domain="example.test")  # a local address too
        (routed,) = [one["detail"] for one in running.journey(key)["steps"] if one["step"] == 5]
        assert [rule["rule"] for rule in routed["rules"]] == [name]
        assert list(routed["next_hops"]) == ["capture"]
    assert "captured" in running.cli("explain", "far@elsewhere.test").stdout.splitlines()[0]
    running.send("app@example.test", "near@elsewhere.test", "near")  # this machine
    until("it is deferred", lambda: "deferred" in [one["state"] for one in running.queue()])
    assert len(other.received) == before
    running = dev(*options[:3])
    running.send("app@example.test", "released@elsewhere.test", "let through")
    until("it has arrived", lambda: len(other.received) > before)


def test_with_release_auto_what_matches_leaves_once_over_a_restart(dev) -> None:
    port = free_port()
    handler = OtherServer(f"127.0.0.1:{port}")
    options = ("--release-to", f"smtp://{handler.address}", "--release-allow", "*@go.test")
    running = dev("--no-demo", *options, "--release-auto")
    assert (
        f"mail to recipients like *@go.test leaves this machine, to smtp://{handler.address}"
        in (running.log)
    )
    running.graph("DELETE", "/relay/v1/messages", token=OPERATOR)
    asked = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "send"}}'
    answer = running.request("POST", "/mcp", asked, {"Content-Type": "application/json"})
    assert answer.json()["error"]["code"] == -32602, "a mail could talk an agent into sending"
    key = running.submit("app@example.test", ["a@go.test", "b@stay.test", "c@go.test"])
    until("it is tried", lambda: sorted(states(running, key)) == ["captured", *["deferred"] * 2])
    running.restart()  # the host is down, and the relay killed
    controller = Controller(handler, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        running.advance(3600)
        assert sorted(states(running, key)) == ["captured", "relayed", "relayed"]
        assert [one[1] for one in handler.received] == [["a@go.test", "c@go.test"]]
        running.restart()
        other_key = captured(running, "kept", domain="stay.test")
        again = running.submit("app@example.test", ["again@go.test"])
        running.graph("POST", "/relay/v1/quiet", {}, token=OPERATOR)
        assert (states(running, again), states(running, other_key)) == (["relayed"], ["captured"])
        assert len(handler.received) == 2
        shown = running.cli("trace", key).stdout
        assert "--release-auto" in shown
        assert len(running.until_messages("a@go.test", 1)) == 1
    finally:
        controller.stop()
