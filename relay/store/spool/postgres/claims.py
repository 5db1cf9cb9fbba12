"""Find due entries and claim them, in one transaction of the writer.

An entry that another transaction has locked is passed over. Facts and recipients are looked for by
whole keys, as in commit.sql. See relay/store/spool/shared/claimed.py for what is chosen.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from relay.base.message.nexthop import HopKind, NextHop
from relay.store.spool.postgres.nodes import Stores
from relay.store.spool.postgres.tables import ConnectionTables
from relay.store.spool.postgres.transactions import WriteTransaction
from relay.store.spool.shared import claimed
from relay.store.spool.shared.claimed import (
    CLAIM_COLUMNS,
    CLAIMS_AT_ONCE,
    IS_NEEDED,
    OWED,
    RECIPIENT_COLUMNS,
    claims_of,
    release_abandoned,
    scan_level,
    scan_next_hop,
)
from relay.store.spool.shared.columns import WAITS
from relay.store.spool.shared.damaged_entries import hold_damaged
from relay.store.spool.shared.entry_notes import end_hold
from relay.store.spool.types import (
    FIRST_POSITION,
    Claim,
    DueBatch,
    DueQuery,
    Key,
    Position,
    PriorityLevel,
)

# A loose index scan: one seek to the next owner. An owner that is not among the nodes is dead too.
_DEAD_OWNERS = """
WITH RECURSIVE turn (owner) AS (
    (SELECT owner FROM entry WHERE claimed = 1 ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (SELECT owner FROM entry WHERE claimed = 1 AND owner > turn.owner ORDER BY owner LIMIT 1)
    FROM turn WHERE turn.owner IS NOT NULL
)
SELECT owner, (SELECT name FROM node WHERE incarnation = turn.owner) FROM turn
WHERE owner IS NOT NULL AND NOT EXISTS (
    SELECT FROM node WHERE incarnation = turn.owner AND state = 'alive')"""
_ABANDONED = (
    "SELECT message_id, number, next_hop, attempts, state FROM entry"
    " WHERE claimed = 1 AND owner = ? ORDER BY message_id, number LIMIT ?"
    " FOR NO KEY UPDATE SKIP LOCKED"
)
_PAGE = 200  # rows of an index at once
_ENDED_AT_ONCE = 100  # entries of stores without a node that are claimed at once
# The first rows of each turn by the index, then the first rows of these.
_DUE_ROWS = f"""
SELECT e.* FROM unnest(?::integer[]) AS t (turn) CROSS JOIN LATERAL (
    SELECT due_us, message_id, number, next_hop, sender FROM entry
    WHERE {WAITS} AND {{}} turn = t.turn AND due_us <= ?
        AND (due_us, message_id, number) > (?, ?, ?)
    ORDER BY due_us, message_id, number LIMIT ?
) e ORDER BY e.due_us, e.message_id, e.number LIMIT ?"""
_ENDED_OF_LEVEL = _DUE_ROWS.replace("sender", f"sender, {claimed.HAS_ENDED}", 1).format("")
_OF_LEVEL, _OF_SENDER = _DUE_ROWS.format(""), _DUE_ROWS.format("sender = ? AND")
_NEXT = f"""
SELECT min(e.due_us) FROM unnest($2::integer[]) AS t (turn) CROSS JOIN LATERAL (
    SELECT due_us FROM entry WHERE {WAITS} AND turn = t.turn AND due_us > $1 ORDER BY due_us LIMIT 1
) e"""
_KEYS = "unnest($1::text[], $2::integer[]) WITH ORDINALITY AS k (message_id, number, place)"
# Another node may have changed an entry since it was read: a held entry is due later.
_TAKE = f"""
WITH chosen AS MATERIALIZED (
    SELECT e.row FROM {_KEYS} CROSS JOIN LATERAL (
        SELECT ctid AS row FROM entry
        WHERE message_id = k.message_id AND number = k.number AND claimed = 0 AND due_us <= $4
        FOR NO KEY UPDATE SKIP LOCKED
    ) e
)
UPDATE entry e SET claimed = 1, owner = $3, epoch = e.epoch + 1
FROM chosen WHERE e.ctid = chosen.row RETURNING e.message_id, e.number"""
_FACTS = f"""
SELECT {CLAIM_COLUMNS}, e.content_id, e.owner, e.store FROM {_KEYS}
CROSS JOIN LATERAL (
    SELECT * FROM entry WHERE message_id = k.message_id AND number = k.number OFFSET 0
) e
LEFT JOIN LATERAL (SELECT * FROM message WHERE id = k.message_id OFFSET 0) m ON true
LEFT JOIN LATERAL (
    SELECT size FROM content WHERE message_id = k.message_id AND number = e.content_id OFFSET 0
) c ON true
ORDER BY k.place"""
_RECIPIENTS = f"""
SELECT k.message_id, k.number, {OWED}, {RECIPIENT_COLUMNS} FROM {_KEYS}
CROSS JOIN LATERAL (
    SELECT * FROM recipient r WHERE message_id = k.message_id AND entry = k.number
        AND {IS_NEEDED} OFFSET 0
) r
ORDER BY k.place, r.number"""
_RELEASE = (
    "UPDATE entry SET claimed = 0, epoch = epoch + 1"
    " WHERE message_id = ? AND number = ? AND epoch = ? AND owner = ? AND claimed = 1"
)


def claim_due(
    transaction: WriteTransaction, look: DueQuery, *, now_us: int, at_us: int, limit: int
) -> DueBatch:
    """SpoolEngine.claim_due; `at_us` is wall time.

    A held entry that is due becomes queued. An entry that cannot be read is held, so that others
    continue. The log, the journey and the queue list say so.
    """
    if look.next_hop is None:
        rows = _due_rows(transaction, look, now_us=now_us, limit=limit)
        keys, seen = scan_level(rows, look, limit=limit)
    else:
        keys, seen = _scan_next_hop(transaction, look, look.next_hop, now_us=now_us, limit=limit)
    if not keys:
        transaction.has_changed = False
        return seen
    return replace(seen, claims=claim_keys(transaction, keys, now_us=now_us, at_us=at_us))


def find_ended(
    tables: ConnectionTables, turns: Sequence[int], after: Position, *, now_us: int, limit: int
) -> tuple[list[Key], Position]:
    """Return which of the next due entries of these turns have expired, or have a delay to be
    reported; and where the next call continues.
    """
    values = (turns, now_us, now_us, now_us, *after, limit, limit)
    keys: list[Key] = []
    rows = tables.fetch(_ENDED_OF_LEVEL, values)
    for due_us, message_id, number, _, _, has_ended in rows:
        after = (due_us, message_id, number)
        keys += [(message_id, number)] if has_ended else []
        if len(keys) == _ENDED_AT_ONCE:
            return keys, after
    return keys, FIRST_POSITION if len(rows) < limit else after


def claim_keys(
    transaction: WriteTransaction, keys: Sequence[Key], *, now_us: int, at_us: int
) -> tuple[Claim, ...]:
    """Claim which of these entries are still due, and not claimed by another node meanwhile."""
    taken = transaction.fetch(_TAKE, (*_columns(keys), transaction.incarnation, now_us))
    claimed = {(row[0], row[1]) for row in taken}
    claims, damaged = read_claims(transaction, [key for key in keys if key in claimed])
    for key, text in damaged.items():
        hold_damaged(transaction, key, text, at_us=at_us, is_claimed=True)
    return tuple(end_hold(transaction, claim, now_us=now_us, at_us=at_us) for claim in claims)


def next_due_us(tables: ConnectionTables, after_us: int, stores: Stores) -> int | None:
    """Return when the first unclaimed entry is due, after `after_us`, that this node may claim."""
    turns = [turn for level in PriorityLevel for turn in stores.turns(level)]
    due_us: int | None = tables.fetch_one(_NEXT, (after_us, turns))[0]
    return due_us


def read_claims(
    tables: ConnectionTables, keys: Sequence[Key]
) -> tuple[tuple[Claim, ...], dict[Key, str]]:
    """Return claims of these entries as they are, and what is wrong with the others."""
    if not keys:
        return (), {}
    columns = _columns(keys)
    recipients = tables.fetch(_RECIPIENTS, columns)
    return claims_of(map(tuple, tables.fetch(_FACTS, columns)), recipients, by_message=True)


def release_claims(tables: ConnectionTables, claims: Iterable[Claim]) -> None:
    """Release untried claims, unless they have ended."""
    tables.execute_each(_RELEASE, [(*claim.key, claim.epoch, claim.owner) for claim in claims])


def take_over(transaction: WriteTransaction, *, now_us: int, at_us: int) -> int:
    """Release some claims of owners that do not live; return how many, 0 when none is left."""
    for owner, name in dead_owners(transaction):
        claimed = transaction.fetch(_ABANDONED, (owner, CLAIMS_AT_ONCE))
        if claimed:
            release_abandoned(transaction, claimed, now_us=now_us, at_us=at_us)
            if name is not None:
                transaction.rows.made_by(name)
            return len(claimed)
    transaction.has_changed = False
    return 0


def dead_owners(tables: ConnectionTables) -> Sequence[Sequence[Any]]:
    """Return the dead owners of claims, with the name of the node, or None.

    Call it again and again: a node that wakes up late still accepts mail as a dead incarnation.
    """
    return tables.fetch(_DEAD_OWNERS)


def _due_rows(
    transaction: WriteTransaction, look: DueQuery, *, now_us: int, limit: int
) -> Iterator[Sequence[Any]]:
    """Yield due entries of a level, or of one sender in it, after look.after, oldest first."""
    turns = transaction.stores.turns(look.level)
    whose: tuple[Any, ...] = (turns,) if look.sender is None else (turns, look.sender)
    sql = _OF_LEVEL if look.sender is None else _OF_SENDER
    if look.only_ended:
        sql, whose = _ENDED_OF_LEVEL, (turns, now_us, now_us)
    after = look.after or FIRST_POSITION
    left = claimed.ROWS_MAX
    while left > 0:
        number = min(left, max(limit + 1, _PAGE))
        rows = transaction.fetch(sql, (*whose, now_us, *after, number, number))
        yield from rows
        if len(rows) < number:
            return
        left -= number
        after = (rows[-1][0], rows[-1][1], rows[-1][2])


def _scan_next_hop(
    transaction: WriteTransaction, look: DueQuery, next_hop: NextHop, *, now_us: int, limit: int
) -> tuple[list[Key], DueBatch]:
    is_local = next_hop.kind is HopKind.LOCAL
    turns = transaction.stores.turns(look.level, is_local=is_local)
    if not turns:
        return [], DueBatch(ended=True)
    return scan_next_hop(transaction, look, ("turn", turns[0]), now_us=now_us, limit=limit)


def _columns(keys: Sequence[Key]) -> tuple[list[str], list[int]]:
    return [message_id for message_id, _ in keys], [number for _, number in keys]
