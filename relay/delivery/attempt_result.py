"""What an attempt means: which recipients are done, which wait until when, what the journey says.

On the path: a session's or the local deliverer's outcomes go in; a Settlement's parts come out.
Holds: pure; every recipient with an outcome is in exactly one of failed, expired, waiting, done.
Fails: never.
Standards: RFC 3463 X.4.7 (expired); RFC 3464 2.3. Times are steady time; `at_us` is the wall's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from relay.clock import rfc3339
from relay.delivery.retry import Cause, Schedule
from relay.journeys.events import Event, Step
from relay.message.lifecycle import PARKED, State
from relay.message.outcome import (
    INTERNAL_ERROR,
    DeferralClass,
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
from relay.spool.waiting import Lane, Waiting

_DETAIL_RECIPIENTS_MAX = 1000
_NAMED_MAX = 100  # addresses in an event that is not about each of them
_REPLY_CHARACTERS_MAX = 500
_UNRECORDED_US = 600_000_000  # until a settlement that broke off is followed by another attempt
_NOT_READ = "the message cannot be read; release it when its file is back"
_NOT_RECORDED = "a host may have the message; look at the log, then release or cancel it"
_DOUBTFUL_END_US = 600_000_000  # until another look at what ends by a time that is not sure


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment on both clocks: `now_us` is steady time, `at_us` the wall's."""

    now_us: int
    at_us: int

    def on_the_wall(self, steady_us: int) -> str:
        """A steady time as people read it."""
        return rfc3339(steady_us + self.at_us - self.now_us)


@dataclass(frozen=True, slots=True)
class Conclusion:
    """`failed` are those a report may tell of (failed and expired); `waiting` None when nothing
    does; `held` when what waits waits for an operator.
    """

    at_us: int
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)
    expired: Mapping[int, Outcome] = field(default_factory=dict)
    failed: tuple[ReportedRecipient, ...] = ()
    waiting: Waiting | None = None
    events: tuple[Event, ...] = ()
    held: bool = False


def conclude(
    claim: Claim,
    outcomes: Mapping[int, Outcome],
    *,
    moment: Moment,
    schedule: Schedule,
    reached: bool = True,
) -> Conclusion:
    """Sort the outcomes of one attempt; keys are recipients' ids. Not `reached`: nobody answered
    for the next hop, so that others go before it for now.
    """
    failed = tuple(
        _reported(claim, recipient, outcome.evidence, at_us=moment.at_us)
        for recipient in claim.recipients
        if isinstance(outcome := outcomes.get(recipient.id), Failed)
    )
    left = [one for one in claim.recipients if _waits(outcomes.get(one.id))]
    if not left:
        event = _attempt_event(claim, outcomes, moment.at_us)
        return Conclusion(moment.at_us, outcomes, failed=failed, events=(event,))
    # in the recipients' order, each class once
    names = [deferral_class(outcomes[one.id]) for one in left if one.id in outcomes]
    held = DeferralClass.CONTENT in names and claim.cause == DeferralClass.CONTENT
    retry = schedule.retry(
        Cause(claim.cause, claim.cause_attempts), dict.fromkeys(names), now_us=moment.now_us,
        expires_us=claim.message.expires_us,
    )  # fmt: skip
    warned, late = _warning(claim, left, moment)
    waiting = _waiting(
        claim, retry_us=None if held else retry.at_us, cause=retry.cause, warn_us=warned,
        lane=claim.priority if reached else Lane.DOWN, now_us=moment.now_us,
    )  # fmt: skip
    event = _attempt_event(claim, outcomes, moment.at_us, held=_NOT_READ if held else "")
    return Conclusion(
        moment.at_us, outcomes, failed=failed, waiting=waiting, events=(event, *late), held=held
    )


def conclude_some(claim: Claim, outcomes: Mapping[int, Outcome], *, moment: Moment) -> Conclusion:
    """Those of an attempt that is still going on who are done: nobody hears of them, nor waits."""
    event = _attempt_event(claim, outcomes, moment.at_us)
    return Conclusion(moment.at_us, outcomes, events=(event,))


def put_back(claim: Claim, *, moment: Moment) -> Conclusion:
    """Let a claim wait on that was not tried; the journey says so if its sender would hear now."""
    warned, late = _warning(claim, claim.recipients, moment)
    waiting = _waiting(
        claim, retry_us=claim.retry_us, cause=Cause(claim.cause, claim.cause_attempts),
        lane=claim.lane, warn_us=warned, now_us=moment.now_us,
    )  # fmt: skip
    if claim.state in PARKED and waiting.due_us <= moment.now_us:  # it may be over, or may not
        waiting = replace(waiting, due_us=moment.now_us + _DOUBTFUL_END_US)
    elif claim.retry_us is not None and claim.retry_us <= moment.now_us:
        # It still waits for its attempt: what came due while the relay was down gets one first.
        waiting = replace(waiting, due_us=min(claim.due_us, waiting.due_us))
    return Conclusion(moment.at_us, waiting=waiting, events=late)


def for_all(claim: Claim, outcome: Outcome) -> dict[int, Outcome]:
    """One outcome that all recipients share."""
    return {recipient.id: outcome for recipient in claim.recipients}


def broken_off(claim: Claim) -> dict[int, Outcome]:
    """Return the outcome of an attempt that a fault of Relay's own has ended; the log has it."""
    evidence = Evidence("4.3.0", f"451 4.3.0 {INTERNAL_ERROR}")
    return for_all(claim, Deferred(evidence, DeferralClass.INTERNAL))


def unrecorded(claim: Claim, outcomes: Mapping[int, Outcome], *, moment: Moment) -> Conclusion:
    """Conclude a claim whose settlement a fault of Relay's own broke off, in the simplest way.

    What no host can have is tried later. What one may have is in doubt, and an operator decides:
    tried by itself, it would be delivered again each time the fault comes back.
    """
    again_us = moment.now_us + _UNRECORDED_US
    if not outcomes:
        waiting = _waiting(
            claim, retry_us=claim.retry_us, cause=Cause(claim.cause, claim.cause_attempts),
            lane=claim.lane, warn_us=claim.warn_us, now_us=again_us,
        )  # fmt: skip
        return Conclusion(moment.at_us, waiting=waiting)
    in_doubt = any(isinstance(one, Relayed | Indeterminate) for one in outcomes.values())
    concluded = broken_off(claim)
    if in_doubt:
        words = f"451 4.3.0 {INTERNAL_ERROR}; the attempt's outcome was not recorded"
        concluded = for_all(claim, Indeterminate(Evidence("4.3.0", words)))
    waiting = Waiting(
        retry_us=None if in_doubt else again_us, lane=claim.lane, warn_us=claim.warn_us,
        due_us=max(again_us, claim.message.expires_us) if in_doubt else again_us,
        cause=DeferralClass.INTERNAL, cause_attempts=claim.cause_attempts + 1,
    )  # fmt: skip
    why = _NOT_RECORDED if in_doubt else ""
    event = _attempt_event(claim, concluded, moment.at_us, held=why)
    return Conclusion(moment.at_us, concluded, waiting=waiting, events=(event,), held=in_doubt)


def expire(claim: Claim, *, moment: Moment) -> Conclusion:
    """Give every recipient of the claim up, with the last reply that there was.

    Nobody hears of captured mail: it was never to be sent.
    """
    expired: dict[int, Outcome] = {}
    reported = []
    for recipient in claim.recipients:
        evidence = _last_words(claim, recipient)
        expired[recipient.id] = Failed(evidence)
        if claim.state is not State.CAPTURED:
            # When it was tried last is not known here: that is not now.
            reported.append(_reported(claim, recipient, evidence, at_us=0))
    told = [_told(one, State.EXPIRED, expired[one.id].evidence) for one in claim.recipients]
    detail = {"entry": claim.entry_id, "next_hop": str(claim.next_hop), "expired": len(told)}
    detail |= {"recipients": told[:_DETAIL_RECIPIENTS_MAX]}
    event = Event(Step.DELIVERY, moment.at_us, detail)
    return Conclusion(moment.at_us, expired=expired, failed=tuple(reported), events=(event,))


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


def _waits(outcome: Outcome | None) -> bool:
    """Whether a recipient goes on waiting: deferred, in doubt, or not tried."""
    return outcome is None or isinstance(outcome, Deferred | Indeterminate)


def _waiting(
    claim: Claim,
    *,
    retry_us: int | None,
    cause: Cause,
    lane: Lane,
    warn_us: int | None,
    now_us: int,
) -> Waiting:
    """When to look at it next is never in the past: what is over ends with the next look."""
    ends_us = claim.due_us if claim.state is State.CAPTURED else claim.message.expires_us
    times = [time_us for time_us in (retry_us, warn_us, ends_us) if time_us is not None]
    return Waiting(
        retry_us=retry_us, due_us=max(now_us, min(times)), lane=lane, cause=cause.name,
        cause_attempts=cause.attempts, warn_us=warn_us,
    )  # fmt: skip


def _warning(
    claim: Claim, late: Iterable[ClaimedRecipient], moment: Moment
) -> tuple[int | None, tuple[Event, ...]]:
    """When the sender would hear of the delay from now on; and that it would, if that is now."""
    if claim.warn_us is None or moment.now_us < claim.warn_us:
        return claim.warn_us, ()
    people = [one.address for one in late if not one.added_by]  # a sender sees no others
    if not people:
        return None, ()
    detail = {
        "kind": "delayed",
        "entry": claim.entry_id,
        "recipients": people[:_NAMED_MAX],
        "since": moment.on_the_wall(claim.message.received_us),
        "until": moment.on_the_wall(claim.message.expires_us),
    }
    return None, (Event(Step.REPORT, moment.at_us, detail),)


def _last_words(claim: Claim, recipient: ClaimedRecipient) -> Evidence:
    if claim.state is State.CAPTURED:
        return Evidence("5.4.7", "captured, and kept for its time")
    words = recipient.reply or "no attempt succeeded"
    return Evidence("5.4.7", f"delivery time expired; last: {words}")


def _attempt_event(
    claim: Claim, outcomes: Mapping[int, Outcome], at_us: int, *, held: str = ""
) -> Event:
    """`held` is the reason why an operator has to look, "" if there is none."""
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
    if held:
        detail["held"] = held
    return Event(Step.DELIVERY, at_us, detail)


def _told(recipient: ClaimedRecipient, outcome: str, evidence: Evidence) -> dict[str, Any]:
    return {
        "number": recipient.id,
        "address": recipient.address,
        "outcome": str(outcome),
        "status": evidence.status,
        "reply": evidence.reply[:_REPLY_CHARACTERS_MAX],
    }


def _reported(
    claim: Claim, recipient: ClaimedRecipient, evidence: Evidence, *, at_us: int
) -> ReportedRecipient:
    return ReportedRecipient(
        address=recipient.address,
        orcpt=recipient.orcpt,
        evidence=evidence,
        notify=recipient.notify,
        added_by=recipient.added_by,
        last_attempt_us=at_us,
        log_id=f"{claim.message.id}-{claim.entry_id}",
    )
