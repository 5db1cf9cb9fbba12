"""One session of IMAP or POP3: the login, its limits, and the octets to and from the child."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from relay.base.accounts.account import LoginDelayedError, LoginRefusedError
from relay.base.clock import Clock
from relay.base.observe.logs import get_logger
from relay.base.task_set import TaskSet
from relay.development.mail_access.client_lines import ClientLines, SessionOverError
from relay.development.mail_access.dovecot_child import END_S, DovecotChild
from relay.development.mail_access.imap_login import ImapLogin
from relay.development.mail_access.pop3_login import Pop3Login
from relay.store.mailbox.errors import StoreError
from relay.transport.ingress.session_owner import CheckLogin

# Time until the login by IMAP or POP3
LOGIN_S = 30.0
# Failed logins of a session by IMAP or POP3
_FAILURES_MAX = 3
_FAILURE_DELAY_S = 1.0  # multiplied by the number of failures, as by SMTP
_GREETING_S = 10.0
# Time without a line of the client by IMAP or POP3
_IDLE_S = 1800.0
_READ_BYTES = 65536

_log = get_logger("development")


class MailAccessDependencies(Struct, frozen=True):
    """What the sessions share."""

    check_login: CheckLogin
    open_mailbox: Callable[[str], Awaitable[Path]]  # of an address; makes it with its folders
    commands: dict[str, list[str]]  # of the child processes, by protocol
    file_bytes_max: int  # that a child process may write into one file
    clock: Clock


class MailSession:
    """The session of a client."""

    def __init__(
        self, client: ClientLines, protocol: str, *, ip: str, shared: MailAccessDependencies
    ) -> None:
        self._client, self._protocol, self._ip, self._shared = client, protocol, ip, shared
        self.dialogue = ImapLogin(client) if protocol == "imap" else Pop3Login(client)

    async def log_in(self) -> str:
        """Return the address of the mailbox that the client logs in to, "" if the session is over.

        Raises OSError.
        """
        try:
            async with asyncio.timeout(LOGIN_S):  # real time: a client
                return await self._log_in()
        except TimeoutError:
            self.dialogue.end(f"Expected a login within {LOGIN_S:g} seconds")
        except SessionOverError as over:
            if reason := str(over):
                self.dialogue.end(reason)
        return ""

    async def _log_in(self) -> str:
        failures = 0
        self.dialogue.greet()
        while credentials := await self.dialogue.credentials():
            reason = "User or password is wrong"
            try:
                account = await self._shared.check_login(
                    credentials.user, credentials.password, client=self._ip
                )
                if account is not None:
                    return account.address
            except LoginRefusedError as refused:
                reason = str(refused)
            except LoginDelayedError as delayed:
                wait_s = math.ceil(delayed.retry_after_s)
                self.dialogue.refuse("UNAVAILABLE", f"{delayed}, try again in {wait_s} s")
                continue
            failures += 1
            await asyncio.sleep(failures * _FAILURE_DELAY_S)  # real time: a client
            self.dialogue.refuse("AUTHENTICATIONFAILED", reason)
            if failures == _FAILURES_MAX:
                raise SessionOverError("Too many failed logins")
        return ""

    async def serve(self, address: str) -> None:
        """Serve a client that has given a login."""
        shared, dialogue = self._shared, self.dialogue
        try:
            mailbox = await shared.open_mailbox(address)
        except StoreError as error:
            self._is_unavailable(address, str(error))
            return
        child = DovecotChild(
            mailbox,
            address,
            began_s=shared.clock.file_time_us() // 1_000_000,
            file_bytes=shared.file_bytes_max,
        )
        greeting, failure = b"", ""
        try:
            async with asyncio.timeout(_GREETING_S):  # real time: a child process
                greeting = await child.start(shared.commands[self._protocol], dialogue.prompt)
            if greeting.startswith(dialogue.child_greeting):
                dialogue.log_in(greeting)
                await self._pump(child)
        except TimeoutError:
            failure = f"no greeting in {_GREETING_S:g} seconds"
        except OSError as error:
            failure = str(error)
        finally:
            failure = await child.end() or failure
        if not greeting.startswith(dialogue.child_greeting):
            self._is_unavailable(address, failure or greeting.decode(errors="replace"))
        elif failure:
            _log.warning("error of a mail program's session", user=address, error=failure)

    def _is_unavailable(self, address: str, error: str) -> None:
        _log.warning("no session of a mail program", user=address, error=error)
        self.dialogue.refuse("UNAVAILABLE", "The mailbox cannot be opened now")

    async def _pump(self, child: DovecotChild) -> None:
        """Copy octets both ways until the child or its input has ended."""
        tasks = TaskSet()
        up, down = tasks.start(self._pump_up(child)), tasks.start(self._pump_down(child))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            child.end_input()
            await asyncio.wait({down}, timeout=END_S)  # real time: a child process
        finally:
            await tasks.end()

    async def _pump_up(self, child: DovecotChild) -> None:
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_IDLE_S) as limit:  # real time: a client
                while octets := await self._client.reader.read(_READ_BYTES):
                    if b"\n" in octets:
                        limit.reschedule(loop.time() + _IDLE_S)  # real time: a client
                    child.writer.write(octets)
                    await child.writer.drain()

    async def _pump_down(self, child: DovecotChild) -> None:
        with suppress(OSError):
            while octets := await child.reader.read(_READ_BYTES):
                self._client.writer.write(octets)
                await self._client.writer.drain()
