"""Calls in threads: results and errors come back, threads are few, closing waits."""

import asyncio
import hashlib
import threading
from pathlib import Path

import pytest

from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.threads import ThreadPool


@pytest.fixture
def pool():
    made = ThreadPool(3, "tested")
    yield made
    made.close()


def name():
    return threading.current_thread().name


async def test_a_call_that_runs_alone_overlaps_no_other(pool) -> None:
    going, overlaps = [], []

    def work(name: str) -> None:
        going.append(name)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 5000)  # other threads run meanwhile
        if "alone" in going and len(going) > 1:
            overlaps.append(list(going))
        going.remove(name)

    calls = [pool.run(work, f"{number}") for number in range(20)]
    calls += [pool.run_alone(lambda: work("alone")) for _ in range(3)]
    calls += [pool.run(work, f"{number}") for number in range(20, 40)]
    async with asyncio.timeout(120):
        await asyncio.gather(*calls)
    assert overlaps == []
    with pytest.raises(StoreUnavailableError):
        await pool.run_alone(Path("/no such directory").rmdir)
    await pool.run(work, "later")
