"""Handlers of the message resource: list, count, create, get, update, delete, move, copy, $value.

A 201 is sent when the change is on disk. Concurrent PATCHes of one mailbox are serialized, so that
none overwrites a field that another one changed. A draft that is being sent is not changed (409).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from msgspec.structs import replace
from starlette.responses import Response

from relay.base.message.extended_properties import (
    ARTICLE_NUMBER,
    FLAG_STATUS,
    MESSAGE_FLAGS,
    MessageRecord,
    merged,
    message_record,
    sets_send_time,
)
from relay.base.message.properties import MessageProperties
from relay.base.phrases import words_in
from relay.base.sliding_window import NOTHING, Reservation
from relay.formats.draft import DraftAttachment
from relay.front_door.graph import errors, strict_profile
from relay.front_door.graph.attachments import (
    ATTACHMENT_PROPERTIES,
    expanded_response,
    open_message,
)
from relay.front_door.graph.entity_tags import etag_field
from relay.front_door.graph.extended_properties import COMPUTED, parse_expand, shown_extended
from relay.front_door.graph.follow_up_flags import changed_flag
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.json_values import (
    check_recipients_count,
    destination_id,
    invalid_value,
    is_same_json,
)
from relay.front_door.graph.message_pages import MessagePage
from relay.front_door.graph.message_parser import (
    ParsedMessage,
    comparable,
    draft_only,
    parse_message,
)
from relay.front_door.graph.mime_body import Amend, receive_in_blocks, receive_mime
from relay.front_door.graph.odata.resources import message_condition, message_order
from relay.front_door.graph.odata.search import search_condition
from relay.front_door.graph.preferred_body import show_preferred_body
from relay.front_door.graph.query_options import QueryOptions
from relay.front_door.graph.send_mail import check_rights, named_in, originators_of, reserve
from relay.front_door.graph.serializer import MESSAGE_PROPERTIES, extent_of
from relay.front_door.http.errors import bad_request, service_unavailable
from relay.front_door.http.responses import content_response, json_response
from relay.store.mailbox.errors import (
    BeingSentError,
    NotADraftError,
    QueryTooLongError,
    StalePositionError,
    StoreError,
)
from relay.store.mailbox.message_state import CONTENT_FIELDS
from relay.store.mailbox.query import NEWEST_FIRST, PAGE_BYTES_MAX, AllOf, Condition, MessageQuery
from relay.store.mailbox.stored_message import MessageChange, Page, StoredMessage
from relay.store.spool.types import SpoolError

_LIST_OPTIONS = words_in("select expand filter search orderby count top skip skiptoken")
_RECEIPT = "relay.read-receipt"  # a preference
_ATTACHMENTS = "attachments"
_ORIGINATORS = {"from", "sender"}
_NOT_A_SCHEDULED_DRAFT = "The message is not a draft; its time of sending cannot be changed."
SLOW_SEARCH = "$search: use fewer words, no * at their ends, or a property such as subject:word"
_OTHER_PROPERTY = "Only a draft's content changes: found another value of an extended property."


async def create_message(request: GraphRequest) -> Response:
    """POST messages: create a draft from JSON or MIME."""
    folder_id = request.folder_id or "drafts"
    if request.is_mime():
        return await create_from_mime(request, folder_id)
    parsed = parse_message(await request.json_object("message", or_mime=True), request.account)
    record = message_record(parsed.properties.extended)
    return await create_draft(
        request, parsed.properties, parsed, folder_id=folder_id, record=record
    )


async def create_draft(
    request: GraphRequest,
    properties: MessageProperties,
    parsed: ParsedMessage,
    *,
    folder_id: str = "drafts",
    kept: Sequence[DraftAttachment] = (),
    record: MessageRecord | None = None,
) -> Response:
    """Create a draft. `parsed` has isRead, flag and inferenceClassification; attachments may come
    from another message.

    With a `record`, create a message that was received or sent.
    """
    check_recipients_count(properties)
    messages, mailbox = request.store.messages, request.mailbox
    if record is None:
        named = request.named(properties)
        created = await messages.create(mailbox, named, folder_id=folder_id, kept=kept)
    else:
        created = await messages.record(mailbox, properties, record, folder_id=folder_id)
    change = _change(request, created, replace(parsed, fields={}))
    if change != MessageChange():
        created = await messages.update(request.mailbox, created.id, change)
    return message_response(request, created)


async def create_from_mime(
    request: GraphRequest, folder_id: str, amend: Amend | None = None
) -> Response:
    """Create a draft from MIME; `amend` may add fields to its header."""
    store, mailbox = request.store, request.mailbox
    async with receive_mime(request, amend=amend) as mime:
        if mime.rest is None:
            created = await store.messages.create(mailbox, mime.content, folder_id=folder_id)
            return message_response(request, created)
        size = mime.expected_bytes
        async with await store.arrivals.draft(mailbox, folder_id, expected_bytes=size) as arrival:
            await mime.write_to(arrival)
            return message_response(request, await arrival.finish())


async def get_message(request: GraphRequest) -> Response:
    """GET one message."""
    options = request.options({"select", "expand"}, MESSAGE_PROPERTIES, "message")
    expand = parse_expand(options.expand, of_attachments=ATTACHMENT_PROPERTIES)
    if ARTICLE_NUMBER in expand.single:
        await request.store.lists.number(request.mailbox, [request.message_id])
    opened = None if expand.attachments is None else await open_message(request)
    message = opened.message if opened else await request.find_message()
    if unchanged := request.not_modified(message.change_key):
        return unchanged
    resource = request.context(messages_context(request) + "/$entity")
    resource |= request.message_json(message, options.select) | expand.to_json(message)
    await show_preferred_body(request, resource)
    if opened and expand.attachments:
        return await expanded_response(request, resource, opened, options=expand.attachments)
    return json_response(resource, headers=etag_field(message.change_key))


async def change_message(request: GraphRequest) -> Response:
    """PATCH: replace the properties that the JSON gives."""
    body = await request.json_object("message")
    if request.is_strict:
        strict_profile.check_changes(body)
    async with request.patch_lock, request.draft_lock:
        before = await request.find_message()
        if request.is_strict and before.is_draft:
            body.pop(_ATTACHMENTS, None)  # as Graph, which leaves a draft's as they are
        condition = request.condition
        condition.check_version(before.change_key)
        changes = await _without_unchanged(request, body, before)
        parsed = parse_message(changes, request.account, patch=True)
        change = _change(request, before, parsed)
        changed = before
        if before.is_draft or change != MessageChange():  # 409 for a draft that is being sent
            with await _added_recipients(request, before, change) as counted:
                try:
                    changed = await request.store.messages.update(
                        request.mailbox, before.id, change, condition=condition
                    )
                except NotADraftError as error:
                    if (await request.find_message()).is_draft:
                        raise
                    # The draft was sent meanwhile.
                    raise BeingSentError(_NOT_A_SCHEDULED_DRAFT) from error
                if counted is not NOTHING:
                    counted.keep()
                    usage = request.dependencies.usage
                    usage.scheduled(changed.id, named_in(changed.properties))
    if parsed.is_read and not changed.is_draft:
        await _send_receipt(request, changed)
    return message_response(request, changed, is_new=False)


async def _added_recipients(
    request: GraphRequest, before: StoredMessage, change: MessageChange
) -> Reservation:
    """Count the recipients that a change adds to a scheduled send, as if it were a message. Raises
    ApiError 429, 400.
    """
    properties = change.properties
    if properties is None or not sets_send_time(properties.extended):
        return NOTHING
    added = named_in(properties) - named_in(before.properties)
    if added and await request.store.messages.is_scheduled(request.mailbox, before.id):
        return reserve(request, added)
    return NOTHING


async def _send_receipt(request: GraphRequest, message: StoredMessage) -> None:
    """Send the read receipt that the sender asked for, if it is due."""
    is_wanted = request.preferences.get(_RECEIPT, "").lower() == "send"
    on_read = request.store.messages.on_read
    try:
        is_sent = await on_read(request.mailbox, [message.id], is_wanted)
    except (SpoolError, StoreError) as error:
        text = "The message is marked as read, but its read receipt cannot be sent now; try again."
        raise service_unavailable(text, retry_after_s=5) from error
    if is_sent and is_wanted:
        request.applied.append(f"{_RECEIPT}=send")


async def get_mime(request: GraphRequest) -> Response:
    """GET $value: return the message as MIME."""
    request.options()
    if request.message_folder_id:
        await request.find_message()
    content = await request.store.messages.mime(request.mailbox, request.message_id)
    return content_response(content, {"content-type": "text/plain"})


async def replace_mime(request: GraphRequest) -> Response:
    """PUT $value: replace the MIME of a draft; the body is base64 or plain MIME."""
    is_base64 = request.is_base64_mime()
    before = await request.find_message()
    arrivals, condition = request.store.arrivals, request.condition
    async with receive_in_blocks(request, is_base64=is_base64) as mime:
        begun = arrivals.replacement(
            request.mailbox, before.id, expected_bytes=mime.expected_bytes, condition=condition
        )
        async with await begun as arrival:
            await mime.write_to(arrival)
            async with request.draft_lock:
                return message_response(request, await arrival.finish(), is_new=False)


async def _without_unchanged(
    request: GraphRequest, changes: Mapping[str, Any], before: StoredMessage
) -> Mapping[str, Any]:
    """Return the properties that change.

    Some clients send all properties of a message after they have changed some; unchanged ones are
    left out. Raises NotADraftError.
    """
    current = {name: MESSAGE_PROPERTIES[name](before) for name in comparable(changes)}
    await show_preferred_body(request, current)
    unchanged = {name for name, value in current.items() if is_same_json(changes[name], value)}
    if before.is_draft and not unchanged.issuperset(_ORIGINATORS & current.keys()):
        unchanged -= _ORIGINATORS  # without `sender`, `from` decides who sends
    if _ids(changes.get(_ATTACHMENTS)) == [attachment.id for attachment in before.attachments]:
        unchanged.add(_ATTACHMENTS)
    left = {name: value for name, value in changes.items() if name not in unchanged}
    if not before.is_draft and (changed := draft_only(left)):
        text = f"Only a draft's content can be changed: found another value of {changed[0]}."
        raise NotADraftError(text)
    return left


def _ids(attachments: object) -> list[object]:
    items = attachments if isinstance(attachments, list) else []
    return [attachment.get("id") if isinstance(attachment, dict) else None for attachment in items]


def _change(request: GraphRequest, before: StoredMessage, parsed: ParsedMessage) -> MessageChange:
    """Return what differs from the message. Raises ApiError, NotADraftError, BeingSentError."""
    state: dict[str, Any] = {}
    flagged = None
    if parsed.is_other is not None and parsed.is_other != before.is_other:
        state["is_other"] = parsed.is_other
    now_us = request.dependencies.clock.time_us()
    flag = changed_flag(before.flag, parsed.flag, now_us=now_us)
    if flag != before.flag:
        flagged = flag.status == "flagged"
        state["is_complete"] = flag.status == "complete"
        state |= {"start_us": flag.start_us, "due_us": flag.due_us}
        state["completed_us"] = flag.completed_us
    fields = _changed_fields(before, parsed.fields)
    # A time of sending may count from now, so setting it again has an effect.
    sets_time = sets_send_time(parsed.fields.get("extended", ()))
    properties = None
    if before.is_draft and (fields or sets_time):
        properties = request.named(replace(before.properties, **fields))
        check_recipients_count(properties)
        if sets_send_time(properties.extended):  # it may be scheduled: then this is sent
            check_rights(originators_of(properties), request.account)
    elif sets_time:
        raise BeingSentError(_NOT_A_SCHEDULED_DRAFT)
    elif not fields.keys() <= set(CONTENT_FIELDS):
        raise NotADraftError(_OTHER_PROPERTY)
    else:
        state |= fields
    is_read = None if parsed.is_read == before.is_read else parsed.is_read
    return MessageChange(properties, is_read=is_read, flagged=flagged, state=state)


def _changed_fields(before: StoredMessage, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of MessageProperties whose values differ from the message's.

    Raises NotADraftError.
    """
    fields = dict(changes)
    if "extended" in fields:
        current = shown_extended(before, [extended.id for extended in fields["extended"]])
        changed = [extended for extended in fields["extended"] if extended not in current]
        for extended in changed if before.is_draft else ():
            if extended.id == MESSAGE_FLAGS and message_record((extended,)) is not None:
                raise invalid_value(
                    MESSAGE_FLAGS, extended.values[0], "a draft's flags, with the bit 8"
                )
        ids = {extended.id for extended in changed} - {FLAG_STATUS}  # it is the message's flag
        if not (before.is_draft or ids.isdisjoint(COMPUTED)):
            raise NotADraftError(_OTHER_PROPERTY)
        fields["extended"] = merged(before.properties.extended, changed)
    pairs = fields.items()
    return {name: value for name, value in pairs if value != getattr(before.properties, name)}


def message_response(
    request: GraphRequest, message: StoredMessage, *, is_new: bool = True
) -> Response:
    """Return the response to a change of a message, or to its creation."""
    resource = request.message_json(message)
    return request.changed(
        f"messages/{resource['id']}",
        f"{messages_context(request)}/$entity",
        resource,
        is_new=is_new,
        change_key=message.change_key,
    )


async def move_message(request: GraphRequest, *, as_copy: bool = False) -> Response:
    """POST move: move a message to another folder; it keeps its immutable id. With `as_copy`, POST
    copy: the copy has a new id.
    """
    destination = destination_id(await request.json_object(), "copy" if as_copy else "move")
    messages = request.store.messages
    change = messages.copy if as_copy else messages.move
    message = await change(
        request.mailbox, request.message_id, destination, condition=request.condition
    )
    return message_response(request, message)


copy_message = partial(move_message, as_copy=True)


async def delete_message(request: GraphRequest, *, permanently: bool = False) -> Response:
    """DELETE: move to Deleted Items; delete permanently if the message is there already."""
    mailbox, message_id, condition = request.mailbox, request.message_id, request.condition
    await request.store.messages.delete(
        mailbox, message_id, condition=condition, permanently=permanently
    )
    return Response(status_code=204)


# The handler of POST permanentDelete: in any folder.
remove_message = partial(delete_message, permanently=True)


# -- lists


async def list_messages(request: GraphRequest) -> Response:
    """GET messages: return a page, newest first unless $orderby is given.

    @odata.nextLink repeats every option. Following it returns each message that stays in the list
    once, even if new mail arrives in between.
    """
    options = request.collection_options(_LIST_OPTIONS, MESSAGE_PROPERTIES, "message")
    if request.is_strict and options.search is not None:
        options = replace(options, count=False)  # as Graph, which does not count hits
    expand = parse_expand(options.expand, of_attachments=ATTACHMENT_PROPERTIES)
    listing = await _query(request, options)

    def link_after(count: int) -> str:
        return link_to(listing.positions[count - 1])

    def link_to(position: str) -> str:
        return options.next_link(request.url(), skiptoken=position)

    page = MessagePage(
        request.context(messages_context(request)),
        listing.messages,
        options.select,
        expand,
        link_after=link_after,
        total=listing.total,
        next_link=link_to(listing.next_after) if listing.next_after else "",
    )
    return await page.response(request)


async def count_messages(request: GraphRequest) -> Response:
    """GET $count: return the number of messages as text."""
    options = request.options({"filter", "search"})
    options = QueryOptions(("id",), None, options.filter, options.search, top=1, count=True)
    page = await _query(request, options)
    return Response(str(page.total), headers={"content-type": "text/plain"})


def messages_context(request: GraphRequest) -> str:
    """Return the @odata.context fragment of the messages that the path names."""
    if request.folder_id:
        return f"{request.owner}/mailFolders('{quote(request.folder_id)}')/messages"
    return f"{request.owner}/messages"


def message_query(
    options: QueryOptions, folder_id: str, *, now_us: int, bytes_max: int = PAGE_BYTES_MAX
) -> MessageQuery:
    """Translate the query options into a query of the mailbox index. Raises ApiError 400."""
    conditions: list[Condition] = []
    if options.filter is not None:
        conditions.append(message_condition(options.filter))
    if options.search is not None:
        conditions.append(search_condition(options.search, now_us=now_us))
    return MessageQuery(
        folder_id=folder_id,
        condition=AllOf(tuple(conditions)) if len(conditions) > 1 else next(iter(conditions), None),
        order=NEWEST_FIRST if options.orderby is None else message_order(options.orderby),
        skip=options.skip,
        top=options.top,
        after=options.skiptoken,
        count=options.count,
        bytes_max=bytes_max,
        extent=extent_of(options.select, is_expanded=bool(options.expand)),
    )


async def _query(request: GraphRequest, options: QueryOptions) -> Page:
    now_us = request.dependencies.clock.time_us()
    query = message_query(options, request.folder_id, now_us=now_us, bytes_max=request.page_bytes)
    return await find_page(request, query, _hint(options))


async def find_page(request: GraphRequest, query: MessageQuery, hint: str) -> Page:
    """Return a page; `hint` is the advice in the error for a query that takes too long. Raises
    ApiError 400.
    """
    try:
        return await request.http.cancel_on_disconnect(
            request.store.lists.query(request.mailbox, query)
        )
    except StalePositionError as error:
        message = "$skiptoken: it is invalid or has expired; start again without it."
        raise bad_request(message) from error
    except QueryTooLongError as error:  # not 503: clients would repeat the query
        raise errors.TOO_COMPLEX(f"{hint} ({error}).") from error


def _hint(options: QueryOptions) -> str:
    """Return advice that makes the query faster."""
    if options.search is not None:
        return SLOW_SEARCH
    if options.filter is not None:
        return "$filter: prefer eq and startswith, or add receivedDateTime ge with a time"
    return "$orderby: order by receivedDateTime, or add a $filter"
