"""Live views: rendered once for all readers, bounded, and ended at the stop."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from relay.base.clock import SystemClock
from relay.front_door.http.errors import ApiError
from relay.front_door.pages import live
from relay.front_door.pages.live import LiveReader, LiveViews, digest_of
from relay.store.journeys.event_feed import ChangeNotifier
from tests.support.logs import capture_logs


class Page:
    """A fragment that tests change, and how often it was rendered."""

    def __init__(self) -> None:
        self.text, self.rendered, self.is_busy = "one", 0, False
        self.changes = ChangeNotifier()
        self.views = LiveViews(self.changes, SystemClock())

    async def render(self) -> str:
        self.rendered += 1
        if self.is_busy:
            self.change(str(self.rendered))
        return self.text

    def change(self, text: str) -> None:
        self.text = text
        self.changes.notify()

    def reader(self, key: str = "k", *, name: str = "ann", has: str = "", **more) -> "Stream":
        return Stream(self.views.stream(key, self.render, LiveReader(name, has, **more)))


class Stream:
    """What one reader gets."""

    def __init__(self, response) -> None:
        self.blocks = response.blocks

    async def begin(self) -> None:
        """Open the stream."""
        assert await self.next() == "retry: 2000\n"

    async def next(self) -> str:
        """The next block; "" at the end."""
        async with asyncio.timeout(120):
            return (await anext(self.blocks, b"")).decode()

    async def close(self) -> None:
        await self.blocks.aclose()


def event(text: str) -> str:
    data = "".join(f"data: {line}\n" for line in text.split("\n"))
    return f"event: view\nid: {digest_of(text)}\n{data}\n"


@pytest.fixture
async def page(monkeypatch) -> AsyncIterator[Page]:
    monkeypatch.setattr(live, "_VIEW_PAUSE_S", 0.05)
    made = Page()
    yield made
    made.views.close()


async def test_readers_get_what_changes_and_it_is_rendered_once_for_all(page):
    streams = [page.reader() for _ in range(20)]
    for one in streams:
        await one.begin()
    assert {await one.next() for one in streams} == {event("one")}
    page.change("two\nlines")
    assert {await one.next() for one in streams} == {event("two\nlines")}
    assert page.rendered == 2
    page.is_busy = True  # there are changes all the time
    page.change("")
    assert len({await one.next() for one in streams}) == 1
    for one in streams:
        await one.close()


async def test_a_reader_gets_the_present_fragment_only_if_it_has_another_one(page):
    old, same = page.reader(has=digest_of("zero")), page.reader(has=digest_of("one"))
    await old.begin()
    await same.begin()
    assert await old.next() == event("one")
    page.change("two")
    assert await same.next() == event("two")


async def test_a_slow_reader_gets_the_last_fragment_and_none_is_kept_for_it(page):
    slow, quick = page.reader(), page.reader()
    await slow.begin()
    await quick.begin()
    for text in ("two", "three", "four"):
        page.change(text)
        while await quick.next() != event(text):
            pass
    assert await slow.next() == event("four")


async def test_the_number_of_readers_is_bounded(page, monkeypatch):
    monkeypatch.setattr(live, "READERS_OF_VISITOR_MAX", 2)
    monkeypatch.setattr(live, "READERS_MAX", 4)
    for key, name in (("a", "ann"), ("a", "ann"), ("b", "bob"), ("b", "joe")):
        await page.reader(key, name=name).begin()
    for key, name in (("a", "ann"), ("c", "bob")):
        with pytest.raises(ApiError) as caught:
            page.reader(key, name=name)
        assert caught.value.status == 503


async def test_a_stop_ends_all_streams_and_takes_no_more(page):
    reader, waiting = page.reader(), page.reader(has=digest_of("one"))
    await reader.begin()
    await waiting.begin()
    end = asyncio.ensure_future(waiting.next())
    assert await reader.next() == event("one")
    page.views.close()
    assert await reader.next() == ""
    assert await end == ""
    with pytest.raises(ApiError):
        page.reader()


@pytest.mark.parametrize(("error", "logged"), [(ApiError(404, "x", "x"), 0), (OSError(), 1)])
async def test_what_is_gone_is_no_failure_of_the_relay(page, error, logged):
    async def fail() -> str:
        raise error

    with capture_logs() as lines:
        stream = Stream(page.views.stream("gone", fail, LiveReader("ann", "")))
        await stream.begin()
        assert await stream.next() == ""
    assert len(lines) == logged


def test_a_time_that_is_left_does_not_make_a_fragment_another_one() -> None:
    """Scripts count down: a fragment is not sent because a second has passed."""
    shown = (
        '<p>Next <time datetime="{}" data-countdown>{}</time>, try <time datetime="x">{}</time></p>'
    )
    digest = digest_of(shown.format("t1", "in 11 min", "20:23 UTC"))
    assert digest_of(shown.format("t1", "in 10 min", "20:23 UTC")) == digest
    assert digest_of(shown.format("t2", "in 11 min", "20:23 UTC")) != digest
    assert digest_of(shown.format("t1", "in 11 min", "20:24 UTC")) != digest


async def test_what_comes_at_once_does_not_exceed_the_bounds_of_a_visitor(page, monkeypatch):
    monkeypatch.setattr(live, "READERS_OF_VISITOR_MAX", 2)
    readers = [page.reader(key) for key in ("a", "b", "c")]
    assert [await one.next() for one in readers] == ["retry: 2000\n", "retry: 2000\n", ""]
    await page.reader("c", name="bob").begin()
