"""HttpRequest: the decoded request, and its body on demand.

A body is read whole, within a limit and the memory for all bodies, which accounts share, or in
blocks, one at a time. Its room is taken before it is read. RFC 9110 8.6, 15.5.9, 15.5.14; RFC 3986
2.1.
"""

import asyncio
import contextlib
import hashlib
import math
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

from relay.base.socket_address import Address, client_of
from relay.base.task_set import end_all
from relay.base.turns import Turns
from relay.front_door.http.connection_limits import PROGRESS_BYTES, STALLED_GRACE_S
from relay.front_door.http.errors import ApiError, RequestIds, bad_request, no_place, quoted

_Result = TypeVar("_Result")

BODY_COMPLETE = "relay.body_complete"  # scope key: the whole body has arrived
CLOSE = "relay.close"  # scope key: a function that closes the connection
ABORT = "relay.abort"  # scope key: a function that closes it without waiting for the client
ALLOW_RESPONSE = "relay.allow_response"  # scope key: a function that admits a large response
# scope key: a function that lets the connection outlast a response before the end of the body
KEEP_READING = "relay.keep_reading"
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
ROOM_WAIT_S = 30.0  # how long a body waits for its room
# limit: an HTTP body before a login; then 408
ANONYMOUS_TIMEOUT_S = 10.0


class ClientDisconnectedError(Exception):
    """The client closed the connection before its response: nothing can be answered."""


class RequestLimits(Struct, frozen=True):
    """The limits of one application.

    `body_bytes` limits one body in memory, `held_bytes` all of them together, a bound of the name
    `bound`, `read_timeout_s` the time for one. A body in blocks may take `idle_timeout_s` for each
    block and `stream_timeout_s` in all.
    """

    body_bytes: int
    held_bytes: int
    bound: str = "bodies"
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
    bodies: Turns  # the octets of all bodies in memory together

    def __post_init__(self) -> None:
        self.method = "GET" if self.scope["method"] == "HEAD" else str(self.scope["method"])
        self.headers = Headers(scope=self.scope)
        # as the client wrote it, after the path of the proxy
        self.path: bytes = raw_path(self.scope)
        self.segments = _segments(self.path)
        self.query = _query(self.scope["query_string"])
        self.is_idempotent = False
        self.account = ""  # whose login it has; the login sets it
        # raises ApiError if the client of a request has other rights now; None for no account
        self.rights: Callable[[HttpRequest], None] | None = None
        # the id of a request that is part of a batch; None for any other
        self.part_id: str | None = self.scope.get(_PART_ID)
        # the octets that a page of a list may have in the response to this part of a batch
        self.page_bytes: int | None = self.scope.get(_PAGE_BYTES)
        self._held_bytes = 0  # of `bodies`
        self._held_by = ""
        self._complete = False
        self._body_requested = False
        self._progress_end_s = math.inf  # when it is slow
        self._progress_bytes = 0  # since the last progress
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

    async def body(self, bodies: Turns | None = None, limit_bytes: int = 0) -> bytes:
        """Read the whole body, once; `bodies` and `limit_bytes` replace those of the application.

        Raises ApiError 413 over the limit, 408 after the time-out and for a slow body while others
        wait, 503 without room, 415 for a compressed body, and as check_rights().
        """
        if self._kept_body is not None:
            kept, self._kept_body = self._kept_body, None
            return kept
        self._reject_content_encoding()
        self.bodies, limit = bodies or self.bodies, limit_bytes or self.limits.body_bytes
        declared_bytes = self.declared_bytes or 0
        if declared_bytes > limit:
            raise body_too_large(limit)
        was_there = self.scope.get(BODY_COMPLETE)
        if declared_bytes:
            await self._hold(declared_bytes)
        timeout_s = self._timeout_s(self.limits.read_timeout_s)
        end_s = asyncio.get_running_loop().time() + timeout_s  # real time: a client
        chunks: list[bytes] = []
        size_bytes = 0
        while not self._complete:
            try:
                chunk = await self._chunk_by(end_s, self.bodies)
            except TimeoutError:
                raise _not_complete(timeout_s) from None
            size_bytes += len(chunk)
            if size_bytes > limit:
                raise body_too_large(limit)
            if size_bytes > self._held_bytes:  # its length was not declared: a few large steps
                more_bytes = min(limit, 2 * size_bytes)
                if self._held_bytes and self.bodies.places < 2 * limit:
                    self.release()  # what has some of so few places gets half of them at most
                    more_bytes = limit
                await self._hold(size_bytes if self._complete else more_bytes)
            chunks.append(chunk)
        if not was_there:
            self.check_rights()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def blocks(self, places: Turns | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the body in blocks of about 256 KiB as it arrives, once. The caller limits it, and
        holds a place of `places`.

        Raises ApiError 408 after the idle or the total time-out, and for a slow body while others
        wait for a place, 415 for a compressed body, and as check_rights();
        ClientDisconnectedError.
        """
        self._reject_content_encoding()
        loop = asyncio.get_running_loop()
        timeout_s = self._timeout_s(self.limits.stream_timeout_s)
        deadline_s = loop.time() + timeout_s  # real time: a client
        while not self._complete:
            chunks: list[bytes] = []
            size_bytes = 0
            while size_bytes < _BLOCK_BYTES and not self._complete:
                idle_end_s = loop.time() + self.limits.idle_timeout_s  # real time: a client
                try:
                    chunks.append(await self._chunk_by(min(deadline_s, idle_end_s), places))
                except TimeoutError:
                    if idle_end_s > deadline_s:
                        raise _not_complete(timeout_s) from None
                    idle_s = self.limits.idle_timeout_s
                    message = f"No part of the body arrived for {idle_s:g} seconds."
                    raise _timeout_error(message) from None
                size_bytes += len(chunks[-1])
            yield chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self.check_rights()

    def _timeout_s(self, timeout_s: float) -> float:
        return timeout_s if self.account else min(timeout_s, ANONYMOUS_TIMEOUT_S)

    @property
    def shares_key(self) -> str:
        """By which the request has its shares: the account, before a login the client's network."""
        return self.account or client_of(self.counted_address)

    async def _hold(self, size_bytes: int) -> None:
        """Have room for so many octets of the body in all; wait for it in turn. Raises ApiError
        503.
        """
        key = self._held_by = self._held_by or self.shares_key
        more_bytes, bodies = size_bytes - self._held_bytes, self.bodies
        if not bodies.take_at_once(key, more_bytes):
            if not await bodies.take(key, more_bytes, wait_s=ROOM_WAIT_S):
                raise no_place(bodies.bound)
            self.check_rights()
        self._held_bytes = size_bytes

    async def _chunk_by(self, end_s: float, places: Turns | None) -> bytes:
        """Return the next part of the body. Raises TimeoutError at `end_s`, and ApiError 408 if it
        is slow while others wait for `places`.
        """
        if self.scope.get(BODY_COMPLETE):  # most bodies: no timer is needed
            return await self._next_chunk()
        loop = asyncio.get_running_loop()
        while True:
            if self._progress_bytes >= PROGRESS_BYTES or self._progress_end_s == math.inf:
                self._progress_bytes = 0
                self._progress_end_s = loop.time() + STALLED_GRACE_S  # real time: a client
            try:
                by_s = min(end_s, self._progress_end_s)
                async with asyncio.timeout_at(by_s):  # real time: a client
                    chunk = await self._next_chunk()
            except TimeoutError:
                if by_s == end_s:
                    raise
                if places is not None and places.is_short(self.shares_key):
                    message = f"The body was slower than {PROGRESS_BYTES} bytes in "
                    message += f"{STALLED_GRACE_S:g} seconds, and others wait; try again."
                    raise _timeout_error(message) from None
                self._progress_end_s = math.inf
            else:
                self._progress_bytes += len(chunk)
                return chunk

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
            await end_all((operation, disconnect))

    async def _wait_for_disconnect(self) -> None:
        with contextlib.suppress(ClientDisconnectedError):
            while True:
                await self._next_chunk()

    async def close(self) -> None:
        """Close the connection without a response; return when it is closed."""
        self.scope[CLOSE]()
        await self._wait_for_disconnect()

    def release(self) -> None:
        """Give the room of the body back."""
        if self._held_bytes:
            self.bodies.give_back(self._held_by, self._held_bytes)
            self._held_bytes = 0

    def _reject_content_encoding(self) -> None:
        encoding = self.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            message = f"Content-Encoding: found {quoted(encoding)}, expected no compression."
            headers = {"accept-encoding": "identity"}
            raise ApiError(415, "UnsupportedMediaType", message, headers=headers)

    @property
    def waits_for_continue(self) -> bool:
        """Whether the client sends the body only after 100 Continue, which it did not get."""
        return not self._body_requested and "100-continue" in self.headers.get("expect", "").lower()

    async def _next_chunk(self) -> bytes:
        self._body_requested = True
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


def _not_complete(timeout_s: float) -> ApiError:
    return _timeout_error(f"The body was not complete within {timeout_s:g} seconds.")


def _timeout_error(message: str) -> ApiError:
    return ApiError(408, "RequestTimeout", message, headers={"connection": "close"})


def raw_path(scope: Scope) -> bytes:
    """Return the path of a request as the client wrote it."""
    return scope.get("raw_path") or str(scope["path"]).encode()


def _segments(raw: bytes) -> tuple[str, ...]:
    try:
        if b"%" not in raw:
            return tuple(part for part in raw.decode().split("/") if part)
        return tuple(unquote_to_bytes(part).decode() for part in raw.split(b"/") if part)
    except UnicodeDecodeError:
        raise bad_request("The path is not UTF-8.") from None


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
        raise bad_request("The query is not percent-encoded UTF-8.") from None
    except ValueError:
        raise bad_request(f"The query has more than {_QUERY_FIELDS_MAX} fields.") from None
