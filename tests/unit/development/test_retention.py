"""Which messages of a development relay go, and that they do."""

from email import message_from_bytes

import pytest

from relay.base.clock import time_us_of
from relay.development.removal import KeepLimits, cut_us
from tests.support.receiver import Receiver
from tests.support.relay_process import OPERATOR, until
from tests.support.subscribers import subscribed
from tests.support.tables import each_row

NOW_US = 1_000_000_000
DAY_S = 86400.0


def stays(items, cut):
    return [at_us for at_us, _ in items if at_us > cut]


@each_row(
    "keep, expected",
    [
        (KeepLimits(), [1, 2, 3, 4, 5]),
        (KeepLimits(messages=5), [1, 2, 3, 4, 5]),
        (KeepLimits(messages=2), [4, 5]),
        (KeepLimits(size_bytes=50), [1, 2, 3, 4, 5]),
        (KeepLimits(size_bytes=49), [2, 3, 4, 5]),
        (KeepLimits(size_bytes=20), [4, 5]),
        (KeepLimits(size_bytes=1), [5]),
        (KeepLimits(messages=4, size_bytes=20), [4, 5]),
        (KeepLimits(age_s=(NOW_US - 3) / 1e6), [4, 5]),
        (KeepLimits(age_s=1e-6), []),
    ],
)
def test_the_newest_stay(keep: KeepLimits, expected: list[int]) -> None:
    items = [(at_us, 10) for at_us in (3, 1, 5, 2, 4)]
    limits = keep if keep.age_s != 7 * DAY_S else KeepLimits(keep.messages, 1e6, keep.size_bytes)
    assert sorted(stays(items, cut_us(items, keep=limits, now_us=NOW_US))) == expected


def test_the_number_holds_for_each_store_and_the_size_for_both() -> None:
    mailboxes, spool = [(1, 10), (3, 10), (5, 10)], [(2, 10), (4, 10), (6, 10)]
    old = KeepLimits(age_s=1e6)
    for keep, expected in (
        (KeepLimits(3, old.age_s), 0),
        (KeepLimits(2, old.age_s), 2),
        (KeepLimits(3, old.age_s, 35), 3),
    ):
        assert max(0, cut_us(mailboxes, spool, keep=keep, now_us=NOW_US)) == expected


def test_a_development_relay_removes_its_oldest_mail(dev) -> None:
    relay = dev("--no-demo")
    for number in range(6):
        content = f"Subject: {number}\r\n\r\nx\r\n".encode()
        name = relay.submit("app@example.test", ["x@elsewhere.test"], content)
        relay.until_state(name, "captured")
    assert relay.stop() == 0
    mailbox = relay.mailbox_of("x@elsewhere.test")
    (moved := mailbox / ".Moved/cur").mkdir(parents=True)  # by another program
    first = next(one for one in mailbox.glob("new/*") if b"Subject: 0" in one.read_bytes())
    first.rename(moved / f"{first.name}:2,S")
    relay.options = ("--no-demo", "--keep-messages=4")
    relay.start()
    until("removed", lambda: "old messages removed" in relay.log)
    listed = relay.graph("GET", "/relay/v1/messages", token=OPERATOR).json()["messages"]
    assert [one["subject"] for one in listed] == ["5", "4", "3", "2"]
    assert relay.metric("relay_queue_unaccounted") == 0
    files = [*mailbox.glob("new/*"), *moved.iterdir()]
    assert sorted(message_from_bytes(one.read_bytes())["Subject"] for one in files) == [*"2345"]
    token = {"token": "x@elsewhere.test"}
    shown = relay.graph("GET", "/me/messages?$select=subject", **token).json()["value"]
    assert len(shown) == 4


def test_an_advance_makes_no_mail_old(dev) -> None:
    """Neither in the queue nor in the history; the log of submissions has its steps as before."""
    relay = dev("--no-demo", "--keep-age=2d")
    captured = relay.send_mail(to=["x@elsewhere.test"], subject="captured")
    delivered = relay.send_mail(to=["bob@example.test"], subject="delivered")
    for name, state in ((captured, "captured"), (delivered, "delivered")):
        relay.until_state(name, state)
    before = relay.journey(delivered)
    relay.cli("clock", "advance", "20d")
    relay.cli("storage", "prune")
    [entry] = relay.queue()
    assert (entry["state"], relay.journey(captured)["state"]) == ("captured", "captured")
    assert relay.journey(delivered) == before
    removed_us = time_us_of(entry["expires"]) - time_us_of(
        relay.journey(captured)["steps"][0]["at"]
    )
    assert removed_us == pytest.approx(22 * DAY_S * 1e6, abs=5e6)
    told = relay.cli("trace", captured).stdout.splitlines()[0]
    when = f"{entry['expires'][:10]} {entry['expires'][11:16]} UTC"
    assert told.endswith(f" The copy is removed with the message {when}.")


def test_a_mailbox_goes_with_its_mail_unless_somebody_uses_it(dev) -> None:
    relay = dev("--no-demo")
    for address in ("gone@one.test", "watched@two.test"):
        relay.send_captured(address, b"Subject: x\r\n\r\nx\r\n")
        assert relay.graph("GET", f"/users/{address}/messages").json()["value"]
    for name, method, path, body in (
        ("zone@two.test", "PATCH", "/me/mailboxSettings", {"timeZone": "Europe/Berlin"}),
        ("folder@two.test", "POST", "/me/mailFolders", {"displayName": "mine"}),
        ("draft@two.test", "POST", "/me/messages", {"subject": "mine"}),
        ("empty@three.test", "GET", "/me/messages", None),
        ("alice", "GET", "/me/messages", None),
    ):
        assert relay.graph(method, path, body, token=name).status < 300
    with Receiver() as receiver:
        subscribed(relay, receiver, resource="users/watched@two.test/messages")
    assert relay.stop() == 0
    relay.options = ("--no-demo", "--keep-messages=1")
    relay.start()
    staying = ["alice", "draft", "folder", "watched", "zone"]
    mailboxes = relay.mailbox_of("a@b").parents[1]
    until("gone", lambda: sorted(one.name for one in mailboxes.glob("[!.]*/*")) == staying)
    assert not mailboxes.joinpath("one.test").exists()
    assert relay.graph("GET", "/users/gone@one.test/messages").status == 404
    relay.send_captured("gone@one.test", b"Subject: anew\r\n\r\nx\r\n")
    assert "not removed" not in relay.log
