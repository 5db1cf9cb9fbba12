"""Read what has happened to messages: the journey of one, its contents, and the events of all.

Nothing is changed here. Each answer is about one message or has a limit. The JSON of a journey is
described in docs/names.md, `/relay/v1/messages/{id}`.

Followers read the events of all messages in the order in which they were recorded: by sequence, not
by time. A transaction becomes visible as a whole, and later transactions have greater sequences. A
reader that has seen a sequence therefore never misses a smaller one.
"""

from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace

from relay.base.clock import rfc3339
from relay.base.message.content import Content
from relay.base.message.envelope import MessageFacts
from relay.base.message.lifecycle import AT_REST, FINAL, RecipientState, hold_text, message_state
from relay.base.message.nexthop import HopKind, text_and_route
from relay.store.journeys import details
from relay.store.journeys.document import Attempt, Journey, JourneyStep, Recipient, attempts_in
from relay.store.journeys.events import RecordedEvent, Step, journey_step
from relay.store.journeys.spool_history import CONTENTS_MAX, KeptMessage, SpoolEvents
from relay.store.spool.queue_commands import Operation, ShownTimes, command_reason
from relay.store.spool.shared.columns import MESSAGE_COLUMNS, NO_EVENTS, REMOVED_EVENTS, read_facts
from relay.store.spool.shared.tables import QueueEngine, Tables
from relay.store.spool.types import NO_EXTRA, SpoolError, end_us, readable_extra

_MESSAGE = f"SELECT {', '.join(MESSAGE_COLUMNS)} FROM message WHERE id = ?"
_JOURNEY_RECIPIENTS = (
    "SELECT r.number, r.address, r.state, r.status, r.reply, r.added_by, r.successors,"
    " {}, r.entry, e.retry_us, e.due_us, e.extra FROM recipient r LEFT JOIN entry e"
    " ON e.message_id = r.message_id AND e.number = r.entry"
    " WHERE r.message_id = ? ORDER BY r.number"
)
_JOURNEY_EVENTS = "SELECT step, at_us, detail FROM event WHERE message_id = ? ORDER BY sequence"
_COPIES_MAX = 20
_FIRST_RECIPIENTS = (  # that policy has not added
    "SELECT number, address, state FROM recipient WHERE message_id = ? AND added_by = ''"
    " ORDER BY state = 'delivered' DESC, number LIMIT ?"
)
_EVENTS = (
    "SELECT e.sequence, e.message_id, e.step, e.at_us, e.detail, m.submission_id, m.account"
    " FROM event e INDEXED BY event_sequence LEFT JOIN message m ON m.id = e.message_id"
    " WHERE e.sequence > ? AND e.sequence <= ?"
    " ORDER BY e.sequence LIMIT ?"
)
_ACCEPTED = (
    "SELECT e.sequence, e.message_id, e.at_us, m.account, m.submission_id"
    " FROM event e INDEXED BY event_sequence JOIN message m ON m.id = e.message_id"
    " WHERE e.sequence > ? AND e.sequence <= ? AND e.step = ?"
    " AND (m.submission_id = '' OR e.detail NOT LIKE ?)"
    " ORDER BY e.sequence LIMIT ?"
)
_CHARACTERS_MAX = 1 << 20  # of details in one answer; the event that exceeds it is the last
_RECIPIENTS = "SELECT number, entry, added_by <> '' FROM recipient WHERE message_id = ?"
_Recipients = tuple[frozenset[int], frozenset[int]]  # hidden numbers, and entries that are shown
_STATES = {str(state): state for state in AT_REST}  # by the outcome


def journey(tables: Tables, queue_id: str, times: ShownTimes, *, added: bool) -> Journey | None:
    """Return a message with its steps 5 to 7 and its recipients. Recipients that policy added are
    left out unless `added` is given. None: there is no such message.
    """
    with tables.snapshot():  # the states, and the attempts that led to them
        row = tables.fetch_one(_MESSAGE, (queue_id,))
        recipients = tables.fetch(_JOURNEY_RECIPIENTS.format(tables.next_hop), (queue_id,))
        events = tables.fetch(_JOURNEY_EVENTS, (queue_id,))
    if row is None:
        return None
    facts = read_facts(row)
    hidden = {recipient[0] for recipient in recipients if recipient[5]}
    entries = {recipient[8] for recipient in recipients if not recipient[5]}
    steps: list[JourneyStep] = []
    attempts: dict[int, list[Attempt]] = {}
    copies: dict[int, str] = {}  # Graph ids
    for step, at_us, text in events:
        stored = msgspec.json.decode(text)
        detail = details.read_detail(step, stored)
        if isinstance(detail, details.AttemptDetail):
            for number, tried in attempts_in(detail, rfc3339(at_us)):
                attempts.setdefault(number, []).append(tried)
            copies |= {to.number: to.graph_id for to in detail.recipients if to.graph_id}
        if added or is_shown(stored, detail, hidden=hidden, entries=entries):
            steps.append(journey_step(step, at_us, stored))
    visible = [recipient for recipient in recipients if recipient[0] not in hidden]
    copied = [recipient for recipient in recipients if added and recipient[5]]
    reasons = _reasons({(row[2], row[8], row[11] or "") for row in (*visible, *copied)}, steps)
    history = _History(facts, times, attempts, copies, reasons)
    return Journey(
        id=facts.id,
        graph_id=None,
        submission_id=facts.submission_id or None,
        message_id=facts.message_id,
        sender=facts.envelope.reverse_path,
        subject=facts.subject,
        state=str(message_state([RecipientState(row[2]) for row in visible])),
        client={},
        steps=tuple(steps),
        recipients=tuple(map(history.recipient, visible)),
        added=tuple(map(history.recipient, copied)) or UNSET,
    )


def read_message(engine: QueueEngine, tables: Tables, queue_id: str) -> KeptMessage:
    """SpoolHistory.read_message."""
    contents = _contents(engine, tables, (queue_id,), strict=True)
    recipients = tables.fetch(_FIRST_RECIPIENTS, (queue_id, _COPIES_MAX))
    return KeptMessage(contents.get(queue_id), recipients)


def read_contents(
    engine: QueueEngine, tables: Tables, queue_ids: Sequence[str]
) -> Mapping[str, Content]:
    """SpoolHistory.read_contents."""
    return _contents(engine, tables, queue_ids[:CONTENTS_MAX], strict=False)


def _contents(
    engine: QueueEngine, tables: Tables, queue_ids: Sequence[str], *, strict: bool
) -> dict[str, Content]:
    """Return the content of the first live entry of each message. A damaged content is left out;
    with `strict` it raises SpoolError.
    """
    where, values = tables.among("e.message_id", queue_ids)
    sql = f"{engine.contents_sql.format(where)} ORDER BY e.message_id, e.number DESC"
    contents: dict[str, Content] = {}
    for queue_id, row in {row[0]: tuple(row)[1:] for row in tables.fetch(sql, values)}.items():
        try:
            contents[queue_id] = engine.content_of(tables, queue_id, row)
        except SpoolError:
            if strict and tables.fetch(sql, values):
                raise  # otherwise the last entry has ended in the meantime
    return contents


class _History(Struct, frozen=True):
    """What became of a message, of which each recipient has a part."""

    facts: MessageFacts
    times: ShownTimes
    attempts: Mapping[int, Sequence[Attempt]]  # by the number of the recipient
    copies: Mapping[int, str]  # the Graph ids, by the number of the recipient
    reasons: Mapping[tuple[str, int], str]  # by the state and the number of the entry

    def recipient(self, row: Sequence[Any]) -> Recipient:
        """Return the recipient in a row of _JOURNEY_RECIPIENTS."""
        number, address, state, status, reply, added_by, successors, hop, entry = row[:9]
        retry_us, due_us, text = row[9:]
        extra = readable_extra(text or "") or NO_EXTRA
        end = end_us(state, due_us=due_us, expires_us=extra.expires_us or self.facts.expires_us)
        next_hop, route = text_and_route(hop) if hop is not None else (None, "")
        is_planned = retry_us is not None and state not in FINAL
        return Recipient(
            address=address,
            state=state,
            reason=self.reasons.get((state, entry)),
            next_attempt=self.times.wall_time(retry_us) if is_planned else None,
            expires=self.times.end(state, end, received_us=self.facts.received_us),
            next_hop=next_hop,
            route=route or None,
            status=status,
            reply=reply,
            successors=tuple(successors.split("\n")) if successors else UNSET,
            attempts=tuple(self.attempts.get(number, ())),
            graph_id=self.copies.get(number),
            added_by=added_by or UNSET,
        )


def _reasons(
    entries: Collection[tuple[str, int, str]], steps: Sequence[JourneyStep]
) -> dict[tuple[str, int], str]:
    """Return why entries are held or cancelled, by state and number. `entries` are state, number
    and the text of EntryExtra.
    """
    reasons = {}
    for state, number, text in entries:
        extra = readable_extra(text) or NO_EXTRA
        if state == RecipientState.HELD and extra.reason:
            reasons[state, number] = hold_text(extra.reason, extra.rule)
        elif (operation := _OPERATIONS.get(state)) is not None:
            newest = (step.read() for step in reversed(steps) if step.step == Step.DELIVERY)
            if reason := command_reason(number, newest, operation):
                reasons[state, number] = reason
    return reasons


_OPERATIONS: Mapping[str, Operation] = {
    RecipientState.HELD: Operation.HOLD,
    RecipientState.CANCELLED: Operation.CANCEL,
}


def is_shown(
    stored: dict[str, Any],
    detail: details.Detail,
    *,
    hidden: Container[int],
    entries: Container[int],
) -> bool:
    """Remove what concerns hidden recipients from a stored detail; return whether anything is left.

    `detail` is the decoded `stored`. `hidden` are the numbers of recipients that policy added,
    `entries` the entries of the other recipients.
    """
    match detail:
        case details.AttemptDetail(recipients=[_, *_] as attempted):
            named = zip(stored["recipients"], attempted, strict=True)
            stored["recipients"] = [to for to, tried in named if tried.number not in hidden]
            return bool(stored["recipients"])
        case details.AttemptDetail():
            return "recipients" not in stored  # else they cannot be read
        case details.CommandDetail():
            stored["entries"] = [number for number in detail.entries if number in entries]
            return bool(stored["entries"])
        case details.ReportDetail():
            return not detail.is_of_operators
    return True


def events_after(
    tables: Tables, after: int, until: int, *, limit: int, captures_at_once: bool
) -> SpoolEvents:
    """SpoolHistory.events_after. With `captures_at_once` mail for the next hop "capture" is
    captured when it is accepted.
    """
    known: dict[str, _Recipients] = {}
    events: list[tuple[int, RecordedEvent | None]] = []
    characters = 0
    rows = tables.each(_EVENTS, (after, until, limit))
    for sequence, queue_id, number, at_us, text, submission_id, account in rows:
        stored = msgspec.json.decode(text)
        stored.pop("client", None)
        step = Step(number)
        detail = details.read_detail(step, stored)
        recorded = None
        if account is not None:
            state = _state_after(detail, captures_at_once=captures_at_once)
            recorded = RecordedEvent(
                queue_id, submission_id or None, account, step, at_us, stored, detail, state
            )
        if recorded is not None and step is Step.DELIVERY:
            if queue_id not in known:
                known[queue_id] = _recipients(tables, queue_id)
            hidden, entries = known[queue_id]
            if hidden:
                seen = msgspec.json.decode(text)
                is_left = is_shown(seen, detail, hidden=hidden, entries=entries)
                left = details.read_detail(step, seen)
                state = _state_after(left, captures_at_once=captures_at_once)
                of_sender = replace(recorded, detail=seen, known=left, state=state)
                recorded = replace(recorded, of_sender=of_sender if is_left else None)
        if recorded and isinstance(detail, details.ReportDetail) and detail.is_of_operators:
            recorded = replace(recorded, of_sender=None)
        events.append((sequence, recorded))
        characters += len(text)
        if characters > _CHARACTERS_MAX or len(events) == limit:
            return SpoolEvents(events, removed_to(tables), False)
    return SpoolEvents(events, removed_to(tables), True)


def accepted_after(
    tables: Tables, after: int, until: int, *, limit: int, of_here: str
) -> SpoolEvents:
    """SpoolHistory.accepted_after, up to the sequence `until`. Submissions whose detail is LIKE
    `of_here` are left out.
    """
    step, nothing = Step.POLICY_AND_ROUTING, details.RoutedDetail()
    rows = tables.fetch(_ACCEPTED, (after, until, int(step), of_here, limit))
    events: list[tuple[int, RecordedEvent | None]] = [
        (sequence, RecordedEvent(queue_id, name or None, account, step, at_us, {}, nothing, None))
        for sequence, queue_id, at_us, account, name in rows
    ]
    is_complete = len(events) < limit
    if is_complete and until > after:
        events.append((until, None))
    return SpoolEvents(events, removed_to(tables), is_complete)


def last_event(tables: Tables) -> int:
    """Return a sequence: all events that are recorded from now on have greater ones."""
    return max(last_sequence(tables) or NO_EVENTS, removed_to(tables))


def last_sequence(tables: Tables) -> int | None:
    """Return the sequence of the last event that was recorded and is kept."""
    last: int | None = tables.fetch_one("SELECT max(sequence) FROM event")[0]
    return last


def removed_to(tables: Tables) -> int:
    """Return the greatest sequence that was removed."""
    row = tables.fetch_one("SELECT value FROM counter WHERE name = ?", (REMOVED_EVENTS,))
    return int(row[0]) if row else 0


def _recipients(tables: Tables, queue_id: str) -> _Recipients:
    rows = tables.fetch(_RECIPIENTS, (queue_id,))
    return (
        frozenset(number for number, _, is_added in rows if is_added),
        frozenset(entry for _, entry, is_added in rows if not is_added),
    )


def _state_after(detail: details.Detail, *, captures_at_once: bool) -> RecipientState | None:
    """Return the state of an event's recipients after it; None if the event does not say."""
    match detail:
        case details.RoutedDetail():
            captured = RecipientState.CAPTURED if captures_at_once else RecipientState.QUEUED
            states = [
                captured if hop == HopKind.CAPTURE else RecipientState.QUEUED
                for hop in detail.next_hops
            ]
            if detail.quarantined:
                states.append(RecipientState.DELIVERED)
            if detail.refused:
                states.append(RecipientState.FAILED)
            return message_state(states)
        case details.CommandDetail(operation=Operation.HOLD):
            return RecipientState.HELD
        case details.CommandDetail(operation=Operation.RELEASE):
            return RecipientState.DEFERRED if detail.deferred else RecipientState.QUEUED
        case details.CommandDetail(operation=Operation.CANCEL):
            return RecipientState.CANCELLED
        case details.AttemptDetail():
            deferred = RecipientState.HELD if detail.held else RecipientState.DEFERRED
            states = [_STATES.get(recipient.outcome, deferred) for recipient in detail.recipients]
            return message_state(states) if states else None
    return None
