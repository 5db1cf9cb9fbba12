"""Turns: whose turn it is, who is sent away, what a caller that gives up leaves behind."""

import asyncio

from relay.base.socket_address import client_of
from relay.base.turns import Turns


def waiting(turns: Turns, *ips: str) -> list[asyncio.Task]:
    return [asyncio.create_task(turns.take(client_of(ip), wait_s=60)) for ip in ips]


async def order_of(turns: Turns, *ips: str) -> list[str]:
    """Which clients get the only place, one after the other."""
    assert await turns.take("11.0.0.1", wait_s=0)
    tasks = dict(zip(waiting(turns, *ips), ips, strict=True))
    await asyncio.sleep(0)
    served, holder = [], "11.0.0.1"
    while tasks:
        turns.give_back(client_of(holder))
        [task], _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert task.result()
        served.append(holder := tasks.pop(task))
    return served


async def test_turns_are_by_48_bits_then_by_64_bits_of_ipv6():
    many = ["2a00:1:1:1::1", "2a00:1:1:1::2", "2a00:1:1:2::1"]
    served = await order_of(Turns("places", 1, waiting_max=9), *many, "2a00:1:2::1", "11.0.0.2")
    assert served == [many[0], "2a00:1:2::1", "11.0.0.2", many[2], many[1]]


async def test_the_longest_line_loses_its_last_one_when_too_many_wait():
    turns = Turns("places", 1, waiting_max=2)
    assert await turns.take("11.0.0.1", wait_s=0)
    first, last, other = waiting(turns, "11.0.0.2", "11.0.0.2", "11.0.0.3")
    assert not await last
    turns.give_back("11.0.0.1")
    assert await first
    turns.give_back("11.0.0.2")
    assert await other
    *early, late = waiting(turns, "11.0.0.4", "11.0.0.5", "11.0.0.6")
    assert not await late
    for ip, task in zip(("11.0.0.3", "11.0.0.4"), early, strict=True):
        turns.give_back(ip)
        assert await task


async def test_who_gives_up_leaves_no_place_taken():
    turns = Turns("places", 1, waiting_max=9)
    assert await turns.take("11.0.0.1", wait_s=0)
    assert not await turns.take("11.0.0.2", wait_s=0.01)
    served, waits = waiting(turns, "11.0.0.2", "11.0.0.3")
    await asyncio.sleep(0)
    turns.give_back("11.0.0.1")
    served.cancel()  # its place is there, and it does not know yet
    assert await waits
    turns.give_back("11.0.0.3")
    assert await turns.take("11.0.0.4", wait_s=0)
