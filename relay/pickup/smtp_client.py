"""One worker's line to the relay's own pickup socket.

On the path: the daemon's workers submit converted messages; ingress listens there.
Holds: all recipients or none; ENVID is the submission id, always.
Fails: never; all trouble is a Verdict.
Standards: RFC 6409 (submission), RFC 3461 4.4 (ENVID).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from relay.message.envelope import Notify
from relay.message.outcome import Evidence
from relay.mime.converted import Converted
from relay.pickup.decisions import Later, Verdict, verdict_of
from relay.smtp import (
    ConnectError,
    Connection,
    Recipient,
    Target,
    Timeouts,
    Transaction,
    connect,
)

# What no NOTIFY means, and success (RFC 3461 4.1).
_WITH_SUCCESS = frozenset({Notify.SUCCESS, Notify.FAILURE, Notify.DELAY})
_TIMEOUTS = Timeouts(connect_s=10, command_s=60, data_s=60, block_s=60, dot_s=600)


class Submitter:
    """Submits one message after the other on a connection that it keeps."""

    def __init__(self, submit_path: Path, *, hostname: str) -> None:
        self._target = Target(hostname, path=str(submit_path), tls="none")
        self._hostname = hostname
        self._connection: Connection | None = None

    async def submit(
        self, message: Converted, *, submission_id: str, after_dot: Callable[[], None]
    ) -> Verdict:
        """Submit `message` under the key `submission_id`; repeating it is safe."""
        notify = _WITH_SUCCESS if message.notify_success else frozenset()
        transaction = Transaction(
            reverse_path=message.originator,
            recipients=tuple(Recipient(address, notify) for address in message.recipients),
            content=message.content,
            envid=submission_id,
            smtputf8=message.smtputf8,
            eight_bit=message.eight_bit,
            whole=True,
        )
        while True:
            try:
                connection = await self._open()
            except ConnectError as error:  # whatever it says, it is not about this message
                return Later(error.outcome.evidence, is_down=True)
            if not connection.extensions.dsn:
                evidence = Evidence("4.3.5", "4.3.5 the pickup socket does not offer DSN")
                return Later(evidence, is_down=True)
            result = await connection.transact(transaction, after_dot=after_dot)
            if not result.stale:  # a stale one is closed, so this ends with a fresh one
                return verdict_of(result.outcomes.values())

    async def close(self) -> None:
        """Say goodbye to the relay."""
        if self._connection is not None and self._connection.is_open:
            await self._connection.quit()
        self._connection = None

    async def _open(self) -> Connection:
        if self._connection is None or not self._connection.is_open:
            self._connection = None
            self._connection = await connect(
                self._target, ehlo_name=self._hostname, timeouts=_TIMEOUTS
            )
        return self._connection


FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
NOTES_TO_SHUT = 3  # so many different notes put off in a row are no fault of the notes


class Gate:
    """Open at first."""

    def __init__(self) -> None:
        self._put_off: set[str] = set()  # since the last good answer
        self._is_shut = False
        self._asking: asyncio.Task[None] | None = None
        self._pause_s = FIRST_PAUSE_S
        self._next_s = 0.0
        self._changed = asyncio.Event()

    async def passed(self) -> None:
        """Return when a note may be submitted; leave() must follow."""
        while self._is_shut:
            wait_s = self._next_s - _now_s()
            if self._asking is None and wait_s <= 0:
                self._asking = asyncio.current_task()
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s if self._asking is None else None):
                    await self._changed.wait()

    def leave(self) -> None:
        """Say that this task's note is on its way no more."""
        if self._asking is asyncio.current_task():
            self._asking = None
            self._tell()

    def answered(self) -> None:
        """The relay took a note, or refused it for what it is: it is there for all."""
        self._put_off.clear()
        self._pause_s = FIRST_PAUSE_S
        if self._is_shut:
            self._is_shut = False
            self._tell()

    def put_off(self, submission_id: str, *, is_down: bool) -> None:
        """The relay took no note now; `is_down`: it cannot even be asked."""
        if len(self._put_off) < NOTES_TO_SHUT:
            self._put_off.add(submission_id)
        if self._is_shut:
            if self._asking is asyncio.current_task():
                self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
                self._next_s = _now_s() + self._pause_s
        elif is_down or len(self._put_off) >= NOTES_TO_SHUT:
            self._is_shut = True
            self._next_s = _now_s() + self._pause_s

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
