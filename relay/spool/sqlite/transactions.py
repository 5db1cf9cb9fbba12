"""Accept messages and settle delivery attempts; each function runs inside one transaction.

What they write is decided in relay/spool/shared/rows (`accepted`, `settled`). accept() ends
step 5 of a message, settle() ends steps 6 and 7. The writer commits them. The state of a recipient
changes only as the table in message.lifecycle allows, and epochs only grow. apsw's exceptions roll
the transaction back.

See docs/design.md 4, invariants 1, 2, 3 and 7.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from relay.message.content import Content
from relay.spool.shared.columns import (
    LIVE_STATES,
    MESSAGE_COLUMNS,
    REMOVED_EVENTS,
    message_row,
)
from relay.spool.shared.queue.holds import count_holds, lack_of_room
from relay.spool.shared.queue.standing_holds import as_held_now
from relay.spool.shared.rows.accepted import (
    ENTRY_COLUMNS,
    AcceptedRows,
    CapturedMail,
    accepted_as,
    accepted_rows,
    used_contents,
)
from relay.spool.shared.rows.receipts import note_receipt, record_sent
from relay.spool.shared.rows.settled import (
    Recorded,
    SettledRows,
    record_beside,
    settled_rows,
    waiting_columns,
)
from relay.spool.shared.tables import StoredBodies, StoredBody, StoredContents
from relay.spool.sqlite.database import SqliteTables
from relay.spool.sqlite.writer import Batch
from relay.spool.types import (
    FIRST_EPOCH,
    NEVER_US,
    Accepted,
    Claim,
    ContentKey,
    HoldsFullError,
    NewMessage,
    SentReceipt,
    Settlement,
)

_MESSAGE = (
    f"INSERT INTO message ({','.join(MESSAGE_COLUMNS)})"
    f" VALUES ({','.join('?' * len(MESSAGE_COLUMNS))})"
)
_CONTENT = "INSERT INTO content (size, data, file, header, eight_bit, crc32) VALUES (?,?,?,?,?,?)"
_ENTRY = (
    f"INSERT INTO entry ({','.join(ENTRY_COLUMNS)}, attempts, epoch)"
    f" VALUES ({','.join('?' * len(ENTRY_COLUMNS))}, 0, {FIRST_EPOCH})"
)
_RECIPIENT = "INSERT INTO recipient VALUES (?,?,?,?,?,?,?,?,?,?,?,'')"


def accept(
    batch: Batch,
    messages: Sequence[NewMessage],
    files: StoredContents,
    *,
    submission_key: str,
    submission_expires_us: int,
    captured: CapturedMail,
    claim: bool,
    receipt: SentReceipt | None = None,
) -> Accepted | HoldsFullError:
    """Write messages[0] and the reports that follow it; or return the error, and nothing is done,
    where rules would hold more entries than they may. `files` are those of each message.
    """
    if receipt is not None:
        record_sent(batch, receipt)
    first = messages[0]
    if submission_key and (known := accepted_as(batch, submission_key)):
        return Accepted(known, repeated=True)
    if (full := lack_of_room(batch, first)) is not None:
        return full
    if submission_key:
        row = (submission_key, first.facts.id, submission_expires_us)
        batch.execute("INSERT INTO submission VALUES (?,?,?)", row)
    claims: list[Claim] = []
    ends: list[int] = []
    for message, names in zip(messages, files, strict=True):
        added = add_message(batch, message, names, claim=claim, captured=captured)
        claims += added.claims
        ends += added.parked_until_us
    if receipt is not None:
        note_receipt(batch, receipt)
    return Accepted(first.facts.id, tuple(claims), parked_until_us=min(ends, default=None))


def settle(
    batch: Batch,
    settlement: Settlement,
    files: StoredContents,
    *,
    captured: CapturedMail,
    claim_reports: bool,
    now_us: int,
) -> Recorded | None:
    """Record outcomes; None, and nothing is done, where the claim's epoch has ended. `now_us` is
    queue time, or NEVER_US if no read receipts are to be recorded.
    """
    claim = settlement.claim
    rows = settled_rows(settlement, captured=captured, takes_receipts=now_us != NEVER_US)
    if not _leave(batch, settlement, rows):
        return None
    batch.counts.update(rows.final)
    if rows.is_finished and claim.is_held_by_rule:  # its hold has expired
        count_holds(batch, {claim.extra.rule: -1})
    batch.execute_each(
        "UPDATE recipient SET state = ?, status = ?, reply = ?"
        " WHERE message_id = ? AND entry = ? AND number = ?"
        f" AND state IN {LIVE_STATES}",
        rows.recipients,
    )
    unneeded = ""
    if rows.is_finished:
        unneeded = drop_content(batch, claim.message.id, claim.content_id)
    batch.append_events(claim.message.id, settlement.events)
    record_beside(batch, settlement, rows, now_us=now_us, store=0)
    claims: list[Claim] = []
    for message, names in zip(settlement.reports, files, strict=True):
        added = add_message(batch, message, names, claim=claim_reports, captured=captured)
        claims += added.claims
    return Recorded(tuple(claims), unneeded, owes=bool(rows.receipts))


def note_removed_events(batch: Batch, last: int | None) -> None:
    """Record that events up to the sequence `last` are about to be removed: followers are informed
    that some are missing, and no later event gets such a sequence.
    """
    if last is not None:
        batch.execute(
            "INSERT INTO counter VALUES (?,?)"
            " ON CONFLICT DO UPDATE SET value = max(value, excluded.value)",
            (REMOVED_EVENTS, last),
        )


def add_message(
    batch: Batch,
    message: NewMessage,
    files: StoredBodies,
    *,
    claim: bool,
    captured: CapturedMail,
) -> AcceptedRows:
    """Write a message, and return those of its rows that all engines have."""
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


def _leave(batch: Batch, settlement: Settlement, rows: SettledRows) -> bool:
    """Requeue the entry, or end it; False if the claim's epoch has ended and nothing was done."""
    claim = settlement.claim
    if settlement.goes_on:
        return _is_in_time(batch, claim)
    changed = batch.execute(
        "UPDATE entry SET state = ?, attempts = ?, claimed = 0, epoch = epoch + ?, due_us = ?,"
        " retry_us = ?, lane = ?, cause = ?, cause_attempts = ?,"
        " warn_us = iif(warn_us IS NULL, NULL, ?)"  # the warning may have been reported meanwhile
        " WHERE message_id = ? AND number = ? AND epoch = ? AND state <> 'final'",
        (
            "final" if rows.is_finished else rows.state, rows.attempts, int(not rows.is_finished),
            *waiting_columns(None if rows.is_finished else rows.waiting),
            claim.message.id, claim.entry_id, claim.epoch,
        ),
    )  # fmt: skip
    return changed == 1


def _is_in_time(batch: Batch, claim: Claim) -> bool:
    """Whether the claim is still valid."""
    sql = "SELECT 1 FROM entry WHERE message_id = ? AND number = ? AND epoch = ? AND claimed = 1"
    return batch.fetch_one(sql, (*claim.key, claim.epoch)) is not None


def drop_content(batch: Batch, message_id: str, content_id: ContentKey) -> str:
    """Remove the content unless another entry still needs it; return its file if none does."""
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


def is_content_lost(tables: SqliteTables, message_id: str) -> bool | None:
    """Whether an entry in the queue lacks its content; None for a message that is not known."""
    is_lost, is_known = tables.fetch_one(
        "SELECT EXISTS (SELECT 1 FROM entry e WHERE message_id = ?1 AND state <> 'final'"
        " AND NOT EXISTS (SELECT 1 FROM content WHERE id = e.content_id)),"
        " EXISTS (SELECT 1 FROM message WHERE id = ?1)",
        (message_id,),
    )
    return bool(is_lost) if is_lost or is_known else None


def _content_row(content: Content, file: StoredBody | None) -> tuple[Any, ...]:
    """A content in a file has its name in place of its octets; a large one also its header."""
    if isinstance(content, bytes):
        if file is None:
            return len(content), content, None, None, 0, crc32(content)
        return len(content), None, file.name, None, 0, file.crc32
    assert file is not None
    found = crc32(content.header, file.crc32)
    return content.size, None, file.name, content.header, content.flags, found
