"""A checker of passwords under a clock that the test moves."""

import pytest

from relay.base.accounts.passwords import PasswordChecker
from tests.support.manual_clock import ManualClock


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def checker(clock):
    made = PasswordChecker(clock, rng=bytes)
    yield made
    made.close()
