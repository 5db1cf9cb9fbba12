"""A page of messages as JSON; expanded attachments are written while their files are read.

Of a page with attachments the ids are in memory, one message, and one block of its files. A
message that was removed meanwhile is left out.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
from starlette.responses import Response

from relay.graph.attachments import json_pieces, json_stream_response
from relay.graph.extended_properties import ExpandOptions
from relay.graph.graph_request import GraphRequest, collection_response
from relay.graph.preferred_bodies import (
    convert_bodies,
    preferred_body_type,
    show_preferred_bodies,
)
from relay.graph.serializer import message_json
from relay.mailbox.types import StoredMessage

MessageItem = StoredMessage | Mapping[str, Any]  # a message, or the JSON of something else


@dataclass(frozen=True, slots=True)
class MessagePage:
    """A page of a list of messages. `links` are its @odata.nextLink or @odata.deltaLink."""

    context: Mapping[str, Any]
    items: Sequence[MessageItem]
    select: tuple[str, ...]
    expand: ExpandOptions
    total: int | None = None
    next_link: str = ""
    delta_link: str = ""

    async def response(self, request: GraphRequest) -> Response:
        """Return the response."""
        if self.expand.attachments is None:
            shown = [
                self._json(one) if isinstance(one, StoredMessage) else dict(one)
                for one in self.items
            ]
            await show_preferred_bodies(request, shown)
            return self._around(shown)
        body_type = preferred_body_type(request)
        size_bytes = sum(one.size for one in self.items if isinstance(one, StoredMessage))
        # The messages of the page are not kept while the client reads it.
        items = [one.id if isinstance(one, StoredMessage) else one for one in self.items]
        head, opening, tail = bytes(self._around([]).body).partition(b'"value":[')
        pieces = self._pieces(request, items, body_type)
        pieces = chain((head + opening,), pieces, (tail,))
        return await asyncio.to_thread(json_stream_response, pieces, size_bytes * 4 // 3)

    def _around(self, items: Sequence[Mapping[str, Any]]) -> Response:
        return collection_response(
            self.context,
            items,
            total=self.total,
            next_link=self.next_link,
            delta_link=self.delta_link,
        )

    def _json(self, message: StoredMessage) -> dict[str, Any]:
        return message_json(message, self.select) | self.expand.to_json(message)

    def _pieces(
        self, request: GraphRequest, items: Sequence[str | Mapping[str, Any]], body_type: str
    ) -> Iterator[bytes]:
        """Yield the items; of messages only the ids are given. Blocks; raises OSError."""
        attachments = request.dependencies.store.attachments
        separator = b""
        for item in items:
            if not isinstance(item, str):
                yield separator + msgspec.json.encode(item)
            elif opened := attachments.open_if_there(
                request.mailbox, item, folder_id=request.folder_id
            ):
                shown = self._json(opened.message)
                if body_type:
                    convert_bodies((shown,), body_type)
                yield separator + msgspec.json.encode(shown)[:-1] + b',"attachments":'
                select = self.expand.attachments or ()
                yield from json_pieces(opened, opened.attachments, select=select)
                yield b"}"
            else:
                continue
            separator = b","
