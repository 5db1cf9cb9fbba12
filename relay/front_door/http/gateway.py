"""The ASGI application around a room's handler: request ids, limits, responses, prefix routing.

Each response has request-id, client-request-id and date; each error Graph's envelope. An unexpected
exception is logged under its request id and answered with 500. If the outcome of a request is
unknown, the connection is closed without a response.

Server-sent events (HTML, 9.2) are sent as their blocks come, until an end. A silent stream sends a
comment from time to time, so that proxies and clients keep it open. A client that does not take
what was sent is cut off: nothing is buffered for it but one piece.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import nullcontext
from email.utils import formatdate
from functools import partial
from typing import Any
from urllib.parse import unquote

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.base.clock import Clock, Ids, rfc3339
from relay.base.observe.logs import get_logger
from relay.base.pressure import MemoryBudget
from relay.front_door.http.errors import (
    ApiError,
    RequestIds,
    UnansweredError,
    error_body,
    service_unavailable,
)
from relay.front_door.http.http_request import (
    ABORT,
    ALLOW_RESPONSE,
    SMALL_LIMITS,
    ClientDisconnectedError,
    HttpRequest,
    RequestLimits,
    raw_path,
)

BLOCK_BYTES = 64 * 1024
# Sending this waits until the client has read most of what was sent before.
EMPTY_CHUNK = {"type": "http.response.body", "body": b"", "more_body": True}
_LAST_CHUNK = {"type": "http.response.body", "body": b""}
HEARTBEAT_S = 15.0
TAKE_TIMEOUT_S = 10.0  # for one piece
_PIECE_BYTES = 64 * 1024
# A comment without an empty line after it, at which some clients would report an event.
_HEARTBEAT = b":\n"
_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx would collect the events
}


class BodyOnDemand(ABC, Response):
    """A response whose body is made while it is sent; with HEAD it is not begun."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response (ASGI)."""
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)
        if scope["method"] == "HEAD":
            await send(_LAST_CHUNK)
            return
        disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            if await self.send_body(send, disconnected):
                await send(_LAST_CHUNK)
        finally:
            disconnected.cancel()

    @abstractmethod
    async def send_body(self, send: Send, disconnected: asyncio.Future[None]) -> bool:
        """Send the chunks before the last; return False if that must not follow: the body is
        incomplete, or has ended.
        """


class StreamedResponse(BodyOnDemand):
    """A body that is read in a thread while it is sent, one block in memory at a time.

    Without `size_bytes` the transfer is chunked. If reading fails, the connection is closed before
    the end of the body, so that the client detects an incomplete message (RFC 9112 8). `turns`
    limits how many such bodies are read at once; a client that reads slowly holds none.
    """

    def __init__(
        self,
        blocks: Iterable[bytes],
        *,
        status: int = 200,
        size_bytes: int | None = None,
        headers: dict[str, str] | None = None,
        turns: asyncio.Semaphore | None = None,
    ) -> None:
        super().__init__(None, status_code=status, headers=headers)
        self.blocks = blocks
        self._turns = turns
        if size_bytes is None:
            del self.headers["content-length"]
        else:
            self.headers["content-length"] = str(size_bytes)

    async def collect(self, limit_bytes: int) -> bytes | None:
        """Return the body in whole; None if it is longer than `limit_bytes`. Raises OSError."""
        blocks = iter(self.blocks)
        parts: list[bytes] = []
        size_bytes = 0
        while block := await self._read(blocks):
            size_bytes += len(block)
            if size_bytes > limit_bytes:
                return None
            parts.append(block)
        return b"".join(parts)

    async def send_body(self, send: Send, disconnected: asyncio.Future[None]) -> bool:
        """Send block by block. After a failure, the server closes the connection. The last block of
        a known size ends the response: the client's next request may follow it at once.
        """
        blocks, left_bytes = iter(self.blocks), int(self.headers.get("content-length", -1))
        try:
            while (block := await self._read(blocks)) and not disconnected.done():
                left_bytes -= len(block)
                more = bool(left_bytes)
                await send({"type": "http.response.body", "body": block, "more_body": more})
                del block  # a block that was sent is not kept while the client reads
                if not more:
                    return False
                await send(EMPTY_CHUNK)
        except OSError as error:
            _log.warning("response aborted", reason=str(error))
            return False
        return True

    async def _read(self, blocks: Iterator[bytes]) -> bytes:
        async with self._turns or nullcontext():
            return await asyncio.to_thread(_next_block, blocks)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _next_block(blocks: Iterator[bytes]) -> bytes:
    """Return about one block of octets; b"" at the end."""
    pieces: list[bytes] = []
    size_bytes = 0
    while size_bytes < BLOCK_BYTES and (piece := next(blocks, None)) is not None:
        pieces.append(piece)
        size_bytes += len(piece)
    return b"".join(pieces)


_CLIENT_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_STOPPED_RETRY_S = 5
_BUFFERED_BYTES = 16 * 1024  # a response that fits into the buffer of the connection
_TOO_MANY_UNREAD = service_unavailable(
    "Too many responses wait until their clients read them.", retry_after_s=2
)
_log = get_logger("http")


Handler = Callable[[HttpRequest], Awaitable[Response]]


class Gateway:
    """An ASGI application made of one handler."""

    def __init__(self, handler: Handler, *, clock: Clock, limits: RequestLimits) -> None:
        self._handler = handler
        self._clock = clock
        self._ids = Ids(clock)
        self._date = (0, b"")  # a second, and its Date field
        self.changes_in_progress = 0  # requests of other methods than GET without a response
        self._limits = limits
        self._budget = MemoryBudget(max(limits.held_bytes, limits.body_bytes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI)."""
        assert scope["type"] == "http", "the server is set up for HTTP alone"
        ids = self._request_ids(scope)
        request: HttpRequest | None = None
        is_cancelled = False
        is_change = scope["method"] != "GET"
        self.changes_in_progress += is_change
        try:
            request = self._request(scope, receive, ids)
            response = await self._respond(request)
        except ApiError as error:
            response = self._error_response(error, ids)
        except ClientDisconnectedError:
            return
        except asyncio.CancelledError:  # the server stops and the grace time has passed
            is_cancelled = True
            response = self._error_response(_shutdown_error(request), ids)
        finally:
            self.changes_in_progress -= is_change
            if request is not None:
                request.release()
        if response is None:
            assert request is not None, "only a request that was read can have no response"
            await request.close()
            return
        if (
            is_large := isinstance(response, StreamedResponse)
            or len(response.body) > _BUFFERED_BYTES
        ):
            may_be_refused = request is not None and request.method == "GET"
            if not _may_send(response, scope, may_be_refused=may_be_refused):
                response = self._error_response(_TOO_MANY_UNREAD, ids)
        if is_cancelled or request is None or not await request.drain():
            response.raw_headers.append((b"connection", b"close"))
        response.raw_headers += (
            (b"request-id", ids.request_id.encode()),
            (b"client-request-id", ids.client_request_id.encode()),
            (b"date", self._date_header()),
            (b"x-content-type-options", b"nosniff"),
        )
        if is_large and scope["method"] != "HEAD":
            send = partial(_send_in_blocks, send)
        await response(scope, receive, send)

    async def respond_to(self, scope: Scope, receive: Receive) -> Response | None:
        """Handle a request that is part of another one, with its limits and its error responses.

        None if its outcome is unknown.
        """
        ids = self._request_ids(scope)
        try:
            request = self._request(scope, receive, ids)
        except ApiError as error:
            return self._error_response(error, ids)
        try:
            response = await self._respond(request)
        finally:
            request.release()
        if response is not None:
            response.headers["request-id"] = ids.request_id
        return response

    def _request(self, scope: Scope, receive: Receive, ids: RequestIds) -> HttpRequest:
        return HttpRequest(scope, receive, ids=ids, limits=self._limits, budget=self._budget)

    async def _respond(self, request: HttpRequest) -> Response | None:
        """Call the handler; an error becomes its response, an unknown outcome None."""
        ids = request.ids
        try:
            return await self._handler(request)
        except ApiError as error:
            return self._error_response(error, ids)
        except ClientDisconnectedError:
            raise
        except UnansweredError as error:
            _log.error("request not answered", request_id=ids.request_id, reason=str(error))
            return None
        except Exception:  # noqa: BLE001 - no traceback may leave the server
            _log.exception("request failed", request_id=ids.request_id, method=request.method)
            message = f"Internal error; the server's log has details under {ids.request_id}."
            return self._error_response(ApiError(500, "InternalServerError", message), ids)

    def _date_header(self) -> bytes:
        second = self._clock.time_us() // 1_000_000
        if second != self._date[0]:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return self._date[1]

    def _request_ids(self, scope: Scope) -> RequestIds:
        request_id = self._ids.new()
        for name, value in scope["headers"]:
            if name == b"client-request-id":
                client_id = value.decode("latin-1")
                if _CLIENT_REQUEST_ID.fullmatch(client_id):
                    return RequestIds(request_id, client_id)
        return RequestIds(request_id, request_id)

    def _error_response(self, error: ApiError, ids: RequestIds) -> Response:
        date = rfc3339(self._clock.time_us())[:19]
        return json_response(
            error_body(error, ids=ids, date=date), status=error.status, headers=error.headers
        )


async def _send_in_blocks(send: Send, message: Message) -> None:
    """Send a large body in blocks, each when the client has read most of the blocks before it.

    The buffer of a connection stays small, so it does not keep a whole response in memory. Between
    blocks the event loop detects a broken connection and serves other requests.
    """
    body: bytes = message.get("body", b"")
    start = 0
    while len(body) - start > BLOCK_BYTES:
        block = body[start : start + BLOCK_BYTES]
        await send({**message, "body": block, "more_body": True})
        await asyncio.sleep(0)
        start += BLOCK_BYTES
    await send({**message, "body": body[start:]} if start else message)
    if message.get("more_body", False):
        await asyncio.sleep(0)


def _may_send(response: Response, scope: Scope, *, may_be_refused: bool) -> bool:
    """Return whether a large response fits into memory until its client has read it.

    The response to a change is always sent; a GET can be repeated.
    """
    size_bytes = BLOCK_BYTES if isinstance(response, StreamedResponse) else len(response.body)
    # absent outside of Relay's own server
    may_send_response: Callable[[int, bool], bool] | None = scope.get(ALLOW_RESPONSE)
    return may_send_response is None or may_send_response(size_bytes, may_be_refused)


def _shutdown_error(request: HttpRequest | None) -> ApiError:
    """Return 503 only if a repeat is harmless: clients repeat it by themselves, even sendMail."""
    message = "The server stopped before the request was done."
    if request is None or request.method == "GET" or not request.is_complete:
        return service_unavailable(message, retry_after_s=_STOPPED_RETRY_S)
    if request.is_idempotent:
        message += " Changes made before that remain; repeat the request for the rest."
        return service_unavailable(message, retry_after_s=_STOPPED_RETRY_S)
    return ApiError(500, "InternalServerError", f"{message} The request may have been carried out.")


def json_response(
    value: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return a JSON response."""
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


class PathRouter:
    """Selects an application by the path after its first segment, else by that segment, in any
    case. `otherwise` is the default. It serves the first segments in `others`; what a browser opens
    elsewhere goes to `in_browser`.
    """

    def __init__(
        self,
        by_prefix: Mapping[str, ASGIApp],
        *,
        otherwise: ASGIApp,
        by_rest: Mapping[str, ASGIApp] | None = None,
        in_browser: ASGIApp | None = None,
        others: Collection[str] = (),
    ) -> None:
        self._by_prefix = dict(by_prefix)
        self._in_browser = in_browser
        self._others = frozenset(others)
        self._by_rest = dict(by_rest or {})
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request (ASGI)."""
        segments = [segment for segment in str(scope.get("path", "")).lower().split("/") if segment]
        app = self._by_rest.get("/".join(segments[1:]))
        if app is None:
            app = self._by_prefix.get(first := segments[0] if segments else "")
        if app is None and self._in_browser and first not in self._others and _is_opened(scope):
            app = self._in_browser
        await (app or self._otherwise)(scope, receive, send)


def _is_opened(scope: Scope) -> bool:
    """Return whether a person's browser opens the path: programs ask for other types."""
    accepted = dict(scope["headers"]).get(b"accept", b"")
    return scope["method"] in ("GET", "HEAD") and b"text/html" in accepted


class BasePath:
    """Forwards requests without the path of the public URL.

    Most proxies can remove the path below which they serve a program, and some cannot. With
    `public_url = "https://host/base"` a request for /base/v1.0/me is one for /v1.0/me; other paths
    stay as they are.
    """

    def __init__(self, app: ASGIApp, path: str, *, clock: Clock) -> None:
        """`path` begins with a slash and does not end with one."""
        self._app = app
        self._path = path.encode("ascii")
        self._to_first_page = Gateway(self._add_slash, clock=clock, limits=SMALL_LIMITS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request (ASGI)."""
        raw = raw_path(scope)
        if raw == self._path and scope["method"] in ("GET", "HEAD"):
            await self._to_first_page(scope, receive, send)
            return
        if raw.startswith(self._path + b"/"):
            raw = raw.removeprefix(self._path)
            scope = {**scope, "raw_path": raw, "path": unquote(raw.decode("latin-1"))}
        await self._app(scope, receive, send)

    async def _add_slash(self, request: HttpRequest) -> Response:
        """Redirect to the path with a slash: the links of the first page are relative to it."""
        query = request.target.partition(b"?")[2].decode("latin-1")
        location = f"{self._path.rpartition(b'/')[2].decode()}/" + (f"?{query}" if query else "")
        return Response(status_code=307, headers={"location": f"./{location}"})


class EventStreamResponse(BodyOnDemand):
    """Sends the blocks of an asynchronous generator, each as events in their text form.

    The generator is closed when the client disconnects or is cut off. With HEAD it is not started.
    """

    def __init__(
        self, blocks: AsyncGenerator[bytes, None], *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(None, headers=_HEADERS | dict(headers or {}))
        del self.headers["content-length"]
        self.blocks = blocks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response (ASGI)."""
        try:
            await super().__call__(scope, receive, send)
        except TimeoutError:
            client = (scope.get("client") or ("",))[0]
            _log.info("event stream cut off: its client does not read", client=client)
            if (abort := scope.get(ABORT)) is not None:
                abort()  # a close would wait until the client has read

    async def send_body(self, send: Send, disconnected: asyncio.Future[None]) -> bool:
        """Send all blocks; return False if the client has disconnected. Raises TimeoutError."""
        following: asyncio.Future[bytes] | None = None
        try:
            while True:
                if following is None:
                    following = asyncio.ensure_future(anext(self.blocks, b""))
                await asyncio.wait(  # real time: a client
                    (following, disconnected),
                    timeout=HEARTBEAT_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if disconnected.done():
                    return False
                block = _HEARTBEAT
                if following.done():
                    block, following = following.result(), None
                if not block:
                    return True
                await self._send(send, block)
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            await self.blocks.aclose()

    async def _send(self, send: Send, block: bytes) -> None:
        for start in range(0, len(block), _PIECE_BYTES):
            piece = block[start : start + _PIECE_BYTES]
            async with asyncio.timeout(TAKE_TIMEOUT_S):  # real time: a client
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send(EMPTY_CHUNK)
