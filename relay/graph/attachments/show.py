"""Attachments as JSON that is written while their files are read.

On the path: the handlers of attachments, and of messages with $expand=attachments.
Holds: whatever the sizes, a block is in memory.
Fails: OSError while it is read, when a file cannot be.
Standards: Graph's fileAttachment and itemAttachment; RFC 4648 4.
"""

from base64 import b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from starlette.responses import Response

from relay.graph.show import MESSAGE_PROPERTIES, graph_date
from relay.http.streamed import StreamedResponse
from relay.mailbox.types import (
    Folder,
    OpenAttachment,
    Opened,
    StoredAttachment,
    StoredMessage,
)
from relay.message.content import LARGE_BYTES
from relay.mime.mimeread import read_mime
from relay.mime.recoding import decoded_blocks

CONTENT = "contentBytes"
ITEM_BYTES_MAX = 10 * 1024 * 1024
_OF_ANY = ("id", "lastModifiedDateTime", "name", "contentType", "size", "isInline")
_OF_FILES = ("contentId", "contentLocation", CONTENT)
_CAST = "microsoft.graph.fileAttachment/"
ATTACHMENT_PROPERTIES = frozenset((*_OF_ANY, *_OF_FILES, *(_CAST + name for name in _OF_FILES)))
_OF_ITEMS = (
    *("subject", "body", "bodyPreview", "from", "sender", "toRecipients", "ccRecipients"),
    *("bccRecipients", "replyTo", "importance", "internetMessageId", "sentDateTime"),
    *("receivedDateTime", "hasAttachments", "conversationId"),
)
_DATES = ("sentDateTime", "receivedDateTime")
_NOWHERE = Folder("", "", Path())


def json_pieces(
    opened: Opened, attachments: Sequence[OpenAttachment], *, select: Collection[str] = ()
) -> Iterator[bytes]:
    """Yield the JSON array of attachments."""
    for number, one in enumerate(attachments):
        yield b"," if number else b"["
        yield from attachment_pieces(opened, one, select=select)
    yield b"]" if attachments else b"[]"


def attachment_pieces(
    opened: Opened,
    one: OpenAttachment,
    *,
    select: Collection[str] = (),
    context: Mapping[str, Any] | None = None,
    with_item: bool = False,
) -> Iterator[bytes]:
    """Yield the JSON of an attachment, its item too if that is wanted and not too large."""
    wanted = {name.removeprefix(_CAST) for name in select}
    item = _shown_item(one) if with_item and one.attachment.item else None
    shown = show_attachment(one.attachment, modified_us=opened.message.modified_us, item=item)
    if wanted:
        kept = wanted | {"id", "@odata.type", "@odata.mediaContentType", "item"}
        shown = {name: value for name, value in shown.items() if name in kept}
    encoded = msgspec.json.encode({**(context or {}), **shown})
    if one.attachment.item or (wanted and CONTENT not in wanted):
        yield encoded
        return
    yield encoded[:-1] + b',"contentBytes":"'
    yield from _base64_of(one)
    yield b'"}'


def show_attachment(
    attachment: StoredAttachment, *, modified_us: int, item: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return an attachment's JSON without a file's bytes; `item` is an attached message's JSON.

    Of an itemAttachment Graph never shows the bytes: its $value has the MIME.
    """
    kind = "itemAttachment" if attachment.item else "fileAttachment"
    shown: dict[str, Any] = {
        "@odata.type": f"#microsoft.graph.{kind}",
        "@odata.mediaContentType": attachment.content_type,
        "id": attachment.id,
        "lastModifiedDateTime": graph_date(modified_us),
        "name": attachment.name,
        "contentType": attachment.content_type,
        "size": attachment.size,
        "isInline": attachment.inline,
    }
    if attachment.item:
        return shown if item is None else shown | {"item": dict(item)}
    return shown | {"contentId": attachment.content_id or None, "contentLocation": None}


def content_of(one: OpenAttachment) -> Iterator[bytes]:
    """Yield an attachment's bytes."""
    return decoded_blocks(one.octets, one.encoding)


def json_answer(
    pieces: Iterator[bytes],
    size_bytes: int,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answer with JSON of about that size: at once while it is small, else as it is read.

    Reading blocks where it is small; raises OSError.
    """
    fields = {"content-type": "application/json", **(headers or {})}
    if size_bytes > LARGE_BYTES:
        return StreamedResponse(pieces, status=status, headers=fields)
    return Response(b"".join(pieces), status_code=status, headers=fields)


def _base64_of(one: OpenAttachment) -> Iterator[bytes]:
    held = b""
    for block in content_of(one):
        held += block
        end = len(held) // 3 * 3
        yield b64encode(held[:end])
        held = held[end:]
    yield b64encode(held)


def _shown_item(one: OpenAttachment) -> dict[str, Any] | None:
    if one.octets.size > ITEM_BYTES_MAX:
        return None
    read = read_mime(one.octets)
    message = StoredMessage(
        id="",
        folder=_NOWHERE,
        path=_NOWHERE.path,
        properties=read.properties,
        attachments=(),
        is_draft=False,
        is_read=True,
        flagged=False,
        size=one.octets.size,
        created_us=read.date_us,
        modified_us=read.date_us,
        sent_us=read.date_us,
        received_us=read.date_us,
        change_key="",
        is_mime=True,
    )
    names = _OF_ITEMS if read.date_us else [name for name in _OF_ITEMS if name not in _DATES]
    shown = {name: MESSAGE_PROPERTIES[name](message) for name in names}
    shown["hasAttachments"] = any(not attached.inline for attached in read.attachments)
    given = {name: value for name, value in shown.items() if value is not None}
    return {"@odata.type": "#microsoft.graph.message", **given}
