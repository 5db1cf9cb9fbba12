"""Blocks of bodies on the event loop: in a thread only what may wait for the disk."""

import asyncio
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from relay.base.blocks import BodyDisk, next_block
from relay.base.files import FileOctets, OpenOctets
from relay.base.message.content import LargeContent, MemoryOctets, blocks, join_octets
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

BODY = b"\r\n" + os.urandom(40)


class Threads(ThreadPoolExecutor):
    """Counts how often something was done in a thread."""

    calls = 0

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        return super().submit(*args, **kwargs)


@pytest.fixture(params=["/dev/shm", "/var/tmp"])  # Linux answers for the second one only
def path(request: pytest.FixtureRequest) -> Iterator[Path]:
    if not Path(request.param).is_dir():
        pytest.skip(f"{request.param} is not there")
    with tempfile.TemporaryDirectory(dir=request.param) as folder:
        path = Path(folder) / "body"
        path.write_bytes(BODY)
        yield path


async def read(content: LargeContent, block_bytes: int) -> tuple[bytes, int, int]:
    """What was read, how often in a thread, and how many turns others had meanwhile."""
    asyncio.get_running_loop().set_default_executor(threads := Threads(1))
    turns, coming, found = 0, blocks(content, block_bytes, on_loop=True), b""

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    while block := await next_block(coming):
        found += block
    task.cancel()
    return found, threads.calls, turns


@pytest.mark.parametrize("header", [b"Subject: x\r\n", b""])
async def test_only_the_first_block_of_a_file_in_memory_takes_a_thread(
    path: Path, header: bytes
) -> None:
    octets = FileOctets(path, 0, len(BODY))
    content = LargeContent(header, (octets,), eight_bit=True)
    answers = bool(OpenOctets.of_part(octets).read_cached(0, 1))
    found, in_threads, turns = await read(content, 7)
    assert found == header + BODY
    assert in_threads == (1 if answers else len(BODY) // 7)
    assert turns >= len(BODY) // 7


async def test_octets_that_are_made_while_they_are_read_are_made_in_a_thread() -> None:
    octets = join_octets([MemoryOctets(BODY[:20]), MemoryOctets(BODY[20:])])
    content = LargeContent(b"Subject: x\r\n", (octets,), eight_bit=True)
    found, in_threads, _ = await read(content, 21)
    assert (found, in_threads) == (b"Subject: x\r\n" + BODY, 2)


SLOW, QUICK, COMMIT_S = (0.041, 0.0), (0.039, 0.0), 0.49


@each_row(
    "writes, commit_s, on_loop",
    [
        ([], COMMIT_S, False),
        ([QUICK], COMMIT_S, True),
        ([QUICK], 0.5, False),
        ([QUICK, SLOW], COMMIT_S, False),
        ([QUICK, SLOW, (0.0, 9.9)], COMMIT_S, False),
        ([QUICK, SLOW, (0.0, 10.1)], COMMIT_S, True),
        ([QUICK, SLOW, (0.041, 10.1), QUICK], COMMIT_S, False),
    ],
)
async def test_a_block_is_written_on_the_event_loop_while_the_disk_is_quick(
    writes: list[tuple[float, float]], commit_s: float, *, on_loop: bool
) -> None:
    """Of each write before: how long it took, and how long nothing had been written."""
    clock = ManualClock()
    disk = BodyDisk(clock, lambda: commit_s, lambda _size_bytes: None)
    here: list[bool] = []

    def write(took_s: float) -> None:
        clock.now_s += took_s
        here.append(threading.current_thread() is threading.main_thread())

    for took_s, after_s in [*writes, QUICK]:
        clock.now_s += after_s
        await disk.run(partial(write, took_s))
    assert here[-1] is on_loop
