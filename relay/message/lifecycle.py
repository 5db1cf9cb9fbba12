"""The states of a recipient and the only table of their transitions.

On the path: the spool asks it before it writes a state.
Holds: a final state is never left.
Fails: ValueError for a transition that is not in the table.
Standards: names from docs/names.md (states); RFC 5321 6.1.
"""

from enum import StrEnum


class State(StrEnum):
    """Where one recipient of one message stands."""

    QUEUED = "queued"
    DEFERRED = "deferred"
    HELD = "held"
    CAPTURED = "captured"
    DELIVERED = "delivered"  # in a Maildir here
    RELAYED = "relayed"  # a remote SMTP host's 250
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"
    REDIRECTED = "redirected"
    EXPANDED = "expanded"


FINAL = frozenset(State) - {State.QUEUED, State.DEFERRED, State.HELD, State.CAPTURED}

_FROM_QUEUED = frozenset(State) - {State.QUEUED}
PARKED = (State.HELD, State.CAPTURED)  # not tried until an operator acts
_FROM_PARKED = frozenset({State.QUEUED, State.CANCELLED, State.DISCARDED, State.EXPIRED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: _FROM_QUEUED,
    State.DEFERRED: _FROM_QUEUED | {State.QUEUED},
    State.HELD: _FROM_PARKED | {State.DEFERRED},  # a hold that is undone
    State.CAPTURED: _FROM_PARKED,
    **{state: frozenset() for state in FINAL},
}


def check_transition(before: State, after: State) -> None:
    """Raise ValueError unless `before` may become `after`."""
    if after not in TRANSITIONS[before]:
        raise ValueError(f"a recipient that is {before} cannot become {after}")


def message_state(states: list[State]) -> State:
    """Return the one word for a whole message: the least finished state first, then the worst end.

    The order says what its sender most needs to know. No recipients at all is "discarded".
    """
    for state in _TELLING_ORDER:
        if state in states:
            return state
    return State.DISCARDED


_TELLING_ORDER = (
    State.DEFERRED,
    State.QUEUED,
    State.HELD,
    State.FAILED,
    State.EXPIRED,
    State.CANCELLED,
    State.CAPTURED,
    State.DISCARDED,
    State.RELAYED,
    State.DELIVERED,
    State.REDIRECTED,
    State.EXPANDED,
)
