"""The octets of a message: in memory while it is small, in a file when it is large.

On the path: whoever takes a message in makes a Content; everybody behind edits its header only and
passes its body on in blocks.
Holds: a LargeContent's header is all that is in memory of it; its body is read where it lies.
Fails: UnreadableError (an OSError) from reading a body whose file is gone or cut short.
Standards: RFC 5322 2.1 (header section and body).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol

LARGE_BYTES = 1024 * 1024  # what is larger is not held in memory
BLOCK_BYTES = 256 * 1024  # how much of it is read at once
_BLANK_LINE = b"\r\n"


class UnreadableError(OSError):
    """The octets of a body are not there to be read; the words say what was found."""


class Octets(Protocol):
    """Some octets that lie somewhere, a file mostly (relay.files.FileOctets). Reading blocks."""

    @property
    def size(self) -> int:
        """How many they are."""
        ...

    def read(self, start: int, length: int) -> bytes:
        """Return `length` octets from `start`, fewer only where they end. Raises OSError."""
        ...

    def part(self, start: int, length: int) -> "Octets":
        """Return those from `start` on, as octets of their own; nothing is read."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryOctets:
    """Octets in memory, for those who take any."""

    octets: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.octets)

    def read(self, start: int, length: int) -> bytes:
        """See Octets."""
        return self.octets[start : start + length]

    def part(self, start: int, length: int) -> "MemoryOctets":
        """See Octets."""
        return MemoryOctets(self.octets[start : start + length])


@dataclass(frozen=True, slots=True)
class SpanOfOctets:
    """`size` octets from `start` on of others, for those that are made while they are read."""

    source: Octets
    start: int
    size: int

    def read(self, start: int, length: int) -> bytes:
        """See Octets."""
        return self.source.read(self.start + start, max(0, min(length, self.size - start)))

    def part(self, start: int, length: int) -> "SpanOfOctets":
        """See Octets."""
        size = max(0, min(length, self.size - start))
        return SpanOfOctets(self.source, self.start + start, size)


@dataclass(frozen=True, slots=True)
class LargeContent:
    """A message whose body is not in memory.

    `header` is the whole header section, its last CRLF included; `body` begins with the blank line.
    `eight_bit` says whether the body has an octet that is not ASCII.
    """

    header: bytes = field(repr=False)
    body: tuple[Octets, ...]
    eight_bit: bool

    @property
    def size(self) -> int:
        """The whole message, in octets."""
        return len(self.header) + sum(one.size for one in self.body)


Content = bytes | LargeContent


def size_of(content: Content) -> int:
    """Return how many octets a content has."""
    return len(content) if isinstance(content, bytes) else content.size


def is_eight_bit(content: Content) -> bool:
    """Whether a content has an octet that is not ASCII."""
    if isinstance(content, bytes):
        return not content.isascii()
    return content.eight_bit or not content.header.isascii()


def in_sight(content: Content) -> bytes:
    """Return what is in memory of a content: all of it, or the header section of a large one.

    The functions of relay.mime.headers that read take either.
    """
    return content if isinstance(content, bytes) else content.header


def edited(content: Content, edit: Callable[[bytes], bytes]) -> Content:
    """Return a content whose header `edit` has changed: one of relay.mime.headers' functions.

    Of a large one they see the blank line as well: it tells an empty header from a missing one.
    """
    if isinstance(content, bytes):
        return edit(content)
    header = edit(content.header + _BLANK_LINE)[: -len(_BLANK_LINE)]
    return replace(content, header=header)


def blocks(content: Content, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yield a content from its beginning to its end in blocks. Reading waits; UnreadableError."""
    if isinstance(content, bytes):
        yield content
        return
    yield content.header
    yield from octets_in_blocks(content.body, block_bytes)


def octets_in_blocks(pieces: Sequence[Octets], block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yield pieces one behind the other in blocks. Raises UnreadableError."""
    for piece in pieces:
        position = 0
        while position < piece.size:
            try:
                block = piece.read(position, min(block_bytes, piece.size - position))
            except OSError as error:
                raise UnreadableError(error.strerror or str(error)) from error
            if not block:
                raise UnreadableError(f"expected {piece.size} octets, found {position}")
            yield block
            position += len(block)


def gathered(content: Content) -> bytes:
    """Return all of a content in memory: for those who know that it is small."""
    return content if isinstance(content, bytes) else b"".join(blocks(content))


@dataclass(frozen=True, slots=True)
class JoinedOctets:
    """Pieces one behind the other as one; `ends` is where each of them ends."""

    pieces: tuple[Octets, ...]
    ends: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many they are."""
        return self.ends[-1] if self.ends else 0

    def read(self, start: int, length: int) -> bytes:
        """See Octets."""
        found = []
        end = min(start + length, self.size)
        number = bisect_right(self.ends, start)
        while start < end:
            piece = self.pieces[number]
            begin = self.ends[number] - piece.size
            octets = piece.read(start - begin, min(end, self.ends[number]) - start)
            found.append(octets)
            start += len(octets)
            if start < min(end, self.ends[number]):
                break  # who reads sees that it is cut short
            number += 1
        return b"".join(found)

    def part(self, start: int, length: int) -> "JoinedOctets":
        """See Octets."""
        end = min(start + length, self.size)
        parts = []
        for piece, piece_end in zip(self.pieces, self.ends, strict=True):
            begin = piece_end - piece.size
            first, last = max(start, begin), min(end, piece_end)
            if first < last:
                parts.append(piece.part(first - begin, last - first))
        return joined(parts)


def joined(pieces: Sequence[Octets]) -> JoinedOctets:
    """Return pieces as one; those without octets are left out."""
    some = tuple(piece for piece in pieces if piece.size)
    return JoinedOctets(some, tuple(accumulate(piece.size for piece in some)))


def contains(octets: Octets, wanted: bytes) -> bool:
    """Whether octets have others in them. Reading blocks; raises UnreadableError."""
    end = b""
    for block in octets_in_blocks([octets]):
        if wanted in end + block:
            return True
        end = (end + block)[-len(wanted) :]
    return False
