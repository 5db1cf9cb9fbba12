"""Listen for SMTP on one socket, and stop gracefully.

relay/operation/app makes one SmtpServer per [[smtp]] and one for pickup. The acceptance of a
message continues if its client disconnects. RFC 5321 3.8; RFC 8314 3.3 (implicit TLS).
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from relay.base.certificates import ServerCertificate
from relay.base.observe.logs import get_logger
from relay.base.pressure import Pressure
from relay.base.settings.tree import SmtpListener
from relay.base.shares import Shares
from relay.base.socket_address import is_in
from relay.base.sockets import EVERYBODY, OWNER_ONLY, Acceptor, Listener, open_listener
from relay.base.task_set import TaskSet
from relay.transport.ingress import session_client, session_owner
from relay.transport.ingress.data import Origin
from relay.transport.ingress.listener_role import CONFIGURED, ListenerRole
from relay.transport.ingress.local_users import LocalUsers, peer_uid
from relay.transport.ingress.message_limits import RateLimits
from relay.transport.ingress.proxy_header import ProxyHeaderError, read_header
from relay.transport.ingress.session_limits import SessionLimits
from relay.transport.ingress.session_refusals import ListenerRefusals
from relay.transport.ingress.smtp_sessions import SmtpSessions
from relay.transport.refusals.refusal import RefusalReason

_log = get_logger("ingress")
_BACKLOG = 512
_COMMIT_S = 5.0
_LOOPBACK = "127.0.0.1"  # used for a Unix socket, whose clients are on this machine


class ListenerOptions(Struct, frozen=True):
    """The options of a listener of a development relay."""

    check_login: session_owner.CheckLogin  # in place of the passwords of the accounts
    check_token: (
        session_owner.CheckLogin | None
    )  # in place of the tokens of accounts; None: these are used
    login_in_clear: bool  # AUTH is offered without TLS, on any address
    tls_hint: Callable[[], str]  # for the log, see ListenerDependencies
    odd_domain: str  # see ListenerDependencies


class SmtpServer:
    """A listener at `address`.

    With `users` it is a Unix socket for programs of this machine, which every user may connect to.
    """

    def __init__(
        self,
        listener: SmtpListener,
        dependencies: session_owner.IngressDependencies,
        *,
        role: ListenerRole | None = None,
        users: LocalUsers | None = None,
        limits: SessionLimits | None = None,
        certificate: ServerCertificate | None = None,
        options: ListenerOptions | None = None,
        elsewhere: Callable[[socket.socket, session_owner.SessionOwner], None] | None = None,
    ) -> None:
        """Make the listener, which does not listen yet.

        `role` is for roles that no configuration names. `certificate` is the certificate of
        `listener.tls`. `options` are for a development relay. `elsewhere` takes a connection from
        which nothing was read, for a session in another process; None: sessions are in this one.
        """
        self.role = role or CONFIGURED[listener.role]
        self._listener = listener
        self._dependencies = dependencies
        self._limits = limits or SessionLimits().within(dependencies.memory_bytes)
        self._options = options
        self._users = users
        self._opened: Listener | None = None
        self.address = listener.listen  # with the actual port, once it was bound
        self._servers: list[asyncio.Server] = []
        self._reading = TaskSet()  # headers of proxies
        self._of_owners = self._owner_dependencies()
        sessions = dependencies.acceptance.metrics.smtp_sessions
        context = certificate.context if certificate else None
        self._acceptor: Acceptor | None = None
        self._begun: Callable[[], None] = (
            (lambda: None) if self.role.is_promised else sessions.labels(role=self.role.name).inc
        )
        self._smtp_sessions = SmtpSessions(
            self._listener_dependencies(offers_tls=context is not None),
            tls_context=context,
            begun=self._begun,
            meet=self._meet,
        )
        self._elsewhere = elsewhere

    def use(self, listener: SmtpListener) -> None:
        """Give sessions that begin from now on the networks and limits of `listener`."""
        self._listener = listener
        self._of_owners = replace(self._of_owners, settings=listener)
        self._smtp_sessions.use(listener)

    @property
    def sessions(self) -> int:
        """The number of open sessions in this process."""
        return self._smtp_sessions.total

    @property
    def is_full(self) -> bool:
        """Whether strangers have no place in this process."""
        return self._smtp_sessions.shared.places.is_full()

    @property
    def fault(self) -> str:
        """Why no connection could be accepted for ten seconds, or ""."""
        why = self._acceptor.fault if self._acceptor is not None else ""
        return why and f"the listener at {self.address} cannot accept connections: {why}"

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
        if self._elsewhere or self._smtp_sessions.tls_at_once or self._listener.proxy_networks:
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
        self._reading.cancel()
        await self._smtp_sessions.drain(grace_s)
        if acceptances := tuple(self._of_owners.acceptances):
            # no 250 was sent for these, so one that hangs may be abandoned
            await asyncio.wait(acceptances, timeout=_COMMIT_S)  # real time: a disk

    def _meet(self, transport: asyncio.BaseTransport) -> session_client.SessionClient:
        uid = peer_uid(transport) if self._users is not None else None
        return self._owner(_ip_at(transport.get_extra_info("peername"))).client(uid)

    def _owner(self, ip: str, *, is_named: bool = True) -> session_owner.SessionOwner:
        """Return the owner's side of a session.

        If a proxy names no client (`is_named` is false), the address of the proxy is not trusted. A
        TCP client that disconnected at once has no address.
        """
        client = ip or (_LOOPBACK if self._listener.listen.path else "")
        is_trusted = self.role.is_local or (is_named and self._listener.trusts(client))
        return session_owner.SessionOwner(self._of_owners, ip, is_trusted=is_trusted)

    def _take(self, connection: socket.socket, peer: object) -> None:
        """Begin a session; of a proxy, after its header. Too many waiting headers: close it."""
        ip = _ip_at(peer)
        if not is_in(self._listener.proxy_networks, ip):
            self._begin(connection, self._owner(ip))
            return
        if len(self._reading) >= self._listener.max_sessions:
            connection.close()
            return
        self._reading.start(self._begin_forwarded(connection, ip))

    def _begin(self, connection: socket.socket, owner: session_owner.SessionOwner) -> None:
        """Begin the session in the other process, unless a milter sees it."""
        milters = self._dependencies.acceptance.milters
        if self._elsewhere is None or milters.session(self.role.name) is not None:
            self._smtp_sessions.begin(connection, owner.client())
        else:
            self._begun()
            self._elsewhere(connection, owner)

    async def _begin_forwarded(self, connection: socket.socket, proxy: str) -> None:
        """Begin the session of the client that a proxy names, or of the proxy if it names none.

        A connection that ends without an octet was a check whether the port is open.
        """
        owner = None
        try:
            if (header := await read_header(connection)) is not None:
                named = header.client
                owner = self._owner(named or proxy, is_named=bool(named))
        except (ProxyHeaderError, OSError) as error:
            refused = session_client.RefusedCommand(
                command=session_client.CONNECT,
                reply=f"no PROXY header that can be used: {error}",
                reason=RefusalReason.SYNTAX,
            )
            self._of_owners.refusals.record(refused, Origin(ip=proxy, helo=""))
        finally:
            if owner is None:
                connection.close()
        if owner is not None:
            self._begin(connection, owner)

    def _listener_dependencies(self, *, offers_tls: bool) -> session_client.ListenerDependencies:
        listener, dependencies, options = self._listener, self._dependencies, self._options
        domain = self._users.domain if self._users else ""
        return session_client.ListenerDependencies(
            listener,
            self.role,
            dependencies.hostname,
            limits=self._limits,
            budget=Shares("SMTP contents", self._limits.buffered_bytes),
            crash=dependencies.crash,
            # without pressure only the spool itself may refuse mail
            pressure=Pressure() if self.role.is_promised else dependencies.pressure,
            rates=RateLimits(dependencies.acceptance.clock),
            offers_tls=offers_tls,
            requires_tls=listener.tls is not None and listener.tls.require,
            offers_auth_in_clear=(
                options.login_in_clear if options else offers_auth_in_clear(listener)
            ),
            tls_hint=options.tls_hint if options else None,
            odd_domain=options.odd_domain if options else domain,
        )

    def _owner_dependencies(self) -> session_owner.OwnerDependencies:
        dependencies, options = self._dependencies, self._options
        return session_owner.OwnerDependencies(
            self._listener,
            dependencies,
            check_login=options.check_login if options else dependencies.accounts.by_smtp_login,
            check_token=(options and options.check_token) or dependencies.check_token,
            refusals=ListenerRefusals(
                None if self.role.is_promised else dependencies.refusals,
                dependencies.acceptance.metrics,
                dependencies.acceptance.clock,
                lambda: str(self.address),
            ),
            acceptances=TaskSet(),
            role=self.role,
            users=self._users,
        )


def offers_auth_in_clear(listener: SmtpListener) -> bool:
    """Return whether AUTH is offered without TLS: on this machine, if TLS is not required."""
    return listener.serves_this_machine and not (listener.tls is not None and listener.tls.require)


def _ip_at(peer: object) -> str:
    """Return the client's IP address (a mapped IPv4 address as IPv4), or "" on a Unix socket."""
    return str(peer[0]).removeprefix("::ffff:") if isinstance(peer, tuple) else ""
