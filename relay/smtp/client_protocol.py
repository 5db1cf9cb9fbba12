"""One connection as bytes out and replies in: the protocol that takes over once the session stands.

On the path: connect installs it on a transport; connection speaks through it.
Holds: each reply answers the oldest command without one; one nobody asked for ends it all.
Fails: WireError, and then always; replies that came before the trouble can still be read.
Standards: RFC 5321 4.5.3.2 (time-outs), RFC 2920 3.1 (replies in order).
"""

import asyncio
from collections import deque

from relay.message.classify import Reply, Trouble

REPLY_BYTES_MAX = 8 * 1024
REPLY_LINES_MAX = 100
_TOO_LONG = f"a reply of more than {REPLY_LINES_MAX} lines or {REPLY_BYTES_MAX} bytes"
_SHOWN_MAX = 80


class ReplyReader:
    """Takes bytes in, gives whole replies out; `fault` says what was wrong, "" if nothing."""

    def __init__(self) -> None:
        self.fault = ""
        self._rest = b""
        self._texts: list[str] = []
        self._size_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing of a next reply has come yet."""
        return not self._rest and not self._texts

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that `data` completes, in order, up to the first fault."""
        replies: list[Reply] = []
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            reply = self._take(line.removesuffix(b"\r"))
            if self.fault:
                return replies
            if reply is not None:
                replies.append(reply)
        if self._size_bytes + len(self._rest) > REPLY_BYTES_MAX:
            self.fault = _TOO_LONG
        return replies

    def _take(self, line: bytes) -> Reply | None:
        code, separator = line[:3], line[3:4]
        if not (code.isdigit() and b"200" <= code < b"600" and separator in (b"", b" ", b"-")):
            self.fault = f"{printable(line[:_SHOWN_MAX])!r}, which is no SMTP reply"
            return None
        self._size_bytes += len(line)
        if self._size_bytes > REPLY_BYTES_MAX or len(self._texts) >= REPLY_LINES_MAX:
            self.fault = _TOO_LONG
            return None
        self._texts.append(printable(line[4:]))
        if separator == b"-":
            return None
        text, self._texts, self._size_bytes = joined(self._texts), [], 0
        return Reply(int(code), text)


def printable(raw: bytes) -> str:
    """Return `raw` as text safe in a report, a log, JSON: what is not printable becomes "?"."""
    text = raw.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def joined(lines: list[str]) -> str:
    """Return a reply's lines as one, without the enhanced status that hosts repeat on each."""
    if len(lines) == 1:
        return lines[0]
    first = lines[0].partition(" ")[0]
    repeated = first + " " if first.count(".") == 2 and first[:1] in "245" else "\n"
    return " ".join([lines[0], *(line.removeprefix(repeated) for line in lines[1:])]).strip()


class WireError(Exception):
    """The connection is of no more use; `unasked` is a reply that came before its command."""

    def __init__(self, trouble: Trouble, words: str, *, unasked: Reply | None = None) -> None:
        super().__init__(words)
        self.trouble = trouble
        self.words = words
        self.unasked = unasked


class Wire(asyncio.Protocol):
    """Writes with flow control, pairs replies with commands, and notices a dead peer while idle."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._reader = ReplyReader()
        self._replies: deque[Reply] = deque()
        self._outstanding = 0
        self._paused = False
        self._shut = False
        self._trouble: WireError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._closed = self._loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether a command may be written: no trouble, no EOF, nothing unasked-for."""
        return self._trouble is None and not self._transport.is_closing()

    # -- for connection
    def send(self, data: bytes, *, replies: int) -> None:
        """Write `data`, to which the peer owes `replies`. Raises WireError."""
        if self._trouble is not None:
            raise self._trouble
        if self._transport.is_closing():
            raise WireError(Trouble.LOST, "the connection is closed")
        self._outstanding += replies
        self._transport.write(data)

    async def reply(self, timeout_s: float) -> Reply:
        """Return the reply to the oldest unanswered command. Raises WireError."""
        deadline = self._loop.time() + timeout_s
        while not self._replies:
            if self._trouble is not None:
                raise self._trouble
            await self._woken(deadline, f"no reply within {timeout_s:g} s")
        return self._replies.popleft()

    async def drained(self, timeout_s: float) -> None:
        """Wait until the peer has taken most of what was written. Raises WireError."""
        deadline = self._loop.time() + timeout_s
        while self._paused and self._trouble is None:
            await self._woken(deadline, f"the peer took nothing for {timeout_s:g} s")
        if self._trouble is not None:
            raise self._trouble

    def close(self) -> None:
        """Shut the wire; unwritten bytes are dropped: a stalled peer would keep them for ever."""
        self._fail(WireError(Trouble.LOST, "the connection is closed"))
        if self._shut:  # a TLS transport answers no question any more
            return
        self._shut = True
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    async def closed(self, timeout_s: float) -> None:
        """Wait until the transport is gone; after `timeout_s` it is torn down."""
        done, _ = await asyncio.wait([self._closed], timeout=timeout_s)
        if not done:
            self._transport.abort()

    async def _woken(self, deadline: float, words: str) -> None:
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_at(deadline, self._expire, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
        if self._loop.time() >= deadline and not self._replies and self._trouble is None:
            self._fail(WireError(Trouble.TIMEOUT, words))

    def _expire(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: WireError) -> None:
        """Keep the first trouble: what follows is only its consequence."""
        if self._trouble is None:
            self._trouble = error
        self._wake()

    # -- for the transport
    def data_received(self, data: bytes) -> None:
        """Take replies in; after nonsense the connection goes at once, watched or not."""
        if self._trouble is not None:
            return
        replies = self._reader.feed(data)
        asked, unasked = replies[: self._outstanding], replies[self._outstanding :]
        self._replies.extend(asked)
        self._outstanding -= len(asked)
        if unasked:
            self._nonsense(f"{str(unasked[0])!r} before it was asked", unasked[0])
        elif self._reader.fault:
            self._nonsense(self._reader.fault)
        elif not self._outstanding and not self._reader.is_empty:
            self._nonsense("something before it was asked")
        elif asked:
            self._wake()

    def _nonsense(self, words: str, unasked: Reply | None = None) -> None:
        self._fail(WireError(Trouble.NONSENSE, f"the peer sent {words}", unasked=unasked))
        self._shut = True
        self._transport.abort()

    def eof_received(self) -> bool:
        """Treat a half-closed connection as closed."""
        self._fail(WireError(Trouble.LOST, "the peer closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        words = f"the connection broke: {exc}" if exc else "the peer closed the connection"
        self._fail(WireError(Trouble.LOST, words))
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        """Hold the writer back: the socket is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """Let the writer go on."""
        self._paused = False
        self._wake()
