"""Webhooks: a real relay, and real receivers on loopback, which check each signature."""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.wall_clock import WallClock
from tests.support.webhooks import KEY, WebhookReceiver, by_message, hook, recorded

ROUTES = {"route": [{"domain": "held.test", "next_hop": "hold"}]}


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as running:
        yield running


def listed(relay: RelayProcess) -> dict[str, dict[str, Any]]:
    return {one["url"]: one for one in relay.cli_json("webhook", "list")["webhooks"]}


def names_of(receiver: WebhookReceiver, path: str) -> list[tuple[int, str | None]]:
    there = [json.loads(body) for at, _, body in list(receiver.requests) if at == path]
    return [(one["step"], one["state"]) for one in there]


def test_each_event_as_the_stream_has_it(receiver: WebhookReceiver, serve) -> None:
    relay = serve(config={"webhook": [hook(receiver)]})
    for number in range(5):
        relay.send_mail(to=["bob@example.test", "nobody@example.test"], subject=str(number))
    relay.submit("guest@remote.test", ["alice@example.test"], b"Subject: x\r\n\r\nHi\r\n")
    relay.until_final("last")
    until("all were delivered", lambda: not relay.queue())
    events = recorded(relay)
    assert len(events) >= 5 * 8
    receiver.until(lambda found: len(found) >= len(events))
    found = receiver.events
    assert by_message(found) == by_message(events)
    assert len({one.pop("id") for one in found}) == len(events)
    assert {tuple(one) for one in found} == {tuple(events[0])}
    assert relay.metric("relay_notifications_total", kind="webhook", result="sent") == len(events)
    assert relay.faults() == []


def test_events_and_accounts(receiver: WebhookReceiver, serve) -> None:
    wanted = {
        "accepted": [(4, None)] * 3 + [(5, "queued")] * 2,  # the report too
        "policy": [(5, "failed")] + [(5, "queued")] * 4,
        "delivered": [(6, "delivered")] * 3,
        "held": [(5, "queued")],
        "failed": [(5, "failed")],
        "reported": [(7, None)],
    }
    hooks = [hook(receiver, f"/{name}", events=[name]) for name in wanted]
    hooks += [
        hook(receiver, "/bob", accounts=["bob@*"]),
        hook(receiver, "/nobody", accounts=["nobody@*", "*@other.test"]),
        hook(receiver, "/two", events=["held", "reported"], accounts=["*"]),
    ]
    relay = serve(config={"webhook": hooks, **ROUTES})
    relay.send_mail(to=["bob@example.test"], subject="delivered")
    relay.send_mail(to=["carol@held.test"], subject="held")
    relay.send_mail(token="bob", to=["nobody@example.test"], subject="failed")
    relay.submit("guest@remote.test", ["alice@example.test"], b"Subject: x\r\n\r\nHi\r\n")
    receiver.until(lambda _: len(names_of(receiver, "/reported")) == 1)
    for name, expected in wanted.items():
        until(name, lambda: len(names_of(receiver, f"/{name}")) >= len(expected))  # noqa: B023
        assert sorted(names_of(receiver, f"/{name}"), key=str) == expected
    until("the two", lambda: len(names_of(receiver, "/two")) >= 2)
    assert names_of(receiver, "/nobody") == []
    assert sorted(names_of(receiver, "/two"), key=str) == [(5, "queued"), (7, None)]
    until("bob's", lambda: {step for step, _ in names_of(receiver, "/bob")} >= {1, 2, 3, 4, 5})


def test_four_messages_at_once_and_no_wait_for_another_receiver(serve) -> None:
    """At 200 ms an answer, four at once are 1,200 events a minute."""
    four, is_replay, met = threading.Barrier(4), threading.Event(), threading.Event()

    def meet(_body: bytes) -> None:
        if is_replay.is_set() and not met.is_set():
            with suppress(threading.BrokenBarrierError):
                four.wait(2)  # less than a request may take
                met.set()

    with WebhookReceiver(on_body=meet) as receiver, WebhookReceiver() as slow:
        slow.mode = "stall"
        relay = serve(config={"webhook": [hook(slow), hook(receiver, events=["policy"])]})
        for number in range(40):  # any four messages may be of one lane
            content = f"Subject: {number}\r\n\r\nHi\r\n".encode()
            relay.submit("guest@remote.test", ["alice@example.test"], content)
        receiver.until(lambda found: len(found) == 40)
        is_replay.set()
        assert relay.cli("webhook", "replay", receiver.url(), "--from", "0").returncode == 0
        receiver.until(lambda found: len(found) >= 80)
    assert met.is_set()
    assert slow.requests


def test_restart_and_reload(receiver: WebhookReceiver, serve) -> None:
    def mail(subject: str) -> None:
        content = f"Subject: {subject}\r\n\r\nHi\r\n".encode()
        relay.submit("guest@remote.test", ["alice@example.test"], content)

    def of(path: str) -> list[int]:
        return [step for step, _ in names_of(receiver, path)]

    relay = serve()
    mail("before there was one")
    relay.until_final("last")
    (relay.folder / "webhook.key").write_text(f"{KEY}\n")
    (relay.folder / "webhook.key").chmod(0o600)
    in_file = hook(receiver, "/a", secret="${file:webhook.key}")
    relay.write_config(relay.config | {"webhook": [in_file]})
    assert relay.cli("reload").returncode == 0
    mail("one")
    until("/a has it", lambda: of("/a") == [5, 6])
    relay.stop()
    relay.write_config(relay.config | {"webhook": [hook(receiver, "/a"), hook(receiver, "/b")]})
    relay.start()
    mail("both")
    until("both have it", lambda: (of("/a"), of("/b")) == ([5, 6, 5, 6], [5, 6]))
    of_mail = hook(receiver, "/b", events=["policy", "delivery"])  # it goes on where it was
    relay.write_config(relay.config | {"webhook": [of_mail]})
    assert relay.cli("reload").returncode == 0
    mail("only /b")
    until("/b has it", lambda: of("/b") == [5, 6, 5, 6])
    assert of("/a") == [5, 6, 5, 6]
    # while it is down, events wait
    receiver.close()
    mail("waits")
    until("it is down", lambda: listed(relay)[receiver.url("/b")]["failure"])
    relay.restart()
    with WebhookReceiver(port=receiver.port) as again:
        new = relay.journey("last")["id"]
        again.until(lambda found: {one["step"] for one in found if one["message"] == new} == {5, 6})
        assert relay.faults() == []


def test_a_clock_that_was_ahead_loses_no_event(
    tmp_path: Path, receiver: WebhookReceiver, serve
) -> None:
    """It was more than a day ahead, and events waited for their receiver when it was set right."""

    def mail() -> list[str]:
        """Return the queue ids, the newest first."""
        content = b"Subject: x\r\n\r\nHi\r\n"
        queue_id = relay.submit("guest@remote.test", ["alice@example.test"], content)
        sent = relay.until_final(relay.send_mail(to=["bob@example.test"], subject="x"))
        return [sent["id"], relay.until_final(queue_id)["id"]]

    def listed_after(cursor: str) -> list[str]:
        answer = relay.graph("GET", f"/relay/v1/messages?after={cursor}", token=OPERATOR)
        return [one["id"] for one in answer.json()["messages"]]

    wall = WallClock(tmp_path)
    wall.jump(timedelta(hours=30))
    relay = serve(config={"webhook": [hook(receiver)]}, environment=wall.environment)
    mail()
    receiver.mode = "error"
    mail()
    cursor = relay.graph("GET", "/relay/v1/messages?limit=1", token=OPERATOR).json()["cursor"]
    relay.stop()
    wall.jump(timedelta())
    relay.start()
    receiver.mode = "good"
    assert listed_after(cursor) == []
    new = mail()
    assert listed_after(cursor) == new
    events = recorded(relay, silent_s=5)
    assert len({one["message"] for one in events if one["message"]}) == 6

    def posted() -> dict[tuple[str, bool], list[tuple[int, str]]]:
        return by_message(json.loads(body) for _, _, body in list(receiver.requests))

    until("all were posted", lambda: posted() == by_message(events))
    assert relay.faults() == []


def test_a_cursor_that_cannot_be_read_costs_only_its_webhook(
    receiver: WebhookReceiver, serve
) -> None:
    relay = serve(config={"webhook": [hook(receiver, "/a"), hook(receiver, "/b")]})
    receiver.mode = "error"
    relay.submit("guest@remote.test", ["alice@example.test"], b"Subject: x\r\n\r\nHi\r\n")
    until("they wait", lambda: all(one["failure"] for one in listed(relay).values()))
    relay.stop()
    [file] = (relay.folder / "state").rglob("webhooks.json")
    cursors = json.loads(file.read_bytes()) | {receiver.url("/a"): "damaged"}
    file.write_text(json.dumps(cursors))
    receiver.requests.clear()
    receiver.mode = "good"
    relay.start()
    until("/b has what waited", lambda: len(names_of(receiver, "/b")) == 2)
    assert names_of(receiver, "/a") == []
    assert {header["content-type"] for _, header, _ in receiver.requests} == {"application/json"}
    assert "damaged" in relay.log


def test_the_verbs(receiver: WebhookReceiver, serve) -> None:
    relay = serve(config={"webhook": [hook(receiver, "/a"), hook(receiver, "/b")]})
    relay.submit("guest@remote.test", ["alice@example.test"], b"Subject: x\r\n\r\nHi\r\n")
    [policy, *others] = receiver.until(lambda found: len(found) == 4)
    before = listed(relay)
    assert list(before) == [receiver.url("/a"), receiver.url("/b")]
    assert before[receiver.url("/a")]["events"] == ["*"]
    receiver.requests.clear()
    done = relay.cli("webhook", "test", receiver.url("/a"))
    assert (done.returncode, done.stdout) == (0, f"{receiver.url('/a')}  answered 204\n")
    [event] = receiver.events
    assert (event["name"], event["step"], event["message"]) == ("test", 0, None)
    receiver.requests.clear()
    found = relay.cli_json("webhook", "replay", receiver.url("/b"), "--from", policy["cursor"])
    assert len(found["webhooks"]) == 2
    receiver.until(lambda found: len(found) == 1)
    assert relay.cli("webhook", "replay", "--from", "0").returncode == 0
    receiver.until(lambda found: len(found) == 1 + 2 * 2)
    assert {path for path, *_ in receiver.requests[:1]} == {"/b"}
    assert {one["id"] for one in receiver.events} == {one["id"] for one in (policy, *others)}
    until("they are at the end", lambda: listed(relay) == before)
    receiver.mode = "error"
    done = relay.cli("webhook", "test")
    assert done.returncode == 69
    assert done.stdout.count("answered 500") == 2
    for words, code, text in (
        (("replay", "--from", "x"), 65, "from: found 'x', expected the cursor of an event"),
        (("replay", "http://127.0.0.1/x", "--from", "0"), 65, "There is no webhook"),
        (("replay",), 64, "Missing option '--from'"),
    ):
        done = relay.cli("webhook", *words)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    relay.stop()
    assert relay.cli("webhook", "list").returncode == 69
