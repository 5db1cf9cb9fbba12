"""What the result of a claim changes in its rows, so that every engine writes the same."""

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from msgspec import Struct

from relay.message.lifecycle import FINAL, RecipientState, check_transition
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
from relay.spool.shared.columns import PAY_REPORTS
from relay.spool.shared.history.remote_reports import join_report
from relay.spool.shared.queue.holds import note_hold, note_unanswered
from relay.spool.shared.rows.accepted import CapturedMail
from relay.spool.shared.rows.receipts import add_receipts
from relay.spool.shared.tables import OpenTransaction
from relay.spool.types import Claim, EntrySchedule, PriorityLevel, Settlement

_OWE = "UPDATE recipient SET owed_report = ? WHERE message_id = ? AND entry = ? AND number = ?"
_END_WARNING = "UPDATE entry SET warn_us = NULL WHERE message_id = ? AND warn_us IS NOT NULL"


class SettledRows(Struct, frozen=True):
    """The changes of one settlement. They hold only where the entry still has the claim's epoch."""

    # the recipients: state, status, reply; message, entry and number
    recipients: Sequence[tuple[RecipientState, str, str, str, int, int]]
    final: Sequence[RecipientState]  # of those that are final now
    is_finished: bool  # all recipients are: the entry ends, and its content if no other has it
    state: RecipientState  # of an entry that goes on
    attempts: int  # of the entry
    waiting: EntrySchedule | None  # of an entry that goes on
    # by the copy, which several may share: the number of a recipient, and what it is asked for
    receipts: Mapping[str, tuple[int, ReceiptRequest]]
    held: str = ""  # why the relay holds the entry from now on


class Recorded(Struct, frozen=True):
    """What a settlement leaves: claims of its reports, and a content file that is to be removed, or
    "". `owes`: it has added read receipts.
    """

    claims: tuple[Claim, ...] = ()
    unneeded: str = ""
    owes: bool = False


def settled_rows(
    settlement: Settlement, *, captured: CapturedMail, takes_receipts: bool
) -> SettledRows:
    """Return what to write. Raises ValueError for a transition that is not allowed."""
    claim = settlement.claim
    changed: list[tuple[RecipientState, str, str, str, int, int]] = []
    receipts: dict[str, tuple[int, ReceiptRequest]] = {}
    for number, outcome in settlement.outcomes.items():
        state = _state_after(outcome)
        if settlement.held and state is RecipientState.DEFERRED:
            state = RecipientState.HELD
        evidence = outcome.evidence
        changed.append((state, evidence.status, evidence.reply, *claim.key, number))
        if takes_receipts and evidence.receipt is not None:
            receipts.setdefault(evidence.graph_id, (number, evidence.receipt))
    for number, outcome in settlement.expired.items():
        evidence = outcome.evidence
        state = RecipientState.EXPIRED
        changed.append((state, evidence.status, evidence.reply, *claim.key, number))
    for state, *_ in changed:  # both live states allow the same
        check_transition(RecipientState.QUEUED, state)
    final = [state for state, *_ in changed if state in FINAL]
    is_finished = len(final) == len(claim.recipients) and not settlement.goes_on
    held = ""
    if settlement.held and not is_finished:
        why = next((one.detail["held"] for one in settlement.events if "held" in one.detail), "")
        held = f"relay: {why}" if why else "relay"
    state, waiting = _waiting(settlement, captured)
    return SettledRows(
        changed, final, is_finished, state,
        attempts=claim.attempts + int(settlement.counts_as_attempt),
        waiting=waiting, receipts=receipts, held=held,
    )  # fmt: skip


def _waiting(
    settlement: Settlement, captured: CapturedMail
) -> tuple[RecipientState, EntrySchedule | None]:
    """Return the state of an entry that goes on, and when it is tried next."""
    claim, waiting = settlement.claim, settlement.waiting
    if any(isinstance(outcome, Captured) for outcome in settlement.outcomes.values()):
        due_us = captured.due_us(claim.message.received_us)
        return RecipientState.CAPTURED, EntrySchedule(None, due_us, claim.priority)
    if settlement.held:
        return RecipientState.HELD, waiting
    if not settlement.counts_as_attempt:
        return claim.state, waiting
    return RecipientState.DEFERRED, waiting


def record_beside(
    transaction: OpenTransaction,
    settlement: Settlement,
    rows: SettledRows,
    *,
    now_us: int,
    store: int,
) -> None:
    """Record what ordinary mail has none of: reports and read receipts that are owed, a hold,
    attempts without an answer, and what a report from outside claims. `now_us` is queue time,
    `store` that of the claim.
    """
    claim = settlement.claim
    record_owed(transaction, settlement)
    if rows.held:
        note_hold(transaction, claim.key, rows.held, since_us=settlement.at_us)
    if settlement.unanswered:
        note_unanswered(transaction, claim.key, settlement.unanswered)
    add_receipts(transaction, claim.message.id, rows.receipts, now_us=now_us, store=store)
    if settlement.remote_report is not None:
        join_report(transaction, settlement, settlement.remote_report)


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
        transaction.execute(PAY_REPORTS, key)
    if settlement.ends_warning:
        transaction.execute(_END_WARNING, key[:1])


def waiting_columns(waiting: EntrySchedule | None) -> tuple[Any, ...]:
    """Return due_us, retry_us, lane, cause, cause_attempts and warn_us; without a schedule those of
    an entry that has ended.
    """
    if waiting is None:
        return None, None, PriorityLevel.NORMAL, "", 0, None
    return (
        waiting.due_us, waiting.retry_us, waiting.level, waiting.cause, waiting.cause_attempts,
        waiting.warn_us,
    )  # fmt: skip


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
