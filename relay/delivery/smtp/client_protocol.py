"""The asyncio protocol of an SMTP client: commands out, replies in.

ReplyParser turns bytes into replies, of at most 8 KiB and 100 lines each. Where commands are not
pipelined, so that replies cannot be confused, a line without a code is text of the reply.
SmtpClientProtocol pairs each reply with the oldest command without one (RFC 2920 3.1). An
unsolicited reply ends the connection. After an error every call raises that error; replies received
before it can still be read. See RFC 5321 4.2 and 4.5.3.
"""

import asyncio
import math
from collections import deque

from relay.base.message.outcome import Reply, SessionFailure

REPLY_BYTES_MAX = 8 * 1024  # RFC 5321 4.5.3.1.5 has 512 for a line
REPLY_LINES_MAX = 100  # RFC 5321 4.2.1 has no limit
TOO_LONG = f"a reply of more than {REPLY_LINES_MAX} lines or {REPLY_BYTES_MAX} bytes"
_SHOWN_MAX = 80


class ReplyParser:
    """Parses bytes into replies; `fault` is the first syntax error, "" if there is none. With
    `takes_text` a line without a code is none.
    """

    def __init__(self, *, takes_text: bool = False) -> None:
        self.fault = ""
        self._takes_text = takes_text
        self._begins_with_2yz = self._has_code = False
        self._rest = b""
        self._texts: list[str] = []
        self._size_bytes = 0

    def has_begun(self) -> bool:
        """Return whether a part of the next reply has arrived; text alone is none, and goes. Its
        octets count for that reply.
        """
        if not self._has_code:
            self._texts = []
        return bool(self._rest or self._texts)

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that `data` completes, in order, up to the first fault."""
        replies: list[Reply] = []
        *lines, self._rest = (self._rest + data).split(b"\n")
        last = None  # the line of the last reply, if it had one line
        for line in lines:
            if line == last:  # hosts say the same of each recipient
                replies.append(replies[-1])
                continue
            is_first = not self._texts
            reply = self._take(line.removesuffix(b"\r"))
            if self.fault:
                return replies
            last = line if is_first and reply is not None else None
            if reply is not None:
                replies.append(reply)
        if self._size_bytes + len(self._rest) > REPLY_BYTES_MAX:
            self.fault = TOO_LONG
        return replies

    def _take(self, line: bytes) -> Reply | None:
        is_text = not has_code(line)
        if not (is_text or self._texts) and line[3:4] == b" " and len(line) < REPLY_BYTES_MAX:
            return Reply(int(line[:3]), printable(line[4:]))  # of one line: nearly always
        if is_text and not self._takes_text:
            self.fault = f"{printable(line[:_SHOWN_MAX])!r}, which is not an SMTP reply"
            return None
        self._size_bytes += len(line) + len(b"\n")
        if self._size_bytes > REPLY_BYTES_MAX or len(self._texts) >= REPLY_LINES_MAX:
            self.fault = TOO_LONG
            return None
        if not self._texts:
            self._begins_with_2yz = not is_text and line.startswith(b"2")
            self._has_code = False
        self._has_code = self._has_code or not is_text
        self._texts.append(printable(line if is_text else line[4:]))
        if is_text or line[3:4] == b"-":
            return None
        text, self._texts, self._size_bytes = joined(self._texts), [], 0
        return Reply(
            int(line[:3]), text, doubtful=line.startswith(b"2") and not self._begins_with_2yz
        )


def has_code(line: bytes) -> bool:
    """Return whether a line is one of a reply, and not only text."""
    code = line[:3]
    return code.isdigit() and b"200" <= code < b"600" and line[3:4].rstrip() in (b"", b"-")


def printable(raw: bytes) -> str:
    """Return `raw` as text for reports, logs and JSON: unprintable characters become "?"."""
    text = raw.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def joined(lines: list[str]) -> str:
    """Return the lines of a reply as one, without the enhanced status that each line repeats."""
    if len(lines) == 1:
        return lines[0]
    first = lines[0].partition(" ")[0]
    repeated = first + " " if first.count(".") == 2 and first[:1] in "245" else "\n"
    return " ".join([lines[0], *(line.removeprefix(repeated) for line in lines[1:])]).strip()


class SmtpProtocolError(Exception):
    """The connection cannot be used any more; `unsolicited` is a reply that came too early."""

    def __init__(
        self, trouble: SessionFailure, text: str, *, unsolicited: Reply | None = None
    ) -> None:
        super().__init__(text)
        self.trouble = trouble
        self.text = text
        self.unsolicited = unsolicited


class SmtpClientProtocol(asyncio.Protocol):
    """Writes with flow control, pairs replies with commands, notices a closed peer when idle."""

    def __init__(self, transport: asyncio.Transport, *, takes_text: bool = False) -> None:
        """`takes_text` as in ReplyParser."""
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._parser = ReplyParser(takes_text=takes_text)
        self._ends_s = math.inf
        self._limit_s = 0.0
        self.replies: deque[Reply] = deque()  # that reply() returns without waiting
        self._outstanding = 0
        self._paused = False
        self._shut = False
        self._trouble: SmtpProtocolError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._closed = self._loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether a command may be written: no error, no EOF, no unsolicited reply."""
        return self._trouble is None and not self._transport.is_closing()

    # -- called by Connection
    def send(self, data: bytes, *, replies: int) -> None:
        """Write `data`, to which the peer will send `replies` replies. Raises SmtpProtocolError."""
        if self._trouble is not None:
            raise self._trouble
        if self._transport.is_closing():
            raise SmtpProtocolError(SessionFailure.LOST, "the connection is closed")
        self._outstanding += replies
        self._transport.write(data)

    async def reply(self, timeout_s: float) -> Reply:
        """Return the reply to the oldest command without one. Raises SmtpProtocolError."""
        deadline = self._loop.time() + timeout_s  # real time: a peer
        while not self.replies:
            if self._trouble is not None:
                raise self._trouble
            await self._woken(deadline, f"no reply within {timeout_s:g} s")
        return self.replies.popleft()

    async def drained(self, timeout_s: float) -> None:
        """Wait until the peer has taken most of the data. Raises SmtpProtocolError."""
        deadline = self._loop.time() + timeout_s  # real time: a peer
        while self._paused and self._trouble is None:
            await self._woken(deadline, f"the peer read no data for {timeout_s:g} s")
        if self._trouble is not None:
            raise self._trouble

    async def flushed(self, timeout_s: float) -> None:
        """Wait until the operating system has all data, or a reply comes. Raises SmtpProtocolError,
        with TIMEOUT or SLOW only if a part was not sent.
        """
        deadline = self._loop.time() + timeout_s  # real time: a peer
        self._transport.set_write_buffer_limits(0)  # paused until it is empty
        while self._paused and not self.replies and self._trouble is None:
            await self._woken(deadline, f"the peer read no data for {timeout_s:g} s")
        if self._trouble is None:
            self._transport.set_write_buffer_limits()
        elif self._paused and not self.replies:
            raise self._trouble

    def limit(self, total_s: float) -> None:
        """Let all waits from now on together take at most `total_s`."""
        self._limit_s = total_s
        self._ends_s = self._loop.time() + total_s  # real time: a peer

    def close(self) -> None:
        """Close; discard unwritten bytes, which a stalled peer might never read."""
        self._fail(SmtpProtocolError(SessionFailure.LOST, "the connection is closed"))
        if self._shut:  # a closed TLS transport has no buffer size
            return
        self._shut = True
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    async def closed(self, timeout_s: float) -> None:
        """Wait until the transport is closed; after `timeout_s` abort it."""
        done, _ = await asyncio.wait([self._closed], timeout=timeout_s)  # real time: a peer
        if not done:
            self._transport.abort()

    async def _woken(self, deadline: float, text: str) -> None:
        trouble = SessionFailure.TIMEOUT
        if self._ends_s < deadline:
            deadline, trouble = self._ends_s, SessionFailure.SLOW
            text = f"the transaction was not sent within {self._limit_s:g} s"
        self._waiter = self._loop.create_future()
        timer = self._loop.call_at(deadline, self._wake)  # real time: a peer
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None
        is_late = self._loop.time() >= deadline  # real time: a peer
        if is_late and not self.replies and self._trouble is None:
            self._fail(SmtpProtocolError(trouble, text))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: SmtpProtocolError) -> None:
        """Keep the first error: later ones follow from it."""
        if self._trouble is None:
            self._trouble = error
        self._wake()

    # -- called by the transport
    def data_received(self, data: bytes) -> None:
        """Parse replies; after a syntax error the connection is aborted at once."""
        if self._trouble is not None:
            return
        replies = self._parser.feed(data)
        asked, unsolicited = replies[: self._outstanding], replies[self._outstanding :]
        self.replies.extend(asked)
        self._outstanding -= len(asked)
        if unsolicited:
            self._protocol_error(f"{str(unsolicited[0])!r} before its command", unsolicited[0])
        elif self._parser.fault:
            self._protocol_error(self._parser.fault)
        elif not self._outstanding and self._parser.has_begun():
            self._protocol_error("data before a command")
        elif asked:
            self._wake()

    def _protocol_error(self, text: str, unsolicited: Reply | None = None) -> None:
        self._fail(
            SmtpProtocolError(
                SessionFailure.PROTOCOL, f"the peer sent {text}", unsolicited=unsolicited
            )
        )
        self._shut = True
        self._transport.abort()

    def eof_received(self) -> bool:
        """Treat a half-closed connection as closed."""
        self._fail(SmtpProtocolError(SessionFailure.LOST, "the peer closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the call that waits."""
        text = f"the connection broke: {exc}" if exc else "the peer closed the connection"
        self._fail(SmtpProtocolError(SessionFailure.LOST, text))
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        """Pause the writer: the socket buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """Resume the writer."""
        self._paused = False
        self._wake()
