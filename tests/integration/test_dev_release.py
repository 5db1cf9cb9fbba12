"""Captured mail of `relay dev` leaves it only to the host of --release-to, and only by a release."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope

from tests.support.ports import free_port
from tests.support.relay_process import until
from tests.support.running_dev import RunningDev, relay_command, relay_dev


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
def dev(other: OtherServer) -> Iterator[RunningDev]:
    with relay_dev("--no-demo", "--release-to", f"smtp://{other.address}") as running:
        yield running


@pytest.fixture(scope="module")
def closed() -> Iterator[RunningDev]:
    """A relay without --release-to."""
    with relay_dev("--no-demo") as running:
        yield running


def post(running: RunningDev, path: str, token: str = "", **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token or running.ready['token']}"}
    return httpx.post(running.http + path, headers=headers, trust_env=False, **more)


def captured(running: RunningDev, subject: str) -> str:
    """Send a message that is captured; return its id."""
    running.send("app@example.test", f"{subject}@elsewhere.test", subject)

    def found() -> str:
        path = f"/relay/v1/messages?subject={subject}&state=captured"
        messages = running.get(path, running.ready["token"]).json()["messages"]
        return messages[0]["id"] if messages else ""

    return until("it is captured", found)


def states(running: RunningDev, key: str) -> list[str]:
    journey = running.get(f"/relay/v1/messages/{key}", running.ready["token"]).json()
    return [one["state"] for one in journey["recipients"]]


def test_a_release_sends_a_message_to_the_host(dev: RunningDev, other: OtherServer) -> None:
    key, kept = captured(dev, "first"), captured(dev, "kept")
    assert post(dev, f"/relay/v1/messages/{key}/release", "alice").status_code == 403
    answer = post(dev, f"/relay/v1/messages/{key}/release")
    assert (answer.status_code, answer.json()["done"]) == (200, 1)
    until("it is relayed", lambda: states(dev, key) == ["relayed"])
    sender, recipients, content = other.received[-1]
    assert (sender, recipients) == ("app@example.test", ["first@elsewhere.test"])
    assert b"\r\nSubject: first\r\n" in content
    assert states(dev, kept) == ["captured"]
    assert post(dev, f"/relay/v1/messages/{key}/release").json()["matched"] == 0
    assert post(dev, "/relay/v1/messages/unknown/release").status_code == 404


def test_the_command_releases_it_too(dev: RunningDev, other: OtherServer) -> None:
    key = captured(dev, "second")
    done = relay_command(dev, "queue", "release", key)
    assert done.returncode == 0, done.stderr
    until("it is relayed", lambda: states(dev, key) == ["relayed"])
    assert other.received[-1][1] == ["second@elsewhere.test"]


def test_nothing_goes_elsewhere(dev: RunningDev, closed: RunningDev, other: OtherServer) -> None:
    for running in (dev, closed):
        key = captured(running, "door")
        for place in ("smtp://192.0.2.1:25", "smtps://192.0.2.1:465", "smtp://mail.example.org:25"):
            done = relay_command(running, "queue", "reroute", key, "--to", place)
            assert done.returncode == 64, done.stderr
            assert "which is not on this machine" in done.stderr
            assert "--release-to" in done.stderr
        assert states(running, key) == ["captured"]
    # a server on loopback is fine without the option
    key = captured(closed, "near")
    done = relay_command(closed, "queue", "reroute", key, "--to", f"smtp://{other.address}")
    assert done.returncode == 0, done.stderr
    until("it is relayed", lambda: states(closed, key) == ["relayed"])
    # MX hosts are those of the simulated internet
    key = captured(closed, "far")
    assert relay_command(closed, "queue", "reroute", key, "--to", "mx").returncode == 0
    until("it is relayed", lambda: states(closed, key) == ["relayed"])
    journey = closed.get(f"/relay/v1/messages/{key}", closed.ready["token"]).json()
    assert journey["steps"][-1]["detail"]["host"] == "mx1.elsewhere.test"


def test_without_the_option_a_release_says_how(closed: RunningDev) -> None:
    key = captured(closed, "how")
    answer = post(closed, f"/relay/v1/messages/{key}/release")
    assert answer.status_code == 403
    assert "relay dev --release-to smtp://HOST:PORT" in answer.json()["error"]["message"]
    done = relay_command(closed, "queue", "release", key)
    assert "--release-to smtp://HOST:PORT" in done.stdout
    assert states(closed, key) == ["captured"]


def test_a_password_for_the_host_is_not_shown() -> None:
    with relay_dev("--no-demo", RELAY_DEV_RELEASE_TO="smtps://me:secret@192.0.2.1") as running:
        assert "to smtps://192.0.2.1:465" in running.output
        assert "secret" not in running.output
