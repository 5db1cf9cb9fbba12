"""uvicorn's connection with the bounds it lacks: header bytes and time, and a place of its own.

On the path: the server makes one for each connection; complete headers go on to the gateway.
Holds: a header has a limited time in all, however it trickles in; a client that does not read its
answer is cut off; a running request gets its own answer, whatever follows it; an offer to
upgrade is passed over, body and all; in HTTP/1.1 a request names its host once.
Fails: never; a connection over a bound is answered and closed.
Standards: RFC 9110 4.1, 5.4 (limits), 7.4 (421), 7.8 (Upgrade); RFC 9112 3.2 (Host); RFC 6585 5
(431).
"""

import asyncio
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from ipaddress import ip_address

import httptools
import msgspec
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from relay.clock import Clock, Ids, rfc3339
from relay.http.connection_limits import Place, Places, Stage
from relay.http.errors import ApiError, RequestNames, envelope, shown, try_later
from relay.http.http_request import ANSWERING, BODY_IS_HERE, CLOSE

# RFC 3986 3.2.2: an IP literal or a registered name, which may be empty; then a port
_HOST = re.compile(r"(\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")


@dataclass(frozen=True, slots=True)
class HostNames:
    """The names that a server answers to, lower case, besides those of the loopback interface."""

    names: frozenset[str] = frozenset()

    def has(self, name: str) -> bool:
        """Whether a host without its port is one of them."""
        name = name.lower().removesuffix(".")
        if name in self.names or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            return ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False


def host_fault(
    named: Sequence[bytes], *, is_required: bool, allowed: HostNames | None = None
) -> ApiError | None:
    """Return why a request with these Host fields is refused, None if it is not.

    Without `allowed` every host will do.
    """
    if not named and not is_required:
        return None
    if len(named) != 1:
        found = f"{len(named)} Host fields" if named else "none"
        return ApiError(400, "BadRequest", f"Host: found {found}, expected one with the host name.")
    text = named[0].decode("latin-1")
    parts = _HOST.fullmatch(text)
    if parts is None:
        return ApiError(
            400, "BadRequest", f"Host: found {shown(text)}, expected NAME or NAME:PORT."
        )
    if allowed is None or allowed.has(parts[1]):
        return None
    message = (
        f"Host: found {shown(text)}. This development relay answers to localhost and to loopback "
        "addresses; to use another name, start it with: relay dev --host NAME"
    )
    return ApiError(421, "MisdirectedRequest", message)


HEADER_BYTES_MAX = 64 * 1024  # URL and header fields together; long tokens have a few KB
HEADER_TIMEOUT_S = 30.0
UNREAD_TIMEOUT_S = 60.0  # nothing of an answer was taken for so long
BUFFERED_BYTES = 16 * 1024  # of answers in a connection's buffer before its writer has to wait
HEALTH_PATHS = (b"/healthz", b"/readyz")  # answered even if there is no place for other requests

_RETRY_S = 2
_UPGRADE_FIELDS = frozenset((b"connection", b"upgrade", b"http2-settings"))


class _RefusedError(Exception):
    """Raised inside the parser's callback to make it stop; `_refusal` says why."""


class BoundedProtocol(HttpToolsProtocol):
    """One HTTP/1.1 connection. The server sets `clock` and `places`, and `hosts` to check Host."""

    clock: Clock
    places: Places
    hosts: HostNames | None = None
    _place: Place | None = None
    _refusal: ApiError | None = None
    _running: RequestResponseCycle | None = None  # the running request; `cycle` is the last parsed
    _header_bytes = 0
    _is_in_header = True  # the first one is expected from the beginning
    _deadline: asyncio.TimerHandle | None = None
    _reading_watch: asyncio.TimerHandle | None = None
    _unread_bytes = math.inf  # at the last look; inf if it has read since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or turn it away when there are too many."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=BUFFERED_BYTES)
        self._watch_reading()
        peer = transport.get_extra_info("peername")
        self._place = self.places.enter(peer[0] if isinstance(peer, tuple) else "", self._cut)
        if self._place is None:
            self._refuse(_too_many("connections"))
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._headers_are_here()
        if self._reading_watch is not None:
            self._reading_watch.cancel()
        if self._place is not None:
            self.places.leave(self._place)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True  # uvicorn marks only the last of pipelined requests
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        """Parse what came; between requests it starts the time for headers."""
        if self.transport.is_closing():
            return
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_headers()
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._go_on_without_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        self._move()
        if self._place is not None:
            self.places.received(self._place)

    def on_message_begin(self) -> None:
        """Start counting a request's header."""
        self._header_bytes = 0
        self._is_in_header = True
        super().on_message_begin()
        self.scope[CLOSE] = self.transport.close  # type: ignore[literal-required]

    def on_url(self, url: bytes) -> None:
        """Count the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count one header field."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the time for headers and start the request."""
        self._headers_are_here()
        if not self.parser.should_upgrade():
            self._check_host()
            self._take_up()
            self.scope[ANSWERING] = self._may_answer  # type: ignore[literal-required]
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request's body."""
        if not self.parser.should_upgrade():
            self.scope[BODY_IS_HERE] = True  # type: ignore[literal-required]
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Count the answer by what of it has not been read; go on with the next request."""
        if self._place is not None:
            self.places.answered(self._place)
        super().on_response_complete()
        if self._is_in_header and self.cycle.response_complete and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._expect_headers()  # part of the next header came while this request ran
        self._move()

    def pause_writing(self) -> None:
        """Stop writing: the client has to read first."""
        super().pause_writing()
        if self._place is not None:
            self.places.buffered(self._place, self.transport.get_write_buffer_size())
        self._move()

    def resume_writing(self) -> None:
        """Go on writing: the client has read."""
        self._unread_bytes = math.inf
        super().resume_writing()
        if self._place is not None:
            self.places.buffered(self._place, 0)
        self._move()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or too much of it, with an envelope."""
        if self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete):
            self.cycle.keep_alive = False  # a complete request is in work: no more after its answer
        else:
            self._refuse(self._refusal or ApiError(400, "BadRequest", msg))

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Read the request again without its offer: the parser takes no body behind one.

        `curl --http2` and Java's client make the offer with every first request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("This is no proxy: CONNECT is not taken.")
            return
        fields = [(name, value) for name, value in self.headers if name not in _UPGRADE_FIELDS]
        if not self.parser.should_keep_alive():
            fields.append((b"connection", b"close"))
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, self.url, lines)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + rest)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES_MAX:
            text = f"The URL and the header fields are larger than {HEADER_BYTES_MAX} bytes."
            self._stop_parsing(ApiError(431, "RequestHeaderFieldsTooLarge", text))

    def _check_host(self) -> None:
        named = [value for name, value in self.headers if name == b"host"]
        is_required = self.parser.get_http_version() == "1.1"
        if fault := host_fault(named, is_required=is_required, allowed=self.hosts):
            self._stop_parsing(fault)

    def _take_up(self) -> None:
        """Take up a request if there is a place for one more, or if it asks for the health."""
        assert self._place is not None
        is_health = self.url.partition(b"?")[0] in HEALTH_PATHS
        if not is_health and not self.places.may_begin(self._place):
            self._stop_parsing(_too_many("requests"))
        self.places.move(self._place, Stage.BUSY)

    def _stop_parsing(self, refusal: ApiError) -> None:
        self._refusal = refusal
        raise _RefusedError

    def _may_answer(self, size_bytes: int, *, may_be_refused: bool) -> bool:
        assert self._place is not None
        return self.places.may_answer(self._place, size_bytes, may_be_refused=may_be_refused)

    def _move(self) -> None:
        """Report to the places what the connection waits for now."""
        if self._place is None:
            return
        if self.flow.write_paused:
            stage = Stage.UNREAD
        elif self.cycle is not None and not self.cycle.response_complete:
            # A body behind another request is not what the connection waits for.
            is_receiving = self.cycle.more_body and self._running is self.cycle
            stage = Stage.RECEIVING if is_receiving else Stage.BUSY
        else:
            stage = Stage.HALF_OPEN if self._is_in_header else Stage.IDLE
        self.places.move(self._place, stage)

    def _cut(self) -> None:
        """Give the place to another connection."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # to close would be to wait for the client to read
        else:
            self.transport.close()

    def _watch_reading(self) -> None:
        """Cut off who has taken nothing since the last look: to close would be to wait for it."""
        waiting_bytes = self.transport.get_write_buffer_size()
        if waiting_bytes and waiting_bytes >= self._unread_bytes:
            self.transport.abort()
            return
        self._unread_bytes = waiting_bytes or math.inf
        self._reading_watch = self.loop.call_later(UNREAD_TIMEOUT_S, self._watch_reading)

    def _expect_headers(self) -> None:
        self._deadline = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)

    def _headers_are_here(self) -> None:
        self._is_in_header = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, refusal: ApiError) -> None:
        now_us = self.clock.time_us()
        request_id = Ids(self.clock).new()
        error = envelope(
            refusal, names=RequestNames(request_id, request_id), date=rfc3339(now_us)[:19]
        )
        body = msgspec.json.encode(error)
        fields = {
            "content-type": "application/json",
            "connection": "close",
            "request-id": request_id,
            "client-request-id": request_id,
            "date": formatdate(now_us // 1_000_000, usegmt=True),
            "content-length": str(len(body)),
            **refusal.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(STATUS_LINE[refusal.status] + lines.encode() + b"\r\n" + body)
        self.transport.close()


def _too_many(what: str) -> ApiError:
    return try_later("ResourceUnhealthy", f"Too many {what} at once; try again.", after_s=_RETRY_S)
