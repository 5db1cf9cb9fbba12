"""One request as the rooms see it: decoded names, and a body that is read when it is wanted.

On the path: the gateway makes it from the ASGI scope; graph and web read it.
Holds: no body over its limit is held, whatever Content-Length says; all together keep a budget. Of
one that is taken in blocks, a block is held.
Fails: ApiError 400, 408, 413, 503; ClientGoneError when there is nobody left to answer.
Standards: RFC 9110 8.6, 15.5.9, 15.5.14; RFC 3986 2.1.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from relay.accounts import Account, AccountDirectory
from relay.http.errors import ApiError, RequestNames, shown, try_later

_Result = TypeVar("_Result")

BODY_IS_HERE = "relay.body_is_here"  # in the scope, once the whole body has come
CLOSE = "relay.close"  # in the scope: closes the connection, without an answer if there was none
ANSWERING = "relay.answering"  # in the scope: asked before an answer of some size is sent

_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_QUERY_FIELDS_MAX = 64
_BLOCK_BYTES = 256 * 1024
_DRAIN_TIMEOUT_S = 10.0
_DRAIN_PAUSE_S = 1.0  # who sends nothing for so long waits for the answer


class ClientGoneError(Exception):
    """The client hung up before its request was complete."""


class BodyBudget:
    """How many bytes of bodies may be held at once by all requests together."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes

    def take(self, size: int) -> bool:
        """Whether `size` more bytes fit; if so they are taken."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """Return bytes that were taken."""
        self._left += size


class Call:
    """A request. `segments` are the path's, percent-decoded, empty ones left out. A handler says
    `may_be_repeated` where it does no harm that part of it was done before.
    """

    def __init__(
        self, scope: Scope, receive: Receive, *, names: RequestNames, reading: "Reading"
    ) -> None:
        self.names = names
        self.method = "GET" if scope["method"] == "HEAD" else str(scope["method"])
        self.headers = Headers(scope=scope)
        self.segments = _segments(scope)
        self.query = _query(scope["query_string"])
        self.may_be_repeated = False
        self._scope = scope
        self._receive = receive
        self._reading = reading
        self._taken_bytes = 0
        self._complete = False
        self._reading_began = False
        self._too_late = False

    def base_url(self, public_url: str, fallback_host: str) -> str:
        """Return where the client found us, without a final slash: `public_url`, else by Host."""
        if public_url:
            return public_url.rstrip("/")
        host = self.headers.get("host", "")
        return f"{self._scope['scheme']}://{host if _HOST.fullmatch(host) else fallback_host}"

    @property
    def client_address(self) -> str:
        """Return the client's IP address, "" on a Unix socket."""
        peer = self._scope.get("client")
        return str(peer[0]).removeprefix("::ffff:") if peer else ""

    async def body(self) -> bytes:
        """Read the whole body, once.

        Raises ApiError 413 over the limit, 408 when it takes too long, 503 over the budget, 415
        for one that is compressed.
        """
        self._refuse_coding()
        limit = self._reading.limit_bytes
        if (self.declared_bytes or 0) > limit:
            raise too_large(limit)
        self._reading_began = True
        if self._scope.get(BODY_IS_HERE):  # of most messages: there is nothing to wait for
            return await self._whole(limit)
        try:
            async with asyncio.timeout(self._reading.timeout_s):
                return await self._whole(limit)
        except TimeoutError:
            self._too_late = True
            raise ApiError(
                408,
                "RequestTimeout",
                f"The body was not complete within {self._reading.timeout_s:g} seconds.",
            ) from None

    async def _whole(self, limit_bytes: int) -> bytes:
        chunks: list[bytes] = []
        while not self._complete:
            chunk = await self._next_chunk()
            if self._taken_bytes + len(chunk) > limit_bytes:
                raise too_large(limit_bytes)
            self._take(len(chunk))
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in blocks while it comes, once; who takes them bounds how much that is.

        Raises ApiError 408 when nothing comes for a while, or the end not in a long while, 415 for
        a body that is compressed; ClientGoneError.
        """
        self._refuse_coding()
        self._reading_began = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._reading.stream_timeout_s
        while not self._complete:
            chunks: list[bytes] = []
            size_bytes = 0
            while size_bytes < _BLOCK_BYTES and not self._complete:
                try:
                    patience = loop.time() + self._reading.idle_timeout_s
                    async with asyncio.timeout_at(min(deadline, patience)):
                        chunks.append(await self._next_chunk())
                except TimeoutError:
                    self._too_late = True
                    raise self._stalled(is_idle=patience <= deadline) from None
                size_bytes += len(chunks[-1])
            yield chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @property
    def declared_bytes(self) -> int | None:
        """What Content-Length says, None where it says nothing."""
        declared = self.headers.get("content-length", "")
        return int(declared[:20]) if declared.isascii() and declared.isdecimal() else None

    @property
    def is_complete(self) -> bool:
        """Whether all of the body is here."""
        return self._complete

    async def unless_gone(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Await `work`, which is given up when the client hangs up; a body is read past.

        Raises ClientGoneError then.
        """
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(self._has_left())
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise ClientGoneError
        finally:
            working.cancel()
            leaving.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _has_left(self) -> None:
        with contextlib.suppress(ClientGoneError):
            while True:
                await self._next_chunk()

    async def close(self) -> None:
        """Close the connection without an answer; return when it is closed."""
        self._scope[CLOSE]()
        await self._has_left()

    def release(self) -> None:
        """Give the body's share of the budget back: nobody needs the body any more."""
        self._reading.budget.give_back(self._taken_bytes)
        self._taken_bytes = 0

    async def has_gone_by(self) -> bool:
        """Read past what is left of the body, for a while: a client that is still sending may not
        look at its answer before.

        Returns whether there is no more of it, so that the connection can be used again. A body
        that waits for 100 Continue is never sent.
        """
        if self._too_late or self._waits_for_continue():
            return False
        return self._complete or await self._read_past()

    async def _read_past(self) -> bool:
        try:
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                while not self._complete:
                    async with asyncio.timeout(_DRAIN_PAUSE_S):
                        await self._next_chunk()
        except (TimeoutError, ClientGoneError):
            return False
        return self._complete

    def _refuse_coding(self) -> None:
        coding = self.headers.get("content-encoding", "").strip().lower()
        if coding not in ("", "identity"):
            message = f"Content-Encoding: found {shown(coding)}, expected a body as it is."
            headers = {"accept-encoding": "identity"}
            raise ApiError(415, "UnsupportedMediaType", message, headers=headers)

    def _waits_for_continue(self) -> bool:
        return not self._reading_began and "100-continue" in self.headers.get("expect", "").lower()

    async def _next_chunk(self) -> bytes:
        event = await self._receive()
        if event["type"] != "http.request":
            raise ClientGoneError
        self._complete = not event.get("more_body", False)
        chunk: bytes = event.get("body", b"")
        return chunk

    def _take(self, size: int) -> None:
        if not self._reading.budget.take(size):
            raise try_later(
                "ResourceUnhealthy", "Too many large requests are being read; try again.", after_s=2
            )
        self._taken_bytes += size

    def _stalled(self, *, is_idle: bool) -> ApiError:
        reading = self._reading
        if is_idle:
            message = f"Nothing of the body came for {reading.idle_timeout_s:g} seconds."
        else:
            message = f"The body was not complete within {reading.stream_timeout_s:g} seconds."
        return ApiError(408, "RequestTimeout", message)


@dataclass(frozen=True, slots=True)
class Reading:
    """How bodies are read: `limit_bytes` and `timeout_s` for each that is held, `budget` for all of
    these together. Of one that is taken in blocks, the next may be `idle_timeout_s` late, and the
    last `stream_timeout_s`.
    """

    limit_bytes: int
    timeout_s: float
    budget: BodyBudget
    idle_timeout_s: float
    stream_timeout_s: float


def too_large(limit_bytes: int) -> ApiError:
    """Return the refusal of a body over its limit."""
    message = f"The request body is larger than the maximum of {limit_bytes} bytes."
    return ApiError(413, "RequestEntityTooLarge", message)


def _segments(scope: Scope) -> tuple[str, ...]:
    raw: bytes = scope.get("raw_path") or str(scope["path"]).encode()
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


def bearer_account(headers: Headers, accounts: AccountDirectory, *, realm: str) -> Account:
    """Return whose token the request carries.

    Raises ApiError 401 when there is none, or nobody's.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise _unauthorized("Access token is empty.", realm)
    account = accounts.by_token(token)
    if account is None:
        raise _unauthorized("Access token is not known here.", realm)
    return account


def _unauthorized(message: str, realm: str) -> ApiError:
    return ApiError(
        401,
        "InvalidAuthenticationToken",
        message,
        headers={"www-authenticate": f'Bearer realm="{realm}"'},
    )
