"""Which commands are invalid."""

from dataclasses import replace

import pytest

from relay.store.spool.types import Selector
from tests.support.operator import command, own_mx


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
