"""The ASGI application around a room's handler: ids, limits, and an answer to every request.

On the path: the server calls it; it hands a Call to graph or web and sends what they return.
Holds: each answer has request-id, client-request-id and date, each refusal Graph's envelope; an
unexpected fault is logged with its request id, not shown to clients; a handler that cannot know
what came of a request has the connection closed without an answer.
Fails: never.
Standards: ASGI 3.0; RFC 9110 6.6.1 (Date).
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.clock import Clock, Ids, rfc3339
from relay.http.errors import ApiError, RequestNames, UnansweredError, envelope, try_later
from relay.http.http_request import ANSWERING, BodyBudget, Call, ClientGoneError, Reading
from relay.observe.logs import get_logger

BLOCK_BYTES = 64 * 1024
# Sending it waits until the client has read most of what was sent before.
_NOTHING = {"type": "http.response.body", "body": b"", "more_body": True}


class StreamedResponse(Response):
    """`blocks` are iterated in threads, once; without `size_bytes` the body is sent in chunks."""

    def __init__(
        self,
        blocks: Iterable[bytes],
        *,
        status: int = 200,
        size_bytes: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(None, status_code=status, headers=headers)
        self._blocks = blocks
        if size_bytes is None:
            del self.headers["content-length"]
        else:
            self.headers["content-length"] = str(size_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it (ASGI)."""
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        gone = asyncio.ensure_future(_gone(receive))
        blocks = iter(self._blocks)
        try:
            await send(start)
            while (block := await asyncio.to_thread(_next, blocks)) and not gone.done():
                await send({"type": "http.response.body", "body": block, "more_body": True})
                del block  # what was sent is not held while the client reads
                await send(_NOTHING)
        except OSError as error:
            _log.warning("answer broken off", reason=str(error))
            return  # the server closes a connection whose answer is not complete
        finally:
            gone.cancel()
        await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _next(blocks: Iterator[bytes]) -> bytes:
    """Return the next octets, about a block of them; b"" at the end."""
    pieces: list[bytes] = []
    size_bytes = 0
    while size_bytes < BLOCK_BYTES and (piece := next(blocks, None)) is not None:
        pieces.append(piece)
        size_bytes += len(piece)
    return b"".join(pieces)


_CLIENT_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_STOPPED_RETRY_S = 5
_SMALL_BYTES = 16 * 1024  # an answer of which the connection's buffer holds all
_UNREAD = try_later(
    "ResourceUnhealthy", "Too many answers wait until their clients read them.", after_s=2
)
_log = get_logger("http")


class _Answering(Protocol):
    """What the server puts into the scope."""

    def __call__(self, size_bytes: int, *, may_be_refused: bool) -> bool:
        """Whether an answer of this size may be sent."""
        ...


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one application takes on.

    `body_bytes` limits one body, `held_bytes` all bodies held at once, `read_timeout_s` the time
    one body may take to arrive. A body that is taken in blocks may take `stream_timeout_s`, but
    `idle_timeout_s` for each block.
    """

    body_bytes: int
    held_bytes: int
    read_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0
    stream_timeout_s: float = 3600.0


class Gateway:
    """One ASGI application made of one handler."""

    def __init__(self, handler: Handler, *, clock: Clock, limits: Limits) -> None:
        self._handler = handler
        self._clock = clock
        self._ids = Ids(clock)
        self._date = (0, b"")  # of a second, as it stands in answers
        self._reading = Reading(
            limit_bytes=limits.body_bytes,
            timeout_s=limits.read_timeout_s,
            budget=BodyBudget(max(limits.held_bytes, limits.body_bytes)),
            idle_timeout_s=limits.idle_timeout_s,
            stream_timeout_s=limits.stream_timeout_s,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        assert scope["type"] == "http", "the server is set up for HTTP alone"
        names = self._names(scope)
        call: Call | None = None
        response: Response | None = None
        is_cut_off = False
        try:
            call = Call(scope, receive, names=names, reading=self._reading)
            response = await self._handler(call)
        except ApiError as error:
            response = self._refusal(error, names)
        except ClientGoneError:
            return
        except UnansweredError as error:
            _log.error("request not answered", request_id=names.request_id, reason=str(error))
        except asyncio.CancelledError:  # the server stops, and the grace time is over
            is_cut_off = True
            response = self._refusal(_stopped(call), names)
        except Exception:  # noqa: BLE001 - nothing may leave the server as a traceback
            _log.exception("request failed", request_id=names.request_id, method=scope["method"])
            message = f"The server made an error; its log tells more under {names.request_id}."
            response = self._refusal(ApiError(500, "InternalServerError", message), names)
        finally:
            if call is not None:
                call.release()
        if response is None:
            assert call is not None, "only a request that was read can be left unanswered"
            await call.close()
            return
        if is_large := isinstance(response, StreamedResponse) or len(response.body) > _SMALL_BYTES:
            may_be_refused = call is not None and call.method == "GET"
            if not _may_be_sent(response, scope, may_be_refused=may_be_refused):
                response = self._refusal(_UNREAD, names)
        if is_cut_off or call is None or not await call.has_gone_by():
            response.raw_headers.append((b"connection", b"close"))
        response.raw_headers += (
            (b"request-id", names.request_id.encode()),
            (b"client-request-id", names.client_request_id.encode()),
            (b"date", self._today()),
            (b"x-content-type-options", b"nosniff"),
        )
        await response(scope, receive, partial(_send_in_blocks, send) if is_large else send)

    def _today(self) -> bytes:
        second = self._clock.time_us() // 1_000_000
        if second != self._date[0]:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return self._date[1]

    def _names(self, scope: Scope) -> RequestNames:
        request_id = self._ids.new()
        for name, value in scope["headers"]:
            if name == b"client-request-id":
                theirs = value.decode("latin-1")
                if _CLIENT_REQUEST_ID.fullmatch(theirs):
                    return RequestNames(request_id, theirs)
        return RequestNames(request_id, request_id)

    def _refusal(self, error: ApiError, names: RequestNames) -> Response:
        date = rfc3339(self._clock.time_us())[:19]
        return json_response(
            envelope(error, names=names, date=date), status=error.status, headers=error.headers
        )


async def _send_in_blocks(send: Send, message: Message) -> None:
    """Send a large body a block at a time, each when the client has read most of those before.

    So what waits in a connection's buffer is small, and does not keep a whole answer in memory.
    Between blocks the event loop notices a connection that broke, and others have their turn.
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


def _may_be_sent(response: Response, scope: Scope, *, may_be_refused: bool) -> bool:
    """Whether there is room for a large answer until its client has read it.

    What has been done is always answered; what was only read can be asked for again.
    """
    size_bytes = BLOCK_BYTES if isinstance(response, StreamedResponse) else len(response.body)
    may_answer: _Answering | None = scope.get(ANSWERING)  # none outside Relay's own server
    return may_answer is None or may_answer(size_bytes, may_be_refused=may_be_refused)


def _stopped(call: Call | None) -> ApiError:
    """Return a 503 where a repeat does no harm: clients repeat it, even sendMail, by themselves."""
    message = "The server stopped before the request was done."
    if call is None or call.method == "GET" or not call.is_complete:
        return try_later("ResourceUnhealthy", message, after_s=_STOPPED_RETRY_S)
    if call.may_be_repeated:
        message += " What was done until then stays done; ask again for the rest."
        return try_later("ResourceUnhealthy", message, after_s=_STOPPED_RETRY_S)
    return ApiError(500, "InternalServerError", f"{message} What was asked may have been done.")


def json_response(
    value: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return `value` as a JSON answer."""
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


class Dispatch:
    """`by_prefix` maps a first path segment, lower case, to an application, else `otherwise`."""

    def __init__(self, by_prefix: Mapping[str, ASGIApp], *, otherwise: ASGIApp) -> None:
        self._by_prefix = dict(by_prefix)
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on (ASGI)."""
        first = str(scope.get("path", "")).lstrip("/").partition("/")[0].lower()
        await self._by_prefix.get(first, self._otherwise)(scope, receive, send)
