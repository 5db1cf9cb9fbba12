"""Which operations apply to which states, and which commands are invalid."""

from dataclasses import replace

import pytest

from relay.base.message.lifecycle import FINAL, TRANSITIONS, RecipientState, check_transition
from relay.store.spool.queue_commands import (
    LIVE,
    Operation,
    QueueCommand,
    RouteLookup,
    state_after,
    states_before,
)
from relay.store.spool.types import Selector
from tests.support.operator import command, own_mx


def made(operation: Operation, to: RouteLookup | None = None) -> QueueCommand:
    """A valid command."""
    to = own_mx if operation is Operation.REROUTE else to
    return QueueCommand(operation, Selector(all=True), "operator", to=to)


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("state", LIVE)
def test_every_operation_follows_the_table_of_states(operation, state) -> None:
    if made(operation).inapplicable_reason(state):
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
def test_the_states_that_an_operation_applies_to(operation: str, states: str) -> None:
    allowed = [one for one in LIVE if not made(Operation(operation)).inapplicable_reason(one)]
    assert allowed == [RecipientState(one) for one in states.split()]


def test_a_release_with_a_next_hop_takes_captured_mail_too() -> None:
    release = made(Operation.RELEASE, to=own_mx)
    allowed = [one for one in LIVE if not release.inapplicable_reason(one)]
    assert allowed == [RecipientState.HELD, RecipientState.CAPTURED]
    assert state_after(Operation.RELEASE, RecipientState.CAPTURED) is RecipientState.QUEUED


def test_live_and_final_states_are_all_states() -> None:
    assert {*LIVE} | FINAL == set(RecipientState)
    assert all(TRANSITIONS[one] for one in LIVE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selector": Selector()}, "select entries"),
        ({"why": "two\nlines"}, "reason: expected one line"),
        ({"why": "x" * 501}, "reason: expected one line"),
        ({"to": own_mx}, "takes a next hop"),
    ],
)
def test_an_invalid_command_is_refused(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(command("hold"), **change)
