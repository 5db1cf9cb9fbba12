"""HttpRequest: the decoded request, and its body on demand.

A body is read whole, within a limit and a memory budget for all bodies, or in blocks, one at a
time. RFC 9110 8.6, 15.5.9, 15.5.14; RFC 3986 2.1.
"""

import asyncio
import contextlib
import hashlib
import re
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

from msgspec import Struct
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from relay.base.pressure import MemoryBudget
from relay.base.socket_address import Address
from relay.front_door.http.errors import ApiError, RequestIds, quoted, service_unavailable

_Result = TypeVar("_Result")

BODY_COMPLETE = "relay.body_complete"  # scope key: the whole body has arrived
CLOSE = "relay.close"  # scope key: a function that closes the connection
ABORT = "relay.abort"  # scope key: a function that closes it without waiting for the client
ALLOW_RESPONSE = "relay.allow_response"  # scope key: a function that admits a large response
# scope key of a GET that offers a WebSocket: a function that gives the connection to it
TAKE_OVER = "relay.take_over"
# scope key: the address by which failures count, "" for none
COUNTED_ADDRESS = "relay.counted_address"
PEER_UID = "relay.peer_uid"  # scope key: the uid of the client of a Unix socket
_PART_ID = "relay.part_id"  # scope key: the id of a request that is part of a batch
_PAGE_BYTES = "relay.page_bytes"  # scope key: the octets that a page of such a request may have

_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_HTTPS_PORT = 443
_QUERY_FIELDS_MAX = 64
_BLOCK_BYTES = 256 * 1024
_DRAIN_TIMEOUT_S = 10.0
_DRAIN_PAUSE_S = 1.0  # without data for this time, the client waits for the response


class ClientDisconnectedError(Exception):
    """The client closed the connection before its response: nothing can be answered."""


class RequestLimits(Struct, frozen=True):
    """The limits of one application.

    `body_bytes` limits one body in memory, `held_bytes` all of them together, `read_timeout_s` the
    time for one. A body in blocks may take `idle_timeout_s` for each block and `stream_timeout_s`
    in all.
    """

    body_bytes: int
    held_bytes: int
    read_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0
    stream_timeout_s: float = 3600.0


# of an application that reads no body
SMALL_LIMITS = RequestLimits(body_bytes=1 << 16, held_bytes=1 << 20)


@dataclass(eq=False, repr=False)
class HttpRequest:
    """One HTTP request. `segments` are the percent-decoded parts of the path without empty ones. A
    handler sets `is_idempotent` if the client may repeat a request that was interrupted.
    """

    scope: Scope
    receive: Receive
    ids: RequestIds
    limits: RequestLimits
    budget: MemoryBudget  # of all bodies in memory together

    def __post_init__(self) -> None:
        self.method = "GET" if self.scope["method"] == "HEAD" else str(self.scope["method"])
        self.headers = Headers(scope=self.scope)
        # as the client wrote it, after the path of the proxy
        self.path: bytes = raw_path(self.scope)
        self.segments = _segments(self.path)
        self.query = _query(self.scope["query_string"])
        self.is_idempotent = False
        # raises ApiError if the client of a request has other rights now; None for no account
        self.rights: Callable[[HttpRequest], None] | None = None
        # the id of a request that is part of a batch; None for any other
        self.part_id: str | None = self.scope.get(_PART_ID)
        # the octets that a page of a list may have in the response to this part of a batch
        self.page_bytes: int | None = self.scope.get(_PAGE_BYTES)
        self._held_bytes = 0
        self._complete = False
        self._body_requested = False
        self._timed_out = False
        self._digest: hashlib._Hash | None = None
        self._kept_body: bytes | None = None
        self._left_bytes = sys.maxsize  # set by limit_body()
        self._too_large: Callable[[], ApiError] | None = None

    def base_url(self, public_url: str, fallback_host: str) -> str:
        """Return `public_url`, else the URL from the Host field, without a final slash."""
        if public_url:
            return public_url.rstrip("/")
        host = self.headers.get("host", "")
        return f"{self.scope['scheme']}://{host if _HOST.fullmatch(host) else fallback_host}"

    @property
    def server_url(self) -> str:
        """The URL of the address that accepted the connection; for a tunnel, the address at which
        it ends.
        """
        host, port = self.scope["server"]
        return f"{'https' if port == _HTTPS_PORT else 'http'}://{Address(host, port)}"

    @property
    def target(self) -> bytes:
        """The path and the query as the client wrote them."""
        return self.path + b"?" + bytes(self.scope["query_string"])

    def hash_body(self, digest: "hashlib._Hash") -> None:
        """Update `digest` with the body while it is read."""
        self._digest = digest

    def limit_body(self, limit_bytes: int, too_large: Callable[[], ApiError]) -> None:
        """Limit the body in addition to the limits of the application. Reading more raises
        too_large().

        A longer Content-Length raises it at once.
        """
        if (self.declared_bytes or 0) > limit_bytes:
            raise too_large()
        self._left_bytes, self._too_large = limit_bytes, too_large

    async def keep_body(self) -> bytes:
        """Read the whole body and keep it: the next body() returns it. Raises what body()
        raises.
        """
        self._kept_body = await self.body()
        return self._kept_body

    def part_scope(
        self,
        method: str,
        target: bytes,
        *,
        headers: Sequence[tuple[bytes, bytes]],
        part_id: str,
        page_bytes: int,
    ) -> Scope:
        """Return the ASGI scope of a request that is part of this one, by the same client.

        `target` is its path and query, `page_bytes` the maximum of a page that it asks for. Its
        body is complete, and it has no connection.
        """
        path, _, query = target.partition(b"?")
        own = {
            "method": method,
            "path": path.decode("ascii"),
            "raw_path": path,
            "query_string": query,
            "headers": headers,
            BODY_COMPLETE: True,
            _PART_ID: part_id,
            _PAGE_BYTES: page_bytes,
        }
        its_own = (CLOSE, ABORT, ALLOW_RESPONSE, TAKE_OVER)
        kept = {k: v for k, v in self.scope.items() if k not in its_own}
        return {**kept, **own}

    @property
    def client_address(self) -> str:
        """The client's IP address, "" on a Unix socket."""
        peer = self.scope.get("client")
        return str(peer[0]).removeprefix("::ffff:") if peer else ""

    @property
    def counted_address(self) -> str:
        """The IP address by which failures of the client count; behind a proxy, the forwarded
        address.

        "" on a Unix socket, and if the proxy does not say.
        """
        address: str = self.scope.get(COUNTED_ADDRESS, self.client_address)
        return address.removeprefix("::ffff:")

    @property
    def is_secure(self) -> bool:
        """Whether the connection has TLS here."""
        return bool(self.scope["scheme"] == "https")

    @property
    def is_local(self) -> bool:
        """Whether both ends of the connection have loopback addresses."""
        ends = (self.scope.get("client"), self.scope.get("server"))
        return all(end is not None and is_loopback_address(str(end[0])) for end in ends)

    async def body(self) -> bytes:
        """Read the whole body, once.

        Raises ApiError 413 over the limit, 408 after the time-out, 503 over the budget, 415 for a
        compressed body, and as check_rights().
        """
        if self._kept_body is not None:
            kept, self._kept_body = self._kept_body, None
            return kept
        self._reject_content_encoding()
        limit = self.limits.body_bytes
        if (self.declared_bytes or 0) > limit:
            raise body_too_large(limit)
        self._body_requested = True
        if self.scope.get(BODY_COMPLETE):  # most bodies: no timer is needed
            return await self._read_all(limit)
        try:
            async with asyncio.timeout(self.limits.read_timeout_s):  # real time: a client
                body = await self._read_all(limit)
        except TimeoutError:
            self._timed_out = True
            raise ApiError(
                408,
                "RequestTimeout",
                f"The body was not complete within {self.limits.read_timeout_s:g} seconds.",
            ) from None
        self.check_rights()
        return body

    async def _read_all(self, limit_bytes: int) -> bytes:
        chunks: list[bytes] = []
        while not self._complete:
            chunk = await self._next_chunk()
            if self._held_bytes + len(chunk) > limit_bytes:
                raise body_too_large(limit_bytes)
            self._reserve(len(chunk))
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in blocks of about 256 KiB as it arrives, once. The caller limits it.

        Raises ApiError 408 after the idle or the total time-out, 415 for a compressed body, and as
        check_rights(); ClientDisconnectedError.
        """
        self._reject_content_encoding()
        self._body_requested = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.stream_timeout_s  # real time: a client
        while not self._complete:
            chunks: list[bytes] = []
            size_bytes = 0
            while size_bytes < _BLOCK_BYTES and not self._complete:
                try:
                    idle_end = loop.time() + self.limits.idle_timeout_s  # real time: a client
                    async with asyncio.timeout_at(min(deadline, idle_end)):  # real time: a client
                        chunks.append(await self._next_chunk())
                except TimeoutError:
                    self._timed_out = True
                    raise self._timeout_error(is_idle=idle_end <= deadline) from None
                size_bytes += len(chunks[-1])
            yield chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self.check_rights()

    @property
    def declared_bytes(self) -> int | None:
        """The value of Content-Length, None without it."""
        declared = self.headers.get("content-length", "")
        return int(declared[:20]) if declared.isascii() and declared.isdecimal() else None

    @property
    def media_type(self) -> str:
        """The Content-Type in lower case without its parameters, "" without one."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has been read."""
        return self._complete

    def check_rights(self) -> None:
        """Raise ApiError if the client has lost the rights that it had when the request began.

        Called after each wait: before an answer, and when a slow body has arrived.
        """
        if self.rights is not None:
            self.rights(self)

    async def cancel_on_disconnect(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Await `coroutine`; cancel it if the client disconnects. The rest of a body is discarded.

        Raises ClientDisconnectedError, and ApiError as check_rights().
        """
        operation, disconnect = (
            asyncio.ensure_future(coroutine),
            asyncio.ensure_future(self._wait_for_disconnect()),
        )
        try:
            await asyncio.wait((operation, disconnect), return_when=asyncio.FIRST_COMPLETED)
            if operation.done():
                self.check_rights()
                return operation.result()
            raise ClientDisconnectedError
        finally:
            operation.cancel()
            disconnect.cancel()
            await asyncio.gather(operation, disconnect, return_exceptions=True)

    async def _wait_for_disconnect(self) -> None:
        with contextlib.suppress(ClientDisconnectedError):
            while True:
                await self._next_chunk()

    async def close(self) -> None:
        """Close the connection without a response; return when it is closed."""
        self.scope[CLOSE]()
        await self._wait_for_disconnect()

    def release(self) -> None:
        """Release the body's share of the budget."""
        self.budget.release(self._held_bytes)
        self._held_bytes = 0

    async def drain(self) -> bool:
        """Discard the rest of the body, for at most 10 s.

        Many clients read no response before they have sent everything.

        Return whether the body has ended, so that the connection can be used again. A body that
        waits for 100 Continue is never sent.
        """
        if self._timed_out or self._waits_for_continue():
            return False
        self._too_large = None
        return self._complete or await self._discard_rest()

    async def _discard_rest(self) -> bool:
        try:
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):  # real time: a client
                while not self._complete:
                    async with asyncio.timeout(_DRAIN_PAUSE_S):  # real time: a client
                        await self._next_chunk()
        except (TimeoutError, ClientDisconnectedError):
            return False
        return self._complete

    def _reject_content_encoding(self) -> None:
        encoding = self.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            message = f"Content-Encoding: found {quoted(encoding)}, expected no compression."
            headers = {"accept-encoding": "identity"}
            raise ApiError(415, "UnsupportedMediaType", message, headers=headers)

    def _waits_for_continue(self) -> bool:
        return not self._body_requested and "100-continue" in self.headers.get("expect", "").lower()

    async def _next_chunk(self) -> bytes:
        event = await self.receive()
        if event["type"] != "http.request":
            raise ClientDisconnectedError
        self._complete = not event.get("more_body", False)
        chunk: bytes = event.get("body", b"")
        if self._digest is not None:
            self._digest.update(chunk)
        self._left_bytes -= len(chunk)
        if self._left_bytes < 0 and self._too_large is not None:
            raise self._too_large()
        return chunk

    def _reserve(self, size: int) -> None:
        if not self.budget.take(size):
            raise service_unavailable(
                "Too many large requests are being read; try again.",
                retry_after_s=2,
            )
        self._held_bytes += size

    def _timeout_error(self, *, is_idle: bool) -> ApiError:
        limits = self.limits
        if is_idle:
            message = f"No part of the body arrived for {limits.idle_timeout_s:g} seconds."
        else:
            message = f"The body was not complete within {limits.stream_timeout_s:g} seconds."
        return ApiError(408, "RequestTimeout", message)


def is_loopback_address(text: str) -> bool:
    """Return whether an IP address is a loopback address."""
    try:
        return ip_address(text.partition("%")[0].removeprefix("::ffff:")).is_loopback
    except ValueError:
        return False


def body_too_large(limit_bytes: int) -> ApiError:
    """Return the 413 for a body over the limit."""
    message = f"The request body is larger than the maximum of {limit_bytes} bytes."
    return ApiError(413, "RequestEntityTooLarge", message)


def raw_path(scope: Scope) -> bytes:
    """Return the path of a request as the client wrote it."""
    return scope.get("raw_path") or str(scope["path"]).encode()


def _segments(raw: bytes) -> tuple[str, ...]:
    try:
        if b"%" not in raw:
            return tuple(part for part in raw.decode().split("/") if part)
        return tuple(unquote_to_bytes(part).decode() for part in raw.split(b"/") if part)
    except UnicodeDecodeError:
        raise ApiError(400, "BadRequest", "The path is not UTF-8.") from None


def _query(raw: bytes) -> tuple[tuple[str, str], ...]:
    if not raw:
        return ()
    try:
        return tuple(
            parse_qsl(
                raw.decode("ascii"),
                keep_blank_values=True,
                max_num_fields=_QUERY_FIELDS_MAX,
                errors="strict",
            )
        )
    except UnicodeError:
        raise ApiError(400, "BadRequest", "The query is not percent-encoded UTF-8.") from None
    except ValueError:
        message = f"The query has more than {_QUERY_FIELDS_MAX} fields."
        raise ApiError(400, "BadRequest", message) from None
