"""The attachments of one message: listed, read, added, removed, and uploads begun.

On the path: step 1 for drafts; everything else reads what the store has.
Holds: a 201 is durable; of a large attachment a block is in memory.
Fails: ApiError for what cannot be read; the store's refusals.
Standards: Graph's attachment resource type, and its createUploadSession.
"""

import asyncio
from collections.abc import Iterator
from itertools import chain
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from relay.graph.attachments.read import read_attachment, read_upload
from relay.graph.attachments.show import (
    ATTACHMENT_PROPERTIES,
    CONTENT,
    attachment_pieces,
    content_of,
    json_answer,
    json_pieces,
)
from relay.graph.expand import Expand
from relay.graph.options import TOP_MAX, Options, parse_options
from relay.graph.parameters import read_parameters
from relay.graph.parse import read_item
from relay.graph.show import graph_date, show_message
from relay.graph.values import json_object, missing
from relay.graph.visit import Visit
from relay.http.errors import ApiError, shown
from relay.http.gateway import json_response
from relay.http.streamed import StreamedResponse
from relay.mailbox.attachments import found_attachment
from relay.mailbox.types import OpenAttachment, Opened

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


async def _opened(visit: Visit) -> Opened:
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


def _url(visit: Visit, opened: Opened) -> str:
    owner = f"{visit.root_url()}/users('{quote(visit.mailbox)}')"
    return f"{owner}/messages('{opened.message.id}')"


def _context(visit: Visit, opened: Opened, rest: str) -> dict[str, Any]:
    owner = f"users('{quote(visit.mailbox)}')"
    return visit.context(f"{owner}/messages('{opened.message.id}')/attachments{rest}")
