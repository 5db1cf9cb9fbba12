"""Fixtures: development relays where users sign in."""

from collections.abc import AsyncIterator

import pytest

from tests.support.user_sign_in import THE_TOKEN, Development


@pytest.fixture
async def dev() -> AsyncIterator[Development]:
    made = Development()
    async with made.http:
        yield made


@pytest.fixture
async def guarded() -> AsyncIterator[Development]:
    """A relay with --token."""
    made = Development(THE_TOKEN)
    async with made.http:
        yield made
