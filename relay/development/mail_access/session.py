"""One session of IMAP or POP3: the login, then the child process and the octets to and from it.

The environment of the child is the mailbox and the user; its command names neither. It ends when
its input ends, or is killed.
"""

import asyncio
import math
import socket
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from relay.base.accounts.account import LoginDelayedError, LoginRefusedError
from relay.base.phrases import printable
from relay.base.task_set import TaskSet
from relay.development.mail_access.imap_login import ImapLogin
from relay.development.mail_access.login_dialogue import SessionOverError
from relay.development.mail_access.pop3_login import Pop3Login
from relay.store.mailbox.maildir import remove
from relay.transport.ingress.session_owner import CheckLogin

_LOGIN_S = 30.0
_FAILURES_MAX = 3
_FAILURE_DELAY_S = 1.0  # multiplied by the number of failures, as by SMTP
_GREETING_S = 10.0
_IDLE_S = 1800.0
_END_S = 2.0  # from the end of its input until the child is killed
_READ_BYTES = 65536

Dialogue = ImapLogin | Pop3Login


async def log_in(dialogue: Dialogue, check_login: CheckLogin, *, ip: str) -> str:
    """Return the address of the mailbox that a client logs in to, "" if the session is over.

    Raises OSError.
    """
    reason, failures = "", 0
    dialogue.say(dialogue.greeting)
    try:
        async with asyncio.timeout(_LOGIN_S):  # real time: a client
            while login := await dialogue.credentials():
                code, refusal = "AUTHENTICATIONFAILED", "User or password is wrong"
                try:
                    if account := await check_login(*login, client=ip):
                        return account.address
                except LoginRefusedError as refused:
                    refusal = str(refused)
                except LoginDelayedError as delayed:
                    code, wait_s = "UNAVAILABLE", math.ceil(delayed.retry_after_s)
                    refusal = f"{delayed}, try again in {wait_s} s"
                failures += 1
                await asyncio.sleep(failures * _FAILURE_DELAY_S)  # real time: a client
                dialogue.refuse(code, refusal)
                if failures == _FAILURES_MAX:
                    raise SessionOverError("Too many failed logins")  # noqa: TRY301 - as others
    except TimeoutError:
        reason = f"Expected a login within {_LOGIN_S:g} seconds"
    except UnicodeDecodeError:
        reason = "Expected UTF-8"
    except (SessionOverError, EOFError) as over:
        reason = str(over) if isinstance(over, SessionOverError) else ""
    if reason:
        dialogue.say(f"{dialogue.bye} {reason}")
    return ""


async def serve(dialogue: Dialogue, command: Sequence[str], *, mailbox: Path, user: str) -> str:
    """Start the child process, and serve a client that has given its login.

    Return the first error of the child, "" for none. Raises OSError if it does not greet.
    """
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env={"HOME": str(mailbox), "USER": user},
        restore_signals=False,
        start_new_session=True,  # Ctrl-C must not reach it
    )
    assert child.stdin and child.stdout and child.stderr  # noqa: PT018
    said, is_ready = TaskSet(), False
    errors = said.start(_first_error(child.stderr))
    try:
        child.stdin.write(dialogue.prompt)
        with suppress(TimeoutError, ValueError):  # ValueError: a line without an end
            async with asyncio.timeout(_GREETING_S):  # real time: a child process
                greeting = await child.stdout.readline()
            is_ready = greeting.startswith(dialogue.child_greeting)
        if is_ready:
            dialogue.accept(greeting)
            down = said.start(_copy(child.stdout, dialogue.writer))
            up = asyncio.create_task(_copy(dialogue.reader, child.stdin, idle_s=_IDLE_S))
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                up.cancel()
    finally:
        child.stdin.close()
        await _end(child, said)
        await asyncio.to_thread(_remove_unfinished, mailbox, child.pid)
    error = printable(await errors)
    if not is_ready:
        raise OSError(error or "no greeting")
    return error


async def _copy(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, *, idle_s: float | None = None
) -> None:
    """Copy octets until their end, or until no line has come for `idle_s`."""
    loop = asyncio.get_running_loop()
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(idle_s) as limit:  # real time: a client
            while (octets := await source.read(_READ_BYTES)) and not target.is_closing():
                if idle_s and b"\n" in octets:
                    limit.reschedule(loop.time() + idle_s)  # real time: a client
                target.write(octets)
                await target.drain()


async def _first_error(stderr: asyncio.StreamReader) -> str:
    first = ""
    with suppress(ValueError):  # a line without an end
        async for line in stderr:
            first = first or ("" if b": Info: " in line else line.decode(errors="replace").strip())
    return first


async def _end(child: Process, said: TaskSet) -> None:
    """Wait for a child without input, or kill it, and for `said`, which reads what it said."""
    ended = asyncio.create_task(child.wait())
    await asyncio.wait({ended}, timeout=_END_S)  # real time: a child process
    with suppress(ProcessLookupError):
        child.kill()
    await asyncio.wait({ended, *said}, timeout=_END_S)  # real time: a client
    said.cancel()


def _remove_unfinished(mailbox: Path, pid: int) -> None:
    """Remove the files in tmp/ that a process of this machine has left in any folder."""
    name = f"tmp/*P{pid}.{socket.gethostname()}"
    for path in (*mailbox.glob(name), *mailbox.glob(f".*/{name}")):
        with suppress(OSError):
            remove(path)
