"""The table of a recipient's states."""

import itertools

import pytest

from relay.base.message.lifecycle import FINAL, RecipientState, check_transition, message_state
from tests.support.tables import each_row

ALLOWED = {
    RecipientState.QUEUED: set(RecipientState) - {RecipientState.QUEUED},
    RecipientState.DEFERRED: set(RecipientState),
    RecipientState.HELD: {
        RecipientState.QUEUED,
        RecipientState.DEFERRED,
        RecipientState.CANCELLED,
        RecipientState.DISCARDED,
        RecipientState.EXPIRED,
    },
    RecipientState.CAPTURED: {
        RecipientState.QUEUED,
        RecipientState.CANCELLED,
        RecipientState.DISCARDED,
        RecipientState.EXPIRED,
    },
}


@each_row("before, after", list(itertools.product(RecipientState, RecipientState)))
def test_every_transition(before, after):
    if after in ALLOWED.get(before, set()):
        check_transition(before, after)
    else:
        with pytest.raises(ValueError, match=f"{before} cannot become {after}"):
            check_transition(before, after)


def test_final_states_are_those_of_the_contract():
    assert " ".join(sorted(FINAL)) == (
        "cancelled delivered discarded expanded expired failed redirected relayed"
    )


@each_row(
    "states, word",
    [
        ([], RecipientState.DISCARDED),
        ([RecipientState.DELIVERED, RecipientState.QUEUED], RecipientState.QUEUED),
        (
            [RecipientState.QUEUED, RecipientState.DEFERRED, RecipientState.FAILED],
            RecipientState.DEFERRED,
        ),
        ([RecipientState.DELIVERED, RecipientState.FAILED], RecipientState.FAILED),
        ([RecipientState.DELIVERED, RecipientState.RELAYED], RecipientState.RELAYED),
        ([RecipientState.EXPANDED, RecipientState.DELIVERED], RecipientState.DELIVERED),
    ],
)
def test_a_message_has_the_state_of_its_least_finished_recipient(states, word):
    assert message_state(states) is word


@each_row("state", RecipientState)
def test_a_message_with_one_recipient_has_its_state(state):
    assert message_state([state]) is state
