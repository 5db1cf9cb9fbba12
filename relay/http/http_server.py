"""The HTTP server: uvicorn in the running event loop, on sockets that are bound before it starts.

The daemon keeps its signal handlers. stop() lets running requests finish within the grace time.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from relay.certificates import ServerCertificate
from relay.clock import Clock, SystemClock
from relay.http.connection_limits import ConnectionLimits, ConnectionTable, HttpConnection
from relay.http.protocol import AllowedHosts, BoundedProtocol
from relay.http.tls_connection import TlsConnection
from relay.http.tunnels import TunnelHosts
from relay.settings.tree import Address
from relay.sockets import Listener, open_listener

_BACKLOG = 1024
_KEEP_ALIVE_S = 75
_CANCELLED_GRACE_S = 1.0
_TURNS_TO_CLOSE = 3  # of the event loop, until a closed connection is lost


class HttpServer:
    """One application on its listeners. Call bind(), start(), stop() once each, in this order."""

    def __init__(
        self,
        app: ASGIApp,
        addresses: Sequence[Address],
        *,
        clock: Clock | None = None,
        limits: ConnectionLimits | None = None,
        hosts: AllowedHosts | None = None,
        certificate: ServerCertificate | None = None,
        tunnel_hosts: TunnelHosts | None = None,
    ) -> None:
        """`clock` dates the server's own errors. Requests for hosts other than `hosts` are
        rejected. With `certificate`, TCP addresses that are not plain have TLS. With
        `tunnel_hosts`, it is also a proxy for these.
        """
        self._certificate = certificate
        self._addresses = tuple(addresses)
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None
        self._server = _UvicornServer(
            uvicorn.Config(
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
                server_header=False,
                date_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                backlog=_BACKLOG,
            ),
            clock or SystemClock(),
            limits=limits or ConnectionLimits(),
            hosts=hosts,
            tunnel_hosts=tunnel_hosts,
        )

    @property
    def bound(self) -> tuple[Address, ...]:
        """The addresses in use, with the real number for a port of 0."""
        return tuple(one.address for one in self._listeners)

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
        sockets = [each for one in self._listeners for each in one.sockets]
        if self._certificate is not None:
            secured = (one for one in self._listeners if self.has_tls(one.address))
            contexts = {each: self._certificate.context for one in secured for each in one.sockets}
            self._server.tls_contexts = contexts
        self._task = asyncio.create_task(self._server.serve(sockets), name="http server")
        ready = asyncio.create_task(self._server.accepting.wait())
        try:
            await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._task.done():
            self._close_sockets()
            await self._task

    async def stop(self, grace_s: float) -> None:
        """Stop listening, let running requests end within `grace_s` seconds, cancel the others."""
        if self._task is None:
            self._close_sockets()
            return
        self._server.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]
        self._server.exiting.set()
        await self._task
        cancelled = tuple(self._server.server_state.tasks)
        if cancelled:
            await asyncio.wait(cancelled, timeout=_CANCELLED_GRACE_S)  # real time: clients
        self._close_sockets()

    def _close_sockets(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()


class _UvicornServer(uvicorn.Server):
    """uvicorn's server without signal handlers, on sockets that are bound already."""

    def __init__(
        self,
        config: uvicorn.Config,
        clock: Clock,
        *,
        limits: ConnectionLimits,
        hosts: AllowedHosts | None,
        tunnel_hosts: TunnelHosts | None,
    ) -> None:
        super().__init__(config)
        self._clock = clock
        self._limits = limits
        self._hosts = hosts
        self._tunnel_hosts = tunnel_hosts
        self._handshakes: set[TlsConnection] = set()
        self.tls_contexts: Mapping[socket.socket, ssl.SSLContext] = {}
        self.accepting = asyncio.Event()
        self.exiting = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Keep the daemon's signal handlers."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving on `sockets`."""
        loop = asyncio.get_running_loop()
        self._table = ConnectionTable(self._limits, loop.time)  # real time: clients
        await self.lifespan.startup()
        self.servers = []
        for listener in sockets or ():
            factory: Callable[[], asyncio.Protocol] = self._new_protocol
            if (context := self.tls_contexts.get(listener)) is not None:
                factory = partial(self._new_tls, context, self._new_protocol)
            if listener.family == socket.AF_UNIX:
                server = await loop.create_unix_server(factory, sock=listener, backlog=_BACKLOG)
            else:
                server = await loop.create_server(factory, sock=listener, backlog=_BACKLOG)
            self.servers.append(server)
        self.started = True
        self.accepting.set()

    def _new_protocol(self) -> BoundedProtocol:
        made = self._new_in_tunnel(self._hosts)
        if self._tunnel_hosts is not None:
            made.open_tunnel = self._open_tunnel
        return made

    def _new_in_tunnel(self, hosts: AllowedHosts | None) -> BoundedProtocol:
        made = BoundedProtocol(self.config, self.server_state, {}, asyncio.get_running_loop())
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

    async def main_loop(self) -> None:
        """Wait for the end; uvicorn's own loop wakes ten times a second."""
        await self.exiting.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving; a handshake is not waited for, idle connections are closed at once."""
        for server in self.servers:
            server.close()
        for handshake in tuple(self._handshakes):
            handshake.abort()
        state = self.server_state
        for connection in tuple(state.connections):
            connection.shutdown()
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)
        if state.connections or state.tasks:
            await super().shutdown(sockets)  # looks ten times a second whether they have ended
