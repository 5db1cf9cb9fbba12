"""What a person sees of the simulated internet is bounded."""

import asyncio

from relay.development.internet.behaviour import Action, Moment
from relay.development.internet.overview import overview
from relay.development.internet.scenario_file import parse_scenario
from relay.development.internet.simulator import SimulatedInternet
from relay.development.internet.smtp_host import GIVEN_MAX
from tests.support.manual_clock import ManualClock

SCENARIO = """
[[domain]]
name = "one.test"
reply = [{ verb = "RCPT", recipient = "no*", reply = "550 5.1.1 no such user here" }]
"""
HOST = "mx1.one.test"


async def test_what_a_host_has_done_is_bounded():
    internet = SimulatedInternet(ManualClock(), parse_scenario(SCENARIO).scenario)
    await internet.start()
    try:
        [address] = internet.records(HOST, "A")
        reader, writer = await asyncio.open_connection(address, internet.port)
        many = [f"nobody{number}@one.test" for number in range(GIVEN_MAX + 5)]
        lines = ["EHLO client.test", "MAIL FROM:<ann@a.test>", *(f"RCPT TO:<{x}>" for x in many)]
        writer.write("".join(f"{line}\r\n" for line in [*lines, "QUIT"]).encode())
        async with asyncio.timeout(120):
            assert (await reader.read()).count(b"550 5.1.1") == len(many)
        writer.close()
        [host] = [one for one in overview(internet)["hosts"] if one["sessions"]]
        assert len(host["given"]) == GIVEN_MAX
        assert host["given"][0]["recipient"] == many[-1]
        internet.hosts[HOST].remember(Moment("RCPT", HOST), Action("5" * 10_000))
        assert len(internet.hosts[HOST].given[-1].action.reply) <= 500
    finally:
        await internet.stop()
