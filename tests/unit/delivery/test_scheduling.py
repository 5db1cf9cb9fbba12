"""Claims in memory: withdrawn, expired, paused, and those that wait for room for their content."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from relay.delivery import queue_scanner
from tests.support.events import until
from tests.support.journeys import outcomes, states
from tests.support.remote_mx import RemoteMx

SOON_S = 120.0


async def recorded(delivery, queue_id: str) -> dict:
    async with asyncio.timeout(SOON_S):
        return await delivery.done(queue_id)


async def test_a_withdrawn_claim_leaves_no_content_behind(delivery) -> None:
    """It was read for a connection that was refused, and waits for the others."""
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        delivery.table.at("a.test", mx)
        delivery.connections_max = 1
        await delivery.open()
        waits = await delivery.send("waits@a.test", claim=False)
        (claim,) = await delivery.claim_due()
        await delivery.start()
        await delivery.send("works@a.test")
        await mx.reached("DOT")
        delivery.scheduler.offer([claim])
        await delivery.scheduler.recorder.contents.of(claim)
        assert delivery.scheduler.withdraw([(waits, 1)]) == {(waits, 1)}
        gate.set()  # and the stop finds no content


LONG = b"Subject: long\r\n\r\n" + b"x" * 500 + b"\r\n"


async def test_a_claim_that_waits_for_room_for_its_content_expires_on_time(delivery) -> None:
    """It was attempted before. The room is used by one whose delivery does not end."""
    never = asyncio.Event()
    busy = ["450 4.2.1 later"]
    delivery.content_bytes = len(LONG)
    async with delivery.host(gates={"DOT": never}, rcpt={"late@a.test": busy}) as mx:
        late = await delivery.send("late@a.test", expire_s=0.5)
        while (await delivery.spool.journey(late)).recipients[0].attempts == ():
            await delivery.changed.get()
        await delivery.send("stuck@a.test", claim=False, contents=(LONG,))
        await mx.reached("DOT")
        journey = await recorded(delivery, late)
        assert states(journey) == {"late@a.test": "expired"}
        assert delivery.reporter.failures_reported == [("late@a.test", "5.4.7")]


@asynccontextmanager
async def waiting_for_room(delivery, address):
    """The key of a message that waits: a host does not answer to one that uses all room, until the
    event is set.
    """
    answers = asyncio.Event()
    async with RemoteMx(gates={"DOT": answers}) as mx, RemoteMx() as other:
        delivery.table.at("a.test", mx)
        delivery.table.at("b.test", other)
        delivery.table.mailboxes.add("bob@example.test")
        delivery.content_bytes = len(LONG)
        await delivery.start()
        await delivery.send("stuck@a.test", claim=False, contents=(LONG,))
        await mx.reached("DOT")
        key = (await delivery.send(address, claim=False), 1)
        await until(lambda: delivery.scheduler.recorder.contents.roomless)
        yield key, answers


REMOTE_AND_LOCAL = pytest.mark.parametrize("address", ["other@b.test", "bob@example.test"])


@REMOTE_AND_LOCAL
async def test_a_claim_that_was_taken_while_it_waited_for_room_leaves_its_successor(
    delivery, address
) -> None:
    async with waiting_for_room(delivery, address) as (key, answers):
        roomless = delivery.scheduler.recorder.contents.roomless
        first = roomless.get(key)
        assert delivery.scheduler.withdraw([key]) == {key}
        await delivery.spool.release([first])
        delivery.scheduler.due_now()
        await until(lambda: roomless)
        assert roomless.get(key).epoch > first.epoch
        answers.set()
        journey = await recorded(delivery, key[0])
        assert set(states(journey).values()) <= {"relayed", "delivered"}
        assert len(journey.recipients[0].attempts) == 1


async def test_what_this_node_cannot_attempt_expires_or_waits_on(delivery) -> None:
    """Its mailboxes are elsewhere: nothing is put into those of this node."""
    delivery.table.mailboxes = {"bob@here.test", "carol@here.test"}
    await delivery.open()
    delivery.compose()
    over = await delivery.send("bob@here.test", claim=False, expire_s=-1.0)
    late = await delivery.send("carol@here.test", claim=False, warn_us=1)
    claims = await delivery.claim_due()
    delivery.scheduler.end_without_node(claims)
    assert states(await delivery.done(over)) == {"bob@here.test": "expired"}
    while await delivery.changed.get() != late:  # the other may be told once more before it
        pass
    assert delivery.reporter.failures_reported == [("bob@here.test", "5.4.7")]
    assert delivery.reporter.reported == [("delayed", ["carol@here.test"])]
    assert delivery.store.inboxes == {}
    (claim,) = await delivery.claim_due()  # it is due as before
    assert (claim.message.id, claim.attempts) == (late, 0)
    await delivery.spool.release([claim])
    delivery.run()
    await delivery.done(late)


async def test_a_pause_lets_attempts_end_and_begins_none(delivery) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        delivery.table.at("a.test", mx)
        delivery.table.mailboxes.add("bob@here.test")
        delivery.connections_max = 1
        await delivery.start()
        works, waits = [await delivery.send(f"{n}@a.test") for n in range(2)]
        await mx.reached("DOT")
        delivery.scheduler.pause(True)
        new = [
            await delivery.send("2@a.test"),
            await delivery.send("3@a.test", claim=False),
            await delivery.send("bob@here.test"),
        ]
        gate.set()
        assert states(await recorded(delivery, works)) == {"0@a.test": "relayed"}
        await until(lambda: not delivery.active_queue.claims)
        for queue_id in (waits, *new):
            journey = await delivery.spool.journey(queue_id)
            assert [one.state for one in journey.recipients] == ["queued"]
            assert journey.recipients[0].attempts == ()
        assert [one.addresses for one in mx.envelopes] == [["0@a.test"]]
        assert delivery.store.inboxes == {}
        delivery.scheduler.pause(False)
        for queue_id in (waits, *new):
            await recorded(delivery, queue_id)
        sent = sorted(address for one in mx.envelopes for address in one.addresses)
        assert sent == [f"{n}@a.test" for n in range(4)]
        assert len(delivery.store.inboxes) == 1


async def test_mail_expires_and_is_late_during_a_pause(delivery, monkeypatch) -> None:
    """One waited before the pause, one came after its beginning; neither was attempted."""
    monkeypatch.setattr(queue_scanner, "RESCAN_US", 200_000)
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.open()
        before = await delivery.send("before@a.test", claim=False, expire_s=0.5)
        late = await delivery.send(
            "late@a.test", claim=False, notify="DELAY", warn_us=delivery.clock.queue_us() + 100_000
        )
        delivery.compose()
        delivery.scheduler.pause(True)
        delivery.run()
        after = await delivery.send("after@a.test", claim=False, expire_s=0.5)
        for queue_id, name in ((before, "before@a.test"), (after, "after@a.test")):
            assert outcomes(await recorded(delivery, queue_id), name) == ["expired"]
        assert sorted(delivery.reporter.failures_reported) == [
            ("after@a.test", "5.4.7"),
            ("before@a.test", "5.4.7"),
        ]
        await until(lambda: delivery.reporter.reported)
        assert delivery.reporter.reported == [("delayed", ["late@a.test"])]
        assert mx.envelopes == []
        delivery.scheduler.pause(False)
        assert states(await recorded(delivery, late)) == {"late@a.test": "relayed"}
