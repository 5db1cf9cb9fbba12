"""Read what follows 354: find the end of data, undo the dots, refuse what smuggling is made of.

On the path: the session feeds it blocks; acceptance gets the content.
Holds: only CRLF . CRLF ends the data, however it is cut into blocks; memory is bounded: of what is
    large only the header stays in it, and as much of the body as waits to be written.
Fails: `refusal` holds the reply; what is refused is still read to its end, so the session goes on.
Standards: RFC 5321 2.3.8, 4.1.1.4, 4.5.2 (transparency), 4.5.3.1.6; RFC 1870 6.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from relay.ingress.session_limits import Budget, Limits
from relay.message.content import BLOCK_BYTES, LARGE_BYTES, Content, LargeContent
from relay.message.envelope import Client
from relay.message.verdict import Source
from relay.mime import headers
from relay.spool.types import Arrival

HEADER_BYTES_MAX = LARGE_BYTES  # it stays in memory, searched and decoded on the event loop
_CRLF = b"\r\n"
_DOT = b"\r\n."
_END = _DOT + _CRLF
_CHUNK_BYTES = 64  # what Python needs around a chunk: a client may send line by line


class Refusal(StrEnum):
    """Why a content is not taken: the reply after the final dot."""

    BARE = (
        "550 5.5.2 The message has a bare CR or LF, or a NUL;"
        " lines must end in CRLF (RFC 5321 2.3.8)"
    )
    LONG_LINE = "500 5.5.2 The message has a line that is too long; wrap or encode it"
    LONG_HEADER = (
        f"554 5.6.0 The header is longer than {HEADER_BYTES_MAX} octets; is its blank line missing?"
    )
    TOO_BIG = "552 5.3.4 The message is larger than SIZE allows"
    NO_ROOM = "452 4.3.1 Too much mail at once, try again later"
    QUEUE_FULL = "452 4.3.1 The queue is full, try again later"
    LOCAL_ERROR = "451 4.3.0 Local error, try again later"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came from, as its session knows it.

    `ip` is "" on a Unix socket; `tls` is the protocol version or ""; `login` is the account that
    authenticated or ""; `trusted` means AUTH, a listed network or pickup; `pickup` that it came
    through pickup's own socket.
    """

    ip: str
    helo: str
    extended: bool = True
    tls: str = ""
    login: str = ""
    trusted: bool = False
    pickup: bool = False

    @property
    def client(self) -> Client:
        """What the log and the journey say of the client."""
        return Client(self.ip, self.helo, self.login, self.tls)

    @property
    def source(self) -> Source:
        """The `source` condition of rules and the `via` label of metrics."""
        return Source.GRAPH if self.pickup else Source.SMTP


@dataclass(frozen=True, slots=True)
class Decision:
    """The reply after the final dot; `queue_id` is "" where nothing was accepted."""

    reply: str
    queue_id: str = ""


@dataclass(frozen=True, slots=True)
class Received:
    """A content, and what to call when whoever accepts it is done with it, once."""

    content: Content = field(repr=False)
    release: Callable[[], None]


class ContentReader:
    """Takes blocks of any size; works on whole blocks, never line by line.

    A block is worked on up to its last CRLF; the line that is not complete waits for the next. Data
    starts as if behind a CRLF, so that the first line is like every other.

    What grows beyond `limits.large_bytes` is divided: from then on, whenever `waits` is true after
    feed(), what is held of the body has to be written by spill() before more is fed.
    """

    def __init__(
        self,
        *,
        size_max_bytes: int,
        limits: Limits,
        budget: Budget,
        arrival: Callable[[], Arrival],
    ) -> None:
        """`arrival` gives a place for the body of a large content."""
        self._size_max_bytes = size_max_bytes
        self._line_max_bytes = limits.text_line_bytes
        self._budget = budget
        self._new_arrival = arrival
        self._large_bytes = limits.large_bytes
        self._chunks: list[bytes] = []
        self._rest = _CRLF
        self._held_bytes = 0
        self._ended = False
        # Of a large content:
        self._header: bytes | None = None
        self._arrival: Arrival | None = None
        self._eight_bit = False
        self.size_bytes = 0
        self.refusal: Refusal | None = None

    def feed(self, block: bytes) -> bytes | None:
        """Take a block; return what is behind the end of data, None while that has not come."""
        data = self._rest + block
        # One search for both: the end of data, and dots that were doubled.
        dot = data.find(_DOT)
        end = data.find(_END, dot) if dot >= 0 else -1
        cut = end if end >= 0 else data.rfind(_CRLF)
        if self.refusal is None:
            self._take(data[:cut] if cut > 0 else b"", dotted=0 <= dot < cut)
        if end >= 0:
            if self.size_bytes:
                self._chunks.append(_CRLF)
            self._ended = True
            return data[end + len(_END) :]
        self._rest = data[max(cut, 0) :]
        # Behind the CRLF, the line so far may have its own CR already.
        if self.refusal is None and len(self._rest) > len(_CRLF) + self._line_max_bytes + 1:
            self.refuse(Refusal.LONG_LINE)
        if self.refusal is not None:
            self._rest = self._rest[1 - len(_END) :]  # as much as the end of data may begin with
        return None

    @property
    def waits(self) -> bool:
        """Whether spill() is due: a block of a large body is full, or its end has come."""
        if self._header is None:
            return False
        return self._ended or self._held_bytes - len(self._header) >= BLOCK_BYTES

    async def spill(self) -> None:
        """Write what is held of the body. Raises SpoolFullError, SpoolUnavailableError."""
        if self._arrival is None:
            self._arrival = self._new_arrival()
        chunks, self._chunks = self._chunks, []
        await self._arrival.write(chunks)
        self._hold(len(self._header or b""))

    def hand_over(self) -> Received:
        """Return the message, dots undone, ending in CRLF (empty if there was none).

        From here on it is the taker's to release; the reader has nothing any more.
        """
        content: Content
        if self._header is None or self._arrival is None:
            content = b"".join(self._chunks)
        else:
            content = LargeContent(self._header, (self._arrival.octets(),), self._eight_bit)
        self._chunks = []  # not kept twice while it is accepted
        budget, held_bytes, arrival = self._budget, self._held_bytes, self._arrival
        self._held_bytes, self._arrival = 0, None

        def release() -> None:
            budget.give_back(held_bytes)
            if arrival is not None:
                arrival.discard()

        return Received(content, release)

    def release(self) -> None:
        """Give memory and disk back unless they were handed over; the reader is done."""
        self._chunks.clear()
        self._header = None
        self._budget.give_back(self._held_bytes)
        self._held_bytes = self.size_bytes = 0
        if self._arrival is not None:
            self._arrival.discard()
            self._arrival = None

    def refuse(self, refusal: Refusal) -> None:
        """Take nothing more, keep nothing, and read on to the end of data."""
        self.release()
        self.refusal = refusal

    def _take(self, lines: bytes, *, dotted: bool) -> None:
        """Take complete lines, each with the CRLF before it and not the one behind it.

        `dotted`: some may begin with a dot.
        """
        line_ends = lines.count(_CRLF)
        if lines.count(b"\n") != line_ends or lines.count(b"\r") != line_ends or b"\0" in lines:
            self.refuse(Refusal.BARE)
        elif _has_long_line(lines, self._line_max_bytes):
            self.refuse(Refusal.LONG_LINE)
        elif lines:
            self._keep(lines.replace(_DOT, _CRLF) if dotted else lines)

    def _keep(self, lines: bytes) -> None:
        if self.size_bytes + len(lines) > self._size_max_bytes:
            self.refuse(Refusal.TOO_BIG)
        elif not self._budget.take(len(lines) + _CHUNK_BYTES):
            self.refuse(Refusal.NO_ROOM)
        else:
            self._held_bytes += len(lines) + _CHUNK_BYTES
            self._chunks.append(lines if self.size_bytes else lines[len(_CRLF) :])
            self.size_bytes += len(lines)
            if self.size_bytes > self._large_bytes:
                self._keep_large(lines)

    def _keep_large(self, lines: bytes) -> None:
        if self._header is None:
            self._divide()
        else:
            self._eight_bit = self._eight_bit or not lines.isascii()

    def _divide(self) -> None:
        """Keep the header apart from what is the body so far."""
        begun = b"".join(self._chunks)
        header_end = headers.split(begun)
        if header_end == len(begun):
            self.refuse(Refusal.LONG_HEADER)
            return
        body = begun[header_end:]
        # A message without any header gets one, and the blank line that has to follow.
        self._chunks = [body] if body.startswith(_CRLF) else [_CRLF, body]
        self._header = begun[:header_end]
        self._eight_bit = not body.isascii()

    def _hold(self, size_bytes: int) -> None:
        """Give back all but so much of the memory."""
        self._budget.give_back(self._held_bytes - size_bytes)
        self._held_bytes = size_bytes


def _has_long_line(lines: bytes, line_max_bytes: int) -> bool:
    """Whether a line has more octets than that: one search per limit's worth of bytes."""
    at = len(_CRLF)
    while len(lines) - at > line_max_bytes:
        line_end = lines.rfind(b"\n", at, at + line_max_bytes + len(_CRLF))
        if line_end < 0:
            return True
        at = line_end + 1
    return False
