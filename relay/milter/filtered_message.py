"""A message on its way through the milters: each sees what the one before it has changed.

A body of more than 1 MiB is read and written in blocks. The changes of a milter are applied when
it has decided, all or none.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from msgspec import Struct

from relay.message.content import LARGE_BYTES, LargeContent, Octets, octets_in_blocks
from relay.message.header import ParsedContent
from relay.milter import codec
from relay.milter.changes import BodyLines, ShownHeader
from relay.milter.codec import MilterFaultError, PathChange
from relay.milter.connection import MilterConnection

_CHUNK_OCTETS: Final = 65535  # of a body, in one packet
_BLANK_LINE: Final = b"\r\n"
_BLOCK_OCTETS: Final = 8 * _CHUNK_OCTETS


class NewBodyFile(Protocol):
    """A file for a new body: an IncomingBody of the spool."""

    async def write(self, blocks: Sequence[bytes]) -> None:
        """Append blocks."""
        ...

    def octets(self) -> Octets:
        """Return what was written."""
        ...

    def discard(self) -> None:
        """Remove the file in the background."""
        ...


class NewBodies(Struct, frozen=True):
    """Where new bodies go, and how large they may be."""

    size_max_bytes: int  # of a message
    new_file: Callable[[], NewBodyFile]  # for one of more than 1 MiB


class NewBody:
    """The body with which a milter replaces that of the message."""

    def __init__(self, store: NewBodies) -> None:
        self._store = store
        self._lines = BodyLines()
        self._held = bytearray(_BLANK_LINE)
        self._size = 0
        self.files: list[NewBodyFile] = []  # at most one

    async def add(self, piece: bytes) -> None:
        """Add a piece. Raises MilterFaultError, and what `new_file` raises where it is full."""
        self._add(self._lines.add(piece))
        if len(self._held) > LARGE_BYTES:
            await self._spill()

    async def ended(self) -> bytes | LargeContent:
        """Return the body, as the `rest` of a ParsedContent. Raises as add() does."""
        self._add(self._lines.end())
        if not self.files:
            return bytes(self._held)
        await self._spill()
        return LargeContent(b"", (self.files[0].octets(),), self._lines.eight_bit)

    def _add(self, text: bytes) -> None:
        self._held += text
        self._size += len(text)
        if self._size > self._store.size_max_bytes:
            most = self._store.size_max_bytes
            raise MilterFaultError(f"a body of more than {most} octets")

    async def _spill(self) -> None:
        if not self.files:
            self.files.append(self._store.new_file())
        block, self._held = bytes(self._held), bytearray()
        await self.files[0].write([block])


class MilterSaid(Struct, frozen=True):
    """The last word of one milter about a message, for its journey."""

    name: str
    stage: str  # where it was said, a FilterStage
    answer: str  # continue, accept, reject, tempfail, reply, discard, shutdown, down
    reason: str = ""  # the reply, the reason of quarantine, or why it is down
    changes: tuple[str, ...] = ()  # for people, such as "add X-Spam"


class FilteredMessage:
    """What the milters have made of a message so far."""

    def __init__(self, content: ParsedContent, store: NewBodies) -> None:
        self.shown = ShownHeader(content.header)
        self.rest = content.rest
        self.store = store
        self.sender: PathChange | None = None
        self.added: list[PathChange] = []
        self.removed: list[str] = []
        self.quarantine: str | None = None
        self.quarantined_by = ""
        self.files: list[NewBodyFile] = []

    def chunks(self) -> Iterator[bytes]:
        """Yield the body without the blank line, as packets take it. Reading a body of more than
        1 MiB blocks; raises UnreadableError.
        """
        start = len(_BLANK_LINE)
        rest = self.rest
        for block in (
            (rest,) if isinstance(rest, bytes) else octets_in_blocks(rest.body, _BLOCK_OCTETS)
        ):
            begin = start if block.startswith(_BLANK_LINE) else 0
            for at in range(begin, len(block), _CHUNK_OCTETS):
                yield block[at : at + _CHUNK_OCTETS]
            start = 0

    async def change(self, by: MilterConnection, body: NewBody) -> tuple[str, ...]:
        """Apply the changes of a milter, all or none; return them for people. Raises
        MilterFaultError, and what a new file raises.
        """
        changes = by.dialogue.changes
        shown = self.shown.changed(changes.fields, leading_blank=by.dialogue.leading_blank)
        rest = await body.ended() if changes.replaces_body else self.rest
        self.shown, self.rest = shown, rest
        for one in changes.paths:
            if one.command == codec.CHANGE_SENDER:
                self.sender = one
            elif one.command == codec.REMOVE_RECIPIENT:
                self.added = [each for each in self.added if each.address != one.address]
                self.removed.append(one.address)
            else:
                self.added.append(one)
        if changes.quarantine is not None:
            self.quarantine, self.quarantined_by = changes.quarantine, by.name
        return changes.described()

    def discard_files(self) -> None:
        """Remove the files of new bodies, unless an accepted message has them."""
        for one in self.files:
            one.discard()
        self.files.clear()
