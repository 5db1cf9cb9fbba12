"""Accepts the connections of mail programs by IMAP and POP3, and ends their sessions."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path

from relay.base.files import replace_file
from relay.base.observe.logs import get_logger
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
        self._servers: list[asyncio.Server] = []
        self._connecting, self._sessions = TaskSet(), TaskSet()  # without and with a login
        self._turn = asyncio.Lock()  # held while mailboxes are moved

    async def serve(
        self, protocol: str, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None
    ) -> None:
        """Accept connections by "imap" or "pop3"; `tls` is from the first octet. Raises OSError."""
        text = Path(__file__).with_name(f"dovecot-{self.dovecot.version}.conf").read_text()
        text = text.replace("RUN_DIRECTORY", str(self.run))
        replace_file(self._configuration, text.encode(), mode=0o600)
        for sock in sockets:
            server = await asyncio.start_server(
                partial(self._accept, ImapLogin if protocol == "imap" else Pop3Login),
                sock=sock,
                ssl=tls,
                ssl_handshake_timeout=_HANDSHAKE_S if tls else None,
                limit=LINE_BYTES_MAX,
            )
            self._servers.append(server)

    @asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """End all sessions; logins wait until the block ends, which moves mailboxes."""
        async with self._turn:
            await self._sessions.end()
            yield

    async def stop(self) -> None:
        """Accept no more, and end all sessions."""
        for server in self._servers:
            server.close()
        await self._connecting.end()
        await self._sessions.end()

    def _accept(
        self, kind: type[Dialogue], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(self._connecting) >= _SESSIONS_MAX:
            next(iter(self._connecting)).cancel()
        self._connecting.start(self._log_in(kind(reader, writer)))

    async def _log_in(self, dialogue: Dialogue) -> None:
        """Make a session of a connection, if its client logs in."""
        writer = dialogue.writer
        with ExitStack() as undo, suppress(OSError):  # the client is gone
            undo.callback(writer.close)
            if _has_sent(writer):
                return
            ip = writer.get_extra_info("peername")[0]
            if not (address := await log_in(dialogue, self.check_login, ip=ip)):
                return
            async with self._turn:
                if len(self._sessions) >= _SESSIONS_MAX:
                    dialogue.refuse("LIMIT", f"{_SESSIONS_MAX} sessions are open")
                    return
                session = self._sessions.start(self._serve(dialogue, address))
                session.add_done_callback(lambda _: writer.close())
                undo.pop_all()

    async def _serve(self, dialogue: Dialogue, address: str) -> None:
        program = self.dovecot.imap if isinstance(dialogue, ImapLogin) else self.dovecot.pop3
        file_bytes, is_ready = self.max_message_size + _BEYOND_MESSAGE_BYTES, False
        try:
            is_ready, error = await serve(
                dialogue,
                [*launcher(file_bytes), program, "-c", str(self._configuration)],
                mailbox=await self.open_mailbox(address),
                user=address,
            )
        except (StoreError, OSError) as failure:
            error = str(failure)
        if not is_ready:
            dialogue.refuse("UNAVAILABLE", "The mailbox cannot be opened now")
        if error or not is_ready:
            reason = error or "no greeting"
            _log.warning("session of a mail program", user=address, error=reason)


def _has_sent(writer: asyncio.StreamWriter) -> bool:
    """Whether a client has sent something before the greeting, as a web page does.

    Only the kernel has it: nothing was read yet. TLS has read what came before.
    """
    if writer.get_extra_info("sslcontext"):
        return False
    descriptor = os.dup(writer.get_extra_info("socket").fileno())
    with socket.socket(fileno=descriptor) as connection, suppress(BlockingIOError):
        connection.setblocking(False)  # else it may have a default time-out
        return connection.recv(1, socket.MSG_PEEK) != b""
    return False
