"""Accepts the connections of mail programs by IMAP and POP3."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from relay.base.clock import Clock
from relay.base.files import replace_file
from relay.base.sockets import Acceptor
from relay.base.task_set import TaskSet
from relay.development.mail_access.client_lines import LINE_BYTES_MAX, ClientLines
from relay.development.mail_access.dovecot import Dovecot, session_configuration
from relay.development.mail_access.dovecot_child import child_command
from relay.development.mail_access.session import LOGIN_S, MailAccessDependencies, MailSession
from relay.transport.ingress.session_owner import CheckLogin

# Sessions by IMAP and POP3, and as many connections before their login
_SESSIONS_MAX = 50
_BEYOND_MESSAGE_BYTES = 16 << 20  # of a file that a session writes: Dovecot's indexes
_CONFIGURATION = "dovecot-session.conf"
_LAST_LINE_S = 5.0


class MailAccess:
    """IMAP and POP3 of a relay."""

    def __init__(
        self,
        dovecot: Dovecot,
        *,
        check_login: CheckLogin,
        open_mailbox: Callable[[str], Awaitable[Path]],
        run: Path,
        max_message_size: int,
        clock: Clock,
    ) -> None:
        """`open_mailbox` returns the Maildir of an address, which it makes; `run` is the run
        directory.
        """
        self._dovecot = dovecot
        self._configuration = run / _CONFIGURATION
        self._shared = MailAccessDependencies(
            check_login,
            open_mailbox,
            {
                name: child_command(getattr(dovecot, name), self._configuration)
                for name in ("imap", "pop3")
            },
            max_message_size + _BEYOND_MESSAGE_BYTES,
            clock,
        )
        self._acceptors: list[Acceptor] = []
        self._tasks = TaskSet()
        self._connecting: dict[asyncio.Task[None], None] = {}  # without a login; the oldest first
        self._sessions: dict[asyncio.Task[None], None] = {}  # with a login
        self._turn = asyncio.Lock()  # held while mailboxes are moved

    async def serve(
        self, protocol: str, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None
    ) -> None:
        """Accept connections by "imap" or "pop3", with `tls` from the first octet. The sockets stay
        the caller's. Raises OSError.
        """
        text = session_configuration(self._dovecot.version, self._configuration.parent)
        replace_file(self._configuration, text.encode(), mode=0o600)
        acceptor = Acceptor(sockets, partial(self._take, protocol=protocol, tls=tls))
        acceptor.accept(goes_on=True)
        self._acceptors.append(acceptor)

    @asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """End all sessions; logins wait until the block ends, which moves mailboxes."""
        async with self._turn:
            await _end(self._sessions)
            yield

    async def stop(self) -> None:
        """Accept no more, and end all sessions."""
        for acceptor in self._acceptors:
            acceptor.close()
        await _end(self._tasks)

    def _take(
        self, connection: socket.socket, peer: object, *, protocol: str, tls: ssl.SSLContext | None
    ) -> None:
        if tls is None and _has_octets(connection):
            connection.close()
            return
        if len(self._connecting) >= _SESSIONS_MAX:
            next(iter(self._connecting)).cancel()
        ip = str(peer[0]) if isinstance(peer, tuple) else ""
        task = self._tasks.start(self._serve(connection, protocol, tls, ip=ip))
        self._connecting[task] = None

    async def _serve(
        self, connection: socket.socket, protocol: str, tls: ssl.SSLContext | None, *, ip: str
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        writer = None
        try:
            client = await _client(connection, tls)
            writer = client.writer
            session = MailSession(client, protocol, ip=ip, shared=self._shared)
            if address := await session.log_in():
                async with self._turn:
                    if len(self._sessions) >= _SESSIONS_MAX:
                        session.dialogue.refuse("LIMIT", f"{_SESSIONS_MAX} sessions are open")
                        return
                    del self._connecting[task]
                    self._sessions[task] = None
                await session.serve(address)
        except OSError:  # the client is gone, or does not trust the certificate
            return
        finally:
            self._connecting.pop(task, None)
            self._sessions.pop(task, None)
            if writer is not None:
                writer.close()
                with suppress(TimeoutError, OSError):
                    async with asyncio.timeout(_LAST_LINE_S):  # real time: a client
                        await writer.wait_closed()
                writer.transport.abort()
            connection.close()


async def _client(connection: socket.socket, tls: ssl.SSLContext | None) -> ClientLines:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol,
        connection,
        ssl=tls,
        ssl_handshake_timeout=None if tls is None else LOGIN_S,
    )
    return ClientLines(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


def _has_octets(connection: socket.socket) -> bool:
    """Whether a client has sent something before the greeting, as a web page does, or is gone."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


async def _end(tasks: dict[asyncio.Task[None], None]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
