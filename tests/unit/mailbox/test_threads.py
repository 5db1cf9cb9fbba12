"""Calls in threads: results and errors come back, threads are few, closing waits."""

import asyncio
import threading

import pytest

from relay.mailbox.threads import ThreadPool


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


async def test_no_more_threads_than_are_needed_nor_than_allowed(pool):
    for _ in range(5):
        names = {await pool.run(name)}
    assert names == {"tested-0"}
    barrier = threading.Barrier(3)
    together = [pool.run(lambda: (barrier.wait(5), name())[1]) for _ in range(6)]
    assert set(await asyncio.gather(*together)) == {"tested-0", "tested-1", "tested-2"}


async def test_who_gives_up_stops_no_call(pool):
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def call():
        begun.set()
        go_on.wait(5)
        ended.set()

    asking = asyncio.ensure_future(pool.run(call))
    await pool.run(lambda: begun.wait(5))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    go_on.set()
    assert await pool.run(lambda: ended.wait(5))


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


def test_a_loop_that_is_gone_harms_nobody(pool):
    go_on, ended = threading.Event(), threading.Event()

    async def ask_and_leave():
        asking = asyncio.ensure_future(pool.run(lambda: (go_on.wait(5), ended.set())))
        await asyncio.wait((asking,), timeout=0)

    asyncio.run(ask_and_leave())
    go_on.set()
    assert ended.wait(5)
    assert asyncio.run(pool.run(lambda: 7)) == 7


def name():
    return threading.current_thread().name
