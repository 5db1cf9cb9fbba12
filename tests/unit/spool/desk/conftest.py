"""A desk whose delivery is a Memory, and mail that was put off."""

import pytest

from relay.spool.types import Settlement
from relay.spool.waiting import Lane, Waiting
from tests.unit.spool.desk.operator import HOUR_US, LATER, Memory


@pytest.fixture
def memory(spool) -> Memory:
    memory = Memory()
    spool.desk.attend(memory)
    return memory


@pytest.fixture
def defer(spool, make, clock):
    """Accept a message and put all its entries off by an hour."""

    async def defer(hops=None, **changes) -> str:
        accepted = await spool.accept(make(hops, **changes))
        for claim in accepted.claims:
            retry_us = clock.steady_us() + HOUR_US
            outcomes = {one.id: LATER for one in claim.recipients}
            await spool.settle(
                Settlement(claim, 5, outcomes, Waiting(retry_us, retry_us, Lane.DOWN, "dns", 3))
            )
        return accepted.queue_id

    return defer
