"""Which operations mean something for which states, and which orders make no sense."""

from dataclasses import replace

import pytest

from relay.message.lifecycle import FINAL, TRANSITIONS, RecipientState, check_transition
from relay.spool.queue_commands import (
    LIVE,
    Operation,
    inapplicable_reason,
    state_after,
    states_before,
)
from relay.spool.types import Selector
from tests.unit.spool.queue_admin.operator import ordered, own_mx


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("state", LIVE)
def test_whatever_may_be_done_is_in_the_table_of_states(operation, state) -> None:
    if inapplicable_reason(operation, state):
        return
    after = state_after(operation, state)
    if after is not state:
        check_transition(state, after)
        assert state in states_before(after)


@pytest.mark.parametrize(
    ("operation", "states"),
    [
        ("retry", "queued deferred"),
        ("hold", "queued deferred held"),
        ("release", "held"),
        ("cancel", "queued deferred held captured"),
        ("reroute", "queued deferred held captured"),
    ],
)
def test_what_may_be_done_to_what(operation: str, states: str) -> None:
    allowed = [one for one in LIVE if not inapplicable_reason(Operation(operation), one)]
    assert allowed == [RecipientState(one) for one in states.split()]


def test_what_lives_and_what_has_ended_are_all_states() -> None:
    assert {*LIVE} | FINAL == set(RecipientState)
    assert all(TRANSITIONS[one] for one in LIVE)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"selector": Selector()}, "select entries"),
        ({"why": "two\nlines"}, "reason: expected one line"),
        ({"why": "x" * 501}, "reason: expected one line"),
        ({"to": own_mx}, "takes a next hop"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(change, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(ordered("hold"), **change)
