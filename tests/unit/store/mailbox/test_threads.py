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


async def test_results_and_errors_come_back(pool):
    assert await pool.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0)
    with pytest.raises(SystemExit):
        await pool.run(lambda: (_ for _ in ()).throw(SystemExit(3)))
    assert await pool.run(threading.current_thread) is not threading.current_thread()


async def test_closing_waits_for_what_was_asked():
    pool, done = ThreadPool(1, "tested"), []
    go_on = threading.Event()
    calls = [asyncio.ensure_future(pool.run(lambda: go_on.wait(5)))]
    calls += [asyncio.ensure_future(pool.run(lambda: done.append(1))) for _ in range(2)]
    await asyncio.sleep(0)
    go_on.set()
    pool.close()
    assert done == [1, 1]
    await asyncio.gather(*calls)
    with pytest.raises(RuntimeError, match="closed"):
        await pool.run(lambda: 1)


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
    assert (overlaps, pool.is_idle) == ([], True)
    with pytest.raises(StoreUnavailableError):
        await pool.run_alone(Path("/no such directory").rmdir)
    await pool.run(work, "later")
