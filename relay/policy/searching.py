"""A large content as something to search in: a block of it is in memory at a time.

On the path: the walk over the parts of a message asks; a small message is searched as it is.
Holds: what is asked for in the order of the octets is read once, whatever is found.
Fails: UnreadableError (an OSError) for a body that is gone or cut short.
Standards: none.
"""

from typing import Protocol

from relay.message.content import (
    BLOCK_BYTES,
    Content,
    LargeContent,
    MemoryOctets,
    Octets,
    UnreadableError,
)


class Searchable(Protocol):
    """What the walk over the parts needs of a message: bytes have it."""

    def __len__(self) -> int:
        """How many octets there are."""
        ...

    def __getitem__(self, wanted: slice, /) -> bytes:
        """Return the octets from start to stop, which both are there."""
        ...

    def find(self, wanted: bytes, start: int, end: int, /) -> int:
        """Return where `wanted` first is between `start` and `end`; -1 if nowhere."""
        ...

    def startswith(self, wanted: bytes, start: int, /) -> bool:
        """Whether `wanted` is at `start`."""
        ...


def searchable(content: Content) -> Searchable:
    """Return a content to search in."""
    return content if isinstance(content, bytes) else BlockByBlock(content)


class BlockByBlock:
    """A large content. Blocks are read where they are first asked for, and the last one is kept."""

    def __init__(self, content: LargeContent, *, block_bytes: int = BLOCK_BYTES) -> None:
        self._pieces: tuple[Octets, ...] = (MemoryOctets(content.header), *content.body)
        self._size = content.size
        self._block_bytes = block_bytes
        self._block = b""
        self._block_start = 0

    def __len__(self) -> int:
        """See Searchable."""
        return self._size

    def __getitem__(self, wanted: slice, /) -> bytes:
        """See Searchable."""
        start, stop, _ = wanted.indices(self._size)
        if stop <= start:
            return b""
        if self._block_start <= start and stop <= self._block_end:
            return self._block[start - self._block_start : stop - self._block_start]
        return self._read(start, stop - start)

    def find(self, wanted: bytes, start: int, end: int, /) -> int:
        """See Searchable."""
        end = min(end, self._size)
        if end - start < len(wanted):
            return -1
        if not self._block_start <= start < self._block_end:
            self._load(start, len(wanted))
        while True:
            found = self._block.find(
                wanted, start - self._block_start, min(end, self._block_end) - self._block_start
            )
            if found >= 0:
                return self._block_start + found
            if self._block_end >= end:
                return -1
            # The last octets of the block may be the first ones of what is wanted.
            start = max(start, self._block_end - len(wanted) + 1)
            self._load(start, len(wanted))

    def startswith(self, wanted: bytes, start: int, /) -> bool:
        """See Searchable."""
        if not self._block_start <= start <= self._block_end - len(wanted):
            self._load(start, len(wanted))
        return self._block.startswith(wanted, start - self._block_start)

    @property
    def _block_end(self) -> int:
        return self._block_start + len(self._block)

    def _load(self, start: int, wanted_bytes: int) -> None:
        length = max(self._block_bytes, 2 * wanted_bytes)
        self._block = self._read(start, min(length, self._size - start))
        self._block_start = start

    def _read(self, start: int, length: int) -> bytes:
        found: list[bytes] = []
        piece_start = 0
        for piece in self._pieces:
            first = max(start - piece_start, 0)
            wanted = min(start + length - piece_start, piece.size) - first
            if wanted > 0:
                octets = piece.read(first, wanted)
                if len(octets) != wanted:
                    raise UnreadableError(f"expected {wanted} octets, found {len(octets)}")
                found.append(octets)
            piece_start += piece.size
        return found[0] if len(found) == 1 else b"".join(found)
