"""What pickup decides: what a submission came to, when to try again, when to stop.

On the path: the daemon asks; nothing here does anything.
Holds: pure; only a 5yz about the message itself, or time, ends a note with a report.
Fails: never.
Standards: RFC 3463 (5.4.7 expired, 5.6.x content).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from relay.message.outcome import (
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
# The spool keeps a submission's key at least this much longer than pickup tries.
KEY_MARGIN_S = 7 * 86400.0

_QUEUED_AS = re.compile(r"\bqueued as ([0-9A-Za-z]+)")


@dataclass(frozen=True, slots=True)
class Accepted:
    """The relay answered 250: it has the message, durably, under `queue_id`."""

    queue_id: str


@dataclass(frozen=True, slots=True)
class Later:
    """Not now; the same submission can be repeated without harm.

    `is_down`: the relay could not even be asked. `uncertain`: it may have accepted, its answer was
    not heard.
    """

    evidence: Evidence
    is_down: bool = False
    uncertain: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Never: the sender gets a report."""

    evidence: Evidence


Verdict = Accepted | Later | Refused


def verdict_of(outcomes: Iterable[Outcome]) -> Verdict:
    """Return what the outcomes of a whole transaction, one per recipient, mean for its note.

    One that may still go through keeps all: the repeat has the same key.
    """
    refused: Evidence | None = None
    accepted: Evidence | None = None
    for outcome in outcomes:
        match outcome:
            case Deferred(evidence):
                return Later(evidence)
            case Indeterminate(evidence):
                return Later(evidence, uncertain=True)
            case Failed(evidence):
                refused = refused or evidence
            case Relayed(evidence) | Delivered(evidence):
                accepted = evidence
    if refused is not None:
        return Refused(replace(refused, host="", remote=False))  # the relay's own word
    if accepted is None:
        return Later(Evidence("4.3.0", "4.3.0 the submission has come to nothing"))
    found = _QUEUED_AS.search(accepted.reply)
    return Accepted(found[1] if found else "")


def delay_s(failures: int, chance: float) -> float:
    """Return the wait after the nth failure in a row; `chance` in [0, 1) spreads it ±10 %."""
    growing = FIRST_DELAY_S * 2.0 ** min(failures - 1, 16)
    return min(LONGEST_DELAY_S, growing) * (0.9 + 0.2 * chance)


@dataclass(frozen=True, slots=True)
class End:
    """How a note ends without being sent; `unknown`: it may have been sent, nobody can tell."""

    evidence: Evidence
    unknown: bool = False


def given_up(
    age_s: float, give_up_after_s: float, last: Evidence, *, uncertain: bool
) -> End | None:
    """Return how a note ends that has been tried for too long; None to go on.

    `uncertain`: an attempt ended without an answer, and no later one told what had become of it.
    """
    if age_s <= give_up_after_s:
        return None
    within = _told(give_up_after_s)
    if not uncertain:
        reply = f"5.4.7 not accepted within {within}; at last: {last.reply}"
        return End(Evidence("5.4.7", reply))
    reply = (
        f"4.4.7 an attempt ended without an answer, and none came within {within}; it is unknown "
        f"whether the message was sent; at last: {last.reply}"
    )
    return End(Evidence("4.4.7", reply), unknown=True)


def too_old(age_s: float, give_up_after_s: float) -> End | None:
    """Return how a note ends whose key may be forgotten; None if it may be sent.

    Sent again it could arrive twice, so it never is.
    """
    if age_s <= give_up_after_s + KEY_MARGIN_S:
        return None
    reply = f"4.4.7 found after {_told(age_s)}; it is unknown whether it was sent, so it is not now"
    return End(Evidence("4.4.7", reply), unknown=True)


def _told(seconds: float) -> str:
    for unit_s, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds:g} seconds"
