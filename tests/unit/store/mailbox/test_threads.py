"""Calls in threads: results and errors come back, threads are few, closing waits."""

import asyncio
import gc
import hashlib
import threading
from pathlib import Path

import pytest

from relay.store.mailbox.errors import QueryTooLongError, StoreUnavailableError
from relay.store.mailbox.threads import AccountQueues, ThreadPool


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


async def test_the_error_of_a_query_whose_client_has_left_is_nobodys(pool) -> None:
    begun, left, unretrieved = threading.Event(), threading.Event(), []

    def query() -> None:
        begun.set()
        assert left.wait(60)
        raise QueryTooLongError

    asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(context))
    caller = asyncio.ensure_future(AccountQueues(pool).run("a@b.test", query))
    await asyncio.to_thread(begun.wait, 60)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    left.set()
    await pool.run_alone(lambda: None)  # after the query
    await asyncio.sleep(0)
    del caller
    gc.collect()
    assert unretrieved == []
