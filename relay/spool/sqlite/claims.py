"""Find due entries and claim them for delivery.

find_due() reads by priority level, for a next hop or for a sender. It reads a bounded number of
index rows however long the queue is, and reads tables only for the entries that it returns.
take_claims() then claims them. An entry has one owner at a time: each claim and each release
raises its epoch.

See docs/design.md 4 (Claims), 5 and 7.3.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import apsw
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.journeys.events import Event, Step
from relay.message.envelope import ForwardPath, Notify
from relay.message.lifecycle import RecipientState, check_transition
from relay.message.nexthop import NextHop
from relay.message.outcome import Evidence
from relay.mime.dsn import ReportedRecipient
from relay.observe.logs import get_logger
from relay.spool.common.rows import (
    LIVE_STATES,
    MESSAGE_COLUMNS,
    read_facts,
)
from relay.spool.sqlite.database import (
    fetch,
    fetch_one,
)
from relay.spool.sqlite.holds import RELEASED, note_hold, note_release
from relay.spool.sqlite.writer import Batch
from relay.spool.types import (
    Claim,
    ClaimedRecipient,
    DueBatch,
    DueQuery,
    Key,
    Position,
    PriorityLevel,
    parse_entry_extra,
)

_log = get_logger("spool")

ROWS_MAX = 2000  # of an index, in one query
SENDERS_MAX = 500  # in one query for a next hop
_AFTER = (
    " AND due_us <= ? AND (due_us, message_id, number) > (?, ?, ?)"
    " ORDER BY due_us, message_id, number LIMIT ?"
)
_ROW = "SELECT due_us, message_id, number, next_hop, sender FROM entry INDEXED BY"
_WAITS = "WHERE claimed = 0 AND due_us IS NOT NULL AND"
_OF_LEVEL = f"{_ROW} entry_due {_WAITS} lane = ?{_AFTER}"
_OF_SENDER = f"{_ROW} entry_sender {_WAITS} sender = ? AND lane = ?{_AFTER}"
_FOR_HOP = f"FROM entry INDEXED BY entry_hop {_WAITS} next_hop = ?1 AND lane = ?2 AND"
# A loose index scan: one seek to the next sender, one to its first due entry.
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
    f" {_WAITS} lane = {int(level)} AND due_us > ?1 ORDER BY due_us LIMIT 1) AS due_us"
    for level in PriorityLevel
) + ")"  # fmt: skip
_KEYS = "FROM json_each(?) k CROSS JOIN"
_FACTS = (
    "SELECT e.message_id, e.number, e.epoch, e.next_hop, e.attempts, e.content_id, c.size, e.state,"
    " e.retry_us, e.due_us, e.lane, e.sender, e.cause, e.cause_attempts, e.warn_us, e.priority,"
    " e.extra,"
    f" {', '.join(f'm.{column}' for column in MESSAGE_COLUMNS)} {_KEYS} entry e"
    " ON e.message_id = k.value ->> 0 AND e.number = k.value ->> 1"
    " LEFT JOIN message m ON m.id = e.message_id LEFT JOIN content c ON c.id = e.content_id"
)
_RECIPIENT = "r.number, r.address, r.notify, r.orcpt, r.added_by, r.status, r.reply"
_RECIPIENTS = (
    "SELECT r.message_id, r.entry, iif(r.owed = '', '', r.state || ' ' || r.owed),"
    f" {_RECIPIENT} {_KEYS} recipient r"
    " ON r.message_id = k.value ->> 0 AND r.entry = k.value ->> 1"
    f" AND (r.state IN {LIVE_STATES} OR r.owed <> '') ORDER BY 1, 2, 4"
)
_LATE = (
    f"SELECT r.entry, {_RECIPIENT} FROM entry e JOIN recipient r ON r.message_id = e.message_id"
    f" AND r.entry = e.number AND r.state IN {LIVE_STATES} WHERE e.message_id = ?1"
    " AND (e.number = ?2 OR e.state IN ('queued', 'deferred') AND e.next_hop <> 'capture')"
    " AND EXISTS (SELECT 1 FROM entry WHERE message_id = ?1 AND number = ?2 AND warn_us > 0)"
    " ORDER BY 1, 2"
)
NEVER_US = 1 << 62  # when a damaged entry is due
_TAKE = (
    "UPDATE entry SET claimed = 1, epoch = epoch + 1 WHERE message_id = ? AND number = ?"
    " AND epoch = ? AND claimed = 0 RETURNING message_id, number"
)
_HOLD_DAMAGED = (
    "UPDATE entry SET state = 'held', due_us = ?, retry_us = NULL, warn_us = NULL,"
    " epoch = epoch + 1 WHERE message_id = ? AND number = ? AND claimed = 0 RETURNING number"
)
_MOVE_RECIPIENTS = (
    "UPDATE recipient SET state = ?1 WHERE message_id = ?2 AND entry = ?3"
    " AND state IN ('queued', 'deferred', 'held')"
)


class DueEntries(Struct, frozen=True):
    """The result of a query. Its claims have the epochs before they are claimed.

    `damaged` says what is wrong with the rows of other entries.
    """

    seen: DueBatch
    damaged: dict[Key, str]


def find_due(cursor: apsw.Cursor, look: DueQuery, *, now_us: int, limit: int) -> DueEntries:
    """Find up to `limit` entries that are due; nothing is changed."""
    scan = _scan_level if look.next_hop is None else _scan_next_hop
    cursor.execute("BEGIN")  # one snapshot: an entry's rows as they are under its epoch
    try:
        keys, seen = scan(cursor, look, now_us=now_us, limit=limit)
        claims, damaged = read_claims(cursor, keys)
    finally:
        cursor.execute("COMMIT")
    return DueEntries(replace(seen, claims=claims), damaged)


def next_due_us(cursor: apsw.Cursor, after_us: int) -> int | None:
    """Return when the first unclaimed entry after `after_us` is due."""
    found: int | None = fetch_one(cursor, _NEXT, (after_us,))[0]
    return found


def late_recipients(cursor: apsw.Cursor, key: Key) -> dict[int, list[ClaimedRecipient]]:
    """Spool.late_recipients."""
    found: dict[int, list[ClaimedRecipient]] = {}
    for entry, *row in cursor.execute(_LATE, key):
        found.setdefault(entry, []).append(_recipient(row))
    return found


def read_claims(
    cursor: apsw.Cursor, keys: Collection[Key]
) -> tuple[tuple[Claim, ...], dict[Key, str]]:
    """Return claims of these entries as they are, and what is wrong with the others."""
    if not keys:
        return (), {}
    wanted = msgspec.json.encode(list(keys)).decode()
    recipients: dict[Key, list[Sequence[Any]]] = {}
    for row in fetch(cursor, _RECIPIENTS, (wanted,)):
        recipients.setdefault((row[0], row[1]), []).append(row[2:])
    claims: list[Claim] = []
    damaged: dict[Key, str] = {}
    for row in fetch(cursor, _FACTS, (wanted,)):
        key = (row[0], row[1])
        try:
            claims.append(_claim(row, recipients.get(key, ())))
        except (TypeError, ValueError) as error:
            damaged[key] = str(error)
    return tuple(claims), damaged


def _scan_level(
    cursor: apsw.Cursor, look: DueQuery, *, now_us: int, limit: int
) -> tuple[list[Key], DueBatch]:
    """Scan a priority level, or a sender's part of it, oldest due first."""
    whose = (int(look.level),) if look.sender is None else (look.sender, int(look.level))
    sql = _OF_LEVEL if look.sender is None else _OF_SENDER
    after = look.after or Position(-1, "", 0)
    rest = (now_us, after.due_us, after.message_id, after.number, ROWS_MAX)
    full_hops = {hop.key: hop for hop in look.without_hops}
    full_pairs = {(hop.key, sender): hop for hop, sender in look.without_pairs}
    full_senders = frozenset(look.without_senders) if look.sender is None else frozenset()
    keys: list[Key] = []
    left_hops, left_senders = set(), set()
    rows_read, stopped, last = 0, False, None
    for row in cursor.execute(sql, (*whose, *rest)):
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
    seen = DueBatch(
        ended=not stopped and rows_read < ROWS_MAX, reached=reached,
        left_hops=frozenset(left_hops), left_senders=frozenset(left_senders),
    )  # fmt: skip
    return keys, seen


def _scan_next_hop(
    cursor: apsw.Cursor, look: DueQuery, *, now_us: int, limit: int
) -> tuple[list[Key], DueBatch]:
    """Take the same number of entries from each sender of a next hop, round robin."""
    assert look.next_hop is not None
    hop = (look.next_hop.key, int(look.level))
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
        return keys, DueBatch(ended=False, reached_sender=reached, left_senders=frozenset(left))
    if len(senders) == SENDERS_MAX:
        return keys, DueBatch(ended=False, reached_sender=last, left_senders=frozenset(left))
    return keys, DueBatch(ended=not more, left_senders=frozenset(left))


def _claim(row: Sequence[Any], recipients: Sequence[Sequence[Any]]) -> Claim:
    """Raises TypeError or ValueError for inconsistent rows."""
    facts = row[17:]
    if facts[0] is None:
        raise ValueError("its message is missing")
    live = tuple(_recipient(one[1:]) for one in recipients if not one[0])
    if not live:
        raise ValueError("its recipients are missing")
    return Claim(
        entry_id=row[1], epoch=row[2], message=read_facts(facts), next_hop=NextHop.parse(row[3]),
        recipients=live,
        attempts=row[4], content_id=row[5], content_size=row[6] or 0,
        state=RecipientState(row[7]), retry_us=row[8], due_us=row[9],
        level=PriorityLevel(row[10]), sender=row[11], cause=row[12], cause_attempts=row[13],
        warn_us=row[14], priority=PriorityLevel(row[15]),
        owed=tuple(_owed(row, one) for one in recipients if one[0]),
        extra=parse_entry_extra(row[16]),
    )  # fmt: skip


def _recipient(row: Sequence[Any]) -> ClaimedRecipient:
    path = ForwardPath(row[1], _parse_notify(row[2]), row[3])
    return ClaimedRecipient(row[0], path, *row[4:])


def _owed(entry: Sequence[Any], row: Sequence[Any]) -> ReportedRecipient:
    """Return a recipient that a host accepted, as settle() recorded that its report is owed."""
    state, at_us, host = row[0].split(" ", 2)
    one = _recipient(row[1:])
    evidence = Evidence(one.status, one.reply, host=host, remote=True)
    log_id = f"{entry[0]}-{entry[1]}"
    return ReportedRecipient(
        one.path, evidence, last_attempt_us=int(at_us), log_id=log_id,
        is_delivered=state == RecipientState.DELIVERED,
    )  # fmt: skip


def _parse_notify(text: str) -> frozenset[Notify]:
    """Parse what accept() wrote."""
    return frozenset(Notify(word) for word in text.split(",")) if text else frozenset()


def take_claims(batch: Batch, found: DueEntries, *, now_us: int, at_us: int) -> tuple[Claim, ...]:
    """Claim what was found, except entries that were claimed since; `at_us` is wall time.

    A held entry that is due becomes queued. An entry that cannot be read is held, so that others
    continue: this is in the log, in the journey and in the queue list.
    """
    keys = [(*claim.key, claim.epoch) for claim in found.seen.claims]
    taken = set(batch.cursor.executemany(_TAKE, keys)) if keys else ()
    claims = [
        _taken(batch, claim, now_us=now_us, at_us=at_us)
        for claim in found.seen.claims
        if claim.key in taken
    ]
    for key, text in found.damaged.items():
        _hold_damaged(batch, key, text, at_us=at_us)
    return tuple(claims)


def _taken(batch: Batch, claim: Claim, *, now_us: int, at_us: int) -> Claim:
    """Return the claim as it is after it was taken."""
    state, extra = claim.state, claim.extra
    if state is RecipientState.HELD and claim.retry_us is not None and claim.retry_us <= now_us:
        state = RecipientState.QUEUED
        check_transition(claim.state, state)
        note_release(batch, claim.key)
        batch.cursor.execute(
            "UPDATE entry SET state = ? WHERE message_id = ? AND number = ?", (state, *claim.key)
        )
        batch.cursor.execute(_MOVE_RECIPIENTS, (state, *claim.key))
        extra = replace(extra, **RELEASED)
        detail = {"operation": "release", "entries": [claim.entry_id], "who": "its time"}
        batch.append_events(claim.message.id, [Event(Step.DELIVERY, at_us, detail)])
    return replace(claim, epoch=claim.epoch + 1, state=state, extra=extra)


def _hold_damaged(batch: Batch, key: Key, text: str, *, at_us: int) -> None:
    if fetch_one(batch.cursor, _HOLD_DAMAGED, (NEVER_US, *key)) is None:
        return
    message_id, number = key
    batch.cursor.execute(_MOVE_RECIPIENTS, (RecipientState.HELD, *key))
    note_hold(batch, key, f"relay: damaged: {text}", since_us=at_us)
    detail = {"operation": "hold", "entries": [number], "who": "relay", "why": f"damaged: {text}"}
    batch.append_events(message_id, [Event(Step.DELIVERY, at_us, detail)])
    _log.error("entry damaged", qid=message_id, entry=number, error=text)


def release_claims(cursor: apsw.Cursor, claims: Iterable[Claim]) -> None:
    """Release untried claims, unless their epoch has ended."""
    cursor.executemany(
        "UPDATE entry SET claimed = 0, epoch = epoch + 1"
        " WHERE message_id = ? AND number = ? AND epoch = ? AND claimed = 1",
        [(*claim.key, claim.epoch) for claim in claims],
    )
