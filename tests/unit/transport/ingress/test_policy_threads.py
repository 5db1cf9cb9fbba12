import asyncio
import gc
import threading
from functools import partial

import pytest

from relay.transport.ingress import policy_threads
from relay.transport.ingress.policy_threads import PolicyThreads


@pytest.fixture
def threads():
    made = PolicyThreads()
    yield made
    made.close()


async def test_giving_up_does_not_free_the_thread(threads):
    release, order = threading.Event(), []
    with pytest.raises(TimeoutError):
        await threads.run("a", lambda _: release.wait(10), timeout_s=0.01)
    again = asyncio.create_task(threads.run("a", lambda _: order.append("again"), timeout_s=120))
    await asyncio.sleep(0)
    await threads.run("b", lambda _: order.append("other"), timeout_s=120)
    assert order == ["other"]
    release.set()
    await again
    assert order == ["other", "again"]


async def test_a_call_has_its_whole_time_when_its_turn_comes(threads):
    release = threading.Event()
    first = asyncio.create_task(threads.run("a", lambda _: release.wait(10), timeout_s=120))
    second = asyncio.create_task(threads.run("a", lambda _: "done", timeout_s=0.2))
    await asyncio.sleep(0)
    assert not await threads.run("b", lambda _: threading.Event().wait(0.3), timeout_s=120)
    release.set()
    assert (await first, await second) == (True, "done")


async def test_clients_that_used_a_thread_for_long_share_one(threads, monkeypatch):
    monkeypatch.setattr(policy_threads, "_SLOW_S", 0.0)  # whoever has used a thread
    pauses, release, order = threading.Event(), threading.Event(), []
    began = threading.Event()
    for key in "abc":
        await threads.run(key, lambda _: pauses.wait(0.01), timeout_s=120)

    def slow(_):
        order.append("slow")
        began.set()
        release.wait(10)

    calls = [asyncio.create_task(threads.run(key, slow, timeout_s=120)) for key in "abc"]
    assert await asyncio.to_thread(began.wait, 10)
    await threads.run("d", lambda _: order.append("other"), timeout_s=120)
    assert sorted(order) == ["other", "slow"]
    release.set()
    await asyncio.gather(*calls)
    assert order.count("slow") == 3


async def test_strangers_leave_a_thread_to_who_is_trusted(threads):
    release, order = threading.Event(), []
    strangers = [
        asyncio.create_task(threads.run(key, lambda _: release.wait(10), timeout_s=120))
        for key in "abcd"
    ]
    await asyncio.sleep(0)
    for key in ("alice", "bob"):
        await threads.run(key, order.append, timeout_s=10, is_trusted=True)
    assert len(order) == 2
    release.set()
    assert await asyncio.gather(*strangers) == [True] * 4


async def test_a_call_that_is_given_up_before_it_begins_never_runs(threads, monkeypatch):
    release, order = threading.Event(), []
    run = partial(threads.run, timeout_s=10, is_trusted=True)
    running = [asyncio.create_task(run(key, lambda _: release.wait(10))) for key in "abc"]
    await asyncio.sleep(0)  # all have begun
    monkeypatch.setattr(policy_threads, "_TURN_S", 0.01)
    with pytest.raises(TimeoutError):
        await run("d", lambda _: order.append("given up"))
    monkeypatch.undo()
    again = asyncio.create_task(run("d", lambda _: order.append("again")))
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*running, again)
    assert order == ["again"]


async def test_nothing_is_logged_about_a_call_that_fails_after_its_caller_left(threads, caplog):
    running = threading.Event()

    def fail(_):
        running.set()
        raise LookupError

    caller = asyncio.create_task(threads.run("a", fail, timeout_s=10))
    await asyncio.sleep(0)
    assert running.wait(10)  # the loop does not know yet that the call has begun
    caller.cancel()
    await asyncio.wait([caller])
    del caller
    assert await threads.run("a", lambda _: "next", timeout_s=10) == "next"
    gc.collect()
    assert caplog.messages == []
