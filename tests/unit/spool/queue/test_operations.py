"""What retry, hold, release, cancel and reroute do to entries, and what is recorded."""

from pathlib import Path
from typing import Any

import apsw

from relay.base.clock import rfc3339
from relay.message.lifecycle import RecipientState
from relay.message.nexthop import NextHop
from relay.spool.types import (
    DueQuery,
    EntrySchedule,
    PriorityLevel,
    Selector,
    Settlement,
)
from tests.support.operator import (
    ALL,
    HOUR_US,
    LATER,
    OK,
    command,
    operations,
    own_mx,
    reroute,
)


async def columns(tmp_path: Path, *names: str) -> list[tuple[Any, ...]]:
    """Return these columns of all entries, in key order."""
    other = apsw.Connection(str(tmp_path / "spool.sqlite"))
    try:
        sql = f"SELECT {', '.join(names)} FROM entry ORDER BY message_id, number"
        return other.execute(sql).fetchall()
    finally:
        other.close()


# -- retry


async def test_a_held_entry_waits_for_its_release(spool, defer, clock, tmp_path) -> None:
    queue_id = await defer()
    due = (await spool.queue_admin.list(ALL, limit=1))[0]["due"]
    answer = await spool.queue_admin.execute(command("hold", why="looks like spam"))
    (one,) = answer.entries
    assert (one["state"], one["due"], one["held_until"]) == ("held", None, None)
    assert one["reason"] == "olga: looks like spam"
    assert [recipient["state"] for recipient in one["recipients"]] == ["held"]
    assert (await spool.journey(queue_id)).state == "held"
    end_us = clock.queue_us() + HOUR_US  # of the message
    assert await columns(tmp_path, "due_us", "retry_us") == [(end_us, None)]
    again = await spool.queue_admin.execute(command("hold"))
    assert [x["note"] for x in again.entries] == ["it is held already"]
    answer = await spool.queue_admin.execute(command("release"))
    (one,) = answer.entries
    assert (one["state"], one["due"], one["reason"]) == ("queued", rfc3339(clock.time_us()), "")
    assert due > one["due"]
    assert [x["operation"] for x in await operations(spool, queue_id)] == ["hold", "release"]
    assert (await spool.counts()).unaccounted == 0


async def test_a_hold_may_end_at_a_given_time(spool, active_claims, defer, clock, tmp_path) -> None:
    queue_id = await defer()
    until_us = clock.queue_us() + HOUR_US // 2
    answer = await spool.queue_admin.execute(command("hold", until_us=until_us))
    assert answer.entries[0]["held_until"] == rfc3339(until_us)
    assert await columns(tmp_path, "due_us", "retry_us") == [(until_us, until_us)]
    assert (await operations(spool, queue_id))[0]["until"] == rfc3339(until_us)
    assert active_claims.due == [until_us]
    clock.advance(1801)
    (claim,) = (
        await spool.claim_due(clock.queue_us(), 10, DueQuery(PriorityLevel.UNREACHABLE))
    ).claims
    assert (claim.state, len(claim.recipients)) == (RecipientState.QUEUED, 1)
    held, _ = await spool.settle(Settlement(claim, 5, {1: OK}))
    assert held
    assert (await spool.journey(queue_id)).state == "relayed"


async def test_no_delay_warning_is_sent_for_a_held_entry(spool, make, clock, tmp_path) -> None:
    warn_us = clock.queue_us() + 60_000_000
    (claim,) = (await spool.accept(make(warn_us=warn_us))).claims
    later_us = clock.queue_us() + HOUR_US // 2
    await spool.settle(
        Settlement(claim, 5, {1: LATER}, EntrySchedule(later_us, warn_us, warn_us=warn_us))
    )
    await spool.queue_admin.execute(command("hold"))
    assert await columns(tmp_path, "due_us", "warn_us") == [(claim.message.expires_us, warn_us)]
    await spool.queue_admin.execute(command("release", as_before=True))
    assert await columns(tmp_path, "due_us", "retry_us") == [(warn_us, later_us)]


async def test_a_cancelled_entry_is_final(spool, defer, make, tmp_path) -> None:
    content = b"Subject: large\r\n\r\n" + b"x" * 200_000
    queue_id = await defer({"mx:a.test": ["x@a.test", "y@a.test"], "mx:b.test": ["z@b.test"]},
                           content=content)  # fmt: skip
    files = tmp_path / "spool.sqlite-content"
    assert len(list(files.iterdir())) == 1
    answer = await spool.queue_admin.execute(
        command("cancel", Selector(ids=(f"{queue_id}-1",)), why="sent by mistake")
    )
    (one,) = answer.entries
    assert (one["state"], one["due"], one["expires"]) == ("cancelled", None, None)
    assert [recipient["state"] for recipient in one["recipients"]] == ["cancelled"] * 2
    assert len(list(files.iterdir())) == 1, "another entry needs it"
    await spool.queue_admin.execute(command("cancel"))
    assert await spool.queue_admin.list(ALL, limit=1) == []
    await spool._queries.read(lambda _: None)  # after the removal
    assert list(files.iterdir()) == []
    assert (await spool.counts()).unaccounted == 0
    listed = await operations(spool, queue_id)
    assert listed[0] == {
        "operation": "cancel", "entries": [1], "who": "olga", "why": "sent by mistake",
    }  # fmt: skip
    assert (await spool.journey(queue_id)).state == "cancelled"


async def test_a_rerouted_entry_is_attempted_immediately(
    spool, defer, clock, tmp_path, active_claims
):
    queue_id = await defer()
    answer = await spool.queue_admin.execute(reroute("smtp://smart.test:25"))
    (one,) = answer.entries
    assert (one["next_hop"], one["state"]) == ("smtp://smart.test:25", "deferred")
    assert active_claims.retried_hops == [NextHop.parse("smtp://smart.test:25")]
    now_us = clock.queue_us()
    assert await columns(tmp_path, "retry_us", "lane", "cause", "cause_attempts") == [
        (now_us, PriorityLevel.NORMAL, "", 0)
    ]
    assert await operations(spool, queue_id) == [
        {
            "operation": "reroute", "entries": [1], "who": "olga",
            "from": {"1": "mx:a.test"}, "to": ["smtp://smart.test:25"],
        }
    ]  # fmt: skip
    again = await spool.queue_admin.execute(reroute("smtp://smart.test:25"))
    assert again.entries[0]["note"] == "it goes there already"
    await spool.queue_admin.execute(reroute("mx:a.test"))
    assert (await spool.queue_admin.list(ALL, limit=1))[0]["next_hop"] == "mx:a.test"


async def test_recipients_of_one_entry_may_get_different_next_hops(spool, defer, tmp_path) -> None:
    addresses = ["x@a.test", "y@b.test", "z@a.test", "w@gone.test"]
    queue_id = await defer({"smtp://smart.test:25": addresses})
    queue_command = command("reroute", to=own_mx, to_text="mx")
    answer = await spool.queue_admin.execute(queue_command)
    assert answer.as_json()["done"] == 1
    listed = {
        one["next_hop"]: [recipient["address"] for recipient in one["recipients"]]
        for one in answer.entries
    }
    assert listed == {
        "smtp://smart.test:25": ["w@gone.test"],
        "mx:a.test": ["x@a.test", "z@a.test"],
        "mx:b.test": ["y@b.test"],
    }
    assert (await operations(spool, queue_id))[0]["entries"] == [1, 2, 3]
    again = await spool.queue_admin.execute(queue_command)
    assert [one["result"] for one in again.entries] == ["unchanged"] * 3
    assert "none of its recipients has a mailbox" in again.entries[0]["note"]
    assert (await spool.counts()).unaccounted == 0
    content = await columns(tmp_path, "content_id")
    assert len(set(content)) == 1
    await spool.queue_admin.execute(command("cancel"))
    assert (await spool.counts()).unaccounted == 0
    journey = await spool.journey(queue_id)
    assert [one.state for one in journey.recipients] == ["cancelled"] * 4
