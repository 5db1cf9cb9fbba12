"""Blocks of bodies: what is read and written on the event loop, and what in a thread.

A block that the kernel has in memory is copied in less than a millisecond; handing it to a thread
and back takes as much processor time. What may wait for the disk is done in a thread.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from relay.base.clock import Clock

_SLOW_WRITE_S = 0.04  # on a busy machine, waiting for a processor takes up to 30 ms
_SLOW_COMMIT_S = 0.5
_SLOW_S = 10.0


async def next_block(coming: Iterator[bytes]) -> bytes:
    """Return the next block, b"" at the end. What follows b"" is read in a thread; see
    relay.base.message.content.octets_in_blocks(). Raises what reading raises.
    """
    if (block := next(coming, None)) == b"":
        return await asyncio.to_thread(next, filter(None, coming), b"")
    await asyncio.sleep(0)  # where the peer is as quick, others get their turn
    return block or b""


@dataclass(eq=False)
class BodyDisk:
    """The disk to which bodies are written as they arrive.

    The kernel copies a block, but lets a write wait while the disk is far behind. So blocks are
    written in threads while commits take long, and from a slow write on until one that is quick
    after 10 s: only where the disk becomes slow between two commits, one write delays the loop.
    """

    clock: Clock
    commit_s: Callable[[], float]  # how long a commit takes now
    check_free_space: Callable[[int], None]  # raises SpoolFullError where so many bytes do not fit
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
