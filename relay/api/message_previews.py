"""What a row of the message list shows of a content: names, attachments, a line of text.

A content never changes, so that its beginning is read once, when its row is first listed, and the
few values of the latest messages are kept in memory. A message that cannot be read has none.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Sequence

from msgspec import Struct

from relay.api.message_source import MessageSources
from relay.journeys.message_list import MessageSummary
from relay.mailbox.types import StoreError
from relay.message.content import Octets, octets_of
from relay.message.properties import EmailAddress
from relay.mime.html_text import preview
from relay.mime.read_mime import read_mime, read_parts
from relay.spool.types import SpoolError

KEPT_MAX = 5000  # of at most 3 KB each
READ_OCTETS_MAX = 128 * 1024
_HEADER_OCTETS = 16 * 1024
_NAME_CHARACTERS_MAX = 100
ADDRESS_CHARACTERS_MAX = 320


class MessagePreview(Struct, frozen=True):
    """The beginning of a content."""

    sender_name: str = ""  # in the From field
    to_name: str = ""  # of the first address in To, or else in Cc
    to_address: str = ""  # that address
    has_attachments: bool = False
    text: str = ""  # one line


NO_PREVIEW = MessagePreview()


class RowFacts(Struct, frozen=True):
    """What a row shows that is not in the history of its message."""

    is_received: bool  # a copy can be marked as read or unread
    is_unread: bool  # one of these copies is
    preview: MessagePreview
    shows_text: bool  # of the preview


class MessagePreviews:
    """The previews of messages that were listed lately."""

    def __init__(self, sources: MessageSources) -> None:
        self._sources = sources
        self._kept: OrderedDict[str, MessagePreview] = OrderedDict()  # by queue id

    async def of_rows(self, rows: Sequence[MessageSummary]) -> dict[str, MessagePreview]:
        """Return the previews by the names of the rows; those that cannot be read are left out."""
        found: dict[str, MessagePreview] = {}
        for row in rows:
            kept = self._kept.get(row.name)
            if kept is not None:
                self._kept.move_to_end(row.name)
                found[row.name] = kept
                continue
            with contextlib.suppress(SpoolError, StoreError, OSError):
                found[row.name] = await self._read(row)
        return found

    async def _read(self, row: MessageSummary) -> MessagePreview:
        content = await self._sources.of_row(row)
        if content is None:
            read = NO_PREVIEW
        else:
            read = await asyncio.to_thread(read_preview, octets_of(content))
        if row.id:  # before that, a scheduled draft can be changed
            self._kept[row.id] = read
            if len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return read


def read_preview(octets: Octets) -> MessagePreview:
    """Read the beginning of a MIME message. Blocks; raises OSError.

    An attachment behind that is not seen: there, multipart/mixed means that there is one.
    """
    beginning = octets.part(0, min(octets.size, READ_OCTETS_MAX))
    read = read_mime(beginning)
    author = read.properties.from_
    is_attached = any(not one.inline for one in read.attachments)
    if not is_attached and octets.size > READ_OCTETS_MAX:
        header = octets.read(0, _HEADER_OCTETS).partition(b"\r\n\r\n")[0]
        is_attached = b"multipart/mixed" in header.lower()
    text = preview(read.properties.body, read.properties.body_type)
    if not text:  # of HTML that begins with a long style sheet
        text = preview(read_parts(beginning).bodies.text or "", "text")
    to = next(
        (one for one in read.properties.to + read.properties.cc if one.address), EmailAddress("")
    )
    return MessagePreview(
        author.name[:_NAME_CHARACTERS_MAX] if author else "",
        to.name[:_NAME_CHARACTERS_MAX],
        to.address[:ADDRESS_CHARACTERS_MAX],
        is_attached,
        text,
    )
