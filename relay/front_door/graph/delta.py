"""Delta queries of messages: a list page by page, then only what has changed.

A round ends with a deltaLink, which begins the next one. The first round lists the folder; the
position in the change feed is read before the list, so the second round has the changes made
meanwhile. A link's token has the query options of the first request, as in Graph, and belongs to
one collection of one mailbox. If the changes after a token are no longer kept, the answer is 410
with a Location that starts a first round (Graph's delta query overview).
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct
from starlette.responses import Response

from relay.front_door.graph import errors
from relay.front_door.graph.attachments import ATTACHMENT_PROPERTIES
from relay.front_door.graph.extended_properties import parse_expand
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.message_pages import MessageItem, MessagePage
from relay.front_door.graph.odata.resources import message_condition
from relay.front_door.graph.query_options import QueryOptions
from relay.front_door.graph.serializer import MESSAGE_PROPERTIES, extent_of
from relay.front_door.http.errors import ApiError, bad_request, quoted, service_unavailable
from relay.store.mailbox import query as queries
from relay.store.mailbox.changes import ChangeKind, MessageDelta
from relay.store.mailbox.errors import QueryTooLongError, StalePositionError

TOKEN_CHARACTERS_MAX = 8192
_LATEST = "latest"
_CHANGE_TYPE = "changetype"
_ALLOWED = ("select", "expand", "filter", "orderby", "top", _CHANGE_TYPE)
_TOKENS = ("skiptoken", "deltatoken")
_KINDS = {
    "": queries.EVERY_CHANGE,
    "created": frozenset({ChangeKind.CREATED}),
    "updated": frozenset({ChangeKind.UPDATED}),
    "deleted": frozenset({ChangeKind.MOVED, ChangeKind.DELETED}),
}
_RETRY_S = 10
_Result = TypeVar("_Result")


async def list_message_changes(request: GraphRequest) -> Response:
    """GET messages/delta, in a folder or in the whole mailbox."""
    delta = read_delta_request(request)
    options = delta.options
    kinds = _kinds(delta.option_texts.get(_CHANGE_TYPE, ""))
    condition, received_from_us = _read_filter(options.filter)
    if options.orderby is not None:
        _check_order(options.orderby)
    expand = parse_expand(options.expand, of_attachments=ATTACHMENT_PROPERTIES)
    position, page = delta.link.position, delta.link.page

    async def respond(
        items: Sequence[MessageItem], links: tuple[str, str], link_after: Callable[[int], str]
    ) -> Response:
        message_page = MessagePage(
            delta.context(),
            items,
            options.select,
            expand,
            link_after=link_after,
            next_link=links[0],
            delta_link=links[1],
        )
        return await message_page.response(request)

    is_listing = bool(page) or not (position or delta.is_latest or ChangeKind.CREATED not in kinds)
    if is_listing or not position:
        # Before the list is read. For its later pages this checks that the feed has the position.
        feed = await delta.answered(
            request.store.lists.changes(request.mailbox, after=position, limit=1)
        )
        position = position or feed.position
    if is_listing:
        listed = queries.MessageQuery(
            request.folder_id,
            condition,
            top=options.top,
            after=page,
            bytes_max=request.page_bytes,
            extent=extent_of(options.select, is_expanded=bool(options.expand)),
        )
        listing = await delta.answered(request.store.lists.query(request.mailbox, listed))
        return await respond(
            listing.messages,
            delta.links(position, listing.next_after),
            lambda count: delta.links(position, listing.positions[count - 1])[0],
        )
    query = queries.DeltaQuery(
        request.folder_id,
        position,
        options.top,
        kinds,
        received_from_us=received_from_us,
        bytes_max=request.page_bytes,
        extent=extent_of(options.select, is_expanded=bool(options.expand)),
    )
    changed = await delta.answered(request.store.lists.delta(request.mailbox, query))
    pairs = [
        (item, change.position) for change in changed.changed for item in _items(request, change)
    ]
    return await respond(
        [item for item, _ in pairs],
        delta.links(changed.position, more=changed.more),
        lambda count: delta.links(pairs[count][1], more=True)[0],
    )


def _items(request: GraphRequest, change: MessageDelta) -> Iterator[MessageItem]:
    """Yield the JSON of a changed message for a page.

    If its id has changed, yield also that the old id is no longer valid.
    """
    shown_id, now = request.shown_id(change.message_id, change.folder_id), change.message
    has_other_id = now is not None and request.shown_id(now.id, now.folder.id) != shown_id
    if now is None or (has_other_id and change.kind is not ChangeKind.CREATED):
        reason = "deleted" if change.kind is ChangeKind.DELETED else "changed"
        yield {"id": shown_id, "@removed": {"reason": reason}}
    if now is not None:
        yield now


def _kinds(change_type: str) -> frozenset[ChangeKind]:
    try:
        return _KINDS[change_type.lower()]
    except KeyError:
        message = f"changeType: found {quoted(change_type)}, expected created, updated or deleted."
        raise bad_request(message) from None


def _read_filter(text: str | None) -> tuple[queries.Condition | None, int]:
    """Return the condition of a $filter, and the earliest time of receipt that matches."""
    if text is None:
        return None, 0
    condition = message_condition(text)
    if (
        isinstance(condition, queries.Compare)
        and condition.property is queries.Property.RECEIVED
        and condition.operator in (queries.Operator.GE, queries.Operator.GT)
    ):
        return condition, int(condition.value) + (condition.operator is queries.Operator.GT)
    expected = "expected receivedDateTime ge TIME or receivedDateTime gt TIME"
    raise errors.FILTER_UNSUPPORTED(f"$filter: found {quoted(text)}, {expected}.")


def _check_order(text: str) -> None:
    if text.lower().split() != ["receiveddatetime", "desc"]:
        expected = "expected receivedDateTime desc"
        raise errors.ORDER_UNSUPPORTED(f"$orderby: found {quoted(text)}, {expected}.")


# -- rounds and their links


class DeltaLink(msgspec.Struct, frozen=True, array_like=True):
    """The content of a token: a collection, the options of the first request, and a position.

    `page` is the next page of the first round, "" in later rounds.
    """

    collection: str
    options: dict[str, str]
    position: str = ""
    page: str = ""

    def token(self) -> str:
        """Return the token. Raises ApiError 400 if the options are too long for one."""
        token = urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise bad_request(
                f"The query options are too long for a token of {TOKEN_CHARACTERS_MAX} characters;"
                " select or expand less."
            )
        return token


_decoder = msgspec.msgpack.Decoder(DeltaLink)


def read_delta_token(text: str) -> DeltaLink:
    """Return the content of a token. Raises ApiError 400 for text that is no token."""
    if len(text) <= TOKEN_CHARACTERS_MAX:
        try:
            octets = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
            return _decoder.decode(octets)
        except (ValueError, RecursionError):
            pass
    raise bad_request(f"The token {quoted(text)} is malformed; use the whole link.")


class DeltaRequest(Struct, frozen=True):
    """A request of a round: its link, and the options of the round."""

    request: GraphRequest
    link: DeltaLink
    options: QueryOptions
    is_latest: bool

    @property
    def option_texts(self) -> Mapping[str, str]:
        """The texts of the options of the first request."""
        return self.link.options

    async def answered(self, operation: Awaitable[_Result]) -> _Result:
        """Await a query of the store. Raises ApiError 410 for a position that is not known."""

        async def query() -> _Result:
            return await operation

        try:
            return await self.request.http.cancel_on_disconnect(query())
        except StalePositionError:
            raise _stale(self.request, self.option_texts) from None
        except QueryTooLongError as error:
            raise service_unavailable(str(error), retry_after_s=_RETRY_S) from error

    def context(self) -> dict[str, Any]:
        """Return the @odata.context of a page."""
        return self.request.context("Collection(message)")

    def links(self, position: str, page: str = "", *, more: bool = False) -> tuple[str, str]:
        """Return (nextLink, "") while the round continues, else ("", deltaLink)."""
        token = DeltaLink(self.link.collection, dict(self.option_texts), position, page).token()
        if page or more:
            return f"{self.request.url()}?$skiptoken={token}", ""
        return "", f"{self.request.url()}?$deltatoken={token}"


def read_delta_request(request: GraphRequest) -> DeltaRequest:
    """Read the token and the options. Raises ApiError 400, and 410 for another's token."""
    collection, names = f"{request.folder_id.lower()}/messages", (*_ALLOWED, *_TOKENS)
    options = request.collection_options(names, MESSAGE_PROPERTIES, "message")
    texts = _texts(request.http.query)
    if options.skiptoken and options.deltatoken:
        raise bad_request("$skiptoken and $deltatoken: give one of them.")
    text = options.skiptoken or options.deltatoken or ""
    is_latest = text.lower() == _LATEST
    link = DeltaLink(collection, texts)
    if text and not is_latest:
        link = read_delta_token(text)
        if link.collection != collection:
            raise _stale(request, texts)
        for name, value in texts.items():
            if link.options.get(name) != value:
                raise bad_request(f"The token has another {quoted(name)}; omit the option.")
        query = [(_spelled(name), value) for name, value in link.options.items()]
        options = request.collection_options(names, MESSAGE_PROPERTIES, "message", query=query)
    return DeltaRequest(request, link, options, is_latest)


def _texts(query: Collection[tuple[str, str]]) -> dict[str, str]:
    texts = {name.removeprefix("$").lower(): value for name, value in query}
    return {name: value for name, value in texts.items() if name in _ALLOWED}


def _spelled(option: str) -> str:
    return "changeType" if option == _CHANGE_TYPE else f"${option}"


def _stale(request: GraphRequest, options: Mapping[str, str]) -> ApiError:
    """Return the 410, with the URL that begins the first round again."""
    query = [(_spelled(name), value) for name, value in options.items()]
    location = request.url()
    if query:
        location += f"?{urlencode(query, safe='$,', quote_via=quote)}"
    message = "The token is too old, or of another folder; begin again with the URL in Location."
    return errors.SYNC_STATE_NOT_FOUND(message, headers={"location": location})
