"""The network of a world: addresses, who listens at them, and calls that are refused or never answered.

A connection is known to the process at either end, so that its death severs it. Raises OSError, as
a network does. See async-solipsism's mock sockets.
"""

import asyncio
import errno
import math
import socket as sockets
import ssl
import sys
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import async_solipsism
from async_solipsism.socket import Socket, socketpair

from relay.base.settings import tree as settings
from relay.base.sockets import Listener
from tests.simulation.life import LIFE, Life

_TICK_S = 1e-6  # of async_solipsism's clock
Address = tuple[str, int]  # of a Unix socket: its path, and 0


@dataclass
class Host:
    """Where calls to an address go. `rings` is asked at each call: what it raises is raised."""

    name: str
    protocol: Callable[[], asyncio.BaseProtocol]
    context: Context
    rings: Callable[[], float] = lambda: 0.0  # how long until it answers; inf: never
    certificate: str = ""  # of CERTIFICATES


CERTIFICATES = (GOOD, SELF_SIGNED, OTHER_NAME) = ("good", "self-signed", "of another name")


@dataclass
class TlsSession:
    """An ssl.SSLObject at both ends, as far as anybody asks. Nothing is encrypted."""

    host: str
    certificate: str
    is_verified: bool = False  # the client has looked at the chain, which may end anywhere else
    is_shown: bool = False  # the client has asked for the certificate

    def version(self) -> str:
        return "TLSv1.3"

    def cipher(self) -> None:
        """It is not known."""

    @property
    def _sslobj(self) -> Any:
        return self

    def get_unverified_chain(self) -> list[Any]:
        self.is_shown = True
        return [self.public_bytes()] if sys.version_info >= (3, 13) else [self]

    def public_bytes(self, _encoding: int = 0) -> bytes:
        return octets_of_certificate(self.host)

    def getpeercert(self) -> dict[str, Any]:
        name = self.host if self.certificate == GOOD else "elsewhere.test"
        return {"subjectAltName": (("DNS", name),)} if self.is_verified else {}


def octets_of_certificate(host: str) -> bytes:
    """Return what a host shows, whoever has signed it."""
    return f"the certificate of {host}".encode()


class Network(async_solipsism.EventLoop):
    """An event loop whose sockets go nowhere else. `on_call` hears of each call of a process."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts: dict[Address, Host] = {}
        self.on_call: Callable[[Life, str], None] = lambda _life, _host: None
        self._called: dict[int, Socket] = {}
        self._ports = 1024

    def note(self, *words: object) -> None:
        """Put a line into the trace."""
        raise NotImplementedError

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        """At a tick of the clock that is not before `when`: nobody is woken a moment too early."""
        tick = math.ceil(round(when / _TICK_S, 3))
        if tick * _TICK_S < when:
            tick += 1
        return super().call_at(tick * _TICK_S, callback, *args, context=context)

    def at(self, address: Address, host: Host) -> None:
        self.hosts[address] = host

    async def call(self, address: Address, *, own_ip: str = "127.0.0.1") -> Socket:
        """Connect to an address. Raises OSError; a host may also never answer."""
        life = LIFE.get()
        host = self.hosts.get(address)
        calling = host.name if host else str(address)
        self._ports += 1
        mine, theirs = socketpair(sock1_name=(own_ip, self._ports), sock2_name=address)
        if life is not None:
            life.sockets.append(mine)
            open_calls = life.calls.setdefault(calling, [])
            open_calls[:] = [one for one in open_calls if one._read_queue is not None]
            open_calls.append(mine)
            self.on_call(life, calling)
        try:
            wait_s = host.rings() if host else 0.0
            if wait_s == float("inf"):
                self.note("no answer from", calling)
                await self.create_future()
            await asyncio.sleep(wait_s)
            host = self.hosts.get(address)
            if host is None:
                refused(address)
        except BaseException:
            mine.close()
            raise
        self.note("call", calling, "from", life.name if life else own_ip)
        mine.tls = theirs.tls = TlsSession(host.name, host.certificate)
        server = host.context.get(LIFE)
        if server is not None:
            server.sockets.append(theirs)
        host.context.copy().run(self._answer, host, theirs)
        return mine

    def is_open(self, socket: Socket) -> bool:
        """Whether a process still holds it: not closed, nor on its way to be."""
        if socket._read_queue is None:
            return False
        transport = self._transports.get(socket.fileno())
        return transport is None or not transport.is_closing()

    def _answer(self, host: Host, socket: Socket) -> None:
        self._make_socket_transport(socket, host.protocol())

    async def sock_connect(self, sock: sockets.socket, address: Any) -> None:
        """Connect, for who has a real socket: create_connection() puts the world's in its place."""
        self._called[sock.fileno()] = await self.call((address[0], address[1]))

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **more: Any
    ) -> Any:
        sock = more.get("sock")
        if sock is not None:
            mine = self._called.pop(sock.fileno())
            sock.close()
        else:
            mine = await self.call((host, port), own_ip=more.get("own_ip", "127.0.0.1"))
        return await self._connected(mine, protocol_factory)

    async def create_unix_connection(
        self, protocol_factory: Any, path: Any = None, **more: Any
    ) -> Any:
        return await self._connected(await self.call((str(path), 0)), protocol_factory)

    async def _connected(self, mine: Socket, protocol_factory: Any) -> Any:
        protocol, waiter = protocol_factory(), self.create_future()
        transport = self._make_socket_transport(mine, protocol, waiter)
        await waiter
        return transport, protocol

    async def start_tls(
        self,
        transport: Any,
        protocol: object,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        **more: object,
    ) -> Any:
        """Have an end know of TLS from now on. A client that verifies refuses what nobody signed."""
        session: TlsSession = transport._sock.tls
        transport._extra |= {"ssl_object": session, "sslcontext": context}
        if not server_side and context.verify_mode is ssl.CERT_REQUIRED:
            if session.certificate == SELF_SIGNED:
                transport.close()
                error = ssl.SSLCertVerificationError(1, "simulated")
                error.verify_code, error.verify_message = 18, "self-signed certificate"
                raise error
            session.is_verified = True
        return transport

    async def create_server(
        self,
        protocol_factory: Any,
        host: Any = None,
        port: Any = None,
        *,
        sock: "ListeningSocket | None" = None,
        **more: Any,
    ) -> "Listening":
        return self._listen(sock.address if sock else (host, port), protocol_factory)

    async def create_unix_server(
        self, protocol_factory: Any, *, sock: "ListeningSocket", **more: Any
    ) -> "Listening":
        return self._listen(sock.address, protocol_factory)

    def _listen(self, address: Address, factory: Any) -> "Listening":
        life = LIFE.get()
        context = life.context if life else copy_context()
        self.at(address, Host(Path(address[0]).name, factory, context))
        return Listening(self, address)


@dataclass
class Listening:
    """What create_server() gives."""

    world: Network
    address: Address

    def close(self) -> None:
        self.world.hosts.pop(self.address, None)


@dataclass
class ListeningSocket:
    """A socket of the relay's listener in a world."""

    address: Address

    @property
    def family(self) -> int:
        """A path is that of a Unix socket."""
        return sockets.AF_UNIX if self.address[0].startswith("/") else sockets.AF_INET

    def close(self) -> None:
        """Its Listening is closed as well."""


def open_listener(address: settings.Address, *, backlog: int, mode: int) -> Listener:
    """Open a listener of the relay in a world, instead of relay.base.sockets.open_listener()."""
    made = ListeningSocket((address.path or address.host, address.port))
    return Listener(address, (made,))  # type: ignore[arg-type]


def ioctl(descriptor: Any, _request: int, _argument: bytes) -> bytes:
    """Answer FIONREAD, the only request that the relay makes, for a socket of a world."""
    queue = descriptor.socket._read_queue
    if queue is None:
        raise OSError(errno.EBADF, "the socket is closed")
    return len(queue).to_bytes(4, sys.byteorder)


def refused(address: object) -> NoReturn:
    """Raise what a host says at whose port nobody listens."""
    raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {address}")
