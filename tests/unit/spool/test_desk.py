"""The queue by hand: which entries are meant, what may be done to them, who hears of it."""

import asyncio
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from relay.clock import rfc3339
from relay.journal.events import Event, Step
from relay.message.envelope import domain_of
from relay.message.lifecycle import FINAL, TRANSITIONS, State, check_transition
from relay.message.nexthop import CAPTURE, HopKind, NextHop
from relay.message.outcome import DeferralClass, Deferred, Evidence, Relayed
from relay.spool.operating import (
    LIVE,
    Operation,
    Order,
    leading_to,
    obstacle,
    state_after,
)
from relay.spool.sqlite.engine.database import CAPTURED_KEEP_S
from relay.spool.sqlite.operating.selecting import Selection
from relay.spool.types import (
    Key,
    NewRecipient,
    Selector,
    Settlement,
    SpoolUnavailableError,
)
from relay.spool.waiting import Lane, Look, Waiting

ALL = Selector(all=True)
HOUR_US = 3600_000_000
LATER = Deferred(Evidence("4.7.1", "451 4.7.1 greylisted"), DeferralClass.RECIPIENT)
OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok"))


def ordered(operation: str, selector: Selector = ALL, **more: Any) -> Order:
    return Order(Operation(operation), selector, "olga", **more)


def reroute(to: str, selector: Selector = ALL, **more: Any) -> Order:
    hop = NextHop.parse(to)
    return ordered("reroute", selector, to=lambda _: hop, to_text=to, **more)


def own_mx(address: str) -> NextHop | None:
    """As the table of routes: a next hop for each domain, none for one that does not exist."""
    domain = domain_of(address)
    return None if domain == "gone.test" else NextHop(HopKind.MX, domain)


class Memory:
    """What delivery has in memory: keys that wait; what else is claimed is in work."""

    def __init__(self) -> None:
        self.waiting: set[Key] = set()
        self.anew: list[NextHop] = []
        self.due: list[int] = []

    def waiting_of(self, keys: Collection[Key]) -> frozenset[Key]:
        return frozenset(self.waiting & set(keys))

    def withdraw(self, keys: Collection[Key]) -> frozenset[Key]:
        taken = self.waiting & set(keys)
        self.waiting -= taken
        return frozenset(taken)

    def try_anew(self, next_hops: Collection[NextHop]) -> None:
        self.anew += next_hops

    def due_at(self, due_us: int) -> None:
        self.due.append(due_us)


@pytest.fixture
def memory(spool) -> Memory:
    memory = Memory()
    spool.desk.attend(memory)
    return memory


@pytest.fixture
def defer(spool, make, clock):
    """Accept a message and put all its entries off by an hour."""

    async def defer(hops=None, **changes) -> str:
        accepted = await spool.accept(make(hops, **changes))
        for claim in accepted.claims:
            retry_us = clock.steady_us() + HOUR_US
            outcomes = {one.id: LATER for one in claim.recipients}
            await spool.settle(
                Settlement(claim, 5, outcomes, Waiting(retry_us, retry_us, Lane.DOWN, "dns", 3))
            )
        return accepted.queue_id

    return defer


async def columns(tmp_path: Path, *names: str) -> list[tuple[Any, ...]]:
    """Of all entries, in their order."""
    other = apsw.Connection(str(tmp_path / "spool.sqlite"))
    try:
        sql = f"SELECT {', '.join(names)} FROM entry ORDER BY message_id, number"
        return other.execute(sql).fetchall()
    finally:
        other.close()


async def operations(spool, queue_id: str) -> list[dict[str, Any]]:
    journey = await spool.journey(queue_id)
    return [one["detail"] for one in journey["steps"] if "operation" in one["detail"]]


# -- what is allowed


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("state", LIVE)
def test_whatever_may_be_done_is_in_the_table_of_states(operation, state) -> None:
    if obstacle(operation, state):
        return
    after = state_after(operation, state)
    if after is not state:
        check_transition(state, after)
        assert state in leading_to(after)


@pytest.mark.parametrize(
    ("operation", "states"),
    [
        ("retry", "queued deferred"),
        ("hold", "queued deferred held"),
        ("release", "held"),
        ("cancel", "queued deferred held captured"),
        ("reroute", "queued deferred held captured"),
    ],
)
def test_what_may_be_done_to_what(operation: str, states: str) -> None:
    allowed = [one for one in LIVE if not obstacle(Operation(operation), one)]
    assert allowed == [State(one) for one in states.split()]


def test_what_lives_and_what_has_ended_are_all_states() -> None:
    assert {*LIVE} | FINAL == set(State)
    assert all(TRANSITIONS[one] for one in LIVE)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"selector": Selector()}, "say which"),
        ({"why": "two\nlines"}, "reason: expected one line"),
        ({"why": "x" * 501}, "reason: expected one line"),
        ({"to": own_mx}, "where to"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(change, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(ordered("hold"), **change)


# -- which entries


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        (ALL, "ABC"),
        (Selector(sender="carol@*"), "B"),
        (Selector(sender="<>"), "C"),
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
        (Selector(state="deferred", next_hop="a.test"), "A"),
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
async def test_selectors(spool, make, defer, clock, selector: Selector, found: str) -> None:
    first = await defer({"mx:a.test": ["x@a.test"]}, message_id="<m@x>")
    clock.advance(60)
    names = {
        first: "A",
        await defer(
            {"mx:b.test": ["y@b.test"]},
            reverse_path="carol@example.test",
            submission_id="0123456789abcdef.1",
        ): "B",
        (  # claimed, as if a connection had it
            await spool.accept(make({"smtp://[::1]:25": ["z@[127.0.0.1]"]}, reverse_path=""))
        ).queue_id: "C",
    }
    listed = await spool.desk.list(selector, limit=10)
    assert sorted(names[one["id"]] for one in listed) == [*found]
    answer = await spool.desk.carry_out(ordered("cancel", selector, dry_run=True))
    assert sum(answer.counts.values()) == len(found)


async def test_ids_as_the_list_shows_them(spool, defer) -> None:
    queue_id = await defer({"mx:a.test": ["x@a.test"], "mx:b.test": ["y@b.test"]})
    listed = await spool.desk.list(Selector(ids=(queue_id,)), limit=10)
    assert [one["entry"] for one in listed] == [1, 2]
    listed = await spool.desk.list(Selector(ids=(f"{queue_id}-2",)), limit=10)
    assert [one["entry"] for one in listed] == [2]
    answer = await spool.desk.carry_out(ordered("hold", Selector(ids=(f"{queue_id}-3", "x-2"))))
    assert answer.unknown == (f"{queue_id}-3", "x-2")
    listed = await spool.desk.list(Selector(ids=(f"{queue_id}-3", queue_id, "x-2")), limit=1)
    assert ([one["entry"] for one in listed], listed.unknown) == ([1], answer.unknown)


async def test_a_walk_meets_every_entry_once_however_little_it_takes_at_a_time(
    spool, make, defer, clock
) -> None:
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
        selection = Selection(selector, now_us=0, keys_at_once=7)
        found: list[Key] = []
        late = ""
        while not selection.has_ended:
            found += await spool._queries.run(selection.step)
            late = late or await defer({"mx:a.test": ["y@late.test"]})
        assert found == wanted
        await spool.desk.carry_out(ordered("cancel", Selector(domain="late.test")))


@pytest.mark.parametrize(
    "selector", [ALL, Selector(state="deferred"), Selector(next_hop="a.test")], ids=str
)
async def test_history_is_not_looked_at(spool, defer, tmp_path, selector) -> None:
    """The walk reads the indexes of what lives, never the table."""
    await defer()
    plans: list[str] = []

    def look(cursor: apsw.Cursor) -> list[Key]:
        asked: list[tuple[str, Any]] = []
        cursor.exec_trace = lambda _, sql, values: asked.append((sql, values)) or True
        found = Selection(selector, now_us=0).step(cursor)
        cursor.exec_trace = None
        for sql, values in asked:
            if sql.startswith("SELECT message_id"):
                plans.extend(row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {sql}", values))
        return found

    assert len(await spool._queries.run(look)) == 1
    looks = [one for one in plans if "entry" in one]
    assert looks
    assert all("INDEX entry_" in one for one in looks), plans


# -- retry


async def test_a_retry_is_due_now(spool, defer, clock, memory) -> None:
    queue_id = await defer()
    answer = await spool.desk.carry_out(ordered("retry", dry_run=True))
    assert (answer.as_json()["done"], answer.dry_run) == (1, True)
    assert (await spool.claim_due(clock.steady_us(), 10, Look(Lane.DOWN))).claims == ()
    assert memory.anew == []
    answer = await spool.desk.carry_out(ordered("retry", why="they are back"))
    (one,) = answer.entries
    assert (one["id"], one["result"], one["due"]) == (queue_id, "done", rfc3339(clock.time_us()))
    assert memory.anew == [NextHop.parse("mx:a.test")]
    assert await operations(spool, queue_id) == [
        {"operation": "retry", "entries": [1], "who": "olga", "why": "they are back"}
    ]
    again = await spool.desk.carry_out(ordered("retry"))
    assert again.entries[0]["note"] == "it is due already"
    seen = await spool.claim_due(clock.steady_us(), 10, Look(Lane.DOWN))
    assert len(seen.claims) == 1
    assert len(await operations(spool, queue_id)) == 1


async def test_a_retry_leaves_alone_what_is_being_tried(spool, make, memory) -> None:
    claim = (await spool.accept(make())).claims[0]
    memory.waiting.add(claim.key)
    answer = await spool.desk.carry_out(ordered("retry", dry_run=True))
    assert [one["result"] for one in answer.entries] == ["in flight"]
    answer = await spool.desk.carry_out(ordered("retry"))
    assert [one["result"] for one in answer.entries] == ["in flight"]
    assert memory.waiting == {claim.key}
    held, _ = await spool.settle(Settlement(claim, 5, {1: OK}))
    assert held


# -- hold and release


async def test_what_is_held_waits_for_its_release(spool, defer, clock, tmp_path) -> None:
    queue_id = await defer()
    due = (await spool.desk.list(ALL, limit=1))[0]["due"]
    answer = await spool.desk.carry_out(ordered("hold", why="looks like spam"))
    (one,) = answer.entries
    assert (one["state"], one["due"], one["held_until"]) == ("held", None, None)
    assert one["reason"] == "olga: looks like spam"
    assert [person["state"] for person in one["recipients"]] == ["held"]
    assert (await spool.journey(queue_id))["state"] == "held"
    end_us = clock.steady_us() + HOUR_US  # of the message
    assert await columns(tmp_path, "due_us", "retry_us") == [(end_us, None)]
    again = await spool.desk.carry_out(ordered("hold"))
    assert [x["note"] for x in again.entries] == ["it is held already"]
    answer = await spool.desk.carry_out(ordered("release"))
    (one,) = answer.entries
    assert (one["state"], one["due"], one["reason"]) == ("queued", rfc3339(clock.time_us()), "")
    assert due > one["due"]
    assert [x["operation"] for x in await operations(spool, queue_id)] == ["hold", "release"]
    assert (await spool.counts()).unaccounted == 0


@pytest.mark.parametrize("hold_again", [False, True])
async def test_a_hold_is_undone_by_a_release_as_before(spool, defer, clock, hold_again) -> None:
    queue_id = await defer()
    (before,) = await spool.desk.list(ALL, limit=1)
    await spool.desk.carry_out(ordered("hold"))
    clock.advance(60)
    if hold_again:
        until_us = clock.steady_us() + HOUR_US // 2
        await spool.desk.carry_out(ordered("hold", until_us=until_us))
    answer = await spool.desk.carry_out(ordered("release", as_before=True))
    assert answer.entries[0]["due"] == before["due"]
    assert answer.entries[0]["state"] == before["state"] == "deferred"
    assert answer.entries[0]["recipients"] == before["recipients"]
    assert (await operations(spool, queue_id))[-1]["deferred"] == [1]
    await spool.desk.carry_out(ordered("hold"))
    clock.advance(7200)  # what would have come meanwhile comes now
    answer = await spool.desk.carry_out(ordered("release", as_before=True))
    assert answer.entries[0]["due"] == rfc3339(clock.time_us())


async def test_what_was_never_tried_is_queued_again_when_a_hold_is_undone(spool, make) -> None:
    queue_id = (await spool.accept(make(), claim=False)).queue_id
    await spool.desk.carry_out(ordered("hold"))
    (one,) = (await spool.desk.carry_out(ordered("release", as_before=True))).entries
    assert (one["state"], one["recipients"][0]["state"]) == ("queued", "queued")
    assert "deferred" not in (await operations(spool, queue_id))[-1]


async def test_a_hold_may_end_by_itself(spool, memory, defer, clock, tmp_path) -> None:
    queue_id = await defer()
    until_us = clock.steady_us() + HOUR_US // 2
    answer = await spool.desk.carry_out(ordered("hold", until_us=until_us))
    assert answer.entries[0]["held_until"] == rfc3339(until_us)
    assert await columns(tmp_path, "due_us", "retry_us") == [(until_us, until_us)]
    assert (await operations(spool, queue_id))[0]["until"] == rfc3339(until_us)
    assert memory.due == [until_us]
    clock.advance(1801)
    (claim,) = (await spool.claim_due(clock.steady_us(), 10, Look(Lane.DOWN))).claims
    assert (claim.state, len(claim.recipients)) == (State.QUEUED, 1)
    held, _ = await spool.settle(Settlement(claim, 5, {1: OK}))
    assert held
    assert (await spool.journey(queue_id))["state"] == "relayed"


async def test_what_is_held_expires_at_its_time(spool, defer, clock) -> None:
    queue_id = await defer()
    await spool.desk.carry_out(ordered("hold", until_us=clock.steady_us() + 10 * HOUR_US))
    clock.advance(3601)
    (claim,) = (await spool.claim_due(clock.steady_us(), 10, Look(Lane.DOWN))).claims
    assert (claim.state, len(claim.recipients)) == (State.HELD, 1)
    await spool.settle(Settlement(claim, 5, {}, expired={1: LATER}))
    assert (await spool.journey(queue_id))["state"] == "expired"
    assert (await spool.counts()).unaccounted == 0


async def test_what_the_relay_holds_itself_says_why(spool, make, clock) -> None:
    (claim,) = (await spool.accept(make())).claims
    waiting = Waiting(None, claim.message.expires_us)
    detail = {"entry": 1, "recipients": [], "held": "it cannot be read"}
    event = Event(Step.DELIVERY, 5, detail)
    await spool.settle(Settlement(claim, 5, {1: LATER}, waiting, events=(event,), held=True))
    (one,) = await spool.desk.list(Selector(state="held"), limit=10)
    assert (one["reason"], one["due"]) == ("relay: it cannot be read", None)
    (one,) = (await spool.desk.carry_out(ordered("release"))).entries
    assert (one["state"], one["due"]) == ("queued", rfc3339(clock.time_us()))


async def test_nobody_is_warned_of_what_is_held(spool, make, clock, tmp_path) -> None:
    warn_us = clock.steady_us() + 60_000_000
    (claim,) = (await spool.accept(make(warn_us=warn_us))).claims
    later_us = clock.steady_us() + HOUR_US // 2
    await spool.settle(
        Settlement(claim, 5, {1: LATER}, Waiting(later_us, warn_us, warn_us=warn_us))
    )
    await spool.desk.carry_out(ordered("hold"))
    assert await columns(tmp_path, "due_us", "warn_us") == [(claim.message.expires_us, warn_us)]
    await spool.desk.carry_out(ordered("release", as_before=True))
    assert await columns(tmp_path, "due_us", "retry_us") == [(warn_us, later_us)]


async def test_what_is_done_to_recipients_that_policy_added_is_not_told(spool, make) -> None:
    message = make({"mx:a.test": ["x@a.test"], "mx:b.test": ["audit@b.test"]})
    first, second = message.entries
    added = (NewRecipient("audit@b.test", added_by="copy to audit"),)
    message = replace(message, entries=(first, replace(second, recipients=added)))
    await spool.accept(message, claim=False)
    await spool.desk.carry_out(ordered("hold", Selector(domain="b.test")))
    assert await operations(spool, message.id) == []
    await spool.desk.carry_out(ordered("cancel"))
    (cancel,) = await operations(spool, message.id)
    assert (cancel["operation"], cancel["entries"]) == ("cancel", [1])


# -- cancel


async def test_what_is_cancelled_has_ended(spool, defer, make, tmp_path) -> None:
    content = b"Subject: large\r\n\r\n" + b"x" * 200_000
    queue_id = await defer({"mx:a.test": ["x@a.test", "y@a.test"], "mx:b.test": ["z@b.test"]},
                           content=content)  # fmt: skip
    files = tmp_path / "spool.sqlite-content"
    assert len(list(files.iterdir())) == 1
    answer = await spool.desk.carry_out(
        ordered("cancel", Selector(ids=(f"{queue_id}-1",)), why="sent by mistake")
    )
    (one,) = answer.entries
    assert (one["state"], one["due"], one["expires"]) == ("cancelled", None, None)
    assert [person["state"] for person in one["recipients"]] == ["cancelled"] * 2
    assert len(list(files.iterdir())) == 1, "another entry needs it"
    await spool.desk.carry_out(ordered("cancel"))
    assert await spool.desk.list(ALL, limit=1) == []
    await spool._queries.run(lambda _: None)  # behind the removal
    assert list(files.iterdir()) == []
    assert (await spool.counts()).unaccounted == 0
    told = await operations(spool, queue_id)
    assert told[0] == {
        "operation": "cancel", "entries": [1], "who": "olga", "why": "sent by mistake",
    }  # fmt: skip
    assert (await spool.journey(queue_id))["state"] == "cancelled"


async def test_whoever_was_delivered_is_not_cancelled(spool, make) -> None:
    (claim,) = (await spool.accept(make({"mx:a.test": ["x@a.test", "y@a.test"]}))).claims
    waiting = Waiting(claim.message.expires_us, claim.message.expires_us)
    await spool.settle(Settlement(claim, 5, {1: OK, 2: LATER}, waiting))
    await spool.desk.carry_out(ordered("cancel"))
    journey = await spool.journey(claim.message.id)
    assert [one["state"] for one in journey["recipients"]] == ["relayed", "cancelled"]
    assert (await spool.counts()).unaccounted == 0


# -- reroute


async def test_what_is_rerouted_is_tried_there_at_once(spool, defer, clock, tmp_path, memory):
    queue_id = await defer()
    answer = await spool.desk.carry_out(reroute("smtp://smart.test:25"))
    (one,) = answer.entries
    assert (one["next_hop"], one["state"]) == ("smtp://smart.test:25", "deferred")
    assert memory.anew == [NextHop.parse("smtp://smart.test:25")]
    now_us = clock.steady_us()
    assert await columns(tmp_path, "retry_us", "lane", "cause", "cause_attempts") == [
        (now_us, Lane.NORMAL, "", 0)
    ]
    assert await operations(spool, queue_id) == [
        {
            "operation": "reroute", "entries": [1], "who": "olga",
            "from": {"1": "mx:a.test"}, "to": ["smtp://smart.test:25"],
        }
    ]  # fmt: skip
    again = await spool.desk.carry_out(reroute("smtp://smart.test:25"))
    assert again.entries[0]["note"] == "it goes there already"
    await spool.desk.carry_out(reroute("mx:a.test"))
    assert (await spool.desk.list(ALL, limit=1))[0]["next_hop"] == "mx:a.test"


async def test_captured_mail_goes_where_an_operator_says(spool, make, clock) -> None:
    await spool.accept(make({"capture": ["x@a.test"]}))
    for operation in ("retry", "release", "hold"):
        (one,) = (await spool.desk.carry_out(ordered(operation))).entries
        assert (one["result"], one["state"]) == ("unchanged", "captured"), operation
    assert "reroute" in one["note"] or "stays here" in one["note"]
    order = ordered("reroute", to=lambda _: CAPTURE, to_text="default")
    (one,) = (await spool.desk.carry_out(order)).entries
    assert one["note"] == "there is no way to send it on"
    (one,) = (await spool.desk.carry_out(reroute("mx:a.test"))).entries
    assert (one["state"], one["recipients"][0]["state"]) == ("queued", "queued")
    (claim,) = (await spool.claim_due(clock.steady_us(), 10, Look())).claims
    assert str(claim.next_hop) == "mx:a.test"


async def test_what_is_held_stays_held_on_its_new_way(spool, defer) -> None:
    await defer()
    await spool.desk.carry_out(ordered("hold"))
    (one,) = (await spool.desk.carry_out(reroute("mx:b.test"))).entries
    assert (one["state"], one["next_hop"], one["due"]) == ("held", "mx:b.test", None)


async def test_recipients_of_one_entry_may_have_different_ways(spool, defer, tmp_path) -> None:
    people = ["x@a.test", "y@b.test", "z@a.test", "w@gone.test"]
    queue_id = await defer({"smtp://smart.test:25": people})
    order = ordered("reroute", to=own_mx, to_text="mx")
    answer = await spool.desk.carry_out(order)
    assert answer.as_json()["done"] == 1
    told = {
        one["next_hop"]: [person["address"] for person in one["recipients"]]
        for one in answer.entries
    }
    assert told == {
        "smtp://smart.test:25": ["w@gone.test"],
        "mx:a.test": ["x@a.test", "z@a.test"],
        "mx:b.test": ["y@b.test"],
    }
    assert (await operations(spool, queue_id))[0]["entries"] == [1, 2, 3]
    again = await spool.desk.carry_out(order)
    assert [one["result"] for one in again.entries] == ["unchanged"] * 3
    assert "no way" in again.entries[0]["note"]
    assert (await spool.counts()).unaccounted == 0
    content = await columns(tmp_path, "content_id")
    assert len(set(content)) == 1
    await spool.desk.carry_out(ordered("cancel"))
    assert (await spool.counts()).unaccounted == 0
    journey = await spool.journey(queue_id)
    assert [one["state"] for one in journey["recipients"]] == ["cancelled"] * 4


async def test_an_entry_whose_recipients_all_go_elsewhere_is_taken_apart(spool, defer) -> None:
    await defer({"smtp://smart.test:25": ["x@a.test", "y@b.test"]})
    answer = await spool.desk.carry_out(ordered("reroute", to=own_mx, to_text="mx"))
    assert [one["next_hop"] for one in answer.entries] == ["mx:a.test", "mx:b.test"]
    assert [one["entry"] for one in answer.entries] == [1, 2]


# -- a dry run


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
        (None, ordered("reroute", to=lambda _: None, to_text="mx"), "there is no way to send it on"),
        (None, ordered("reroute", to=lambda _: CAPTURE, to_text="default"),
         "there is no way to send it on"),
        (None, reroute("mx:b.test"), ""),
        (None, ordered("release"), "it is not held"),
        (None, ordered("cancel"), ""),
    ],
)  # fmt: skip
async def test_a_dry_run_says_what_the_order_then_does(spool, defer, before, order, note) -> None:
    await defer()
    if before is not None:
        await spool.desk.carry_out(before)
    listed = list(await spool.desk.list(ALL, limit=1))
    rehearsed = await spool.desk.carry_out(replace(order, dry_run=True))
    assert list(await spool.desk.list(ALL, limit=1)) == listed, "it changes nothing"
    answer = await spool.desk.carry_out(order)
    assert rehearsed.counts == answer.counts
    for (one,) in (rehearsed.entries, answer.entries):
        assert (one["result"], one["note"]) == ("unchanged" if note else "done", note)


async def test_a_dry_run_finds_who_goes_another_way(spool, defer) -> None:
    """One of three has a way elsewhere, one goes there already, one is taken by none."""
    await defer({"mx:a.test": ["x@a.test", "y@b.test", "w@gone.test"]})
    order = ordered("reroute", to=own_mx, to_text="mx")
    rehearsed = await spool.desk.carry_out(replace(order, dry_run=True))
    assert [one["result"] for one in rehearsed.entries] == ["done"]
    await spool.desk.carry_out(order)
    rehearsed = await spool.desk.carry_out(replace(order, dry_run=True))
    assert [one["note"] for one in rehearsed.entries] == [
        "there is no way to send it on", "it goes there already"
    ]  # fmt: skip


# -- in flight, and two at once


@pytest.mark.parametrize("order", [ordered("hold"), ordered("cancel"), reroute("mx:b.test")])
async def test_what_only_waits_is_taken_and_what_is_in_work_is_told(
    spool, make, memory, order
) -> None:
    waits, works = [(await spool.accept(make())).claims[0] for _ in range(2)]
    memory.waiting.add(waits.key)
    rehearsed = await spool.desk.carry_out(replace(order, dry_run=True))
    answer = await spool.desk.carry_out(order)
    assert rehearsed.counts == answer.counts
    for changed in (rehearsed, answer):
        told = {one["id"]: one["result"] for one in changed.entries}
        assert told == {waits.message.id: "done", works.message.id: "in flight"}
    assert answer.as_json()["in_flight"] == 1
    assert await spool.settle(Settlement(waits, 5, {1: OK})) == (False, ()), "its epoch is over"
    held, _ = await spool.settle(Settlement(works, 5, {1: OK}))
    assert held


async def test_what_was_taken_in_vain_is_put_back(spool, make, memory, clock) -> None:
    (claim,) = (await spool.accept(make())).claims
    memory.waiting.add(claim.key)
    answer = await spool.desk.carry_out(ordered("release"))
    assert [one["note"] for one in answer.entries] == ["it is not held"]
    (again,) = (await spool.claim_due(clock.steady_us(), 10, Look())).claims
    assert again.key == claim.key
    assert again.epoch > claim.epoch


async def test_a_claim_made_meanwhile_is_taken_as_well(
    spool, make, memory, clock, monkeypatch
) -> None:
    """Delivery claims the entry between the question whether it has it and the change."""
    key = ((await spool.accept(make(), claim=False)).queue_id, 1)
    claims = asyncio.ensure_future(spool.claim_due(clock.steady_us(), 10, Look()))
    asked = []
    submit, withdraw = spool._writer.submit, memory.withdraw

    def ask(keys: Collection[Key]) -> frozenset[Key]:
        asked.append(keys)
        return withdraw(keys)

    async def submit_behind(operation):
        await claims
        memory.waiting.add(key)
        return await submit(operation)

    monkeypatch.setattr(memory, "withdraw", ask)
    desk = spool.desk
    monkeypatch.setattr(desk, "_writer", type("Late", (), {"submit": staticmethod(submit_behind)}))
    answer = await desk.carry_out(ordered("hold"))
    assert [one["result"] for one in answer.entries] == ["done"]
    assert len(asked) == 2


async def test_a_change_that_fails_gives_back_what_it_took(
    spool, make, memory, clock, monkeypatch
) -> None:
    (claim,) = (await spool.accept(make())).claims
    memory.waiting.add(claim.key)
    faults = [SpoolUnavailableError("the disk is gone")] * 3
    submit = spool._writer.submit

    def refuse(operation, **more):
        if faults:
            raise faults.pop()
        return submit(operation, **more)

    monkeypatch.setattr(spool._writer, "submit", refuse)
    monkeypatch.setattr("relay.spool.sqlite.operating.desk._PAUSE_S_FIRST", 0.001)
    with pytest.raises(SpoolUnavailableError):
        await spool.desk.carry_out(ordered("cancel"))
    async with asyncio.timeout(5):
        while spool.desk._giving_back:
            await asyncio.wait(spool.desk._giving_back)
    (again,) = (await spool.claim_due(clock.steady_us(), 10, Look())).claims
    assert again.key == claim.key


async def test_two_operators_at_once_change_each_entry_once(spool, defer, make) -> None:
    queue_ids = [await defer() for _ in range(40)]
    answers = await asyncio.gather(
        *(spool.desk.carry_out(ordered(one)) for one in ("hold", "cancel", "hold", "cancel"))
    )
    assert sum(one.as_json()["done"] for one in answers) <= 2 * len(queue_ids)
    for queue_id in queue_ids:
        told = [one["operation"] for one in await operations(spool, queue_id)]
        assert told in (["hold", "cancel"], ["cancel"])
    assert (await spool.counts()).unaccounted == 0


async def test_a_large_order_goes_in_slices_and_mail_goes_on_between_them(
    spool, make, monkeypatch
) -> None:
    monkeypatch.setattr("relay.spool.sqlite.operating.desk._AT_ONCE", 10)
    monkeypatch.setattr("relay.spool.sqlite.operating.desk.LISTED_MAX", 25)
    for _ in range(100):
        await spool.accept(make(), claim=False)
    told: list[int] = []
    order = asyncio.ensure_future(spool.desk.carry_out(ordered("hold"), tell=told.append))
    while not (told or order.done()):  # from its first slice on it knows which are its own
        await asyncio.sleep(0)
    accepted = 0
    while not order.done():
        await spool.accept(make(), claim=False)
        accepted += 1
    answer = (await order).as_json()
    assert (answer["matched"], answer["done"], len(answer["entries"])) == (100, 100, 25)
    assert accepted > 3
    assert len(await spool.desk.list(Selector(state="held"), limit=1000)) == 100


async def test_who_gave_the_order_may_go_and_what_was_begun_is_ended(
    spool, make, memory, tmp_path
) -> None:
    content = b"Subject: large\r\n\r\n" + b"x" * 200_000
    claims = [(await spool.accept(make(content=content))).claims[0] for _ in range(3)]
    memory.waiting |= {one.key for one in claims}
    order = asyncio.ensure_future(spool.desk.carry_out(ordered("cancel")))
    while memory.waiting:
        await asyncio.sleep(0)
    order.cancel()
    with pytest.raises(asyncio.CancelledError):
        await order
    await spool.accept(make())  # behind what was begun
    await asyncio.sleep(0)
    await spool._queries.run(lambda _: None)
    assert list((tmp_path / "spool.sqlite-content").iterdir()) == []
    assert len(await spool.desk.list(ALL, limit=10)) == 1


async def test_a_list_is_bounded_also_in_recipients(spool, make, monkeypatch) -> None:
    monkeypatch.setattr("relay.spool.sqlite.operating.desk.RECIPIENTS_MAX", 5)
    many = {"mx:a.test": [f"{number}@a.test" for number in range(4)]}
    for _ in range(3):
        await spool.accept(make(many))
    listed = await spool.desk.list(ALL, limit=10)
    assert [len(one["recipients"]) for one in listed] == [4, 1, 0]
    assert [one.get("recipients_cut", False) for one in listed] == [False, True, True]


async def test_captured_mail_says_how_long_it_stays(spool, make, clock) -> None:
    await spool.accept(make({"capture": ["a@a.test"]}))
    (one,) = await spool.desk.list(ALL, limit=1)
    kept_us = clock.steady_us() + int(CAPTURED_KEEP_S * 1_000_000)
    assert one["expires"] == rfc3339(kept_us)


async def test_times_are_told_on_the_wall_clock(spool, defer, clock) -> None:
    await defer()
    (before,) = await spool.desk.list(ALL, limit=1)
    clock.jumped_us = 24 * HOUR_US
    (after,) = await spool.desk.list(ALL, limit=1)
    assert before["due"][8:10] != after["due"][8:10]
    assert before["due"][11:] == after["due"][11:]
