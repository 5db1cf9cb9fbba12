"""A page of messages as JSON; expanded attachments are written while their files are read.

A page ends early, with an @odata.nextLink, before the message that would make it too large. The
first message may have any size, also if an @removed precedes it: both may be of the same message,
and after a page that ended between them the next page would be the same again. Of a page with
attachments, memory holds the ids, one message, and one block of a file. A message that was removed
meanwhile is left out.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from relay.base.message.extended_properties import ARTICLE_NUMBER
from relay.front_door.graph.attachments import (
    expanded,
    json_stream_response,
    message_pieces,
    shows_content,
)
from relay.front_door.graph.extended_properties import ExpandOptions
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.preferred_body import convert_body, preferred_body_type, show_body_as
from relay.front_door.graph.query_options import QueryOptions
from relay.front_door.graph.responses import collection_response
from relay.front_door.graph.serializer import extent_of
from relay.store.mailbox.stored_message import StoredMessage

MessageItem = StoredMessage | Mapping[str, Any]  # a message, or the JSON of something else
_ATTACHMENT_BYTES = 1024  # octets of JSON without content and texts
_ESCAPED_BYTES = 6  # octets of a character in JSON, at most


class MessagePage(Struct, frozen=True):
    """A page of a list of messages."""

    context: Mapping[str, Any]  # the properties before `value`, such as @odata.context
    items: Sequence[MessageItem]  # the messages of the page
    select: tuple[str, ...]  # properties to return; empty: all
    expand: ExpandOptions  # what else to return with each message
    # returns the @odata.nextLink of a page that ends after this number of items
    link_after: Callable[[int], str]
    total: int | None = None  # @odata.count, if it was requested
    next_link: str = ""  # @odata.nextLink; "": the last page
    delta_link: str = ""  # @odata.deltaLink of the last page of a delta query

    async def response(self, request: GraphRequest) -> Response:
        """Return the response."""
        left_bytes = request.page_bytes - len(self._around((), ends_after=1).body)
        body_type = preferred_body_type(request)
        items = self.items
        if ARTICLE_NUMBER in self.expand.single:
            new = [
                message.id
                for message in items
                if isinstance(message, StoredMessage) and not message.article
            ]
            known = await request.store.lists.number(request.mailbox, new) if new else {}
            items = [
                _numbered(message, known) if isinstance(message, StoredMessage) else message
                for message in items
            ]
        if self.expand.attachments is None:
            return await self._in_memory(request, items, left_bytes)
        # An invalid $filter is an error before the first octet.
        expanded((), self.expand.attachments)
        size_bytes, count = 0, 0
        for message in self.items:
            item_bytes = self._expanded_bytes(request, message)
            if count > isinstance(items[0], Mapping) and size_bytes + item_bytes > left_bytes:
                break
            size_bytes, count = size_bytes + item_bytes, count + 1
        # The messages of the page are not kept while the client reads it.
        read = [
            message.id if isinstance(message, StoredMessage) else message
            for message in items[:count]
        ]
        around = bytes(self._around((), ends_after=count).body)
        head, opening, tail = around.partition(b'"value":[')
        pieces = self._pieces(request, read, body_type)
        pieces = chain((head + opening,), pieces, (tail,))
        turn = request.conversion_turn if body_type else nullcontext
        async with turn():  # a small page is read, with its conversions
            return await asyncio.to_thread(json_stream_response, pieces, size_bytes, turn=turn)

    async def _in_memory(
        self, request: GraphRequest, items: Sequence[MessageItem], left_bytes: int
    ) -> Response:
        encoded: list[msgspec.Raw] = []
        body_type = preferred_body_type(request)
        for message in items:
            if isinstance(message, StoredMessage):
                resource = self._json(request, message)
            else:
                resource = dict(message)
            await show_body_as(request, resource, body_type)
            octets = msgspec.json.encode(resource)
            left_bytes -= len(octets) + 1
            if len(encoded) > isinstance(items[0], Mapping) and left_bytes < 0:
                break
            encoded.append(msgspec.Raw(octets))
        return self._around(encoded, ends_after=len(encoded))

    def _around(self, items: Sequence[Any], *, ends_after: int) -> Response:
        is_cut = ends_after < len(self.items)
        return collection_response(
            self.context,
            items,
            total=self.total,
            next_link=self.link_after(ends_after) if is_cut else self.next_link,
            delta_link="" if is_cut else self.delta_link,
        )

    def _json(self, request: GraphRequest, message: StoredMessage) -> dict[str, Any]:
        return request.message_json(message, self.select) | self.expand.to_json(message)

    def _expanded_bytes(self, request: GraphRequest, item: MessageItem) -> int:
        """Estimate the JSON of an item with its attachments."""
        if not isinstance(item, StoredMessage):
            return len(msgspec.json.encode(item))
        options = self.expand.attachments or QueryOptions()
        has_content = shows_content(options.select)
        size_bytes = len(msgspec.json.encode(self._json(request, item)))
        if options.top < len(item.attachments):
            size_bytes += len(options.next_link(""))
        for attachment in item.attachments:
            texts = len(attachment.name) + len(attachment.content_type) + len(attachment.content_id)
            size_bytes += _ATTACHMENT_BYTES + _ESCAPED_BYTES * texts
            size_bytes += attachment.size * 4 // 3 if has_content else 0
        return size_bytes

    def _pieces(
        self, request: GraphRequest, items: Sequence[str | Mapping[str, Any]], body_type: str
    ) -> Iterator[bytes]:
        """Yield the items as JSON; messages are read by their ids. Blocks; raises OSError."""
        attachments = request.store.attachments
        separator = b""
        for item in items:
            if not isinstance(item, str):
                yield separator + msgspec.json.encode(item)
            elif opened := attachments.open_if_there(
                request.mailbox,
                item,
                folder_id=request.folder_id,
                extent=extent_of(self.select, is_expanded=bool(self.expand.single)),
            ):
                resource = self._json(request, opened.message)
                convert_body(resource, body_type)
                yield separator
                options = self.expand.attachments or QueryOptions()
                yield from message_pieces(request, resource, opened, options=options)
            else:
                continue
            separator = b","


def _numbered(message: StoredMessage, numbers: Mapping[tuple[str, str], int]) -> StoredMessage:
    """Return a message with its article number, which may just have been given to it."""
    number = numbers.get((message.folder.id, message.id), 0)
    return replace(message, article=message.article or number)
