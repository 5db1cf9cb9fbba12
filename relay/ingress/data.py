"""Receive the content of DATA: find its end, undo dot-stuffing, reject malformed or large content.

Only CRLF.CRLF ends the data (SMTP smuggling), however the data is cut into blocks. Bare CR, bare
LF, NUL, overlong lines and messages over the size limit are rejected. 8-bit data is accepted. A
rejected content is still read to its end, so that the session can continue. Memory is bounded: of a
large message, only the header and the part of the body that is not written yet are in memory.

RFC 5321 2.3.8, 4.1.1.4, 4.5.2 (transparency), 4.5.3.1.6; RFC 1870 6.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from relay.ingress.session_limits import SessionLimits
from relay.message.content import BLOCK_BYTES, LARGE_BYTES, Content, LargeContent
from relay.message.envelope import Client
from relay.message.header import header_end
from relay.message.verdict import Source
from relay.pressure import MemoryBudget
from relay.spool.types import IncomingBody

HEADER_BYTES_MAX = LARGE_BYTES  # the header stays in memory and is read on the event loop
_CRLF = b"\r\n"
_DOT = b"\r\n."
_END = _DOT + _CRLF
_CHUNK_BYTES = 64  # Python's overhead per chunk: a client may send line by line


class ContentRejection(StrEnum):
    """The reply after the final dot to a content that is not accepted."""

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

    `ip` is "" on a Unix socket. `tls` is the protocol version, or "". `login` is the account that
    authenticated, or "". `trusted` means AUTH, a trusted network or pickup. `pickup` means that the
    message came through pickup's own socket.
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
        """The client, for the log and the journey."""
        return Client(self.ip, self.helo, self.login, self.tls)

    @property
    def source(self) -> Source:
        """The `source` condition of rules and the `via` label of metrics."""
        return Source.GRAPH if self.pickup else Source.SMTP


@dataclass(frozen=True, slots=True)
class DataReply:
    """The reply after the final dot; `queue_id` is "" where nothing was accepted."""

    reply: str
    queue_id: str = ""


@dataclass(frozen=True, slots=True)
class ReceivedContent:
    """A content; the receiver calls `release` once, when it no longer needs it."""

    content: Content = field(repr=False)
    release: Callable[[], None]


class ContentReader:
    """Takes blocks of any size and processes whole blocks, never single lines.

    A block is processed up to its last CRLF; an incomplete line is kept for the next block. Data
    starts as if after a CRLF, so that the first line is like every other.

    A content larger than `limits.large_bytes` is split into header and body. From then on, when
    `needs_spill` is true after feed(), the caller must call spill() before it feeds more.
    """

    def __init__(
        self,
        *,
        size_max_bytes: int,
        limits: SessionLimits,
        budget: MemoryBudget,
        arrival: Callable[[], IncomingBody],
    ) -> None:
        """`arrival` opens a file for the body of a large content."""
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
        self._arrival: IncomingBody | None = None
        self._eight_bit = False
        self.size_bytes = 0
        self.rejection: ContentRejection | None = None

    def feed(self, block: bytes) -> bytes | None:
        """Take a block. Return what follows the end of data, or None before the end of data."""
        data = self._rest + block
        # One search finds both the end of data and doubled dots.
        dot = data.find(_DOT)
        end = data.find(_END, dot) if dot >= 0 else -1
        cut = end if end >= 0 else data.rfind(_CRLF)
        if self.rejection is None:
            self._take(data[:cut] if cut > 0 else b"", dotted=0 <= dot < cut)
        if end >= 0:
            if self.size_bytes:
                self._chunks.append(_CRLF)
            self._ended = True
            return data[end + len(_END) :]
        self._rest = data[max(cut, 0) :]
        # After the CRLF, the incomplete line may already have its own CR.
        if self.rejection is None and len(self._rest) > len(_CRLF) + self._line_max_bytes + 1:
            self.reject(ContentRejection.LONG_LINE)
        if self.rejection is not None:
            self._rest = self._rest[
                1 - len(_END) :
            ]  # enough to find an end of data that is cut here
        return None

    @property
    def needs_spill(self) -> bool:
        """Whether spill() must be called: a block of a large body is full, or its end has come."""
        if self._header is None:
            return False
        return self._ended or self._held_bytes - len(self._header) >= BLOCK_BYTES

    async def spill(self) -> None:
        """Write the buffered part of the body. Raises SpoolFullError, SpoolUnavailableError."""
        if self._arrival is None:
            self._arrival = self._new_arrival()
        chunks, self._chunks = self._chunks, []
        await self._arrival.write(chunks)
        self._hold(len(self._header or b""))

    def hand_over(self) -> ReceivedContent:
        """Return the content without dot-stuffing; it ends in CRLF, or is empty.

        The caller must release it. The reader keeps nothing.
        """
        content: Content
        if self._header is None or self._arrival is None:
            content = b"".join(self._chunks)
        else:
            content = LargeContent(self._header, (self._arrival.octets(),), self._eight_bit)
        self._chunks = []  # the content must not be in memory twice
        budget, held_bytes, arrival = self._budget, self._held_bytes, self._arrival
        self._held_bytes, self._arrival = 0, None

        def release() -> None:
            budget.release(held_bytes)
            if arrival is not None:
                arrival.discard()

        return ReceivedContent(content, release)

    def release(self) -> None:
        """Release memory and disk, unless hand_over() was called. The reader is finished."""
        self._chunks.clear()
        self._header = None
        self._budget.release(self._held_bytes)
        self._held_bytes = self.size_bytes = 0
        if self._arrival is not None:
            self._arrival.discard()
            self._arrival = None

    def reject(self, rejection: ContentRejection) -> None:
        """Keep nothing, and discard everything up to the end of data."""
        self.release()
        self.rejection = rejection

    def _take(self, lines: bytes, *, dotted: bool) -> None:
        """Check complete lines: each has the CRLF before it, not the one after it.

        `dotted`: some lines may begin with a dot.
        """
        line_ends = lines.count(_CRLF)
        if lines.count(b"\n") != line_ends or lines.count(b"\r") != line_ends or b"\0" in lines:
            self.reject(ContentRejection.BARE)
        elif _has_long_line(lines, self._line_max_bytes):
            self.reject(ContentRejection.LONG_LINE)
        elif lines:
            self._keep(lines.replace(_DOT, _CRLF) if dotted else lines)

    def _keep(self, lines: bytes) -> None:
        if self.size_bytes + len(lines) > self._size_max_bytes:
            self.reject(ContentRejection.TOO_BIG)
        elif not self._budget.take(len(lines) + _CHUNK_BYTES):
            self.reject(ContentRejection.NO_ROOM)
        else:
            self._held_bytes += len(lines) + _CHUNK_BYTES
            self._chunks.append(lines if self.size_bytes else lines[len(_CRLF) :])
            self.size_bytes += len(lines)
            if self.size_bytes > self._large_bytes:
                self._keep_large(lines)

    def _keep_large(self, lines: bytes) -> None:
        if self._header is None:
            self._split_large()
        else:
            self._eight_bit = self._eight_bit or not lines.isascii()

    def _split_large(self) -> None:
        """Separate the header from the part of the body that has arrived."""
        begun = b"".join(self._chunks)
        end = header_end(begun).header
        if end and _CRLF + _CRLF not in begun:
            self.reject(ContentRejection.LONG_HEADER)
            return
        body = begun[end:]
        # A content without a header gets one later; the blank line that must follow is added here.
        self._chunks = [body] if body.startswith(_CRLF) else [_CRLF, body]
        self._header = begun[:end]
        self._eight_bit = not body.isascii()

    def _hold(self, size_bytes: int) -> None:
        """Release memory, except for `size_bytes`."""
        self._budget.release(self._held_bytes - size_bytes)
        self._held_bytes = size_bytes


def _has_long_line(lines: bytes, line_max_bytes: int) -> bool:
    """Return whether a line is longer, with one search per `line_max_bytes` of data."""
    at = len(_CRLF)
    while len(lines) - at > line_max_bytes:
        line_end = lines.rfind(b"\n", at, at + line_max_bytes + len(_CRLF))
        if line_end < 0:
            return True
        at = line_end + 1
    return False
