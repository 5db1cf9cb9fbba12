"""The HTTP server: connections of uvicorn in the running event loop, on sockets bound before.

stop() lets running requests finish within the grace time.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from functools import partial

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from relay.base.certificates import ServerCertificate
from relay.base.clock import Clock
from relay.base.socket_address import Address
from relay.base.sockets import Listener, open_listener
from relay.http.connection_limits import ConnectionLimits, ConnectionTable, HttpConnection
from relay.http.protocol import AllowedHosts, BoundedProtocol
from relay.http.tls_connection import TlsConnection
from relay.http.tunnels import TunnelHosts
from relay.observe.logs import get_logger

_BACKLOG = 1024
_KEEP_ALIVE_S = 75
_STOP_POLL_S = 0.1  # how often it looks whether the connections have ended
_CANCELLED_GRACE_S = 1.0
_TURNS_TO_CLOSE = 3  # of the event loop, until a closed connection is lost
_log = get_logger("http")


class HttpServer:
    """One application on its listeners. Call bind(), start(), stop() once each, in this order."""

    def __init__(
        self,
        app: ASGIApp,
        addresses: Sequence[Address],
        *,
        clock: Clock,
        limits: ConnectionLimits | None = None,
        hosts: AllowedHosts | None = None,
        certificate: ServerCertificate | None = None,
        tunnel_hosts: TunnelHosts | None = None,
    ) -> None:
        """`clock` dates the server's own errors. Requests for hosts other than `hosts` are
        rejected. With `certificate`, TCP addresses that are not plain have TLS. With
        `tunnel_hosts`, it is also a proxy for these.
        """
        self._config = uvicorn.Config(
            app,
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
        self._state = ServerState()
        self._addresses = tuple(addresses)
        self._clock = clock
        self._limits = limits or ConnectionLimits()
        self._hosts = hosts
        self._certificate = certificate
        self._tunnel_hosts = tunnel_hosts
        self._listeners: list[Listener] = []
        self._servers: list[asyncio.Server] = []
        self._handshakes: set[TlsConnection] = set()
        self._table: ConnectionTable

    @property
    def bound(self) -> tuple[Address, ...]:
        """The addresses in use, with the real number for a port of 0."""
        return tuple(one.address for one in self._listeners)

    @property
    def accepted(self) -> int:
        """How many connections it has had since its start."""
        return self._table.added

    def has_tls(self, address: Address) -> bool:
        """Return whether connections to one of its addresses have TLS."""
        return self._certificate is not None and not (address.plain or address.path)

    def bind(self) -> None:
        """Bind every address.

        Raises OSError that names the address that failed; all sockets are closed then.
        """
        try:
            for address in self._addresses:
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
        self._table = ConnectionTable(self._limits, loop.time)  # real time: clients
        try:
            for listener in self._listeners:
                await self._listen(listener)
        except BaseException:
            await self.stop(0)
            raise

    async def _listen(self, listener: Listener) -> None:
        factory: Callable[[], asyncio.Protocol] = self._new_protocol
        if self._certificate is not None and self.has_tls(listener.address):
            factory = partial(self._new_tls, self._certificate.context, self._new_protocol)
        self._servers += await listener.serve(factory, backlog=_BACKLOG)

    async def stop(self, grace_s: float) -> None:
        """Stop listening, let running requests end within `grace_s` seconds, cancel the others.

        A handshake is not waited for, and idle connections are closed at once.
        """
        for server in self._servers:
            server.close()
        for handshake in tuple(self._handshakes):
            handshake.abort()
        for connection in tuple(self._state.connections):
            connection.shutdown()
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(grace_s):  # real time: clients
                while self._state.connections or self._state.tasks:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(_STOP_POLL_S)  # real time: clients
        except TimeoutError:
            await self._cancel_requests()
        self._close_sockets()

    async def _cancel_requests(self) -> None:
        if cancelled := tuple(self._state.tasks):
            _log.error("requests are cancelled: the server stops", requests=len(cancelled))
            for task in cancelled:
                task.cancel()
            await asyncio.wait(cancelled, timeout=_CANCELLED_GRACE_S)  # real time: clients

    def _close_sockets(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _new_protocol(self) -> BoundedProtocol:
        made = self._new_in_tunnel(self._hosts)
        if self._tunnel_hosts is not None:
            made.open_tunnel = self._open_tunnel
        return made

    def _new_in_tunnel(self, hosts: AllowedHosts | None) -> BoundedProtocol:
        made = BoundedProtocol(self._config, self._state, {}, asyncio.get_running_loop())
        made.clock, made.connection_table = self._clock, self._table
        made.hosts, made.tunnel_hosts = hosts, self._tunnel_hosts
        return made

    def _new_tls(
        self, context: ssl.SSLContext, new_protocol: Callable[[], BoundedProtocol]
    ) -> TlsConnection:
        return TlsConnection(
            context, self._table, new_protocol=new_protocol, handshakes=self._handshakes
        )

    def _open_tunnel(
        self, transport: asyncio.Transport, connection: HttpConnection
    ) -> asyncio.Protocol:
        hosts = self._tunnel_hosts
        assert hosts is not None
        assert hosts.context is not None, "there are names, since one was let through"
        inside = partial(self._new_in_tunnel, AllowedHosts(hosts.names))
        made = self._new_tls(hosts.context(), inside)
        made.take_over(transport, connection)
        return made
