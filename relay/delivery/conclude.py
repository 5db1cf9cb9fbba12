"""What an attempt means: which recipients are done, which wait until when, what the journey says.

On the path: a session's or the local deliverer's outcomes go in; a Settlement's parts come out.
Holds: pure; every recipient with an outcome is in exactly one of failed, expired, waiting, done.
Fails: never.
Standards: RFC 3463 X.4.7 (expired); RFC 3464 2.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relay.delivery.schedule import Schedule
from relay.journal.events import Event, Step
from relay.message.lifecycle import State
from relay.message.outcome import (
    Deferred,
    Delivered,
    Evidence,
    Failed,
    Indeterminate,
    Outcome,
    Relayed,
)
from relay.message.reporting import ReportedRecipient
from relay.spool.types import Claim, ClaimedRecipient

_DETAIL_RECIPIENTS_MAX = 1000
_REPLY_CHARACTERS_MAX = 500


@dataclass(frozen=True, slots=True)
class Conclusion:
    """`failed` are those a report may tell of (failed and expired);
    `due_us` None when nothing waits.
    """

    outcomes: Mapping[int, Outcome]
    expired: Mapping[int, Outcome]
    failed: tuple[ReportedRecipient, ...]
    due_us: int | None
    event: Event


def is_expired(claim: Claim, now_us: int) -> bool:
    """Whether to give up instead of trying; a message that was never tried gets its one attempt."""
    return claim.attempts > 0 and now_us >= claim.message.expires_us


def conclude(
    claim: Claim, outcomes: Mapping[int, Outcome], *, now_us: int, schedule: Schedule
) -> Conclusion:
    """Sort the outcomes of one attempt; keys are recipients' ids."""
    failed = tuple(
        _reported(claim, recipient, outcome.evidence, now_us=now_us)
        for recipient in claim.recipients
        if isinstance(outcome := outcomes.get(recipient.id), Failed)
    )
    waiting = len(outcomes) < len(claim.recipients) or any(
        isinstance(outcome, Deferred | Indeterminate) for outcome in outcomes.values()
    )
    due_us = None
    if waiting:
        due_us = schedule.due_us(
            attempts=claim.attempts + 1, now_us=now_us, expires_us=claim.message.expires_us
        )
    return Conclusion(outcomes, {}, failed, due_us, _attempt_event(claim, outcomes, now_us))


def for_all(claim: Claim, outcome: Outcome) -> dict[int, Outcome]:
    """One outcome that all recipients share."""
    return {recipient.id: outcome for recipient in claim.recipients}


def expire(claim: Claim, *, now_us: int) -> Conclusion:
    """Give every recipient of the claim up, with the last reply that there was."""
    expired: dict[int, Outcome] = {}
    reported = []
    for recipient in claim.recipients:
        words = recipient.reply or "no attempt succeeded"
        evidence = Evidence("5.4.7", f"delivery time expired; last: {words}")
        expired[recipient.id] = Failed(evidence)
        reported.append(_reported(claim, recipient, evidence, now_us=now_us))
    told = [_told(one, State.EXPIRED, expired[one.id].evidence) for one in claim.recipients]
    detail = {"entry": claim.entry_id, "next_hop": str(claim.next_hop), "expired": len(told)}
    event = Event(Step.DELIVERY, now_us, detail | {"recipients": told[:_DETAIL_RECIPIENTS_MAX]})
    return Conclusion({}, expired, tuple(reported), None, event)


def outcome_name(outcome: Outcome) -> str:
    """The word for an outcome in traces, metrics and logs."""
    return _NAMES[type(outcome)]


def deferral_class(outcome: Outcome) -> str:
    """The `class` label: why it was deferred, "" for every other outcome."""
    return outcome.kind if isinstance(outcome, Deferred) else ""


_NAMES = {
    Delivered: "delivered",
    Relayed: "relayed",
    Deferred: "deferred",
    Failed: "failed",
    Indeterminate: "indeterminate",
}


def _attempt_event(claim: Claim, outcomes: Mapping[int, Outcome], now_us: int) -> Event:
    told = [
        _told(recipient, outcome_name(outcome), outcome.evidence)
        for recipient in claim.recipients
        if (outcome := outcomes.get(recipient.id)) is not None
    ]
    first = next(iter(outcomes.values()), None)
    detail: dict[str, Any] = {
        "entry": claim.entry_id,
        "attempt": claim.attempts + 1,
        "next_hop": str(claim.next_hop),
        "host": first.evidence.host if first else "",
        "tls": first.evidence.tls if first else "",
        "recipients": told[:_DETAIL_RECIPIENTS_MAX],
    }
    return Event(Step.DELIVERY, now_us, detail)


def _told(recipient: ClaimedRecipient, outcome: str, evidence: Evidence) -> dict[str, Any]:
    return {
        "number": recipient.id,
        "address": recipient.address,
        "outcome": str(outcome),
        "status": evidence.status,
        "reply": evidence.reply[:_REPLY_CHARACTERS_MAX],
    }


def _reported(
    claim: Claim, recipient: ClaimedRecipient, evidence: Evidence, *, now_us: int
) -> ReportedRecipient:
    return ReportedRecipient(
        address=recipient.address,
        orcpt=recipient.orcpt,
        evidence=evidence,
        notify=recipient.notify,
        added_by=recipient.added_by,
        last_attempt_us=now_us,
        log_id=f"{claim.message.id}-{claim.entry_id}",
    )
