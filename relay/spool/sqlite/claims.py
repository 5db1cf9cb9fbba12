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
from relay.message.lifecycle import RecipientState, check_transition
from relay.observe.logs import get_logger
from relay.spool.common import due_claims
from relay.spool.common.due_claims import (
    CLAIM_COLUMNS,
    RECIPIENT_COLUMNS,
    claim_of,
    recipient_of,
    scan_level,
    scan_next_hop,
)
from relay.spool.common.holds import RELEASED, note_hold, note_release
from relay.spool.common.rows import (
    LIVE_STATES,
)
from relay.spool.sqlite.database import (
    fetch,
    fetch_one,
)
from relay.spool.sqlite.writer import Batch
from relay.spool.types import (
    Claim,
    ClaimedRecipient,
    DueBatch,
    DueQuery,
    Key,
    Position,
    PriorityLevel,
)

_log = get_logger("spool")

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
    f"SELECT {CLAIM_COLUMNS}, e.content_id {_KEYS} entry e"
    " ON e.message_id = k.value ->> 0 AND e.number = k.value ->> 1"
    " LEFT JOIN message m ON m.id = e.message_id LEFT JOIN content c ON c.id = e.content_id"
)
_RECIPIENTS = (
    "SELECT r.message_id, r.entry, iif(r.owed = '', '', r.state || ' ' || r.owed),"
    f" {RECIPIENT_COLUMNS} {_KEYS} recipient r"
    " ON r.message_id = k.value ->> 0 AND r.entry = k.value ->> 1"
    f" AND (r.state IN {LIVE_STATES} OR r.owed <> '') ORDER BY 1, 2, 4"
)
_LATE = (
    f"SELECT r.entry, {RECIPIENT_COLUMNS} FROM entry e JOIN recipient r"
    " ON r.message_id = e.message_id AND r.entry = e.number"
    f" AND r.state IN {LIVE_STATES} WHERE e.message_id = ?1"
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
        found.setdefault(entry, []).append(recipient_of(row))
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
            claims.append(claim_of(row, recipients.get(key, ()), content_id=row[-1]))
        except (TypeError, ValueError) as error:
            damaged[key] = str(error)
    return tuple(claims), damaged


def _scan_level(
    cursor: apsw.Cursor, look: DueQuery, *, now_us: int, limit: int
) -> tuple[list[Key], DueBatch]:
    whose = (int(look.level),) if look.sender is None else (look.sender, int(look.level))
    sql = _OF_LEVEL if look.sender is None else _OF_SENDER
    after = look.after or Position(-1, "", 0)
    rest = (now_us, after.due_us, after.message_id, after.number, due_claims.ROWS_MAX)
    return scan_level(cursor.execute(sql, (*whose, *rest)), look, limit=limit)


def _scan_next_hop(
    cursor: apsw.Cursor, look: DueQuery, *, now_us: int, limit: int
) -> tuple[list[Key], DueBatch]:
    assert look.next_hop is not None
    hop = (look.next_hop.key, int(look.level))
    senders = fetch(cursor, _SENDERS, (*hop, look.after_sender, due_claims.SENDERS_MAX))

    def take(sender: int, number: int) -> list[Key]:
        return fetch(cursor, _OF_SENDER_FOR_HOP, (*hop, sender, now_us, number))

    return scan_next_hop(senders, take, look, now_us=now_us, limit=limit)


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
