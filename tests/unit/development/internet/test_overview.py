"""What a person sees of the simulated internet."""

import asyncio
import re
from contextlib import asynccontextmanager

from relay.development.internet.behaviour import Action, Moment
from relay.development.internet.overview import overview
from relay.development.internet.scenario_file import parse_scenario, with_reply, without_reply
from relay.development.internet.simulator import SimulatedInternet
from relay.development.internet.smtp_host import GIVEN_MAX
from tests.support.manual_clock import ManualClock

SCENARIO = """
[[domain]]
name = "one.test"
aliases = ["also.test"]
mx = [{ host = "b.one.test", preference = 20 }, { host = "a.one.test", preference = 10 }]
greylist = "0s"
latency = "0.01s"

[[domain.reply]]
verb = "RCPT"
recipient = "twice"
reply = "451 4.2.1 later"
times = 2

[[domain.reply]]
verb = "RCPT"
recipient = "no*"
reply = "550 5.1.1 no such user here"

[[domain.limit]]
messages = "5/1m"
reply = "421 4.7.28 too many"

[[domain]]
name = "two.test"
null_mx = true

[[graph]]
status = 429
path = "/me/sendMail"
times = 3
"""


@asynccontextmanager
async def simulated(text=SCENARIO):
    internet = SimulatedInternet(ManualClock(), parse_scenario(text).scenario)
    await internet.start()
    try:
        yield internet
    finally:
        await internet.stop()


async def deliver(internet, host, *recipients, content=b"Subject: x\r\n\r\nx"):
    """Hold a session with a host; return its replies to RCPT and to the content."""
    [address] = internet.records(host, "A")
    reader, writer = await asyncio.open_connection(address, internet.port)
    replies = []

    async def say(line):
        writer.write(line + b"\r\n")
        while not re.match(rb"\d{3} ", reply := await reader.readline()):
            assert reply, "the host closed the connection"
        return reply.decode().strip()

    await reader.readline()
    await say(b"EHLO client.test")
    await say(b"MAIL FROM:<ann@a.test>")
    replies = [await say(f"RCPT TO:<{one}>".encode()) for one in recipients]
    if any(one.startswith("250") for one in replies):
        await say(b"DATA")
        replies.append(await say(content + b"\r\n."))
    writer.write(b"QUIT\r\n")
    while await reader.read(100):
        pass
    writer.close()
    return replies


async def test_what_a_host_has_done_is_bounded():
    async with simulated() as internet:
        many = [f"nobody{number}@one.test" for number in range(GIVEN_MAX + 5)]
        await deliver(internet, "a.one.test", *many)
        [host] = [one for one in overview(internet)["hosts"] if one["sessions"]]
        assert len(host["given"]) == GIVEN_MAX
        assert host["given"][0]["recipient"] == many[-1]
        internet.hosts["a.one.test"].remember(Moment("RCPT", "a.one.test"), Action("5" * 10_000))
        assert len(internet.hosts["a.one.test"].given[-1].action.reply) <= 500


async def test_an_edit_keeps_what_the_other_replies_have_counted():
    text = parse_scenario(SCENARIO)
    async with simulated() as internet:
        await deliver(internet, "a.one.test", "twice@one.test", "nobody@one.test")

        def used():
            return [one["used"] for one in overview(internet)["domains"][0]["replies"]]

        edited = with_reply(
            text, "one.test", {"verb": "RCPT", "recipient": "n*", "reply": "552 full"}
        )
        internet.edit(edited.text.scenario, edited.domain, edited.kept)
        assert used() == [0, 1, 1]
        assert await deliver(internet, "a.one.test", "nobody@one.test") == ["552 full"]
        assert used() == [1, 1, 1]
        edited = without_reply(edited.text, 0, 1)
        internet.edit(edited.text.scenario, edited.domain, edited.kept)
        assert used() == [1, 1]
        replies = await deliver(internet, "a.one.test", "twice@one.test")
        assert replies[0].startswith("250")
