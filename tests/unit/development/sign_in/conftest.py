"""Fixtures: development relays where users sign in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on
from tests.support.user_sign_in import THE_TOKEN, Development


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[Development]:
    with store_on(tmp_path / "mail", ManualClock()) as store:
        made = Development(store=store)
        async with made.http:
            yield made


@pytest.fixture
async def guarded() -> AsyncIterator[Development]:
    """A relay with --token."""
    made = Development(THE_TOKEN)
    async with made.http:
        yield made
