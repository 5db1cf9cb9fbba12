"""One SMTP listener: its socket, its sessions, and how it stops.

On the path: app makes one per [[smtp]] and one for pickup; sessions hand messages to acceptance.
Holds: a Unix socket has mode 0600 before anybody can connect; an acceptance outlives its session.
Fails: OSError when address or certificate cannot be had; ValueError for a wrong network.
Standards: RFC 5321 3.8; RFC 8314 3.3 (TLS from the first byte); RFC 9325 (TLS 1.2 and up).
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

from relay.crashpoints import CrashPoints
from relay.ingress.acceptance import Acceptance
from relay.ingress.authorization import Passwords
from relay.ingress.data import Decision, Origin, Received
from relay.ingress.session_limits import Budget, Limits, SessionCount
from relay.ingress.smtp_commands import SHUTTING_DOWN, Quota, Service
from relay.ingress.smtp_session import TLS_HANDSHAKE_S, Door, SmtpSession
from relay.message.envelope import Envelope
from relay.pressure import Pressure
from relay.routing.route_table import RouteTable
from relay.settings.tree import Address, SmtpListener, Tls

_BACKLOG = 512
_COMMIT_S = 5.0
_LAST_WORDS_S = 0.2  # for a 421 to leave, when the grace time is over
_LOOPBACK = "127.0.0.1"  # stands for a Unix socket, whose peers are on this machine


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What every listener of a process shares."""

    hostname: str
    acceptance: Acceptance
    router: RouteTable
    accounts: Passwords
    quota: Quota
    crash: CrashPoints = field(default_factory=CrashPoints)
    pressure: Pressure = field(default_factory=Pressure)


class SmtpServer:
    """A listener. `pickup` makes it pickup's own: it accepts all, ENVID is the submission key."""

    def __init__(
        self,
        listener: SmtpListener,
        neighbours: Neighbours,
        *,
        pickup: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """Read the certificate and the networks; nothing listens yet.

        Raises ValueError for a network, OSError or ssl.SSLError for a certificate.
        """
        self._listener = listener
        self._neighbours = neighbours
        self._limits = limits or Limits()
        self._networks = [ip_network(text) for text in listener.trusted_networks]
        self._tls_context = tls_context(listener.tls) if listener.tls else None
        self._server: asyncio.Server | None = None
        self._acceptances: set[asyncio.Task[Decision]] = set()
        self._door = Door(
            service=self._service(pickup=pickup),
            count=SessionCount(
                sessions=listener.max_sessions, per_client=self._limits.sessions_per_client
            ),
            sessions=set(),
            timeout_s=listener.timeout,
            tls_context=self._tls_context,
            is_trusted=(lambda _ip: True) if pickup else self._is_trusted,
            turns_strangers_away=self._turns_strangers_away,
        )

    @property
    def address(self) -> Address:
        """Where it listens, with the port that was really taken."""
        wanted = self._listener.listen
        if self._server is None or wanted.path:
            return wanted
        return Address(wanted.host, int(self._server.sockets[0].getsockname()[1]))

    @property
    def sessions(self) -> int:
        """How many are open."""
        return self._door.count.sessions

    async def start(self) -> None:
        """Listen. A Unix socket that was left behind is replaced: the caller holds the lock.

        Raises OSError that names the address.
        """
        loop = asyncio.get_running_loop()
        wanted = self._listener.listen
        if wanted.path:
            unix_socket = _bind_unix(Path(wanted.path))
            self._server = await loop.create_unix_server(
                self._new_session, sock=unix_socket, backlog=_BACKLOG
            )
            return
        implicit_tls = self._tls_context if self._listener.role == "submissions" else None
        try:
            self._server = await loop.create_server(
                self._new_session,
                wanted.host,
                wanted.port,
                ssl=implicit_tls,
                ssl_handshake_timeout=TLS_HANDSHAKE_S if implicit_tls else None,
                backlog=_BACKLOG,
            )
        except OSError as error:
            is_lookup = isinstance(error, socket.gaierror)  # its numbers are not errno's
            reason = error.strerror if is_lookup else os.strerror(error.errno or errno.EINVAL)
            raise OSError(error.errno, f"cannot listen on {wanted}: {reason}") from error

    def stop_listening(self) -> None:
        """Take no more connections; those that are open go on."""
        if self._server is not None:
            self._server.close()
            self._server = None
            if self._listener.listen.path:
                Path(self._listener.listen.path).unlink(missing_ok=True)

    async def drain(self, grace_s: float) -> None:
        """Stop; open transactions may finish within the grace time, commits a little later."""
        self.stop_listening()
        for session in tuple(self._door.sessions):
            session.drain_down()
        await self._sessions_gone(grace_s)
        for session in tuple(self._door.sessions):
            session.leave(SHUTTING_DOWN)
        await self._sessions_gone(_LAST_WORDS_S)
        for session in tuple(self._door.sessions):
            session.abort()
        if self._acceptances:  # nobody has heard 250 yet, so one that hangs may be left
            await asyncio.wait(tuple(self._acceptances), timeout=_COMMIT_S)

    async def _sessions_gone(self, timeout_s: float) -> None:
        if gone := {session.gone for session in self._door.sessions}:
            await asyncio.wait(gone, timeout=timeout_s)

    def _new_session(self) -> SmtpSession:
        return SmtpSession(self._door)

    def _service(self, *, pickup: bool) -> Service:
        listener, neighbours = self._listener, self._neighbours
        on_this_machine = bool(listener.listen.path) or _is_loopback(listener.listen.host)
        requires_tls = listener.tls is not None and listener.tls.require
        return Service(
            hostname=neighbours.hostname,
            limits=self._limits,
            max_message_bytes=listener.max_message_size,
            max_recipients=listener.max_recipients,
            budget=Budget(self._limits.buffered_bytes),
            router=neighbours.router,
            accounts=neighbours.accounts,
            quota=neighbours.quota,
            accept=self._accept,
            arrival=neighbours.acceptance.spool.arrival,
            crash=neighbours.crash,
            # Pickup's have their 202: only a spool that cannot take them refuses those.
            shortage=(lambda _size: "") if pickup else neighbours.pressure.refusal,
            offers_tls=self._tls_context is not None,
            requires_tls=requires_tls,
            requires_auth=listener.role != "relay",
            offers_auth_in_clear=on_this_machine and not requires_tls,
            pickup=pickup,
        )

    async def _accept(self, envelope: Envelope, received: Received, origin: Origin) -> Decision:
        """Accept in a task of its own: the client may go away, the commit goes on.

        So what was received is the task's to release.
        """
        accepting = self._neighbours.acceptance.accept(envelope, received.content, origin)
        task = asyncio.get_running_loop().create_task(accepting)
        task.add_done_callback(lambda _: received.release())
        self._acceptances.add(task)
        task.add_done_callback(self._acceptances.discard)
        return await asyncio.shield(task)

    def _turns_strangers_away(self) -> bool:
        """Whether there is no room for strangers; where everybody logs in, nobody is one yet."""
        is_for_strangers = self._listener.role == "relay"
        return is_for_strangers and self._neighbours.pressure.turns_strangers_away

    def _is_trusted(self, ip: str) -> bool:
        if not ip and not self._listener.listen.path:
            return False  # a TCP peer that broke off before anybody asked for its address
        address = ip_address((ip or _LOOPBACK).partition("%")[0])
        return any(address in network for network in self._networks)


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return the context for a listener's certificate.

    Raises OSError or ssl.SSLError when the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.certificate, tls.key)
    return context


def _bind_unix(path: Path) -> socket.socket:
    """Bind; connections are refused until listen(), so the mode is right before the first."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(f"{path} exists and is not a socket")
        path.unlink()
    unix_socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        unix_socket.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        unix_socket.close()
        raise OSError(
            error.errno, f"cannot listen on unix:{path}: {error.strerror or error}"
        ) from error
    unix_socket.setblocking(False)
    return unix_socket


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
