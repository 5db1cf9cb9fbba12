"""The order of feeds, their repetition and back-off, with real receivers on loopback."""

import asyncio
import json

import pytest

from relay.base.advanceable_clock import AdvanceableClock
from relay.base.clock import SystemClock
from relay.base.message.web_url import read_url
from relay.base.observe.metrics import Metrics
from relay.front_door.notifications import sender as module
from relay.front_door.notifications.https_client import LOOPBACK, Destinations, HttpsClient
from relay.front_door.notifications.sender import Feed, Post, Sender
from relay.store.mailbox.errors import StoreUnavailableError
from tests.support.receiver import Receiver

HERE = Destinations(networks=LOOPBACK, plain=LOOPBACK, public=False)


class Numbers(Feed):
    """A feed of numbers; `until` is how many there are."""

    def __init__(self, url: str, until: int, *faults: Exception, owner: str = "") -> None:
        super().__init__("numbers", owner=owner)
        self.url, self.until, self.at = url, until, 0
        self.failures: list[str] = []
        self.faults = list(faults)

    async def next_post(self) -> Post | None:
        if self.faults:
            raise self.faults.pop()
        if self.at >= self.until:
            return None
        body = json.dumps({"value": [self.at]}).encode()
        return Post(read_url(self.url, schemes=("http",)), body, str(self.at + 1))

    async def sent(self, post: Post) -> None:
        self.at = int(post.position)

    async def failed(self, post: Post, why: str) -> int:
        self.failures.append(why)
        return 0


async def no_lookup(_: str) -> list[str]:
    return []


@pytest.fixture
async def sender(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0.02)
    made = Sender(HttpsClient(no_lookup, HERE), kind="test", clock=SystemClock(), metrics=Metrics())
    yield made
    await made.close()


async def until(condition) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)


async def test_in_order_and_again_after_a_failure(sender: Sender) -> None:
    with Receiver() as receiver:
        feed = Numbers(receiver.url(), until=3)
        receiver.mode = "error"
        sender.wake(feed)
        await until(lambda: len(feed.failures) >= 2)
        assert feed.failures[0].endswith("answered 500")
        receiver.mode = "good"
        await until(lambda: feed.at == 3)
        feed.until = 5
        sender.wake(feed)
        await until(lambda: feed.at == 5)
    values = receiver.notifications
    assert set(values[: len(feed.failures)]) == {0}
    assert values[len(feed.failures) :] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "fault", [StoreUnavailableError("the disk is full"), RuntimeError("a defect")]
)
async def test_a_feed_that_cannot_be_read_is_tried_again(sender: Sender, fault: Exception) -> None:
    with Receiver() as receiver:
        feed = Numbers(receiver.url(), 1, fault)
        sender.wake(feed)
        await until(lambda: feed.at == 1)


async def test_back_off_in_the_relays_time() -> None:
    clock = AdvanceableClock()
    sender = Sender(HttpsClient(no_lookup, HERE), kind="test", clock=clock, metrics=Metrics())

    async def settle() -> None:
        for _ in range(8):  # as relay/operation/app/settling.py
            await asyncio.sleep(0)
            await until(lambda: not sender.busy_count)

    with Receiver() as receiver:
        receiver.mode = "error"
        feed = Numbers(receiver.url(), until=1)
        sender.wake(feed)
        await settle()
        await clock.advance(3600, settle)
        # 1, 2, 4 ... 256 seconds are 9 tries and 511 s; then one each 300 s, with a spread of 10 %
        assert 17 <= len(feed.failures) <= 23
        receiver.mode = "good"
        await clock.advance(module._PAUSE_S_MAX * 1.2, settle)
        assert feed.at == 1
    await sender.close()


async def test_many_that_are_slow_delay_no_other(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take each post, but only just in time; and each has but one at a time."""
    monkeypatch.setattr(module, "SLOW_S", 0.0)
    with Receiver() as receiver, Receiver() as slow:
        feeds = [Numbers(slow.url(), until=1) for _ in range(module.POSTS_MAX)]
        sender.wake(*feeds)
        await until(lambda: all(feed.at == 1 for feed in feeds) and not sender.busy_count)
        monkeypatch.setattr(module, "SLOW_S", 60.0)
        slow.mode = "stall"
        for feed in feeds:
            feed.until = 2
        sender.wake(*feeds)
        await until(lambda: sender._retries.taken == module.RETRIES_MAX // 2)
        good = Numbers(receiver.url(), until=20)
        sender.wake(good)
        await until(lambda: good.at == 20)
        assert all(feed.at == 1 for feed in feeds)
        assert not any(feed.failures for feed in feeds)


async def test_many_that_are_down_delay_no_other(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POST_S", 0.2)
    with Receiver() as receiver, Receiver() as silent:
        silent.mode = "stall"
        stalled = [Numbers(silent.url(), until=1) for _ in range(module.POSTS_MAX * 2)]
        sender.wake(*stalled)
        await until(lambda: all(feed.failures for feed in stalled))
        monkeypatch.setattr(module, "POST_S", 60)  # longer than the test waits
        await until(lambda: sender._retries.taken == module.RETRIES_MAX // 2)
        good = Numbers(receiver.url(), until=20)
        sender.wake(good)
        await until(lambda: good.at == 20)


async def test_the_slow_receivers_of_an_account_delay_no_slow_one_of_another(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOW_S", 0.0)  # all are slow
    with Receiver() as receiver, Receiver() as silent:
        silent.mode = "stall"
        stalled = [Numbers(silent.url(), until=1, owner="eve") for _ in range(200)]
        good = Numbers(receiver.url(), until=20, owner="alice")
        for feed in (*stalled, good):
            feed.is_slow = True
        monkeypatch.setattr(module, "POST_S", 60)  # longer than the test waits
        sender.wake(*stalled)
        await until(lambda: sender._retries.taken == module.RETRIES_MAX // 2)
        sender.wake(good)
        await until(lambda: good.at == 20)
