"""Many large messages are signed at once, and other mail does not wait for them."""

import asyncio
import threading
from dataclasses import dataclass, field
from pathlib import Path

from relay.base.message.content import LARGE_BYTES, LargeContent
from relay.base.message.header import ParsedContent
from relay.base.observe.metrics import Metrics
from relay.transport.signing.keys import KeyRing, SigningKey
from relay.transport.signing.private_keys import new_key
from relay.transport.signing.signer import Signer
from tests.support.manual_clock import ManualClock

HEADER = b"From: alice@example.test\r\n"
LARGE_MESSAGES = 50  # more than Python's default executor has threads: 32 at most


@dataclass(frozen=True)
class SlowOctets:
    """A body of zeros on a disk that gives nothing until it is told to."""

    gate: threading.Event
    size: int = LARGE_BYTES + 1
    reads: list[int] = field(default_factory=list)

    def read(self, start: int, length: int) -> bytes:
        self.reads.append(start)
        assert self.gate.wait(60)
        return bytes(min(length, self.size - start))

    def part(self, start: int, length: int) -> "SlowOctets":
        raise NotImplementedError


async def test_a_small_message_does_not_wait_for_large_ones():
    key = SigningKey("example.test", "rsa", new_key("rsa", bits=1024), Path("rsa.pem"))
    signer = Signer(lambda: KeyRing([key]), clock=ManualClock(), metrics=Metrics())
    body = SlowOctets(threading.Event())
    large = ParsedContent.of(LargeContent(HEADER, (body,), eight_bit=False))
    small = ParsedContent.of(HEADER + b"\r\nHello.\r\n")
    waiting = [
        asyncio.create_task(signer.sign([large], trusted=True)) for _ in range(LARGE_MESSAGES)
    ]
    try:
        async with asyncio.timeout(120):  # real time: threads
            while not body.reads:
                await asyncio.sleep(0.001)
            [signed] = (await signer.sign([small], trusted=True)).contents
        assert signed.header.count("DKIM-Signature") == 1
        assert not any(task.done() for task in waiting)
    finally:
        body.gate.set()
        signed_large = await asyncio.gather(*waiting)
    assert len({one.contents[0].header.octets for one in signed_large}) == 1
