"""Read what follows 354: find the end of data, undo the dots, refuse what smuggling is made of.

On the path: the session feeds it blocks; acceptance gets the content.
Holds: only CRLF . CRLF ends the data, however it is cut into blocks; memory is bounded.
Fails: `refusal` holds the reply; what is refused is still read to its end, so the session goes on.
Standards: RFC 5321 2.3.8, 4.1.1.4, 4.5.2 (transparency), 4.5.3.1.6; RFC 1870 6.
"""

from enum import StrEnum

from relay.ingress.limits import Budget, Limits

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
    TOO_BIG = "552 5.3.4 The message is larger than SIZE allows"
    NO_ROOM = "452 4.3.1 Too much mail at once, try again later"


class ContentReader:
    """Takes blocks of any size; works on whole blocks, never line by line.

    A block is worked on up to its last CRLF; the line that is not complete waits for the next. Data
    starts as if behind a CRLF, so that the first line is like every other.
    """

    def __init__(self, *, size_max_bytes: int, limits: Limits, budget: Budget) -> None:
        self._size_max_bytes = size_max_bytes
        self._line_max_bytes = limits.text_line_bytes
        self._budget = budget
        self._chunks: list[bytes] = []
        self._rest = _CRLF
        self._held_bytes = 0
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
            if self._chunks:
                self._chunks.append(_CRLF)
            return data[end + len(_END) :]
        self._rest = data[max(cut, 0) :]
        # Behind the CRLF, the line so far may have its own CR already.
        if self.refusal is None and len(self._rest) > len(_CRLF) + self._line_max_bytes + 1:
            self._refuse(Refusal.LONG_LINE)
        if self.refusal is not None:
            self._rest = self._rest[1 - len(_END) :]  # as much as the end of data may begin with
        return None

    def content(self) -> bytes:
        """Return the message, dots undone, ending in CRLF (empty if there was none)."""
        self._chunks = [b"".join(self._chunks)]  # not kept twice while it is accepted
        return self._chunks[0]

    def release(self) -> None:
        """Give the memory back to the budget; the reader is done."""
        self._chunks.clear()
        self._budget.give_back(self._held_bytes)
        self._held_bytes = self.size_bytes = 0

    def _take(self, lines: bytes, *, dotted: bool) -> None:
        """Take complete lines, each with the CRLF before it and not the one behind it.

        `dotted`: some may begin with a dot.
        """
        line_ends = lines.count(_CRLF)
        if lines.count(b"\n") != line_ends or lines.count(b"\r") != line_ends or b"\0" in lines:
            self._refuse(Refusal.BARE)
        elif _has_long_line(lines, self._line_max_bytes):
            self._refuse(Refusal.LONG_LINE)
        elif lines:
            self._keep(lines.replace(_DOT, _CRLF) if dotted else lines)

    def _keep(self, lines: bytes) -> None:
        if self.size_bytes + len(lines) > self._size_max_bytes:
            self._refuse(Refusal.TOO_BIG)
        elif not self._budget.take(len(lines) + _CHUNK_BYTES):
            self._refuse(Refusal.NO_ROOM)
        else:
            self._held_bytes += len(lines) + _CHUNK_BYTES
            self.size_bytes += len(lines)
            self._chunks.append(lines if self._chunks else lines[len(_CRLF) :])

    def _refuse(self, refusal: Refusal) -> None:
        self.release()
        self.refusal = refusal


def _has_long_line(lines: bytes, line_max_bytes: int) -> bool:
    """Whether a line has more octets than that: one search per limit's worth of bytes."""
    at = len(_CRLF)
    while len(lines) - at > line_max_bytes:
        line_end = lines.rfind(b"\n", at, at + line_max_bytes + len(_CRLF))
        if line_end < 0:
            return True
        at = line_end + 1
    return False
