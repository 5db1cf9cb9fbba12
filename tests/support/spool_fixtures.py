"""Fixtures of tests on a spool; the fixture `spool` is that of the tests that import them."""

import pytest

from relay.base.clock import Ids
from relay.base.message.nexthop import LOCAL, Destination
from relay.base.observe.metrics import Metrics
from relay.delivery.reports.bounces import Reporter
from relay.store.spool.types import ClaimResult, EntrySchedule, NewMessage, PriorityLevel
from tests.support.manual_clock import ManualClock
from tests.support.operator import HOUR_US, LATER, FakeActiveClaims
from tests.support.spools import message_of


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make(clock: ManualClock):
    """Return a function that builds a message for the given next hops: {"a.test": ["x@a.test"], "local": [...]}."""
    ids = Ids(clock)

    def make(
        hops: dict[str, list[str]] | None = None,
        content: bytes = b"Subject: s\r\n\r\nbody\r\n",
        **changes,
    ) -> NewMessage:
        hops = {"mx:a.test": ["x@a.test"]} if hops is None else hops
        values = {"contents": (content,), "account": "alice@example.test"} | changes
        return message_of(hops.items(), queue_id=ids.new(), now_us=clock.time_us(), **values)

    return make


@pytest.fixture
def reporter(clock: ManualClock) -> Reporter:
    """Makes the reports of a spool that is told `queue_admin.reports.writer = reporter`."""
    return Reporter(
        hostname="relay.test",
        clock=clock,
        ids=Ids(clock),
        destination_of=lambda *_: Destination(LOCAL),
        expire_after_s=3600,
        metrics=Metrics(),
    )


@pytest.fixture
def active_claims(spool) -> FakeActiveClaims:
    active_claims = FakeActiveClaims()
    spool.queue_admin.delivery = active_claims
    return active_claims


@pytest.fixture
def defer(spool, make, clock):
    """Accept a message and defer all its entries by one hour."""

    async def defer(hops=None, **changes) -> str:
        accepted = await spool.accept(make(hops, **changes))
        for claim in accepted.claims:
            retry_us = clock.queue_us() + HOUR_US
            outcomes = {one.id: LATER for one in claim.recipients}
            await spool.record(
                ClaimResult(
                    claim,
                    5,
                    outcomes,
                    EntrySchedule(retry_us, retry_us, PriorityLevel.UNREACHABLE, "dns", 3),
                )
            )
        return accepted.queue_id

    return defer


@pytest.fixture
def accept(spool, make, clock):
    """Accept unclaimed messages, each one microsecond later, and return their ids."""

    async def accept(hop: str, sender: str, count: int = 1, **changes) -> list[str]:
        names = []
        for _ in range(count):
            clock.now_us += 1
            message = make({hop: ["x@a.test"]}, account=sender, **changes)
            names.append((await spool.accept(message, claim=False)).queue_id)
        return names

    return accept
