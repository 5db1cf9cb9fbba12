"""Subscriptions in a development relay: http on loopback, and the clock plays days."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.dev_process import DevProcess
from tests.support.receiver import Receiver
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import ROOT, until
from tests.support.subscribers import in_minutes, subscribe, subscribed, wanted

HOUR_S = 3600
PAGE = ROOT / "docs/webhooks.md"


@pytest.fixture
def relay(dev) -> Iterator[DevProcess]:
    running = dev("--no-demo")
    yield running
    assert "Traceback" not in running.log


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def test_where_receivers_may_be(relay: DevProcess, receiver: Receiver) -> None:
    for host in ("127.0.0.1", "localhost", "hooks.localhost"):
        subscribed(relay, receiver, notificationUrl=receiver.url(host=host))
    for url, text in (
        ("http://10.0.0.1/", "10.0.0.1"),
        ("https://10.0.0.1/", "10.0.0.1 is no public address"),
        ("https://1.1.1.1/", "an address beyond this machine"),
        ("http://app.example.net/", "relay dev sends to this machine only"),
    ):
        answer = subscribe(relay, receiver, notificationUrl=url)
        assert (answer.status, text in answer.message) == (400, True), answer.body
    strict = {"prefer": "relay.strict"}
    answer = relay.graph("POST", "/subscriptions", wanted(receiver), headers=strict)
    assert (answer.status, "scheme='http' is not supported" in answer.message) == (400, True)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_command_of_the_page(relay: DevProcess, receiver: Receiver) -> None:
    [command] = re.findall(r"```\n(curl .*?)```", PAGE.read_text(), re.DOTALL)
    for printed, here in (("8025", relay.http[1]), ("3000", receiver.port)):
        command = command.replace(f"127.0.0.1:{printed}", f"127.0.0.1:{here}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, check=True)
    assert json.loads(done.stdout)["changeType"] == "created,updated"
    relay.send_mail(to=["alice@example.test"], subject="as printed")
    [found] = receiver.wait_for(lambda all_: len(all_) == 1)
    assert found["clientState"] == "a secret of yours"


def test_nothing_is_watched_without_subscriptions(relay: DevProcess, receiver: Receiver) -> None:
    def watches() -> int:
        assert relay.process is not None
        open_files = Path(f"/proc/{relay.process.pid}/fd")
        count = 0
        for descriptor in open_files.iterdir():
            with suppress(FileNotFoundError):  # closed in between
                count += "inotify" in str(descriptor.readlink())
        return count

    relay.graph("GET", "/me/messages")  # the index of a mailbox has a watch of its own
    before = watches()
    made = subscribed(relay, receiver)
    until("it is watched", lambda: watches() == before + 1)
    relay.graph("DELETE", f"/subscriptions/{made}")
    until("it is not watched", lambda: watches() == before)


def test_expiry(relay: DevProcess, receiver: Receiver) -> None:
    made = subscribed(relay, receiver, expirationDateTime=in_minutes(60))
    relay.send_mail(to=["alice@example.test"], subject="in time")
    receiver.wait_for(lambda all_: len(all_) == 1)
    relay.advance(2 * HOUR_S)
    assert relay.graph("GET", f"/subscriptions/{made}").status == 404
    assert relay.graph("GET", "/subscriptions").json()["value"] == []
    later = subscribed(relay, receiver, expirationDateTime=in_minutes(60 + 7 * 24 * 60))
    relay.send_mail(to=["alice@example.test"], subject="too late for the first one")
    [_, found] = receiver.wait_for(lambda all_: len(all_) == 2)
    assert found["subscriptionId"] == later


def test_what_expires_while_its_new_url_is_asked_is_not_renewed(
    relay: DevProcess, receiver: Receiver
) -> None:
    def left() -> list[object]:
        return list(relay.graph("GET", "/subscriptions").json()["value"])

    made = subscribed(relay, receiver, expirationDateTime=in_minutes(0.02))
    with Receiver(on_body=lambda _: until("expired", lambda: not left())) as other:
        body = {"notificationUrl": other.url(), "expirationDateTime": in_minutes(60)}
        answer = relay.graph("PATCH", f"/subscriptions/{made}", body)
        assert answer.status == 404, answer.body
    assert left() == []


def test_a_reset_removes_subscriptions(relay: DevProcess, receiver: Receiver) -> None:
    subscribed(relay, receiver)
    headers = {"Authorization": f"Bearer {OPERATOR}"}
    assert relay.request("DELETE", "/relay/v1/messages", headers=headers).status == 200
    assert relay.graph("GET", "/subscriptions").json()["value"] == []
    made = subscribed(relay, receiver)
    relay.send_mail(to=["alice@example.test"], subject="after the reset")
    [found] = receiver.wait_for(lambda all_: len(all_) == 1)
    assert found["subscriptionId"] == made


def test_four_hours(relay: DevProcess, receiver: Receiver) -> None:
    """When the receiver has been down for four hours, what waits is dropped and reported."""
    with Receiver() as lifecycle:
        subscribed(
            relay,
            receiver,
            expirationDateTime=in_minutes(7 * 24 * 60 - 1),
            lifecycleNotificationUrl=lifecycle.url("/life"),
        )
        receiver.mode = "error"
        relay.send_mail(to=["alice@example.test"], subject="old")
        relay.advance(3 * HOUR_S)
        tries = len(receiver.requests)
        assert tries > 30
        assert lifecycle.notifications == []
        relay.send_mail(to=["alice@example.test"], subject="young")
        relay.advance(1.5 * HOUR_S)
        [event] = lifecycle.wait_for(lambda all_: len(all_) == 1)
        assert (event["lifecycleEvent"], event["clientState"]) == ("missed", "a secret")
        assert relay.metric("relay_notifications_total", kind="subscription", result="dropped") == 2
        receiver.mode = "good"
        known = len(receiver.notifications)
        relay.send_mail(to=["alice@example.test"], subject="later")
        relay.advance(600)
        found = receiver.notifications[known:]
        ids = [one["resourceData"]["id"] for one in found]
        subjects = [relay.graph("GET", f"/me/messages/{one}").json()["subject"] for one in ids]
        assert subjects == ["later"]
