"""What the result of a claim changes in the rows, the same for every engine.

A DSN or MDN from outside adds events to the message that it is about, in the transaction that
delivers the report: a crash neither loses nor repeats them. The original is found by its submission
id, which Relay sends as ENVID, by its Message-ID, or by the ENVID of a trusted client (decoded; its
case counts: RFC 3464 2.2.1). A host that writes a Message-ID of its own, as Amazon SES does, has
said it in its 250: then only the recipients that it accepted count. The message must have one of
the reported recipients, and the report must have been delivered to its reverse-path. Its states and
counters do not change.

A feedback report (RFC 5965) adds one event in the same way, and nothing else follows from it: every
recipient knows the Message-ID, by which the original is found.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any

import msgspec
from msgspec import Struct

from relay.base.message import outcome as outcomes
from relay.base.message.address import own_mailbox
from relay.base.message.envelope import MessageFacts
from relay.base.message.lifecycle import FINAL, RecipientState, check_transition
from relay.base.message.nexthop import HopKind
from relay.base.message.receipt import ReceiptRequest
from relay.formats.read_report import COMPLAINTS, RemoteClaim, RemoteReport
from relay.store.journeys import details
from relay.store.journeys.details import AttemptDetail, ClaimDetail, ReportSource, read_known
from relay.store.journeys.events import Event, Step
from relay.store.spool.shared.accepted import CapturedMail
from relay.store.spool.shared.columns import IS_FEEDBACK, LIVE_STATES, PAY_REPORTS, json_text
from relay.store.spool.shared.decisions import ChangeResult
from relay.store.spool.shared.entry_notes import changed_extra, command_event, note_extra, note_hold
from relay.store.spool.shared.hold_counters import count_holds
from relay.store.spool.shared.receipts import add_receipts
from relay.store.spool.shared.suppression import Heard, note_dead
from relay.store.spool.shared.tables import OpenTransaction, StoredContents, Tables
from relay.store.spool.types import (
    NEVER_US,
    Claim,
    ClaimResult,
    EntryExtra,
    EntrySchedule,
    OrderedError,
    PriorityLevel,
    readable_extra,
)

_LEAVE = (
    "UPDATE entry SET state = ?, attempts = ?, claimed = 0, epoch = epoch + ?, due_us = ?,"
    " retry_us = CASE WHEN state = 'held' THEN retry_us ELSE CAST(? AS BIGINT) END, lane = ?,"
    " cause = ?, cause_attempts = ?,"
    # the warning may have been reported meanwhile
    " warn_us = CASE WHEN warn_us IS NULL THEN NULL ELSE CAST(? AS BIGINT) END"
    " WHERE message_id = ? AND number = ? AND epoch = ? AND state <> 'final'"
)
# An order that waits for nothing else is carried out by the next claim: its entry stays due.
_REQUEUE = _LEAVE.replace(
    " due_us = ?,",
    " due_us = CASE WHEN extra LIKE '%\"order\":{%' AND extra NOT LIKE '%\"sent_us\":%'"
    " THEN due_us ELSE CAST(? AS BIGINT) END,",
)
RECORD_ALL = (
    "UPDATE recipient SET state = ?, status = ?, reply = ?, remote_id = ?"
    f" WHERE state IN {LIVE_STATES} AND message_id = ? AND entry = ?"
)
RECORD = f"{RECORD_ALL} AND number = ?"
_OWE = "UPDATE recipient SET owed_report = ? WHERE message_id = ? AND entry = ? AND number = ?"
_END_WARNING = "UPDATE entry SET warn_us = NULL WHERE message_id = ? AND warn_us IS NOT NULL"
_STATES: Mapping[type[outcomes.Outcome], RecipientState] = {  # after an attempt
    outcomes.Delivered: RecipientState.DELIVERED,
    outcomes.Relayed: RecipientState.RELAYED,
    outcomes.Captured: RecipientState.CAPTURED,
    outcomes.Failed: RecipientState.FAILED,
    outcomes.Deferred: RecipientState.DEFERRED,
    outcomes.Indeterminate: RecipientState.DEFERRED,
}
_CLAIMS_MAX = 20  # of a recipient; the rest are counted in the last one
_COMPLAINTS_MAX = 20  # of a message, beside those that name recipients of whom no other is
_OTHER_FEEDBACK_MAX = 10  # of these, reports that are no complaints: they leave room for some
_ROWS_MAX = 20_000  # recipients of all messages with one Message-ID, or one ENVID
# The condition is a range with one name in it, so that only the index on the name has the order.
# With `=`, PostgreSQL reads all messages for a name that it estimates to be frequent.
_RECIPIENTS = (
    "SELECT m.id, m.reverse_path, m.envid, m.message_id, m.account, m.trusted, r.address, r.orcpt"
    " FROM message m"
    " JOIN recipient r ON r.message_id = m.id"
    " WHERE {0} >= ? AND {0} <= ? AND {0} <> ''{1} AND r.added_by = ''"
    " ORDER BY {0} DESC, m.id DESC LIMIT ?"
)
_OF_REMOTE_ID = _RECIPIENTS.format("r.remote_id", "")
_OF_SUBMISSION = _RECIPIENTS.format("m.submission_id", "")
_OF_MESSAGE_ID = _RECIPIENTS.format("m.message_id", "")
_OF_ENVID = _RECIPIENTS.format("m.envid", " AND m.submission_id = '' AND m.trusted = 1")
_CLAIMS = (
    "SELECT sequence, detail FROM event WHERE message_id = ? AND step = ?"
    ' AND detail LIKE \'%"by":"remote"%\' ORDER BY sequence'
)
_FEEDBACK = f"SELECT detail FROM event WHERE message_id = ? AND {IS_FEEDBACK}"
_ROUTED = "SELECT detail FROM event WHERE message_id = ? AND step = ?"
_DETAIL = "SELECT detail FROM event WHERE message_id = ? AND sequence = ?"
_EXTRA = "SELECT extra FROM entry WHERE message_id = ? AND number = ?"
_OF_EPOCH = f"{_EXTRA} AND epoch = ?"
_NOTE = "UPDATE entry SET extra = ? WHERE message_id = ? AND number = ? AND epoch = ?"
_EARLIER_MESSAGE = "SELECT 1 FROM message WHERE message_id = ? AND message_id <> '' AND id < ?"
# A later entry may have sent first; while it lives, it has recorded that.
_OTHER_ENTRY = (
    "SELECT 1 FROM recipient r LEFT JOIN entry e ON e.message_id = r.message_id"
    " AND e.number = r.entry WHERE r.message_id = ? AND r.entry > 0 AND r.entry <> ? AND {} LIKE ?"
    " AND (r.entry < ? OR coalesce(e.state, 'final') = 'final'"
    " OR e.extra LIKE '%\"requests_before\"%')"
)
_SET_DETAIL = "UPDATE event SET detail = ? WHERE message_id = ? AND sequence = ?"


# "250 Ok ID", "queued as ID", or "<ID>", with an id that no other message has by chance
_REMOTE_ID = re.compile(r"(?:\bok:?\s|queued as\s|<)\s?([^\s<>]{16,200})", re.IGNORECASE)


class ResultRows(Struct, frozen=True):
    """The changes of a result. They hold only where the entry still has the epoch of the claim."""

    # the recipients: state, status, reply, remote id; message, entry and number
    recipients: Sequence[tuple[RecipientState, str, str, str, str, int, int]]
    final: Sequence[RecipientState]  # of those that are final now
    is_finished: bool  # all recipients are final: the entry ends, its content if no entry needs it
    state: RecipientState  # of an entry that goes on
    attempts: int  # of the entry
    waiting: EntrySchedule | None  # of an entry that goes on
    # by the id of the copy in the mailbox: the number of the recipient and its read receipt
    receipts: Mapping[str, tuple[int, ReceiptRequest]]
    held: str = ""  # why the relay holds the entry from now on


class NewResult(Struct, frozen=True):
    """The result of a claim that is to be recorded."""

    claim_result: ClaimResult  # what becomes of the recipients
    stored: StoredContents  # of its reports
    captured: CapturedMail  # what happens to it
    claim_reports: bool  # whether its reports are claimed
    now_us: int  # queue time, or NEVER_US if no read receipts are to be recorded
    # carries out the order that waited for this result: QueueAdmin.order_of
    order: Callable[[OpenTransaction], ChangeResult | None] | None = None
    may_be_ordered: bool = False  # an order may wait for this result
    heard: Heard | None = None  # for the list of dead addresses


class Recorded(Struct, frozen=True):
    """What follows a result: claims of its reports, and a content file to be removed, or "".
    `owes`: it has added read receipts that are owed.
    """

    claims: tuple[Claim, ...] = ()
    unneeded: str = ""
    owes: bool = False
    ordered: ChangeResult | None = None  # what an order has changed
    complaint: str = ""  # the type of one that was joined
    suppressed: Mapping[str, str] = {}  # addresses that are now on the list, with the reply


def result_rows(new: NewResult) -> ResultRows:
    """Return what to write. Raises ValueError for a transition that is not allowed."""
    claim_result, takes_receipts = new.claim_result, new.now_us != NEVER_US
    claim, key = claim_result.claim, claim_result.claim.key
    # of a held entry an order had it asked what has become of it
    stays_held = claim_result.held or claim.state is RecipientState.HELD
    changed: list[tuple[RecipientState, str, str, str, str, int, int]] = []
    receipts: dict[str, tuple[int, ReceiptRequest]] = {}
    for number, outcome in claim_result.outcomes.items():
        state = _STATES[type(outcome)]
        if stays_held and state is RecipientState.DEFERRED:
            state = RecipientState.HELD
        evidence = outcome.evidence
        remote_id = _remote_id(evidence.reply) if state is RecipientState.RELAYED else ""
        changed.append((state, evidence.status, evidence.reply, remote_id, *key, number))
        if takes_receipts and evidence.receipt is not None:
            receipts.setdefault(evidence.graph_id, (number, evidence.receipt))
    for number, outcome in claim_result.expired.items():
        evidence = outcome.evidence
        state = RecipientState.EXPIRED
        changed.append((state, evidence.status, evidence.reply, "", *key, number))
    for state in {row[0] for row in changed}:  # both live states allow the same
        check_transition(RecipientState.QUEUED, state)
    final = [state for state, *_ in changed if state in FINAL]
    is_finished = len(final) == len(claim.recipients) and not claim_result.goes_on
    held = ""
    if claim_result.held and not is_finished:
        details = (event.detail for event in claim_result.events)
        holds = [detail for detail in details if isinstance(detail, AttemptDetail) and detail.held]
        held = f"relay: {holds[0].held}" if holds else "relay"
    state, waiting = _waiting(claim_result, new.captured)
    return ResultRows(
        changed,
        final,
        is_finished,
        state,
        attempts=claim.attempts + int(claim_result.counts_as_attempt),
        waiting=waiting,
        receipts=receipts,
        held=held,
    )


def _waiting(
    claim_result: ClaimResult, captured: CapturedMail
) -> tuple[RecipientState, EntrySchedule | None]:
    """Return the state of an entry that goes on, and when it is tried next."""
    claim, waiting = claim_result.claim, claim_result.waiting
    if outcomes.Captured in map(type, claim_result.outcomes.values()):
        due_us = captured.due_us(claim.message.received_us)
        return RecipientState.CAPTURED, EntrySchedule(None, due_us, claim.priority)
    if claim_result.held or claim.state is RecipientState.HELD:
        return RecipientState.HELD, waiting
    if not claim_result.counts_as_attempt:
        return claim.state, waiting
    return RecipientState.DEFERRED, waiting


def leave_entry(transaction: OpenTransaction, claim_result: ClaimResult, rows: ResultRows) -> bool:
    """Requeue the entry of a claim that does not go on, or end it. If the epoch of the claim has
    ended, do nothing: return False.
    """
    values = (
        "final" if rows.is_finished else rows.state,
        rows.attempts,
        int(not rows.is_finished),
        *waiting_columns(None if rows.is_finished else rows.waiting),
        *claim_result.claim.key,
        claim_result.claim.epoch,
    )
    return transaction.execute(_LEAVE if rows.is_finished else _REQUEUE, values) == 1


def record_effects(
    transaction: OpenTransaction, new: NewResult, rows: ResultRows, *, store: int
) -> tuple[str, Mapping[str, str]]:
    """Record counts and events. Most mail has nothing else: reports and read receipts that are
    owed, a hold, attempts without an answer, what a report from outside says. `store` is
    Claim.store. Return Recorded.complaint and Recorded.suppressed.
    """
    claim_result, claim = new.claim_result, new.claim_result.claim
    transaction.counts.update(rows.final)
    if rows.is_finished and claim.is_held_by_rule:  # its hold has expired
        count_holds(transaction, {claim.extra.rule: -1})
    transaction.append_events(claim.message.id, claim_result.events)
    record_owed(transaction, claim_result)
    if rows.held:
        note_hold(transaction, claim.key, rows.held, since_us=claim_result.at_us)
    if claim_result.unanswered:
        note_extra(transaction, claim.key, unanswered=claim_result.unanswered)
    if claim_result.fallback_us != claim.extra.fallback_us:
        note_extra(transaction, claim.key, fallback_us=claim_result.fallback_us)
    if new.may_be_ordered and rows.is_finished:
        _end_order(transaction, claim_result, rows)
    if claim.next_hop.kind is HopKind.GRAPH:
        if not rows.is_finished:
            _drop_ended_requests(transaction, claim, rows)
        elif drafts := claim.extra.left_in_drafts(in_doubt=bool(claim_result.expired)):
            at_us, number = claim_result.at_us, claim.entry_id
            left = command_event("leave drafts", number, drafts=drafts, at_us=at_us)
            transaction.append_events(claim.message.id, [left])
    add_receipts(transaction, claim.message.id, rows.receipts, now_us=new.now_us, store=store)
    suppressed: Mapping[str, str] = {}
    if new.heard is not None:
        transaction.forget_dead(new.heard.alive)
        suppressed = note_dead(transaction, new.heard)
    if claim_result.remote_report is not None:
        report, to = claim_result.remote_report
        if report.feedback:
            return _join_feedback(transaction, claim_result, report, to=to), suppressed
        join_report(transaction, claim_result, report, to=to)
    return "", suppressed


def _end_order(transaction: OpenTransaction, claim_result: ClaimResult, rows: ResultRows) -> None:
    """Record that the order on an entry that has ended came too late."""
    claim = claim_result.claim
    row = transaction.fetch_one(_EXTRA, claim.key)
    extra = readable_extra(row[0]) if row is not None else None
    if extra is None or extra.order is None or extra.order.restarts:
        return
    is_sent = not {RecipientState.DELIVERED, RecipientState.RELAYED}.isdisjoint(rows.final)
    operation = f"{extra.order.operation} too late: {'sent' if is_sent else 'failed'}"
    detail = details.CommandDetail(
        operation=operation, entries=[claim.entry_id], who=extra.order.who
    )
    transaction.append_events(claim.message.id, [Event(claim_result.at_us, detail)])


def note_requests(transaction: OpenTransaction, claim: Claim, noted: EntryExtra) -> bool:
    """Record what `noted` says of requests of a claim to Microsoft Graph. Return False, and record
    nothing, if the epoch of the claim has ended. Raises OrderedError where a /send would follow.
    """
    owned = (*claim.key, claim.epoch)
    if (row := transaction.fetch_one(_OF_EPOCH, owned)) is None:
        return False
    known = readable_extra(row[0])
    if known is not None and known.order is not None:
        new = [request for request in noted.requests if request not in known.requests]
        if any(request.sent_us and not request.lost_us for request in new):
            raise OrderedError("a queue command waits for the end of the attempt")
    text = changed_extra(
        row[0],
        requests=noted.requests,
        requests_before=noted.requests_before,
        lost_posts=noted.lost_posts,
        uploads=noted.uploads,
    )
    return transaction.execute(_NOTE, (text, *owned)) > 0  # another node may have raised the epoch


def _drop_ended_requests(transaction: OpenTransaction, claim: Claim, rows: ResultRows) -> None:
    """Drop the requests to Microsoft Graph whose recipients are all final."""
    row = transaction.fetch_one(_EXTRA, claim.key)
    if row is None or (extra := readable_extra(row[0])) is None:
        return
    final = {number for state, *_, number in rows.recipients if state in FINAL}
    live = {recipient.id for recipient in claim.recipients} - final
    kept = tuple(request for request in extra.requests if live.intersection(request.recipients))
    if kept != extra.requests:
        note_extra(transaction, claim.key, requests=kept)


def is_first_with(tables: Tables, claim: Claim, message_id: str) -> bool:
    """Return whether this entry is the first that sends this Message-ID by Microsoft Graph: no
    earlier message has it, no earlier entry of this message leaves by Microsoft Graph, and no later
    entry has left.
    """
    queue_id, number = claim.key
    values = (queue_id, number, f"{HopKind.GRAPH}:%", number)
    return (
        tables.fetch_one(_EARLIER_MESSAGE, (message_id, queue_id)) is None
        and tables.fetch_one(_OTHER_ENTRY.format(tables.next_hop), values) is None
    )


def record_owed(transaction: OpenTransaction, claim_result: ClaimResult) -> None:
    """Record which reports are owed, and which are written. Most mail needs neither."""
    key = claim_result.claim.key
    if claim_result.owed:
        owed = {number: claim_result.outcomes[number].evidence for number in claim_result.owed}
        rows = [
            (f"{claim_result.at_us} {evidence.host}", *key, number)
            for number, evidence in owed.items()
        ]
        transaction.execute_each(_OWE, rows)
    if claim_result.pays:
        transaction.execute(PAY_REPORTS, key)
    if claim_result.ends_warning:
        transaction.execute(_END_WARNING, key[:1])


def waiting_columns(waiting: EntrySchedule | None) -> tuple[Any, ...]:
    """Return due_us, retry_us, lane, cause, cause_attempts and warn_us. Without a schedule, the
    entry has ended.
    """
    if waiting is None:
        return None, None, PriorityLevel.NORMAL, "", 0, None
    return (
        waiting.due_us,
        waiting.retry_us,
        waiting.level,
        waiting.cause,
        waiting.cause_attempts,
        waiting.warn_us,
    )


def join_report(
    transaction: OpenTransaction,
    claim_result: ClaimResult,
    report: RemoteReport,
    *,
    to: Sequence[str],
) -> None:
    """Append what a report says to the journey of the original message, if it is in this spool.

    When a recipient has _CLAIMS_MAX of these events, further ones are only counted.
    """
    carrier = claim_result.claim.message
    original = _find(transaction, report, set(map(own_mailbox, to)))
    if original is None:
        return
    message_id, claims = original
    kept = _kept(transaction, message_id)
    source = ReportSource(_address(carrier.client), report.reporter)
    events = []
    for address, claim in claims.items():
        known = kept.get(address, [])
        if any(report_id == carrier.id for _, report_id in known):
            continue
        if len(known) >= _CLAIMS_MAX:
            _count_one_more(transaction, message_id, known[-1][0])
            continue
        detail = ClaimDetail(
            kind=claim.kind,
            recipients=[address],
            status=claim.status,
            reply=claim.reply,
            host=claim.host,
            source=source,
            received=carrier.id,
        )
        events.append(Event(claim_result.at_us, detail))
    transaction.append_events(message_id, events)


def _find(
    tables: Tables, report: RemoteReport, owners: set[str]
) -> tuple[str, dict[str, RemoteClaim]] | None:
    """Return the original message, and what is said of its recipients, by address in its envelope.

    Of several messages, one with the Message-ID goes first, then the newest with such a recipient.
    """
    for message_id, rows in groupby(_candidates(tables, report), lambda row: row[0]):
        recipients = list(rows)
        reverse_path = recipients[0][1]
        if not reverse_path or own_mailbox(reverse_path) not in owners:
            continue
        names = _addresses(recipients)
        claims: dict[str, RemoteClaim] = {}
        for claim in report.claims:
            matches = [name for name in map(own_mailbox, _names(claim)) if name in names]
            if matches:
                claims.setdefault(names[matches[0]], claim)
        if claims:
            return message_id, claims
    return None


def _addresses(recipients: Sequence[Any]) -> dict[str, str]:
    """Return the addresses of an envelope by the names that reports may have for them."""
    names: dict[str, str] = {}
    for *_, address, orcpt in recipients:
        names.setdefault(own_mailbox(orcpt.partition(";")[2] or address), address)
    for *_, address, _ in recipients:
        names.setdefault(own_mailbox(address), address)
    return names


def _join_feedback(
    transaction: OpenTransaction,
    claim_result: ClaimResult,
    report: RemoteReport,
    *,
    to: Sequence[str],
) -> str:
    """Append a feedback report to the journey of its original: of the messages with the Message-ID
    that those in `to` sent (without `to`, anybody), the newest to a recipient that the report
    names, else the newest. A copy that a stranger sent in does not count beside mail of this
    relay's users. Return the type of a complaint.
    """
    carrier = claim_result.claim.message
    rows = _recipients(transaction, _OF_MESSAGE_ID, report.message_id)
    messages = [list(group) for _, group in groupby(rows, lambda row: row[0])]
    messages = [message for message in messages if message[0][5]] or messages
    if to:
        messages = [message for message in messages if _is_of(message[0], to)]
    named = [name for claim in report.claims for name in map(own_mailbox, _names(claim))]
    to_named = (message for message in messages if not _addresses(message).keys().isdisjoint(named))
    original = next(chain(to_named, messages), None)
    if original is None:
        return ""
    message_id, names = original[0][0], _addresses(original)
    kept = transaction.fetch(_FEEDBACK, (message_id,))
    known = [read_known(details.ComplaintDetail, msgspec.json.decode(text)) for (text,) in kept]
    recipients = [*{names[name]: None for name in named if name in names}]
    is_counted = report.feedback in COMPLAINTS
    complained = {to for row in known if row.type in COMPLAINTS for to in row.recipients}
    is_more = not is_counted or complained.issuperset(recipients)
    is_full = is_more and len(known) >= (_COMPLAINTS_MAX if is_counted else _OTHER_FEEDBACK_MAX)
    if is_full or any(row.received == carrier.id for row in known):
        return ""
    detail = details.ComplaintDetail(
        type=report.feedback,
        verdict=_verdict(transaction, carrier),
        source=ReportSource(_address(carrier.client), report.reporter),
        recipients=recipients,
        received=carrier.id,
    )
    transaction.append_events(message_id, [Event(claim_result.at_us, detail)])
    return report.feedback if is_counted else ""


def _is_of(row: Any, mailboxes: Sequence[str]) -> bool:
    """Return whether one of these mailboxes sent a message, by a row of _RECIPIENTS."""
    _, reverse_path, _, _, account, is_trusted, *_ = row
    return bool(is_trusted) and not {own_mailbox(reverse_path), account}.isdisjoint(mailboxes)


def _verdict(tables: Tables, carrier: MessageFacts) -> str:
    """Return what the checks of senders found of a report: pass, fail or none."""
    (text,) = tables.fetch_one(_ROUTED, (carrier.id, int(Step.POLICY_AND_ROUTING))) or ("{}",)
    checks = read_known(details.RoutedDetail, msgspec.json.decode(text)).checks or {}
    dmarc, spf = [(checks.get(name) or {}).get("result") for name in ("dmarc", "spf")]
    otherwise = "pass" if carrier.extra.verified else "fail" if spf == "fail" else "none"
    return str(dmarc) if dmarc in ("pass", "fail") else otherwise


def _candidates(tables: Tables, report: RemoteReport) -> list[Any]:
    """Return the recipients of the messages that the report may be about, grouped by message.

    If the ENVID is a submission id, the report is about this submission. A message with another
    ENVID or Message-ID than the report is left out.
    """
    envid, message_id = report.envelope_id, report.message_id
    if rows := _recipients(tables, _OF_SUBMISSION, envid):
        return rows
    rows = _recipients(tables, _OF_MESSAGE_ID, message_id) + _recipients(tables, _OF_ENVID, envid)
    if rows := [row for row in rows if _agree(row[2], envid) and _agree(row[3], message_id)]:
        return rows
    whole = message_id.strip("<>")
    names = dict.fromkeys((whole, whole.rpartition("@")[0]))
    rows = [row for name in names for row in _recipients(tables, _OF_REMOTE_ID, name)]
    return [row for row in rows if _agree(row[2], envid)]


def _recipients(tables: Tables, sql: str, name: str) -> list[Any]:
    return tables.fetch(sql, (name, name, _ROWS_MAX)) if name else []


def _remote_id(reply: str) -> str:
    """Return the id in the reply to a final dot, if it is long enough for a Message-ID, else ""."""
    match = _REMOTE_ID.search(reply)
    return match[1] if match else ""


def _agree(known: str, reported: str) -> bool:
    return not known or not reported or known == reported


def _names(claim: RemoteClaim) -> Iterator[str]:
    """Yield the addresses of a reported recipient: original recipient, then final recipient."""
    yield from filter(None, (claim.original, claim.final))


def _kept(tables: Tables, message_id: str) -> dict[str, list[tuple[int, str]]]:
    """Return what is recorded of each recipient: the sequence of each claim, and its report."""
    claims: dict[str, list[tuple[int, str]]] = {}
    for sequence, text in tables.fetch(_CLAIMS, (message_id, int(Step.REPORT))):
        detail = read_known(ClaimDetail, msgspec.json.decode(text))
        for address in detail.recipients:
            claims.setdefault(address, []).append((sequence, detail.received))
    return claims


def _count_one_more(transaction: OpenTransaction, message_id: str, sequence: int) -> None:
    (text,) = transaction.fetch_one(_DETAIL, (message_id, sequence))
    detail = msgspec.json.decode(text, type=dict[str, Any])
    detail["more"] = read_known(ClaimDetail, detail).more + 1
    transaction.execute(_SET_DETAIL, (json_text(detail), message_id, sequence))


def _address(client: str) -> str:
    """Return the IP address in "name [address]", "" without one."""
    return client.rpartition("[")[2].removesuffix("]") if client.endswith("]") else ""
