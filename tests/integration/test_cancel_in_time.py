"""Scheduled sends that are cancelled close to their time: the answer says whether the message was sent."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from tests.support.graph_client import Answer
from tests.support.relay_process import RelayProcess, until

SENDS, CLIENTS = 96, 12
LEAD_S = 0.5  # from the moment a message gets its due time to that time
EARLY_S, LATE_S = 0.15, 0.25  # a cancellation comes so much before or after the due time
# Each round doubles these times: on a busy machine some ways are always too late in one.
ROUNDS = 4
# Each asks for the draft as it was: what was sent may be deleted and moved as well.
WAYS: dict[str, Callable[[RelayProcess, str, Mapping[str, str]], Answer]] = {
    "DELETE": lambda relay, one, if_match: relay.graph(
        "DELETE", f"/me/messages/{one}", headers=if_match
    ),
    "DELETE in Drafts": lambda relay, one, _: relay.graph(
        "DELETE", f"/me/mailFolders/drafts/messages/{one}"
    ),
    "move": lambda relay, one, if_match: relay.graph(
        "POST", f"/me/messages/{one}/move", {"destinationId": "archive"}, headers=if_match
    ),
    "PATCH": lambda relay, one, _: relay.graph("PATCH", f"/me/messages/{one}", time_of(None)),
}


def time_of(due_s: float | None) -> dict[str, Any]:
    value = None if due_s is None else datetime.fromtimestamp(due_s, UTC).isoformat()
    return {"singleValueExtendedProperties": [{"id": "SystemTime 0x3FEF", "value": value}]}


def test_the_answer_to_a_cancellation_says_whether_the_message_was_sent(serve) -> None:
    relay = serve()
    outcomes: dict[tuple[str, str], int] = {}  # way and subject -> status
    for turn in range(ROUNDS):
        outcomes |= raced(relay, f"round {turn}", scale=2**turn)
        seen = {(way, status < 300) for (way, _), status in outcomes.items()}
        if len(seen) == 2 * len(WAYS):
            break
    pending = (relay.scheduled_submissions, relay.pending_submissions, relay.queue)
    until("all are sent", lambda: not any(left() for left in pending))
    arrived = Counter(relay.subjects("bob"))
    for (way, subject), status in outcomes.items():
        assert status in (200, 201, 204, 404, 409, 412), way
        assert arrived[subject] == (0 if status < 300 else 1), (way, subject, status)
    assert len(seen) == 2 * len(WAYS), "each way was in time, and too late"


def raced(relay: RelayProcess, name: str, *, scale: int) -> dict[tuple[str, str], int]:
    """Give each send its time, and cancel each at about that time."""
    later = time_of(time.time() + 3600)
    subjects = [f"{name} {number}" for number in range(SENDS)]
    waiting = [relay.send_mail(to=["bob@example.test"], subject=one, **later) for one in subjects]
    rng, never = random.Random(9), threading.Event()
    offsets_s = [scale * rng.uniform(-EARLY_S, LATE_S) for _ in waiting]

    def client(first: int) -> dict[tuple[str, str], int]:
        found = {}
        for place in range(first, SENDS, CLIENTS):
            due_s = time.time() + scale * LEAD_S
            path = f"/me/messages/{waiting[place]}"
            draft = relay.graph("PATCH", path, time_of(due_s)).json()
            never.wait(max(0.0, due_s + offsets_s[place] - time.time()))
            way = [*WAYS][place // CLIENTS % len(WAYS)]
            found[way, subjects[place]] = WAYS[way](
                relay, waiting[place], {"If-Match": draft["@odata.etag"]}
            ).status
        return found

    with ThreadPoolExecutor(CLIENTS) as clients:
        return {
            key: one for part in clients.map(client, range(CLIENTS)) for key, one in part.items()
        }
