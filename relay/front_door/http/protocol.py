"""uvicorn's HTTP/1.1 connection with the limits that it lacks, and the check of the Host field.

Limits apply to the size of a header, the time for it, and the time in which a client reads nothing
of its response. Requests that arrive before a response is complete are discarded, and the
connection is closed after that response; the client repeats them (RFC 9112 9.3.2). The rest of a
body whose response has been sent is discarded for 10 s; then the connection is closed, for many
clients read no response before they have sent everything (RFC 9112 9.6). An error is answered with
Graph's envelope, and the connection is closed. An offer to upgrade is ignored (RFC
9110 7.8), unless the handler of a GET takes that of a WebSocket. RFC 9110 5.4; RFC 9112 3.2; RFC
6585 5.
"""

import asyncio
import math
import re
import socket
from collections.abc import Callable, Sequence
from email.utils import formatdate
from ipaddress import ip_address
from typing import TYPE_CHECKING

import httptools
import msgspec
from msgspec import Struct
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from relay.base.clock import Clock, Ids, rfc3339
from relay.front_door.http import errors, http_request, tunnels
from relay.front_door.http.connection_limits import ConnectionState, ConnectionTable, HttpConnection
from relay.transport.ingress.local_users import peer_uid

if TYPE_CHECKING:  # imports a library that a service does not need
    from relay.front_door.http.web_socket import WebSocket

# RFC 3986 3.2.2: an IP literal or a registered name, which may be empty; then a port
_HOST = re.compile(r"(\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")


class AllowedHosts(Struct, frozen=True):
    """The host names of a server in lower case; names of the loopback interface are implied.

    This protects a development relay from DNS rebinding, which needs a name: `any_address` allows
    every IP address.
    """

    names: frozenset[str] = frozenset()
    any_address: bool = False

    def allows(self, name: str) -> bool:
        """Return whether a host name without its port is allowed."""
        name = name.lower().removesuffix(".")
        if name in self.names or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            return ip_address(name.strip("[]")).is_loopback or self.any_address
        except ValueError:
            return False


LOOPBACK_HOSTS = AllowedHosts()


def host_error(
    named: Sequence[bytes], *, is_required: bool, allowed: AllowedHosts | None = None
) -> errors.ApiError | None:
    """Return the error for the Host fields of a request, None if they are valid.

    Without `allowed` every host name is valid. RFC 9110 7.4 (421); RFC 6761 6.3 (localhost).
    """
    if not named and not is_required:
        return None
    if len(named) != 1:
        actual = f"{len(named)} Host fields" if named else "none"
        return errors.ApiError(
            400, "BadRequest", f"Host: found {actual}, expected one with the host name."
        )
    text = named[0].decode("latin-1")
    parts = _HOST.fullmatch(text)
    if parts is None:
        return errors.ApiError(
            400, "BadRequest", f"Host: found {errors.quoted(text)}, expected NAME or NAME:PORT."
        )
    if allowed is None or allowed.allows(parts[1]):
        return None
    message = (
        f"Host: found {errors.quoted(text)}. This development relay answers to localhost and to "
        "loopback addresses; to use another name, start it with: relay dev --host NAME"
    )
    return errors.ApiError(421, "MisdirectedRequest", message)


def host_of_peer(transport: asyncio.BaseTransport) -> str:
    """Return the client's IP address, "" on a Unix socket."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else ""


HEADER_BYTES_MAX = 64 * 1024  # URL and header fields together; long tokens take a few KB
HEADER_TIMEOUT_S = 30.0
REST_TIMEOUT_S = 10.0  # for the rest of a body whose response has been sent
# limit: an HTTP client that does not read its response
UNREAD_TIMEOUT_S = 60.0
BUFFERED_BYTES = 16 * 1024  # of responses in the buffer of a connection before the writer waits
HEALTH_PATHS = (b"/healthz", b"/readyz")  # paths answered even at the limit of requests

_RETRY_S = 2
_TRANSPORT_SECURITY = "max-age=31536000"
# A browser applies the field to all ports of a host, also to other programs on localhost.
_LOCAL_TRANSPORT_SECURITY = "max-age=0"
_UPGRADE_FIELDS = frozenset((b"connection", b"upgrade", b"http2-settings"))
_OFFER = (b"GET", "1.1", b"websocket", b"")  # of a WebSocket (RFC 6455 4.1); nothing follows it yet


class _RejectedError(Exception):
    """Raised in a callback of the parser to stop it; `_error` has the response."""


# Continues a connection that is counted already: from now on it is a tunnel.
OpenTunnel = Callable[[asyncio.Transport, HttpConnection], asyncio.Protocol]


class BoundedProtocol(HttpToolsProtocol):
    """One HTTP/1.1 connection.

    The server sets `clock`, `table` and `hosts`. The server of a development relay also
    sets `tunnel_hosts`, and `open_tunnel` for connections outside of a tunnel.
    """

    clock: Clock
    table: ConnectionTable
    hosts: AllowedHosts | None = None
    tunnel_hosts: tunnels.TunnelHosts | None = None
    open_tunnel: OpenTunnel | None = None
    _connection: HttpConnection | None = None
    _error: errors.ApiError | None = None
    _socket: "WebSocket | None" = None  # has the connection
    _is_over = False  # a further request came before the response: parsing has ended
    _is_last = False  # the connection ends with the request, whose response precedes its body's end
    _header_bytes = 0
    _is_in_header = True  # a new connection waits for its first header
    _header_timer: asyncio.TimerHandle | None = None  # of a header, or the rest of a body
    _read_timer: asyncio.TimerHandle | None = None
    _unread_bytes = math.inf  # at the last check; inf if the client has read since

    def admit(self, connection: HttpConnection) -> None:
        """Continue a connection that was added before its TLS handshake."""
        self._connection = connection
        connection.close = self._close_connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Add the connection, or answer 503 at the limit."""
        super().connection_made(transport)
        if self.client is None and transport.get_extra_info("socket").family != socket.AF_UNIX:
            transport.abort()  # a client that has reset it has no address, as one of this machine
            return
        transport.set_write_buffer_limits(high=BUFFERED_BYTES)
        self._check_client_reads()
        if self._connection is None:
            host = self.client[0] if self.client is not None else ""
            self._connection = self.table.add(host, self._close_connection)
        if self._connection is None:
            self._send_error(_too_many("connections"))
        else:
            self._start_timeout(HEADER_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection."""
        self._cancel_timers()
        if self._connection is not None:
            self.table.remove(self._connection)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; start the header time-out."""
        if self._is_over or self.transport.is_closing():
            return
        if self._socket is not None:
            self._socket.data_received(data)
            return
        if not self._is_running:
            self._unset_keepalive_if_required()
            if self._header_timer is None:
                self._start_timeout(HEADER_TIMEOUT_S)
        self._feed(data)
        self._update_state()
        if self._connection is not None:
            self.table.body_received(self._connection, len(data))

    @property
    def _is_running(self) -> bool:
        """Whether a request has no response yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self._is_over:
                self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        """Start to count the header of a request; if one is running, close the connection
        after it.
        """
        if self._is_running or self._is_last:
            self._is_over, self.cycle.keep_alive = True, False
            raise _RejectedError
        self._header_bytes = 0
        self._is_in_header = True
        super().on_message_begin()
        self.scope[http_request.CLOSE] = self.transport.close  # type: ignore[literal-required]
        self.scope[http_request.ABORT] = self.transport.abort  # type: ignore[literal-required]
        if self.client is None and hasattr(socket, "SO_PEERCRED"):  # macOS has none
            self.scope[http_request.PEER_UID] = peer_uid(self.transport)  # type: ignore[literal-required]

    def on_url(self, url: bytes) -> None:
        """Count the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count one header field."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the header time-out and start the request."""
        self._cancel_header_timeout()
        if not self.parser.should_upgrade():
            if self.tunnel_hosts is not None and not self.url.startswith((b"/", b"*")):
                self._stop_parsing(tunnels.absolute_form_error(self.url, self.tunnel_hosts))
            self._check_host()
            self._admit_request()
            self.scope[http_request.ALLOW_RESPONSE] = self._may_send_response  # type: ignore[literal-required]
            self.scope[http_request.KEEP_READING] = self._keep_reading  # type: ignore[literal-required]
            super().on_headers_complete()
            if security := self._transport_security():
                field = (b"strict-transport-security", security.encode())
                self.cycle.default_headers = [*self.cycle.default_headers, field]

    def on_message_complete(self) -> None:
        """End the request's body."""
        if not self.parser.should_upgrade():
            self.scope[http_request.BODY_COMPLETE] = True  # type: ignore[literal-required]
            super().on_message_complete()
            if self.cycle.response_complete:
                self.cycle.more_body = False
                self._end_request()

    def on_response_complete(self) -> None:
        """From now on count the unread part of the response, and discard the rest of the body."""
        if self._connection is not None:
            self.table.response_sent(self._connection)
        super().on_response_complete()
        if self.cycle.more_body:
            self._unset_keepalive_if_required()
            self._start_timeout(REST_TIMEOUT_S)
        elif self._is_last:
            self._end_request()
        self._update_state()

    def _keep_reading(self) -> None:
        """Let the connection outlast the response, which comes before the end of the body."""
        self._is_last |= not self.cycle.keep_alive
        self.cycle.keep_alive = True

    def _end_request(self) -> None:
        """End a request whose response came before the end of its body."""
        self._cancel_header_timeout()
        if self._is_last:
            self.transport.close()
        else:
            self._start_timeout(HEADER_TIMEOUT_S)  # for the whole next header

    def shutdown(self) -> None:
        """Let a running request end, and a WebSocket at once."""
        if self._socket is not None:
            self._socket.close()
        super().shutdown()

    def pause_writing(self) -> None:
        """Pause writing until the client has read."""
        super().pause_writing()
        if self._connection is not None:
            self.table.set_buffered_bytes(self._connection, self.transport.get_write_buffer_size())
        self._update_state()

    def resume_writing(self) -> None:
        """Resume writing: the client has read."""
        self._unread_bytes = math.inf
        super().resume_writing()
        if self._connection is not None:
            self.table.set_buffered_bytes(self._connection, 0)
        self._update_state()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP, or a limit that was exceeded, with Graph's envelope."""
        self._send_error(self._error or errors.ApiError(400, "BadRequest", msg))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse the request again without its Upgrade field: the parser reads no body after one.
        `rest` is what came after its header.

        `curl --http2` and Java's client send the field with every first request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._connect(rest)
            return
        fields = [(name, value) for name, value in self.headers if name not in _UPGRADE_FIELDS]
        upgrade = dict(self.headers).get(b"upgrade", b"").lower()
        offer = (method, self.parser.get_http_version(), upgrade, rest)
        if not self.parser.should_keep_alive():
            fields.append((b"connection", b"close"))
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, self.url, lines)
        self.parser = httptools.HttpRequestParser(self)
        self._feed(head + rest)
        if offer == _OFFER:
            self.scope[http_request.TAKE_OVER] = self._take_over  # type: ignore[literal-required]

    def _take_over(self, socket: "WebSocket") -> asyncio.Transport:
        """Give the connection to a WebSocket; it is still counted as a running request."""
        self._socket = socket
        return self.transport

    def _connect(self, early: bytes) -> None:
        """Open a tunnel or refuse it. Octets that came before the answer are the first in the
        tunnel.

        The connection is still counted as before.
        """
        connection = self._connection
        if self.tunnel_hosts is None or self.open_tunnel is None or connection is None:
            self.send_400_response("CONNECT is not supported: this is not a proxy.")
            return
        if self.cycle:  # its response may still be unread
            self.send_400_response("CONNECT: expected it as the first request of a connection.")
            return
        if error := tunnels.connect_error(self.url, self.headers, self.tunnel_hosts):
            self._send_error(error, phrase=tunnels.REFUSAL_PHRASE if error.status == 403 else "")
            return
        self._connection = None
        self._cancel_timers()
        self.connections.discard(self)
        self.transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        tunnel = self.open_tunnel(self.transport, connection)
        if early:
            tunnel.data_received(early)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES_MAX:
            text = f"The URL and the header fields are larger than {HEADER_BYTES_MAX} bytes."
            self._stop_parsing(errors.ApiError(431, "RequestHeaderFieldsTooLarge", text))

    def _hosts_named(self) -> list[bytes]:
        return [value for name, value in self.headers or () if name == b"host"]

    def _transport_security(self) -> str:
        """Return the value of Strict-Transport-Security for the host that was asked, or "".

        A development relay sends none: it answers for names whose real hosts a browser knows.
        """
        if self.scheme != "https":
            return ""
        named = b"".join(self._hosts_named()[:1]).decode("latin-1")
        is_local = LOOPBACK_HOSTS.allows(named.rpartition(":")[0] or named)
        if is_local:
            return _LOCAL_TRANSPORT_SECURITY
        return _TRANSPORT_SECURITY if self.hosts is None else ""

    def _check_host(self) -> None:
        named = self._hosts_named()
        is_required = self.parser.get_http_version() == "1.1"
        if error := host_error(named, is_required=is_required, allowed=self.hosts):
            self._stop_parsing(error)

    def _admit_request(self) -> None:
        """Admit a request under the limits; health checks are always admitted."""
        assert self._connection is not None
        address = self.table.identify(self._connection, self.headers)
        self.scope[http_request.COUNTED_ADDRESS] = address  # type: ignore[literal-required]
        is_health = self.url.partition(b"?")[0] in HEALTH_PATHS
        if not is_health and not self.table.may_start_request(self._connection):
            self._stop_parsing(_too_many("requests"))
        self.table.set_state(self._connection, ConnectionState.BUSY)

    def _stop_parsing(self, error: errors.ApiError) -> None:
        self._error = error
        raise _RejectedError

    def _may_send_response(self, size_bytes: int, may_be_refused: bool) -> bool:
        assert self._connection is not None
        return self.table.may_send_response(
            self._connection, size_bytes, may_be_refused=may_be_refused
        )

    def _update_state(self) -> None:
        """Record what the connection waits for now."""
        if self._connection is None:
            return
        if self.flow.write_paused:
            state = ConnectionState.UNREAD
        elif self._is_running:
            is_receiving = self.cycle.more_body
            state = ConnectionState.RECEIVING if is_receiving else ConnectionState.BUSY
        elif self._is_in_header:
            state = ConnectionState.HALF_OPEN
        else:
            is_answered = self.cycle is not None and self.cycle.more_body
            state = ConnectionState.ANSWERED if is_answered else ConnectionState.IDLE
        self.table.set_state(self._connection, state)

    def _close_connection(self) -> None:
        """Close this connection in favour of another one."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # close() would wait until the client has read
        else:
            self.transport.close()

    def _check_client_reads(self) -> None:
        """Abort the connection if the client has read nothing since the last check."""
        waiting_bytes = self.transport.get_write_buffer_size()
        if waiting_bytes and waiting_bytes >= self._unread_bytes:
            self.transport.abort()
            return
        self._unread_bytes = waiting_bytes or math.inf
        self._read_timer = self.loop.call_later(  # real time: a client
            UNREAD_TIMEOUT_S, self._check_client_reads
        )

    def _start_timeout(self, timeout_s: float) -> None:
        self._header_timer = self.loop.call_later(  # real time: a client
            timeout_s, self.transport.close
        )

    def _cancel_timers(self) -> None:
        self._cancel_header_timeout()
        if self._read_timer is not None:
            self._read_timer.cancel()

    def _cancel_header_timeout(self) -> None:
        self._is_in_header = False
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _send_error(self, error: errors.ApiError, *, phrase: str = "") -> None:
        now_us = self.clock.time_us()
        request_id = Ids(self.clock).new()
        ids = errors.RequestIds(request_id, request_id)
        body = msgspec.json.encode(errors.error_body(error, ids=ids, date=rfc3339(now_us)[:19]))
        fields = {
            "content-type": "application/json",
            "connection": "close",
            "request-id": request_id,
            "client-request-id": request_id,
            "date": formatdate(now_us // 1_000_000, usegmt=True),
            "content-length": str(len(body)),
            **error.headers,
        }
        if security := self._transport_security():
            fields["strict-transport-security"] = security
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        status = STATUS_LINE[error.status]
        if phrase:
            status = f"HTTP/1.1 {error.status} {phrase}\r\n".encode()
        self.transport.write(status + lines.encode() + b"\r\n" + body)
        self.transport.close()


def _too_many(what: str) -> errors.ApiError:
    return errors.service_unavailable(
        f"Too many {what} at once; try again.", retry_after_s=_RETRY_S
    )
