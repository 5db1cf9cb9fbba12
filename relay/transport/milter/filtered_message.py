"""A message on its way through the milters: each sees the changes of the milters before it.

A body of more than 1 MiB is read and written in blocks. The changes of a milter are applied when it
has decided: either all of them or none.
"""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Final

from msgspec import Struct

from relay.base.message.content import LARGE_BYTES, LargeContent, octets_in_blocks
from relay.base.message.header import ParsedContent
from relay.store.journeys.details import MilterSaid
from relay.store.spool.types import IncomingBody
from relay.transport.milter import codec
from relay.transport.milter.changes import BodyLines, ShownHeader, written
from relay.transport.milter.codec import MilterFaultError, PathChange
from relay.transport.milter.dialogue import GO_ON, MilterDialogue

_CHUNK_OCTETS: Final = 65535  # of a body, in one packet
_BLANK_LINE: Final = b"\r\n"
_RESULTS: Final = b"authentication-results"
_BLOCK_OCTETS: Final = 8 * _CHUNK_OCTETS
_QUICK_CHANGES: Final = 100  # of fields; more take up to seconds


class NewBodies(Struct, frozen=True):
    """How large new bodies may be, and where they are stored."""

    size_max_bytes: int  # of a message
    new_file: Callable[[], IncomingBody]  # for a body of more than 1 MiB


class NewBody:
    """The body with which a milter replaces the body of the message."""

    def __init__(self, store: NewBodies) -> None:
        self._store = store
        self._lines = BodyLines()
        self._held = bytearray(_BLANK_LINE)
        self._size = 0
        self.files: list[IncomingBody] = []  # at most one

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
        eight_bit = self._lines.eight_bit
        return LargeContent(b"", (self.files[0].octets(),), eight_bit, long_lines=True)

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


class FilterVerdict:
    """What the milters decide about a message, and the message with their changes so far.

    With a reply in `answer`, or with `discarded_by`, the rest is ignored. The caller calls
    release() when the message was accepted or refused.
    """

    def __init__(self, content: ParsedContent, store: NewBodies) -> None:
        self.answer = GO_ON  # with a reply the message is refused
        self.discarded_by = ""  # the milter that discards it: the client gets 250
        self.said: tuple[MilterSaid, ...] = ()  # of each milter that was asked, in their order
        self.shown = ShownHeader(content.header)
        self.rest = content.rest
        self.sender: PathChange | None = None  # another reverse-path
        self.added: dict[str, str] = {}  # recipients by canonical address, with the milter's name
        self.removed: set[str] = set()  # addresses that the client named
        self.quarantine: str | None = None  # the reason for which it is held, which may be ""
        self.quarantined_by = ""  # a milter
        self._written: set[bytes] = set()  # the fields of the name _RESULTS that milters wrote
        self.store = store
        self.files: list[IncomingBody] = []

    @property
    def content(self) -> ParsedContent:
        """The message with the changes, without `top`."""
        return ParsedContent(self.shown.header, self.rest)

    @property
    def results(self) -> list[bytes]:
        """The values of Authentication-Results that milters wrote, and that none has removed."""
        fields = (*self.shown.top, *self.shown.header.fields)
        return [octets.partition(b":")[2] for _, octets in fields if octets in self._written]

    @property
    def top(self) -> bytes:
        """The fields that go before Relay's own Received."""
        return b"".join(octets for _, octets in self.shown.top)

    def chunks(self) -> Iterator[bytes]:
        """Yield the body without the blank line, in parts of the size of a packet.

        It is for next_block(). Raises UnreadableError.
        """
        rest, blank = self.rest, _BLANK_LINE
        body = () if isinstance(rest, bytes) else rest.body
        small = [rest] if isinstance(rest, bytes) else []
        for block in chain(small, octets_in_blocks(body, _BLOCK_OCTETS, on_loop=True)):
            if not block:
                yield block
                continue
            text, blank = block.removeprefix(blank), b""
            for at in range(0, len(text), _CHUNK_OCTETS):
                yield text[at : at + _CHUNK_OCTETS]

    async def change(self, dialogue: MilterDialogue, body: NewBody) -> tuple[str, ...]:
        """Apply the changes of a milter, all or none; return them as short texts.

        Raises MilterFaultError, and what a new file raises.
        """
        changes = dialogue.changes
        blank = dialogue.leading_blank
        apply = partial(self.shown.changed, changes.fields, leading_blank=blank)
        is_quick = len(changes.fields) <= _QUICK_CHANGES
        header = apply() if is_quick else await asyncio.to_thread(apply)
        self.rest = await body.ended() if changes.replaces_body else self.rest
        self.shown = header
        for path in changes.paths:
            if path.command == codec.CHANGE_SENDER:
                self.sender = path
            elif path.command == codec.REMOVE_RECIPIENT:
                self.added.pop(path.address, None)
                self.removed.add(path.address)
            else:
                self.added[path.address] = dialogue.name
        results = [field for field in changes.fields if field.name.lower() == _RESULTS]
        self._written.update(written(field, leading_blank=blank) for field in results)
        if changes.quarantine is not None:
            self.quarantine, self.quarantined_by = changes.quarantine, dialogue.name
        return changes.described()

    def release(self) -> None:
        """Remove the files of new bodies. The body of an accepted message is kept."""
        for file in self.files:
            file.discard()
        self.files.clear()
