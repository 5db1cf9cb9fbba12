"""What a client has sent and no command has taken yet.

On the path: the session's transport feeds it, the command loop takes lines, DATA takes blocks.
Holds: bounded; nothing is lost or reordered; a line ends in CRLF and nowhere else.
Fails: never; a malformed line comes out as a LineFault.
Standards: RFC 5321 2.3.8 (lines), 4.5.3.1.4; RFC 2920 (what is pipelined stays).
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum

_TEXT = frozenset((*b"\t\r\n", *range(0x20, 0x7F)))


class LineFault(StrEnum):
    """Why a command line was thrown away: the reply that says so."""

    BARE = "500 5.5.2 Lines must end in CRLF, and CR, LF and NUL may not stand alone"
    TOO_LONG = "500 5.5.2 Line too long"
    BINARY = (
        "554 5.5.0 This listener begins without TLS, and commands are text; send STARTTLS first,"
        " or use a listener with TLS; closing the connection"
    )


class Input:
    """A buffer with one reader.

    `pause` and `resume` act on the transport: reading stops while more than `limit_bytes` wait.
    """

    def __init__(
        self, *, limit_bytes: int, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self._limit_bytes = limit_bytes
        self._pause = pause
        self._resume = resume
        self._data = b""
        self._at = 0
        self._paused = False
        self._ended = False
        self._began = False
        self._is_binary = False  # the first octet of all
        self._fresh = False  # something came since the reader last found nothing
        self._in_long_line = False
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        """Add what the transport read."""
        if data and not self._began:
            self._began = True
            self._is_binary = data[0] not in _TEXT
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0
        self._fresh = True
        if len(self._data) > self._limit_bytes and not self._paused:
            self._paused = True
            self._pause()
        self._wake()

    def feed_end(self) -> None:
        """Say that nothing more will come."""
        self._ended = True
        self._wake()

    def take_line(self, limit_bytes: int) -> bytes | LineFault | None:
        """Take one line without its CRLF; None while it has not all come.

        Behind a bare LF everything up to the next CRLF that has come goes with it: a peer for whom
        LF ends no line sent it as one, and no part of it may become a command (RFC 5321 2.3.8).
        Nothing is a command either of a client whose first octet is no text.
        """
        if self._is_binary:
            self.clear()
            return LineFault.BINARY
        end = self._data.find(b"\n", self._at)
        if end < 0:
            self._fresh = False
            if len(self._data) - self._at > limit_bytes:
                self._in_long_line = True
                self.clear()
            return None
        start, self._at = self._at, end + 1
        line = self._data[start : end - 1] if end > start else b""
        if self._in_long_line:
            self._in_long_line = False
            return LineFault.TOO_LONG
        if end == start or self._data[end - 1] != 0x0D:
            crlf = self._data.find(b"\r\n", self._at)
            self._at = crlf + 2 if crlf >= 0 else len(self._data)
            return LineFault.BARE
        if len(line) + 2 > limit_bytes:
            return LineFault.TOO_LONG
        if b"\r" in line or b"\0" in line:
            return LineFault.BARE
        return line

    def take_all(self) -> bytes:
        """Take everything that has come."""
        self._fresh = False
        data = self._data[self._at :] if self._at else self._data
        self.clear()
        return data

    def give_back(self, rest: bytes) -> None:
        """Put back the end of what take_all() returned."""
        self._data = rest + self._data[self._at :]
        self._at = 0

    def clear(self) -> None:
        """Throw away what has come."""
        self._data = b""
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether everything that came has been taken."""
        return self._at >= len(self._data)

    async def more(self) -> bool:
        """Wait until something has come since the last look; False when nothing will."""
        if self._paused:
            self._paused = False
            self._resume()
        if not self._ended and not self._fresh:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._fresh

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)
