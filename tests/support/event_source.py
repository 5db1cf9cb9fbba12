"""A client of server-sent events that reads the octets of HTTP/1.1 itself."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

PATH = "/relay/v1/events"


@dataclass
class ReceivedEvent:
    """One event; `type` is "message" without an event field."""

    type: str
    id: str
    data: dict[str, Any]


class EventSource:
    """One response; its body must be chunked."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.comments = 0
        self._text = b""

    async def read_head(self) -> None:
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in lines[1:] if line)
        }

    async def read_rest(self) -> bytes:
        """Return the octets up to the end of the connection."""
        return await self._reader.read()

    async def chunk(self) -> bytes:
        """Return the next chunk, b"" at the end."""
        assert self.headers["transfer-encoding"] == "chunked"
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        octets = await self._reader.readexactly(size)
        assert await self._reader.readexactly(2) == b"\r\n"
        return octets

    async def event(self, timeout_s: float = 90) -> ReceivedEvent | None:
        """Return the next event; None at the end of the stream."""
        async with asyncio.timeout(timeout_s):
            while b"\n\n" not in self._text:
                chunk = await self.chunk()
                if not chunk:
                    return None
                self._text += chunk
        block, _, self._text = self._text.partition(b"\n\n")
        fields: dict[str, str] = {}
        for line in block.decode().split("\n"):
            name, _, value = line.partition(": ")
            self.comments += not name or name == ":"
            fields[name] = value
        return ReceivedEvent(
            fields.get("event", "message"), fields.get("id", ""), json.loads(fields["data"])
        )

    async def events(self, count: int) -> list[ReceivedEvent]:
        found = []
        for _ in range(count):
            one = await self.event()
            assert one is not None, f"the stream ended after {len(found)} of {count} events"
            found.append(one)
        return found

    async def until_step(self, step: int) -> list[ReceivedEvent]:
        """Return events up to the first of a step."""
        found: list[ReceivedEvent] = []
        while not found or found[-1].data.get("step") != step:
            found += await self.events(1)
        return found


@asynccontextmanager
async def event_source(
    host: str,
    port: int,
    *,
    token: str = "operator",
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    receive_bytes: int = 0,
) -> AsyncIterator[EventSource]:
    """Open a stream; its head has been read. With `receive_bytes` the client's buffer is small."""
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except OSError:
        sock.close()
        raise
    limit = {"limit": max(receive_bytes, 1024)} if receive_bytes else {}
    reader, writer = await asyncio.open_connection(sock=sock, **limit)
    fields = {"host": host, **({"authorization": f"Bearer {token}"} if token else {})}
    lines = [f"{name}: {value}" for name, value in (fields | dict(headers or {})).items()]
    path = PATH + (f"?{urlencode(query)}" if query else "")
    writer.write("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode())
    source = EventSource(reader, writer)
    try:
        async with asyncio.timeout(90):
            await source.read_head()
        yield source
    finally:
        writer.transport.abort()
