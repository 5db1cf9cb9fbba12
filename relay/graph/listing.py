"""Collections: a page of messages or folders, how many there are, and the link to the next page.

On the path: the routes of messages and mailFolders end here for GET; the index has the messages.
Holds: following @odata.nextLink gives every item that stays in the list once, whatever comes in
meanwhile; the link carries every option on.
Fails: ApiError 400 for an option that makes no sense, and for a page that is known no more.
Standards: Graph's paging (absolute @odata.nextLink); OData 4.01 Protocol 8.2.8.5 (maxpagesize).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from relay.graph.expand import parse_expand
from relay.graph.odata import (
    message_condition,
    message_order,
    search_condition,
    select_folders,
)
from relay.graph.options import Options, parse_options
from relay.graph.prefer import page_size, preferences
from relay.graph.show import FOLDER_PROPERTIES, MESSAGE_PROPERTIES, show_folder, show_message
from relay.graph.visit import Visit
from relay.http.errors import ApiError
from relay.http.gateway import json_response
from relay.mailbox.query import NEWEST_FIRST, AllOf, Condition, MessageQuery
from relay.mailbox.types import Folder, Page, QueryTooLongError, StalePositionError

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
