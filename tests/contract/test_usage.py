"""What accounts send is in the spool, for the next start and for other nodes."""

from collections.abc import Callable

import pytest

from relay.base.accounts.usage import DAY_US, BeyondLimit, UsageCounter
from relay.base.settings.tree import NO_LIMITS, Limits
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.types import SpoolUnavailableError
from relay.store.spool.usage import UsageLedger

ALICE, HOUR_S = "alice@example.test", 3600.0


@pytest.fixture
def node(clock) -> Callable[..., tuple[UsageCounter, UsageLedger]]:
    """Return a function that makes what a node has; each account may have ten recipients in an hour."""

    def node(spool: SpoolEngine, name: str = "one.test") -> tuple[UsageCounter, UsageLedger]:
        limits = Limits(recipients=(f"10/{HOUR_S}",))
        usage = UsageCounter(
            clock, limits_of=lambda _: (NO_LIMITS, limits), is_own=lambda one: one == "example.test"
        )
        return usage, UsageLedger(spool, usage, clock, node=name)

    return node


def outside(count: int) -> list[str]:
    return [f"{number}@other.test" for number in range(count)]


async def test_nodes_share_one_count_which_a_start_continues(spool, restart, clock, node) -> None:
    (first, its), (second, theirs) = node(spool), node(spool, "two.test")
    near = []
    second.on_near = near.append
    for one in (its, theirs):
        await one.exchange()
    first.reserve(ALICE, outside(4)).keep()
    first.reserve(ALICE, outside(5)).give_back()
    second.reserve(ALICE, outside(3)).keep()
    for one in (its, theirs, its):
        await one.exchange()
    assert near == []
    assert isinstance(first.reserve(ALICE, outside(4)), BeyondLimit)
    second.reserve(ALICE, outside(3)).keep()
    (used,) = near
    assert (used.limit.rate, used.used) == ("10/1h", 10)
    beyond = second.reserve(ALICE, outside(1))
    assert (near[1], beyond.over.until_us) == (beyond.over, used.until_us)
    assert 0 < used.until_us / 1e6 - clock.time_us() / 1e6 - HOUR_S <= 60
    await theirs.exchange()
    third, ledger = node(await restart(), "two.test")
    third.reserve(ALICE, outside(1)).keep()  # the spool was not read yet
    await ledger.exchange()
    (today,) = third.busiest(20)
    assert (today.messages, today.recipients, today.limits[0].used) == (4, 11, 11)
    clock.advance(62 * 60)
    assert third.today(ALICE).limits[0].used == 0


async def test_a_write_that_fails_is_repeated_and_old_rows_go(
    spool, clock, node, monkeypatch
) -> None:
    usage, ledger = node(spool)
    await ledger.exchange()
    usage.reserve(ALICE, outside(2)).keep()

    async def away(_):
        raise SpoolUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(spool, "change", away)
        with pytest.raises(SpoolUnavailableError):
            await ledger.exchange()
    await ledger.exchange()
    rows = "SELECT account, node FROM usage"
    assert await spool.read(lambda one: [tuple(row) for row in one.fetch(rows)]) == [
        (ALICE, "one.test")
    ]
    clock.advance(DAY_US / 1e6)
    await ledger.prune()
    other, its = node(spool)
    await its.exchange()
    assert (usage.busiest(9), other.today(ALICE).recipients) == ([], 0)
    clock.advance(1 + DAY_US / 1e6)
    await ledger.prune()
    assert await spool.read(lambda one: one.fetch(rows)) == []
