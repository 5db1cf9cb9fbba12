"""What changes in the spool, one function per kind of change: each runs inside one transaction.

On the path: accept() is step 5's end, settle() is step 6's and 7's; the writer commits them.
Holds: a recipient's state changes here only, by message.lifecycle's table; epochs only grow.
Fails: with apsw's exceptions, and the transaction with it.
Standards: DESIGN 4, invariants 1, 2, 3, 7.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Any, assert_never

import apsw
import msgspec

from relay.journal.events import Event, Step
from relay.message.envelope import Notify
from relay.message.lifecycle import FINAL, State, check_transition
from relay.message.nexthop import HopKind, NextHop
from relay.message.outcome import (
    Deferred,
    Delivered,
    Failed,
    Indeterminate,
    Outcome,
    Relayed,
)
from relay.message.verdict import Source
from relay.spool.sqlite.database import fetch, fetch_one
from relay.spool.types import (
    Accepted,
    Claim,
    ClaimedRecipient,
    MessageFacts,
    NewEntry,
    NewMessage,
    NewRecipient,
    Settlement,
)

_MESSAGE = "INSERT INTO message VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_CONTENT = "INSERT INTO content (size, data, file) VALUES (?,?,?)"
_ENTRY = "INSERT INTO entry VALUES (?,?,?,?,?,?,?,0,1)"
_RECIPIENT = "INSERT INTO recipient VALUES (?,?,?,?,?,?,?,?,?,?,?)"
_EVENT = "INSERT INTO event VALUES (?,?,?,?,?)"
_COUNT = "INSERT INTO counter VALUES (?,?) ON CONFLICT DO UPDATE SET value = value + excluded.value"
_CLAIM_FACTS = (
    "SELECT m.id, m.reverse_path, m.source, m.trusted, m.received_us, m.expires_us, m.size,"
    " m.account, m.submission_id, m.envid, m.ret, m.smtputf8, m.eight_bit, m.client,"
    " m.message_id, m.subject, e.number, e.epoch, e.next_hop, e.attempts, e.content_id, c.size"
    " FROM entry e JOIN message m ON m.id = e.message_id"
    " LEFT JOIN content c ON c.id = e.content_id"
)
ACCEPTED_COUNTER = "accepted"


def accept(
    cursor: apsw.Cursor,
    messages: Sequence[NewMessage],
    files: Sequence[Sequence[str]],
    *,
    submission_key: str,
    submission_expires_us: int,
    claim: bool,
) -> Accepted:
    """Write messages[0] and the reports that follow it.

    `files[i][j]` names the file of messages[i].contents[j], "" where it goes inline.
    """
    first = messages[0]
    if submission_key:
        known = fetch_one(
            cursor, "SELECT message_id FROM submission WHERE key = ?", (submission_key,)
        )
        if known is not None:
            return Accepted(known[0], repeated=True)
        cursor.execute(
            "INSERT INTO submission VALUES (?,?,?)",
            (submission_key, first.id, submission_expires_us),
        )
    claims: list[Claim] = []
    for message, names in zip(messages, files, strict=True):
        claims += _insert_message(cursor, message, names, claim=claim)
    return Accepted(first.id, tuple(claims))


def settle(
    cursor: apsw.Cursor,
    settlement: Settlement,
    files: Sequence[Sequence[str]],
    *,
    claim_reports: bool,
) -> tuple[bool, tuple[Claim, ...], str]:
    """Record outcomes; the third value is the content file that nobody needs any more, or ""."""
    claim = settlement.claim
    key = (claim.message.id, claim.entry_id)
    row = fetch_one(
        cursor,
        "SELECT epoch FROM entry WHERE message_id = ? AND number = ? AND state <> 'final'",
        key,
    )
    if row is None or row[0] != claim.epoch:
        return False, (), ""
    changed: list[tuple[str, str, str, str, int, int]] = []
    counts: dict[str, int] = {}
    for number, outcome in settlement.outcomes.items():
        state = _state_after(outcome)
        if state is not None:
            evidence = outcome.evidence
            changed.append((state, evidence.status, evidence.reply, *key, number))
    for number, outcome in settlement.expired.items():
        evidence = outcome.evidence
        changed.append((State.EXPIRED, evidence.status, evidence.reply, *key, number))
    for state_text, *_ in changed:
        check_transition(State.QUEUED, State(state_text))
        if state_text in FINAL:
            counts[state_text] = counts.get(state_text, 0) + 1
    cursor.executemany(
        "UPDATE recipient SET state = ?, status = ?, reply = ?"
        " WHERE message_id = ? AND entry = ? AND number = ?",
        changed,
    )
    finished = sum(counts.values()) == len(claim.recipients)
    _add_counts(cursor, counts)
    unneeded = _leave(cursor, settlement, finished=finished)
    append_events(cursor, claim.message.id, settlement.events)
    claims: list[Claim] = []
    for message, names in zip(settlement.reports, files, strict=True):
        claims += _insert_message(cursor, message, names, claim=claim_reports)
    return True, tuple(claims), unneeded


def claim_due(cursor: apsw.Cursor, now_us: int, limit: int) -> tuple[Claim, ...]:
    """Claim what is due, oldest first."""
    due = fetch(
        cursor,
        "SELECT message_id, number FROM entry WHERE state <> 'final' AND claimed = 0"
        " AND due_us <= ? ORDER BY due_us LIMIT ?",
        (now_us, limit),
    )
    cursor.executemany(
        "UPDATE entry SET claimed = 1, epoch = epoch + 1 WHERE message_id = ? AND number = ?", due
    )
    return tuple(_read_claim(cursor, message_id, number) for message_id, number in due)


def release(cursor: apsw.Cursor, claims: Iterable[Claim], now_us: int) -> None:
    """Make untried claims due at once, unless somebody else has them by now."""
    cursor.executemany(
        "UPDATE entry SET claimed = 0, epoch = epoch + 1, due_us = ?"
        " WHERE message_id = ? AND number = ? AND epoch = ? AND state <> 'final'",
        [(now_us, claim.message.id, claim.entry_id, claim.epoch) for claim in claims],
    )


def release_all(cursor: apsw.Cursor, now_us: int) -> int:
    """After a crash: what the dead owner had claimed is indeterminate, visibly, and due at once."""
    rows = fetch(
        cursor,
        "SELECT message_id, number, attempts FROM entry WHERE state <> 'final' AND claimed = 1",
    )
    for message_id, number, attempts in rows:
        detail = {
            "entry": number,
            "attempt": attempts + 1,
            "outcome": "indeterminate",
            "reply": "the relay was stopped before this attempt was recorded",
        }
        append_events(cursor, message_id, [Event(Step.DELIVERY, now_us, detail)])
    cursor.execute(
        "UPDATE entry SET claimed = 0, epoch = epoch + 1, due_us = ?"
        " WHERE state <> 'final' AND claimed = 1",
        (now_us,),
    )
    return len(rows)


def append_events(cursor: apsw.Cursor, message_id: str, events: Sequence[Event]) -> None:
    """Put events behind those that the message has."""
    if not events:
        return
    last = fetch_one(cursor, "SELECT max(sequence) FROM event WHERE message_id = ?", (message_id,))[
        0
    ]
    _insert_events(cursor, message_id, events, first=(last or 0) + 1)


def _insert_events(
    cursor: apsw.Cursor, message_id: str, events: Sequence[Event], *, first: int
) -> None:
    cursor.executemany(
        _EVENT,
        [
            (message_id, sequence, int(event.step), event.at_us, _json(event.detail))
            for sequence, event in enumerate(events, first)
        ],
    )


def _insert_message(
    cursor: apsw.Cursor, message: NewMessage, files: Sequence[str], *, claim: bool
) -> list[Claim]:
    facts = facts_of(message)
    cursor.execute(_MESSAGE, _message_row(facts))
    used = {entry.content for entry in message.entries}
    content_ids: dict[int, int] = {}
    for index, content in enumerate(message.contents):
        if index in used:
            data, file = (None, files[index]) if files[index] else (content, None)
            cursor.execute(_CONTENT, (len(content), data, file))
            content_ids[index] = cursor.connection.last_insert_rowid()
    rows: list[tuple[Any, ...]] = []
    counts = {ACCEPTED_COUNTER: len(message.final_recipients)}
    numbers = _numbers(message)
    for recipient in message.final_recipients:
        number = recipient.position or next(numbers)
        rows.append(_recipient_row(message.id, recipient, entry=0, number=number))
        counts[recipient.state] = counts.get(recipient.state, 0) + 1
    claims: list[Claim] = []
    for position, entry in enumerate(message.entries, 1):
        claimed = claim and entry.next_hop.kind is not HopKind.CAPTURE
        content_id = content_ids[entry.content]
        _insert_entry(
            cursor, message, entry, number=position, content_id=content_id, claimed=claimed
        )
        counts[ACCEPTED_COUNTER] += len(entry.recipients)
        people: list[ClaimedRecipient] = []
        for recipient in entry.recipients:
            number = recipient.position or next(numbers)
            if entry.next_hop.kind is HopKind.CAPTURE:
                recipient = replace(recipient, state=State.CAPTURED)  # noqa: PLW2901
            rows.append(_recipient_row(message.id, recipient, entry=position, number=number))
            people.append(_claimed_recipient(number, recipient))
        if claimed:
            content = message.contents[entry.content]
            keep = None if files[entry.content] else content
            claims.append(
                Claim(
                    entry_id=position, epoch=1, message=facts, next_hop=entry.next_hop,
                    recipients=tuple(people), attempts=0, content_id=content_id,
                    content_size=len(content), content=keep,
                )
            )  # fmt: skip
    cursor.executemany(_RECIPIENT, rows)
    _insert_events(cursor, message.id, message.events, first=1)
    _add_counts(cursor, counts)
    return claims


def _numbers(message: NewMessage) -> Iterator[int]:
    """Numbers for recipients without a position, behind the last one that has one."""
    entries = (entry.recipients for entry in message.entries)
    everybody = chain(message.final_recipients, *entries)
    return count(1 + max((one.position for one in everybody), default=0))


def _insert_entry(
    cursor: apsw.Cursor,
    message: NewMessage,
    entry: NewEntry,
    *,
    number: int,
    content_id: int,
    claimed: bool,
) -> None:
    captured = entry.next_hop.kind is HopKind.CAPTURE
    state = State.CAPTURED if captured else State.QUEUED
    due_us = None if captured else message.received_us
    row = (message.id, number, str(entry.next_hop), content_id, state, int(claimed), due_us)
    cursor.execute(_ENTRY, row)


def _leave(cursor: apsw.Cursor, settlement: Settlement, *, finished: bool) -> str:
    """Put the entry back, or end it; return the file of a content that is no longer needed."""
    claim = settlement.claim
    key = (claim.message.id, claim.entry_id)
    attempts = claim.attempts + int(settlement.counts_as_attempt)
    if not finished:
        state = State.DEFERRED if attempts else State.QUEUED
        cursor.execute(
            "UPDATE entry SET state = ?, claimed = 0, epoch = epoch + 1, due_us = ?, attempts = ?"
            " WHERE message_id = ? AND number = ?",
            (state, settlement.due_us, attempts, *key),
        )
        return ""
    cursor.execute(
        "UPDATE entry SET state = 'final', claimed = 0, due_us = NULL, attempts = ?"
        " WHERE message_id = ? AND number = ?",
        (attempts, *key),
    )
    shared = fetch_one(
        cursor,
        "SELECT 1 FROM entry WHERE message_id = ? AND content_id = ? AND state <> 'final' LIMIT 1",
        (claim.message.id, claim.content_id),
    )
    if shared is not None:
        return ""
    removed = fetch_one(
        cursor, "DELETE FROM content WHERE id = ? RETURNING file", (claim.content_id,)
    )
    return (removed[0] or "") if removed else ""


def _read_claim(cursor: apsw.Cursor, message_id: str, number: int) -> Claim:
    row = fetch_one(
        cursor, _CLAIM_FACTS + " WHERE e.message_id = ? AND e.number = ?", (message_id, number)
    )
    assert row is not None
    people = fetch(
        cursor,
        "SELECT number, address, notify, orcpt, added_by, status, reply FROM recipient"
        " WHERE message_id = ? AND entry = ? AND state IN ('queued', 'deferred') ORDER BY number",
        (message_id, number),
    )
    return Claim(
        entry_id=number, epoch=row[17], message=read_facts(row), next_hop=NextHop.parse(row[18]),
        recipients=tuple(
            ClaimedRecipient(one[0], one[1], parse_notify(one[2]), *one[3:]) for one in people
        ),
        attempts=row[19], content_id=row[20], content_size=row[21] or 0,
    )  # fmt: skip


def read_facts(row: Sequence[Any]) -> MessageFacts:
    """The first 16 columns of a message row."""
    return MessageFacts(
        id=row[0], reverse_path=row[1], source=Source(row[2]), trusted=bool(row[3]),
        received_us=row[4], expires_us=row[5], size=row[6], account=row[7],
        submission_id=row[8], envid=row[9], ret=row[10], smtputf8=bool(row[11]),
        eight_bit=bool(row[12]), client=row[13], message_id=row[14], subject=row[15],
    )  # fmt: skip


def facts_of(message: NewMessage) -> MessageFacts:
    """What the spool keeps of a message besides its contents."""
    return MessageFacts(
        id=message.id, reverse_path=message.reverse_path, source=message.source,
        trusted=message.trusted, received_us=message.received_us, expires_us=message.expires_us,
        size=len(message.contents[0]), account=message.account,
        submission_id=message.submission_id, envid=message.envid, ret=message.ret,
        smtputf8=message.smtputf8, eight_bit=message.eight_bit, client=message.client,
        message_id=message.message_id, subject=message.subject,
    )  # fmt: skip


def _message_row(facts: MessageFacts) -> tuple[Any, ...]:
    return (
        facts.id, facts.reverse_path, facts.source, int(facts.trusted), facts.received_us,
        facts.expires_us, facts.size, facts.account, facts.submission_id, facts.envid, facts.ret,
        int(facts.smtputf8), int(facts.eight_bit), facts.client, facts.message_id, facts.subject,
    )  # fmt: skip


def _recipient_row(
    message_id: str, recipient: NewRecipient, *, entry: int, number: int
) -> tuple[Any, ...]:
    return (
        message_id, entry, number, recipient.address, ",".join(sorted(recipient.notify)),
        recipient.orcpt, recipient.state, recipient.status, recipient.reply, recipient.added_by,
        "\n".join(recipient.successors),
    )  # fmt: skip


def _claimed_recipient(number: int, recipient: NewRecipient) -> ClaimedRecipient:
    return ClaimedRecipient(
        number, recipient.address, recipient.notify, recipient.orcpt, recipient.added_by
    )


def parse_notify(text: str) -> frozenset[Notify]:
    """Read what _recipient_row wrote."""
    return frozenset(Notify(word) for word in text.split(",")) if text else frozenset()


def _state_after(outcome: Outcome) -> State | None:
    match outcome:
        case Delivered():
            return State.DELIVERED
        case Relayed():
            return State.RELAYED
        case Failed():
            return State.FAILED
        case Deferred() | Indeterminate():
            return State.DEFERRED
        case _:
            assert_never(outcome)


def _add_counts(cursor: apsw.Cursor, counts: dict[str, int]) -> None:
    cursor.executemany(_COUNT, [(name, value) for name, value in counts.items() if value])


def _json(detail: Any) -> str:
    return msgspec.json.encode(detail).decode()
