"""Handlers of the attachment resource, and its JSON, which is sent while the files are read.

Only one block of a large attachment is in memory. A 201 is sent when the change is on disk. An
attached message is shown as a stored one is, with its attachments; $value has its MIME.
attachment_parser reads attachments that come in the JSON of a message.
"""

import asyncio
from base64 import b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from relay.base.message.content import LARGE_BYTES, Octets
from relay.formats.draft import AttachmentFacts
from relay.formats.read_mime import AttachedOctets, read_mime, read_parts
from relay.formats.transfer_encoding import decoded_blocks
from relay.front_door.graph.attachment_parser import read_attachment, read_upload
from relay.front_door.graph.entity_tags import etag_field
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.json_values import COMMON_PROPERTIES, FILE_PROPERTIES, read_parameters
from relay.front_door.graph.message_parser import read_item
from relay.front_door.graph.odata.resources import select_attachments
from relay.front_door.graph.preferred_body import convert_body, preferred_body_type
from relay.front_door.graph.query_options import TOP_MAX, QueryOptions
from relay.front_door.graph.responses import minimal_response
from relay.front_door.graph.serializer import graph_date, message_json
from relay.front_door.graph.upload_sessions import upload_url
from relay.front_door.http.errors import bad_request, quoted
from relay.front_door.http.responses import StreamedResponse, Turn, json_response
from relay.store.mailbox.attachments import found_attachment
from relay.store.mailbox.stored_message import Folder, OpenedMessage, StoredMessage

CONTENT = "contentBytes"
ITEM_LEVELS_MAX = 30  # as in Graph
ITEM_BYTES_MAX = 40 * 1024 * 1024  # read for one response, at all levels together
_CASTS = {
    "": f"{COMMON_PROPERTIES} {FILE_PROPERTIES}",
    "microsoft.graph.fileAttachment/": FILE_PROPERTIES,
}
ATTACHMENT_PROPERTIES = frozenset(
    cast + name for cast, names in _CASTS.items() for name in names.split()
)
_NO_FOLDER = Folder("", "", Path())
_LIST_OPTIONS = ("select", "filter", "orderby", "top", "skip", "count")
_WITH_ITEM = "microsoft.graph.itemattachment/item"


async def list_attachments(request: GraphRequest) -> Response:
    """GET attachments: return all of them, or a page with $top."""
    allowed = (*_LIST_OPTIONS, "search") if request.is_strict else _LIST_OPTIONS
    options = request.options(allowed, ATTACHMENT_PROPERTIES, "attachment", page_size=TOP_MAX)
    if request.is_strict:
        options = replace(options, filter=None, search=None)  # as Graph, which ignores them
    opened = await open_message(request)
    attachments = select_attachments(opened.attachments, options)
    end = options.skip + options.top
    page = attachments[options.skip : end]
    head: dict[str, Any] = _context(request, opened, "")
    if options.count:
        head["@odata.count"] = len(attachments)
    tail = b"}"
    if end < len(attachments):
        link = options.next_link(f"{request.root_url()}/{_path(request, opened)}", skip=end)
        tail = b',"@odata.nextLink":' + msgspec.json.encode(link) + b"}"
    start = msgspec.json.encode(head)[:-1] + b',"value":'
    pieces = chain((start,), _array_pieces(opened, page, options.select), (tail,))
    return await _response(pieces, _size(page, options.select))


async def count_attachments(request: GraphRequest) -> Response:
    """GET $count of attachments: return their number as text."""
    request.options()
    opened = await open_message(request)
    return Response(str(len(opened.attachments)), headers={"content-type": "text/plain"})


async def get_attachment(request: GraphRequest) -> Response:
    """GET one attachment."""
    options = request.options({"select", "expand"}, ATTACHMENT_PROPERTIES, "attachment")
    expand = (options.expand or "").strip().lower().removeprefix("$")
    if expand not in ("", _WITH_ITEM):
        expanded = quoted(options.expand)
        raise bad_request(f"$expand: {expanded} cannot be expanded here, only {_WITH_ITEM}.")
    opened = await open_message(request)
    attachment = found_attachment(opened.attachments, request.attachment_id)
    pieces = _attachment_pieces(
        opened,
        attachment,
        select=options.select,
        context=_context(request, opened, "/$entity"),
        items=_Items(preferred_body_type(request)) if expand else None,
    )
    size = _size((attachment,), () if expand else options.select)
    return await _response(pieces, size, turn=request.conversion_turn if expand else nullcontext)


async def get_value(request: GraphRequest) -> Response:
    """GET $value: return the file, or the attached message as MIME."""
    request.options()
    opened = await open_message(request)
    attachment = found_attachment(opened.attachments, request.attachment_id)
    kind = attachment.facts.content_type
    is_plain = kind.isascii() and kind.isprintable()
    headers = {
        "content-type": kind if is_plain else "application/octet-stream",
        "content-disposition": "attachment",  # a browser must not render mail content
    }
    return StreamedResponse(content_of(attachment), headers=headers)


async def add_attachment(request: GraphRequest) -> Response:
    """POST an attachment to a draft."""
    body = await request.json_object("attachment")
    attachment = read_attachment(body, "attachment", read_item=read_item)
    attachments = request.store.attachments
    identity = await attachments.add(
        request.mailbox,
        request.message_id,
        attachment,
        limit_bytes=request.dependencies.max_upload,
        condition=request.condition,
    )
    opened = await open_message(request)
    added = found_attachment(opened.attachments, identity)
    context = _context(request, opened, "/$entity")
    pieces = _attachment_pieces(opened, added, context=context)
    location = f"{request.root_url()}/{_path(request, opened)}/{quote(identity)}"
    if request.prefers_minimal():
        return minimal_response(location, is_new=True)
    return await _response(pieces, _size((added,)), status=201, headers={"location": location})


async def delete_attachment(request: GraphRequest) -> Response:
    """DELETE an attachment of a draft."""
    attachment_id = request.attachment_id
    await request.store.attachments.remove(
        request.mailbox, request.message_id, attachment_id, condition=request.condition
    )
    return Response(status_code=204)


async def create_upload_session(request: GraphRequest) -> Response:
    """POST createUploadSession: return a URL to which a file is PUT in ranges."""
    body = await request.json_object()
    known = {"attachmentitem": ("attachmentItem", read_upload)}
    item = read_parameters(body, known, "createUploadSession", needed=known)["attachmentitem"]
    made = await request.store.uploads.create(
        request.mailbox,
        request.message_id,
        item,
        caller=request.caller.address,
        limit_bytes=request.dependencies.max_upload,
        condition=request.condition,
    )
    session = {
        "@odata.context": f"{request.root_url()}/$metadata#microsoft.graph.uploadSession",
        "uploadUrl": upload_url(request.root_url(), made),
        "expirationDateTime": graph_date(made.upload.expires_us),
        "nextExpectedRanges": ["0-"],
    }
    return json_response(session, status=201)


async def expanded_response(
    request: GraphRequest,
    resource: Mapping[str, Any],
    opened: OpenedMessage,
    *,
    options: QueryOptions,
) -> Response:
    """Return the response with a message and the attachments that $expand shows."""
    pieces = message_pieces(request, resource, opened, options=options)
    size = _size(expanded(opened.attachments, options), options.select)
    return await _response(pieces, size, headers=etag_field(opened.message.change_key))


async def _response(
    pieces: Iterator[bytes],
    size_bytes: int,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    turn: Turn = nullcontext,
) -> Response:
    async with turn():
        return await asyncio.to_thread(
            json_stream_response, pieces, size_bytes, status=status, headers=headers, turn=turn
        )


async def open_message(request: GraphRequest) -> OpenedMessage:
    """Return the message that the path names; its attachments can be read."""
    return await request.store.attachments.opened(
        request.mailbox, request.message_id, folder_id=request.message_folder_id
    )


def expanded(
    attachments: Sequence[AttachedOctets], options: QueryOptions
) -> Sequence[AttachedOctets]:
    """Return the attachments that $expand shows. Raises ApiError 400 for an invalid $filter."""
    selected = select_attachments(attachments, options)
    return selected[options.skip : options.skip + options.top]


def _size(attachments: Sequence[AttachedOctets], select: Collection[str] = ()) -> int:
    """Estimate the size of the JSON in bytes."""
    if not shows_content(select):
        return 0
    return sum(attachment.octets.size for attachment in attachments) * 4 // 3


def shows_content(select: Collection[str]) -> bool:
    """Return whether the JSON of attachments has their content."""
    return not select or any(name.endswith(CONTENT) for name in select)


def _path(request: GraphRequest, opened: OpenedMessage) -> str:
    shown_id = request.shown_id(opened.message.id, opened.message.folder.id)
    return f"{request.owner}/messages('{shown_id}')/attachments"


def _context(request: GraphRequest, opened: OpenedMessage, rest: str) -> dict[str, Any]:
    return request.context(f"{_path(request, opened)}{rest}")


# -- serialization


class _Items(Struct):
    """How attached messages are shown in one response, and how many more of them."""

    body_type: str  # to which bodies are converted; "": as they are
    levels: int = ITEM_LEVELS_MAX
    left_bytes: int = ITEM_BYTES_MAX


def message_pieces(
    request: GraphRequest,
    resource: Mapping[str, Any],
    opened: OpenedMessage,
    *,
    options: QueryOptions,
) -> Iterator[bytes]:
    """Yield the JSON of a message with its attachments, and the link to those that follow."""
    selected = select_attachments(opened.attachments, options)
    if (end := options.skip + options.top) < len(selected):
        link = options.next_link(f"{request.root_url()}/{_path(request, opened)}", skip=end)
        resource = {**resource, "attachments@odata.nextLink": link}
    yield msgspec.json.encode(resource)[:-1] + b',"attachments":'
    yield from _array_pieces(opened, selected[options.skip : end], options.select)
    yield b"}"


def _array_pieces(
    opened: OpenedMessage,
    attachments: Sequence[AttachedOctets],
    select: Collection[str] = (),
    *,
    items: _Items | None = None,
) -> Iterator[bytes]:
    """Yield the JSON array of attachments."""
    for number, attachment in enumerate(attachments):
        yield b"," if number else b"["
        yield from _attachment_pieces(opened, attachment, select=select, items=items)
    yield b"]" if attachments else b"[]"


def _attachment_pieces(
    opened: OpenedMessage,
    attachment: AttachedOctets,
    *,
    select: Collection[str] = (),
    context: Mapping[str, Any] | None = None,
    items: _Items | None = None,
) -> Iterator[bytes]:
    """Yield the JSON of an attachment; `items` are shown in it."""
    selected = {name.rpartition("/")[2] for name in select}
    resource = attachment_json(attachment.facts, modified_us=opened.message.modified_us)
    if selected:
        kept = selected | {"id", "@odata.type", "@odata.mediaContentType"}
        resource = {name: value for name, value in resource.items() if name in kept}
    encoded = msgspec.json.encode({**(context or {}), **resource})
    size = attachment.octets.size
    if attachment.facts.item and items and items.levels and size <= items.left_bytes:
        items.levels, items.left_bytes = items.levels - 1, items.left_bytes - size
        yield encoded[:-1] + b',"item":'
        yield from _item_pieces(opened, attachment.octets, items)
        yield b"}"
        items.levels += 1
        return
    if attachment.facts.item or (selected and CONTENT not in selected):
        yield encoded
        return
    yield encoded[:-1] + b',"contentBytes":"'
    yield from _base64_of(attachment)
    yield b'"}'


def attachment_json(attachment: AttachmentFacts, *, modified_us: int) -> dict[str, Any]:
    """Return an attachment's JSON without contentBytes and item."""
    kind = "itemAttachment" if attachment.item else "fileAttachment"
    resource: dict[str, Any] = {
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
        return resource
    return resource | {"contentId": attachment.content_id or None, "contentLocation": None}


def content_of(attachment: AttachedOctets) -> Iterator[bytes]:
    """Yield the decoded content."""
    return decoded_blocks(attachment.octets, attachment.encoding)


def json_stream_response(
    pieces: Iterator[bytes],
    size_bytes: int,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    turn: Turn = nullcontext,
) -> Response:
    """Return a JSON response of about `size_bytes`; over 1 MiB it is read while it is sent.

    Blocks while it reads a small response. A large one waits for each `turn`. Raises OSError.
    """
    fields = {"content-type": "application/json", **(headers or {})}
    if size_bytes > LARGE_BYTES:
        return StreamedResponse(pieces, status=status, headers=fields, turn=turn)
    return Response(b"".join(pieces), status_code=status, headers=fields)


def _base64_of(attachment: AttachedOctets) -> Iterator[bytes]:
    held = b""
    for block in content_of(attachment):
        held += block
        end = len(held) // 3 * 3
        yield b64encode(held[:end])
        held = held[end:]
    yield b64encode(held)


def _item_pieces(opened: OpenedMessage, octets: Octets, items: _Items) -> Iterator[bytes]:
    """Yield the JSON of an attached message, as if it were a stored one without an id.

    If it has no Date, its times are those at which the message around it arrived.
    """
    read = read_mime(octets)
    date_us = opened.message.received_us if read.date_us is None else read.date_us
    message = StoredMessage(
        id="",
        folder=_NO_FOLDER,
        path=_NO_FOLDER.path,
        properties=read.properties,
        attachments=read.attachments,
        is_draft=False,
        is_read=True,
        size=octets.size,
        created_us=date_us,
        modified_us=date_us,
        sent_us=date_us,
        received_us=date_us,
        change_key="",
    )
    resource = {"@odata.type": "#microsoft.graph.message", **message_json(message)}
    convert_body(resource, items.body_type)
    attachments = [
        replace(attached, facts=replace(attached.facts, id=str(number)))
        for number, attached in enumerate(read_parts(octets).attachments)
    ]
    item = OpenedMessage(message, tuple(attachments), octets)
    yield msgspec.json.encode(resource)[:-1] + b',"attachments":'
    yield from _array_pieces(item, attachments, items=items)
    yield b"}"
