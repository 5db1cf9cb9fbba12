"""An HTTP server around one handler, and clients that send exact octets."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.responses import Response

from relay.base.certificates import ServerCertificate
from relay.base.socket_address import Address
from relay.front_door.http.connection_limits import ConnectionLimits
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import HttpRequest, RequestLimits
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.protocol import AllowedHosts
from relay.front_door.http.responses import json_response
from relay.front_door.http.tunnels import TunnelHosts
from tests.support.manual_clock import ManualClock

ANY_PORT = Address("127.0.0.1", 0)
LIMIT = 200_000


async def echo(call: HttpRequest) -> Response:
    """Respond with what was received."""
    body = await call.body()
    return json_response({"method": call.method, "path": list(call.segments), "size": len(body)})


@asynccontextmanager
async def serving(
    handler: Callable[[HttpRequest], Awaitable[Response]] = echo,
    *addresses: Address,
    connection_limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - it is frozen
    hosts: AllowedHosts | None = None,
    certificate: ServerCertificate | None = None,
    tunnel_hosts: TunnelHosts | None = None,
    **limits: float,
) -> AsyncIterator[HttpServer]:
    """Serve inside the with block; `limits` are those of the gateway."""
    chosen = {"body_bytes": LIMIT, "held_bytes": LIMIT * 4} | limits
    app = Gateway(handler, clock=ManualClock(), limits=RequestLimits(**chosen))  # type: ignore[arg-type]
    server = HttpServer(
        app,
        addresses or [ANY_PORT],
        clock=ManualClock(),
        limits=connection_limits,
        hosts=hosts,
        certificate=certificate,
        tunnel_hosts=tunnel_hosts,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0.5)


async def talk(server: HttpServer, *pieces: bytes, source: str = "") -> bytes:
    """Send pieces on one connection; return everything until the server closes it."""
    address = server.bound[0]
    reader, writer = await asyncio.open_connection(
        address.host, address.port, local_addr=(source, 0) if source else None
    )
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 120)
    finally:
        writer.close()


async def in_turn(server: HttpServer, *requests: bytes, cut: int | None = None) -> bytes:
    """Send each request on one connection when the one before was answered, in two pieces if there
    is a `cut`; return the answers.
    """
    address = server.bound[0]
    reader, writer = await asyncio.open_connection(address.host, address.port)
    answers = b""
    try:
        for one in requests:
            for piece in [one] if cut is None else [one[:cut], one[cut:]]:
                writer.write(piece)
                await asyncio.sleep(0)
            async with asyncio.timeout(120):
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.partition(b"content-length: ")[2].split()[0])
                answers += head + await reader.readexactly(size)
    finally:
        writer.close()
    return answers


def request(body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """Return a POST with these header fields, which ends the connection."""
    size = len(body) if length is None else length
    lines = ["POST /x HTTP/1.1", "Host: h", "Connection: close", f"Content-Length: {size}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def status_of(answer: bytes) -> int:
    """Return the status of a response."""
    return int(answer.split(b" ", 2)[1])


def code_of(answer: bytes) -> str:
    """Return the code in the envelope of an error."""
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])
