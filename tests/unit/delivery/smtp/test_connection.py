"""Transactions on real sockets: an outcome for each recipient."""

import asyncio

import pytest

from relay.base.message.outcome import DeferralClass, Deferred, Failed, Relayed
from relay.delivery.smtp.connection import Timeouts
from tests.support.events import until
from tests.support.remote_mx import DROP, EXTENSIONS, RemoteMx

STEP_BY_STEP = [word for word in EXTENSIONS if word != "PIPELINING"]
GARBAGE = "hello there"
both_ways = pytest.mark.parametrize(
    "extensions", [EXTENSIONS, STEP_BY_STEP], ids=["pipelined", "stepwise"]
)


def kinds(result):
    return {index: type(outcome) for index, outcome in result.outcomes.items()}


@both_ways
async def test_each_recipient_has_an_outcome_of_its_own(connected, message, extensions):
    rcpt = {"later@y.test": "450 4.2.1 busy", "never@y.test": "550 5.1.1 who?"}
    async with RemoteMx(rcpt=rcpt, extensions=extensions) as mx:
        connection = await connected(mx)
        one = message("good@y.test", "later@y.test", "never@y.test", "fine@y.test")
        result = await connection.transact(one)
        assert kinds(result) == {0: Relayed, 1: Deferred, 2: Failed, 3: Relayed}
        assert result.outcomes[1].kind is DeferralClass.RECIPIENT
        assert result.outcomes[2].evidence.reply == "550 5.1.1 who?"
        assert result.outcomes[0].evidence.host == mx.name
        assert result.reusable
        (envelope,) = mx.envelopes
        assert envelope.addresses == ["good@y.test", "fine@y.test"]
        assert envelope.content == one.content


@both_ways
@pytest.mark.parametrize(
    ("stage", "reply", "expected"),
    [
        ("MAIL", "552 too big", Failed),
        ("MAIL", "451 later", Deferred),
        ("DATA", "554 no", Failed),
        ("DATA", "451 later", Deferred),
        ("DOT", "550 5.7.1 spam", Failed),
        ("DOT", "452 full", Deferred),
    ],
)
async def test_a_rejection_counts_for_all_and_keeps_the_connection(
    connected, message, extensions, stage, reply, expected
):
    async with RemoteMx(
        extensions=extensions, replies={stage: [reply, "354 go" if stage == "DATA" else "250 ok"]}
    ) as mx:
        connection = await connected(mx)
        result = await connection.transact(message("a@y.test", "b@y.test"))
        assert kinds(result) == {0: expected, 1: expected}
        assert result.reusable
        assert kinds(await connection.transact(message())) == {0: Relayed}


@both_ways
@pytest.mark.parametrize("reply", ["452 4.5.3 too many", "452 too many", "552 too many"])
async def test_a_full_transaction_goes_on_in_a_new_one(connected, message, extensions, reply):
    async with RemoteMx(extensions=extensions, rcpt={"c@y.test": [reply, "250 ok"]}) as mx:
        connection = await connected(mx)
        result = await connection.transact(message("a@y.test", "b@y.test", "c@y.test"))
        assert kinds(result) == {0: Relayed, 1: Relayed}
        assert (result.again, result.reusable) == ((2,), True)
        assert kinds(await connection.transact(message("c@y.test"))) == {0: Relayed}


@both_ways
async def test_a_whole_message_goes_to_all_or_none(connected, message, extensions):
    async with RemoteMx(extensions=extensions, rcpt={"b@y.test": "452 4.5.3 too many"}) as mx:
        connection = await connected(mx)
        result = await connection.transact(message("a@y.test", "b@y.test", whole=True))
        assert kinds(result) == {0: Deferred, 1: Deferred}
        assert not result.reusable
        await connection.quit()
        assert mx.envelopes == []


async def test_354_without_an_accepted_recipient_gets_a_lone_dot(connected, message):
    async with RemoteMx(rcpt={"no@y.test": "550 no"}, replies={"NOBODY": "354 go ahead"}) as mx:
        connection = await connected(mx)
        result = await connection.transact(message("no@y.test"))
        assert kinds(result) == {0: Failed}
        assert result.reusable
        assert kinds(await connection.transact(message("yes@y.test"))) == {0: Relayed}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("552 5.3.4 too big", Failed), ("451 4.3.0 later", Deferred), ("250 2.0.0 ok", Deferred)],
)
async def test_a_rejection_in_the_middle_of_the_content_is_the_reply(
    connected, message, reply, expected
):
    async with RemoteMx(replies={"CONTENT": reply}) as mx:
        connection = await connected(mx)
        result = await connection.transact(message(content=b"x" * 20_000_000))
        assert kinds(result) == {0: expected}
        assert reply in result.outcomes[0].evidence.reply
        assert not result.reusable


@pytest.mark.parametrize("size", [10, 500_000])
async def test_no_final_dot_before_the_last_message_is_recorded(connected, message, size):
    recorded, asked = asyncio.Event(), asyncio.Event()

    async def before_dot():
        asked.set()
        await recorded.wait()

    async with RemoteMx() as mx:
        connection = await connected(mx)
        one = message(content=b"x" * size + b"\r\n")
        task = asyncio.create_task(connection.transact(one, before_dot=before_dot))
        async with asyncio.timeout(120):
            await asked.wait()
        assert mx.envelopes == []
        recorded.set()
        assert kinds(await task) == {0: Relayed}
        assert len(mx.envelopes) == 1


async def test_a_failing_result_ends_the_connection_without_the_dot(connected, message):
    async def before_dot():
        raise OSError("disk full")

    async with RemoteMx() as mx:
        connection = await connected(mx)
        with pytest.raises(OSError, match="disk full"):
            await connection.transact(message(), before_dot=before_dot)
        assert not connection.is_open
        assert mx.envelopes == []


async def test_cancelling_closes_the_connection(connected, message):
    async with RemoteMx(gates={"DOT": asyncio.Event()}) as mx:
        connection = await connected(mx)
        task = asyncio.create_task(connection.transact(message()))
        await mx.reached("DOT")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not connection.is_open


@pytest.mark.parametrize("farewell", ["", "421 4.4.2 idle too long", "250 surprise", GARBAGE])
async def test_a_peer_that_closes_while_idle_is_noticed(connected, message, farewell):
    async with RemoteMx() as mx:
        connection = await connected(mx)
        await connection.transact(message())
        assert connection.is_open
        mx.hang_up(farewell)
        await until(lambda: not connection.is_open)
        assert (await connection.transact(message())).stale


@both_ways
@pytest.mark.parametrize("end", [DROP, "421 4.4.2 idle too long", "452 4.5.3 too many messages"])
async def test_a_reused_connection_whose_session_has_ended_is_stale_not_an_attempt(
    connected, message, extensions, end
):
    async with RemoteMx(extensions=extensions, replies={"MAIL": ["250 ok", end]}) as mx:
        connection = await connected(mx)
        assert not (await connection.transact(message())).stale
        result = await connection.transact(message())
        assert (result.stale, result.reusable, dict(result.outcomes)) == (True, False, {})
        assert not connection.is_open


async def test_quit_does_not_wait_for_ever(connected, message):
    async with RemoteMx(gates={"QUIT": asyncio.Event()}) as mx:
        connection = await connected(mx, timeouts=Timeouts(quit_s=0.1))
        async with asyncio.timeout(120):
            await connection.quit()
        assert not connection.is_open


async def test_a_peer_that_takes_no_data_times_out(connected, message):
    async with RemoteMx(gates={"CONTENT": asyncio.Event()}) as mx:
        connection = await connected(mx, timeouts=Timeouts(block_s=0.1))
        result = await connection.transact(message(content=b"x" * 20_000_000))
        assert kinds(result) == {0: Deferred}
        assert "read no data" in result.outcomes[0].evidence.reply
