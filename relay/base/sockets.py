"""Open the sockets of listeners, for SMTP and HTTP. All of Relay's sockets are bound here.

An address is HOST:PORT, unix:PATH or systemd:NAME. A host name means all its addresses on this
machine, and * all that it has; port 0 is one free port for all of them. The sockets of a NAME are
those that the service manager opened (sd_listen_fds(3)). It keeps them open: during a restart
clients wait in the backlog.
"""

import asyncio
import dataclasses
import errno
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from msgspec import Struct

from relay.base.phrases import printable
from relay.base.socket_address import BOTH_FAMILIES, Address, inherited_sockets

LACKING_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_PROBE_S = 1.0
_ACCEPTED_AT_ONCE = 64
_NO_FILES_S = 1.0
_FAILURES_MAX = 10  # tries, a second apart
_DISCARD_PORT = 9  # RFC 863; nothing is sent
_LISTENS = "0A"  # the state of a socket in /proc/net/tcp
_EARLY_BACKLOG = 512
OWNER_ONLY, EVERYBODY = 0o600, 0o666  # who may connect to a Unix socket, as its file mode

# asyncio would remove the file of a Unix socket that it did not create
_KEEPS_FILE: dict[str, Any] = {} if sys.version_info < (3, 13) else {"cleanup_socket": False}


class Listener(Struct, frozen=True):
    """Sockets that listen; `address` has the actual port. close() removes a Unix socket's file, but
    not one of the service manager.
    """

    address: Address
    sockets: tuple[socket.socket, ...]

    def close(self) -> None:
        """Close the sockets."""
        for sock in self.sockets:
            sock.close()
        if self.address.path and not self.address.systemd:
            Path(self.address.path).unlink(missing_ok=True)

    async def serve(
        self, factory: Callable[[], asyncio.BaseProtocol], *, backlog: int
    ) -> list[asyncio.Server]:
        """Accept connections in the running event loop."""
        loop, servers = asyncio.get_running_loop(), []
        for sock in self.sockets:
            if sock.family == socket.AF_UNIX:
                server = await loop.create_unix_server(
                    factory, sock=sock, backlog=backlog, **_KEEPS_FILE
                )
            else:
                server = await loop.create_server(factory, sock=sock, backlog=backlog)
            servers.append(server)
        return servers


_early: dict[Address, Listener] = {}  # from open_early() to open_listener()


class Acceptor:
    """Accepts connections without reading from them."""

    def __init__(
        self, sockets: Sequence[socket.socket], take: Callable[[socket.socket, object], None]
    ) -> None:
        """`take` gets each connection (non-blocking) and the address of its peer."""
        self._sockets, self._take = sockets, take
        self._is_accepting = False
        self._retry: asyncio.TimerHandle | None = None  # after a failure
        self._failures, self._error = 0, ""  # in a row, and the last one

    @property
    def fault(self) -> str:
        """Why no connection could be accepted for some seconds, or ""."""
        return self._error if self._failures > _FAILURES_MAX else ""

    def accept(self, *, goes_on: bool) -> None:
        """Accept from now on, or let clients wait in the backlog."""
        loop, self._is_accepting = asyncio.get_running_loop(), goes_on
        for sock in self._sockets:
            sock.setblocking(False)
            if goes_on and self._retry is None:
                loop.add_reader(sock.fileno(), self._accept_some, sock)
            elif sock.fileno() >= 0:
                loop.remove_reader(sock.fileno())

    def close(self) -> None:
        """Accept no more. The sockets stay open."""
        self.accept(goes_on=False)
        self._sockets = ()

    def _accept_some(self, listening: socket.socket) -> None:
        if self._retry is not None:  # another socket has failed
            return
        try:
            for _ in range(_ACCEPTED_AT_ONCE):
                if not self._is_accepting:
                    break
                connection, peer = listening.accept()
                connection.setblocking(False)
                self._take(connection, peer)
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            pass
        except OSError as error:  # no more open files
            self._failures, self._error = self._failures + 1, str(error.strerror)
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(_NO_FILES_S, self._try_again)  # real time: clients
            self.accept(goes_on=self._is_accepting)
            return
        self._failures = 0

    def _try_again(self) -> None:
        """Accept what waits; where nothing waits, a failure would show too (accept(2) of Linux)."""
        self._retry = None
        for sock in self._sockets:
            self._accept_some(sock)
        self.accept(goes_on=self._is_accepting)


def open_listener(address: Address, *, backlog: int, mode: int = OWNER_ONLY) -> Listener:
    """Bind and listen; a Unix socket has the file `mode` before a client can connect.

    A stale Unix socket is replaced, unless a process answers on it. Raises an OSError that names
    the address.
    """
    if early := _early.pop(address, None):
        return early
    try:
        if address.systemd:
            return Listener(address, inherited_sockets(address.systemd))
        if address.path:
            return Listener(address, (_unix_socket(Path(address.path), backlog, mode),))
        sockets = _tcp_sockets(address, backlog)
    except OSError as error:
        is_lookup = isinstance(error, socket.gaierror)  # whose numbers are not those of errno
        reason = error.strerror if is_lookup or not error.errno else os.strerror(error.errno)
        if error.errno == errno.EADDRINUSE and not address.path:
            reason = f"{reason} by {process_at(address)}"
        kind = FileExistsError if isinstance(error, FileExistsError) else OSError
        shown_address = f"systemd:{address.systemd}" if address.systemd else str(address)
        text = f"cannot listen on {shown_address}: {reason or error}"
        raise kind(error.errno or errno.EINVAL, text) from error
    return Listener(dataclasses.replace(address, port=_port(sockets[0])), tuple(sockets))


def open_early(*addresses: Address) -> None:
    """Listen before there is a server, which open_listener() gives the listener of its address.

    Raises an OSError that names an address; then it listens at none of them.
    """
    opened: dict[Address, Listener] = {}
    with ExitStack() as stack:
        for address in addresses:
            opened[address] = open_listener(address, backlog=_EARLY_BACKLOG)
            stack.callback(opened[address].close)
        stack.pop_all()
    _early.update(opened)


def bind_error(family: int, place: tuple[Any, ...]) -> int:
    """Bind as the servers do, without listening; return the errno, 0 on success."""
    try:
        _bound(family, place).close()
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def user_of(address: Address) -> str:
    """Return who listens at a TCP address, as process_at() does; "" if this process can."""
    if address.path or address.systemd or not address.port:
        return ""
    with suppress(OSError, UnicodeError):  # not an address: the start reports it
        for family, _, _, _, place in places_of(address):
            if bind_error(family, place) == errno.EADDRINUSE:
                return process_at(address)
    return ""


def process_at(address: Address) -> str:
    """Return who listens there as "NAME (pid N)", or "another program" if the system hides it."""
    with suppress(OSError):
        host = address.host.removeprefix(BOTH_FAMILIES) or "0.0.0.0"  # noqa: S104 - compared
        own = socket.inet_aton(host)[::-1].hex().upper().strip("0")
        rows = [
            row.split()
            for name in ("tcp", "tcp6")
            for row in Path("/proc/net", name).read_text("ascii").splitlines()
        ]
        inodes = {
            f"socket:[{row[9]}]"
            for row in rows
            if row[3] == _LISTENS and row[1].endswith(f":{address.port:04X}")
            if not own or row[1].partition(":")[0].strip("0") in ("", own)
        }
        for place in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
            with suppress(OSError):  # it has ended, or is another user's
                if any(str(link.readlink()) in inodes for link in (place / "fd").iterdir()):
                    return f"{printable((place / 'comm').read_text().strip())} (pid {place.name})"
    return "another program"


def open_datagram_socket(address: Address) -> socket.socket:
    """Bind a UDP socket to an IPv4 address. Raises OSError."""
    return _reserved(address, socket.SOCK_DGRAM)


def reserve_port(host: str) -> socket.socket:
    """Bind a free TCP port of an IPv4 address; it stays reserved while the socket is open."""
    return _reserved(Address(host, 0), socket.SOCK_STREAM)


def has_ipv6() -> bool:
    """Whether this machine can listen on IPv6 addresses."""
    try:
        _tcp_socket(socket.AF_INET6, ("::", 0), 1).close()
    except OSError:
        return False
    return True


def has_address(address: str) -> bool:
    """Return whether a socket of this machine can have this IP address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def is_of_this_machine(ip: IPv4Address | IPv6Address) -> bool:
    """Return whether a connection to an IP address ends at this machine. Nothing is sent."""
    if ip.is_loopback or ip.is_unspecified:
        return True
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if ip.version == 4:  # else its source may be another address of this machine
                probe.bind((str(ip), 0))
            # any address is bound with net.ipv4.ip_nonlocal_bind, but connects only if it is here
            probe.connect((str(ip), _DISCARD_PORT))
            return bool(probe.getsockname()[0] == str(ip))
    except OSError:
        return False


async def wait_readable(connection: socket.socket) -> None:
    """Wait until a connection has data to read, or has ended."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)


def _reserved(address: Address, kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    with _closed_on_error(made):
        made.bind((address.host, address.port))
        made.setblocking(False)
    return made


@contextmanager
def _closed_on_error(made: socket.socket) -> Iterator[None]:
    try:
        yield
    except OSError:
        made.close()
        raise


def _tcp_sockets(address: Address, backlog: int) -> list[socket.socket]:
    """Return a socket for each address of the host; those that the machine lacks are left out."""
    places = places_of(address)
    sockets: list[socket.socket] = []
    lacking = None
    try:
        for family, _, _, _, place in dict.fromkeys(places):
            port = _port(sockets[0]) if sockets else address.port
            try:
                sockets.append(_tcp_socket(family, (place[0], port, *place[2:]), backlog))
            except OSError as error:
                if error.errno not in LACKING_ADDRESS:
                    raise
                lacking = error
        if lacking is not None and not sockets:
            raise lacking
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    finally:
        del lacking
    return sockets


def places_of(address: Address) -> Sequence[tuple[int, int, int, str, tuple[Any, ...]]]:
    """Return what getaddrinfo(3) does, to listen there."""
    host = None if address.host == BOTH_FAMILIES else address.host
    return socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)


def _tcp_socket(family: int, place: tuple[object, ...], backlog: int) -> socket.socket:
    made = _bound(family, place)
    with _closed_on_error(made):
        made.listen(backlog)  # now, so that a port in use is detected before services start
        made.setblocking(False)
    return made


def _bound(family: int, place: tuple[object, ...]) -> socket.socket:
    # with IPPROTO_TCP: asyncio sets TCP_NODELAY only then, and responses would wait 40 ms
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with _closed_on_error(made):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(place)
    return made


def _port(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])


def _unix_socket(path: Path, backlog: int, mode: int) -> socket.socket:
    _remove_stale(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _closed_on_error(made):
        made.bind(str(path))
        path.chmod(mode)  # no client can connect before listen()
        made.listen(backlog)
        made.setblocking(False)
    return made


def _remove_stale(path: Path) -> None:
    """Remove a socket file on which no process listens."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(0, "it exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        with suppress(FileNotFoundError):
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                return
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
