"""The attachments of one message: listed, read, added, removed, and uploads begun.

On the path: step 1 for drafts; everything else reads what the store has.
Holds: a 201 is durable; of a large attachment a block is in memory.
Fails: ApiError for what cannot be read; the store's refusals.
Standards: Graph's attachment resource type, and its createUploadSession.
"""

import asyncio
from base64 import b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from relay.graph.extended_properties import Expand
from relay.graph.graph_request import Visit
from relay.graph.json_values import json_object, missing, read_parameters
from relay.graph.message_parser import read_attachment, read_item, read_upload
from relay.graph.query_options import TOP_MAX, Options, parse_options
from relay.graph.serializer import MESSAGE_PROPERTIES, graph_date, show_message
from relay.http.errors import ApiError, shown
from relay.http.gateway import StreamedResponse, json_response
from relay.mailbox.attachments import found_attachment
from relay.mailbox.types import (
    Folder,
    OpenAttachment,
    OpenedMessage,
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
    opened: OpenedMessage, attachments: Sequence[OpenAttachment], *, select: Collection[str] = ()
) -> Iterator[bytes]:
    """Yield the JSON array of attachments."""
    for number, one in enumerate(attachments):
        yield b"," if number else b"["
        yield from attachment_pieces(opened, one, select=select)
    yield b"]" if attachments else b"[]"


def attachment_pieces(
    opened: OpenedMessage,
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


_WITH_ITEM = "microsoft.graph.itemattachment/item"


async def list_attachments(visit: Visit) -> Response:
    """GET the attachments: all of them, unless $top says less."""
    options = parse_options(
        visit.call.query,
        allowed={"select", "top", "skip", "count"},
        known=ATTACHMENT_PROPERTIES,
        page_size=TOP_MAX,
    )
    opened = await _opened(visit)
    behind = options.skip + options.top
    page = opened.attachments[options.skip : behind]
    head: dict[str, Any] = _context(visit, opened, "")
    if options.count:
        head["@odata.count"] = len(opened.attachments)
    tail = b"}"
    if behind < len(opened.attachments):
        link = options.next_link(f"{_url(visit, opened)}/attachments", skip=behind)
        tail = b',"@odata.nextLink":' + msgspec.json.encode(link) + b"}"
    start = msgspec.json.encode(head)[:-1] + b',"value":'
    pieces = chain((start,), json_pieces(opened, page, select=options.select), (tail,))
    return await _answer(pieces, _size(page, options))


async def get_attachment(visit: Visit) -> Response:
    """GET one attachment."""
    options = visit.options({"select", "expand"}, ATTACHMENT_PROPERTIES)
    expand = (options.expand or "").strip().lower().removeprefix("$")
    if expand not in ("", _WITH_ITEM):
        message = f"$expand: {shown(options.expand)} cannot be expanded here, only {_WITH_ITEM}."
        raise ApiError(400, "BadRequest", message)
    opened = await _opened(visit)
    one = found_attachment(opened.attachments, visit.names["attachment"])
    pieces = attachment_pieces(
        opened,
        one,
        select=options.select,
        context=_context(visit, opened, "/$entity"),
        with_item=bool(expand),
    )
    return await _answer(pieces, _size((one,), options))


async def get_value(visit: Visit) -> Response:
    """GET $value: the file as it is, or the message as MIME."""
    visit.options()
    opened = await _opened(visit)
    one = found_attachment(opened.attachments, visit.names["attachment"])
    kind = one.attachment.content_type
    is_plain = kind.isascii() and kind.isprintable()
    headers = {
        "content-type": kind if is_plain else "application/octet-stream",
        "content-disposition": "attachment",  # nothing that came by mail is a page of ours
    }
    return StreamedResponse(content_of(one), headers=headers)


async def add_attachment(visit: Visit) -> Response:
    """POST an attachment to a draft."""
    visit.options()
    attachment = read_attachment(json_object(await visit.call.body()), read_item=read_item)
    message_id = await _message_id(visit)
    store = visit.door.store.attachments
    identity = await store.add(
        visit.mailbox, message_id, attachment, limit_bytes=visit.door.max_upload
    )
    opened = await _opened(visit)
    one = found_attachment(opened.attachments, identity)
    context = _context(visit, opened, "/$entity")
    pieces = attachment_pieces(opened, one, context=context)
    location = f"{_url(visit, opened)}/attachments/{quote(identity)}"
    size = _size((one,), Options())
    return await _answer(pieces, size, status=201, headers={"location": location})


async def delete_attachment(visit: Visit) -> Response:
    """DELETE an attachment of a draft."""
    visit.options()
    message_id = await _message_id(visit)
    store = visit.door.store.attachments
    await store.remove(visit.mailbox, message_id, visit.names["attachment"])
    return Response(status_code=204)


async def create_upload_session(visit: Visit) -> Response:
    """POST createUploadSession: an URL to which the file of an attachment is PUT in ranges."""
    visit.options()
    body = json_object(await visit.call.body())
    action = "microsoft.graph.createUploadSession"
    given = read_parameters(body, ("attachmentitem",), action)
    if given.get("attachmentitem") is None:
        raise missing("attachmentItem")
    wanted = read_upload(given["attachmentitem"], "attachmentItem")
    message_id = await _message_id(visit)
    store = visit.door.store.attachments
    made = await store.create_upload(
        visit.mailbox, message_id, wanted, limit_bytes=visit.door.max_upload
    )
    session = {
        "@odata.context": f"{visit.root_url()}/$metadata#microsoft.graph.uploadSession",
        "uploadUrl": f"{visit.root_url()}/uploads/{made.token}",
        "expirationDateTime": graph_date(made.upload.expires_us),
        "nextExpectedRanges": ["0-"],
    }
    return json_response(session, status=201)


async def get_with_attachments(
    visit: Visit, options: Options, expand: Expand, *, context: str
) -> Response:
    """Answer a GET of a message with its attachments in it."""
    opened = await _opened(visit)
    told = show_message(opened.message, options.select) | expand.show(opened.message)
    head = msgspec.json.encode({**visit.context(context), **told})
    pieces = chain(
        (head[:-1] + b',"attachments":',),
        json_pieces(opened, opened.attachments, select=expand.attachments or ()),
        (b"}",),
    )
    size = _size(opened.attachments, Options(select=expand.attachments or ()))
    return await _answer(pieces, size)


async def _answer(
    pieces: Iterator[bytes],
    size_bytes: int,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    return await asyncio.to_thread(json_answer, pieces, size_bytes, status=status, headers=headers)


async def _opened(visit: Visit) -> OpenedMessage:
    store = visit.door.store.attachments
    return await store.opened(visit.mailbox, visit.message_id, folder_id=visit.folder_id)


async def _message_id(visit: Visit) -> str:
    """The message that the path names, looked for where the path names a folder."""
    if not visit.folder_id:
        return visit.message_id
    store = visit.door.store
    return (await store.get(visit.mailbox, visit.message_id, folder_id=visit.folder_id)).id


def _size(attachments: tuple[OpenAttachment, ...], options: Options) -> int:
    """About how many bytes of JSON these will be."""
    if options.select and not any(name.endswith(CONTENT) for name in options.select):
        return 0
    return sum(one.octets.size for one in attachments) * 4 // 3


def _url(visit: Visit, opened: OpenedMessage) -> str:
    owner = f"{visit.root_url()}/users('{quote(visit.mailbox)}')"
    return f"{owner}/messages('{opened.message.id}')"


def _context(visit: Visit, opened: OpenedMessage, rest: str) -> dict[str, Any]:
    owner = f"users('{quote(visit.mailbox)}')"
    return visit.context(f"{owner}/messages('{opened.message.id}')/attachments{rest}")
