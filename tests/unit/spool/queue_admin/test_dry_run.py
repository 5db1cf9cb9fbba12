"""A dry run says what the order itself would come to."""

from dataclasses import replace

import pytest

from relay.message.nexthop import CAPTURE
from tests.unit.spool.queue_admin.operator import ALL, ordered, own_mx, reroute


@pytest.mark.parametrize(
    ("before", "order", "note"),
    [
        (None, ordered("retry"), ""),
        (ordered("retry"), ordered("retry"), "it is due already"),
        (ordered("hold"), ordered("retry"), "it is held: release it"),
        (ordered("hold"), ordered("hold"), "it is held already"),
        (ordered("hold", until_us=2**52), ordered("hold", until_us=2**52), "it is held already"),
        (ordered("hold", until_us=2**52), ordered("hold"), ""),
        (None, reroute("mx:a.test"), "it goes there already"),
        (None, ordered("reroute", to=lambda _: None, to_text="mx"), "none of its recipients has a mailbox or a next hop there"),
        (None, ordered("reroute", to=lambda _: CAPTURE, to_text="default"),
         "none of its recipients has a mailbox or a next hop there"),
        (None, reroute("mx:b.test"), ""),
        (None, ordered("release"), "it is not held"),
        (None, ordered("cancel"), ""),
    ],
)  # fmt: skip
async def test_a_dry_run_says_what_the_order_then_does(spool, defer, before, order, note) -> None:
    await defer()
    if before is not None:
        await spool.queue_admin.execute(before)
    listed = list(await spool.queue_admin.list(ALL, limit=1))
    rehearsed = await spool.queue_admin.execute(replace(order, dry_run=True))
    assert list(await spool.queue_admin.list(ALL, limit=1)) == listed, "it changes nothing"
    answer = await spool.queue_admin.execute(order)
    assert rehearsed.counts == answer.counts
    for (one,) in (rehearsed.entries, answer.entries):
        assert (one["result"], one["note"]) == ("unchanged" if note else "done", note)


async def test_a_dry_run_finds_who_goes_another_way(spool, defer) -> None:
    """One of three has a way elsewhere, one goes there already, one is taken by none."""
    await defer({"mx:a.test": ["x@a.test", "y@b.test", "w@gone.test"]})
    order = ordered("reroute", to=own_mx, to_text="mx")
    rehearsed = await spool.queue_admin.execute(replace(order, dry_run=True))
    assert [one["result"] for one in rehearsed.entries] == ["done"]
    await spool.queue_admin.execute(order)
    rehearsed = await spool.queue_admin.execute(replace(order, dry_run=True))
    assert [one["note"] for one in rehearsed.entries] == [
        "none of its recipients has a mailbox or a next hop there", "it goes there already"
    ]  # fmt: skip
