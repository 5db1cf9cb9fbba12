"""Several nodes on one spool: names, beats, leases, and what becomes of the claims of dead nodes."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import asyncpg
import pytest

from relay.base.clock import SystemClock
from relay.base.message.nexthop import Destination, NextHop
from relay.base.message.outcome import Delivered, Evidence
from relay.base.message.receipt import ReceiptRequest
from relay.store.journeys.event_feed import EventFeed
from relay.store.journeys.events import EventCursor, Step
from relay.store.journeys.log_reader import LogReader
from relay.store.spool.postgres import claims
from relay.store.spool.postgres.nodes import BEAT_S, DEAD_S, NO_DOT_S
from relay.store.spool.queue_commands import CommandResult, Operation, QueueCommand
from relay.store.spool.shared.queue_admin import _put_back
from relay.store.spool.types import (
    ClaimResult,
    DueQuery,
    EntrySchedule,
    NodeNameError,
    Selector,
    SpoolUnavailableError,
)
from tests.support.events import an_event, until
from tests.support.operator import HOUR_US, LATER, OK, FakeActiveClaims, command, reroute
from tests.support.postgres import PostgresServer, database_of
from tests.support.spool_nodes import Elapsed, beats
from tests.support.spools import new_message

TO_A = [("mx:a.test", "x@a.test")]
LOCAL = [("local", "bob@example.test")]
ROUTED = an_event(Step.POLICY_AND_ROUTING, 5, {"next_hops": {"mx:a.test": ["x@a.test"]}})
NOW = 10**18  # after the due time of every entry


async def connected(server: PostgresServer, url: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        host=str(server.folder), port=server.port, user="postgres", database=database_of(url)
    )


async def test_the_lease_ends_what_a_node_may_do(at) -> None:
    elapsed = Elapsed()
    node = await at("one.test", elapsed=elapsed)
    await node.keeper.beat()
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
    await node.keeper.beat()
    assert node.may_finish(claim)
    await node.accept(new_message(TO_A))


async def test_a_silent_name_may_be_taken_and_its_node_ends_when_it_wakes(at) -> None:
    one = await at("one.test")
    (claim,) = (await one.accept(new_message(TO_A))).claims
    two = await at("one.test", home="other")
    assert (await two.claim_due(NOW, 10, DueQuery())).claims == ()  # the lease goes on
    lost: list[Exception] = []
    one.on_lost = lost.append
    with pytest.raises(NodeNameError):
        await one.keeper.beat()
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


async def test_a_row_of_a_node_that_somebody_has_deleted(at, sql) -> None:
    one = await at("one.test")
    queue_id = (await one.accept(new_message(TO_A))).queue_id
    sql("DELETE FROM node")
    before = one._writer.incarnation
    await one.keeper.beat()
    assert one._writer.incarnation > before
    await one.keeper.beat()
    (claim,) = (await one.claim_due(NOW, 10, DueQuery())).claims
    assert claim.message.id == queue_id
    assert (await one.record(ClaimResult(claim, 5, {1: OK})))[0]
    assert (await one.counts()).unaccounted == 0


async def test_a_node_that_was_dead_while_its_connection_was_lost_comes_back_as_another(
    at, sql
) -> None:
    """As itself it would claim what others take over at once."""
    times = Elapsed(), Elapsed()
    one, two = await at("one.test", elapsed=times[0]), await at("two.test", elapsed=times[1])
    before = one._writer.incarnation
    (claim,) = (await one.accept(new_message(TO_A))).claims
    sql(f"SELECT pg_terminate_backend({one._writer.own.session.pid}, 5000)")
    await beats(two, times[1], DEAD_S + BEAT_S)
    assert not (await one.record(ClaimResult(claim, 5, {1: OK})))[0]
    assert one._writer.incarnation > before
    (taken,) = (await one.claim_due(NOW, 10, DueQuery())).claims
    await two.keeper.beat()
    assert (await one.record(ClaimResult(taken, 5, {1: OK})))[0]


async def test_what_another_node_claims_between_a_look_and_a_claim_is_left_to_it(
    at, sql, monkeypatch
) -> None:
    one, two = await at("one.test"), await at("two.test")
    await one.accept(new_message(TO_A), claim=False)
    claim_keys = claims.claim_keys

    def later(*args: Any, **more: Any) -> Any:
        changes = f"claimed = 1, owner = {two._writer.incarnation}, epoch = epoch + 1"
        sql(f"UPDATE entry SET {changes}")
        return claim_keys(*args, **more)

    monkeypatch.setattr(claims, "claim_keys", later)
    assert (await one.claim_due(NOW, 10, DueQuery())).claims == ()


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
    await one.release([claim])
    again = {
        "entry": 1,
        "recipients": [
            {
                "number": 1,
                "address": "x@a.test",
                "outcome": "relayed",
                "status": "2.0.0",
                "reply": "250 ok",
            }
        ],
    }
    recorded = ClaimResult(taken, 5, {1: OK}, events=(an_event(Step.DELIVERY, 6, again),))
    assert (await two.record(recorded))[0]
    journey = await two.journey(claim.message.id)
    assert [(step.step, step.detail["node"]) for step in journey.steps] == [
        (5, "one.test"),
        (6, "one.test"),
        (6, "two.test"),
    ]
    assert [(tried.outcome, tried.node) for tried in journey.recipients[0].attempts] == [
        ("indeterminate", "one.test"),
        ("relayed", "two.test"),
    ]


COMMANDS = [
    command("hold"),
    command("cancel"),
    command("cancel", bounce=True),
    reroute("mx:b.test"),
    command("retry"),
]


@pytest.mark.parametrize("order", COMMANDS, ids=lambda one: f"{one.operation} {one.bounce}")
async def test_what_another_node_delivers_is_ordered_and_any_node_carries_it_out(at, order) -> None:
    one, two = await at("one.test"), await at("two.test")
    (claim,) = (await two.accept(new_message(TO_A))).claims
    for dry_run in (True, False):
        answer = await one.queue_admin.execute(replace(order, dry_run=dry_run))
        assert answer.counts[CommandResult.ORDERED] == 1
        (entry,) = answer.entries
        assert (entry["result"], entry["node"]) == ("ordered", "two.test")
    later = ClaimResult(claim, 5, {1: LATER}, EntrySchedule(NOW + HOUR_US, NOW + HOUR_US))
    assert (await two.record(later))[0]
    (again,) = (await one.claim_due(NOW, 10, DueQuery())).claims
    assert again.extra.order.operation == order.operation
    assert (await one.record(ClaimResult(again, 5, {1: OK})))[0]


@pytest.mark.parametrize("order", COMMANDS[:-1], ids=lambda one: f"{one.operation} {one.bounce}")
async def test_a_withdrawn_claim_that_was_taken_over_is_left_alone(at, sql, order) -> None:
    """This node was cut off for so long that another one delivers what waits in its memory."""
    times = Elapsed(), Elapsed()
    one, two = await at("one.test", elapsed=times[0]), await at("two.test", elapsed=times[1])
    waiting = FakeActiveClaims()
    one.queue_admin.delivery = waiting
    (before,) = (await one.accept(new_message(TO_A))).claims
    await beats(two, times[1], DEAD_S + BEAT_S)
    (claim,) = (await two.claim_due(NOW, 10, DueQuery())).claims
    for dry_run in (True, False):
        waiting.waiting.add(before.key)
        answer = await one.queue_admin.execute(replace(order, dry_run=dry_run))
        assert [entry["node"] for entry in answer.entries] == ["two.test"]
    await one.change(partial(_put_back, keys=[claim.key], engine=one))
    assert (await two.record(ClaimResult(claim, 5, {1: OK})))[0]


async def test_parts_of_a_message_stay_with_its_mail_root(at) -> None:
    """A reroute splits an entry, and a report of a cancellation is local mail."""
    holder, other = await at("main.test"), await at("second.test", store="second")
    queue_id = (await holder.accept(new_message(TO_A), claim=False)).queue_id
    to_local = QueueCommand(
        Operation.REROUTE,
        Selector(ids=(queue_id,)),
        "test",
        to=lambda *_: Destination(NextHop.parse("local"), chosen=True),
        to_text="local",
    )
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


TAKEOVER = "epoch = epoch + 1, claimed = 0, owner = 0"
ORDER = """extra = '{"order":{"operation":"hold","who":"olga"}}'"""


@pytest.mark.parametrize("change", [TAKEOVER, ORDER])
@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_result_that_meets_a_takeover_is_not_recorded_and_one_that_meets_an_order_is(
    at, postgres_server, postgres_url, sql, goes_on, change
) -> None:
    """It has found its claim, and waits for the row that the other node changes."""
    node = await at("one.test")
    (claim,) = (await node.accept(new_message(TO_A))).claims
    admin = await connected(postgres_server, postgres_url)
    await admin.execute(f"BEGIN; UPDATE entry SET {change}")
    claim_result = ClaimResult(claim, 5, {1: OK}, goes_on=goes_on)
    recording = asyncio.create_task(node.record(claim_result))
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    await until(lambda: sql(waits) != "0")
    await admin.execute("COMMIT")
    await admin.close()
    assert await recording == (change == ORDER, ())
    state = "relayed" if change == ORDER else "queued"
    assert (await node.journey(claim.message.id)).state == state
    assert (await node.counts()).unaccounted == 0


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
    assert (await node.events_after(0, limit=10)).events == []
    before = await node.last_event()
    await admin.execute("COMMIT")
    await admin.close()
    (first, _), (second, event) = (await node.events_after(before, limit=10)).events
    assert before < first < second == await node.last_event()
    assert event.queue_id == later


async def test_a_cursor_of_another_node_holds_while_an_earlier_event_is_not_committed(
    at, postgres_server, postgres_url, tmp_path
) -> None:
    """A node that starts knows no event for certain then, and the other one has read this one."""
    one = await at("one.test")
    await one.accept(new_message(TO_A, events=(ROUTED,)))
    cursor = EventCursor(await one.last_event())
    admin = await connected(postgres_server, postgres_url)
    await admin.execute("BEGIN; SELECT pg_current_xact_id()")
    two = await at("two.test")
    assert await two.last_event() < cursor.sequence
    assert await EventFeed(two, LogReader(tmp_path)).place_of(cursor) == cursor
    await admin.close()


async def test_news_logs_nothing_if_its_connection_ends(at, sql, caplog, monkeypatch) -> None:
    keeper, opened = (await at("one.test")).keeper, []
    connect = keeper.hosts.connect

    async def connect_until_told(**options):
        opened.append(await connect(**options))
        await opened[-1].add_listener("end", lambda connection, *_: connection.terminate())
        return opened[-1]

    monkeypatch.setattr(keeper.hosts, "connect", connect_until_told)
    keeper.start()
    await until(lambda: opened and "relay_spool" in opened[0]._listeners)
    sql("SELECT pg_notify('end', ''), pg_notify('relay_spool', '1')")
    await until(opened[0].is_closed)
    assert not [one for one in caplog.records if one.name == "asyncio"]
