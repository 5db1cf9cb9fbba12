"""The states of a message and its recipients, and the table of transitions.

The spool checks each state that it writes against this table. A final state is never left. Which
state a submission has before the queue is derived in relay/store/journeys/open_submissions.py
(state_before_queue); which state an attempt leads to follows from its outcome (`outcome`).
The names are in docs/names.md (Steps and states). RFC 5321 6.1.
"""

from enum import StrEnum

from relay.base.phrases import words_in


class RecipientState(StrEnum):
    """The state of one recipient of one message; before step 4 it is queued."""

    QUEUED = "queued"  # waits for an attempt
    DEFERRED = "deferred"  # an attempt has failed; waits for the next
    HELD = "held"  # no attempt until a release, or the end of the hold
    CAPTURED = "captured"  # kept in the spool; only a release sends it
    DELIVERED = "delivered"  # final: in a local Maildir, or an LMTP host's 250
    RELAYED = "relayed"  # final: a remote SMTP host's 250, or sent by Graph
    FAILED = "failed"  # final: a permanent failure
    EXPIRED = "expired"  # final: not delivered in time
    CANCELLED = "cancelled"  # final: by an operator or the sender
    DISCARDED = "discarded"  # final: by a rule or a milter
    REDIRECTED = "redirected"  # final: another recipient has replaced it
    EXPANDED = "expanded"  # final: several recipients have replaced it


class SubmissionState(StrEnum):
    """The state of a message before step 4: none of its recipients is in the queue yet."""

    SCHEDULED = "scheduled"  # it waits for the time that the sender chose
    CONVERTING = "converting"  # pickup converts and submits it


BEFORE_QUEUE = frozenset(SubmissionState)

FINAL = frozenset(RecipientState) - {
    RecipientState.QUEUED,
    RecipientState.DEFERRED,
    RecipientState.HELD,
    RecipientState.CAPTURED,
}

LIVE = tuple(state for state in RecipientState if state not in FINAL)

AT_REST = FINAL | {RecipientState.CAPTURED}  # nothing happens to such a recipient by itself

_FROM_QUEUED = frozenset(RecipientState) - {RecipientState.QUEUED}
HELD_OR_CAPTURED = (
    RecipientState.HELD,
    RecipientState.CAPTURED,
)  # not attempted until an operator acts
_FROM_HELD_OR_CAPTURED = frozenset(
    {
        RecipientState.QUEUED,
        RecipientState.CANCELLED,
        RecipientState.DISCARDED,
        RecipientState.EXPIRED,
    }
)

TRANSITIONS: dict[RecipientState, frozenset[RecipientState]] = {
    RecipientState.QUEUED: _FROM_QUEUED,
    RecipientState.DEFERRED: _FROM_QUEUED | {RecipientState.QUEUED},
    RecipientState.HELD: _FROM_HELD_OR_CAPTURED | {RecipientState.DEFERRED},  # undoing a hold
    RecipientState.CAPTURED: _FROM_HELD_OR_CAPTURED,
    **{state: frozenset() for state in FINAL},
}


def check_transition(before: RecipientState, after: RecipientState) -> None:
    """Raise ValueError unless `before` may become `after`."""
    if after not in TRANSITIONS[before]:
        raise ValueError(f"a recipient that is {before} cannot become {after}")


def message_state(states: list[RecipientState]) -> RecipientState:
    """Return the state of a whole message: the least finished state, else the worst final state.

    The order is by importance to the sender. A message without recipients is "discarded".
    """
    return min(states, key=_ORDER_OF_IMPORTANCE.index, default=RecipientState.DISCARDED)


_ORDER_OF_IMPORTANCE = words_in(
    "deferred queued held failed expired cancelled captured discarded relayed delivered redirected "
    "expanded"
)


def by_importance(state: str) -> int:
    """Return the place of a state in the order by importance to the sender."""
    return _ORDER_OF_IMPORTANCE.index(state) if state in _ORDER_OF_IMPORTANCE else -1


OF_MILTER = "milter "  # and its name, in place of a rule


def rule_or_milter(name: str) -> str:
    """Return a rule's name, or "milter NAME", as text for people."""
    return name if name.startswith(OF_MILTER) else f'rule "{name}"'


def hold_text(reason: str, rule: str = "") -> str:
    """Return why an entry is held, as text for people that follows "by".

    `rule` is the rule or milter that holds it, "" if none does.
    """
    return f"{rule_or_milter(rule)}: {reason}" if rule else reason
