"""The result of an attempt: the final recipients, when the others are tried again, the events.

Pure functions. Each recipient with an outcome is final, or waits for a retry. Expired recipients
get X.4.7 (RFC 3463). The result has the recipients for each kind of report; relay/delivery/reports
decides what is sent. `_warning()` says whether a delay report is due; acceptance set its time.
Times ending in `now_us` and `due_us` are queue time; `at_us` is wall time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import rfc3339
from relay.base.message import tls_policy
from relay.base.message.envelope import Notify
from relay.base.message.lifecycle import HELD_OR_CAPTURED, RecipientState
from relay.base.message.nexthop import CAPTURE, LOCAL
from relay.base.message.outcome import (
    INTERNAL,
    UNRECORDED,
    Captured,
    DeferralClass,
    Deferred,
    Delivered,
    Evidence,
    Failed,
    Indeterminate,
    Outcome,
    Relayed,
    SessionEvidence,
)
from relay.base.phrases import counted
from relay.delivery.retry import DeferralCause, RetrySchedule
from relay.formats.dsn import ReportedRecipient, ReportKind
from relay.store.journeys.details import AttemptDetail, AttemptedRecipient
from relay.store.journeys.events import Event
from relay.store.spool import types
from relay.store.spool.queue_commands import earliest_due_us
from relay.transport.routing.routes import Fallback

_PENDING = Deferred | Indeterminate | None  # of a recipient that waits; None: not attempted
_DETAIL_RECIPIENTS_MAX = 1000
_REPLY_CHARACTERS_MAX = 500
_NOT_ANSWERED = "it is not known whether Microsoft Graph has sent the message"
_UNRECORDED_US = 600_000_000  # until the next attempt after a result that was not recorded
_NOT_READ = "the message cannot be read; release it when its file is back"
_NOT_RECORDED = "a host may have the message; look at the log, then release or cancel it"
_UNSURE_EXPIRY_US = 600_000_000  # until the next check of an expiry that may not have passed


_PUBLISHED = {tls_policy.MTA_STS: "MTA-STS policy", tls_policy.DANE: "TLSA records"}
_NO_DECISION = tls_policy.TlsDecision(tls_policy.TlsPolicy())  # where nothing was looked up


class Lookup(Struct, frozen=True):
    """What the lookup of a next hop gave, as the attempts to it record it."""

    mx: tuple[str, ...] = ()  # the hosts of the MX answer, and why one is skipped
    mx_more: int = 0  # the number of further hosts
    dns_ms: float = 0.0  # how long it took
    tls: Mapping[str, tls_policy.TlsDecision] = {}  # what each host must have, and who demands it

    def policy(self, host: str, session: SessionEvidence) -> str:
        """Return who demanded which TLS level of a host, and what else is to be said of it. One
        that another domain has under another name may be missing; then the first one counts.
        """
        decided = self.tls.get(host) or next(iter(self.tls.values()), _NO_DECISION)
        if decided.by in _PUBLISHED and session.level != decided.policy.level:  # mail that waited
            note = f"looked up before the {_PUBLISHED[decided.by]}"
            decided = replace(decided, by=tls_policy.CONFIGURATION, note=note)
        said = (f"{decided.by}: {session.level}", decided.note, session.mismatch)
        return "; ".join(filter(None, said))


class AttemptTime(Struct, frozen=True):
    """When an attempt ended: `now_us` is queue time, `at_us` the same moment as wall time."""

    now_us: int
    at_us: int
    # since a worker took the claim; None if it shares the outcome of another one
    took_s: float | None = None
    lookup: Lookup | None = None  # what came first, and how long that took

    def wall_time(self, queue_us: int) -> str:
        """A queue time as RFC 3339 wall time."""
        return rfc3339(queue_us + self.at_us - self.now_us)


class AttemptResult(Struct, frozen=True):
    """What to commit after an attempt, without the reports, and whom they are about. A report of
    success is one that no other host makes.
    """

    commit: types.ClaimResult
    time: AttemptTime  # of the attempt
    reported: Mapping[ReportKind, tuple[ReportedRecipient, ...]] = {}
    # of this entry, for the delay report; None if none is due
    late: tuple[ReportedRecipient, ...] | None = None


def result_of_attempt(
    claim: types.Claim,
    outcomes: Mapping[int, Outcome],
    *,
    time: AttemptTime,
    schedule: RetrySchedule,
    reached: bool = True,
) -> AttemptResult:
    """Sort the outcomes of one attempt; keys are recipients' ids. Unless `reached`, no host of the
    next hop answered, and the mail waits at the unreachable priority level.

    If some recipients failed and none of the others was attempted, the others are due now. A
    recipient fails after as many attempts without an answer to the final dot as `schedule` allows.

    Recipients of an entry are captured together: if one waits, so do those that have their copy,
    and the next attempt finds the copy.
    """
    if claim.extra.keep:
        outcomes = {number: _as_deferred(outcome) for number, outcome in outcomes.items()}
    given_up, unanswered = _unanswered(claim, outcomes, most=schedule.indeterminate_max)
    outcomes = {**outcomes, **given_up} if given_up else outcomes
    reported = {
        recipient.id: _reported(claim, recipient, outcome.evidence, at_us=time.at_us)
        for recipient in claim.recipients
        if isinstance(outcome := outcomes.get(recipient.id), Failed)
    }
    unknown = tuple([reported.pop(number) for number in given_up])
    kinds = {
        ReportKind.FAILED: tuple(reported.values()),
        ReportKind.UNKNOWN: unknown,
        **_successes(claim, outcomes, at_us=time.at_us),
    }
    left = [to for to in claim.recipients if isinstance(outcomes.get(to.id), _PENDING)]
    if not left:
        event = _attempt_event(claim, outcomes, time)
        return AttemptResult(_commit(claim, time, outcomes, event=event), time, kinds)
    outcomes = {
        number: outcome for number, outcome in outcomes.items() if not isinstance(outcome, Captured)
    }
    # in the recipients' order
    numbers = [recipient.id for recipient in left]
    names = [deferral_class(outcomes[number]) for number in numbers if number in outcomes]
    held = DeferralClass.CONTENT in names and claim.cause == DeferralClass.CONTENT
    retry_us, cause = time.now_us, DeferralCause(claim.cause, claim.cause_attempts)
    if names or not (reported or unknown):
        retry_us, cause = schedule.retry(
            cause, next(iter(names), ""), now_us=time.now_us, expires_us=claim.expires_us
        )
    warned, late = _warning(claim, left, outcomes, time=time)
    waiting = types.EntrySchedule(
        retry_us=None if held else retry_us,
        due_us=time.now_us,
        level=claim.priority if reached else types.PriorityLevel.UNREACHABLE,
        cause=cause.name,
        cause_attempts=cause.attempts,
        warn_us=warned,
    )
    event = _attempt_event(
        claim,
        outcomes,
        time,
        held=_NOT_READ if held else "",
        retry="" if held else time.wall_time(retry_us),
    )
    commit = replace(
        _commit(claim, time, outcomes, event=event, waiting=_waiting(claim, waiting)),
        unanswered=unanswered,
        held=held,
        ends_warning=late is not None,
        fallback_us=schedule.fallback_us,
    )
    return AttemptResult(commit, time, kinds, late)


def fallback_us(
    claim: types.Claim,
    fallback: Fallback,
    lookup: Lookup | None,
    *,
    now_us: int,
    unanswered_s: float | None,
) -> int:
    """Return when mail may go to the fallback, as in EntryExtra. No other host has the TLS that the
    domain publishes, or that REQUIRETLS demands, unless a route says so.
    """
    if fallback.to is None:
        return types.NEXT_ATTEMPT
    if unanswered_s is None or not fallback.after_us or claim.stays_at_graph:
        return 0
    by = [decision.by for decision in lookup.tls.values()] if lookup is not None else []
    needs_proof = claim.message.envelope.tls == tls_policy.REQUIRETLS
    vouched = fallback.options is not None and fallback.options.requiretls
    if not by or not _PUBLISHED.keys().isdisjoint(by) or (needs_proof and not vouched):
        return 0
    until_us = now_us - int(unanswered_s * 1_000_000) + fallback.after_us
    return min(until_us, claim.extra.fallback_us or until_us)


def _commit(
    claim: types.Claim,
    time: AttemptTime,
    outcomes: Mapping[int, Outcome],
    *,
    event: Event | None = None,
    waiting: types.EntrySchedule | None = None,
) -> types.ClaimResult:
    return types.ClaimResult(
        claim,
        time.at_us,
        outcomes,
        waiting,
        events=() if event is None else (event,),
        counts_as_attempt=bool(outcomes),
        fallback_us=claim.extra.fallback_us,
    )


def _unanswered(
    claim: types.Claim, outcomes: Mapping[int, Outcome], *, most: int
) -> tuple[dict[int, Failed], types.Unanswered]:
    """Return the recipients that fail because `most` attempts got no answer to the final dot. Also
    return the counts of the others, () if this attempt has no such outcome.
    """
    doubtful = {
        number: outcome
        for number, outcome in outcomes.items()
        if isinstance(outcome, Indeterminate) and outcome.unanswered
    }
    if not doubtful:  # nearly always
        return {}, ()
    counts = Counter(dict(claim.extra.unanswered))
    counts.update(doubtful.keys())
    failed = {
        number: Failed(_no_answer(outcome.evidence, attempts=counts[number]))
        for number, outcome in doubtful.items()
        if counts[number] >= most
    }
    numbers = [recipient.id for recipient in claim.recipients]
    waiting = [number for number in numbers if number not in failed and counts[number]]
    return failed, tuple((number, counts[number]) for number in waiting)


def _no_answer(evidence: Evidence, *, attempts: int) -> Evidence:
    times = counted(attempts, "attempt")
    text = f"it is not known whether the message arrived: no answer after the final dot, {times}"
    reply = f"{text}; last: {evidence.reply}"
    return replace(evidence, status="5.4.2", reply=reply)  # RFC 3463 3.5


def partial_result(
    claim: types.Claim, outcomes: Mapping[int, Outcome], *, time: AttemptTime
) -> AttemptResult:
    """The result for recipients that are done while the attempt goes on with the others."""
    event = _attempt_event(claim, outcomes, time)
    reported = _successes(claim, outcomes, at_us=time.at_us)
    owed = {recipient.path for group in reported.values() for recipient in group}
    commit = replace(
        _commit(claim, time, outcomes, event=event),
        goes_on=True,
        owed=[recipient.id for recipient in claim.recipients if recipient.path in owed],
    )
    return AttemptResult(commit, time, reported)


def requeue_result(claim: types.Claim, *, time: AttemptTime) -> AttemptResult:
    """Requeue a claim without an attempt; report its delay if that is due."""
    warned, late = _warning(claim, claim.recipients, {}, time=time)
    waiting = _as_before(claim, warn_us=warned, now_us=time.now_us)
    next_us = claim.retry_us
    if claim.state in HELD_OR_CAPTURED and waiting.due_us <= time.now_us:
        # It may have expired, or may not; its hold may end before the next look.
        again_us = time.now_us + _UNSURE_EXPIRY_US
        ends_us = next_us if next_us is not None and next_us > time.now_us else again_us
        waiting = replace(waiting, due_us=min(again_us, ends_us))
    elif next_us is not None and next_us <= time.now_us:
        # It is due and is attempted before it expires: its due time stays.
        waiting = replace(waiting, due_us=min(claim.due_us, waiting.due_us))
    commit = _commit(claim, time, {}, waiting=waiting)
    return AttemptResult(replace(commit, ends_warning=late is not None), time, late=late)


def same_outcome(claim: types.Claim, outcome: Outcome) -> dict[int, Outcome]:
    """The same outcome for all recipients."""
    return {recipient.id: outcome for recipient in claim.recipients}


def internal_error_outcomes(claim: types.Claim) -> dict[int, Outcome]:
    """Return the outcomes of an attempt that ended with an internal error; the log has it."""
    return same_outcome(claim, INTERNAL)


def unrecorded_result(
    claim: types.Claim, outcomes: Mapping[int, Outcome], *, time: AttemptTime
) -> AttemptResult:
    """The result for a claim whose result was not recorded, by an internal error.

    If no host can have the message, it is retried later. If one may have it, the claim is
    indeterminate and held for an operator: a retry would deliver it again each time the error
    recurs.
    """
    again_us = time.now_us + _UNRECORDED_US
    if not outcomes:
        later = claim
        if claim.state not in HELD_OR_CAPTURED:  # an operator sees the time, and may hurry it
            later = replace(claim, retry_us=max(again_us, claim.retry_us or 0))
        waiting = _as_before(later, warn_us=claim.warn_us, now_us=again_us)
        return AttemptResult(_commit(claim, time, {}, waiting=waiting), time)
    # local delivery finds its copy again
    doubtful = (Relayed, Indeterminate) + (() if claim.next_hop == LOCAL else (Delivered,))
    may_be_delivered = any(isinstance(outcome, doubtful) for outcome in outcomes.values())
    concluded = same_outcome(claim, UNRECORDED if may_be_delivered else INTERNAL)
    waiting = types.EntrySchedule(
        retry_us=None if may_be_delivered else again_us,
        level=claim.level,
        warn_us=claim.warn_us,
        due_us=max(again_us, claim.expires_us) if may_be_delivered else again_us,
        cause=DeferralClass.INTERNAL,
        cause_attempts=claim.cause_attempts + 1,
    )
    reason = _NOT_RECORDED if may_be_delivered else ""
    event = _attempt_event(claim, concluded, time, held=reason)
    commit = _commit(claim, time, concluded, event=event, waiting=waiting)
    return AttemptResult(replace(commit, held=may_be_delivered), time)


def expiry_result(claim: types.Claim, *, time: AttemptTime) -> AttemptResult:
    """Expire every recipient of the claim, with the last reply that it got.

    Captured mail gets no reports, because it was not meant to be sent; nor does mail that a rule
    holds silently.
    """
    expired: dict[int, Outcome] = {}
    reported: dict[int, ReportedRecipient] = {}
    requests = [request for request in claim.extra.requests if request.sent_us]
    sent = {number for request in requests for number in request.recipients}
    rule = claim.extra.rule if claim.is_held_by_rule else ""
    is_silent = bool(rule) and claim.extra.silent
    for recipient in claim.recipients:
        evidence = _expiry_evidence(claim, recipient)
        if recipient.id in sent:
            evidence = replace(evidence, reply=f"{_NOT_ANSWERED}; {evidence.reply}")
        expired[recipient.id] = Failed(evidence)
        if not (claim.state is RecipientState.CAPTURED or is_silent):
            # The time of the last attempt is not known here.
            report = _reported(claim, recipient, evidence, at_us=0)
            reported[recipient.id] = replace(report, rule=rule)
    details = [
        _recipient_detail(recipient, RecipientState.EXPIRED, expired[recipient.id].evidence)
        for recipient in claim.recipients
    ]
    detail = AttemptDetail(
        entry=claim.entry_id,
        next_hop=str(claim.next_hop),
        route=claim.next_hop.route,
        expired=len(details),
        recipients=details[:_DETAIL_RECIPIENTS_MAX],
        rule=rule,
        silent=is_silent,
    )
    event = Event(time.at_us, detail)
    commit = replace(_commit(claim, time, {}, event=event), expired=expired)
    unknown = tuple([reported.pop(number) for number in sorted(sent & reported.keys())])
    kinds = {ReportKind.FAILED: tuple(reported.values()), ReportKind.UNKNOWN: unknown}
    return AttemptResult(commit, time, kinds)


def deferral_class(outcome: Outcome) -> str:
    """The deferral class, for the `class` label; "" for other outcomes."""
    return outcome.kind if isinstance(outcome, Deferred) else ""


OUTCOME_NAMES: Mapping[type[Outcome], str] = {  # in traces, metrics and logs
    Delivered: "delivered",
    Relayed: "relayed",
    Captured: "captured",
    Deferred: "deferred",
    Failed: "failed",
    Indeterminate: "indeterminate",
}


def _as_deferred(outcome: Outcome) -> Outcome:
    """Return the outcome for an entry that is kept until it expires."""
    if isinstance(outcome, Failed):
        return Deferred(outcome.evidence, DeferralClass.RECIPIENT)
    return outcome


def _waiting(claim: types.Claim, schedule: types.EntrySchedule) -> types.EntrySchedule:
    """Return the schedule with its due time, at the earliest the one that it has: an expired
    recipient ends at the next check.
    """
    retry_us, warn_us = schedule.retry_us, schedule.warn_us
    due_us = earliest_due_us(retry_us, warn_us=warn_us, end_us=claim.end_us)
    return replace(schedule, due_us=max(schedule.due_us, due_us))


def _as_before(claim: types.Claim, *, warn_us: int | None, now_us: int) -> types.EntrySchedule:
    """The schedule of a claim that was not attempted."""
    before = types.EntrySchedule(
        retry_us=claim.retry_us,
        due_us=now_us,
        level=claim.level,
        cause=claim.cause,
        cause_attempts=claim.cause_attempts,
        warn_us=warn_us,
    )
    waiting = _waiting(claim, before)
    if claim.state is RecipientState.HELD and claim.extra.order is not None:
        waiting = replace(waiting, due_us=min(waiting.due_us, now_us + _UNSURE_EXPIRY_US))
    return waiting


def late_elsewhere(
    claim: types.Claim, waiting: Mapping[int, Sequence[types.ClaimedRecipient]]
) -> tuple[ReportedRecipient, ...]:
    """The recipients of other entries of the message for its delay report, by `waiting`."""
    return tuple(
        _late(replace(claim, entry_id=number), recipient, None, at_us=0)
        for number, recipients in waiting.items()
        for recipient in recipients
        if number != claim.entry_id and _hears_of_delay(recipient)
    )


def postponed_warning(result: AttemptResult) -> AttemptResult:
    """The result without its delay report, which is due again later."""
    waiting = result.commit.waiting
    assert waiting is not None
    again_us = result.time.now_us + _UNRECORDED_US
    waiting = replace(waiting, warn_us=again_us, due_us=min(waiting.due_us, again_us))
    commit = replace(result.commit, waiting=waiting, ends_warning=False)
    return replace(result, commit=commit, late=None)


def _warning(
    claim: types.Claim,
    waiting: Iterable[types.ClaimedRecipient],
    outcomes: Mapping[int, Outcome],
    *,
    time: AttemptTime,
) -> tuple[int | None, tuple[ReportedRecipient, ...] | None]:
    """When a delay report is due; and who is late, None if it is not due now."""
    if claim.warn_us is None or time.now_us < claim.warn_us:
        return claim.warn_us, None
    if claim.next_hop == CAPTURE:
        return None, None
    return None, tuple(
        _late(claim, recipient, outcomes.get(recipient.id), at_us=time.at_us)
        for recipient in waiting
        if _hears_of_delay(recipient)
    )


def _hears_of_delay(recipient: types.ClaimedRecipient) -> bool:
    """Whether a delay report may name the recipient (RFC 3461 4.1). The sender knows of none that a
    rule added.
    """
    notify = recipient.path.notify
    return not recipient.added_by and (not notify or Notify.DELAY in notify)


def _late(
    claim: types.Claim, recipient: types.ClaimedRecipient, outcome: Outcome | None, *, at_us: int
) -> ReportedRecipient:
    """`outcome` comes from the attempt at `at_us`; None if this did not attempt the recipient."""
    if outcome is not None:
        return _reported(claim, recipient, outcome.evidence, at_us=at_us)
    reply = recipient.reply or "not attempted yet"
    evidence = Evidence(recipient.status or "4.4.7", reply)
    return _reported(claim, recipient, evidence, at_us=0)


def _successes(
    claim: types.Claim, outcomes: Mapping[int, Outcome], *, at_us: int
) -> dict[ReportKind, tuple[ReportedRecipient, ...]]:
    """Return the recipients that are delivered or relayed and whose sender asked for a report of
    success that the next host does not make (RFC 3461 4.1, 5.2.2 and 5.2.3).
    """
    delivered: list[ReportedRecipient] = []
    relayed: list[ReportedRecipient] = []
    for recipient in claim.recipients:
        if Notify.SUCCESS not in recipient.path.notify:  # nearly always
            continue
        match outcomes.get(recipient.id):
            case Delivered(evidence, offers_dsn=False):
                reported = _reported(claim, recipient, evidence, at_us=at_us)
                delivered.append(replace(reported, is_delivered=True))
            case Relayed(evidence, offers_dsn=False):
                relayed.append(_reported(claim, recipient, evidence, at_us=at_us))
    return {ReportKind.DELIVERED: tuple(delivered), ReportKind.RELAYED: tuple(relayed)}


def _expiry_evidence(claim: types.Claim, recipient: types.ClaimedRecipient) -> Evidence:
    if claim.state is RecipientState.CAPTURED:
        return Evidence("5.4.7", "captured; its retention time is over")
    if claim.is_held_by_rule:
        return Evidence("5.4.7", "it was held, and not released in time")
    text = recipient.reply or "no attempt succeeded"
    return Evidence("5.4.7", f"delivery time expired; last: {text}")


def _attempt_event(
    claim: types.Claim,
    outcomes: Mapping[int, Outcome],
    time: AttemptTime,
    *,
    held: str = "",
    retry: str = "",
) -> Event:
    """`held` is why an operator must act, "" if the claim is not held; `retry` is the time of the
    next attempt, if there is one.
    """
    details = [
        _recipient_detail(recipient, OUTCOME_NAMES[type(outcome)], outcome.evidence)
        for recipient in claim.recipients
        if (outcome := outcomes.get(recipient.id)) is not None
    ]
    first = next(iter(outcomes.values())).evidence if outcomes else Evidence("", "")
    session, lookup = first.session if time.lookup else None, time.lookup or Lookup()
    policy = lookup.policy(first.host, session) if session else ""
    detail = AttemptDetail(
        entry=claim.entry_id,
        attempt=claim.attempts + 1,
        next_hop=str(claim.next_hop),
        route=claim.next_hop.route,
        host=first.host,
        tls=first.tls,
        recipients=details[:_DETAIL_RECIPIENTS_MAX],
        address=first.address,
        cipher=first.cipher,
        hosts=first.hosts,
        encoded=first.encoded,
        left_out=_of_copies(outcomes, "left_out"),
        not_carried=_of_copies(outcomes, "not_carried"),
        # what is usual is left out: attempts_in() knows it
        policy="" if policy == tls_policy.USUAL_POLICY and time.took_s is not None else policy,
        verified=session.verified if session and session.verified != "none" else "",
        durations=_durations(session, lookup, time.took_s) if time.lookup else {},
        mx=lookup.mx,
        mx_more=lookup.mx_more,
        held=held,
        retry=retry,
    )
    return Event(time.at_us, detail)


def _of_copies(outcomes: Mapping[int, Outcome], field: str) -> tuple[str, ...]:
    """Return once what the copies of an attempt lack, by this field of the evidence."""
    copies = dict.fromkeys([getattr(outcome.evidence, field) for outcome in outcomes.values()])
    return tuple(dict.fromkeys(name for copy in copies for name in copy))


def _durations(
    session: SessionEvidence | None, lookup: Lookup, took_s: float | None
) -> dict[str, float]:
    """Return the fields of Durations that are known."""
    if took_s is None:
        return {}
    total_ms, durations = 1000 * took_s, {}
    if session is None or session.connect_ms is not None:  # otherwise it was open already
        durations["dns"] = lookup.dns_ms
        total_ms += lookup.dns_ms
    if session is not None and session.connect_ms is not None:
        durations["connect"] = session.connect_ms
        if session.tls_ms:
            durations["tls"] = session.tls_ms
    durations["total"] = round(total_ms, 1)
    return durations


def _recipient_detail(
    recipient: types.ClaimedRecipient, outcome: str, evidence: Evidence
) -> AttemptedRecipient:
    return AttemptedRecipient(
        recipient.id,
        recipient.path.address,
        outcome,
        evidence.status,
        evidence.reply[:_REPLY_CHARACTERS_MAX],
        evidence.graph_id,
        evidence.provider,
    )


def _reported(
    claim: types.Claim, recipient: types.ClaimedRecipient, evidence: Evidence, *, at_us: int
) -> ReportedRecipient:
    return ReportedRecipient(
        recipient.path,
        evidence,
        added_by=recipient.added_by,
        last_attempt_us=at_us,
        log_id=f"{claim.message.id}-{claim.entry_id}",
        last_status=recipient.status,
    )
