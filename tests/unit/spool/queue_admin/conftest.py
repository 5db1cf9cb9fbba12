"""A desk whose delivery is a Memory, and mail that was put off."""

import pytest

from relay.spool.types import EntrySchedule, PriorityLevel, Settlement
from tests.unit.spool.queue_admin.operator import HOUR_US, LATER, Memory


@pytest.fixture
def memory(spool) -> Memory:
    memory = Memory()
    spool.queue_admin.attend(memory)
    return memory


@pytest.fixture
def defer(spool, make, clock):
    """Accept a message and put all its entries off by an hour."""

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
