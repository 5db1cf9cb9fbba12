"""Find what is due: by its lane, for a next hop or of a sender, with what a claim has to know.

On the path: delivery looks through the spool's reader; claiming then takes what was found.
Holds: a look reads a bounded number of index rows however long the queue is, and no table but for
    what it found; one for a next hop passes over a sender with a single seek, whatever it has.
Fails: with apsw's exceptions.
Standards: docs/design.md 4 and 5.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import apsw
import msgspec

from relay.message.envelope import Notify
from relay.message.lifecycle import State
from relay.message.nexthop import NextHop
from relay.spool.sqlite.engine.database import LIVE_STATES, fetch, fetch_one
from relay.spool.sqlite.transactions import read_facts
from relay.spool.types import Claim, ClaimedRecipient, Key, Seen
from relay.spool.waiting import Lane, Look, Position

ROWS_MAX = 2000  # of an index, in one look along it
SENDERS_MAX = 500  # in one look for a next hop
_BEHIND = (
    " AND due_us <= ? AND (due_us, message_id, number) > (?, ?, ?)"
    " ORDER BY due_us, message_id, number LIMIT ?"
)
_ROW = "SELECT due_us, message_id, number, next_hop, sender FROM entry INDEXED BY"
_WAITS = "WHERE claimed = 0 AND due_us IS NOT NULL AND"
_OF_LANE = f"{_ROW} entry_due {_WAITS} lane = ?{_BEHIND}"
_OF_SENDER = f"{_ROW} entry_sender {_WAITS} sender = ? AND lane = ?{_BEHIND}"
_FOR_HOP = f"FROM entry INDEXED BY entry_hop {_WAITS} next_hop = ?1 AND lane = ?2 AND"
# A loose scan: one seek to the next sender, one to what it has due first.
_SENDERS = (
    "WITH RECURSIVE turn (sender) AS ("
    f" SELECT (SELECT sender {_FOR_HOP} sender > ?3 ORDER BY sender LIMIT 1) UNION ALL"
    f" SELECT (SELECT sender {_FOR_HOP} sender > turn.sender ORDER BY sender LIMIT 1)"
    " FROM turn WHERE turn.sender IS NOT NULL)"
    f" SELECT sender, (SELECT due_us {_FOR_HOP} sender = turn.sender ORDER BY due_us LIMIT 1)"
    " FROM turn WHERE sender IS NOT NULL LIMIT ?4"
)
_OF_SENDER_FOR_HOP = (
    f"SELECT message_id, number {_FOR_HOP} sender = ?3 AND due_us <= ?4 ORDER BY due_us LIMIT ?5"
)
_NEXT = "SELECT min(due_us) FROM (" + " UNION ALL ".join(
    "SELECT (SELECT due_us FROM entry INDEXED BY entry_due"
    f" {_WAITS} lane = {int(lane)} AND due_us > ?1 ORDER BY due_us LIMIT 1) AS due_us"
    for lane in Lane
) + ")"  # fmt: skip
_KEYS = "FROM json_each(?) k CROSS JOIN"
_FACTS = (
    "SELECT m.id, m.reverse_path, m.source, m.trusted, m.received_us, m.expires_us, m.size,"
    " m.account, m.submission_id, m.envid, m.ret, m.smtputf8, m.eight_bit, m.client,"
    " m.message_id, m.subject, e.message_id, e.number, e.epoch, e.next_hop, e.attempts,"
    " e.content_id, c.size, e.state, e.retry_us, e.due_us, e.lane, e.sender, e.cause,"
    f" e.cause_attempts, e.warn_us, e.priority {_KEYS} entry e"
    " ON e.message_id = k.value ->> 0 AND e.number = k.value ->> 1"
    " LEFT JOIN message m ON m.id = e.message_id LEFT JOIN content c ON c.id = e.content_id"
)
_PEOPLE = (
    "SELECT r.message_id, r.entry, r.number, r.address, r.notify, r.orcpt, r.added_by, r.status,"
    f" r.reply {_KEYS} recipient r ON r.message_id = k.value ->> 0 AND r.entry = k.value ->> 1"
    f" AND r.state IN {LIVE_STATES} ORDER BY 1, 2, 3"
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a look found. The epochs of its claims are those before they are claimed.

    `damaged` says of entries what is wrong with their rows.
    """

    seen: Seen
    damaged: dict[Key, str]


def find(cursor: apsw.Cursor, look: Look, *, now_us: int, limit: int) -> Found:
    """Find up to `limit` entries that are due; nothing is changed."""
    walk = _along if look.next_hop is None else _in_turns
    cursor.execute("BEGIN")  # one snapshot: an entry's rows as they are under its epoch
    try:
        keys, seen = walk(cursor, look, now_us=now_us, limit=limit)
        claims, damaged = _read_claims(cursor, keys)
    finally:
        cursor.execute("COMMIT")
    return Found(replace(seen, claims=claims), damaged)


def next_due_us(cursor: apsw.Cursor, after_us: int) -> int | None:
    """When the first entry behind `after_us` is due that nobody has claimed."""
    found: int | None = fetch_one(cursor, _NEXT, (after_us,))[0]
    return found


def _read_claims(
    cursor: apsw.Cursor, keys: Collection[Key]
) -> tuple[tuple[Claim, ...], dict[Key, str]]:
    """Claims as they would be, in the order of `keys`, and what is wrong with the others."""
    if not keys:
        return (), {}
    wanted = msgspec.json.encode(list(keys)).decode()
    people: dict[Key, list[Sequence[Any]]] = {}
    for row in fetch(cursor, _PEOPLE, (wanted,)):
        people.setdefault((row[0], row[1]), []).append(row[2:])
    claims: list[Claim] = []
    damaged: dict[Key, str] = {}
    for row in fetch(cursor, _FACTS, (wanted,)):
        key = (row[16], row[17])
        try:
            claims.append(_claim(row, people.get(key, ())))
        except (TypeError, ValueError) as error:
            damaged[key] = str(error)
    return tuple(claims), damaged


def _along(cursor: apsw.Cursor, look: Look, *, now_us: int, limit: int) -> tuple[list[Key], Seen]:
    """Go along a lane, or a sender's part of it, oldest due first."""
    whose = (int(look.lane),) if look.sender is None else (look.sender, int(look.lane))
    sql = _OF_LANE if look.sender is None else _OF_SENDER
    after = look.after or Position(-1, "", 0)
    behind = (now_us, after.due_us, after.message_id, after.number, ROWS_MAX)
    full_hops = {str(hop): hop for hop in look.without_hops}
    full_pairs = {(str(hop), sender): hop for hop, sender in look.without_pairs}
    full_senders = frozenset(look.without_senders) if look.sender is None else frozenset()
    keys: list[Key] = []
    left_hops, left_senders = set(), set()
    rows_read, stopped, last = 0, False, None
    for row in cursor.execute(sql, (*whose, *behind)):
        if len(keys) == limit:
            stopped = True
            break
        rows_read += 1
        last = row
        _, message_id, number, next_hop, sender = row
        if (hop := full_hops.get(next_hop)) is not None:
            left_hops.add(hop)
        elif sender in full_senders:
            left_senders.add(sender)
        elif (hop := full_pairs.get((next_hop, sender))) is not None:
            left_hops.add(hop)
        else:
            keys.append((message_id, number))
    reached = look.after if last is None else Position(*last[:3])
    seen = Seen(
        ended=not stopped and rows_read < ROWS_MAX, reached=reached,
        left_hops=frozenset(left_hops), left_senders=frozenset(left_senders),
    )  # fmt: skip
    return keys, seen


def _in_turns(
    cursor: apsw.Cursor, look: Look, *, now_us: int, limit: int
) -> tuple[list[Key], Seen]:
    """Take of a next hop's senders one after the other, each the same number."""
    hop = (str(look.next_hop), int(look.lane))
    senders = fetch(cursor, _SENDERS, (*hop, look.after_sender, SENDERS_MAX))
    with_due = [sender for sender, due_us in senders if due_us <= now_us]
    left = [sender for sender in with_due if sender in look.without_senders]
    asked = [sender for sender in with_due if sender not in look.without_senders]
    each = max(1, limit // max(1, len(asked)))
    keys: list[Key] = []
    last = senders[-1][0] if senders else -1
    reached, more = look.after_sender, False
    for sender in asked:
        if len(keys) == limit:
            break
        some = min(each, limit - len(keys))
        rows = fetch(cursor, _OF_SENDER_FOR_HOP, (*hop, sender, now_us, some + 1))
        keys += rows[:some]
        more = more or len(rows) > some
        reached = sender
    if len(keys) == limit and asked and reached != asked[-1]:
        return keys, Seen(ended=False, reached_sender=reached, left_senders=frozenset(left))
    if len(senders) == SENDERS_MAX:
        return keys, Seen(ended=False, reached_sender=last, left_senders=frozenset(left))
    return keys, Seen(ended=not more, left_senders=frozenset(left))


def _claim(row: Sequence[Any], people: Sequence[Sequence[Any]]) -> Claim:
    """Raises TypeError or ValueError for rows that do not hang together."""
    if row[0] is None:
        raise ValueError("its message is not there")
    if not people:
        raise ValueError("none of its recipients is there")
    return Claim(
        entry_id=row[17], epoch=row[18], message=read_facts(row), next_hop=NextHop.parse(row[19]),
        recipients=tuple(
            ClaimedRecipient(one[0], one[1], _parse_notify(one[2]), *one[3:]) for one in people
        ),
        attempts=row[20], content_id=row[21], content_size=row[22] or 0,
        state=State(row[23]), retry_us=row[24], due_us=row[25], lane=Lane(row[26]),
        sender=row[27], cause=row[28], cause_attempts=row[29], warn_us=row[30],
        priority=Lane(row[31]),
    )  # fmt: skip


def _parse_notify(text: str) -> frozenset[Notify]:
    """Read what accept() wrote."""
    return frozenset(Notify(word) for word in text.split(",")) if text else frozenset()
