"""The SMTP client of pickup: submits messages on run/pickup.sock, and its circuit breaker.

A submission has all recipients or none. ENVID is always the submission id. Errors are returned as a
SubmissionOutcome, never raised. While the server accepts no mail, the circuit breaker is open: one
submission at a time probes the server, all others wait.

RFC 6409 (submission), RFC 3461 4.4 (ENVID).
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from relay.clock import Clock, Timer
from relay.message.envelope import Notify
from relay.message.outcome import Evidence
from relay.message.tls_policy import TlsPolicy
from relay.mime.convert import ConvertedMessage
from relay.pickup.decisions import SubmissionDeferred, SubmissionOutcome, submission_outcome
from relay.smtp.connect import ConnectError, Target, connect
from relay.smtp.connection import Connection, Timeouts
from relay.smtp.transaction import Transaction, TransactionRecipient

# The default of NOTIFY, and SUCCESS (RFC 3461 4.1).
_WITH_SUCCESS = frozenset({Notify.SUCCESS, Notify.FAILURE, Notify.DELAY})
_TIMEOUTS = Timeouts(connect_s=10, command_s=60, data_s=60, block_s=60, dot_s=600)
FIRST_PROBE_DELAY_S = 0.2
LONGEST_PROBE_DELAY_S = 5.0
FAILURES_TO_OPEN = 3  # as many different submissions in a row: the server is at fault


class SubmissionClient:
    """Submits one message at a time and keeps its connection open."""

    def __init__(self, submit_path: Path, *, hostname: str) -> None:
        self._target = Target(hostname, path=str(submit_path), tls=TlsPolicy("none"))
        self._hostname = hostname
        self._connection: Connection | None = None

    async def submit(
        self, message: ConvertedMessage, *, submission_id: str, after_dot: Callable[[], None]
    ) -> SubmissionOutcome:
        """Submit `message` with the key `submission_id`. It is safe to repeat this."""
        notify = _WITH_SUCCESS if message.notify_success else frozenset()
        transaction = Transaction(
            reverse_path=message.originator,
            recipients=tuple(
                TransactionRecipient(address, notify) for address in message.recipients
            ),
            content=message.content,
            envid=submission_id,
            smtputf8=message.smtputf8,
            eight_bit=message.eight_bit,
            whole=True,
        )
        while True:
            try:
                connection = await self._open()
            except ConnectError as error:  # no reply here is about this message
                return SubmissionDeferred(error.outcome.evidence, is_down=True)
            if not connection.extensions.dsn:
                evidence = Evidence("4.3.5", "4.3.5 the pickup socket does not offer DSN")
                return SubmissionDeferred(evidence, is_down=True)
            result = await connection.transact(transaction, after_dot=after_dot)
            if not result.stale:  # a stale connection is closed: the next one is new
                return submission_outcome(result.outcomes.values())

    async def close(self) -> None:
        """Send QUIT and close the connection."""
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


class CircuitBreaker:
    """Pauses all workers while the server accepts nothing; closed at first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failed: set[str] = set()  # submission ids since the last success
        self._is_open = False
        self._probe: asyncio.Task[None] | None = None
        self._probe_delay_s = FIRST_PROBE_DELAY_S
        self._probe_timer: Timer | None = None  # until the next probe may begin
        self._changed = asyncio.Event()

    async def acquire(self) -> None:
        """Wait until a submission may be attempted. The caller must call release()."""
        while self._is_open:
            if self._probe is None and self._probe_timer is None:
                self._probe = asyncio.current_task()
                return
            await self._changed.wait()

    def release(self) -> None:
        """Record that this task's attempt has ended."""
        if self._probe is asyncio.current_task():
            self._probe = None
            self._notify()

    def record_success(self) -> None:
        """Record that the server accepted a message or rejected it permanently: it works."""
        self._failed.clear()
        self._probe_delay_s = FIRST_PROBE_DELAY_S
        if self._is_open:
            self._is_open = False
            self._end_delay()

    def record_failure(self, submission_id: str, *, is_down: bool) -> None:
        """Record a temporary failure; `is_down`: no connection was possible."""
        if len(self._failed) < FAILURES_TO_OPEN:
            self._failed.add(submission_id)
        if self._is_open:
            if self._probe is asyncio.current_task():
                self._probe_delay_s = min(LONGEST_PROBE_DELAY_S, 2 * self._probe_delay_s)
                self._delay_probe()
        elif is_down or len(self._failed) >= FAILURES_TO_OPEN:
            self._is_open = True
            self._delay_probe()

    def _delay_probe(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        self._probe_timer = self._clock.call_later(self._probe_delay_s, self._end_delay)

    def _end_delay(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
