"""Which operations apply to which states, and which commands are invalid."""

from dataclasses import replace

import pytest

from relay.base.message.lifecycle import RecipientState
from relay.store.spool.queue_commands import (
    LIVE,
    Operation,
    QueueCommand,
    RouteLookup,
)
from relay.store.spool.types import Selector
from tests.support.operator import command, own_mx


def made(operation: Operation, to: RouteLookup | None = None) -> QueueCommand:
    """A valid command."""
    to = own_mx if operation is Operation.REROUTE else to
    return QueueCommand(operation, Selector(all=True), "operator", to=to)


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
