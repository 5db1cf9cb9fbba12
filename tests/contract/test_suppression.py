"""The list of dead addresses: when an address enters and ends, what operators add, and its limit."""

import asyncio
import dataclasses

import pytest
from msgspec.structs import replace

from relay.base.crashpoints import CrashPoints
from relay.base.message.outcome import Evidence, Failed, Relayed
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import SuppressionSettings
from relay.store import spool as spools
from relay.store.spool.shared import suppression
from relay.store.spool.types import ClaimResult, SuppressedError

HOUR_S, DAY_S = 3600, 86400
DEAD = Failed(Evidence("5.1.1", "550 5.1.1 no such user", remote=True), at_rcpt=True)
TAKEN = Relayed(Evidence("2.0.0", "250 ok", remote=True))
X, Y = "x@a.test", "y@a.test"


@pytest.fixture
def settings(settings):
    return dataclasses.replace(settings, suppression=SuppressionSettings())


@pytest.fixture
def attempt(spool, make, clock):
    """Accept a message that is not looked up, and record what its host says of its recipients."""

    async def attempt(*outcomes, to: tuple[str, ...] = (X,), hop: str = "mx:a.test") -> None:
        claim = (await spool.accept(make({hop: list(to)}))).claims[0]
        said = dict(zip([one.id for one in claim.recipients], outcomes, strict=True))
        assert (await spool.record(ClaimResult(claim, clock.time_us(), said)))[0]

    return attempt


async def listed(spool) -> list[str]:
    return [row.address for row in await spool.suppression.listed()]


async def test_an_address_enters_at_the_second_reply_a_day_after_the_first(
    spool, attempt, clock, make
) -> None:
    for hours, expected in ((0, []), (23, []), (2, [X])):
        clock.advance(hours * HOUR_S)
        await attempt(DEAD)
        assert await listed(spool) == expected
    (row,) = await spool.suppression.listed(domain="a.test", since_s=60)
    assert (row.count, row.by, row.reply) == (2, "relay", DEAD.evidence.reply)
    assert row.since == row.last
    assert await spool.suppression.listed(domain="test") == []
    with pytest.raises(SuppressedError) as caught:
        await spool.accept(make(), sought=[X, Y])
    assert caught.value.since_us == {X: clock.time_us()}
    assert (await spool.accept(make(), sought=[Y])).claims


async def test_a_delivery_between_clears_the_count_and_ends_what_relay_found(
    spool, attempt, clock
) -> None:
    await attempt(DEAD, DEAD, to=(X, Y))
    clock.advance(DAY_S)
    await attempt(TAKEN)
    await attempt(DEAD, DEAD, to=(X, Y))
    assert await listed(spool) == [Y]
    await spool.suppression.add([X], who="olga", reason="complained")
    await attempt(TAKEN, TAKEN, to=(X, Y))
    assert await listed(spool) == [X]


async def test_replies_count_within_thirty_days_and_by_the_confirmed_clock(
    spool, attempt, clock
) -> None:
    await attempt(DEAD)
    clock.advance(30 * DAY_S + 1)
    await attempt(DEAD)
    assert await listed(spool) == []
    clock.advance(DAY_S)
    clock.doubtful_us = HOUR_S * 1_000_000
    await attempt(DEAD)
    assert await listed(spool) == []
    clock.doubtful_us = 0
    await attempt(DEAD)
    assert await listed(spool) == [X]


async def test_an_address_with_a_letter_beyond_ascii_lists_no_other(
    spool, attempt, clock, make
) -> None:
    """Hosts know no user of that name, and ASCII's has mail."""
    other = "mi\N{KELVIN SIGN}e@a.test"
    for _ in range(2):
        await attempt(DEAD, to=(other,))
        clock.advance(DAY_S)
    assert await listed(spool) == [other]
    assert (await spool.accept(make(), sought=["mike@a.test"])).claims


async def test_the_replies_to_one_message_count_once(spool, make, clock) -> None:
    claim = (await spool.accept(make({"mx:a.test": [X, "X@a.test"]}))).claims[0]
    first, second = (one.id for one in claim.recipients)
    await spool.record(ClaimResult(claim, 5, {first: DEAD}, goes_on=True))
    clock.advance(DAY_S)
    await spool.record(ClaimResult(claim, 5, {second: DEAD}))
    assert await listed(spool) == []


async def test_a_result_of_an_ended_claim_counts_nothing(spool, make, attempt, clock) -> None:
    await attempt(DEAD)
    clock.advance(DAY_S)
    claim = (await spool.accept(make())).claims[0]
    stale = replace(claim, epoch=claim.epoch + 1)
    assert await spool.record(ClaimResult(stale, 5, {claim.recipients[0].id: DEAD})) == (False, ())
    assert await spool.record(ClaimResult(stale, 5, {claim.recipients[0].id: TAKEN})) == (False, ())
    assert await listed(spool) == []
    await attempt(DEAD)
    assert await listed(spool) == [X]


async def test_what_relay_found_ends_after_keep_and_what_an_operator_added_does_not(
    spool, attempt, clock, make, restart
) -> None:
    await attempt(DEAD)
    clock.advance(DAY_S)
    await attempt(DEAD)
    assert await spool.suppression.add([Y], who="olga", reason="typo") == 1
    spool = await restart()
    assert await listed(spool) == [X, Y]
    clock.advance(30 * DAY_S)
    assert await listed(spool) == [Y]
    assert (await spool.accept(make(), sought=[X])).claims
    await spool.suppression.prune()
    assert not await spool.suppression.remove(X)
    assert await spool.read(lambda tables: suppression._known(tables, [X, Y])) == 1


async def test_operators_add_and_remove(spool, clock, make) -> None:
    names = [X, "Bob+Tag@Bücher.test", "o'hara@a.test"]
    assert await spool.suppression.add(names, who="olga", reason="complained") == 3
    assert await spool.suppression.add([X, Y], who="otto", reason="again") == 1
    rows = {row.address: row for row in await spool.suppression.listed()}
    assert (rows[X].by, rows[X].reason, rows[X].reply) == ("olga", "complained", "")
    assert "bob+tag@xn--bcher-kva.test" in rows
    for name in ("BOB+tag@bücher.test", "%@a.test", Y):
        assert await spool.suppression.remove(name) is (name != "%@a.test")
    assert await listed(spool) == ["o'hara@a.test", X]


async def test_counts_go_first_then_the_oldest_found_and_never_what_was_added(
    spool, attempt, clock, monkeypatch
) -> None:
    monkeypatch.setattr(suppression, "LISTED_MAX", 4)
    monkeypatch.setattr(suppression, "_MARGIN", 0)
    await spool.suppression.add(["added@a.test"], who="olga", reason="")
    for name in ("old", "new"):
        for _ in range(2):
            await attempt(DEAD, to=(f"{name}@a.test",))
            clock.advance(DAY_S)
    for name in ("count", "next"):
        await attempt(DEAD, to=(f"{name}@a.test",))
    clock.advance(DAY_S)
    await attempt(DEAD, to=("count@a.test",))  # was pushed out: it counts from the beginning
    assert await listed(spool) == ["added@a.test", "new@a.test", "old@a.test"]
    names = ["b@a.test", "c@a.test", "old@a.test"]
    assert await spool.suppression.add(names, who="olga", reason="") == 3
    assert await listed(spool) == ["added@a.test", "b@a.test", "c@a.test", "old@a.test"]
    with pytest.raises(ValueError, match="at most"):
        await spool.suppression.add(["d@a.test", "e@a.test"], who="olga", reason="")
    assert await listed(spool) == ["added@a.test", "b@a.test", "c@a.test", "old@a.test"]


@pytest.mark.parametrize(("added", "entered"), [(0, 6), (10, 0)])
async def test_many_replies_of_one_attempt_make_room_once(
    spool, attempt, clock, monkeypatch, added, entered
) -> None:
    monkeypatch.setattr(suppression, "LISTED_MAX", 10)
    monkeypatch.setattr(suppression, "_MARGIN", 4)
    operators = [f"o{number}@a.test" for number in range(added)]
    await spool.suppression.add(operators, who="olga", reason="")
    asked, make_room = list[int](), suppression._make_room
    monkeypatch.setattr(
        suppression, "_make_room", lambda *given: asked.append(given[1]) or make_room(*given)
    )
    for batch, number in (("a", 20), ("b", 6), ("b", 6)):
        names = tuple([f"{batch}{count}@a.test" for count in range(number)])
        await attempt(*[DEAD] * number, to=names)
        clock.advance(DAY_S)
    assert asked == [20, 6] + [6 - entered] * (entered < 6)
    assert [name[0] for name in await listed(spool)] == ["b"] * entered + ["o"] * added
    rows = await spool.suppression._engine.read(lambda tables: tables.fetch(suppression.COUNT))
    assert rows[0][0] <= 10


async def test_many_addresses_are_added_in_several_commits_or_none(spool, monkeypatch) -> None:
    monkeypatch.setattr(suppression, "LISTED_MAX", 2500)
    names = [f"{number}@a.test" for number in range(suppression.LISTED_MAX)]
    with pytest.raises(ValueError, match="at most"):
        await spool.suppression.add([*names, X], who="olga", reason="")
    assert await listed(spool) == []
    assert await spool.suppression.add(names, who="olga", reason="import") == len(names)
    assert await spool.suppression.add(names[:2], who="olga", reason="again") == 0
    assert await listed(spool) == sorted(names)
    monkeypatch.setattr(suppression, "LISTED_MAX", 5000)
    others = ([f"{name}@{domain}.test" for name in range(1500)] for domain in "bc")
    both = (spool.suppression.add(some, who="olga", reason="") for some in others)
    ends = set(map(str, await asyncio.gather(*both, return_exceptions=True)))
    assert ends == {"1500", "Added nothing: the list has at most 100,000 addresses"}


async def test_a_copy_of_the_spool_has_the_list_and_clearing_it_does_not(
    spool, copied, restored, elsewhere, clock
) -> None:
    await spool.suppression.add([X], who="olga", reason="typo")
    await restored(copied())
    if spool.development is not None:
        await spool.development.clear()
        assert await listed(spool) == []
    elsewhere = dataclasses.replace(elsewhere, suppression=SuppressionSettings())
    copy = spools.open(elsewhere, clock=clock, crash=CrashPoints(), metrics=Metrics())
    await copy.start()
    assert await listed(copy) == [X]
    await copy.stop()


async def test_without_the_table_in_the_configuration_nothing_is_kept(
    spool, attempt, clock, make
) -> None:
    spool.suppression.settings = None
    for _ in range(2):
        await attempt(DEAD)
        clock.advance(DAY_S)
    spool.suppression.settings = SuppressionSettings()
    assert await listed(spool) == []
    assert await spool.read(lambda tables: suppression._known(tables, [X])) == 0
