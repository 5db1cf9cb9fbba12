"""The ASGI application around a room's handler: request ids, limits, and errors as responses.

Each response has request-id, client-request-id and date; each error has Graph's envelope. An
unexpected exception is logged under its request id and answered with 500. If the outcome of a
request is unknown, the connection is closed without a response.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import partial

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from relay.base.clock import Clock, Ids, rfc3339
from relay.base.observe.logs import get_logger
from relay.base.shares import NoPlaceError
from relay.base.turns import Turns
from relay.front_door.http import errors
from relay.front_door.http.event_stream import EventStreamResponse
from relay.front_door.http.http_request import (
    ALLOW_RESPONSE,
    BODY_COMPLETE,
    KEEP_READING,
    ClientDisconnectedError,
    HttpRequest,
    RequestLimits,
)
from relay.front_door.http.responses import BLOCK_BYTES, StreamedResponse, json_response

_CLIENT_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_STOPPED_RETRY_S = 5
_BUFFERED_BYTES = 16 * 1024  # a response that fits into the buffer of the connection
_TOO_MANY_UNREAD = errors.service_unavailable(
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
        self.changes_in_progress = 0  # changes (not GET) that have no response yet
        self._limits = limits
        held_bytes = max(limits.held_bytes, limits.body_bytes)
        self._bodies = Turns(limits.bound, held_bytes)

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
            if isinstance(response, EventStreamResponse):
                response.check_rights = request.check_rights
        except errors.ApiError as error:
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
        is_large = isinstance(response, StreamedResponse) or len(response.body) > _BUFFERED_BYTES
        if is_large:
            may_be_refused = request is not None and request.method == "GET"
            if not _may_send(response, scope, may_be_refused=may_be_refused):
                response = self._error_response(_TOO_MANY_UNREAD, ids)
        is_early = not scope.get(BODY_COMPLETE)  # the response precedes the end of the body
        if is_cancelled or request is None or (is_early and request.waits_for_continue):
            response.raw_headers.append((b"connection", b"close"))
        elif is_early and KEEP_READING in scope:
            send = partial(_send_early, send, scope[KEEP_READING])
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
        """Handle a request of a batch like any other request; errors become responses.

        Return None if the outcome is unknown.
        """
        ids = self._request_ids(scope)
        try:
            request = self._request(scope, receive, ids)
        except errors.ApiError as error:
            return self._error_response(error, ids)
        try:
            response = await self._respond(request)
        finally:
            request.release()
        if response is not None:
            response.headers["request-id"] = ids.request_id
        return response

    def _request(self, scope: Scope, receive: Receive, ids: errors.RequestIds) -> HttpRequest:
        return HttpRequest(scope, receive, ids=ids, limits=self._limits, bodies=self._bodies)

    async def _respond(self, request: HttpRequest) -> Response | None:
        """Call the handler; an error becomes its response, an unknown outcome None."""
        ids = request.ids
        try:
            return await self._handler(request)
        except errors.ApiError as error:
            return self._error_response(error, ids)
        except NoPlaceError as error:
            return self._error_response(errors.no_place(error), ids)
        except ClientDisconnectedError:
            raise
        except errors.UnansweredError as error:
            _log.repeated(
                "error", "request not answered", request_id=ids.request_id, reason=str(error)
            )
            return None
        except Exception:  # noqa: BLE001 - no traceback may leave the server
            _log.repeated(
                "exception", "request failed", request_id=ids.request_id, method=request.method
            )
            message = f"Internal error in request {ids.request_id}; the server's log has details."
            return self._error_response(errors.ApiError(500, "InternalServerError", message), ids)

    def _date_header(self) -> bytes:
        second = self._clock.time_us() // 1_000_000
        if second != self._date[0]:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return self._date[1]

    def _request_ids(self, scope: Scope) -> errors.RequestIds:
        request_id = self._ids.new()
        for name, value in scope["headers"]:
            if name == b"client-request-id":
                client_id = value.decode("latin-1")
                if _CLIENT_REQUEST_ID.fullmatch(client_id):
                    return errors.RequestIds(request_id, client_id)
        return errors.RequestIds(request_id, request_id)

    def _error_response(self, error: errors.ApiError, ids: errors.RequestIds) -> Response:
        date = rfc3339(self._clock.time_us())[:19]
        return json_response(
            errors.error_body(error, ids=ids, date=date), status=error.status, headers=error.headers
        )


async def _send_early(send: Send, keep_reading: Callable[[], None], message: Message) -> None:
    """Send a response before the end of the body, which the connection outlasts."""
    if message["type"] == "http.response.body":
        keep_reading()
    await send(message)


async def _send_in_blocks(send: Send, message: Message) -> None:
    """Send a large body in blocks; each waits until the client has read most of the earlier blocks.

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


def _shutdown_error(request: HttpRequest | None) -> errors.ApiError:
    """Return 503 only if a repeat is harmless: clients repeat it by themselves, even sendMail."""
    message = "The server stopped before the request was done."
    if request is None or request.method == "GET" or not request.is_complete:
        return errors.service_unavailable(message, retry_after_s=_STOPPED_RETRY_S)
    if request.is_idempotent:
        message += " Changes made before that remain; repeat the request for the rest."
        return errors.service_unavailable(message, retry_after_s=_STOPPED_RETRY_S)
    return errors.ApiError(
        500, "InternalServerError", f"{message} The request may have been carried out."
    )
