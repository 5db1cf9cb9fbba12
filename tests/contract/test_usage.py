"""What accounts send is in the spool, for the next start and for other nodes."""

import pytest

from relay.base.accounts.usage import DAY_US, BeyondLimit, UsageCounter
from relay.base.message.envelope import MessageExtra
from relay.base.message.outcome import Evidence, Relayed
from relay.store.journeys.details import AttemptDetail, AttemptedRecipient
from relay.store.journeys.events import Event
from relay.store.spool.queue_commands import Operation
from relay.store.spool.types import ClaimResult, EntrySchedule, Selector, SpoolUnavailableError
from relay.store.spool.usage import UsageLedger
from tests.contract.test_entry_extra import DOUBT
from tests.support.limits import usage_of
from tests.support.operator import LATER, command

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


async def test_what_an_operator_cancels_counts_no_longer_unless_it_may_have_been_sent(
    spool, make, clock
) -> None:
    counted, other = (usage_of(clock, recipients=(f"20/{HOUR_S}",)) for _ in range(2))
    ledgers = [
        UsageLedger(spool, usage, clock, node=name)
        for usage, name in ((counted, "one.test"), (other, "two.test"))
    ]
    for ledger in ledgers:
        await ledger.exchange()
    spool.queue_admin.give_back = other.give_back  # the node that has the command

    async def send(hops: dict[str, list[str]], **changes: object) -> ClaimResult:
        counted.reserve(ALICE, [one for some in hops.values() for one in some]).keep()
        [claim, *others] = (await spool.accept(make(hops, **changes))).claims
        await spool.release(others)
        return claim

    async def record(claim, outcomes) -> None:
        doubt = AttemptedRecipient(2, "b@out.test", "indeterminate", "", "")
        doubted = [doubt] if outcomes.get(2) is DOUBT else []
        attempt = Event(5, AttemptDetail(entry=1, recipients=doubted))
        waiting = EntrySchedule(9, 9)
        await spool.record(ClaimResult(claim, 5, outcomes, waiting, events=(attempt,)))

    async def cancel(**which: str) -> tuple[int, int]:
        await spool.queue_admin.execute(command(Operation.CANCEL, Selector(**which)))
        clock.advance(600)
        for ledger in [*ledgers, *ledgers]:
            await ledger.exchange()
        today = counted.today(ALICE)
        assert today == other.today(ALICE)
        assert today.limits[0].used == today.recipients
        return today.messages, today.recipients

    relayed = Relayed(Evidence("2.0.0", "250"))
    taken = await send({"mx:a.test": ["x@a.test", "y@a.test", "z@a.test"]})
    await record(taken, {1: relayed, 2: DOUBT, 3: LATER})
    whole = await send({"mx:b.test": ["v@b.test"], "mx:c.test": ["w@c.test"], "local": [ALICE]})
    await record(whole, {1: LATER})
    await record(
        await send({"mx:d.test": ["u@d.test"]}, extra=MessageExtra(by_sender=True)), {1: LATER}
    )
    assert await cancel(domain="a.test") == (3, 5)
    assert await cancel(domain="b.test") == (3, 4)
    assert await cancel(domain="c.test") == (2, 3)  # nothing of this message is sent outside
    assert await cancel(domain="d.test") == (2, 3)  # no login sent it
    other.reset(ALICE)
    assert await cancel(domain="e.test") == (0, 0)
