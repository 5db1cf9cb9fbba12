"""Accepts the connections of mail programs by IMAP and POP3, and ends their sessions."""

import asyncio
import socket
import ssl
from asyncio import to_thread
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from relay.base.files import replace_file
from relay.base.observe.logs import get_logger
from relay.base.sockets import Acceptor, Listener
from relay.base.task_set import TaskSet
from relay.development.mail_access.dovecot import Dovecot, launcher
from relay.development.mail_access.imap_login import ImapLogin
from relay.development.mail_access.login_dialogue import LINE_BYTES_MAX
from relay.development.mail_access.pop3_login import Pop3Login
from relay.development.mail_access.session import Dialogue, log_in, serve
from relay.store.mailbox.errors import StoreError
from relay.transport.ingress.session_owner import CheckLogin

_SESSIONS_MAX = 50  # and as many connections without a login
_BEYOND_MESSAGE_BYTES = 16 << 20  # of a file that a session writes: Dovecot's indexes
_HANDSHAKE_S = 30.0

_log = get_logger("development")


class _Port(Struct, frozen=True):
    dialogue: type[Dialogue]
    tls: ssl.SSLContext | None


@dataclass(eq=False, repr=False)
class MailAccess:
    """IMAP and POP3 of a relay."""

    dovecot: Dovecot
    _: KW_ONLY
    check_login: CheckLogin
    open_mailbox: Callable[[str], Awaitable[Path]]  # of an address; makes it with its folders
    run: Path  # the run directory
    max_message_size: int

    def __post_init__(self) -> None:
        self._configuration = self.run / "dovecot-session.conf"
        self._listening = ExitStack()
        self._connecting, self._sessions = TaskSet(), TaskSet()  # without and with a login
        self._turn = asyncio.Lock()  # held while mailboxes are moved
        self._uid_lead = 0  # of UIDVALIDITY, a time in seconds, so that a reset uses none again

    async def serve(self, protocol: str, listener: Listener, tls: ssl.SSLContext | None) -> None:
        """Accept connections by "imap" or "pop3"; `tls` is from the first octet. stop() closes the
        listener. Raises OSError.
        """
        self._listening.callback(listener.close)
        text = Path(__file__).with_name(f"dovecot-{self.dovecot.version}.conf").read_text()
        text = text.replace("RUN_DIRECTORY", str(self.run))
        replace_file(self._configuration, text.encode(), mode=0o600)
        port = _Port(ImapLogin if protocol == "imap" else Pop3Login, tls)
        acceptor = Acceptor(listener.sockets, partial(self._take, port))
        acceptor.accept(goes_on=True)
        self._listening.callback(acceptor.close)

    @asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """End all sessions; logins wait until the block ends, which moves mailboxes."""
        async with self._turn:
            await self._sessions.end()
            self._uid_lead += 100  # folders
            yield

    def is_open(self, address: str) -> bool:
        """Whether a session has the mailbox of an address. Any thread may call it."""
        return any(session.get_name() == address for session in list(self._sessions))

    async def stop(self) -> None:
        """Accept no more, and end all sessions."""
        self._listening.close()
        await self._connecting.end()
        await self._sessions.end()

    def _take(self, port: _Port, connection: socket.socket, peer: Any) -> None:
        if len(self._connecting) >= _SESSIONS_MAX:
            next(iter(self._connecting)).cancel()
        self._connecting.start(self._log_in(port, connection, peer[0]))

    async def _log_in(self, port: _Port, connection: socket.socket, ip: str) -> None:
        """Make a session of a connection, if its client logs in."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=LINE_BYTES_MAX)
        protocol = asyncio.StreamReaderProtocol(reader)
        with ExitStack() as undo, suppress(OSError):  # the client is gone
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=port.tls,
                ssl_handshake_timeout=_HANDSHAKE_S if port.tls else None,
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            undo.callback(writer.close)
            dialogue = port.dialogue(reader, writer)
            if not (address := await log_in(dialogue, self.check_login, ip=ip)):
                return
            async with self._turn:
                if len(self._sessions) >= _SESSIONS_MAX:
                    dialogue.refuse("LIMIT", f"{_SESSIONS_MAX} sessions are open")
                    return
                session = self._sessions.start(self._serve(dialogue, address), name=address)
                session.add_done_callback(lambda _: writer.close())
                undo.pop_all()

    async def _serve(self, dialogue: Dialogue, address: str) -> None:
        program = self.dovecot.imap if isinstance(dialogue, ImapLogin) else self.dovecot.pop3
        file_bytes = self.max_message_size + _BEYOND_MESSAGE_BYTES
        try:
            mailbox = await self.open_mailbox(address)
            if not (mailbox / "dovecot-uidvalidity").exists():
                uid_validity = int(mailbox.stat().st_mtime) + self._uid_lead
                (mailbox / f"dovecot-uidvalidity.{uid_validity:08x}").touch()
            error = await serve(
                dialogue,
                [*await to_thread(launcher, file_bytes), program, "-c", str(self._configuration)],
                mailbox=mailbox,
                user=address,
            )
        except (StoreError, OSError) as failure:
            error = str(failure)
            dialogue.refuse("UNAVAILABLE", "The mailbox cannot be opened now")
        if error:
            _log.warning("session of a mail program", user=address, error=error)
