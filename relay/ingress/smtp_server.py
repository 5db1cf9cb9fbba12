"""Listen for SMTP on one socket, and stop gracefully.

relay/app makes one SmtpServer per [[smtp]] and one for pickup. The acceptance of a message
continues if its client disconnects. RFC 5321 3.8; RFC 8314 3.3 (implicit TLS).
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from relay.accounts.passwords import client_of
from relay.base.certificates import ServerCertificate
from relay.base.pressure import ConcurrencyCounter, MemoryBudget
from relay.base.sockets import (
    EVERYBODY,
    OWNER_ONLY,
    Listener,
    open_listener,
    wait_readable,
)
from relay.ingress.data import Origin
from relay.ingress.listener_dependencies import ListenerDependencies
from relay.ingress.local_services import (
    CheckLogin,
    IngressDependencies,
    LocalServices,
    ServiceDependencies,
)
from relay.ingress.local_users import LocalUsers
from relay.ingress.message_limits import RateLimits
from relay.ingress.proxy_header import ProxyHeaderError, read_header
from relay.ingress.session_limits import SessionLimits
from relay.ingress.session_refusals import ListenerRefusals, handshake_fault
from relay.ingress.session_services import CONNECT, RefusedCommand
from relay.ingress.smtp_commands import SHUTTING_DOWN
from relay.ingress.smtp_session import (
    TLS_HANDSHAKE_S,
    SessionDependencies,
    SmtpSession,
    ip_of,
)
from relay.observe.logs import get_logger
from relay.refusals.refusal import RefusalReason
from relay.settings.tree import SmtpListener
from relay.settings.validation import is_loopback

_log = get_logger("ingress")
_BACKLOG = 512
_CLIENTS_KNOWN = 1024  # addresses of which a listener remembers whether they are trusted
_COMMIT_S = 5.0
_LAST_REPLY_S = 0.2  # for the 421 after the grace time
_LOOPBACK = "127.0.0.1"  # used for a Unix socket, whose clients are on this machine


class ListenerOptions(Struct, frozen=True):
    """What is different on a listener of a development relay."""

    check_login: CheckLogin  # in place of the passwords of the accounts
    check_token: CheckLogin | None  # in place of the tokens; None: they count
    login_in_clear: bool  # AUTH is offered without TLS, on any address
    tls_hint: Callable[[], str]  # for the log, see ListenerDependencies
    odd_domain: str  # the same


class SmtpServer:
    """A listener. `pickup`: for pickup only; it accepts all recipients, ENVID is the key. `users`:
    for programs of this machine, on a Unix socket that every user may connect to. `address` is
    where it listens.
    """

    def __init__(
        self,
        listener: SmtpListener,
        dependencies: IngressDependencies,
        *,
        pickup: bool = False,
        users: LocalUsers | None = None,
        limits: SessionLimits | None = None,
        certificate: ServerCertificate | None = None,
        options: ListenerOptions | None = None,
    ) -> None:
        """Read the networks; nothing listens yet. `certificate` is that of `listener.tls`.
        `options` are those of a development relay.

        Raises ValueError for a network.
        """
        self._listener = listener
        self._dependencies = dependencies
        self._limits = limits or SessionLimits()
        self._options = options
        self._users = users
        self._networks = [ip_network(text) for text in listener.trusted_networks]
        self._proxies = [ip_network(text) for text in listener.proxy_networks]
        self._tls_context = certificate.context if certificate else None
        self._opened: Listener | None = None
        self.address = listener.listen  # with the actual port, once it was bound
        self._servers: list[asyncio.Server] = []
        is_implicit = self._tls_context is not None and listener.role == "submissions"
        self._tls_at_once = self._tls_context if is_implicit else None
        self._beginning: set[asyncio.Task[None]] = set()  # until their sessions exist
        self._handshakes = ConcurrencyCounter()  # those of TLS at once
        self._owner = self._service_dependencies(pickup=pickup)
        sessions = dependencies.acceptance.metrics.smtp_sessions
        self._shared = SessionDependencies(
            listener=self._listener_dependencies(pickup=pickup),
            count=ConcurrencyCounter(),
            sessions=set(),
            tls_context=self._tls_context,
            is_trusted=(
                (lambda _ip: True)
                if pickup or users is not None
                else lru_cache(_CLIENTS_KNOWN)(self._is_trusted)
            ),
            rejects_untrusted=self._rejects_untrusted,
            on_failed_handshake=self._record_failed_handshake,
            new_services=partial(LocalServices, self._owner),
            begun=(lambda: None) if pickup else sessions.labels(role=self.role).inc,
            for_programs=users is not None,
        )

    def use(self, listener: SmtpListener) -> None:
        """Give sessions that begin from now on the networks and limits of `listener`."""
        self._listener = listener
        self._networks = [ip_network(text) for text in listener.trusted_networks]
        self._owner = replace(self._owner, settings=listener)
        self._shared = replace(
            self._shared,
            listener=replace(self._shared.listener, settings=listener),
            is_trusted=lru_cache(_CLIENTS_KNOWN)(self._is_trusted),
            new_services=partial(LocalServices, self._owner),
        )

    @property
    def role(self) -> str:
        """The role of the listener in the configuration, "local" of the socket for programs."""
        return self._listener.role if self._users is None else "local"

    @property
    def sessions(self) -> int:
        """The number of open sessions."""
        return self._shared.count.total

    @property
    def acceptances(self) -> int:
        """The number of messages that are being accepted."""
        return len(self._owner.acceptances)

    async def start(self) -> None:
        """Listen. Raises OSError that names the address."""
        mode = OWNER_ONLY
        if self._users is not None:
            mode = EVERYBODY
            with suppress(OSError):  # listening says why it cannot
                Path(self._listener.listen.path).parent.mkdir(exist_ok=True)
        self._opened = open_listener(self._listener.listen, backlog=_BACKLOG, mode=mode)
        self.address = self._opened.address
        is_later = self._tls_at_once is not None or bool(self._proxies)
        new = (lambda: BeforeSession(self._begin)) if is_later else self._new_session
        self._servers = await self._opened.serve(new, backlog=_BACKLOG)

    def stop_listening(self) -> None:
        """Accept no more connections; open sessions continue."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    async def drain(self, grace_s: float) -> None:
        """Stop. Open transactions may finish within `grace_s`, commits a little later."""
        self.stop_listening()
        for session in tuple(self._shared.sessions):
            session.drain()
        for beginning in tuple(self._beginning):
            beginning.cancel()
        await self._wait_closed(grace_s)
        for session in tuple(self._shared.sessions):
            session.close_with(SHUTTING_DOWN)
        await self._wait_closed(_LAST_REPLY_S)
        for session in tuple(self._shared.sessions):
            session.abort()
        if acceptances := tuple(self._owner.acceptances):
            # no 250 was sent for these, so one that hangs may be abandoned
            await asyncio.wait(acceptances, timeout=_COMMIT_S)  # real time: a disk

    async def _wait_closed(self, timeout_s: float) -> None:
        if closed := {session.closed for session in self._shared.sessions}:
            await asyncio.wait(closed, timeout=timeout_s)  # real time: clients

    def _new_session(self) -> SmtpSession:
        return SmtpSession(self._shared)

    def _begin(self, transport: asyncio.Transport) -> None:
        """Move the socket to another transport, before anything was read from it.

        With too many that have no session yet the connection is closed. A task that is cancelled
        closes it as well.
        """
        ip = ip_of(transport)
        has_left = not ip and not self._listener.listen.path  # a check of HAProxy is as short
        if has_left or len(self._beginning) >= self._listener.max_sessions:
            transport.abort()
            return
        try:
            moved = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except OSError:  # no more open files: as if the connection was never accepted
            transport.abort()
            return
        moved.setblocking(False)
        transport.abort()  # closes its own descriptor; the connection stays
        task = asyncio.get_running_loop().create_task(self._begin_session(moved, ip))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin_session(self, moved: socket.socket, ip: str) -> None:
        """Read the header of a proxy, make the handshake."""
        has_begun, forwarded = False, None
        try:
            if _is_in(self._proxies, ip):
                forwarded = await self._forwarded_client(moved, ip)
                if forwarded is None:
                    return
            ip = forwarded or ip
            tls = self._tls_at_once
            client = None if tls is None or self._shared.is_trusted(ip) else client_of(ip)
            if self._handshakes.count(client) >= self._listener.max_sessions_per_client:
                return  # too many sessions of this client, which cannot be told without TLS
            with self._handshakes.counted(client):
                if tls is not None and not await _has_spoken(moved):
                    return  # it only looked whether the port is open
                await asyncio.get_running_loop().connect_accepted_socket(
                    partial(SmtpSession, self._shared, forwarded=forwarded), moved, ssl=tls,
                    ssl_handshake_timeout=TLS_HANDSHAKE_S if tls else None,  # real time: a client
                )  # fmt: skip
            has_begun = True
        except TimeoutError:
            self._record_failed_handshake(ip, OSError("the client sent nothing"))
        except OSError as error:
            self._record_failed_handshake(ip, error)
        finally:
            if not has_begun:
                moved.close()

    async def _forwarded_client(self, moved: socket.socket, proxy: str) -> str | None:
        """Return the client that a proxy names, "" if it names none; None if its connection ends.

        A connection that ends without an octet only looked whether the port is open.
        """
        try:
            header = await read_header(moved)
        except (ProxyHeaderError, OSError) as error:
            refused = RefusedCommand(
                command=CONNECT,
                reply=f"no PROXY header that can be used: {error}",
                reason=RefusalReason.SYNTAX,
            )
            self._owner.refusals.record(refused, Origin(ip=proxy, helo=""))
            return None
        return None if header is None else header.client

    def _record_failed_handshake(self, ip: str, error: OSError) -> None:
        """Record and log that the TLS handshake of a client failed.

        In a service the log has only that: the clients of port 465 are strangers.
        """
        refused = RefusedCommand(
            command=CONNECT if self._listener.role == "submissions" else "STARTTLS",
            reply=handshake_fault(error),
            reason=RefusalReason.TLS,
            is_logged=False,
        )
        self._owner.refusals.record(refused, Origin(ip=ip, helo=""))
        reason = error.reason if isinstance(error, ssl.SSLError) else str(error)
        if self._options is None:
            _log.info("TLS handshake failed", client=ip, error=reason)
        else:
            hint = self._options.tls_hint()
            _log.warning("TLS handshake failed", client=ip, error=reason, hint=hint)

    def _listener_dependencies(self, *, pickup: bool) -> ListenerDependencies:
        listener, dependencies = self._listener, self._dependencies
        # A proxy on this machine may have clients elsewhere.
        on_this_machine = is_loopback(listener.listen) and not listener.proxy_networks
        requires_tls = listener.tls is not None and listener.tls.require
        options = self._options
        return ListenerDependencies(
            listener,
            dependencies.hostname,
            limits=self._limits,
            budget=MemoryBudget(self._limits.buffered_bytes),
            crash=dependencies.crash,
            # Mail from pickup already has its 202: only the spool itself may refuse it.
            pressure_rejection=(lambda _size: "") if pickup else dependencies.pressure.rejection,
            is_paused=(lambda: False) if pickup else lambda: bool(dependencies.pressure.paused()),
            rates=RateLimits(dependencies.acceptance.clock),
            offers_tls=self._tls_context is not None,
            requires_tls=requires_tls,
            offers_auth_in_clear=(
                options.login_in_clear if options else on_this_machine and not requires_tls
            ),
            tls_hint=options.tls_hint if options else None,
            pickup=pickup,
            odd_domain=(
                options.odd_domain if options else self._users.domain if self._users else ""
            ),
        )

    def _service_dependencies(self, *, pickup: bool) -> ServiceDependencies:
        dependencies, options = self._dependencies, self._options
        return ServiceDependencies(
            self._listener,
            dependencies,
            check_login=options.check_login if options else dependencies.accounts.by_smtp_login,
            check_token=(options and options.check_token) or dependencies.check_token,
            refusals=ListenerRefusals(
                None if pickup else dependencies.refusals,
                dependencies.acceptance.metrics,
                dependencies.acceptance.clock,
                lambda: str(self.address),
            ),
            acceptances=set(),
            pickup=pickup,
            users=self._users,
        )

    def _new_services(self, ip: str, is_trusted: bool, uid: int) -> LocalServices:
        return LocalServices(self._owner, ip=ip, is_trusted=is_trusted, uid=uid)

    def _rejects_untrusted(self) -> bool:
        """Return whether untrusted clients are rejected now because of pressure.

        Only on a listener of role relay: on the others, every client authenticates.
        """
        accepts_untrusted = self._listener.role == "relay"
        return accepts_untrusted and self._dependencies.pressure.rejects_untrusted

    def _is_trusted(self, ip: str) -> bool:
        if not ip and not self._listener.listen.path:
            return False  # a TCP client that disconnected before its address was read
        return _is_in(self._networks, ip or _LOOPBACK)


class BeforeSession(asyncio.Protocol):
    """The protocol of a connection that begins with TLS (RFC 8314 3.3), until its handshake, or
    with a header of a proxy, until it was read.

    The TLS server of asyncio and uvloop does not report a handshake that failed.
    """

    def __init__(self, begin: Callable[[asyncio.Transport], None]) -> None:
        self._begin = begin

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin with what comes before the session."""
        self._begin(transport)


def _is_in(networks: Sequence[IPv4Network | IPv6Network], ip: str) -> bool:
    if not networks or not ip:
        return False
    address = ip_address(ip.partition("%")[0])
    return any(address in network for network in networks)


async def _has_spoken(moved: socket.socket) -> bool:
    """Wait for the first octet; return False if the client disconnects. Raises OSError."""
    async with asyncio.timeout(TLS_HANDSHAKE_S):  # real time: a client
        await wait_readable(moved)
    try:
        return bool(moved.recv(1, socket.MSG_PEEK))
    except ConnectionResetError:
        return False
