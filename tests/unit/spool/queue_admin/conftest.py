"""Queue administration with fake active claims, and deferred mail."""

import pytest

from relay.spool.types import EntrySchedule, PriorityLevel, Settlement
from tests.unit.spool.queue_admin.operator import HOUR_US, LATER, FakeActiveClaims


@pytest.fixture
def active_claims(spool) -> FakeActiveClaims:
    active_claims = FakeActiveClaims()
    spool.queue_admin.attend(active_claims)
    return active_claims


@pytest.fixture
def defer(spool, make, clock):
    """Accept a message and defer all its entries by one hour."""

    async def defer(hops=None, **changes) -> str:
        accepted = await spool.accept(make(hops, **changes))
        for claim in accepted.claims:
            retry_us = clock.queue_us() + HOUR_US
            outcomes = {one.id: LATER for one in claim.recipients}
            await spool.settle(
                Settlement(
                    claim,
                    5,
                    outcomes,
                    EntrySchedule(retry_us, retry_us, PriorityLevel.UNREACHABLE, "dns", 3),
                )
            )
        return accepted.queue_id

    return defer
