"""Change entries by hand: tried now, held, released, cancelled, sent another way.

On the path: the spool's desk; each call runs inside one transaction.
Holds: an entry that a connection has is left alone; every change raises the epoch, so that whoever
    had a claim cannot settle it; a state is left by message.lifecycle's table only; each change is
    an event with who and why.
Fails: with apsw's exceptions, and the transaction with it.
Standards: docs/design.md 4, invariants 1, 3, 9.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from relay.clock import ahead_us, rfc3339
from relay.journeys.events import Event, Step
from relay.message.lifecycle import State, check_transition
from relay.message.nexthop import NextHop
from relay.spool.operating import (
    Operation,
    Order,
    Result,
    leading_to,
    look_us,
    obstacle,
    state_after,
)
from relay.spool.sqlite.engine.batch import Batch
from relay.spool.sqlite.engine.database import fetch_one
from relay.spool.sqlite.operating.foreseeing import Facts, facts_of, is_so_already, ways_of
from relay.spool.sqlite.operating.listing import operations
from relay.spool.sqlite.transactions import append_events, drop_content
from relay.spool.types import Key

_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
_HOPS_TOLD_MAX = 20  # of one event
_WAIT = (
    "UPDATE entry SET state = ?, claimed = 0, epoch = epoch + 1, retry_us = ?, due_us = ?"
    " WHERE message_id = ? AND number = ?"
)
_END = (
    "UPDATE entry SET state = 'final', claimed = 0, epoch = epoch + 1, retry_us = NULL,"
    " due_us = NULL, warn_us = NULL WHERE message_id = ? AND number = ?"
)
# Another way has nobody who was not there, and nothing that was deferred.
_ANOTHER_WAY = (
    "UPDATE entry SET next_hop = ?, lane = priority, cause = '', cause_attempts = 0"
    " WHERE message_id = ? AND number = ?"
)
_COPY = (
    "INSERT INTO entry (message_id, number, next_hop, content_id, state, claimed, due_us, attempts,"
    " epoch, retry_us, lane, sender, warn_us, priority)"
    " SELECT message_id, ?, ?, content_id, state, 0, due_us, attempts, 1, retry_us, priority,"
    " sender, warn_us, priority FROM entry WHERE message_id = ? AND number = ?"
)


@dataclass(frozen=True, slots=True)
class Times:
    """Now, in the time of the queue and as people have it."""

    steady_us: int
    wall_us: int

    @property
    def ahead_us(self) -> int:
        """How far the wall clock is ahead of steady time."""
        return ahead_us(wall_us=self.wall_us, steady_us=self.steady_us)


@dataclass(slots=True)
class Work:
    """What one transaction did: a result and a note for each entry, what it made, what it freed."""

    results: dict[Key, tuple[Result, str]] = field(default_factory=dict)
    made: dict[Key, list[Key]] = field(default_factory=dict)  # of entries that were taken apart
    next_hops: dict[NextHop, None] = field(default_factory=dict)  # of what is due now
    due_us: int | None = None  # when the first of what was changed is to be looked at
    files: list[str] = field(default_factory=list)  # that no content has any more
    cancelled: int = 0  # recipients


def change(
    batch: Batch, order: Order, keys: Sequence[Key], *, taken: Collection[Key], times: Times
) -> Work:
    """Do to these entries what `order` says; `taken` are those whose claims nobody has any more.

    What was taken and is not changed is put back, due when it was.
    """
    return _Change(batch, order, taken=taken, times=times).run(keys)


def put_back(batch: Batch, keys: Collection[Key]) -> None:
    """Give back claims that were taken for an operation that came to nothing."""
    batch.cursor.executemany(
        "UPDATE entry SET claimed = 0, epoch = epoch + 1"
        " WHERE message_id = ? AND number = ? AND claimed = 1 AND state <> 'final'",
        keys,
    )


class _Change:
    def __init__(self, batch: Batch, order: Order, *, taken: Collection[Key], times: Times) -> None:
        self._batch = batch
        self._cursor = batch.cursor
        self._order = order
        self._taken = taken
        self._times = times
        self._work = Work()
        self._events: dict[str, dict[str, Any]] = {}  # by message

    def run(self, keys: Sequence[Key]) -> Work:
        for key in keys:
            facts = facts_of(self._cursor, key)
            if facts is None:  # it has ended since it was found
                continue
            if facts.is_claimed and key not in self._taken:
                self._result(key, Result.IN_FLIGHT)
            elif note := obstacle(self._order.operation, facts.state) or self._do(key, facts):
                self._result(key, Result.UNCHANGED, note)
                if facts.is_claimed:
                    put_back(self._batch, [key])
                    self._due_now(facts.next_hop)
            else:
                self._result(key, Result.DONE)
        for message_id, detail in self._events.items():
            event = Event(Step.DELIVERY, self._times.wall_us, detail)
            append_events(self._cursor, message_id, [event])
        return self._work

    def _do(self, key: Key, facts: Facts) -> str:
        """Do it, or return why there is nothing to do."""
        match self._order.operation:
            case Operation.RETRY:
                return self._retry(key, facts)
            case Operation.HOLD:
                return self._hold(key, facts)
            case Operation.RELEASE:
                return self._release(key, facts)
            case Operation.CANCEL:
                return self._cancel(key, facts)
            case Operation.REROUTE:
                return self._reroute(key, facts)

    def _retry(self, key: Key, facts: Facts) -> str:
        self._due_now(facts.next_hop)
        if note := is_so_already(self._order, facts, now_us=self._times.steady_us):
            return note
        self._wait(key, facts, retry_us=self._times.steady_us)
        self._tell(key)
        return ""

    def _hold(self, key: Key, facts: Facts) -> str:
        until_us = self._order.until_us
        if note := is_so_already(self._order, facts, now_us=self._times.steady_us):
            return note
        self._wait(key, facts, retry_us=until_us)
        detail = self._tell(key)
        if until_us is not None:
            detail["until"] = self._told(until_us)
        before = facts.retry_us
        if facts.state is State.HELD:  # what it was before stays what it was
            before = self._due_before(key) or None
        if before is not None:
            detail.setdefault("due", {})[str(key[1])] = rfc3339(before)
        return ""

    def _release(self, key: Key, facts: Facts) -> str:
        now_us = self._times.steady_us
        before_us = self._due_before(key) if self._order.as_before else now_us
        self._wait(key, facts, retry_us=max(before_us, now_us))
        self._due_now(facts.next_hop)
        detail = self._tell(key)
        if self._is_deferred_again(facts):
            detail.setdefault("deferred", []).append(key[1])
        return ""

    def _cancel(self, key: Key, facts: Facts) -> str:
        check_transition(facts.state, State.CANCELLED)
        self._cursor.execute(_END, key)
        ended = self._recipients_to(key, State.CANCELLED)
        self._batch.counts[State.CANCELLED] += ended
        self._work.cancelled += ended
        if file := drop_content(self._cursor, key[0], facts.content_id):
            self._work.files.append(file)
        self._tell(key)
        return ""

    def _reroute(self, key: Key, facts: Facts) -> str:
        assert self._order.to is not None
        ways = ways_of(self._cursor, key, self._order.to, now=facts.next_hop)
        if ways.obstacle:
            return ways.obstacle
        retry_us = facts.retry_us if facts.state is State.HELD else self._times.steady_us
        hops = list(ways.onward)
        apart = hops
        if not (ways.refused or ways.already):  # nobody stays: the first way takes the entry
            self._cursor.execute(_ANOTHER_WAY, (hops[0], *key))
            self._wait(key, facts, retry_us=retry_us)
            apart = hops[1:]
        elif facts.is_claimed:
            put_back(self._batch, [key])
            self._due_now(facts.next_hop)
        made = [self._split(key, hop, ways.onward[hop]) for hop in apart]
        for one in made:
            self._wait(one, facts, retry_us=retry_us)
        self._work.made[key] = made
        self._tell_way(self._tell(key, *made), key, before=facts.next_hop, hops=hops)
        for hop in hops:
            self._due_now(hop)
        return ""

    def _split(self, key: Key, hop: str, numbers: Sequence[int]) -> Key:
        """Give these recipients an entry of their own."""
        message_id = key[0]
        last = fetch_one(
            self._cursor, "SELECT max(number) FROM entry WHERE message_id = ?", (message_id,)
        )
        made = (message_id, int(last[0]) + 1)
        self._cursor.execute(_COPY, (made[1], hop, *key))
        self._cursor.executemany(
            "UPDATE recipient SET entry = ? WHERE message_id = ? AND entry = ? AND number = ?",
            [(made[1], *key, number) for number in numbers],
        )
        return made

    def _wait(self, key: Key, facts: Facts, *, retry_us: int | None) -> None:
        """Have the entry wait in the state that it gets, and its recipients with it."""
        operation, was_deferred = self._order.operation, self._is_deferred_again(facts)
        after = state_after(operation, facts.state, was_deferred=was_deferred)
        if after is not facts.state:
            check_transition(facts.state, after)
            self._recipients_to(key, after)
        # what is held is late because somebody wants it so
        warn_us = None if after is State.HELD else facts.warn_us
        look = look_us(retry_us, warn_us=warn_us, end_us=facts.expires_us)
        self._cursor.execute(_WAIT, (after, retry_us, look, *key))
        self._work.due_us = min(look, look if self._work.due_us is None else self._work.due_us)

    def _recipients_to(self, key: Key, after: State) -> int:
        self._cursor.execute(
            f"UPDATE recipient SET state = ? WHERE message_id = ? AND entry = ?"
            f" AND state IN {_sql(leading_to(after))}",
            (after, *key),
        )
        return self._cursor.connection.changes()

    def _is_deferred_again(self, facts: Facts) -> bool:
        return self._order.as_before and facts.attempts > 0

    def _due_before(self, key: Key) -> int:
        """When an entry would be tried had it not been held, 0 where nobody knows any more."""
        for detail in operations(self._cursor, key):
            told = detail.get("due", {}).get(str(key[1]))
            if detail["operation"] == Operation.HOLD and told:
                with suppress(ValueError):
                    return (datetime.fromisoformat(told) - _BEGIN) // timedelta(microseconds=1)
        return 0

    def _due_now(self, next_hop: str) -> None:
        with suppress(ValueError):  # of an entry that is damaged
            self._work.next_hops[NextHop.parse(next_hop)] = None

    def _tell(self, *keys: Key) -> dict[str, Any]:
        """The event of the message, which tells of these entries."""
        detail = self._events.setdefault(
            keys[0][0], {"operation": str(self._order.operation), "entries": []}
        )
        detail["entries"] += [number for _, number in keys]
        detail["who"] = self._order.who
        if self._order.why:
            detail["why"] = self._order.why
        return detail

    def _tell_way(self, detail: dict[str, Any], key: Key, *, before: str, hops: list[str]) -> None:
        detail.setdefault("from", {})[str(key[1])] = before
        told = detail.setdefault("to", [])
        told += [hop for hop in hops if hop not in told][: _HOPS_TOLD_MAX - len(told)]

    def _told(self, steady_us: int) -> str:
        return rfc3339(steady_us + self._times.ahead_us)

    def _result(self, key: Key, result: Result, note: str = "") -> None:
        self._work.results[key] = (result, note)


def _sql(states: Collection[State]) -> str:
    return "(" + ", ".join(f"'{state}'" for state in states) + ")"
