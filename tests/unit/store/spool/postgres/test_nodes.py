"""Several nodes on one spool: names, beats, leases, and what becomes of the claims of dead nodes."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import asyncpg
import pytest

from relay.base.clock import SystemClock, id_time_us
from relay.base.message.nexthop import Destination, NextHop
from relay.base.message.outcome import Delivered, Evidence, Relayed
from relay.base.message.receipt import ReceiptRequest
from relay.store.journeys.events import Event, Step
from relay.store.spool.engine import News
from relay.store.spool.postgres.nodes import BEAT_S, DEAD_S, NO_DOT_S, NodeIdentity, Watch
from relay.store.spool.postgres.spool import PostgresSpool
from relay.store.spool.queue_commands import CommandResult, Operation, QueueCommand
from relay.store.spool.shared.queue_admin import _put_back
from relay.store.spool.types import (
    ClaimResult,
    DueQuery,
    NodeNameError,
    Selector,
    SpoolUnavailableError,
)
from tests.support.operator import FakeActiveClaims, command, reroute
from tests.support.postgres import PostgresServer, database_of
from tests.support.spool_nodes import Elapsed, beats
from tests.support.spools import new_message

OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok"))
TO_A = [("mx:a.test", "x@a.test")]
LOCAL = [("local", "bob@example.test")]
ROUTED = Event(Step.POLICY_AND_ROUTING, 5, {"next_hops": {"mx:a.test": ["x@a.test"]}})
ATTEMPT = Event(Step.DELIVERY, 6, {"entry": 1, "recipients": []})
NOW = 10**18  # after the due time of every entry


@pytest.fixture
def sql(postgres_server: PostgresServer, postgres_url: str) -> Callable[[str], str]:
    return lambda text: postgres_server.sql(text, database=database_of(postgres_url))


async def connected(server: PostgresServer, url: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        host=str(server.folder), port=server.port, user="postgres", database=database_of(url)
    )


async def test_nodes_share_one_queue(at) -> None:
    one, two = await at("one.test"), await at("two.test")
    own = (await one.accept(new_message(TO_A))).claims
    waiting = (await one.accept(new_message(TO_A), claim=False)).queue_id
    (claim,) = (await two.claim_due(NOW, 10, DueQuery())).claims
    assert claim.message.id == waiting  # the other one is claimed
    assert (await one.claim_due(NOW, 10, DueQuery())).claims == ()
    for node, some in ((one, own[0]), (two, claim)):
        assert (await node.record(ClaimResult(some, 5, {1: OK})))[0]
    for node in (one, two):
        counts = await node.counts()
        assert (sum(counts.entries.values()), counts.unaccounted) == (0, 0)
        assert (await node.journey(waiting)).state == "relayed"


async def test_claims_of_a_dead_node_are_taken_over(at) -> None:
    times = Elapsed(), Elapsed()
    one, two = await at("one.test", elapsed=times[0]), await at("two.test", elapsed=times[1])
    (claim,) = (await one.accept(new_message(TO_A))).claims
    await beats(two, times[1], DEAD_S - BEAT_S)
    assert (await two.claim_due(NOW, 10, DueQuery())).claims == ()
    await beats(two, times[1], 2 * BEAT_S)
    (taken,) = (await two.claim_due(NOW, 10, DueQuery())).claims
    assert taken.key == claim.key
    assert taken.attempts == 1
    (recipient,) = (await two.journey(claim.message.id)).recipients
    assert [attempt.outcome for attempt in recipient.attempts] == ["indeterminate"]
    assert two._metrics.takeovers._value.get() == 1
    assert (await one.record(ClaimResult(claim, 5, {1: OK}))) == (False, ())
    assert (await two.record(ClaimResult(taken, 5, {1: OK})))[0]
    counts = await two.counts()
    assert (sum(counts.entries.values()), counts.unaccounted) == (0, 0)


async def test_a_node_that_wakes_up_joins_again_and_its_claims_are_freed(at, sql) -> None:
    """It still accepts as a dead incarnation, until it knows."""
    times = Elapsed(), Elapsed()
    one, two = await at("one.test", elapsed=times[0]), await at("two.test", elapsed=times[1])
    first = one._writer.incarnation
    (before,) = (await one.accept(new_message(TO_A))).claims
    await beats(two, times[1], DEAD_S + BEAT_S)
    late = (await one.accept(new_message(TO_A))).queue_id  # its own lease has not ended
    await beats(two, times[1], BEAT_S)
    taken = (await two.claim_due(NOW, 10, DueQuery())).claims
    assert {claim.message.id for claim in taken} == {before.message.id, late}
    await one._keeper.beat()
    assert one._writer.incarnation > first
    assert not one.may_finish(before)  # the other node may take it over at any time
    (claim,) = (await one.accept(new_message(TO_A))).claims
    assert (await one.record(ClaimResult(claim, 5, {1: OK})))[0]
    await two._keeper.beat()
    assert [row.is_alive for row in two._keeper.nodes] == [True, True]
    assert (await two.counts()).unaccounted == 0


async def test_the_lease_ends_what_a_node_may_do(at) -> None:
    elapsed = Elapsed()
    node = await at("one.test", elapsed=elapsed)
    await node._keeper.beat()
    (claim,) = (await node.accept(new_message(TO_A))).claims
    elapsed.now_s += DEAD_S - NO_DOT_S - 0.1
    assert node.may_finish(claim)
    elapsed.now_s += 0.2
    assert not node.may_finish(claim)
    await node.accept(new_message(TO_A))
    elapsed.now_s += NO_DOT_S
    for refused in (node.accept(new_message(TO_A)), node.claim_due(NOW, 10, DueQuery())):
        with pytest.raises(SpoolUnavailableError, match="has not heard of this node"):
            await refused
    assert (await node.record(ClaimResult(claim, 5, {1: OK})))[0]  # it is fenced by its owner
    await node._keeper.beat()
    assert node.may_finish(claim)
    await node.accept(new_message(TO_A))


@pytest.mark.parametrize("home", ["other", "one.test"], ids=["another node", "a copied state_dir"])
async def test_a_name_that_another_node_has_is_refused_while_that_one_beats(at, home) -> None:
    elapsed = Elapsed()
    one = await at("one.test", elapsed=elapsed)

    async def keep_alive() -> None:
        while True:
            await one._keeper.beat()
            await asyncio.sleep(0.2)  # real time: the other one watches

    beating = asyncio.create_task(keep_alive())
    with pytest.raises(NodeNameError, match=r"has the name one\.test since .* \[spool\] node"):
        await at("one.test", home=home, place="elsewhere")
    beating.cancel()
    await one.accept(new_message(TO_A))


async def test_a_silent_name_may_be_taken_and_its_node_ends_when_it_wakes(at) -> None:
    one = await at("one.test")
    (claim,) = (await one.accept(new_message(TO_A))).claims
    two = await at("one.test", home="other")
    assert (await two.claim_due(NOW, 10, DueQuery())).claims == ()  # the lease goes on
    lost: list[Exception] = []
    one.on_lost = lost.append
    with pytest.raises(NodeNameError):
        await one._keeper.beat()
    assert [type(error) for error in lost] == [NodeNameError]
    with pytest.raises(SpoolUnavailableError):
        await one.record(ClaimResult(claim, 5, {1: OK}))


@pytest.mark.parametrize(("place", "is_itself"), [("here", True), ("elsewhere", False)])
async def test_a_start_frees_the_claims_of_its_own_place_at_once(at, sql, place, is_itself) -> None:
    one = await at("one.test", home="home", place="here")
    queue_id = (await one.accept(new_message(TO_A))).queue_id
    one._writer._connection.terminate()
    two = await at("one.test", home="home", place=place)
    claims = (await two.claim_due(NOW, 10, DueQuery())).claims
    assert [claim.message.id for claim in claims] == ([queue_id] if is_itself else [])


async def test_a_copied_state_dir_with_another_name_is_another_node(at) -> None:
    """Its start neither ends the session of the first one nor frees its claims."""
    one = await at("one.test", home="home", place="here")
    (claim,) = (await one.accept(new_message(TO_A))).claims
    two = await at("two.test", home="home", place="elsewhere")
    assert (await two.claim_due(NOW, 10, DueQuery())).claims == ()
    assert (await one.record(ClaimResult(claim, 5, {1: OK})))[0]
    await two._keeper.beat()
    assert [row.is_alive for row in two._keeper.nodes] == [True, True]


async def test_a_row_of_a_node_that_somebody_has_deleted(at, sql) -> None:
    one = await at("one.test")
    queue_id = (await one.accept(new_message(TO_A))).queue_id
    sql("DELETE FROM node")
    before = one._writer.incarnation
    await one._keeper.beat()
    assert one._writer.incarnation > before
    await one._keeper.beat()
    (claim,) = (await one.claim_due(NOW, 10, DueQuery())).claims
    assert claim.message.id == queue_id
    assert (await one.record(ClaimResult(claim, 5, {1: OK})))[0]
    assert (await one.counts()).unaccounted == 0


async def test_what_a_server_has_lost_is_counted_and_its_claims_are_freed(at, sql) -> None:
    """A result that was lost leaves a claim that its node has forgotten."""
    one = await at("one.test")
    before, known = one._writer.incarnation, one._writer.commits
    queue_id = (await one.accept(new_message(TO_A))).queue_id
    lost = one._writer.commits - known
    sql(f"DELETE FROM counter WHERE node = {before} AND number > {known}")
    one._writer._connection.terminate()
    await one.accept(new_message(TO_A), claim=False)
    assert one._metrics.lost_commits._value.get() == lost > 0
    assert one._writer.incarnation > before
    await one._keeper.beat()
    claims = (await one.claim_due(NOW, 10, DueQuery())).claims
    assert queue_id in [claim.message.id for claim in claims]
    assert {row.identity.name for row in one._keeper.nodes if row.is_alive} == {"one.test"}


async def test_bodies_are_those_of_the_incarnation_that_lives(at, sql) -> None:
    """Others remove those of the dead."""
    one = await at("one.test")
    sql("DELETE FROM node")
    one._writer._connection.terminate()
    await one.accept(new_message(TO_A))
    assert one.incoming_body().id.startswith(f"{one._writer.incarnation:x}-")


async def test_a_node_that_was_stopped_is_no_dead_one(at, sql) -> None:
    one, two = await at("one.test"), await at("two.test")
    await one.stop()
    await two._keeper.beat()
    assert {row.identity.name: row.state for row in two._keeper.nodes} == {
        "one.test": "stopped", "two.test": "alive",
    }  # fmt: skip


async def test_each_node_lists_the_nodes(at, sql) -> None:
    one = await at("one.test", version="0.1")
    two, three = await at("two.test", store="second"), await at("three.test")
    await two.accept(new_message(TO_A))
    await three.stop()
    sql("UPDATE node SET beat_us = beat_us - 3600000000 WHERE name = 'one.test'")
    (first, third, second) = (await two.stats())["nodes"]
    assert first.pop("since").startswith("20")
    assert 3600 <= first.pop("beat_age_s") < 3700
    assert first == {
        "name": "one.test", "state": "alive", "version": "0.1", "store": "main", "claims": 0,
        "is_this": False,
    }  # fmt: skip
    assert (second["name"], second["store"], second["claims"]) == ("two.test", "second", 1)
    assert second["is_this"]
    assert second["beat_age_s"] < 60
    assert (third["name"], third["state"]) == ("three.test", "stopped")
    await one._keeper.beat()
    assert (await two.stats())["nodes"][0]["beat_age_s"] < 60


async def test_orders_and_claims_of_other_nodes_do_not_meet(at) -> None:
    """Each entry is either claimed or held, whichever was first."""
    one, two = await at("one.test"), await at("two.test")
    for _ in range(20):
        queue_id = (await one.accept(new_message(TO_A), claim=False)).queue_id
        hold = QueueCommand(Operation.HOLD, Selector(ids=(queue_id,)), "test")
        batch, report = await asyncio.gather(
            two.claim_due(SystemClock().queue_us(), 10, DueQuery()), one.queue_admin.execute(hold)
        )
        assert len(batch.claims) + report.counts[CommandResult.DONE] == 1
        for claim in batch.claims:
            assert (await two.record(ClaimResult(claim, 5, {1: OK})))[0]
    assert (await one.counts()).unaccounted == 0


async def test_events_and_attempts_name_their_node(at) -> None:
    """An attempt that was cut off is of the node that died, not of the one that took it over."""
    times = Elapsed(), Elapsed()
    one, two = await at("one.test", elapsed=times[0]), await at("two.test", elapsed=times[1])
    (claim,) = (await one.accept(new_message(TO_A, events=(ROUTED,)))).claims
    await beats(two, times[1], DEAD_S + BEAT_S)
    (taken,) = (await two.claim_due(NOW, 10, DueQuery())).claims
    again = {"entry": 1, "recipients": [
        {"number": 1, "address": "x@a.test", "outcome": "relayed", "status": "2.0.0", "reply": "250 ok"}
    ]}  # fmt: skip
    recorded = ClaimResult(taken, 5, {1: OK}, events=(Event(Step.DELIVERY, 6, again),))
    assert (await two.record(recorded))[0]
    journey = await two.journey(claim.message.id)
    assert [(step.step, step.detail["node"]) for step in journey.steps] == [
        (5, "one.test"), (6, "one.test"), (6, "two.test"),
    ]  # fmt: skip
    assert [(tried.outcome, tried.node) for tried in journey.recipients[0].attempts] == [
        ("indeterminate", "one.test"), ("relayed", "two.test"),
    ]  # fmt: skip


async def test_the_queue_is_counted_as_a_whole_on_each_node(at, sql) -> None:
    """With what dead and forgotten nodes have accepted and finished."""
    one, two = await at("one.test"), await at("two.test")
    first = (await one.accept(new_message(TO_A), claim=False)).queue_id
    (claim,) = (await one.accept(new_message(TO_A))).claims
    assert (await one.record(ClaimResult(claim, 5, {1: OK})))[0]
    await two.accept(new_message(TO_A))
    await one.stop()
    three = await at("three.test")
    for node in (two, three):
        counts = await node.counts()
        assert (counts.entries["queued"], counts.unaccounted) == (2, 0)
        assert counts.oldest_us // 1000 * 1000 == id_time_us(first)
    sql(
        "INSERT INTO counter SELECT incarnation, 999, 'accepted', 1 FROM node WHERE name = 'one.test'"
    )
    for node in (two, three):
        await node._keeper.beat()
        assert (await node.counts()).unaccounted == 1


COMMANDS = [command("hold"), command("cancel"), command("cancel", bounce=True), command("release"),
            reroute("mx:b.test"), command("retry")]  # fmt: skip


@pytest.mark.parametrize("order", COMMANDS, ids=lambda one: f"{one.operation} {one.bounce}")
async def test_what_another_node_delivers_is_left_alone_and_the_answer_names_it(at, order) -> None:
    one, two = await at("one.test"), await at("two.test")
    (claim,) = (await two.accept(new_message(TO_A))).claims
    for dry_run in (True, False):
        answer = await one.queue_admin.execute(replace(order, dry_run=dry_run))
        assert answer.counts[CommandResult.IN_FLIGHT] == 1
        assert answer.as_json()["in_flight_at"] == {"two.test": 1}
        (entry,) = answer.entries
        assert (entry["result"], entry["node"]) == ("in flight", "two.test")
        assert entry["note"] == "it is being delivered at two.test"
    told = ("two.test",) if order.operation is Operation.RETRY else ()
    assert answer.other_nodes == told
    assert (await two.record(ClaimResult(claim, 5, {1: OK})))[0]
    answer = await two.queue_admin.execute(order)
    assert "in_flight_at" not in answer.as_json()


@pytest.mark.parametrize("order", COMMANDS[:-1], ids=lambda one: f"{one.operation} {one.bounce}")
async def test_a_withdrawn_claim_that_was_taken_over_is_left_alone(at, sql, order) -> None:
    """This node was cut off for so long that another one delivers what waits in its memory."""
    times = Elapsed(), Elapsed()
    one, two = await at("one.test", elapsed=times[0]), await at("two.test", elapsed=times[1])
    waiting = FakeActiveClaims()
    one.queue_admin.attend(waiting)
    (before,) = (await one.accept(new_message(TO_A))).claims
    await beats(two, times[1], DEAD_S + BEAT_S)
    (claim,) = (await two.claim_due(NOW, 10, DueQuery())).claims
    for dry_run in (True, False):
        waiting.waiting.add(before.key)
        answer = await one.queue_admin.execute(replace(order, dry_run=dry_run))
        assert answer.in_flight_at == {"two.test": 1}
    await one.change(partial(_put_back, keys=[claim.key], engine=one))
    assert (await two.record(ClaimResult(claim, 5, {1: OK})))[0]


async def test_local_mail_is_claimed_where_its_mail_root_is(at) -> None:
    """Neither by a node without one, nor by one that has another; a report goes with its mail."""
    transport = await at("relay.test", holds_store=False)
    holder, other = await at("main.test"), await at("second.test", store="second")
    accepted = await transport.accept(new_message([*LOCAL, *TO_A]))
    assert accepted.claims == ()
    (remote,) = (await other.claim_due(NOW, 10, DueQuery())).claims
    assert remote.next_hop.kind == "mx"
    for hop in (None, NextHop.parse("local")):
        for node in (transport, other):
            batch = await node.claim_due(NOW, 10, DueQuery(next_hop=hop))
            assert (batch.claims, await node.next_due_us()) == ((), None)
    report = new_message(LOCAL)
    recorded = ClaimResult(remote, 5, {1: OK}, reports=(report,))
    assert await other.record(recorded) == (True, ())
    (local,) = (await holder.claim_due(NOW, 1, DueQuery())).claims
    (told,) = (await holder.claim_due(NOW, 10, DueQuery(next_hop=NextHop.parse("local")))).claims
    assert {local.message.id, told.message.id} == {accepted.queue_id, report.facts.id}
    own = (await other.accept(new_message(LOCAL))).claims[0]
    for node, claim in ((holder, local), (holder, told), (other, own)):
        outcomes = {one.id: OK for one in claim.recipients}
        assert (await node.record(ClaimResult(claim, 5, outcomes)))[0]
    assert (await other.counts()).unaccounted == 0


async def test_of_two_roots_that_are_recorded_at_once_both_see_the_same(
    at, postgres_server, postgres_url, sql
) -> None:
    nodes = await at("one.test"), await at("two.test")
    admin = await connected(postgres_server, postgres_url)
    await admin.execute("BEGIN; LOCK TABLE mail_root IN EXCLUSIVE MODE")
    recording = [
        asyncio.create_task(node.record_mail_root("main", name))
        for node, name in zip(nodes, ("first", "second"), strict=True)
    ]
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while sql(waits) != "2":
        await asyncio.sleep(0)
    await admin.execute("COMMIT")
    await admin.close()
    found = set(await asyncio.gather(*recording))
    assert found in ({"first"}, {"second"})
    assert {sql("SELECT id FROM mail_root WHERE store = 'main'")} == found


async def test_parts_of_a_message_stay_with_its_mail_root(at) -> None:
    """A reroute splits an entry, and a report of a cancellation is local mail."""
    holder, other = await at("main.test"), await at("second.test", store="second")
    queue_id = (await holder.accept(new_message(TO_A), claim=False)).queue_id
    to_local = QueueCommand(
        Operation.REROUTE, Selector(ids=(queue_id,)), "test",
        to=lambda *_: Destination(NextHop.parse("local"), chosen=True), to_text="local",
    )  # fmt: skip
    await other.queue_admin.execute(to_local)
    assert (await other.claim_due(NOW, 10, DueQuery())).claims == ()
    (claim,) = (await holder.claim_due(NOW, 10, DueQuery())).claims
    assert claim.next_hop.kind == "local"


async def test_read_receipts_are_owed_where_the_mailbox_is(at) -> None:
    """Elsewhere the copy would be missed, and the sender told that nobody has read it."""
    holder, other = await at("main.test"), await at("second.test", store="second")
    (claim,) = (await other.accept(new_message(LOCAL))).claims
    asked = ReceiptRequest("bob@example.test", "alice@example.test", "bob@example.test")
    evidence = Evidence("2.1.5", "250 2.1.5 ok", graph_id="copy", receipt=asked)
    await other.record(ClaimResult(claim, 5, {1: Delivered(evidence)}))
    (owed,) = await other.receipts.owed()
    assert [owed] == await other.receipts.find("bob@example.test", ["copy"])
    assert await other.receipts.request(owed.key) == asked
    for node in (holder, await at("third.test", store="third")):
        assert await node.receipts.owed() == []
        assert await node.receipts.find("bob@example.test", ["copy"]) == []


@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_result_that_meets_a_takeover_is_not_recorded(
    at, postgres_server, postgres_url, sql, goes_on
) -> None:
    """It has found its claim, and waits for the row that the other node changes."""
    node = await at("one.test")
    (claim,) = (await node.accept(new_message(TO_A))).claims
    admin = await connected(postgres_server, postgres_url)
    await admin.execute("BEGIN; UPDATE entry SET epoch = epoch + 1, claimed = 0, owner = 0")
    claim_result = ClaimResult(claim, 5, {1: OK}, goes_on=goes_on)
    recording = asyncio.create_task(node.record(claim_result))
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while sql(waits) == "0":
        await asyncio.sleep(0)
    await admin.execute("COMMIT")
    await admin.close()
    assert await recording == (False, ())
    assert (await node.journey(claim.message.id)).state == "queued"
    assert (await node.counts()).unaccounted == 0


async def test_followers_on_each_node_see_the_same_events(at) -> None:
    one, two = await at("one.test"), await at("two.test")
    seen: dict[int, list[int]] = {0: [], 1: []}
    done = asyncio.Event()

    async def follow(index: int, node: PostgresSpool) -> None:
        after = 0
        while True:
            ended = done.is_set()
            batch = await node.events_after(after, NOW, limit=500)
            numbers = [sequence for sequence, _ in batch.events]
            seen[index] += numbers
            after = max([after, *numbers])
            if ended and not numbers:
                return

    async def work(node: PostgresSpool) -> None:
        for _ in range(60):
            some = [new_message(TO_A, events=(ROUTED,)) for _ in range(5)]
            for accepted in await asyncio.gather(*map(node.accept, some)):
                await node.record(ClaimResult(accepted.claims[0], 5, {1: OK}, events=(ATTEMPT,)))

    followers = [asyncio.create_task(follow(*pair)) for pair in enumerate((one, two))]
    await asyncio.gather(work(one), work(two), work(one), work(two))
    done.set()
    await asyncio.gather(*followers)
    assert seen[0] == seen[1] == sorted(set(seen[0]))
    assert await one.last_event() >= seen[0][-1]
    everything = await one.events_after(0, NOW, limit=100_000)
    assert [sequence for sequence, _ in everything.events] == seen[0]
    assert len(seen[0]) == 4 * 60 * 5 * 2


async def test_no_event_is_passed_over_while_an_earlier_one_is_not_committed(
    at, postgres_server, postgres_url
) -> None:
    node = await at("one.test")
    admin = await connected(postgres_server, postgres_url)
    await admin.execute(
        "BEGIN; SELECT pg_current_xact_id();"
        "INSERT INTO event VALUES ('late', nextval('event_number'), 5, 0, '{}')"
    )
    later = (await node.accept(new_message(TO_A, events=(ROUTED,)))).queue_id
    assert (await node.events_after(0, NOW, limit=10)).events == []
    before = await node.last_event()
    await admin.execute("COMMIT")
    await admin.close()
    (first, _), (second, event) = (await node.events_after(before, NOW, limit=10)).events
    assert before < first < second == await node.last_event()
    assert event.queue_id == later


async def test_an_idle_queue_is_counted_again_only_when_something_happens(at) -> None:
    one, two = await at("one.test"), await at("two.test")
    await two._keeper.beat()  # behind one that it has begun
    before = await two.counts()
    assert await two.counts() is before
    await one.accept(new_message(TO_A))
    two._hear(News.RECORDED)  # as that node tells
    assert sum((await two.counts()).entries.values()) == 1
    counted = await two.counts()
    await two._keeper.beat()  # it may have missed what others told
    assert (await two.counts()) is not counted


async def test_news_of_another_node_come_at_once(at) -> None:
    one, two = await at("one.test"), await at("two.test")
    heard: asyncio.Queue[News] = asyncio.Queue()
    two.on_news = heard.put_nowait
    for node in (one, two):
        node._keeper.start()

    async def hear(wanted: News) -> None:
        while wanted not in await heard.get():
            pass

    (claim,) = (await one.accept(new_message(TO_A))).claims
    for _ in range(100):  # until it listens
        one._keeper.tell(News.RELEASED)
        with suppress(TimeoutError):
            await asyncio.wait_for(hear(News.RELEASED), 0.2)
            break
    await one.accept(new_message(TO_A), claim=False)
    await asyncio.wait_for(hear(News.DUE), 3)  # the next beat comes later
    await one.record(ClaimResult(claim, 5, {1: OK}))
    await asyncio.wait_for(hear(News.RECORDED), 3)
    await one.release((await one.claim_due(NOW, 10, DueQuery())).claims)
    await asyncio.wait_for(hear(News.RELEASED), 3)


class TestWatch:
    """Without a server."""

    def row(self, incarnation: int, beat: int) -> Any:
        from relay.store.spool.postgres.nodes import NodeRow, ServerSession

        identity = NodeIdentity(f"{incarnation}.test", "home")
        return NodeRow(incarnation, "alive", beat, identity, 0, ServerSession(1, "", "1/1"))

    def test_the_same_beat_for_too_long(self) -> None:
        watch = Watch()
        for now_s in range(0, 30, 5):
            assert watch.silent([self.row(1, 7), self.row(2, now_s)], 3, now_s=now_s) == []
        assert watch.silent([self.row(1, 7), self.row(2, 30)], 3, now_s=30) == [self.row(1, 7)]

    def test_a_gap_in_the_readings_begins_anew(self) -> None:
        watch = Watch()
        for now_s in (0, 5, 10, 15, 40, 50, 60):
            assert watch.silent([self.row(1, 7)], 3, now_s=now_s) == []
        assert watch.silent([self.row(1, 7)], 3, now_s=70) == [self.row(1, 7)]

    def test_its_own_row_is_not_watched(self) -> None:
        watch = Watch()
        for now_s in range(0, 100, 5):
            assert watch.silent([self.row(3, 7)], 3, now_s=now_s) == []
