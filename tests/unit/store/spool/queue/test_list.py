"""Which entries a selector matches, and how they are listed."""

from unittest.mock import Mock

from relay.store.spool.shared.entry_selection import EntrySelection
from relay.store.spool.types import Key, Selector
from tests.support.operator import ALL, command


async def test_a_scan_in_small_slices_finds_every_entry_once(spool, make, defer, clock) -> None:
    expected = []
    for number in range(25):
        hops = {"mx:a.test": ["x@a.test"], "mx:b.test": ["y@b.test"]}
        queue_id = await defer(hops) if number % 3 else (await spool.accept(make(hops))).queue_id
        expected += [(queue_id, 1), (queue_id, 2)]
    for selector, wanted in [
        (ALL, sorted(expected)),
        (Selector(next_hop="a.*"), sorted(one for one in expected if one[1] == 1)),
        (Selector(recipient="y@*"), sorted(one for one in expected if one[1] == 2)),
    ]:
        clock.advance(1)
        selection = EntrySelection(selector, now_us=0, keys_at_once=7)
        found: list[Key] = []
        late = ""
        while not selection.has_ended:
            found += await spool._queries.read(selection.step)
            late = late or await defer({"mx:a.test": ["y@late.test"]})
        assert found == wanted
        await spool.queue_admin.execute(command("cancel", Selector(domain="late.test")))


async def test_a_list_that_finds_little_reads_more_at_a_time(spool, make, monkeypatch) -> None:
    for number in range(60):
        await spool.accept(make({"mx:a.test": [f"{number}@a.test"]}))
    read = Mock(side_effect=spool.read)
    monkeypatch.setattr(spool, "read", read)
    assert len(await spool.queue_admin.list(Selector(recipient="59@*"), limit=1)) == 1
    assert read.call_count < 6


async def test_a_list_is_also_bounded_by_recipients(spool, make, monkeypatch) -> None:
    monkeypatch.setattr("relay.store.spool.shared.queue_admin.RECIPIENTS_MAX", 5)
    many = {"mx:a.test": [f"{number}@a.test" for number in range(4)]}
    for _ in range(3):
        await spool.accept(make(many))
    listed = await spool.queue_admin.list(ALL, limit=10)
    assert [len(one["recipients"]) for one in listed] == [4, 1, 0]
    assert [one.get("recipients_cut", False) for one in listed] == [False, True, True]
