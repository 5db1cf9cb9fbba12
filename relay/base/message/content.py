"""The octets of a message: in memory while it is small, in a file when it is large.

Every intake path makes a Content. Later steps edit its header and pass the body on in blocks. Only
the header section of a LargeContent is in memory; its body is read from where it is stored.
Reading a body whose file was removed or truncated raises UnreadableError, an OSError.
RFC 5322 2.1 (header section and body).
"""

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Protocol, runtime_checkable

from msgspec import Struct

from relay.base.files import FileOctets, OpenOctets

LARGE_BYTES = 1024 * 1024  # a larger message is not held in memory
BLOCK_BYTES = 512 * 1024  # the size of one read
_BLANK_LINE = b"\r\n"


class UnreadableError(OSError):
    """The octets of a body cannot be read. The text says what was found."""


@runtime_checkable
class Octets(Protocol):
    """A source of octets, usually a part of a file (FileOctets). Reading blocks."""

    @property
    def size(self) -> int:
        """The number of octets."""

    def read(self, start: int, length: int) -> bytes:
        """Return `length` octets from `start`, fewer only at the end. Raises OSError."""

    def part(self, start: int, length: int) -> "Octets":
        """Return a range of the octets as Octets. Nothing is read."""


class MemoryOctets(Struct, frozen=True, tag=True):
    """Octets in memory."""

    octets: bytes

    @property
    def size(self) -> int:
        """The number of octets."""
        return len(self.octets)

    def read(self, start: int, length: int) -> bytes:
        """See Octets."""
        return self.octets[start : start + length]

    def part(self, start: int, length: int) -> "MemoryOctets":
        """See Octets."""
        return MemoryOctets(self.octets[start : start + length])


class SpanOfOctets(Struct, frozen=True, tag=True):
    """A range of another source, for sources that compute their octets while they are read."""

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


def as_octets(piece: bytes | Octets) -> Octets:
    """Return bytes or Octets as Octets."""
    return MemoryOctets(piece) if isinstance(piece, bytes) else piece


def as_bytes(piece: bytes | Octets) -> bytes:
    """Return bytes or Octets as bytes. Reading blocks; raises OSError."""
    return piece if isinstance(piece, bytes) else piece.read(0, piece.size)


@dataclass(frozen=True, slots=True)
class LargeContent:
    """A message whose body is not in memory.

    `header` is the whole header section, including its last CRLF; `body` begins with the blank
    line. `eight_bit`: the body has octets that are not ASCII. `long_lines`: a line of the body may
    have more than 998 octets.
    """

    header: bytes = field(repr=False)
    body: tuple[Octets, ...]
    eight_bit: bool
    long_lines: bool = False

    @classmethod
    def stored(cls, header: bytes, body: Octets, flags: int) -> "LargeContent":
        """Return a content of the spool; `flags` are those with which it was stored."""
        return cls(header, (body,), bool(flags & 1), bool(flags & 2))

    @property
    def flags(self) -> int:
        """The value of the spool's column `eight_bit`, which also has `long_lines`."""
        return self.eight_bit + 2 * self.long_lines

    @property
    def size(self) -> int:
        """The size of the whole message in octets."""
        return len(self.header) + sum(piece.size for piece in self.body)


Content = bytes | LargeContent


def size_of(content: Content) -> int:
    """Return the size of a content in octets."""
    return len(content) if isinstance(content, bytes) else content.size


def is_eight_bit(content: Content) -> bool:
    """Return whether a content has octets that are not ASCII."""
    if isinstance(content, bytes):
        return not content.isascii()
    return content.eight_bit or not content.header.isascii()


def memory_part(content: Content) -> bytes:
    """Return the part of a content that is in memory: all of it, or the header of a large one."""
    return content if isinstance(content, bytes) else content.header


def edit_header(content: Content, edit: Callable[[bytes], bytes]) -> Content:
    """Return a content whose first lines are changed by `edit`; the header is not split.

    `edit` gets the whole content, or the header and the blank line of a large content.
    """
    if isinstance(content, bytes):
        return edit(content)
    header = edit(content.header + _BLANK_LINE)[: -len(_BLANK_LINE)]
    return dataclasses.replace(content, header=header)


def blocks(
    content: Content, block_bytes: int = BLOCK_BYTES, *, on_loop: bool = False
) -> Iterator[bytes]:
    """Yield a content in blocks. Reading blocks; raises UnreadableError. See octets_in_blocks()."""
    if isinstance(content, bytes):
        yield content
        return
    yield content.header
    yield from octets_in_blocks(content.body, block_bytes, on_loop=on_loop)


def octets_in_blocks(
    pieces: Sequence[Octets], block_bytes: int = BLOCK_BYTES, *, on_loop: bool = False
) -> Iterator[bytes]:
    """Yield the octets of the pieces, in their order, in blocks. Raises UnreadableError.

    A file is opened once, for its first block. With `on_loop`, which is for
    relay.base.blocks.next_block(), b"" precedes a block that may wait for the disk or is computed.
    """
    for piece in pieces:
        source, position = piece, 0
        while position < piece.size:
            length, block = min(block_bytes, piece.size - position), b""
            if on_loop and isinstance(source, OpenOctets):
                block = source.read_cached(position, length)
            if on_loop and not block:
                yield b""
            try:
                if isinstance(source, FileOctets):
                    source = OpenOctets.of_part(source)
                block = block or source.read(position, length)
            except OSError as error:
                raise UnreadableError(error.strerror or str(error)) from error
            if not block:
                raise UnreadableError(f"expected {piece.size} octets, found {position}")
            yield block
            position += len(block)


def read_all(content: Content) -> bytes:
    """Return a whole content in memory. The caller must know that it is small."""
    return content if isinstance(content, bytes) else b"".join(blocks(content))


class JoinedOctets(Struct, frozen=True):
    """Several pieces as one source; `ends` are the ends of the pieces in it."""

    pieces: tuple[Octets, ...]
    ends: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of octets."""
        return self.ends[-1] if self.ends else 0

    def read(self, start: int, length: int) -> bytes:
        """See Octets."""
        chunks = []
        end = min(start + length, self.size)
        number = bisect_right(self.ends, start)
        while start < end:
            piece = self.pieces[number]
            begin = self.ends[number] - piece.size
            octets = piece.read(start - begin, min(end, self.ends[number]) - start)
            chunks.append(octets)
            start += len(octets)
            if start < min(end, self.ends[number]):
                break  # the caller sees that the source is truncated
            number += 1
        return b"".join(chunks)

    def part(self, start: int, length: int) -> "JoinedOctets":
        """See Octets."""
        end = min(start + length, self.size)
        parts = []
        for piece, piece_end in zip(self.pieces, self.ends, strict=True):
            begin = piece_end - piece.size
            first, last = max(start, begin), min(end, piece_end)
            if first < last:
                parts.append(piece.part(first - begin, last - first))
        return join_octets(parts)


def join_octets(pieces: Iterable[bytes | Octets]) -> JoinedOctets:
    """Return the pieces as one source, without empty ones. Joined pieces are flattened."""
    flat = chain.from_iterable(
        piece.pieces if isinstance(piece, JoinedOctets) else (as_octets(piece),) for piece in pieces
    )
    filled = tuple(piece for piece in flat if piece.size)
    return JoinedOctets(filled, tuple(accumulate(piece.size for piece in filled)))


class Splice(Struct, frozen=True):
    """The replacement of a range of octets."""

    start: int
    end: int
    instead: Sequence[bytes | Octets]


def spliced(octets: Octets, splices: Iterable[Splice]) -> JoinedOctets:
    """Return octets with ranges replaced. Ranges must not overlap.

    Octets that stay are not copied.
    """
    pieces: list[bytes | Octets] = []
    place = 0
    for splice in sorted(splices, key=lambda splice: splice.start):
        pieces += [octets.part(place, splice.start - place), *splice.instead]
        place = splice.end
    return join_octets([*pieces, octets.part(place, octets.size - place)])


def octets_of(content: Content) -> Octets:
    """Return a content as Octets."""
    if isinstance(content, bytes):
        return MemoryOctets(content)
    return join_octets([content.header, *content.body])


def contains(octets: Octets, pattern: bytes) -> bool:
    """Return whether `pattern` occurs in the octets. Reading blocks; raises UnreadableError."""
    end = b""
    for block in octets_in_blocks([octets]):
        if pattern in end + block:
            return True
        end = (end + block)[-len(pattern) :]
    return False
