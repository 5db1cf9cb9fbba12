"""Receive the content of a message: find its end, check it and keep it.

A framing finds the end of the content: DotFraming for DATA, ChunkFraming for BDAT. It takes octets
as they arrive, cut anywhere, and returns the octets of the content. Each framing may replace a bare
LF by CRLF. ContentCollector checks and keeps the content of either framing.

Content with a bare CR, a NUL, a bare LF that was not replaced, or an overlong line is rejected, and
so are messages over the size limit. 8-bit data is accepted. A rejected content is still received to
its end, so that the session can continue. Memory is bounded: of a large message, only the header
and the part of the body that is not yet written are in memory.

RFC 5321 2.3.8, 4.1.1.4, 4.5.2 (transparency), 4.5.3.1.6; RFC 1870 6; RFC 3030 2 (BDAT).
"""

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from io import IncrementalNewlineDecoder

from msgspec import Struct

from relay.base.message.authentication_results import AuthResult
from relay.base.message.content import BLOCK_BYTES, LARGE_BYTES, Content, LargeContent
from relay.base.message.envelope import Client, Source
from relay.base.message.header import Header, fields_end, header_section
from relay.base.shares import Shares
from relay.formats.encoded_words import decode_words
from relay.formats.transfer_encoding import LINE_MAX, has_line_over
from relay.store.journeys.details import MilterSaid
from relay.store.spool.types import IncomingBody
from relay.transport.ingress.listener_role import RELAY, ListenerRole
from relay.transport.ingress.local_users import LocalUser
from relay.transport.ingress.sender_checks import SenderChecks
from relay.transport.ingress.session_limits import SessionLimits
from relay.transport.refusals.refusal import RefusalReason

# limit: a header by SMTP; then 554
HEADER_BYTES_MAX = LARGE_BYTES  # the header stays in memory and is read on the event loop
_CRLF = b"\r\n"
_DOT = b"\r\n."
_END = _DOT + _CRLF
# What the end of data, or a lone dot after a bare LF, may begin with; the longest first
_BEGUN = (b"\r\n.\r", b"\n.\r", b"\r\n.", b"\n.", b"\r\n", b"\n", b"\r")
_CHUNK_BYTES = 64  # Python's overhead per chunk
_HEAD_BYTES = 16384  # of a rejected content, in which its Subject is looked for
_SUBJECT_CHARACTERS_MAX = 200
_SUBJECT_OCTETS_MAX = 8192  # enough for that many characters in any encoding
InThread = Callable[[Callable[[bytes], int], bytes], Awaitable[int]]  # asyncio.to_thread


class ContentRejection(StrEnum):
    """The reply after the final dot to a content that is not accepted."""

    BARE = (
        "550 5.5.2 The message has a bare CR or LF, or a NUL;"  # RFC 5321 2.3.8
        " lines must end in CRLF (RFC 5321 2.3.8)"
    )
    # RFC 5321 4.5.3.1.6, 4.5.3.1.9
    LONG_LINE = "500 5.5.2 The message has a line that is too long; wrap or encode it"
    LONG_HEADER = (
        # RFC 3463 3.7
        f"554 5.6.0 The header is longer than {HEADER_BYTES_MAX} octets; is its blank line missing?"
    )
    TOO_BIG = "552 5.3.4 The message is larger than SIZE allows"  # RFC 1870 6.3; RFC 5321 4.5.3.1.7
    NO_ROOM = "452 4.3.1 Too much mail at once, try again later"  # RFC 5321 4.2.3; RFC 3463 3.4
    # RFC 5321 4.2.3; RFC 3463 3.4
    DISK_FULL = "452 4.3.1 The queue's disk is full, try again later"
    LOCAL_ERROR = "451 4.3.0 Local error, try again later"  # RFC 3463 3.4


class Submitter(Struct, frozen=True):
    """Who sends a message, and what shows that its authors are no others."""

    reverse_path: str
    is_trusted: bool  # a reverse-path in an own domain is not forged
    account: str = ""  # of the login, or the address of the user of this machine
    is_checked: bool = False  # by `sender_checks`
    results: Sequence[AuthResult] = ()  # of SPF, DKIM and DMARC


class Origin(Struct, frozen=True):
    """Where a message came from, as its session knows."""

    ip: str  # "" on a Unix socket
    helo: str  # of a program of this machine, the name of its user
    extended: bool = True  # EHLO
    tls: str = ""  # the protocol version, or ""
    login: str = ""  # the account that authenticated, or ""
    trusted: bool = False  # AUTH, a trusted network, a user of this machine, or pickup
    role: ListenerRole = RELAY  # of the listener
    user: LocalUser | None = None  # whose program of this machine sent it
    is_hidden: bool = False  # neither the message nor a report about it tells ip and helo
    key: str = ""  # of a file in the drop directory; the same if the message comes again
    has_client: bool = False  # a program waits for the reply, although there is a key
    has_bare_lf: bool = False  # a bare LF of the message became CRLF
    checks: SenderChecks | None = None  # of a stranger; None: SPF, DKIM and DMARC are not checked

    @property
    def is_promised(self) -> bool:
        """Whether rejections of recipients are reported to the sender: no client is waiting."""
        return self.role.is_promised or (bool(self.key) and not self.has_client)

    def sender(self, reverse_path: str) -> Submitter:
        """Return the sender of a message whose checks have no results yet."""
        account = self.user.address if self.user else self.login
        return Submitter(reverse_path, self.trusted, account, self.checks is not None)

    @property
    def counted_for(self) -> str:
        """The account for which a message is counted, or "".

        Mail from pickup is counted in step 1.
        """
        if self.user is not None:
            return self.user.address
        return "" if self.is_promised else self.login

    @property
    def client(self) -> Client:
        """The client, for the log and the journey."""
        return Client(self.ip, self.helo, self.login, self.tls)

    @property
    def pickup(self) -> bool:
        """Whether it came through pickup's own socket."""
        return self.role.source is Source.GRAPH


class DataReply(Struct, frozen=True):
    """The reply after the final dot; `queue_id` is "" if nothing was accepted.

    `rule` or `milter` names the mail-flow rule or the milter that rejected the message.
    """

    reply: str
    queue_id: str = ""
    rule: str = ""
    milter: str = ""
    reason: RefusalReason | None = None  # None: the one that the reply has


class RefusedError(Exception):
    """A message is not accepted: `reply` is the reply to the final dot, `said` what milters say."""

    def __init__(self, reply: DataReply, said: Sequence[MilterSaid] = ()) -> None:
        super().__init__(reply.reply)
        self.reply, self.said = reply, said


@dataclass(frozen=True, slots=True)
class ReceivedContent:
    """A content; the receiver calls `release` once, when it no longer needs it."""

    content: Content = field(repr=False)
    release: Callable[[], None]


class DotFraming:
    """The framing of DATA: only CRLF.CRLF ends it (SMTP smuggling), dots after CRLF are doubled.

    Whole blocks are processed, never single lines. The last octets of a block are kept for the next
    block if the end of data may begin there. Data starts as if after a CRLF, so that the first line
    is like every other. With `normalizes`, a bare LF ends a line too, except next to a dot that is
    alone on its line: a lax server takes such a dot for the end of data.
    """

    opening = "354 End data with <CR><LF>.<CR><LF>"  # RFC 5321 4.1.1.4
    chunk_reply = ""
    wanted_bytes = sys.maxsize
    is_last = True

    def __init__(self, *, normalizes: bool = False) -> None:
        self._normalizes = normalizes
        self.has_bare_lf = False  # that is CRLF in the content
        self._rest = _CRLF
        self._skipped = len(_CRLF)  # octets of `rest` that the client did not send

    def take(self, octets: bytes) -> tuple[bytes, bytes | None]:
        """Return the content in `octets`, and what follows its end, or None before the end.

        No content that is returned ends between CR and LF.
        """
        data = self._rest + octets
        # One search finds both the end of data and doubled dots. Base64 has no dots, and a search
        # for one octet is many times faster than one for three.
        dot = data.find(_DOT) if b"." in data else -1
        end = data.find(_END, dot) if dot >= 0 else -1
        cut = end + len(_CRLF) if end >= 0 else len(data) - _end_begun(data)
        assert data[cut - 1 : cut + 1] != _CRLF, "content is cut between CR and LF"
        if self._normalizes and _END in _with_crlf(data[:cut] if end >= 0 else data):
            self._normalizes = False  # the LF next to that dot stays: the message is rejected
        if self._normalizes:
            lines = _with_crlf(data[:cut])
            self.has_bare_lf = self.has_bare_lf or len(lines) > cut
            content = lines.replace(_DOT, _CRLF)[self._skipped :]
        elif 0 <= dot < (end if end >= 0 else cut):
            content = data[:cut].replace(_DOT, _CRLF)[self._skipped :]
        else:
            content = data[self._skipped : cut]
        if end >= 0:
            return content, data[end + len(_END) :]
        if cut:
            self._skipped = 0
        self._rest = data[cut:]
        return content, None


class ChunkFraming:
    """The framing of BDAT: a number of octets, in which a dot means nothing (RFC 3030 2).

    All chunks of a message are one content: a CRLF may be in two chunks. Content that does not end
    in CRLF gets one. With `normalizes` a bare LF becomes CRLF; this is safe, because the length is
    known and no line can be taken for the end.
    """

    opening = ""

    def __init__(self, size_bytes: int = 0, *, normalizes: bool = True) -> None:
        self._normalizes = normalizes
        self.has_bare_lf = False  # that is CRLF in the content
        self._held = b""  # a CR, whose LF may follow
        self._is_line_open = False
        self.wanted_bytes = size_bytes  # of the chunk
        self.is_last = False  # chunk of the message
        self.chunk_reply = ""

    def begin(self, size_bytes: int, *, is_last: bool) -> None:
        """Begin a chunk. If it is not the last one, `chunk_reply` is its reply."""
        self.wanted_bytes, self.is_last = size_bytes, is_last
        self.chunk_reply = f"250 2.0.0 {size_bytes} octets received"  # RFC 3030 2

    def take(self, octets: bytes) -> tuple[bytes, bytes | None]:
        """Return the content in `octets`, and b"" at the end of the chunk or None before it.

        The caller passes at most `wanted_bytes` octets.

        No content that is returned ends between CR and LF.
        """
        self.wanted_bytes -= len(octets)
        rest = None if self.wanted_bytes else b""
        data, self._held = self._held + octets, b""
        if data:
            self._is_line_open = not data.endswith(b"\n")
        if self.is_last and rest is not None:
            data += _CRLF if self._is_line_open else b""
        elif data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        lines = _with_crlf(data) if self._normalizes else data
        self.has_bare_lf = self.has_bare_lf or len(lines) > len(data)
        return lines, rest


Framing = DotFraming | ChunkFraming


def _with_crlf(octets: bytes) -> bytes:
    """Replace each bare LF by CRLF in octets that do not end between CR and LF."""
    if not _has_bare_line_end(octets):
        return octets
    return octets.replace(_CRLF, b"\n").replace(b"\n", _CRLF)


def _has_bare_line_end(octets: bytes) -> bool:
    """Return whether octets that do not end between CR and LF have a CR or an LF without the other.

    The decoder reports in one pass which line ends it saw. A CR at the end is bare, since no LF
    follows. The decoder needs `final` to see it. Without `final` it waits for the next octets, and
    does not report the CR (SMTP smuggling).
    """
    decoder = IncrementalNewlineDecoder(None, translate=False)
    decoder.decode(octets.decode("latin-1"), final=True)
    return decoder.newlines not in (None, "\r\n")


def _end_begun(data: bytes) -> int:
    """Return how many octets at the end of `data` may begin the end of data."""
    if not data.endswith(_BEGUN):
        return 0
    return next(len(begun) for begun in _BEGUN if data.endswith(begun))


@dataclass(eq=False, repr=False)
class ContentCollector:
    """Takes the content in blocks of any size and processes whole blocks, never single lines.

    When `needs_spill` is true after take() or add(), the caller must call spill() before it adds
    more. The first spill() splits the content into header and body. This happens when the content
    is larger than `limits.large_bytes`, or earlier while other messages take much memory.
    """

    size_max_bytes: int
    limits: SessionLimits
    budget: Shares
    arrival: Callable[[], IncomingBody]  # opens a file for the body of a large content
    key: str | None = None  # whose memory it is
    reserved_bytes: int = 0  # for what the session reads ahead

    def __post_init__(self) -> None:
        self._line_max_bytes = self.limits.header_line_bytes  # until a blank line has come
        self._in_header = True
        self._chunks: list[bytes] = []
        self._line_bytes = 0  # of the line that is not complete yet
        self._held_bytes = self.reserved_bytes
        self.needs_spill = False
        # Of a large content:
        self._header: bytes | None = None
        self._arrival: IncomingBody | None = None
        self._eight_bit = self._long_lines = False
        self.size_bytes = 0
        self.rejection: str | None = None
        self.refused_by = ""  # a milter
        self._subject = ""  # of a rejected content
        if self.reserved_bytes and not self.budget.take(self.key, self.reserved_bytes):
            self._held_bytes, self.rejection = 0, ContentRejection.NO_ROOM

    def take(self, octets: bytes, framing: Framing) -> bytes | None:
        """Take what has arrived; return what follows the end that the framing finds, or None."""
        content, rest = framing.take(octets)
        self.add(content, is_last=rest is not None and framing.is_last)
        return rest

    def add(self, octets: bytes, *, is_last: bool) -> None:
        """Check and keep the next octets, which do not end between CR and LF."""
        if octets and self.rejection is None:
            if _has_bare_line_end(octets) or b"\0" in octets:
                self.reject(ContentRejection.BARE, octets)
            elif not (is_last and self._is_short(octets)) and self._has_long_line(octets):
                self.reject(ContentRejection.LONG_LINE, octets)
            else:
                self._keep(octets)
        self.needs_spill = self._is_spill_due(is_last=is_last)

    def _is_spill_due(self, *, is_last: bool) -> bool:
        """Whether the content has become large, or a block of a large body is full or the last."""
        if self._header is None:
            limits = self.limits
            is_small = self.size_bytes <= min(limits.crowded_bytes, limits.large_bytes)
            return not is_small and self.size_bytes > self._memory_bytes
        block_bytes = self._held_bytes - self.reserved_bytes - len(self._header)
        return is_last or block_bytes >= min(BLOCK_BYTES, self._memory_bytes)

    @property
    def _memory_bytes(self) -> int:
        """How much of a message may be in memory now; less if other sessions take much."""
        limits = self.limits
        is_calm = self.budget.taken <= limits.calm_bytes
        return limits.large_bytes if is_calm else min(limits.crowded_bytes, limits.large_bytes)

    async def spill(self, in_thread: InThread) -> None:
        """Write the buffered part of the body. Raises SpoolFullError, SpoolUnavailableError.

        `in_thread` runs a function in a thread: the search of a long header.
        """
        if self._header is None:
            await self._split_large(in_thread)
            if self._header is None:
                return
        if self._arrival is None:
            self._arrival = self.arrival()
        chunks, self._chunks = self._chunks, []
        await self._arrival.write(chunks)
        if self._header is not None:  # else the client has disconnected
            self._hold(len(self._header) + self.reserved_bytes)

    @property
    def subject(self) -> str:
        """The Subject, before hand_over(); "" if the header has not arrived."""
        return self._subject or subject_in(self._head(b""))

    def hand_over(self) -> ReceivedContent:
        """Return the content, which the caller must release. The collector keeps nothing."""
        content: Content
        if self._header is None or self._arrival is None:
            content = b"".join(self._chunks)
        else:
            content = LargeContent(
                self._header, (self._arrival.octets(),), self._eight_bit, self._long_lines
            )
        self._chunks = []  # the content must not be in memory twice
        budget, key = self.budget, self.key
        held_bytes, arrival = self._held_bytes, self._arrival
        self._held_bytes, self._arrival = 0, None

        def release() -> None:
            budget.give_back(key, held_bytes)
            if arrival is not None:
                arrival.discard()

        return ReceivedContent(content, release)

    def release(self) -> None:
        """Release memory and disk, unless hand_over() was called. The collector is finished."""
        self._chunks.clear()
        self._header = None
        self.budget.give_back(self.key, self._held_bytes)
        self._held_bytes = self.size_bytes = 0
        if self._arrival is not None:
            self._arrival.discard()
            self._arrival = None

    def reject(self, rejection: str, octets: bytes = b"") -> None:
        """Discard everything up to the end of data, except the Subject.

        `octets` are the last that arrived; they are not kept yet.
        """
        self._subject = subject_in(self._head(octets))
        self.release()
        self.rejection = rejection

    def _head(self, octets: bytes) -> bytes:
        """Return the first octets of the content; `octets` are the last that came."""
        head = b"" if self._header is None else self._header[:_HEAD_BYTES]
        for chunk in (*self._chunks[:_HEAD_BYTES], octets) if self._header is None else ():
            head += chunk[: _HEAD_BYTES - len(head)]
            if len(head) >= _HEAD_BYTES:
                break
        return head

    def _is_short(self, octets: bytes) -> bool:
        """Whether the rest of a content that is in memory is no longer than a line may be."""
        return self._header is None and self._line_bytes + len(octets) <= self._line_max_bytes

    def _has_long_line(self, octets: bytes) -> bool:
        """Return whether a line is too long, with one search per `line_max_bytes` of data."""
        begun = b"." if self._line_bytes else b"\n"
        if self._in_header and (blank := (begun + octets).find(b"\n\r\n")) >= 0:
            is_long = self._has_long_line(octets[:blank])
            self._in_header, self._line_max_bytes = False, self.limits.body_line_bytes
            return is_long or self._has_long_line(octets[blank:])
        if self._header is not None and not self._long_lines:
            self._long_lines = has_line_over(octets, LINE_MAX, self._line_bytes)
        at, line_max_bytes = -self._line_bytes, self._line_max_bytes
        while len(octets) - at > line_max_bytes:
            line_end = octets.rfind(b"\n", max(at, 0), at + line_max_bytes + len(_CRLF))
            if line_end < 0:
                return True
            at = line_end + 1
        line_end = octets.rfind(b"\n", max(at, 0))
        self._line_bytes = len(octets) - (at if line_end < 0 else line_end + 1)
        return False

    def _keep(self, octets: bytes) -> None:
        # A small chunk is extended: a client may send octet by octet.
        extends = bool(self._chunks) and len(self._chunks[-1]) < _CHUNK_BYTES
        held_bytes = len(octets) if extends else len(octets) + _CHUNK_BYTES
        if self.size_bytes + len(octets) > self.size_max_bytes:
            self.reject(ContentRejection.TOO_BIG, octets)
        elif not self.budget.take(self.key, held_bytes):
            self.reject(ContentRejection.NO_ROOM, octets)
        else:
            self._held_bytes += held_bytes
            if extends:
                self._chunks[-1] += octets
            else:
                self._chunks.append(octets)
            self.size_bytes += len(octets)
            if self._header is not None:
                self._eight_bit = self._eight_bit or not octets.isascii()

    async def _split_large(self, in_thread: InThread) -> None:
        """Separate the header from the part of the body that has arrived, or reject the content.

        Its lines are searched in a thread unless the blank line is near: there may be many.
        """
        begun = b"".join(self._chunks)
        blank = 0 if begun.startswith(_CRLF) else begun.find(_CRLF + _CRLF)
        section = begun if blank < 0 else begun[: blank and blank + len(_CRLF)]
        is_quick = len(section) <= _HEAD_BYTES
        end = fields_end(section) if is_quick else await in_thread(fields_end, section)
        known = len(begun) if end and blank < 0 else end  # octets of the header
        if known > self._memory_bytes:
            is_too_long = known > self.limits.large_bytes
            self.reject(ContentRejection.LONG_HEADER if is_too_long else ContentRejection.NO_ROOM)
            return
        body = begun[end:]
        # A content without a header gets one later; the blank line that must follow is added here.
        self._chunks = [body] if body.startswith(_CRLF) else [_CRLF, body]
        self._header = begun[:end]
        self._eight_bit, self._long_lines = not body.isascii(), has_line_over(body, LINE_MAX)

    def _hold(self, size_bytes: int) -> None:
        """Release memory, except for `size_bytes`."""
        self.budget.give_back(self.key, self._held_bytes - size_bytes)
        self._held_bytes = size_bytes


def subject_in(content: bytes) -> str:
    """Return the Subject in the first octets of a content, bounded, or ""."""
    return subject_of(Header.parse(header_section(content[:_HEAD_BYTES])))


def subject_of(header: Header) -> str:
    """Return the decoded Subject, bounded: it may be 1 MiB of encoded words."""
    subject = header.first("Subject") or b""
    return decode_words(subject[:_SUBJECT_OCTETS_MAX])[:_SUBJECT_CHARACTERS_MAX]
