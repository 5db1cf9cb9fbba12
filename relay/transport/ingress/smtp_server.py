"""Listen for SMTP on one socket, and stop gracefully.

relay/operation/app makes one SmtpServer per [[smtp]] and one for pickup. The acceptance of a
message continues if its client disconnects. RFC 5321 3.8; RFC 8314 3.3 (implicit TLS).
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from relay.base.certificates import ServerCertificate
from relay.base.observe.logs import get_logger
from relay.base.pressure import MemoryBudget, Pressure
from relay.base.settings.tree import SmtpListener
from relay.base.sockets import EVERYBODY, OWNER_ONLY, Acceptor, Listener, open_listener
from relay.transport.ingress.data import Origin
from relay.transport.ingress.local_users import LocalUsers, peer_uid
from relay.transport.ingress.message_limits import RateLimits
from relay.transport.ingress.proxy_header import ProxyHeaderError, read_header
from relay.transport.ingress.session_client import (
    CONNECT,
    ListenerDependencies,
    RefusedCommand,
    SessionClient,
)
from relay.transport.ingress.session_limits import SessionLimits
from relay.transport.ingress.session_owner import (
    CheckLogin,
    IngressDependencies,
    OwnerDependencies,
    SessionOwner,
)
from relay.transport.ingress.session_refusals import ListenerRefusals
from relay.transport.ingress.smtp_sessions import SmtpSessions
from relay.transport.refusals.refusal import RefusalReason

_log = get_logger("ingress")
_BACKLOG = 512
_CLIENTS_KNOWN = 1024  # addresses of which a listener remembers whether they are trusted
_COMMIT_S = 5.0
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
        elsewhere: Callable[[socket.socket, SessionOwner], None] | None = None,
    ) -> None:
        """Read the networks; nothing listens yet. `certificate` is that of `listener.tls`.
        `options` are those of a development relay. `elsewhere` takes a connection from which
        nothing was read, if the sessions are not in this process; None: they are.

        Raises ValueError for a network.
        """
        self._listener = listener
        self._dependencies = dependencies
        self._limits = limits or SessionLimits()
        self._options = options
        self._users = users
        self._networks = [ip_network(text) for text in listener.trusted_networks]
        self._proxies = [ip_network(text) for text in listener.proxy_networks]
        self._opened: Listener | None = None
        self.address = listener.listen  # with the actual port, once it was bound
        self._servers: list[asyncio.Server] = []
        self._reading: set[asyncio.Task[None]] = set()  # headers of proxies
        self._is_trusted = lru_cache(_CLIENTS_KNOWN)(self._is_in_trusted_network)
        self._of_owners = self._owner_dependencies(pickup=pickup)
        sessions = dependencies.acceptance.metrics.smtp_sessions
        context = certificate.context if certificate else None
        self._acceptor: Acceptor | None = None
        self._begun: Callable[[], None] = (
            (lambda: None) if pickup else sessions.labels(role=self.role).inc
        )
        self._smtp_sessions = SmtpSessions(
            self._listener_dependencies(pickup=pickup, offers_tls=context is not None),
            tls_context=context,
            begun=self._begun,
            meet=self._meet,
        )
        self._elsewhere = elsewhere

    def use(self, listener: SmtpListener) -> None:
        """Give sessions that begin from now on the networks and limits of `listener`."""
        self._listener = listener
        self._networks = [ip_network(text) for text in listener.trusted_networks]
        self._is_trusted = lru_cache(_CLIENTS_KNOWN)(self._is_in_trusted_network)
        self._of_owners = replace(self._of_owners, settings=listener)
        self._smtp_sessions.use(listener)

    @property
    def role(self) -> str:
        """The role of the listener in the configuration, "local" of the socket for programs."""
        return self._listener.role if self._users is None else "local"

    @property
    def sessions(self) -> int:
        """The number of open sessions in this process."""
        return self._smtp_sessions.total

    @property
    def acceptances(self) -> int:
        """The number of messages that are being accepted."""
        return len(self._of_owners.acceptances)

    async def start(self) -> None:
        """Listen. Raises OSError that names the address."""
        mode = OWNER_ONLY
        if self._users is not None:
            mode = EVERYBODY
            with suppress(OSError):  # listening says why it cannot
                Path(self._listener.listen.path).parent.mkdir(exist_ok=True)
        self._opened = open_listener(self._listener.listen, backlog=_BACKLOG, mode=mode)
        self.address = self._opened.address
        if self._elsewhere or self._smtp_sessions.tls_at_once is not None or self._proxies:
            self._acceptor = Acceptor(self._opened.sockets, self._take)
            self.accept(True)
        else:
            self._servers = await self._opened.serve(
                self._smtp_sessions.new_session, backlog=_BACKLOG
            )

    def accept(self, goes_on: bool) -> None:
        """Accept connections for sessions elsewhere, or let clients wait."""
        if self._acceptor is not None:
            self._acceptor.accept(goes_on=goes_on)

    def stop_listening(self) -> None:
        """Accept no more connections; open sessions continue."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    async def drain(self, grace_s: float) -> None:
        """Stop. Open transactions may finish within `grace_s`, commits a little later."""
        self.stop_listening()
        for reading in tuple(self._reading):
            reading.cancel()
        await self._smtp_sessions.drain(grace_s)
        if acceptances := tuple(self._of_owners.acceptances):
            # no 250 was sent for these, so one that hangs may be abandoned
            await asyncio.wait(acceptances, timeout=_COMMIT_S)  # real time: a disk

    def _meet(self, transport: asyncio.BaseTransport) -> SessionClient:
        uid = peer_uid(transport) if self._users is not None else -1
        return self._owner(ip_of(transport), uid=uid).client()

    def _owner(self, ip: str, *, uid: int = -1, is_named: bool = True) -> SessionOwner:
        """Return the owner's side of a session; a client that a proxy does not name proves nothing
        by the proxy's address. The uid -1 is that of no user.
        """
        is_trusted = is_named and self._is_trusted(ip)
        return SessionOwner(self._of_owners, ip, is_trusted=is_trusted, uid=uid)

    def _take(self, connection: socket.socket, peer: object) -> None:
        """Begin a session, after the header of a proxy, with too many of which it is closed."""
        ip = _ip_at(peer)
        if not _is_in(self._proxies, ip):
            self._begin(connection, self._owner(ip))
            return
        if len(self._reading) >= self._listener.max_sessions:
            connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._begin_forwarded(connection, ip))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    def _begin(self, connection: socket.socket, owner: SessionOwner) -> None:
        """Begin it elsewhere, if no milter sees it: one may have come with a reload."""
        milters = self._dependencies.acceptance.milters
        if self._elsewhere is None or milters.session(self._listener.role) is not None:
            self._smtp_sessions.begin(connection, owner.client())
        else:
            self._begun()
            self._elsewhere(connection, owner)

    async def _begin_forwarded(self, connection: socket.socket, proxy: str) -> None:
        """Begin the session of the client that a proxy names, or of the proxy if it names none.

        A connection that ends without an octet only looked whether the port is open.
        """
        owner = None
        try:
            if (header := await read_header(connection)) is not None:
                named = header.client
                owner = self._owner(named or proxy, is_named=bool(named))
        except (ProxyHeaderError, OSError) as error:
            refused = RefusedCommand(
                command=CONNECT,
                reply=f"no PROXY header that can be used: {error}",
                reason=RefusalReason.SYNTAX,
            )
            self._of_owners.refusals.record(refused, Origin(ip=proxy, helo=""))
        finally:
            if owner is None:
                connection.close()
        if owner is not None:
            self._begin(connection, owner)

    def _listener_dependencies(self, *, pickup: bool, offers_tls: bool) -> ListenerDependencies:
        listener, dependencies = self._listener, self._dependencies
        requires_tls = listener.tls is not None and listener.tls.require
        options = self._options
        return ListenerDependencies(
            listener,
            dependencies.hostname,
            limits=self._limits,
            budget=MemoryBudget(self._limits.buffered_bytes),
            crash=dependencies.crash,
            # Mail from pickup already has its 202: only the spool itself may refuse it.
            pressure=Pressure() if pickup else dependencies.pressure,
            rates=RateLimits(dependencies.acceptance.clock),
            offers_tls=offers_tls,
            requires_tls=requires_tls,
            offers_auth_in_clear=(
                options.login_in_clear if options else offers_auth_in_clear(listener)
            ),
            tls_hint=options.tls_hint if options else None,
            pickup=pickup,
            odd_domain=(
                options.odd_domain if options else self._users.domain if self._users else ""
            ),
        )

    def _owner_dependencies(self, *, pickup: bool) -> OwnerDependencies:
        dependencies, options = self._dependencies, self._options
        return OwnerDependencies(
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

    def _is_in_trusted_network(self, ip: str) -> bool:
        if self._of_owners.pickup or self._users is not None:
            return True
        if not ip and not self._listener.listen.path:
            return False  # a TCP client that disconnected before its address was read
        return _is_in(self._networks, ip or _LOOPBACK)


def offers_auth_in_clear(listener: SmtpListener) -> bool:
    """Return whether AUTH is offered without TLS: on this machine, if TLS is not required."""
    return listener.serves_this_machine and not (listener.tls is not None and listener.tls.require)


def ip_of(transport: asyncio.BaseTransport) -> str:
    """Return the client's IP address (a mapped IPv4 address as IPv4), or "" on a Unix socket."""
    return _ip_at(transport.get_extra_info("peername"))


def _ip_at(peer: object) -> str:
    return str(peer[0]).removeprefix("::ffff:") if isinstance(peer, tuple) else ""


def _is_in(networks: Sequence[IPv4Network | IPv6Network], ip: str) -> bool:
    if not networks or not ip:
        return False
    address = ip_address(ip.partition("%")[0])
    return any(address in network for network in networks)
