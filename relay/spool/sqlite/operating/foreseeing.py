"""What an order comes to for an entry, found without changing anything.

On the path: the spool's desk; a dry run says it, and a change asks it before it writes.
Holds: a dry run and the order itself judge by the same words, from the same facts.
Fails: with apsw's exceptions.
Standards: docs/design.md 4.
"""

from collections.abc import Collection
from dataclasses import dataclass

import apsw

from relay.message.lifecycle import State
from relay.message.nexthop import HopKind
from relay.spool.operating import Operation, Order, Result, Way, obstacle
from relay.spool.sqlite.engine.database import LIVE_STATES, fetch, fetch_one
from relay.spool.types import Key

IN_FLIGHT = "it is being tried just now"
_FACTS = (
    "SELECT e.state, e.claimed, e.next_hop, e.retry_us, e.due_us, e.warn_us, e.content_id,"
    " e.attempts, coalesce(m.expires_us, 0) FROM entry e LEFT JOIN message m ON m.id = e.message_id"
    " WHERE e.message_id = ? AND e.number = ? AND e.state <> 'final'"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What an operation goes by of an entry. Times are microseconds of the queue's time."""

    state: State
    is_claimed: bool
    next_hop: str
    retry_us: int | None
    due_us: int | None
    warn_us: int | None
    content_id: int
    attempts: int
    expires_us: int


def facts_of(cursor: apsw.Cursor, key: Key) -> Facts | None:
    """Read them; None where the entry has ended."""
    row = fetch_one(cursor, _FACTS, key)
    return None if row is None else Facts(State(row[0]), bool(row[1]), *row[2:])


@dataclass(frozen=True, slots=True)
class Ways:
    """Which of an entry's recipients (their numbers) another routing sends where."""

    onward: dict[str, list[int]]  # by next hop
    already: list[int]  # these are on their way there
    refused: list[int]  # these none takes

    @property
    def obstacle(self) -> str:
        """Why nobody goes another way, "" where somebody does."""
        if self.onward:
            return ""
        return (
            "none of its recipients has a mailbox or a next hop there"
            if self.refused
            else "it goes there already"
        )


def ways_of(cursor: apsw.Cursor, key: Key, to: Way, *, now: str) -> Ways:
    """Ask `to` for each recipient of the entry whose next hop is `now`."""
    onward: dict[str, list[int]] = {}
    for number, address in fetch(
        cursor,
        "SELECT number, address FROM recipient WHERE message_id = ? AND entry = ?"
        f" AND state IN {LIVE_STATES} ORDER BY number",
        key,
    ):
        hop = to(address)
        is_way = hop is not None and hop.kind is not HopKind.CAPTURE
        onward.setdefault(str(hop) if is_way else "", []).append(number)
    refused, already = onward.pop("", []), onward.pop(now, [])
    return Ways(onward, already, refused)


def is_so_already(order: Order, facts: Facts, *, now_us: int) -> str:
    """Return why a retry or a hold leaves the entry as it is, "" where it does not."""
    match order.operation:
        case Operation.RETRY if facts.retry_us is not None and facts.retry_us <= now_us:
            return "it is due already"
        case Operation.HOLD if facts.state is State.HELD and facts.retry_us == order.until_us:
            return "it is held already"
        case _:
            return ""


def foresee(
    cursor: apsw.Cursor, order: Order, key: Key, *, waiting: Collection[Key], now_us: int
) -> tuple[Result, str] | None:
    """What `order` would come to; of the claimed, `waiting` would be taken. None: it has ended."""
    facts = facts_of(cursor, key)
    if facts is None:
        return None
    if facts.is_claimed and key not in waiting:
        return Result.IN_FLIGHT, IN_FLIGHT
    note = obstacle(order.operation, facts.state) or is_so_already(order, facts, now_us=now_us)
    if order.to is not None and not note:
        note = ways_of(cursor, key, order.to, now=facts.next_hop).obstacle
    return (Result.UNCHANGED if note else Result.DONE), note
