"""The right to try an entry: taken when it is due, given back untried.

On the path: between accept() or settle(), which put an entry back, and the next attempt.
Holds: one owner at a time; every claim and every release raises the epoch.
Fails: with apsw's exceptions, and the transaction with it.
Standards: docs/design.md 4 (claims and epochs), invariant 3.
"""

from collections.abc import Iterable
from dataclasses import replace

import apsw

from relay.journeys.events import Event, Step
from relay.message.lifecycle import State, check_transition
from relay.observe.logs import get_logger
from relay.spool.sqlite.due import Found
from relay.spool.sqlite.engine.batch import Batch
from relay.spool.sqlite.engine.database import fetch_one
from relay.spool.sqlite.transactions import append_events
from relay.spool.types import Claim, Key

_log = get_logger("spool")

NEVER_US = 1 << 62  # when a damaged entry is due
_TAKE = (
    "UPDATE entry SET claimed = 1, epoch = epoch + 1 WHERE message_id = ? AND number = ?"
    " AND epoch = ? AND claimed = 0 RETURNING message_id, number"
)
_HOLD_DAMAGED = (
    "UPDATE entry SET state = 'held', due_us = ?, retry_us = NULL, warn_us = NULL,"
    " epoch = epoch + 1 WHERE message_id = ? AND number = ? AND claimed = 0 RETURNING number"
)
_MOVE_PEOPLE = (
    "UPDATE recipient SET state = ?1 WHERE message_id = ?2 AND entry = ?3"
    " AND state IN ('queued', 'deferred', 'held')"
)


def take(batch: Batch, found: Found, *, now_us: int, at_us: int) -> tuple[Claim, ...]:
    """Claim what was found, unless somebody else had it since; `at_us` is when, on the wall.

    What was held until now is queued again. What cannot be read is held, so that others go on:
    it is in the log, in the journey and in the queue's list.
    """
    keys = [(*claim.key, claim.epoch) for claim in found.seen.claims]
    taken = set(batch.cursor.executemany(_TAKE, keys)) if keys else ()
    claims = [
        _taken(batch, claim, now_us=now_us, at_us=at_us)
        for claim in found.seen.claims
        if claim.key in taken
    ]
    for key, words in found.damaged.items():
        _hold_damaged(batch, key, words, at_us=at_us)
    return tuple(claims)


def _taken(batch: Batch, claim: Claim, *, now_us: int, at_us: int) -> Claim:
    """The claim as it is now that it was taken."""
    state = claim.state
    if state is State.HELD and claim.retry_us is not None and claim.retry_us <= now_us:
        state = State.QUEUED
        check_transition(claim.state, state)
        batch.cursor.execute(
            "UPDATE entry SET state = ? WHERE message_id = ? AND number = ?", (state, *claim.key)
        )
        batch.cursor.execute(_MOVE_PEOPLE, (state, *claim.key))
        detail = {"operation": "release", "entries": [claim.entry_id], "who": "its time"}
        append_events(batch.cursor, claim.message.id, [Event(Step.DELIVERY, at_us, detail)])
    return replace(claim, epoch=claim.epoch + 1, state=state)


def _hold_damaged(batch: Batch, key: Key, words: str, *, at_us: int) -> None:
    if fetch_one(batch.cursor, _HOLD_DAMAGED, (NEVER_US, *key)) is None:
        return
    message_id, number = key
    batch.cursor.execute(_MOVE_PEOPLE, (State.HELD, *key))
    detail = {"operation": "hold", "entries": [number], "who": "relay", "why": f"damaged: {words}"}
    append_events(batch.cursor, message_id, [Event(Step.DELIVERY, at_us, detail)])
    _log.error("entry damaged", qid=message_id, entry=number, error=words)


def release(cursor: apsw.Cursor, claims: Iterable[Claim]) -> None:
    """Put untried claims back as they were, unless somebody else has them by now."""
    cursor.executemany(
        "UPDATE entry SET claimed = 0, epoch = epoch + 1"
        " WHERE message_id = ? AND number = ? AND epoch = ? AND claimed = 1",
        [(*claim.key, claim.epoch) for claim in claims],
    )
