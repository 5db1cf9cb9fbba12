"""A WebSocket client, which shows each event and may break the rules."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Event, RejectConnection, Request, TextMessage


@dataclass
class WebSocketClient:
    """`status` is 101, or that of a refusal; send what `wire` makes of an event, or other octets, by `writer`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    wire: WSConnection = field(default_factory=lambda: WSConnection(ConnectionType.CLIENT))
    status: int = 0
    _text: str = ""

    async def event(self) -> Event | None:
        """The next event; None at the end of the connection."""
        async with asyncio.timeout(60):
            while True:
                for event in self.wire.events():
                    return event
                if not (octets := await self.reader.read(65536)):
                    return None
                self.wire.receive_data(octets)

    async def message(self, kind: str) -> Any:
        """The data of the next message of this kind, as Mailpit sends it."""
        async with asyncio.timeout(60):  # others come meanwhile
            while (event := await self.event()) is not None:
                if isinstance(event, TextMessage):
                    self._text += event.data
                    if event.message_finished:
                        found, self._text = json.loads(self._text), ""
                        if found["Type"] == kind:
                            return found["Data"]
        raise AssertionError("the connection has ended")


@asynccontextmanager
async def web_socket(
    host: str, port: int, target: str = "/api/events", **fields: str
) -> AsyncIterator[WebSocketClient]:
    """Offer a WebSocket; close the connection at the end."""
    reader, writer = await asyncio.open_connection(host, port)
    client = WebSocketClient(reader, writer)
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    asked = Request(
        host=named.pop("Host", f"{host}:{port}"),
        target=target,
        extra_headers=[(name.encode(), value.encode()) for name, value in named.items()],
    )
    try:
        writer.write(client.wire.send(asked))
        answer = await client.event()
        assert isinstance(answer, AcceptConnection | RejectConnection), answer
        client.status = getattr(answer, "status_code", 101)
        yield client
    finally:
        writer.close()
