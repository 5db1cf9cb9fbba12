"""Delivery with a real spool and real remote servers."""

import asyncio

import pytest

from relay.store.spool.types import EntryExtra
from relay.transport.routing.mx_hosts import Host, Hosts
from tests.support.events import until
from tests.support.journeys import outcomes, states
from tests.support.remote_mx import DROP, RemoteMx


async def test_each_recipient_keeps_its_own_reply(delivery) -> None:
    replies = {"b@a.test": ["450 4.2.1 later", "250 2.1.5 ok"], "c@a.test": "550 5.1.1 who?"}
    async with delivery.host(rcpt=replies) as mx:
        journey = await delivery.done(await delivery.send("a@a.test", "b@a.test", "c@a.test"))
    assert states(journey) == {"a@a.test": "relayed", "b@a.test": "relayed", "c@a.test": "failed"}
    assert outcomes(journey, "b@a.test") == ["deferred", "relayed"]
    assert outcomes(journey, "a@a.test") == ["relayed"]
    assert [one.addresses for one in mx.envelopes] == [["a@a.test"], ["b@a.test"]]
    assert delivery.reporter.failures_reported == [("c@a.test", "5.1.1")]
    assert [step.step for step in journey.steps] == [6, 7, 6]
    first, _, second = (step.detail for step in journey.steps)
    assert first["address"] == f"127.0.0.1:{mx.port}"
    assert first["retry"] <= journey.steps[2].at
    assert "retry" not in second


async def test_a_forwarded_copy_leaves_with_its_own_sender_and_reports_go_to_the_first(delivery):
    extra = EntryExtra(
        sender="SRS0=A=B=example.test=alice@here.test", delivered_to="team@here.test"
    )
    rcpt = {"b@a.test": ["450 4.2.1 later", "550 5.1.1 who?"]}
    async with delivery.host(rcpt=rcpt) as mx:
        journey = await delivery.done(await delivery.send("c@a.test", "b@a.test", extra=extra))
        await delivery.done(await delivery.send("d@a.test"))
    assert states(journey) == {"b@a.test": "failed", "c@a.test": "relayed"}
    senders = [each for each in mx.commands if each.startswith("MAIL")]
    assert [each.partition(">")[0].partition("<")[2] for each in senders] == [
        extra.sender,
        extra.sender,
        "alice@example.test",
    ]
    plain = b"Subject: s\r\n\r\nbody\r\n"
    assert [one.content for one in mx.envelopes] == [
        b"Delivered-To: team@here.test\r\n" + plain,
        plain,
    ]
    assert delivery.reporter.senders == ["alice@example.test"]


async def test_the_global_connection_limit_holds_and_idle_connections_close_for_others(delivery):
    async with RemoteMx() as one, RemoteMx() as two:
        delivery.table.at("a.test", one)
        delivery.table.at("b.test", two)
        delivery.connections_in_all = 1
        await delivery.start()
        for address in ("x@a.test", "y@b.test", "z@a.test"):
            journey = await delivery.done(await delivery.send(address))
            assert states(journey) == {address: "relayed"}
        gauge = delivery.metrics.registry.get_sample_value(
            "relay_connections", {"state": "outgoing"}
        )
        assert gauge == 1


async def test_equal_hosts_share_even_a_slow_stream(delivery) -> None:
    async with RemoteMx() as one, RemoteMx() as two, RemoteMx() as worse:
        preferences = ((one, 10), (two, 10), (worse, 20))
        delivery.table.hosts["a.test"] = Hosts(
            tuple(
                Host(f"mx{mx.port}.a.test", preference, (mx.host,), mx.port)
                for mx, preference in preferences
            )
        )
        await delivery.start()
        for number in range(6):
            await delivery.done(await delivery.send(f"{number}@a.test"))
    assert (len(one.envelopes), len(two.envelopes), len(worse.envelopes)) == (3, 3, 0)
    assert (one.sessions, two.sessions) == (1, 1)


async def test_the_second_mx_is_tried_when_the_first_refuses_the_connection(delivery) -> None:
    async with RemoteMx(replies={"CONNECT": "421 4.3.2 busy"}) as first, RemoteMx() as second:
        delivery.table.at("a.test", first, second)
        await delivery.start()
        journey = await delivery.done(await delivery.send("x@a.test"))
    assert journey.recipients[0].attempts[0].host == "mx1.a.test"
    assert len(second.envelopes) == 1


@pytest.mark.parametrize("lmtp", [False, True])
async def test_three_attempts_without_an_answer_to_the_dot_are_the_last(delivery, lmtp: bool):
    people = ["x@a.test", "y@a.test"]
    odd = {"DOT": DROP}
    async with delivery.host(replies={} if lmtp else odd, dot={"y@a.test": DROP}, lmtp=lmtp) as mx:
        journey = await delivery.done(await delivery.send(*people))
    unanswered = people[lmtp:]
    expected = dict.fromkeys(unanswered, "failed")
    assert states(journey) == {"x@a.test": "delivered"} | expected
    assert outcomes(journey, "y@a.test") == ["indeterminate", "indeterminate", "failed"]
    reply = journey.recipients[1].reply
    assert reply.startswith("it is not known whether the message arrived: ")
    assert "3 attempts; last: the peer closed the connection" in reply
    assert sum("y@a.test" in one.addresses for one in mx.envelopes) == 3
    assert delivery.reporter.reported == [("unknown", unanswered)]
    assert delivery.reporter.failures_reported == []


async def test_a_stop_after_the_dot_does_not_count_as_unanswered(delivery) -> None:
    never = asyncio.Event()
    async with delivery.host(gates={"DOT": never}) as mx:
        queue_id = await delivery.send("x@a.test")
        for number in range(4):
            await mx.reached("DOT")
            mx.reached_stages.clear()
            await delivery.stop(grace_s=0.0)
            await delivery.open()
            assert outcomes(await delivery.spool.journey(queue_id), "x@a.test") == [
                *["indeterminate"] * (number + 1)
            ]
            await delivery.start()
        never.set()
        journey = await delivery.done(queue_id)
    assert outcomes(journey, "x@a.test") == ["indeterminate"] * 4 + ["relayed"]


async def test_the_limits_of_a_host_are_obeyed_within_one_attempt(delivery) -> None:
    async with delivery.host(extensions=["PIPELINING", "LIMITS RCPTMAX=20 MAILMAX=2"]) as mx:
        journey = await delivery.done(await delivery.send(*(f"{n}@a.test" for n in range(50))))
    assert set(states(journey).values()) == {"relayed"}
    assert [(one.session, len(one.addresses)) for one in mx.envelopes] == [
        (1, 20),
        (1, 20),
        (2, 10),
    ]
    assert mx.commands.count("QUIT") == 1
    assert {len(one.attempts) for one in journey.recipients} == {1}


@pytest.mark.parametrize("refusal", ["421 4.7.0 too many", "554 5.7.1 too many", DROP])
async def test_a_site_that_takes_few_connections_loses_no_mail(delivery, refusal: str) -> None:
    gate = asyncio.Event()
    scripts = {"CONNECT": ["220 hello", "220 hello", refusal]}
    async with delivery.host(replies=scripts, gates={"DOT": gate}) as mx:
        ids = [await delivery.send(f"{n}@a.test") for n in range(12)]
        await until(lambda: mx.sessions >= 3)
        gate.set()
        journeys = [await delivery.done(queue_id) for queue_id in ids]
    assert {one.state for one in journeys} == {"relayed"}
    assert {len(one.recipients[0].attempts) for one in journeys} == {1}


async def test_an_emptied_queue_forgets_that_a_host_was_down(delivery) -> None:
    delivery.unreachable_s = 3600
    delivery.retry_s = (3600,)
    async with delivery.host(replies={"CONNECT": DROP}) as mx:
        await delivery.send("x@a.test")
        await delivery.changed.get()
        async with delivery.scheduler.emptied():
            await delivery.spool.development.clear()
        mx.replies = {}
        journey = await delivery.done(await delivery.send("x@a.test"))
    assert states(journey) == {"x@a.test": "relayed"}
