"""Find due entries and claim them for delivery.

Which of the due ones are chosen is decided in relay/spool/shared/rows/claimed.py.

find_due() reads by priority level, for a next hop or for a sender. It reads a bounded number of
index rows however long the queue is, and reads tables only for the entries that it returns.
take_claims() then claims them. An entry has one owner at a time: each claim and each release
raises its epoch.

See docs/design.md 4 (Claims), 5 and 7.3.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from relay.spool.shared.columns import WAITS
from relay.spool.shared.queue.holds import end_hold, hold_damaged
from relay.spool.shared.rows import claimed
from relay.spool.shared.rows.claimed import (
    CLAIM_COLUMNS,
    IS_NEEDED,
    OWED,
    RECIPIENT_COLUMNS,
    claims_of,
    scan_level,
    scan_next_hop,
)
from relay.spool.sqlite.database import SqliteTables
from relay.spool.sqlite.writer import Batch
from relay.spool.types import Claim, DueBatch, DueQuery, Key, Position, PriorityLevel

_RELEASE = (
    "UPDATE entry SET claimed = 0, epoch = epoch + 1"
    " WHERE message_id = ? AND number = ? AND epoch = ? AND claimed = 1"
)
_AFTER = (
    " AND due_us <= ? AND (due_us, message_id, number) > (?, ?, ?)"
    " ORDER BY due_us, message_id, number LIMIT ?"
)
_ROW = "SELECT due_us, message_id, number, next_hop, sender FROM entry INDEXED BY"
_OF_LEVEL = f"{_ROW} entry_due WHERE {WAITS} AND lane = ?{_AFTER}"
_ENDED_OF_LEVEL = _OF_LEVEL.replace("sender", f"sender, {claimed.HAS_ENDED}", 1)
_OF_SENDER = f"{_ROW} entry_sender WHERE {WAITS} AND sender = ? AND lane = ?{_AFTER}"
_NEXT = "SELECT min(due_us) FROM (" + " UNION ALL ".join(
    "SELECT (SELECT due_us FROM entry INDEXED BY entry_due"
    f" WHERE {WAITS} AND lane = {int(level)} AND due_us > ?1 ORDER BY due_us LIMIT 1) AS due_us"
    for level in PriorityLevel
) + ")"  # fmt: skip
_KEYS = "FROM json_each(?) k CROSS JOIN"
_FACTS = (
    f"SELECT {CLAIM_COLUMNS}, e.content_id, 0, 0 {_KEYS} entry e"
    " ON e.message_id = k.value ->> 0 AND e.number = k.value ->> 1"
    " LEFT JOIN message m ON m.id = e.message_id LEFT JOIN content c ON c.id = e.content_id"
)
_RECIPIENTS = (
    f"SELECT r.message_id, r.entry, {OWED}, {RECIPIENT_COLUMNS} {_KEYS} recipient r"
    " ON r.message_id = k.value ->> 0 AND r.entry = k.value ->> 1"
    f" AND {IS_NEEDED} ORDER BY 1, 2, 4"
)
_TAKE = (
    "UPDATE entry SET claimed = 1, epoch = epoch + 1 WHERE message_id = ? AND number = ?"
    " AND epoch = ? AND claimed = 0 RETURNING message_id, number"
)


def find_due(
    tables: SqliteTables, look: DueQuery, *, now_us: int, limit: int
) -> tuple[DueBatch, dict[Key, str]]:
    """Find up to `limit` entries that are due; nothing is changed. Return claims with the epochs
    before they are claimed, and what is wrong with the rows of other entries.
    """
    with tables.snapshot():  # an entry's rows as they are under its epoch
        if look.next_hop is None:
            keys, seen = _scan_level(tables, look, now_us=now_us, limit=limit)
        else:
            keys, seen = scan_next_hop(
                tables, look, ("lane", int(look.level)), now_us=now_us, limit=limit
            )
        claims, damaged = read_claims(tables, keys)
    return replace(seen, claims=claims), damaged


def next_due_us(tables: SqliteTables, after_us: int) -> int | None:
    """Return when the first unclaimed entry after `after_us` is due."""
    found: int | None = tables.fetch_one(_NEXT, (after_us,))[0]
    return found


def read_claims(
    tables: SqliteTables, keys: Collection[Key]
) -> tuple[tuple[Claim, ...], dict[Key, str]]:
    """Return claims of these entries as they are, and what is wrong with the others."""
    if not keys:
        return (), {}
    wanted = msgspec.json.encode(list(keys)).decode()
    recipients = tables.fetch(_RECIPIENTS, (wanted,))
    return claims_of(tables.fetch(_FACTS, (wanted,)), recipients)


def _scan_level(
    tables: SqliteTables, look: DueQuery, *, now_us: int, limit: int
) -> tuple[list[Key], DueBatch]:
    whose = (int(look.level),) if look.sender is None else (look.sender, int(look.level))
    sql = _OF_LEVEL if look.sender is None else _OF_SENDER
    if look.only_ended:
        sql, whose = _ENDED_OF_LEVEL, (now_us, now_us, *whose)
    after = look.after or Position(-1, "", 0)
    rest = (now_us, after.due_us, after.message_id, after.number, claimed.ROWS_MAX)
    return scan_level(tables.cursor.execute(sql, (*whose, *rest)), look, limit=limit)


def release_claims(batch: Batch, claims: Iterable[Claim]) -> None:
    """Release untried claims, unless their epoch has ended."""
    batch.execute_each(_RELEASE, [(*claim.key, claim.epoch) for claim in claims])


def take_claims(
    batch: Batch, found: Sequence[Claim], damaged: Mapping[Key, str], *, now_us: int, at_us: int
) -> tuple[Claim, ...]:
    """Claim what was found, except entries that were claimed since; `at_us` is wall time.

    A held entry that is due becomes queued. An entry that cannot be read is held, so that others
    continue: this is in the log, in the journey and in the queue list.
    """
    keys = [(*claim.key, claim.epoch) for claim in found]
    taken = set(batch.fetch_each(_TAKE, keys))
    claims = [
        end_hold(batch, replace(claim, epoch=claim.epoch + 1), now_us=now_us, at_us=at_us)
        for claim in found
        if claim.key in taken
    ]
    for key, text in damaged.items():
        hold_damaged(batch, key, text, at_us=at_us, is_claimed=False)
    return tuple(claims)
