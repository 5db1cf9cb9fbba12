"""Scheduled sends that are cancelled close to their time: the answer says whether the message was sent."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.support.graph_client import Answer
from tests.support.relay_process import RelayProcess, until

SENDS, CLIENTS = 120, 12
LEAD_S = 0.5  # from the moment a message gets its due time to that time
EARLY_S, LATE_S = 0.15, 0.25  # a cancellation comes so much before or after the due time
ROUNDS = (
    4  # of which each doubles these times: on a busy machine some ways are always too late in one
)
NO_TIME = {"singleValueExtendedProperties": [{"id": "SystemTime 0x3FEF", "value": None}]}


@dataclass(frozen=True)
class Deferred:
    """A message that waits: what its client knows of it."""

    id: str
    subject: str
    etag: str
    change_key: str
    due_s: float


def by_delete(relay: RelayProcess, one: Deferred) -> Answer:
    return relay.graph("DELETE", f"/me/messages/{one.id}", headers={"If-Match": one.etag})


def by_delete_in_drafts(relay: RelayProcess, one: Deferred) -> Answer:
    path = f"/me/mailFolders/drafts/messages/{one.id}"
    return relay.graph("DELETE", path)


def by_move(relay: RelayProcess, one: Deferred) -> Answer:
    path, body = f"/me/messages/{one.id}/move", {"destinationId": "archive"}
    return relay.graph("POST", path, body, headers={"If-Match": one.change_key})


def by_change(relay: RelayProcess, one: Deferred) -> Answer:
    return relay.graph("PATCH", f"/me/messages/{one.id}", NO_TIME, headers={"If-Match": one.etag})


def by_change_of_the_time_alone(relay: RelayProcess, one: Deferred) -> Answer:
    return relay.graph("PATCH", f"/me/messages/{one.id}", NO_TIME)


Way = Callable[[RelayProcess, Deferred], Answer]
WAYS: tuple[Way, ...] = (
    by_delete,
    by_delete_in_drafts,
    by_move,
    by_change,
    by_change_of_the_time_alone,
)
IN_TIME = (200, 201, 204)
TOO_LATE = (409, 412)


def test_the_answer_to_a_cancellation_says_whether_the_message_was_sent() -> None:
    with RelayProcess() as relay:
        answers: list[tuple[str, Deferred, Answer]] = []
        for number in range(ROUNDS):
            waiting = [deferred(relay, number * SENDS + place) for place in range(SENDS)]
            answers += raced(relay, waiting, scale=2**number)
            if not one_sided(answers):
                break
        until(
            "nothing is pending",
            lambda: not relay.scheduled_submissions() and not relay.pending_submissions(),
        )
        until("the queue is empty", lambda: not relay.queue(), timeout_s=60)
        arrived = Counter(relay.subjects("bob"))
    wrong = {
        (way, one.subject, answer.status): arrived[one.subject]
        for way, one, answer in answers
        if arrived[one.subject] != (0 if answer.status < 300 else 1)
    }
    assert wrong == {}
    for way in WAYS:
        assert seen(way, answers) <= {*IN_TIME, *too_late(way)}
    assert one_sided(answers) == []


def seen(way: Way, answers: list[tuple[str, Deferred, Answer]]) -> set[int]:
    return {answer.status for name, _, answer in answers if name == way.__name__}


def too_late(way: Way) -> tuple[int, ...]:
    """The message is not in Drafts once it was sent."""
    return (404, 409) if way is by_delete_in_drafts else TOO_LATE


def one_sided(answers: list[tuple[str, Deferred, Answer]]) -> list[str]:
    """The ways that were always in time, or never."""
    return [
        way.__name__
        for way in WAYS
        if not seen(way, answers) & {*IN_TIME} or not seen(way, answers) & {*too_late(way)}
    ]


def deferred(relay: RelayProcess, number: int) -> Deferred:
    """Submit a message; its due time is set once all are there."""
    due_s = time.time() + 3600
    subject = f"deferred {number}"
    identity = relay.send_mail(to=["bob@example.test"], subject=subject, **at(due_s))
    return Deferred(identity, subject, "", "", due_s)


def at(due_s: float) -> dict[str, Any]:
    due = datetime.fromtimestamp(due_s, UTC).isoformat()
    return {"singleValueExtendedProperties": [{"id": "SystemTime 0x3FEF", "value": due}]}


def raced(
    relay: RelayProcess, waiting: list[Deferred], *, scale: int
) -> list[tuple[str, Deferred, Answer]]:
    """Give each its time, and cancel each at about that time; return way, message and answer."""
    rng = random.Random(9)
    offsets_s = [scale * rng.uniform(-EARLY_S, LATE_S) for _ in waiting]
    never = threading.Event()

    def client(number: int) -> list[tuple[str, Deferred, Answer]]:
        answers = []
        for place in range(number, len(waiting), CLIENTS):
            due_s = time.time() + scale * LEAD_S
            one = postponed(relay, waiting[place], due_s)
            way = WAYS[place % len(WAYS)]
            never.wait(max(0.0, due_s + offsets_s[place] - time.time()))
            answers.append((way.__name__, one, way(relay, one)))
        return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [one for found in pool.map(client, range(CLIENTS)) for one in found]


def postponed(relay: RelayProcess, one: Deferred, due_s: float) -> Deferred:
    answer = relay.graph("PATCH", f"/me/messages/{one.id}", at(due_s))
    assert answer.status == 200, answer.body
    shown = answer.json()
    return Deferred(one.id, one.subject, shown["@odata.etag"], shown["changeKey"], due_s)
