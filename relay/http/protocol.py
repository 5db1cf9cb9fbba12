"""uvicorn's connection with the bounds it lacks: header bytes and time, number of connections.

On the path: the server makes one for each connection; complete headers go on to the gateway.
Holds: a connection with no request in work ends within the time for headers; a client that does not
read its answer is cut off; a request that is in work gets its own answer, whatever follows it; an
offer to upgrade is passed over, body and all.
Fails: never; a connection over a bound is answered and closed.
Standards: RFC 9110 4.1, 5.4 (limits), 7.8 (Upgrade); RFC 6585 5 (431).
"""

import asyncio
import math
from email.utils import formatdate

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from relay.clock import Clock, Ids, rfc3339
from relay.http.call import BODY_IS_HERE, CLOSE
from relay.http.errors import ApiError, RequestNames, envelope

CONNECTIONS_MAX = 2000
HEADER_BYTES_MAX = 64 * 1024  # URL and header fields together; long tokens have a few KB
HEADER_TIMEOUT_S = 30.0
UNREAD_TIMEOUT_S = 60.0  # nothing of an answer was taken for so long


_UPGRADE_FIELDS = frozenset((b"connection", b"upgrade", b"http2-settings"))


class _HeadersTooLargeError(Exception):
    """Raised inside the parser's callback to make it stop."""


class BoundedProtocol(HttpToolsProtocol):
    """One HTTP/1.1 connection. Who makes it sets `clock`."""

    clock: Clock
    _header_bytes = 0
    _deadline: asyncio.TimerHandle | None = None
    _reading_watch: asyncio.TimerHandle | None = None
    _unread_bytes = math.inf  # at the last look; inf if it has read since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or turn it away when there are too many."""
        super().connection_made(transport)
        self._watch_reading()
        if len(self.connections) > CONNECTIONS_MAX:
            self._refuse(503, "ResourceUnhealthy", "Too many connections; try again.")
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._headers_are_here()
        if self._reading_watch is not None:
            self._reading_watch.cancel()
        super().connection_lost(exc)

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

    def on_message_begin(self) -> None:
        """Start counting a request's header."""
        self._header_bytes = 0
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
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request's body."""
        if not self.parser.should_upgrade():
            self.scope[BODY_IS_HERE] = True  # type: ignore[literal-required]
            super().on_message_complete()

    def resume_writing(self) -> None:
        """Go on writing: the client has read."""
        self._unread_bytes = math.inf
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or too much of it, with an envelope."""
        if self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete):
            self.cycle.keep_alive = False  # a complete request is in work: no more after its answer
        elif self._header_bytes > HEADER_BYTES_MAX:
            text = f"The URL and the header fields are larger than {HEADER_BYTES_MAX} bytes."
            self._refuse(431, "RequestHeaderFieldsTooLarge", text)
        else:
            self._refuse(400, "BadRequest", msg)

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
            raise _HeadersTooLargeError

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
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int, code: str, message: str) -> None:
        now_us = self.clock.time_us()
        request_id = Ids(self.clock).new()
        error = envelope(
            ApiError(status, code, message),
            names=RequestNames(request_id, request_id),
            date=rfc3339(now_us)[:19],
        )
        body = msgspec.json.encode(error)
        retry = "retry-after: 2\r\n" if status == 503 else ""
        fields = (
            f"content-type: application/json\r\nconnection: close\r\n{retry}"
            f"request-id: {request_id}\r\nclient-request-id: {request_id}\r\n"
            f"date: {formatdate(now_us // 1_000_000, usegmt=True)}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[status] + fields.encode() + body)
        self.transport.close()
