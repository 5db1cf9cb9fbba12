"""Files of drafts for tests, in memory: written, and taken apart again.

The files are those that the store writes. See docs/design.md 3.
"""

from base64 import b64encode

from relay.base.message.content import MemoryOctets, read_all
from relay.base.message.properties import Attachment, MessageProperties
from relay.formats import draft


def write_draft(properties: MessageProperties, origin: draft.DraftOrigin) -> bytes:
    """Return a draft's file for properties; those of `from_` and the message id are to be set."""
    return read_all(draft.draft_content(properties, origin))


def write_mime_draft(content: bytes, origin: draft.DraftOrigin) -> bytes:
    """Return a draft's file for MIME: the block, then `content` byte for byte."""
    return draft.mime_draft_block(origin) + content


def split_private(raw: bytes) -> tuple[draft.PrivateBlock | None, int]:
    """Return the private block and its length."""
    return draft.read_private_block(MemoryOctets(raw))


def read_attachments(raw: bytes) -> tuple[Attachment, ...]:
    """Return the attachments with their base64, as they were given to write_draft()."""
    block, length = split_private(raw)
    if block is None:
        return ()
    found = []
    for part in block.attachments:
        stored = raw[length + part.offset : length + part.offset + part.length]
        content = stored.replace(b"\r\n", b"") if part.base64 else b64encode(stored)
        found.append(
            Attachment(
                part.name,
                part.content_type,
                content,
                part.size,
                inline=part.inline,
                content_id=part.content_id,
                item=part.item,
            )
        )
    return tuple(found)
