"""How next hops share the window of claims and the budget of contents."""

import asyncio
from dataclasses import dataclass

from relay.delivery import Contents, Window
from relay.message.content import LARGE_BYTES, Content, LargeContent, MemoryOctets
from relay.message.nexthop import NextHop

STALLED, LIVE = NextHop.parse("mx:stalled.test"), NextHop.parse("mx:live.test")


@dataclass(frozen=True)
class Message:
    id: str


@dataclass(frozen=True)
class Claim:
    next_hop: NextHop
    content: bytes | None = None
    message: Message = Message("m")
    entry_id: int = 1
    content_size: int = 0

    @property
    def content_id(self) -> int:
        return self.content_size  # Spool below makes a content of that size


def fill(window: Window, next_hop: NextHop, content: bytes | None = None) -> list[Claim]:
    claims = []
    while window.has_room_for(next_hop):
        claims.append(Claim(next_hop, content))
        window.enter(claims[-1])
    return claims


def test_a_next_hop_has_no_more_claims_than_are_left_free() -> None:
    window = Window(claims_max=60)
    assert len(fill(window, STALLED)) == 30
    assert len(fill(window, LIVE)) == 15
    assert window.full == {STALLED, LIVE}
    assert window.claims_left == 15


def test_nor_more_bytes() -> None:
    window = Window(size_max_bytes=60)
    assert len(fill(window, STALLED, b"x")) == 30
    assert window.has_room_for(LIVE)


def test_a_full_next_hop_may_have_more_once_it_has_half() -> None:
    window = Window(claims_max=60)
    claims = fill(window, STALLED)
    reopened = [window.leave(claim) for claim in claims]
    assert reopened.index(True) == 9  # with 20 in it and 40 left
    assert reopened.count(True) == 1
    assert not window.full
    assert window.claims_left == 60


class Spool:
    async def read_content(self, content_id: int) -> Content:
        if content_id > LARGE_BYTES:
            return LargeContent(b"xx", (MemoryOctets(b""),), eight_bit=False)
        return b"x" * content_id


async def test_large_contents_of_a_stalled_next_hop_leave_room_for_others() -> None:
    contents = Contents(Spool(), budget_bytes=100)
    stalled = [Claim(STALLED, entry_id=number, content_size=30) for number in range(4)]
    reading = [asyncio.ensure_future(contents.of(claim)) for claim in stalled]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await contents.of(Claim(LIVE, entry_id=9, content_size=60)) == b"x" * 60
    assert [one.done() for one in reading] == [True, False, False, False]
    for one, claim in zip(reading, stalled, strict=True):
        await one
        contents.release(claim)
        contents.release(Claim(LIVE, entry_id=9, content_size=60))


async def test_a_content_larger_than_the_budget_is_read_alone() -> None:
    contents = Contents(Spool(), budget_bytes=100)
    large = Claim(LIVE, content_size=1000)
    assert await contents.of(large) == b"x" * 1000
    waiting = asyncio.ensure_future(contents.of(Claim(STALLED, entry_id=2, content_size=1)))
    await asyncio.sleep(0)
    assert not waiting.done()
    contents.release(large)
    assert await waiting == b"x"


async def test_of_a_large_content_only_the_header_counts() -> None:
    contents = Contents(Spool(), budget_bytes=8)
    first, second = (Claim(LIVE, entry_id=number, content_size=1 << 30) for number in (1, 2))
    async with asyncio.timeout(5):
        await contents.of(first)
        contents.release(first)
        await contents.of(first)
    waiting = asyncio.ensure_future(contents.of(second))
    await asyncio.sleep(0)
    assert not waiting.done()  # how much of it will be in memory is not known before it is read
    small = [Claim(STALLED, entry_id=number, content_size=1) for number in (3, 4)]
    async with asyncio.timeout(5):
        assert [await contents.of(one) for one in small] == [b"x", b"x"]
    for one in (first, *small):
        contents.release(one)
    async with asyncio.timeout(5):
        await waiting
