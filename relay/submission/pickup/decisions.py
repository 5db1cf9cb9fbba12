"""Decide the outcome of a submission, the delay before a retry, and when to give up.

Pure functions. Only a 5yz reply about the message itself, or its age, ends a submission with a
report.

RFC 3463 (5.4.7 expired, 5.6.x content).
"""

import re
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.outcome import (
    Deferred,
    Delivered,
    Evidence,
    Failed,
    Indeterminate,
    Outcome,
    Relayed,
)

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 30.0
GIVE_UP_AFTER_S = 86400.0  # from the submission
# The spool keeps a submission's key at least this long after pickup has given up.
KEY_MARGIN_S = 7 * 86400.0

_QUEUED_AS = re.compile(r"\bqueued as ([0-9A-Za-z]+)")


class SubmissionAccepted(Struct, frozen=True):
    """The server replied 250: the message is durable under `queue_id`."""

    queue_id: str


class SubmissionDeferred(Struct, frozen=True):
    """A temporary failure; the submission is retried.

    `is_down`: no connection was possible. `uncertain`: the message may have been accepted, but no
    reply was read.
    """

    evidence: Evidence
    is_down: bool = False
    uncertain: bool = False


class FinalFailure(Struct, frozen=True):
    """Why a submission ends with a report and is not sent; `unknown`: it may have been sent."""

    evidence: Evidence
    unknown: bool = False


SubmissionOutcome = SubmissionAccepted | SubmissionDeferred | FinalFailure


def submission_outcome(outcomes: Iterable[Outcome]) -> SubmissionOutcome:
    """Return the outcome of a transaction from the outcomes of its recipients.

    If one recipient is deferred, the whole submission is retried, with the same key.
    """
    rejected: Evidence | None = None
    accepted: Evidence | None = None
    for outcome in outcomes:
        match outcome:
            case Deferred(evidence):
                return SubmissionDeferred(evidence)
            case Indeterminate(evidence):
                return SubmissionDeferred(evidence, uncertain=True)
            case Failed(evidence):
                rejected = rejected or evidence
            case Relayed(evidence) | Delivered(evidence):
                accepted = evidence
    if rejected is not None:
        return FinalFailure(replace(rejected, host="", remote=False))
    if accepted is None:
        return SubmissionDeferred(Evidence("4.3.0", "4.3.0 the transaction had no result"))
    match = _QUEUED_AS.search(accepted.reply)
    return SubmissionAccepted(match[1] if match else "")


def retry_delay_s(failures: int, jitter: float) -> float:
    """Return the delay after the nth failure in a row; `jitter` in [0, 1) spreads it ±10 %."""
    growing = FIRST_DELAY_S * 2.0 ** min(failures - 1, 16)
    return min(LONGEST_DELAY_S, growing) * (0.9 + 0.2 * jitter)


def give_up(last: Evidence, *, uncertain: bool) -> FinalFailure:
    """Return the final failure of a submission that is older than GIVE_UP_AFTER_S.

    `uncertain`: an attempt ended without a reply, and no later attempt had a definite result.
    """
    within = _duration(GIVE_UP_AFTER_S)
    if not uncertain:
        reply = f"5.4.7 not accepted within {within}; at last: {last.reply}"
        return FinalFailure(Evidence("5.4.7", reply))
    reply = (
        f"4.4.7 an attempt ended without an answer, and none came within {within}; it is unknown "
        f"whether the message was sent; at last: {last.reply}"
    )
    return FinalFailure(Evidence("4.4.7", reply), unknown=True)


def key_expired(age_s: float) -> FinalFailure | None:
    """Return the final failure of a submission whose key the spool may have removed, or None.

    Such a submission is not sent, because it could arrive twice.
    """
    if age_s <= GIVE_UP_AFTER_S + KEY_MARGIN_S:
        return None
    reply = f"4.4.7 found after {_duration(age_s)}; it may have been sent and is not sent again"
    return FinalFailure(Evidence("4.4.7", reply), unknown=True)


def _duration(seconds: float) -> str:
    for unit_s, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds:g} seconds"
