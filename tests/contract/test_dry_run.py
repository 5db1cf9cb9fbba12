"""A dry run reports what the command would do."""

from dataclasses import replace

import pytest

from relay.base.message.nexthop import CAPTURE
from tests.support.operator import ALL, all_to, command, reroute


@pytest.mark.parametrize(
    ("before", "queue_command", "note"),
    [
        (None, command("retry"), ""),
        (command("retry"), command("retry"), "it is due already"),
        (command("hold"), command("retry"), "it is held: release it"),
        (command("hold"), command("hold"), "it is held already"),
        (command("hold", until_us=2**52), command("hold", until_us=2**52), "it is held already"),
        (command("hold", until_us=2**52), command("hold"), ""),
        (None, reroute("mx:a.test"), "it goes there already"),
        (
            None,
            command("reroute", to=lambda _address, _sender: None, to_text="mx"),
            "none of its recipients has a mailbox or a next hop there",
        ),
        (
            None,
            command("reroute", to=all_to(CAPTURE), to_text="default"),
            "none of its recipients has a mailbox or a next hop there",
        ),
        (None, reroute("mx:b.test"), ""),
        (None, command("release"), "it is not held"),
        (None, command("cancel"), ""),
    ],
)
async def test_a_dry_run_reports_what_the_command_then_does(
    spool, defer, before, queue_command, note
) -> None:
    await defer()
    if before is not None:
        await spool.queue_admin.execute(before)
    listed = list(await spool.queue_admin.list(ALL, limit=1))
    rehearsed = await spool.queue_admin.execute(replace(queue_command, dry_run=True))
    assert list(await spool.queue_admin.list(ALL, limit=1)) == listed, "it changes nothing"
    answer = await spool.queue_admin.execute(queue_command)
    assert rehearsed.counts == answer.counts
    for (one,) in (rehearsed.entries, answer.entries):
        assert (one["result"], one["note"]) == ("unchanged" if note else "done", note)
