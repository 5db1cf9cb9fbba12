"""What the active queue and the content cache hold. See test_fairness.py for how it is shared."""

import asyncio
import itertools
from dataclasses import dataclass, field
from pathlib import Path

from relay.base.files import FileOctets
from relay.base.message.content import LARGE_BYTES, Content, LargeContent, MemoryOctets, read_all
from relay.base.message.nexthop import NextHop
from relay.delivery.active_queue import ACTIVE_QUEUE_BYTES, ActiveQueue
from relay.delivery.content_cache import ContentCache
from relay.formats.encode_for_host import CannotEncodeError, Need
from relay.store.spool.types import PriorityLevel, SpoolError

STALLED, LIVE = NextHop.parse("mx:stalled.test"), NextHop.parse("mx:live.test")


@dataclass(frozen=True)
class Message:
    id: str


@dataclass(frozen=True)
class Claim:
    next_hop: NextHop
    content: bytes | None = None
    message: Message = Message("m")
    entry_id: int = field(default_factory=itertools.count(100).__next__)
    content_size: int = 0
    sender: int = 0
    level: PriorityLevel = PriorityLevel.NORMAL
    attempts: int = 0
    is_fresh: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.message.id, self.entry_id

    @property
    def content_id(self) -> int:
        return self.content_size  # Spool below makes a content of that size


def fill(
    active_queue: ActiveQueue,
    next_hop: NextHop,
    content: bytes | None = None,
    *,
    sender: int = 1,
    level: PriorityLevel = PriorityLevel.NORMAL,
) -> list[Claim]:
    """Accept claims while there is room."""
    claims = []
    while active_queue.has_room_for(next_hop, sender, level):
        claims.append(Claim(next_hop, content, sender=sender, level=level))
        active_queue.add(claims[-1])
    return claims


def test_a_claim_with_a_large_content_counts_for_several() -> None:
    active_queue = ActiveQueue(claims_max=60)
    unit = ACTIVE_QUEUE_BYTES // 60
    assert len(fill(active_queue, STALLED, bytes(2 * unit))) == 10
    assert active_queue.claims == 10
    assert len(fill(active_queue, LIVE)) == 15


class Spool:
    async def read_content(self, content_id: int, *, check: bool = True) -> Content:
        if content_id > LARGE_BYTES:
            return LargeContent(b"xx", (MemoryOctets(b""),), eight_bit=False)
        return b"x" * content_id


async def test_large_contents_of_a_stalled_next_hop_leave_room_for_others() -> None:
    contents = ContentCache(Spool(), budget_bytes=100)
    stalled = [Claim(STALLED, entry_id=number, content_size=30) for number in range(4)]
    reading = [asyncio.ensure_future(contents.of(claim)) for claim in stalled]
    await asyncio.sleep(0)
    async with asyncio.timeout(120):
        assert await contents.of(Claim(LIVE, entry_id=9, content_size=60)) == b"x" * 60
    assert [one.done() for one in reading] == [True, False, False, False]
    for one, claim in zip(reading, stalled, strict=True):
        await one
        contents.release(claim)
        contents.release(Claim(LIVE, entry_id=9, content_size=60))


async def test_one_report_at_a_time_needs_no_room() -> None:
    contents = ContentCache(Spool(), budget_bytes=30)
    stalled = Claim(STALLED, entry_id=1, content_size=30)
    first, second = (Claim(LIVE, entry_id=number, content_size=20) for number in (2, 3))
    async with asyncio.timeout(120):
        await contents.of(stalled)
        await contents.of(first, for_report=True)
        waiting = asyncio.ensure_future(contents.of(second, for_report=True))
        await asyncio.sleep(0)
        assert not waiting.done()
        contents.release(first)
        await waiting
    for one in (stalled, second):
        contents.release(one)
    assert (contents._room.taken, contents._beyond) == (0, None)


async def test_a_content_is_encoded_once_for_each_need_while_a_claim_has_it() -> None:
    contents = ContentCache(EightBitSpool(), budget_bytes=1 << 20)
    claims = [Claim(STALLED, entry_id=number, content_size=9) for number in range(50)]
    bare, header = Need(header=True, eight_bit=True), Need(header=True)
    made = await asyncio.gather(*(contents.encoded(one, bare) for one in claims))
    assert len({id(one) for one in made}) == 1
    assert made[0].why == "8 bit"
    assert read_all(made[0].content).endswith(b"\r\n\r\n=C3=BC\r\n")
    assert await contents.encoded(claims[0], header) is not made[0]
    for claim in claims[1:]:
        contents.release(claim)
    assert await contents.encoded(claims[0], bare) is made[0]
    contents.release(claims[0])
    assert await contents.encoded(claims[0], bare) is not made[0]


async def test_what_cannot_be_encoded_or_read_is_an_error_for_each_claim() -> None:
    contents = ContentCache(EightBitSpool(), budget_bytes=1 << 20)
    signed, gone = (Claim(STALLED, entry_id=number, content_size=number) for number in (1, 2))
    need = Need(eight_bit=True)
    found = await asyncio.gather(
        *(contents.encoded(one, need) for one in (signed, signed, gone, gone)),
        return_exceptions=True,
    )
    assert [type(one) for one in found] == [
        CannotEncodeError,
        CannotEncodeError,
        SpoolError,
        SpoolError,
    ]


class EightBitSpool:
    """The content with the id 1 is signed, that with the id 2 cannot be read."""

    async def read_content(self, content_id: int, *, check: bool = True) -> Content:
        if content_id == 1:
            return b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\xfc\r\n--b--\r\n"
        if content_id == 2:
            return LargeContent(b"A: b\r\n", (FileOctets(Path("missing"), 0, 9),), eight_bit=True)
        return "Subject: ü\r\n\r\nü\r\n".encode()
