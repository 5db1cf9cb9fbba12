"""The HTTP server: connections of uvicorn in the running event loop, on sockets bound before.

stop() lets running requests finish within the grace time.

The limits apply to TLS from the first octet. The TLS of asyncio and uvloop reports a connection
only after its handshake, so clients could open any number of connections, and its write buffer is
not counted. Here, encrypted data goes into the buffer of the connection, which the limits count. A
closure alert is sent and not waited for (RFC 8446 6.1).
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from relay.base.certificates import ServerCertificate
from relay.base.clock import Clock
from relay.base.observe.logs import get_logger
from relay.base.socket_address import Address
from relay.base.sockets import Listener, open_listener
from relay.front_door.http.connection_limits import (
    ConnectionLimits,
    ConnectionTable,
    HttpConnection,
)
from relay.front_door.http.protocol import AllowedHosts, BoundedProtocol, host_of_peer
from relay.front_door.http.tunnels import TunnelHosts

HANDSHAKE_TIMEOUT_S = 10.0
_READ_BYTES = 256 * 1024
_BACKLOG = 1024
_KEEP_ALIVE_S = 75
_STOP_POLL_S = 0.1  # how often it looks whether the connections have ended
_CANCELLED_GRACE_S = 1.0
_TURNS_TO_CLOSE = 3  # rounds of the event loop until a closed connection is gone
_log = get_logger("http")


@dataclass(eq=False, repr=False)
class TlsConnection(asyncio.Protocol, asyncio.Transport):
    """TLS between a connection and its BoundedProtocol.

    For the connection it is the protocol, which makes the handshake and decrypts; for the
    BoundedProtocol it is the transport.
    """

    context: ssl.SSLContext
    table: ConnectionTable
    new_protocol: Callable[[], BoundedProtocol]  # is called after the handshake
    handshakes: set["TlsConnection"]  # contains this object until then

    def __post_init__(self) -> None:
        super().__init__()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._connection: HttpConnection | None = None
        self._protocol: asyncio.Protocol | None = None  # None: the handshake is not over
        self._timer: asyncio.TimerHandle | None = None
        self._is_reading = True
        self._is_writing_paused = False
        self._is_closing = False
        self._raw: asyncio.Transport

    # -- the connection
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Add the connection and start the time-out of its handshake; at the limit close it."""
        self._raw = transport
        connection = self.table.add(host_of_peer(transport), self.abort)
        if connection is None:
            transport.abort()
        else:
            self._begin(connection)

    def take_over(self, transport: asyncio.Transport, connection: HttpConnection) -> None:
        """Continue a connection that is already counted: a handshake follows."""
        self._raw = transport
        connection.close = self.abort
        transport.set_protocol(self)
        self._begin(connection)

    def _begin(self, connection: HttpConnection) -> None:
        self._connection = connection
        self.handshakes.add(self)
        self._timer = asyncio.get_running_loop().call_later(  # real time: a client
            HANDSHAKE_TIMEOUT_S, self.abort
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection, or tell its protocol."""
        self._is_closing = True
        if self._protocol is not None:
            self._protocol.connection_lost(exc)
        else:
            self._end_handshake()
            if self._connection is not None:
                self.table.remove(self._connection)

    def data_received(self, data: bytes) -> None:
        """Continue the handshake, or decrypt."""
        self._incoming.write(data)
        if self._protocol is None:
            self._shake_hands()
        if self._protocol is not None:
            self._deliver()

    def eof_received(self) -> None:
        """Tell the protocol; the connection is closed then."""
        if self._protocol is not None:
            self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Pass it on."""
        self._is_writing_paused = True
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._is_writing_paused = False
        if self._protocol is not None:
            self._protocol.resume_writing()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError:  # not TLS, or no version or cipher in common
            self._flush()
            self._is_closing = True
            self._raw.close()
            return
        self._flush()
        self._end_handshake()
        assert self._connection is not None
        self._protocol = made = self.new_protocol()
        made.admit(self._connection)
        made.connection_made(self)
        if self._is_writing_paused:
            self._protocol.pause_writing()

    def _end_handshake(self) -> None:
        self.handshakes.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _deliver(self) -> None:
        """Pass what has arrived to the protocol, while it reads."""
        assert self._protocol is not None
        while self._is_reading and not self._is_closing:
            try:
                data = self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                if not self._raw.is_reading():
                    self._raw.resume_reading()  # earlier, more would arrive than is delivered
                break
            except ssl.SSLError:
                self.abort()
                return
            if not data:  # the client's closure alert
                self._protocol.eof_received()
                self.close()
                return
            self._protocol.data_received(data)
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._raw.is_closing():
            self._raw.write(self._outgoing.read())

    # -- the transport
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact about the connection."""
        own = {"sslcontext": self.context, "ssl_object": self._tls}
        return own[name] if name in own else self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Pass what is received from now on to another protocol."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        if data and not self.is_closing():
            self._tls.write(data)
            self._flush()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the limits of encrypted data that waits to be sent."""
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return the number of encrypted octets that wait to be sent."""
        return self._raw.get_write_buffer_size()

    def is_closing(self) -> bool:
        """Return whether nothing more is read or written."""
        return self._is_closing or self._raw.is_closing()

    def close(self) -> None:
        """Send a closure alert, and close when everything is sent."""
        if not self.is_closing():
            with contextlib.suppress(ssl.SSLError):  # raised because the client's alert is missing
                self._tls.unwrap()
            self._flush()
            self._is_closing = True
            self._raw.close()

    def abort(self) -> None:
        """Close at once."""
        self._is_closing = True
        self._raw.abort()

    def is_reading(self) -> bool:
        """Return whether received data is passed to the protocol."""
        return self._is_reading and not self.is_closing()

    def pause_reading(self) -> None:
        """Pass nothing more to the protocol."""
        if self.is_reading():
            self._is_reading = False
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Continue with what has arrived meanwhile."""
        if not self._is_reading and not self.is_closing():
            self._is_reading = True
            asyncio.get_running_loop().call_soon(self._deliver)


@dataclass(eq=False, repr=False)
class HttpServer:
    """One application on its listeners. Call bind(), start(), stop() once each, in this order.

    Requests for hosts other than `hosts` are rejected. With `certificate`, TCP addresses that are
    not plain have TLS. With `tunnel_hosts`, it is also a proxy for these.
    """

    app: ASGIApp
    addresses: Sequence[Address]
    clock: Clock  # dates its own errors
    limits: ConnectionLimits = ConnectionLimits()  # noqa: RUF009 - it is frozen
    hosts: AllowedHosts | None = None
    certificate: ServerCertificate | None = None
    tunnel_hosts: TunnelHosts | None = None

    def __post_init__(self) -> None:
        self._config = uvicorn.Config(
            self.app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            workers=1,
            proxy_headers=False,
            forwarded_allow_ips="",
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self.state = ServerState()
        self._listeners: list[Listener] = []
        self._servers: list[asyncio.Server] = []
        self.handshakes: set[TlsConnection] = set()
        self.table: ConnectionTable

    @property
    def bound(self) -> tuple[Address, ...]:
        """The addresses in use, with the real number for a port of 0."""
        return tuple(listener.address for listener in self._listeners)

    @property
    def accepted(self) -> int:
        """The number of connections since the start."""
        return self.table.added

    def has_tls(self, address: Address) -> bool:
        """Return whether connections to one of its addresses have TLS."""
        return self.certificate is not None and not (address.plain or address.path)

    def bind(self) -> None:
        """Bind every address.

        Raises OSError that names the address that failed; all sockets are closed then.
        """
        try:
            for address in self.addresses:
                self._listeners.append(open_listener(address, backlog=_BACKLOG))
        except OSError:
            self._close_sockets()
            raise

    async def start(self) -> None:
        """Start to accept connections. Raises the exception that made the start fail."""
        if not self._listeners:
            self.bind()
        self._config.load()
        loop = asyncio.get_running_loop()
        self.table = ConnectionTable(self.limits, loop.time)  # real time: clients
        try:
            for listener in self._listeners:
                await self._listen(listener)
        except BaseException:
            await self.stop(0)
            raise

    async def _listen(self, listener: Listener) -> None:
        factory: Callable[[], asyncio.Protocol] = self._new_protocol
        if self.certificate is not None and self.has_tls(listener.address):
            factory = partial(self._new_tls, self.certificate.context, self._new_protocol)
        self._servers += await listener.serve(factory, backlog=_BACKLOG)

    async def stop(self, grace_s: float) -> None:
        """Stop listening, let running requests end within `grace_s` seconds, cancel the others.

        A handshake is not waited for, and idle connections are closed at once.
        """
        for server in self._servers:
            server.close()
        for handshake in tuple(self.handshakes):
            handshake.abort()
        for connection in tuple(self.state.connections):
            connection.shutdown()
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(grace_s):  # real time: clients
                while self.state.connections or self.state.tasks:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(_STOP_POLL_S)  # real time: clients
        except TimeoutError:
            await self._cancel_requests()
        self._close_sockets()

    async def _cancel_requests(self) -> None:
        if cancelled := tuple(self.state.tasks):
            _log.error("requests are cancelled: the server stops", requests=len(cancelled))
            for task in cancelled:
                task.cancel()
            await asyncio.wait(cancelled, timeout=_CANCELLED_GRACE_S)  # real time: clients

    def _close_sockets(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _new_protocol(self) -> BoundedProtocol:
        made = self._new_in_tunnel(self.hosts)
        if self.tunnel_hosts is not None:
            made.open_tunnel = self._open_tunnel
        return made

    def _new_in_tunnel(self, hosts: AllowedHosts | None) -> BoundedProtocol:
        made = BoundedProtocol(self._config, self.state, {}, asyncio.get_running_loop())
        made.clock, made.table = self.clock, self.table
        made.hosts, made.tunnel_hosts = hosts, self.tunnel_hosts
        return made

    def _new_tls(
        self, context: ssl.SSLContext, new_protocol: Callable[[], BoundedProtocol]
    ) -> TlsConnection:
        return TlsConnection(
            context, self.table, new_protocol=new_protocol, handshakes=self.handshakes
        )

    def _open_tunnel(
        self, transport: asyncio.Transport, connection: HttpConnection
    ) -> asyncio.Protocol:
        hosts = self.tunnel_hosts
        assert hosts is not None
        assert hosts.context is not None, "there are names, since one was let through"
        inside = partial(self._new_in_tunnel, AllowedHosts(hosts.names))
        made = self._new_tls(hosts.context(), inside)
        made.take_over(transport, connection)
        return made
