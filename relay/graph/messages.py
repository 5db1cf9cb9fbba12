"""Messages: create, get, change, delete, and the MIME of one.

On the path: step 1 for drafts; everything else reads or changes what the store has.
Holds: a 201 is durable; two changes of one mailbox's drafts never lose each other's fields.
Fails: ApiError for what cannot be read; the store's refusals.
Standards: Graph's message resource type.
"""

import asyncio
from dataclasses import replace
from urllib.parse import quote

from starlette.responses import Response

from relay.graph.attachments.handlers import get_with_attachments
from relay.graph.attachments.show import ATTACHMENT_PROPERTIES
from relay.graph.expand import parse_expand
from relay.graph.listing import messages_context
from relay.graph.mimestream import Ways, take_in_blocks, take_mime
from relay.graph.parse import ParsedMessage, parse_message
from relay.graph.people import check_recipients_count
from relay.graph.show import (
    MESSAGE_PROPERTIES,
    USER_PROPERTIES,
    show_message,
    show_user,
)
from relay.graph.values import json_object
from relay.graph.visit import Visit
from relay.http.gateway import json_response
from relay.http.streamed import StreamedResponse
from relay.mailbox.types import BeingSentError, MessageChange, NotADraftError, StoredMessage
from relay.message.content import blocks
from relay.message.extended import merged, names_time_of_sending

_NO_DRAFT_ANY_MORE = (
    "The message is not a draft: it was sent already, or it was never to be sent. Its time of "
    "sending cannot be changed."
)


async def get_user(visit: Visit) -> Response:
    """GET the account itself."""
    options = visit.options({"select"}, USER_PROPERTIES)
    user = show_user(visit.account, options.select)
    return json_response({**visit.context("users/$entity"), **user})


async def create_message(visit: Visit) -> Response:
    """POST a draft, as JSON or MIME."""
    visit.options()
    store = visit.door.store
    folder_id = visit.folder_id or "drafts"
    if visit.is_mime():
        ways = Ways(
            lambda told: store.create_draft(visit.mailbox, told.content, folder_id=folder_id),
            lambda _, size: store.arrivals.draft(visit.mailbox, folder_id, expected_bytes=size),
        )
        created = (await take_mime(visit, ways)).result
    else:
        parsed = parse_message(json_object(await visit.call.body()), visit.account)
        created = await store.create_draft(visit.mailbox, parsed.properties, folder_id=folder_id)
        if parsed.flagged or parsed.is_read is False:
            change = MessageChange(is_read=parsed.is_read, flagged=parsed.flagged)
            created = await store.update(visit.mailbox, created.id, change)
    location = f"{visit.root_url()}/users/{quote(visit.mailbox)}/messages/{created.id}"
    return message_answer(visit, created, status=201, headers={"location": location})


async def get_message(visit: Visit) -> Response:
    """GET one message."""
    options = visit.options({"select", "expand"}, MESSAGE_PROPERTIES)
    expand = parse_expand(options.expand, of_attachments=ATTACHMENT_PROPERTIES)
    if expand.attachments is not None:
        context = messages_context(visit) + "/$entity"
        return await get_with_attachments(visit, options, expand, context=context)
    found = await found_message(visit)
    shown = show_message(found, options.select) | expand.show(found)
    return json_response({**visit.context(messages_context(visit) + "/$entity"), **shown})


async def change_message(visit: Visit) -> Response:
    """PATCH: what the JSON gives replaces what is there."""
    visit.options()
    parsed = parse_message(json_object(await visit.call.body()), visit.account, patch=True)
    async with visit.door.changing.setdefault(visit.mailbox, asyncio.Lock()):
        before = await found_message(visit)
        condition = visit.condition
        condition.check_version(before.change_key)
        change = _change(before, parsed)
        changed = before
        if change != MessageChange():
            try:
                changed = await visit.door.store.update(
                    visit.mailbox, before.id, change, condition=condition
                )
            except NotADraftError:
                if names_time_of_sending(parsed.fields.get("extended", ())):
                    raise BeingSentError(_NO_DRAFT_ANY_MORE) from None
                raise
    return message_answer(visit, changed, status=200)


async def delete_message(visit: Visit) -> Response:
    """DELETE: to Deleted Items, and from there for good."""
    visit.options()
    store = visit.door.store
    await store.delete(visit.mailbox, visit.message_id, condition=visit.condition)
    return Response(status_code=204)


async def get_mime(visit: Visit) -> Response:
    """GET $value: the message as MIME."""
    visit.options()
    if visit.folder_id:
        await found_message(visit)
    content = await visit.door.store.mime(visit.mailbox, visit.message_id)
    headers = {"content-type": "text/plain"}
    if isinstance(content, bytes):
        return Response(content, headers=headers)
    return StreamedResponse(blocks(content), size_bytes=content.size, headers=headers)


async def replace_mime(visit: Visit) -> Response:
    """PUT $value: other MIME for a draft, in base64 or as it is."""
    visit.options()
    is_coded = visit.is_mime_coded()
    before = await found_message(visit)
    arrivals, condition = visit.door.store.arrivals, visit.condition
    taken = await take_in_blocks(
        visit,
        lambda _, size: arrivals.replacement(
            visit.mailbox, before.id, expected_bytes=size, condition=condition
        ),
        is_coded=is_coded,
    )
    return message_answer(visit, taken.result, status=200)


async def found_message(visit: Visit) -> StoredMessage:
    """Return the message that the path names, if it is in the folder that the path names."""
    return await visit.door.store.get(visit.mailbox, visit.message_id, folder_id=visit.folder_id)


def _change(before: StoredMessage, parsed: ParsedMessage) -> MessageChange:
    properties = None
    if parsed.fields:
        fields = dict(parsed.fields)
        if "extended" in fields:
            fields["extended"] = merged(before.properties.extended, fields["extended"])
        properties = replace(before.properties, **fields)
        check_recipients_count(properties)
    return MessageChange(properties=properties, is_read=parsed.is_read, flagged=parsed.flagged)


def message_answer(
    visit: Visit, message: StoredMessage, *, status: int, headers: dict[str, str] | None = None
) -> Response:
    """Return a message as it is shown after a change."""
    context = visit.context(messages_context(visit) + "/$entity")
    return json_response({**context, **show_message(message)}, status=status, headers=headers)
