"""Which entries a selector matches, and how they are listed."""

import asyncio

import pytest
from msgspec.structs import asdict

from relay.base.message.envelope import MessageExtra
from relay.store.spool.shared.entry_list import _RECIPIENTS
from relay.store.spool.types import ClaimResult, EntrySchedule, Selector
from tests.support.operator import ALL, HOUR_US, LATER, command
from tests.support.tables import each_row


@pytest.fixture
async def names(spool, make, defer, clock) -> dict[str, str]:
    """Three messages by their queue ids: A, B, and C, which is claimed as by a connection."""
    first = await defer(
        {"mx:a.test": ["x@a.test"]},
        message_id="<m@x>",
        account="dave@example.test",
        extra=MessageExtra(by_sender=True),
    )
    clock.advance(60)
    return {
        first: "A",
        await defer(
            {"mx:b.test a smart": ["y@b.test"]},
            reverse_path="carol@example.test",
            submission_id="0123456789abcdef.1",
            subject="Überfällig: your invoice (50%)",
            client="scanner [192.0.2.9]",
            account="carol@example.test",
        ): "B",
        (
            await spool.accept(make({"smtp://[::1]:25 smart": ["z@[127.0.0.1]"]}, reverse_path=""))
        ).queue_id: "C",
    }


@each_row(
    "selector, found",
    [
        (ALL, "ABC"),
        (Selector(sender="carol@*"), "B"),
        (Selector(sender="<>"), "C"),
        (Selector(sender="c_rol@*"), ""),
        (Selector(sender="c%"), ""),
        (Selector(recipient="X@a.test"), "A"),
        (Selector(domain="b.test"), "B"),
        (Selector(domain="*.test"), "AB"),
        (Selector(domain="[127.0.0.1]"), "C"),
        (Selector(next_hop="b.test"), "B"),
        (Selector(next_hop="mx:*"), "AB"),
        (Selector(next_hop="*.test"), "AB"),
        (Selector(next_hop="SMTP://[::1]:25"), "C"),
        (Selector(next_hop="smtp://*"), "C"),
        (Selector(next_hop="?x:a.test"), "A"),
        (Selector(next_hop="nowhere"), ""),
        (Selector(state="deferred"), "AB"),
        (Selector(state="queued"), "C"),
        (Selector(state="held"), ""),
        (Selector(state="waiting"), "ABC"),
        (Selector(state="waiting", next_hop="a.test"), "A"),
        (Selector(state="deferred", next_hop="a.test"), "A"),
        (Selector(subject="*INVOICE*"), "B"),
        (Selector(subject="ÜBERfällig*"), "B"),
        (Selector(subject="invoice"), ""),
        (Selector(subject="50_%*"), ""),
        (Selector(client="192.0.2.9"), "B"),
        (Selector(client="192.0.2.*"), "B"),
        (Selector(client="192.0.2.0/24"), "B"),
        (Selector(client="198.51.100.0/24"), ""),
        (Selector(client="Scanner"), "B"),
        (Selector(client="192.0.2.9]"), ""),
        (Selector(login="carol@*"), "B"),
        (Selector(login="dave@*"), ""),
        (Selector(route="smart"), "C"),
        (Selector(route="a smart"), "B"),
        (Selector(route="*smart"), "BC"),
        (Selector(route="*"), "BC"),
        (Selector(older_than_s=10), "A"),
        (Selector(older_than_s=100), ""),
        (Selector(ids=("nothing",)), ""),
        (Selector(ids=("<m@x>",)), "A"),
        (Selector(ids=("m@x",)), "A"),
        (Selector(ids=("0123456789abcdef",)), "B"),
        (Selector(ids=("0123456789abcdef.1",)), "B"),
        (Selector(ids=("0123456789abcdef.1", "m@x", "m@x")), "AB"),
        (Selector(ids=("m@x",), sender="carol@*"), ""),
    ],
)
async def test_selectors(spool, names, selector: Selector, found: str) -> None:
    listed = await spool.queue_admin.list(selector, limit=10)
    assert sorted(names[one["id"]] for one in listed) == [*found]
    answer = await spool.queue_admin.execute(command("cancel", selector, dry_run=True))
    assert sum(answer.counts.values()) == len(found)


async def test_each_condition_leaves_out_what_it_does_not_match(spool, defer) -> None:
    await defer()
    unmet = {str: "nothing", tuple: ("nothing",), bool: True, type(None): 1e9}
    for name, default in asdict(Selector()).items():
        listed = await spool.queue_admin.list(Selector(**{name: unmet[type(default)]}), limit=1)
        assert len(listed) == (name == "all"), name


async def test_ids_as_the_list_shows_them(spool, defer) -> None:
    queue_id = await defer({"mx:a.test": ["x@a.test"], "mx:b.test": ["y@b.test"]})
    listed = await spool.queue_admin.list(Selector(ids=(queue_id,)), limit=10)
    assert [one["entry"] for one in listed] == [1, 2]
    listed = await spool.queue_admin.list(Selector(ids=(f"{queue_id}-2",)), limit=10)
    assert [one["entry"] for one in listed] == [2]
    answer = await spool.queue_admin.execute(
        command("hold", Selector(ids=(f"{queue_id}-3", "x-2")))
    )
    assert answer.unknown == (f"{queue_id}-3", "x-2")
    listed = await spool.queue_admin.list(Selector(ids=(f"{queue_id}-3", queue_id, "x-2")), limit=1)
    assert ([one["entry"] for one in listed], listed.unknown) == ([1], answer.unknown)


async def test_an_entry_and_its_recipients_are_of_one_moment(spool, make, monkeypatch) -> None:
    (claim,) = (await spool.accept(make())).claims
    result = ClaimResult(claim, 5, {1: LATER}, EntrySchedule(HOUR_US, HOUR_US))
    loop, tables = asyncio.get_running_loop(), await spool.read(type)
    fetch_each = tables.fetch_each

    def fetch_then_record(*query):
        rows = fetch_each(*query)
        if query[1] == _RECIPIENTS:
            monkeypatch.setattr(tables, "fetch_each", fetch_each)
            asyncio.run_coroutine_threadsafe(spool.record(result), loop).result(10)
        return rows

    monkeypatch.setattr(tables, "fetch_each", fetch_then_record)
    (listed,) = await spool.queue_admin.list(ALL, limit=1)
    assert tables.fetch_each is fetch_each  # the attempt has ended
    assert (listed["attempts"], listed["recipients"][0]["reply"]) == (0, "")


async def test_listed_times_are_wall_clock_times(spool, defer, clock) -> None:
    await defer()
    (before,) = await spool.queue_admin.list(ALL, limit=1)
    clock.jumped_us = 24 * HOUR_US
    (after,) = await spool.queue_admin.list(ALL, limit=1)
    assert before["due"][8:10] != after["due"][8:10]
    assert before["due"][11:] == after["due"][11:]
