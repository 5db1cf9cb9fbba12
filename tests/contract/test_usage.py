"""What accounts send is in the spool, for the next start and for other nodes."""

import pytest

from relay.base.accounts.usage import DAY_US, BeyondLimit, UsageCounter
from relay.store.spool.types import SpoolUnavailableError
from relay.store.spool.usage import UsageLedger
from tests.support.limits import usage_of

ALICE, HOUR_S = "alice@example.test", 3600.0


def outside(count: int) -> list[str]:
    return [f"{number}@other.test" for number in range(count)]


async def test_nodes_share_one_count_which_a_start_continues(
    spool, restart, clock, monkeypatch
) -> None:
    def node(name: str) -> tuple[UsageCounter, UsageLedger]:
        usage = usage_of(clock, recipients=(f"10/{HOUR_S}",))
        return usage, UsageLedger(spool, usage, clock, node=name)

    async def away(_):
        raise SpoolUnavailableError("away")

    (first, its), (second, theirs) = node("one.test"), node("two.test")
    second.on_near = (near := []).append
    await its.exchange()
    first.reserve(ALICE, outside(4)).keep()
    first.reserve(ALICE, outside(5)).give_back()
    with monkeypatch.context() as patch:
        patch.setattr(spool, "change", away)
        with pytest.raises(SpoolUnavailableError):
            await its.exchange()
    second.reserve(ALICE, outside(3)).keep()
    for one in (its, theirs, its):
        await one.exchange()
    assert (near, type(first.reserve(ALICE, outside(4)))) == ([], BeyondLimit)
    second.reserve(ALICE, outside(3)).keep()
    beyond = second.reserve(ALICE, outside(1)).over
    assert [(one.limit.rate, one.used, one.until_us) for one in near] == [
        ("10/1h", 10, beyond.until_us)
    ] * 2
    assert 0 < beyond.until_us / 1e6 - clock.time_us() / 1e6 - HOUR_S <= 60
    await theirs.exchange()
    spool = await restart()
    third, ledger = node("two.test")
    third.reserve(ALICE, outside(1)).keep()  # the spool was not read yet
    await ledger.exchange()
    (today,) = third.busiest(20)
    assert (today.messages, today.recipients, today.limits[0].used) == (4, 11, 11)
    clock.advance(62 * 60)
    assert third.today(ALICE).limits[0].used == 0
    rows = "SELECT node FROM usage ORDER BY node"
    for days, left in ((1.0, ["one.test", "two.test"]), (1.1, [])):
        clock.advance(days * DAY_US / 1e6)
        await ledger.prune()
        assert [one for (one,) in await spool.read(lambda tables: tables.fetch(rows))] == left
    assert third.busiest(20) == []
