"""What a claim came for: to be tried, to be given up, or only to be told about and put back.

On the path: the dispatcher asks for each claim, when it comes and when its time is over.
Holds: pure; a held or captured one is never tried; what was never tried gets its one attempt, and
    so does what came due while the relay was down. What gets none ends by the sure time.
Fails: never.
Standards: RFC 5321 4.5.4.1; docs/design.md 7.6. Times are steady time.
"""

from enum import Enum, auto

from relay.message.lifecycle import PARKED, State
from relay.spool.types import Claim


class Errand(Enum):
    """What to do with a claim."""

    TRY = auto()
    EXPIRE = auto()
    PUT_BACK = auto()  # it waits on: at most its sender hears that it is late


def errand_of(claim: Claim, *, now_us: int, sure_us: int, started_us: int) -> Errand:
    """`started_us` is when this relay started; `sure_us` is Clock.sure_us()."""
    ends_us = end_us(claim, started_us=started_us)
    is_parked = claim.state in PARKED
    if ends_us is not None and (sure_us if is_parked else now_us) >= ends_us:
        return Errand.EXPIRE
    if is_parked:
        return Errand.PUT_BACK
    is_over = now_us >= claim.message.expires_us
    if claim.retry_us is not None and now_us < claim.retry_us and not is_over:
        return Errand.PUT_BACK
    return Errand.TRY


def end_us(claim: Claim, *, started_us: int) -> int | None:
    """When the claim is given up wherever it waits; None for not before it was tried once more."""
    if claim.state is State.CAPTURED:
        return claim.due_us  # kept for a time, whatever its message says
    if claim.state is State.HELD:
        return claim.message.expires_us
    if claim.attempts == 0 or claim.due_us < started_us:
        return None
    return claim.message.expires_us
