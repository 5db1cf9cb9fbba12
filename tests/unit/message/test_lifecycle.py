"""The table of a recipient's states."""

import itertools

import pytest

from relay.message.lifecycle import FINAL, State, check_transition, message_state

ALLOWED = {
    State.QUEUED: set(State) - {State.QUEUED},
    State.DEFERRED: set(State),
    State.HELD: {
        State.QUEUED,
        State.DEFERRED,
        State.CANCELLED,
        State.DISCARDED,
        State.EXPIRED,
    },
    State.CAPTURED: {State.QUEUED, State.CANCELLED, State.DISCARDED, State.EXPIRED},
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_every_transition(before, after):
    if after in ALLOWED.get(before, set()):
        check_transition(before, after)
    else:
        with pytest.raises(ValueError, match=f"{before} cannot become {after}"):
            check_transition(before, after)


def test_final_states_are_the_contracts():
    assert " ".join(sorted(FINAL)) == (
        "cancelled delivered discarded expanded expired failed redirected relayed"
    )


@pytest.mark.parametrize(
    ("states", "word"),
    [
        ([], State.DISCARDED),
        ([State.DELIVERED, State.QUEUED], State.QUEUED),
        ([State.QUEUED, State.DEFERRED, State.FAILED], State.DEFERRED),
        ([State.DELIVERED, State.FAILED], State.FAILED),
        ([State.DELIVERED, State.RELAYED], State.RELAYED),
        ([State.EXPANDED, State.DELIVERED], State.DELIVERED),
    ],
)
def test_a_message_is_as_far_as_its_least_finished_recipient(states, word):
    assert message_state(states) is word


@pytest.mark.parametrize("state", State)
def test_one_recipient_speaks_for_the_message(state):
    assert message_state([state]) is state
