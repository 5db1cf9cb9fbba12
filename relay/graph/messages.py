"""Messages: create, get, change, delete, and the MIME of one.

On the path: step 1 for drafts; everything else reads or changes what the store has.
Holds: a 201 is durable; two changes of one mailbox's drafts never lose each other's fields.
Fails: ApiError for what cannot be read; the store's refusals.
Standards: Graph's message resource type.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from relay.graph.attachments import ATTACHMENT_PROPERTIES, get_with_attachments
from relay.graph.extended_properties import parse_expand
from relay.graph.graph_request import Visit
from relay.graph.json_values import destination_id, json_object
from relay.graph.message_parser import ParsedMessage, parse_message
from relay.graph.mime_body import Ways, take_in_blocks, take_mime
from relay.graph.odata import (
    message_condition,
    message_order,
    search_condition,
    select_folders,
)
from relay.graph.query_options import Options, page_size, parse_options, preferences
from relay.graph.recipients import check_recipients_count
from relay.graph.serializer import (
    FOLDER_PROPERTIES,
    MESSAGE_PROPERTIES,
    USER_PROPERTIES,
    show_folder,
    show_message,
    show_user,
)
from relay.http.errors import ApiError
from relay.http.gateway import StreamedResponse, json_response
from relay.mailbox.query import NEWEST_FIRST, AllOf, Condition, MessageQuery
from relay.mailbox.types import (
    BeingSentError,
    Folder,
    MessageChange,
    NotADraftError,
    Page,
    QueryTooLongError,
    StalePositionError,
    StoredMessage,
)
from relay.message.content import blocks
from relay.message.extended import merged, names_time_of_sending

_OF_MESSAGES = (
    *("select", "expand", "filter", "search", "orderby", "count", "top", "skip", "skiptoken"),
)
_OF_FOLDERS = ("select", "filter", "orderby", "count", "top", "skip")


async def list_messages(visit: Visit) -> Response:
    """GET a page of messages: newest first, unless $orderby says otherwise."""
    asked = _asked(visit, _OF_MESSAGES, MESSAGE_PROPERTIES)
    options = asked.options
    expand = parse_expand(options.expand)
    page = await _query(visit, options)
    shown = [show_message(one, options.select) | expand.show(one) for one in page.messages]
    link = options.next_link(_url(visit), skiptoken=page.next_after) if page.next_after else ""
    context = visit.context(messages_context(visit))
    return asked.answer(context, shown, total=page.total, next_link=link)


async def count_messages(visit: Visit) -> Response:
    """GET $count: how many messages there are, as text."""
    options = visit.options({"filter", "search"})
    options = Options(filter=options.filter, search=options.search, top=1, count=True)
    page = await _query(visit, options)
    return Response(str(page.total), headers={"content-type": "text/plain"})


def list_these_folders(visit: Visit, folders: Sequence[Folder]) -> Response:
    """Answer a GET of mail folders with the page of `folders` that it asks for."""
    asked = _asked(visit, _OF_FOLDERS, FOLDER_PROPERTIES)
    options = asked.options
    chosen = select_folders(folders, filter_=options.filter, orderby=options.orderby)
    page = chosen[options.skip : options.skip + options.top]
    shown = [show_folder(one, options.select) for one in page]
    next_skip = options.skip + len(page)
    is_more = page and next_skip < len(chosen)
    link = options.next_link(_url(visit), skip=next_skip) if is_more else ""
    within = f"('{quote(visit.folder_id)}')/childFolders" if visit.folder_id else ""
    context = visit.context(f"users('{quote(visit.mailbox)}')/mailFolders{within}")
    total = len(chosen) if options.count else None
    return asked.answer(context, shown, total=total, next_link=link)


def messages_context(visit: Visit) -> str:
    """Return what @odata.context says of the messages that the path names."""
    owner = f"users('{quote(visit.mailbox)}')"
    if visit.folder_id:
        return f"{owner}/mailFolders('{quote(visit.folder_id)}')/messages"
    return f"{owner}/messages"


def message_query(options: Options, folder_id: str) -> MessageQuery:
    """Return what options ask of a mailbox. Raises ApiError 400."""
    conditions: list[Condition] = []
    if options.filter is not None:
        conditions.append(message_condition(options.filter))
    if options.search is not None:
        conditions.append(search_condition(options.search))
    return MessageQuery(
        folder_id=folder_id,
        condition=AllOf(tuple(conditions)) if len(conditions) > 1 else next(iter(conditions), None),
        order=NEWEST_FIRST if options.orderby is None else message_order(options.orderby),
        skip=options.skip,
        top=options.top,
        after=options.skiptoken,
        count=options.count,
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options of a list, and what Preference-Applied has to say of the page's size."""

    options: Options
    page_size: int | None

    def answer(
        self,
        context: Mapping[str, Any],
        shown: Sequence[Mapping[str, Any]],
        *,
        total: int | None,
        next_link: str,
    ) -> Response:
        """Return the page; `total` is None where it was not asked for."""
        answer = dict(context)
        if total is not None:
            answer["@odata.count"] = total
        answer["value"] = shown
        if next_link:
            answer["@odata.nextLink"] = next_link
        headers = {}
        if self.page_size is not None:
            headers["preference-applied"] = f"odata.maxpagesize={self.page_size}"
        return json_response(answer, headers=headers)


def _asked(visit: Visit, allowed: Collection[str], known: Collection[str]) -> _Asked:
    preferred = page_size(preferences(visit.call.headers.getlist("prefer")))
    options = parse_options(visit.call.query, allowed=allowed, known=known, page_size=preferred)
    return _Asked(options, preferred)


async def _query(visit: Visit, options: Options) -> Page:
    query = message_query(options, visit.folder_id)
    try:
        return await visit.call.unless_gone(visit.door.store.query_messages(visit.mailbox, query))
    except StalePositionError as error:
        message = "$skiptoken: it says no place in this list, or none any more; begin without it."
        raise ApiError(400, "BadRequest", message) from error
    except QueryTooLongError as error:  # no 503: clients would repeat it, and it would take as long
        raise ApiError(400, "InefficientFilter", f"{_hint(options)} ({error})") from error


def _hint(options: Options) -> str:
    """Return what makes a query shorter."""
    if options.search is not None:
        return (
            "$search: it takes too long. Use fewer words, write words out instead of ending them"
            " in *, or restrict them to a property such as subject:word."
        )
    if options.filter is not None:
        return (
            "$filter: it takes too long. Use fewer comparisons, prefer eq and startswith to"
            " contains and endswith, or add receivedDateTime ge with a time."
        )
    return "$orderby: it takes too long. Order by receivedDateTime, or add a $filter."


def _url(visit: Visit) -> str:
    """Return the request's URL without its query."""
    path = "/".join(quote(segment, safe="@$") for segment in visit.call.segments[1:])
    return f"{visit.root_url()}/{path}"


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


async def move_message(visit: Visit) -> Response:
    """POST move: the message, with the id it had, in another folder."""
    destination = await _destination(visit, "microsoft.graph.move")
    store = visit.door.store
    moved = await store.move_message(
        visit.mailbox, visit.message_id, destination, condition=visit.condition
    )
    return message_answer(visit, moved, status=201)


async def copy_message(visit: Visit) -> Response:
    """POST copy: a message of its own."""
    destination = await _destination(visit, "microsoft.graph.copy")
    store = visit.door.store
    copy = await store.copy_message(
        visit.mailbox, visit.message_id, destination, condition=visit.condition
    )
    return message_answer(visit, copy, status=201)


async def remove_message(visit: Visit) -> Response:
    """POST permanentDelete: for good, wherever it is."""
    visit.options()
    store = visit.door.store
    await store.remove_message(visit.mailbox, visit.message_id, condition=visit.condition)
    return Response(status_code=204)


async def _destination(visit: Visit, action: str) -> str:
    visit.options()
    return destination_id(json_object(await visit.call.body()), action)
