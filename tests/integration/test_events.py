"""The stream of events over kills, stops and resets of a whole relay."""

import asyncio
import random
from contextlib import suppress
from typing import Any

from relay.testing import Relay
from tests.support.event_source import ReceivedEvent, event_source
from tests.support.relay_process import RelayProcess, until

KILLS = 4
BROKEN = (OSError, asyncio.IncompleteReadError, TimeoutError)


def key(one: ReceivedEvent) -> tuple[Any, ...]:
    return (one.data["submission_id"], one.data["message"], one.data["step"], one.data["at"])


async def read_to(relay: RelayProcess, after: str, last: str) -> list[ReceivedEvent]:
    """Return what is after a cursor, up to the delivery of the message `last`."""
    found: list[ReceivedEvent] = []
    async with event_source(*relay.http, query={"after": after}) as source:
        while not found or found[-1].data["message"] != last:
            found += await source.until_step(6)
    return found


async def test_a_client_that_continues_gets_each_event_once_over_kills(serve) -> None:
    choose = random.Random(3)
    found: list[ReceivedEvent] = []
    is_over = False

    async def follow(relay: RelayProcess) -> None:
        while not is_over:
            after = {"after": found[-1].id} if found else {"after": "0"}
            with suppress(*BROKEN):
                async with event_source(*relay.http, query=after) as source:
                    while not is_over:
                        found.extend(await source.events(1))
            await asyncio.sleep(0.02)

    def send(relay: RelayProcess) -> None:
        if choose.random() < 0.5:
            relay.send_mail(to=["bob@example.test"], subject="x")
        else:
            relay.submit("alice@example.test", ["carol@example.test"])

    relay = serve()
    follower = asyncio.create_task(follow(relay))
    for number in range(KILLS + 1):
        for _ in range(15):
            await asyncio.to_thread(send, relay)
        if number < KILLS:
            await asyncio.to_thread(relay.restart)
    await asyncio.to_thread(until, "all sent", lambda: not relay.pending_submissions())
    await asyncio.to_thread(until, "all final", lambda: not relay.queue())
    is_over = True
    follower.cancel()
    with suppress(asyncio.CancelledError):
        await follower
    last = await asyncio.to_thread(relay.submit, "alice@example.test", ["carol@example.test"])
    found += await read_to(relay, found[-1].id, last)
    everything = await read_to(relay, "0", last)
    assert {one.type for one in found} == {"message"}
    assert len({one.id for one in found}) == len(found) > 100
    assert sorted(map(key, found), key=str) == sorted(map(key, everything), key=str)


async def test_a_stop_ends_the_streams_and_does_not_wait_for_clients(serve) -> None:
    relay = serve()
    async with event_source(*relay.http) as source, event_source(*relay.http, receive_bytes=4096):
        assert await asyncio.to_thread(relay.stop) == 0
        rest = await source.read_rest()
        assert rest.endswith(b"0\r\n\r\n")
    assert relay.faults() == []


async def test_streams_are_no_reason_to_wait_and_continue_after_a_reset() -> None:
    async with Relay() as relay:
        host, _, port = relay.http_url.removeprefix("http://").partition(":")
        token = relay.token("alice@example.test")
        async with event_source(host, int(port), token=token) as source:
            await relay.send("alice@example.test", "bob@example.test", "one", text="x")
            await relay.settle()
            assert (await source.until_step(6))[-1].data["state"] == "delivered"
            await relay.reset()
            await relay.send("alice@example.test", "carol@elsewhere.test", "two", text="x")
            await relay.settle()
            found = await source.until_step(6)
            assert "gap" in [one.type for one in found]  # step 4 of "one" may come before it
            assert found[-1].data["state"] == "captured"
