"""Blocks of bodies: which are read and written on the event loop, and which in a thread.

A block that the kernel has in memory is copied in less than a millisecond; handing it to a thread
and back takes as much processor time. A read or write that may wait for the disk uses a thread.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from relay.base.clock import Clock

_SLOW_WRITE_S = 0.04  # on a busy machine, waiting for a processor takes up to 30 ms
_SLOW_COMMIT_S = 0.5
_SLOW_S = 10.0


async def next_block(coming: Iterator[bytes]) -> bytes:
    """Return the next block, b"" at the end. Raises the errors of reading.

    If the iterator yields b"", the block after it is read in a thread; see
    relay.base.message.content.octets_in_blocks().
    """
    if (block := next(coming, None)) == b"":
        return await asyncio.to_thread(next, filter(None, coming), b"")
    await asyncio.sleep(0)  # other tasks get their turn even if the peer is quick
    return block or b""


@dataclass(eq=False)
class BodyDisk:
    """The disk to which bodies are written as they arrive.

    The kernel copies a block, but blocks a write while the disk is far behind. Blocks are therefore
    written in threads while commits take long, and after a slow write until a quick one at least
    10 s later. Only if the disk becomes slow between two commits does a write delay the event loop.
    """

    clock: Clock
    commit_s: Callable[[], float]  # how long a commit takes now
    check_free_space: Callable[[int], None]  # raises SpoolFullError if the bytes do not fit
    _is_quick: bool = False
    _slow_until_s: float = 0.0

    async def run(self, write: Callable[[], None]) -> None:
        """Call a function that writes a block."""
        if self._is_quick and self.commit_s() < _SLOW_COMMIT_S:
            self._timed(write)
        else:
            await asyncio.to_thread(self._timed, write)

    def _timed(self, write: Callable[[], None]) -> None:
        began_s = self.clock.real_s()
        write()
        now_s = self.clock.real_s()
        if now_s - began_s >= _SLOW_WRITE_S:
            self._slow_until_s = now_s + _SLOW_S
        self._is_quick = now_s >= self._slow_until_s
