"""Read the events of all messages in the order in which they were recorded, for followers.

The order is that of the sequence, which is not that of the times: an event may be recorded after
one with a later time. A transaction becomes visible as a whole, and later ones have greater
sequences, so that a reader that has seen a sequence never misses a smaller one.
"""

from typing import Any

import msgspec
from msgspec.structs import replace

from relay.journeys.events import Event, RecordedEvent, Step
from relay.journeys.spool_history import SpoolEvents
from relay.message.lifecycle import RecipientState, message_state
from relay.message.nexthop import HopKind
from relay.spool.queue_commands import Operation
from relay.spool.shared.columns import NO_EVENTS, REMOVED_EVENTS
from relay.spool.shared.history.journeys import is_shown
from relay.spool.shared.tables import Tables

_EVENTS = (
    "SELECT e.sequence, e.message_id, e.step, e.at_us, e.detail, m.submission_id, m.account"
    " FROM event e INDEXED BY event_sequence LEFT JOIN message m ON m.id = e.message_id"
    " WHERE e.sequence > ? AND e.sequence <= ?"
    " ORDER BY e.sequence LIMIT ?"
)
_CHARACTERS_MAX = 1 << 20  # of details in one answer, and one event more
_RECIPIENTS = "SELECT number, entry, added_by <> '' FROM recipient WHERE message_id = ?"
_Recipients = tuple[frozenset[int], frozenset[int]]  # hidden numbers, and entries that are shown
_STATES = {str(state): state for state in RecipientState} | {
    "indeterminate": RecipientState.DEFERRED
}


def events_after(
    tables: Tables, after: int, until: int, *, limit: int, captures_at_once: bool
) -> SpoolEvents:
    """SpoolHistory.events_after. With `captures_at_once` mail for the next hop "capture" is
    captured when it is accepted.
    """
    known: dict[str, _Recipients] = {}
    found: list[tuple[int, RecordedEvent | None]] = []
    characters = 0
    rows = tables.each(_EVENTS, (after, until, limit))
    for sequence, queue_id, number, at_us, text, submission_id, account in rows:
        detail = msgspec.json.decode(text)
        detail.pop("client", None)
        step = Step(number)
        recorded = None
        if account is not None:
            state = _state_after(step, detail, captures_at_once=captures_at_once)
            event = Event(step, at_us, detail)
            recorded = RecordedEvent(queue_id, submission_id or None, account, event, state)
        if recorded is not None and step is Step.DELIVERY:
            if queue_id not in known:
                known[queue_id] = _recipients(tables, queue_id)
            hidden, entries = known[queue_id]
            if hidden:
                seen = msgspec.json.decode(text)
                is_left = is_shown(seen, hidden=hidden, entries=entries)
                state = _state_after(step, seen, captures_at_once=captures_at_once)
                of_sender = replace(recorded, event=Event(step, at_us, seen), state=state)
                recorded = replace(recorded, of_sender=of_sender if is_left else None)
        found.append((sequence, recorded))
        characters += len(text)
        if characters > _CHARACTERS_MAX or len(found) == limit:
            return SpoolEvents(found, removed_to(tables), False)
    return SpoolEvents(found, removed_to(tables), True)


def last_event(tables: Tables) -> int:
    """Return the sequence behind which all later events are."""
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


def _state_after(
    step: Step, detail: dict[str, Any], *, captures_at_once: bool
) -> RecipientState | None:
    """Return the state of the recipients that the event is about; None if it does not say."""
    if step is Step.POLICY_AND_ROUTING:
        captured = RecipientState.CAPTURED if captures_at_once else RecipientState.QUEUED
        states = [
            captured if hop == HopKind.CAPTURE else RecipientState.QUEUED
            for hop in detail.get("next_hops", ())
        ]
        states += [RecipientState.DELIVERED] * bool(detail.get("quarantined"))
        return message_state(states + [RecipientState.FAILED] * bool(detail.get("refused")))
    if step is not Step.DELIVERY:
        return None
    match detail.get("operation"):
        case Operation.HOLD:
            return RecipientState.HELD
        case Operation.RELEASE:
            return RecipientState.DEFERRED if "deferred" in detail else RecipientState.QUEUED
        case Operation.CANCEL:
            return RecipientState.CANCELLED
    states = [_STATES[one["outcome"]] for one in detail.get("recipients", ())]
    if not states:
        return None
    if "held" in detail:
        states = [RecipientState.HELD if one is RecipientState.DEFERRED else one for one in states]
    return message_state(states)
