"""Counts and statistics of the queue."""

import shutil
from pathlib import Path

from relay.base.clock import first_id_after
from relay.base.message.outcome import DeferralClass, Deferred, Evidence
from relay.base.pressure import UNKNOWN_DISK
from relay.delivery.provider_replies import ProviderReplies, load_provider_replies
from relay.store.journeys.events import Event, Step
from relay.store.spool.shared.traffic import TrafficCounter
from relay.store.spool.types import ClaimResult, EntrySchedule, PriorityLevel
from tests.support.events import an_event
from tests.support.operator import deferred

TWO = {"mx:a.test": ["x@a.test", "y@a.test"]}


async def test_an_empty_spool_counts_nothing(spool) -> None:
    counts = await spool.counts()
    assert (sum(counts.entries.values()), counts.oldest_us, counts.unaccounted) == (0, None, 0)


async def test_statistics(spool, make, clock) -> None:
    oldest = clock.time_us()
    now_us = clock.queue_us()
    await deferred(spool, make, due_us=now_us, hops={"mx:slow.test": ["a@slow.test"]})
    clock.advance(60)
    for _ in range(2):
        await deferred(
            spool, make, level=PriorityLevel.UNREACHABLE, hops={"mx:down.test": ["b@down.test"]}
        )
    (claim,) = (await spool.accept(make({"mx:down.test": ["c@down.test", "d@down.test"]}))).claims
    await spool.release([claim])
    await spool.accept(make(TWO))
    await spool.accept(make({"capture": ["z@c.test"]}))
    figures = await spool.stats()
    assert figures["entries"] == {"queued": 2, "deferred": 3, "held": 0, "captured": 1}
    assert figures["priorities"] == {
        "high": {"entries": 0, "in_delivery": 0},
        "normal": {"entries": 4, "in_delivery": 1},
        "low": {"entries": 0, "in_delivery": 0},
        "unreachable": {"entries": 2, "in_delivery": 0},
    }
    assert (figures["in_delivery"], figures["due"], figures["recipients"]) == (1, 2, 8)
    assert figures["oldest"] == "2023-11-14T22:13:20.000000Z"
    assert oldest == 1_700_000_000_000_000
    assert figures["unaccounted"] == 0
    first, *others = figures["next_hops"]
    assert first == {
        "next_hop": "mx:down.test",
        "route": "",
        "entries": 3,
        "in_delivery": 0,
        "deferred": 2,
        "oldest": "2023-11-14T22:14:20.000000Z",
        "last": None,
    }
    hops = sorted((one["next_hop"], one["entries"], one["in_delivery"]) for one in others)
    assert hops == [("capture", 1, 0), ("mx:a.test", 1, 1), ("mx:slow.test", 1, 0)]


def attempt_at(
    at_us: int, hop: str, reply: str, *, address: str, route: str = "", outcome: str = "x", **more
) -> Event:
    """As delivery records it."""
    recipient = {"number": 1, "address": address, "status": "4.0.0", "reply": reply}
    recipient |= {"outcome": outcome}
    named = {"route": route} if route else {}
    detail = {"entry": 1, "attempt": 1, "next_hop": hop, "host": "mx.h.test"} | named | more
    return an_event(Step.DELIVERY, at_us, detail | {"recipients": [recipient]})


async def test_each_next_hop_has_its_last_reply(spool, make, clock) -> None:
    """Two routes to one host are two next hops; what came later is shown, whatever it was."""
    paid, free = "smtp://h.test:25 paid", "smtp://h.test:25 free"
    later = Deferred(Evidence("4.3.0", "450 x"), DeferralClass.SITE)
    for at_us, hop, reply in (
        (3_000_000, paid, "450 newer"),
        (2_000_000, paid, "450 older"),
        (1_000_000, free, "550 no"),
    ):
        (claim,) = (await spool.accept(make({hop: ["x@a.test"]}))).claims
        event = attempt_at(
            at_us, hop.partition(" ")[0], reply, address="x@a.test", route=hop.partition(" ")[2]
        )
        waiting = EntrySchedule(10**18, 10**18, PriorityLevel.NORMAL)
        await spool.record(ClaimResult(claim, 5, {1: later}, waiting, events=(event,)))
    figures = await spool.stats()
    last = {one["route"]: one["last"] for one in figures["next_hops"]}
    assert last["paid"] == {
        "at": "1970-01-01T00:00:03.000000Z",
        "host": "mx.h.test",
        "domain": "a.test",
        "reply": "450 newer",
    }
    assert last["free"]["reply"] == "550 no"


async def test_the_last_reply_of_a_quiet_next_hop_is_found_behind_newer_events(spool, make) -> None:
    """The newest events are those of busy next hops."""
    later = Deferred(Evidence("4.3.0", "450 x"), DeferralClass.SITE)
    (claim,) = (await spool.accept(make({"mx:quiet.test": ["x@quiet.test"]}))).claims
    event = attempt_at(1_000_000, "mx:quiet.test", "450 busy", address="x@quiet.test")
    waiting = EntrySchedule(10**18, 10**18, PriorityLevel.NORMAL)
    await spool.record(ClaimResult(claim, 5, {1: later}, waiting, events=(event,)))
    (claim,) = (await spool.accept(make({"mx:loud.test": ["x@loud.test"]}))).claims
    loud = [
        attempt_at(2_000_000 + number, "mx:loud.test", f"450 {number}", address="x@loud.test")
        for number in range(1001)
    ]
    await spool.record(ClaimResult(claim, 5, {1: later}, waiting, events=tuple(loud)))
    last = {one["next_hop"]: one["last"] for one in (await spool.stats())["next_hops"]}
    assert last["mx:quiet.test"]["reply"] == "450 busy"
    assert last["mx:loud.test"]["reply"] == "450 1000"


async def test_statistics_have_wall_clock_times(spool, make, clock) -> None:
    await spool.accept(make(TWO))
    await deferred(spool, make, due_us=clock.queue_us(), hops={"mx:slow.test": ["a@slow.test"]})
    clock.jumped_us = 24 * 3600 * 1_000_000
    figures = await spool.stats()
    assert figures["oldest"] == "2023-11-15T22:13:20.000000Z"
    assert {one["oldest"] for one in figures["next_hops"]} == {"2023-11-15T22:13:20.000000Z"}
    assert figures["due"] == 1  # a jump makes nothing due


async def test_the_load_has_the_entries_that_were_counted_last(spool, make) -> None:
    await spool.accept(make({"mx:a.test": ["x@a.test"], "mx:b.test": ["y@b.test"]}))
    await spool.counts()
    load = spool.load()
    assert (load.entries, load.backlog, load.is_failing) == (2, 0.0, False)
    assert load.commit_s >= 0
    assert load.kept_bytes >= 0
    assert spool.health() == ""


async def test_the_disk_is_the_one_that_new_mail_fills_if_it_is_of_this_machine(
    spool, tmp_path
) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert spool.disk() == UNKNOWN_DISK or abs(spool.disk().free_bytes - free) < free / 2


async def test_traffic_is_counted_by_each_grouping(spool, make, clock) -> None:
    """Also what expires at a provider that was reached before. An id in a reply makes no other
    reply of it.
    """
    later = Deferred(Evidence("4.3.0", "450 x"), DeferralClass.SITE)
    first = ("deferred", 2, "451 4.7.1 later, id 7a", "mx1.big.test")
    second = ("deferred", 1, "451 4.7.1 later, id 9b", "mx9.big.test")
    sent = (
        ("ann@a.test", "bob", (first, ("relayed", 60, "250 ok", "mx2.big.test"))),
        ("joe@b.test", "bob", (second, ("expired", 90, "5.4.7 gave up; last: 451 x", ""))),
        ("sue@b.test", "eve", (("relayed", 8, "250 ok", "mx.uni.ac.uk"),)),
    )
    before_us = clock.time_us() - 1_000_000
    for address, login, attempts in sent:
        (claim,) = (await spool.accept(make({"mx:b.test": [address]}, account=login))).claims
        events = [
            attempt_at(
                clock.time_us() + seconds * 1_000_000,
                "mx:b.test",
                reply,
                address=address,
                outcome=outcome,
                host=host,
                attempt=number,
            )
            for number, (outcome, seconds, reply, host) in enumerate(attempts, 1)
        ]
        waiting = EntrySchedule(10**18, 10**18, PriorityLevel.NORMAL)
        await spool.record(ClaimResult(claim, 5, {1: later}, waiting, events=tuple(events)))
        clock.advance(1)

    async def groups(by: str, *, since_us: int = before_us, most: int = 9) -> list[dict]:
        counter = TrafficCounter(by, ProviderReplies().provider_of, after=first_id_after(since_us))
        await spool.maintenance.count_traffic(counter)
        return counter.groups(most)

    async def counted(by: str, **more: int) -> dict[str, tuple]:
        columns = ("accepted", "delivered", "deferred", "failed")
        return {
            group["name"]: tuple(group[column] for column in columns)
            for group in await groups(by, **more)
        }

    assert await counted("provider") == {"big.test": (2, 1, 2, 1), "uni.ac.uk": (1, 1, 0, 0)}
    assert await counted("domain") == {"b.test": (2, 1, 1, 1), "a.test": (1, 1, 1, 0)}
    assert await counted("login") == {"bob": (2, 1, 2, 1), "eve": (1, 1, 0, 0)}
    assert await counted("route") == {"mx": (3, 2, 2, 1)}
    assert await counted("login", most=1) == {"bob": (2, 1, 2, 1), "other": (1, 1, 0, 0)}
    assert await counted("login", since_us=clock.time_us()) == {}
    [group] = await groups("route")
    assert 5 <= group["median_s"] <= 10
    assert 30 <= group["p95_s"] <= 60
    assert group["replies"] == [
        {"reply": "451 4.7.1 later, id …", "times": 2},
        {"reply": "5.4.7 gave up; last: 451 x", "times": 1},
    ]


def test_a_provider_is_named_by_the_shipped_file() -> None:
    replies = load_provider_replies(None, Path("relay.toml"))
    assert replies.provider_of("gmail-smtp-in.l.google.com") == "Google"
    assert replies.provider_of("a-test.mail.protection.outlook.com") == "Microsoft 365"
    assert replies.provider_of("mx1.mail.example.org") == "example.org"
    assert [replies.provider_of(host) for host in ("192.0.2.1", "local", "")] == [
        "192.0.2.1",
        "local",
        "",
    ]
