import asyncio
import sys
import threading

import pytest

from relay.ingress.policy_threads import PolicyThreads


@pytest.fixture
def threads():
    made = PolicyThreads()
    yield made
    made.close()


async def test_a_client_has_one_thread_and_others_do_not_wait_for_it(threads):
    release, order = threading.Event(), []

    def slow():
        order.append("slow")
        release.wait(10)

    first = asyncio.create_task(threads.run("a", slow, timeout_s=10))
    second = asyncio.create_task(threads.run("a", lambda: order.append("second"), timeout_s=10))
    await asyncio.sleep(0)  # both have begun
    await threads.run("b", lambda: order.append("other"), timeout_s=10)
    assert sorted(order) == ["other", "slow"]
    release.set()
    await asyncio.gather(first, second)
    assert order[2:] == ["second"]


async def test_giving_up_does_not_free_the_thread(threads):
    release, order = threading.Event(), []
    with pytest.raises(TimeoutError):
        await threads.run("a", lambda: release.wait(10), timeout_s=0.01)
    again = asyncio.create_task(threads.run("a", lambda: order.append("again"), timeout_s=10))
    await asyncio.sleep(0)
    await threads.run("b", lambda: order.append("other"), timeout_s=10)
    assert order == ["other"]
    release.set()
    await again
    assert order == ["other", "again"]


async def test_an_error_in_a_thread_is_raised_and_frees_it(threads):
    def fails():
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await threads.run("a", fails, timeout_s=10)
    assert await threads.run("a", lambda: 1, timeout_s=10) == 1


async def test_the_lock_goes_to_others_sooner_while_a_call_runs(threads):
    usual_s = sys.getswitchinterval()
    seen_s = await asyncio.gather(
        *[threads.run(key, sys.getswitchinterval, timeout_s=10) for key in "ab"]
    )
    assert max(seen_s) < usual_s == sys.getswitchinterval()


async def test_a_call_has_its_whole_time_when_its_turn_comes(threads):
    release = threading.Event()
    first = asyncio.create_task(threads.run("a", lambda: release.wait(10), timeout_s=10))
    second = asyncio.create_task(threads.run("a", lambda: "done", timeout_s=0.2))
    await asyncio.sleep(0)
    assert not await threads.run("b", lambda: threading.Event().wait(0.3), timeout_s=10)
    release.set()
    assert (await first, await second) == (True, "done")


async def test_a_call_that_is_given_up_before_it_begins_never_runs(threads):
    release, order = threading.Event(), []
    running = [
        asyncio.create_task(threads.run(key, lambda: release.wait(10), timeout_s=10))
        for key in "ab"
    ]
    await asyncio.sleep(0)  # both have begun
    with pytest.raises(TimeoutError):
        await threads.run("c", lambda: order.append("given up"), timeout_s=0.01)
    again = asyncio.create_task(threads.run("c", lambda: order.append("again"), timeout_s=10))
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*running, again)
    assert order == ["again"]
