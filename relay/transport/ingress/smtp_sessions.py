"""The sessions of a listener: limits of new sessions, TLS before the first command, shutdown.

smtp_server finds the client of a connection, and passes the connection on. RFC 5321 3.8; RFC 8314
3.3 (implicit TLS).
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from relay.base.observe.logs import get_logger
from relay.base.settings.tree import SmtpListener
from relay.base.sockets import wait_readable
from relay.base.task_set import TaskSet
from relay.transport.ingress import session_client
from relay.transport.ingress.places import Places
from relay.transport.ingress.session_refusals import handshake_fault
from relay.transport.ingress.smtp_commands import SHUTTING_DOWN
from relay.transport.ingress.smtp_session import SessionDependencies, SmtpSession
from relay.transport.refusals.refusal import RefusalReason

_log = get_logger("ingress")
_LAST_REPLY_S = 0.2  # for the 421 after the grace time


class SmtpSessions:
    """The sessions. A new session gets the present value of `shared`."""

    def __init__(
        self,
        listener: session_client.ListenerDependencies,
        *,
        tls_context: ssl.SSLContext | None,
        begun: Callable[[], None] = lambda: None,
        meet: Callable[[asyncio.BaseTransport], session_client.SessionClient] | None = None,
    ) -> None:
        """`begun` counts a connection, `meet` returns the client of a session of new_session()."""
        self.tls_at_once = tls_context if listener.role.has_tls_first else None
        self._beginning = TaskSet()  # until their sessions exist
        self._handshakes = Places[SmtpSession](listener.settings, listener.limits)  # the same
        self.shared = SessionDependencies(
            listener,
            Places[SmtpSession](listener.settings, listener.limits),
            tls_context=tls_context,
            on_failed_handshake=self._record_failed_handshake,
            begun=begun,
            meet=meet,
        )

    @property
    def total(self) -> int:
        """The number of open sessions."""
        return self.shared.places.clients.total

    def use(self, settings: SmtpListener) -> None:
        """Give sessions that begin from now on the limits of `settings`."""
        self._handshakes.use(settings)
        self.shared.places.use(settings)
        listener = replace(self.shared.listener, settings=settings)
        self.shared = replace(self.shared, listener=listener)

    def new_session(self) -> SmtpSession:
        """Return the protocol of a connection that begins with the greeting."""
        return SmtpSession(self.shared)

    def begin(self, connection: socket.socket, client: session_client.SessionClient) -> None:
        """Take a connection from which nothing was read.

        Under TLS, when no reply can be sent, it is closed if too many connections of this kind, or
        of this client, have no session yet. It is also closed if its task is cancelled.
        """
        place = client.place if self.tls_at_once is not None else None
        if place is not None and self._handshakes.take(place):
            connection.close()
            client.ended()
            return
        task = self._beginning.start(self._begin(connection, client))
        if place is not None:
            task.add_done_callback(lambda _: self._handshakes.give_back(place))

    async def drain(self, grace_s: float) -> None:
        """End. Open transactions may finish within `grace_s`."""
        for session in tuple(self.shared.places.sessions):
            session.drain()
        self._beginning.cancel()
        await self._wait_closed(grace_s)
        for session in tuple(self.shared.places.sessions):
            session.close_with(SHUTTING_DOWN)
        await self._wait_closed(_LAST_REPLY_S)
        for session in tuple(self.shared.places.sessions):
            session.abort()

    async def _wait_closed(self, timeout_s: float) -> None:
        if closed := {session.closed for session in self.shared.places.sessions}:
            await asyncio.wait(closed, timeout=timeout_s)  # real time: clients

    async def _begin(self, connection: socket.socket, client: session_client.SessionClient) -> None:
        """Make the handshake."""
        has_begun, tls = False, self.tls_at_once
        handshake_s = None if tls is None else self.shared.handshake_s(self._handshakes)
        try:
            if handshake_s is not None and not await _has_spoken(connection, handshake_s):
                return  # a check whether the port is open
            await asyncio.get_running_loop().connect_accepted_socket(
                partial(SmtpSession, self.shared, client),
                connection,
                ssl=tls,
                ssl_handshake_timeout=handshake_s,  # real time: a client
            )
            has_begun = True
        except TimeoutError:
            self._record_failed_handshake(client, OSError("the client sent nothing"))
        except OSError as error:
            self._record_failed_handshake(client, error)
        finally:
            if not has_begun:
                connection.close()
                client.ended()

    def _record_failed_handshake(
        self, client: session_client.SessionClient, error: OSError
    ) -> None:
        """Record and log that the TLS handshake of a client failed.

        In a service the log line has no hint: the clients of port 465 are strangers.
        """
        listener = self.shared.listener
        refused = session_client.RefusedCommand(
            command=session_client.CONNECT if listener.role.has_tls_first else "STARTTLS",
            reply=handshake_fault(error),
            reason=RefusalReason.TLS,
            is_logged=False,
        )
        client.refused(refused, session_client.SessionClaims())
        reason = error.reason if isinstance(error, ssl.SSLError) else str(error)
        if listener.tls_hint is None:
            _log.info("TLS handshake failed", client=client.ip, error=reason)
        else:
            hint = listener.tls_hint()
            _log.warning("TLS handshake failed", client=client.ip, error=reason, hint=hint)


async def _has_spoken(connection: socket.socket, within_s: float) -> bool:
    """Wait for the first octet; return False if the client disconnects. Raises OSError."""
    async with asyncio.timeout(within_s):  # real time: a client
        await wait_readable(connection)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except ConnectionResetError:
        return False
