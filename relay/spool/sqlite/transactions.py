"""Accept messages and settle delivery attempts; each function runs inside one transaction.

accept() ends step 5 of a message, settle() ends steps 6 and 7. The writer commits them. The state
of a recipient changes only as the table in message.lifecycle allows, and epochs only grow. apsw's
exceptions roll the transaction back.

See docs/design.md 4, invariants 1, 2, 3 and 7.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import Any, assert_never
from zlib import crc32

import apsw
from msgspec import Struct
from msgspec.structs import replace

from relay.message.content import Content, size_of
from relay.message.lifecycle import FINAL, RecipientState, check_transition
from relay.message.nexthop import HopKind, NextHop
from relay.message.outcome import (
    Captured,
    Deferred,
    Delivered,
    Failed,
    Indeterminate,
    Outcome,
    Relayed,
)
from relay.message.receipt import ReceiptRequest
from relay.spool.common.rows import (
    ACCEPTED_COUNTER,
    LIVE_STATES,
    MESSAGE_COLUMNS,
    REMOVED_EVENTS,
    SEQUENCE_BASE,
    json_text,
    message_row,
    recipient_row,
)
from relay.spool.sqlite.content_files import StoredFile
from relay.spool.sqlite.database import (
    fetch_one,
)
from relay.spool.sqlite.holds import count_holds, has_room, note_hold
from relay.spool.sqlite.remote_reports import join_report
from relay.spool.sqlite.writer import Batch
from relay.spool.types import (
    NEVER_US,
    Accepted,
    Claim,
    ClaimedRecipient,
    EntrySchedule,
    Key,
    NewEntry,
    NewMessage,
    NewRecipient,
    PriorityLevel,
    SentReceipt,
    Settlement,
    extra_text,
)

_MESSAGE = (
    f"INSERT INTO message ({','.join(MESSAGE_COLUMNS)})"
    f" VALUES ({','.join('?' * len(MESSAGE_COLUMNS))})"
)
_CONTENT = "INSERT INTO content (size, data, file, header, eight_bit, crc32) VALUES (?,?,?,?,?,?)"
_ENTRY = (
    "INSERT INTO entry (message_id, number, next_hop, content_id, state, claimed, due_us, attempts,"
    " epoch, retry_us, lane, sender, warn_us, priority, extra)"
    " VALUES (?,?,?,?,?,?,?,0,1,?,?,?,?,?,?)"
)
_RECIPIENT = "INSERT INTO recipient VALUES (?,?,?,?,?,?,?,?,?,?,?,'')"
_OWE = "UPDATE recipient SET owed = ? WHERE message_id = ? AND entry = ? AND number = ?"
PAY = "UPDATE recipient SET owed = '' WHERE message_id = ? AND entry = ? AND owed <> ''"
RECEIPTS_PER_MAILBOX_MAX = 1000  # for one more, the oldest goes
_RECEIPT = "INSERT OR IGNORE INTO owed_receipt VALUES (?,?,?,?,'',?,'owed',?)"
_OLDEST_RECEIPTS = (
    "DELETE FROM owed_receipt WHERE (message_id, number) IN (SELECT message_id, number"
    " FROM owed_receipt WHERE mailbox = ? ORDER BY owed_us DESC, message_id DESC LIMIT -1 OFFSET ?)"
)
_MARK_RECEIPT = "UPDATE owed_receipt SET state = 'sent' WHERE message_id = ? AND number = ?"
_END_RECEIPT = "DELETE FROM owed_receipt WHERE message_id = ? AND number = ?"
_IS_KNOWN = "SELECT 1 FROM message WHERE id = ?"


class CapturedMail(Struct, frozen=True):
    """What happens to captured mail: it is captured when it is accepted, and expires `keep_us`
    after its arrival.

    With `is_delivered`, as in a development relay, it is queued until delivery has put a copy into
    the recipient's mailbox. It does not expire, because the queue follows a clock that is advanced:
    what removes it after `keep_us` of real time uses SpoolMaintenance.discard().
    """

    keep_us: int
    is_delivered: bool = False

    def due_us(self, received_us: int) -> int:
        """Return when captured mail expires, in queue time."""
        return NEVER_US if self.is_delivered else received_us + self.keep_us

    def ends_at_acceptance(self, next_hop: NextHop) -> bool:
        """Whether mail for `next_hop` is captured when it is accepted."""
        return next_hop.kind is HopKind.CAPTURE and not self.is_delivered


class Recorded(Struct, frozen=True):
    """`in_time`: the claim was still valid; otherwise nothing was done. `claims` are those of the
    reports; `unneeded` is the content file to remove, or "". `owes`: it has added read receipts.
    """

    in_time: bool
    claims: tuple[Claim, ...] = ()
    unneeded: str = ""
    owes: bool = False


def accept(
    batch: Batch,
    messages: Sequence[NewMessage],
    files: Sequence[Sequence[StoredFile | None]],
    *,
    submission_key: str,
    submission_expires_us: int,
    captured: CapturedMail,
    claim: bool,
    receipt: SentReceipt | None = None,
) -> Accepted | None:
    """Write messages[0] and the reports that follow it; None, and nothing is done, where rules
    would hold more entries than they may.

    `files[i][j]` is the file of messages[i].contents[j], None where it is inline.
    """
    if receipt is not None:
        sql = _MARK_RECEIPT if receipt.is_kept else _END_RECEIPT
        batch.cursor.execute(sql, receipt.key)
    first = messages[0]
    if submission_key and (known := accepted_as(batch.cursor, submission_key)):
        return Accepted(known, repeated=True)
    if not has_room(batch, first):
        return None
    if submission_key:
        batch.cursor.execute(
            "INSERT INTO submission VALUES (?,?,?)",
            (submission_key, first.facts.id, submission_expires_us),
        )
    claims: list[Claim] = []
    for message, names in zip(messages, files, strict=True):
        claims += _insert_message(batch, message, names, claim=claim, captured=captured)
    if receipt is not None and fetch_one(batch.cursor, _IS_KNOWN, receipt.key[:1]):
        batch.append_events(receipt.key[0], (receipt.event,))
    until_us = min((_end_us(*one, captured) for one in _parked(messages, captured)), default=None)
    return Accepted(first.facts.id, tuple(claims), parked_until_us=until_us)


def accepted_as(cursor: apsw.Cursor, submission_key: str) -> str:
    """Return the queue id of the message that was accepted with this key, "" for none."""
    sql = "SELECT message_id FROM submission WHERE key = ?"
    known = fetch_one(cursor, sql, (submission_key,))
    return str(known[0]) if known else ""


def renew_submission_keys(
    cursor: apsw.Cursor, keys: Sequence[str], *, until_us: int
) -> frozenset[str]:
    """Let these submission keys expire at `until_us`; return those that are known."""
    renewed = cursor.executemany(
        "UPDATE submission SET expires_us = ? WHERE key = ? RETURNING key",
        [(until_us, key) for key in keys],
    )
    return frozenset(key for (key,) in renewed)


def settle(
    batch: Batch,
    settlement: Settlement,
    files: Sequence[Sequence[StoredFile | None]],
    *,
    captured: CapturedMail,
    claim_reports: bool,
    now_us: int,
) -> Recorded:
    """Record outcomes, or nothing where the claim's epoch has ended. `now_us` is queue time, or
    NEVER_US if no read receipts are to be recorded.
    """
    claim = settlement.claim
    key = (claim.message.id, claim.entry_id)
    changed: list[tuple[RecipientState, str, str, str, int, int]] = []
    receipts: dict[str, tuple[int, ReceiptRequest]] = {}  # by the copy, which several may share
    for number, outcome in settlement.outcomes.items():
        state = _state_after(outcome)
        if settlement.held and state is RecipientState.DEFERRED:
            state = RecipientState.HELD
        evidence = outcome.evidence
        changed.append((state, evidence.status, evidence.reply, *key, number))
        if evidence.receipt is not None and now_us != NEVER_US:
            receipts.setdefault(evidence.graph_id, (number, evidence.receipt))
    for number, outcome in settlement.expired.items():
        evidence = outcome.evidence
        changed.append((RecipientState.EXPIRED, evidence.status, evidence.reply, *key, number))
    for state, *_ in changed:  # both live states allow the same
        check_transition(RecipientState.QUEUED, state)
    final = [state for state, *_ in changed if state in FINAL]
    finished = len(final) == len(claim.recipients) and not settlement.goes_on
    if not _leave(batch.cursor, settlement, finished=finished, captured=captured):
        return Recorded(in_time=False)
    batch.counts.update(final)
    count_holds(batch, -int(finished and claim.is_held_by_rule))  # its hold has expired
    batch.cursor.executemany(
        "UPDATE recipient SET state = ?, status = ?, reply = ?"
        " WHERE message_id = ? AND entry = ? AND number = ?"
        f" AND state IN {LIVE_STATES}",
        changed,
    )
    _record_owed(batch.cursor, settlement)
    if settlement.held and not finished:
        why = next((one.detail["held"] for one in settlement.events if "held" in one.detail), "")
        note_hold(batch, key, f"relay: {why}" if why else "relay", since_us=settlement.at_us)
    unneeded = drop_content(batch.cursor, claim.message.id, claim.content_id) if finished else ""
    batch.append_events(claim.message.id, settlement.events)
    for copy_id, (number, request) in receipts.items():
        oldest = (request.mailbox, RECEIPTS_PER_MAILBOX_MAX - 1)
        batch.cursor.execute(_OLDEST_RECEIPTS, oldest)
        row = (claim.message.id, number, request.mailbox, copy_id, now_us, json_text(request))
        batch.cursor.execute(_RECEIPT, row)
    if settlement.remote_report is not None:
        joined = join_report(batch.cursor, settlement, settlement.remote_report)
        if joined is not None:
            batch.append_events(joined.message_id, joined.events)
    claims: list[Claim] = []
    for message, names in zip(settlement.reports, files, strict=True):
        claims += _insert_message(batch, message, names, claim=claim_reports, captured=captured)
    return Recorded(True, tuple(claims), unneeded, owes=bool(receipts))


def _record_owed(cursor: apsw.Cursor, settlement: Settlement) -> None:
    """Record what reports are owed, or no longer are; ordinary mail needs none of it."""
    claim = settlement.claim
    if settlement.owed:
        rows = [
            (f"{settlement.at_us} {settlement.outcomes[number].evidence.host}", *claim.key, number)
            for number in settlement.owed
        ]
        cursor.executemany(_OWE, rows)
    if settlement.pays:
        cursor.execute(PAY, claim.key)
    if settlement.ends_warning:
        sql = "UPDATE entry SET warn_us = NULL WHERE message_id = ? AND warn_us IS NOT NULL"
        cursor.execute(sql, (claim.message.id,))


def note_removed_events(cursor: apsw.Cursor, last: int | None) -> None:
    """Record that events up to the sequence `last` are about to be removed: followers are informed
    that some are missing, and no later event gets such a sequence.
    """
    if last is not None and last > SEQUENCE_BASE:
        cursor.execute(
            "INSERT INTO counter VALUES (?,?)"
            " ON CONFLICT DO UPDATE SET value = max(value, excluded.value)",
            (REMOVED_EVENTS, last),
        )


def last_sequence(cursor: apsw.Cursor) -> int | None:
    """Return the sequence of the last event that was recorded and is kept."""
    sql = f"SELECT max(sequence) FROM event WHERE sequence > {SEQUENCE_BASE}"
    last: int | None = fetch_one(cursor, sql)[0]
    return last


def record_mail_root(batch: Batch, store: str, root_id: str) -> None:
    """SpoolEngine.record_mail_root."""
    batch.cursor.execute("INSERT OR REPLACE INTO mail_root VALUES (?,?)", (store, root_id))


def _insert_message(
    batch: Batch,
    message: NewMessage,
    files: Sequence[StoredFile | None],
    *,
    claim: bool,
    captured: CapturedMail,
) -> list[Claim]:
    cursor = batch.cursor
    facts = message.facts
    cursor.execute(_MESSAGE, message_row(facts))
    used = {entry.content for entry in message.entries}
    content_ids: dict[int, int] = {}
    for index, content in enumerate(message.contents):
        if index in used:
            cursor.execute(_CONTENT, _content_row(content, files[index]))
            content_ids[index] = cursor.connection.last_insert_rowid()
    rows: list[tuple[Any, ...]] = []
    numbers = _numbers(message)
    for recipient in message.final_recipients:
        number = recipient.position or next(numbers)
        rows.append(recipient_row(facts.id, recipient, entry=0, number=number))
        batch.counts[recipient.state] += 1
    claims: list[Claim] = []
    for position, entry in enumerate(message.entries, 1):
        state = _first_state(entry, captured)
        is_queued = state is RecipientState.QUEUED
        claimed = claim and is_queued
        content_id = content_ids[entry.content]
        _insert_entry(
            cursor, message, entry, number=position, content_id=content_id, claimed=claimed,
            state=state, captured=captured,
        )  # fmt: skip
        recipients: list[ClaimedRecipient] = []
        for recipient in entry.recipients:
            number = recipient.position or next(numbers)
            if not is_queued:
                recipient = replace(recipient, state=state)  # noqa: PLW2901
            rows.append(recipient_row(facts.id, recipient, entry=position, number=number))
            recipients.append(ClaimedRecipient(number, recipient.path, recipient.added_by))
        if claimed:
            content = message.contents[entry.content]
            keep = content if isinstance(content, bytes) and not files[entry.content] else None
            claims.append(
                Claim(
                    entry_id=position, epoch=1, message=facts, next_hop=entry.next_hop,
                    recipients=tuple(recipients), attempts=0, content_id=content_id,
                    content_size=size_of(content), content=keep, retry_us=facts.received_us,
                    due_us=facts.received_us, level=message.level_of(entry),
                    sender=message.sender_key, warn_us=message.warn_us, priority=message.priority,
                    extra=entry.extra,
                )
            )  # fmt: skip
    cursor.executemany(_RECIPIENT, rows)
    batch.append_events(facts.id, message.events)
    batch.counts[ACCEPTED_COUNTER] += len(rows)
    count_holds(batch, len(message.held_by_rules))
    return claims


def add_reports(
    batch: Batch,
    reports: Sequence[NewMessage],
    files: Sequence[Sequence[StoredFile | None]],
    *,
    captured: CapturedMail,
) -> None:
    """Write reports, which wait unclaimed."""
    for message, names in zip(reports, files, strict=True):
        _insert_message(batch, message, names, claim=False, captured=captured)


def add_recipients(batch: Batch, key: Key, recipients: Sequence[NewRecipient]) -> None:
    """Add recipients to an entry that was made after the acceptance of its message."""
    message_id, entry = key
    last = fetch_one(
        batch.cursor, "SELECT max(number) FROM recipient WHERE message_id = ?", (message_id,)
    )
    rows = [
        recipient_row(message_id, recipient, entry=entry, number=number)
        for number, recipient in enumerate(recipients, int(last[0] or 0) + 1)
    ]
    batch.cursor.executemany(_RECIPIENT, rows)
    batch.counts[ACCEPTED_COUNTER] += len(rows)


def _numbers(message: NewMessage) -> Iterator[int]:
    """Numbers for recipients without a position, after the last one that has one."""
    entries = (entry.recipients for entry in message.entries)
    everybody = chain(message.final_recipients, *entries)
    return count(1 + max((one.position for one in everybody), default=0))


def _first_state(entry: NewEntry, captured: CapturedMail) -> RecipientState:
    if entry.extra.reason:
        return RecipientState.HELD
    ends_here = captured.ends_at_acceptance(entry.next_hop)
    return RecipientState.CAPTURED if ends_here else RecipientState.QUEUED


def _parked(
    messages: Sequence[NewMessage], captured: CapturedMail
) -> Iterator[tuple[NewMessage, NewEntry]]:
    """Yield the entries that are held or captured from the beginning."""
    for message in messages:
        for entry in message.entries:
            if _first_state(entry, captured) is not RecipientState.QUEUED:
                yield message, entry


def _end_us(message: NewMessage, entry: NewEntry, captured: CapturedMail) -> int:
    """Return when an entry ends that is held or captured from the beginning."""
    if _first_state(entry, captured) is RecipientState.HELD:
        return entry.extra.expires_us or message.facts.expires_us
    return captured.due_us(message.facts.received_us)


def _insert_entry(
    cursor: apsw.Cursor,
    message: NewMessage,
    entry: NewEntry,
    *,
    number: int,
    content_id: int,
    claimed: bool,
    state: RecipientState,
    captured: CapturedMail,
) -> None:
    due_us = message.facts.received_us
    retry_us: int | None = due_us
    warn_us = message.warn_us
    if state is not RecipientState.QUEUED:  # it is not attempted, and nobody is warned
        retry_us = warn_us = None
        due_us = _end_us(message, entry, captured)
    row = (
        message.facts.id, number, entry.next_hop.key, content_id, state, int(claimed), due_us,
        retry_us, message.level_of(entry), message.sender_key, warn_us, message.priority,
        extra_text(entry.extra),
    )  # fmt: skip
    cursor.execute(_ENTRY, row)


def _leave(
    cursor: apsw.Cursor, settlement: Settlement, *, finished: bool, captured: CapturedMail
) -> bool:
    """Requeue the entry, or end it; False if the claim's epoch has ended and nothing was done."""
    claim, waiting = settlement.claim, None if finished else settlement.waiting
    if settlement.goes_on:
        return _is_in_time(cursor, claim)
    attempts = claim.attempts + int(settlement.counts_as_attempt)
    if any(isinstance(outcome, Captured) for outcome in settlement.outcomes.values()):
        state = RecipientState.CAPTURED
        waiting = EntrySchedule(
            retry_us=None, due_us=captured.due_us(claim.message.received_us), level=claim.priority
        )
    elif settlement.held:
        state = RecipientState.HELD
    elif not settlement.counts_as_attempt:
        state = claim.state
    else:
        state = RecipientState.DEFERRED
    cursor.execute(
        "UPDATE entry SET state = ?, attempts = ?, claimed = 0, epoch = epoch + ?, due_us = ?,"
        " retry_us = ?, lane = ?, cause = ?, cause_attempts = ?,"
        " warn_us = iif(warn_us IS NULL, NULL, ?)"  # the warning may have been reported meanwhile
        " WHERE message_id = ? AND number = ? AND epoch = ? AND state <> 'final'",
        (
            "final" if finished else state, attempts, int(not finished),
            *_waiting_columns(waiting),
            claim.message.id, claim.entry_id, claim.epoch,
        ),
    )  # fmt: skip
    return cursor.connection.changes() == 1


def _is_in_time(cursor: apsw.Cursor, claim: Claim) -> bool:
    """Whether the claim is still valid."""
    found = fetch_one(
        cursor,
        "SELECT 1 FROM entry WHERE message_id = ? AND number = ? AND epoch = ? AND claimed = 1",
        (*claim.key, claim.epoch),
    )
    return found is not None


def _waiting_columns(waiting: EntrySchedule | None) -> tuple[Any, ...]:
    if waiting is None:
        return None, None, PriorityLevel.NORMAL, "", 0, None
    return (
        waiting.due_us, waiting.retry_us, waiting.level, waiting.cause, waiting.cause_attempts,
        waiting.warn_us,
    )  # fmt: skip


def drop_content(cursor: apsw.Cursor, message_id: str, content_id: int) -> str:
    """Remove the content unless another entry still needs it; return its file if none does."""
    removed = fetch_one(
        cursor,
        "DELETE FROM content WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM entry"
        " WHERE message_id = ?2 AND content_id = ?1 AND state <> 'final') RETURNING file",
        (content_id, message_id),
    )
    file = str(removed[0] or "") if removed else ""
    return "" if file and is_file_needed(cursor, file) else file


def is_file_needed(cursor: apsw.Cursor, name: str) -> bool:
    """Whether a content has this file."""
    found = fetch_one(
        cursor,
        "SELECT 1 FROM content INDEXED BY content_file WHERE file = ? AND file IS NOT NULL",
        (name,),
    )
    return found is not None


def is_content_lost(cursor: apsw.Cursor, message_id: str) -> bool | None:
    """Whether an entry in the queue lacks its content; None for a message that is not known."""
    is_lost, is_known = fetch_one(
        cursor,
        "SELECT EXISTS (SELECT 1 FROM entry e WHERE message_id = ?1 AND state <> 'final'"
        " AND NOT EXISTS (SELECT 1 FROM content WHERE id = e.content_id)),"
        " EXISTS (SELECT 1 FROM message WHERE id = ?1)",
        (message_id,),
    )
    return bool(is_lost) if is_lost or is_known else None


def _content_row(content: Content, file: StoredFile | None) -> tuple[Any, ...]:
    """A content in a file has its name in place of its octets; a large one also its header."""
    if isinstance(content, bytes):
        if file is None:
            return len(content), content, None, None, 0, crc32(content)
        return len(content), None, file.name, None, 0, file.crc32
    assert file is not None
    found = crc32(content.header, file.crc32)
    return content.size, None, file.name, content.header, int(content.eight_bit), found


def _state_after(outcome: Outcome) -> RecipientState:
    match outcome:
        case Delivered():
            return RecipientState.DELIVERED
        case Relayed():
            return RecipientState.RELAYED
        case Captured():
            return RecipientState.CAPTURED
        case Failed():
            return RecipientState.FAILED
        case Deferred() | Indeterminate():
            return RecipientState.DEFERRED
        case _:
            assert_never(outcome)
