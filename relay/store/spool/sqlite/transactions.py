"""Accept messages, find and claim due entries, and record the results of attempts.

A function that writes runs inside one transaction, which the writer commits; apsw's exceptions roll
it back. Those that find due entries only read.
What they write is decided in relay/store/spool/shared (`accepted`, `claimed`, `results`). accept()
ends step 5 of a message, record() ends steps 6 and 7. The state of a recipient changes only as the
table in message.lifecycle allows.

find_due() reads by priority level, for a next hop or for a sender. It reads a bounded number of
index rows however long the queue is, and reads tables only for the entries that it returns.
take_claims() then claims them. An entry has one owner at a time: each claim and each release
raises its epoch.

See docs/design.md 4 (Claims), 5, and invariants 1, 2, 3 and 7.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

import msgspec
from msgspec.structs import replace

from relay.base.message.content import Content
from relay.store.spool import types
from relay.store.spool.shared import claimed, results
from relay.store.spool.shared.accepted import (
    ENTRY_COLUMNS,
    AcceptedRows,
    CapturedMail,
    NewMail,
    NotAccepted,
    accepted,
    accepted_rows,
    decided_before,
    suppressed_of,
    used_contents,
)
from relay.store.spool.shared.claimed import (
    CLAIM_COLUMNS,
    IS_NEEDED,
    OWED,
    RECIPIENT_COLUMNS,
    claims_of,
    scan_level,
    scan_next_hop,
)
from relay.store.spool.shared.columns import MESSAGE_COLUMNS, REMOVED_EVENTS, WAITS, message_row
from relay.store.spool.shared.damaged_entries import hold_damaged
from relay.store.spool.shared.entry_notes import end_hold
from relay.store.spool.shared.hold_counters import count_holds
from relay.store.spool.shared.hold_rules import as_held_now
from relay.store.spool.shared.tables import StoredBodies, StoredBody
from relay.store.spool.sqlite.database import SqliteTables
from relay.store.spool.sqlite.writer import Batch

_MESSAGE = (
    f"INSERT INTO message ({','.join(MESSAGE_COLUMNS)})"
    f" VALUES ({','.join('?' * len(MESSAGE_COLUMNS))})"
)
_CONTENT = "INSERT INTO content (size, data, file, header, eight_bit, crc32) VALUES (?,?,?,?,?,?)"
_ENTRY = (
    f"INSERT INTO entry ({','.join(ENTRY_COLUMNS)}, attempts, epoch)"
    f" VALUES ({','.join('?' * len(ENTRY_COLUMNS))}, 0, {types.FIRST_EPOCH})"
)
_RECIPIENT = "INSERT INTO recipient VALUES (?,?,?,?,?,?,?,?,?,?,?,'','')"
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
_NEXT = (
    "SELECT min(due_us) FROM ("
    + " UNION ALL ".join(
        "SELECT (SELECT due_us FROM entry INDEXED BY entry_due"
        f" WHERE {WAITS} AND lane = {int(level)} AND due_us > ?1 ORDER BY due_us LIMIT 1) AS due_us"
        for level in types.PriorityLevel
    )
    + ")"
)
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


def accept(batch: Batch, new: NewMail) -> types.Accepted | NotAccepted:
    """Write a message and the reports that follow it. Where rules would hold more entries than
    they may, or recipients are on the list of dead addresses, write nothing and return the error.
    """
    answer = decided_before(batch, new) or suppressed_of(batch, new)
    if answer is not None:
        return answer
    first = new.messages[0]
    if new.submission_key:
        row = (new.submission_key, first.facts.id, new.key_expires_us)
        batch.execute("INSERT INTO submission VALUES (?,?,?)", row)
    added = [
        add_message(batch, message, files, claim=new.claim, captured=new.captured)
        for message, files in zip(new.messages, new.stored, strict=True)
    ]
    return accepted(first, added)


def record(batch: Batch, new: results.NewResult) -> results.Recorded | None:
    """Record outcomes. If the claim's epoch has ended, do nothing and return None."""
    claim_result, claim = new.claim_result, new.claim_result.claim
    rows = results.result_rows(new)
    goes_on = claim_result.goes_on
    if not (
        _is_in_time(batch, claim) if goes_on else results.leave_entry(batch, claim_result, rows)
    ):
        return None
    is_for_all = len(rows.recipients) == len(claim.recipients)  # the claim has all live ones
    if is_for_all and len({row[:-1] for row in rows.recipients}) == 1:
        batch.execute(results.RECORD_ALL, rows.recipients[0][:-1])
    else:
        batch.execute_each(results.RECORD, rows.recipients)
    unneeded = ""
    if rows.is_finished:
        unneeded = drop_content(batch, claim.message.id, claim.content_id)
    complaint, suppressed = results.record_effects(batch, new, rows, store=0)
    ordered = new.order(batch) if new.order is not None else None
    claims: list[types.Claim] = []
    for message, files in zip(claim_result.reports, new.stored, strict=True):
        claims += add_message(
            batch, message, files, claim=new.claim_reports, captured=new.captured
        ).claims
    return results.Recorded(
        tuple(claims), unneeded, bool(rows.receipts), ordered, complaint, suppressed
    )


def note_removed_events(batch: Batch, last: int | None) -> None:
    """Record that events up to the sequence `last` are about to be removed, so that followers
    notice it, and no later event gets one of these sequences.
    """
    if last is not None:
        batch.execute(
            "INSERT INTO counter VALUES (?,?)"
            " ON CONFLICT DO UPDATE SET value = max(value, excluded.value)",
            (REMOVED_EVENTS, last),
        )


def add_message(
    batch: Batch,
    message: types.NewMessage,
    files: StoredBodies,
    *,
    claim: bool,
    captured: CapturedMail,
) -> AcceptedRows:
    """Write a message, and return the rows that all engines have."""
    message, facts = as_held_now(batch, message), message.facts
    batch.execute(_MESSAGE, message_row(facts))
    used = used_contents(message)
    content_ids: dict[int, int] = {}
    for index, content in enumerate(message.contents):
        if index in used:
            batch.execute(_CONTENT, _content_row(content, files.get(index)))
            content_ids[index] = batch.cursor.connection.last_insert_rowid()
    kept = used - files.keys()
    rows = accepted_rows(message, content_ids, kept=kept, claim=claim, captured=captured)
    batch.execute_each(_ENTRY, rows.entries)
    batch.execute_each(_RECIPIENT, rows.recipients)
    batch.append_events(facts.id, message.events)
    batch.counts.update(rows.counts)
    count_holds(batch, Counter(message.held_by_rules))
    return rows


def _is_in_time(batch: Batch, claim: types.Claim) -> bool:
    """Whether the claim is still valid."""
    sql = "SELECT 1 FROM entry WHERE message_id = ? AND number = ? AND epoch = ? AND claimed = 1"
    return batch.fetch_one(sql, (*claim.key, claim.epoch)) is not None


def drop_content(batch: Batch, message_id: str, content_id: types.ContentKey) -> str:
    """Remove the content unless another entry needs it; return its file if no content has it."""
    removed = batch.fetch_one(
        "DELETE FROM content WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM entry"
        " WHERE message_id = ?2 AND content_id = ?1 AND state <> 'final') RETURNING file",
        (content_id, message_id),
    )
    file = str(removed[0] or "") if removed else ""
    return "" if file and is_file_needed(batch, file) else file


def is_file_needed(tables: SqliteTables, name: str) -> bool:
    """Whether a content has this file."""
    sql = "SELECT 1 FROM content INDEXED BY content_file WHERE file = ? AND file IS NOT NULL"
    return tables.fetch_one(sql, (name,)) is not None


def _content_row(content: Content, file: StoredBody | None) -> tuple[Any, ...]:
    """Return the columns: of a content in a file its name, of a large content also the header."""
    if isinstance(content, bytes):
        if file is None:
            return len(content), content, None, None, 0, crc32(content)
        return len(content), None, file.name, None, 0, file.crc32
    assert file is not None
    checksum = crc32(content.header, file.crc32)
    return content.size, None, file.name, content.header, content.flags, checksum


def find_due(
    tables: SqliteTables, look: types.DueQuery, *, now_us: int, limit: int
) -> tuple[types.DueBatch, dict[types.Key, str]]:
    """Find up to `limit` due entries, and change nothing. Return claims with the epochs before they
    are claimed, and by key what is wrong with entries that cannot be read.
    """
    with tables.snapshot():  # all rows of an entry are of the same epoch
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
    due_us: int | None = tables.fetch_one(_NEXT, (after_us,))[0]
    return due_us


def read_claims(
    tables: SqliteTables, keys: Collection[types.Key]
) -> tuple[tuple[types.Claim, ...], dict[types.Key, str]]:
    """Return claims of these entries as they are, and what is wrong with the others."""
    if not keys:
        return (), {}
    keys_json = msgspec.json.encode(list(keys)).decode()
    recipients = tables.fetch(_RECIPIENTS, (keys_json,))
    return claims_of(tables.fetch(_FACTS, (keys_json,)), recipients)


def _scan_level(
    tables: SqliteTables, look: types.DueQuery, *, now_us: int, limit: int
) -> tuple[list[types.Key], types.DueBatch]:
    whose = (int(look.level),) if look.sender is None else (look.sender, int(look.level))
    sql = _OF_LEVEL if look.sender is None else _OF_SENDER
    if look.only_ended:
        sql, whose = _ENDED_OF_LEVEL, (now_us, now_us, *whose)
    rest = (now_us, *(look.after or types.FIRST_POSITION), claimed.ROWS_MAX)
    return scan_level(tables.cursor.execute(sql, (*whose, *rest)), look, limit=limit)


def release_claims(batch: Batch, claims: Iterable[types.Claim]) -> None:
    """Release untried claims, unless their epoch has ended."""
    batch.execute_each(_RELEASE, [(*claim.key, claim.epoch) for claim in claims])


def take_claims(
    batch: Batch,
    claims: Sequence[types.Claim],
    damaged: Mapping[types.Key, str],
    *,
    now_us: int,
    at_us: int,
) -> tuple[types.Claim, ...]:
    """Take these claims, except those of entries that were claimed since; `at_us` is wall time.

    A held entry that is due becomes queued. An entry that cannot be read is held, so that others
    continue. The log, the journey and the queue list say so.
    """
    keys = [(*claim.key, claim.epoch) for claim in claims]
    taken = set(batch.fetch_each(_TAKE, keys))
    taken_claims = [
        end_hold(batch, replace(claim, epoch=claim.epoch + 1), now_us=now_us, at_us=at_us)
        for claim in claims
        if claim.key in taken
    ]
    for key, text in damaged.items():
        hold_damaged(batch, key, text, at_us=at_us, is_claimed=False)
    return tuple(taken_claims)
