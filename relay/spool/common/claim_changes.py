"""What claims change in rows, apart from how an engine finds and locks them."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from relay.journeys.events import Event, Step
from relay.message.lifecycle import PARKED, RecipientState, check_transition
from relay.observe.logs import get_logger
from relay.spool.common.due_claims import RECIPIENT_COLUMNS, recipient_of
from relay.spool.common.holds import RELEASED, note_hold, note_release
from relay.spool.common.rows import LIVE_STATES
from relay.spool.tables import OpenTransaction, Tables
from relay.spool.types import Claim, ClaimedRecipient, Key, Settlement

DAMAGED_DUE_US = 1 << 62  # when a damaged entry is due: never
CLAIMS_AT_ONCE = 500
_NOT_RECORDED = "the relay was stopped before this attempt was recorded"
_LOST_STATUS = "4.4.2"  # RFC 3463: bad connection, which is how the peer saw it
_LATE = (
    f"SELECT r.entry, {RECIPIENT_COLUMNS} FROM entry e JOIN recipient r"
    " ON r.message_id = e.message_id AND r.entry = e.number"
    f" AND r.state IN {LIVE_STATES} WHERE e.message_id = ?"
    " AND (e.number = ? OR e.next_hop <> 'capture'"
    " AND (e.state IN ('queued', 'deferred') OR e.warn_us > 0))"  # or held by the relay
    " AND EXISTS (SELECT 1 FROM entry WHERE message_id = ? AND number = ? AND warn_us > 0)"
    " ORDER BY 1, 2"
)
_HOLD_DAMAGED = (
    "UPDATE entry SET state = 'held', due_us = ?, retry_us = NULL, warn_us = NULL, claimed = 0,"
    " epoch = epoch + 1 WHERE message_id = ? AND number = ? AND claimed = ?"
)
_MOVE_RECIPIENTS = (
    "UPDATE recipient SET state = ? WHERE message_id = ? AND entry = ?"
    " AND state IN ('queued', 'deferred', 'held')"
)
_OWE = "UPDATE recipient SET owed = ? WHERE message_id = ? AND entry = ? AND number = ?"
PAY = "UPDATE recipient SET owed = '' WHERE message_id = ? AND entry = ? AND owed <> ''"
_END_WARNING = "UPDATE entry SET warn_us = NULL WHERE message_id = ? AND warn_us IS NOT NULL"
_SET_STATE = "UPDATE entry SET state = ? WHERE message_id = ? AND number = ?"
_DOUBT = (
    "UPDATE recipient SET state = 'deferred', status = ?, reply = ?"
    " WHERE message_id = ? AND entry = ? AND state IN ('queued', 'deferred')"
    " RETURNING number, address"
)
_DUE_AGAIN = (
    "UPDATE entry SET state = 'deferred', retry_us = ?, attempts = attempts + 1,"
    " due_us = CASE WHEN due_us < ? THEN due_us ELSE ? END WHERE message_id = ? AND number = ?"
)
_FREE = "UPDATE entry SET claimed = 0, epoch = epoch + 1 WHERE message_id = ? AND number = ?"
_log = get_logger("spool")


def late_recipients(tables: Tables, key: Key) -> dict[int, list[ClaimedRecipient]]:
    """Spool.late_recipients."""
    found: dict[int, list[ClaimedRecipient]] = {}
    for entry, *row in tables.fetch(_LATE, (*key, *key)):
        found.setdefault(entry, []).append(recipient_of(row))
    return found


def record_owed(transaction: OpenTransaction, settlement: Settlement) -> None:
    """Record what reports are owed, or no longer are; ordinary mail needs none of it."""
    key = settlement.claim.key
    if settlement.owed:
        evidence = {number: settlement.outcomes[number].evidence for number in settlement.owed}
        rows = [
            (f"{settlement.at_us} {one.host}", *key, number) for number, one in evidence.items()
        ]
        transaction.execute_each(_OWE, rows)
    if settlement.pays:
        transaction.execute(PAY, key)
    if settlement.ends_warning:
        transaction.execute(_END_WARNING, key[:1])


def end_hold(transaction: OpenTransaction, claim: Claim, *, now_us: int, at_us: int) -> Claim:
    """Return a claim; one whose hold ends now, in queue time, is queued. `at_us` is wall time."""
    if claim.state is not RecipientState.HELD or claim.retry_us is None or claim.retry_us > now_us:
        return claim
    state = RecipientState.QUEUED
    check_transition(claim.state, state)
    note_release(transaction, claim.key)
    transaction.execute(_SET_STATE, (state, *claim.key))
    transaction.execute(_MOVE_RECIPIENTS, (state, *claim.key))
    detail = {"operation": "release", "entries": [claim.entry_id], "who": "its time"}
    transaction.append_events(claim.message.id, [Event(Step.DELIVERY, at_us, detail)])
    return replace(claim, state=state, extra=replace(claim.extra, **RELEASED))


def hold_damaged(
    transaction: OpenTransaction, key: Key, text: str, *, at_us: int, is_claimed: bool
) -> None:
    """Hold an entry that cannot be read, so that others continue: this is in the log, in the
    journey and in the queue list.
    """
    if not transaction.execute(_HOLD_DAMAGED, (DAMAGED_DUE_US, *key, int(is_claimed))):
        return
    message_id, number = key
    transaction.execute(_MOVE_RECIPIENTS, (RecipientState.HELD, *key))
    note_hold(transaction, key, f"relay: damaged: {text}", since_us=at_us)
    detail = {"operation": "hold", "entries": [number], "who": "relay", "why": f"damaged: {text}"}
    transaction.append_events(message_id, [Event(Step.DELIVERY, at_us, detail)])
    _log.error("entry damaged", qid=message_id, entry=number, error=text)


def release_abandoned(
    transaction: OpenTransaction, claimed: Sequence[Sequence[Any]], *, now_us: int, at_us: int
) -> None:
    """Record abandoned claims as indeterminate attempts, due at once: each is given by its key, its
    next hop, its attempts and its state.

    An entry keeps its earlier due time, so that it is attempted although it may have expired
    meanwhile. Held and captured entries were claimed to expire, and were not attempted. `now_us` is
    queue time, `at_us` wall time.
    """
    tried = [row for row in claimed if row[4] not in PARKED]
    for message_id, entry, hop, attempts, _ in tried:
        recipients = transaction.fetch(_DOUBT, (_LOST_STATUS, _NOT_RECORDED, message_id, entry))
        attempted = [
            {
                "number": number,
                "address": address,
                "outcome": "indeterminate",
                "status": _LOST_STATUS,
                "reply": _NOT_RECORDED,
            }
            for number, address in recipients
        ]
        next_hop, _, route = hop.partition(" ")  # NextHop.key
        detail = {
            "entry": entry,
            "attempt": attempts + 1,
            "next_hop": next_hop,
            "recipients": attempted,
        }
        detail |= {"route": route} if route else {}
        record_doubt(transaction, message_id, Event(Step.DELIVERY, at_us, detail))
    transaction.execute_each(
        _DUE_AGAIN, [(now_us, now_us, now_us, row[0], row[1]) for row in tried]
    )
    transaction.execute_each(_FREE, [(row[0], row[1]) for row in claimed])


def record_doubt(transaction: OpenTransaction, message_id: str, attempt: Event) -> None:
    """Record an attempt of which nobody knows how it ended."""
    transaction.append_events(message_id, [attempt])
