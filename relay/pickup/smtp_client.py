"""The SMTP client of pickup: submits messages on run/pickup.sock.

A submission has all recipients or none. ENVID is always the submission id. Errors are returned as a
SubmissionOutcome, never raised.

RFC 6409 (submission), RFC 3461 4.4 (ENVID).
"""

from collections.abc import Callable
from pathlib import Path

from relay.message.envelope import Envelope, ForwardPath, Notify
from relay.message.outcome import Evidence
from relay.message.tls_policy import TlsPolicy
from relay.mime.convert import ConvertedMessage
from relay.pickup.decisions import SubmissionDeferred, SubmissionOutcome, submission_outcome
from relay.smtp.connect import ConnectError, Target, connect
from relay.smtp.connection import Connection, Timeouts
from relay.smtp.transaction import Transaction

# The default of NOTIFY, and SUCCESS (RFC 3461 4.1).
_WITH_SUCCESS = frozenset({Notify.SUCCESS, Notify.FAILURE, Notify.DELAY})
_TIMEOUTS = Timeouts(connect_s=10, command_s=60, data_s=60, block_s=60, dot_s=600)


class SubmissionClient:
    """Submits one message at a time and keeps its connection open."""

    def __init__(self, socket: Path, *, hostname: str) -> None:
        self._target = Target(hostname, path=str(socket), tls=TlsPolicy("none"))
        self._hostname = hostname
        self._connection: Connection | None = None

    async def submit(
        self, message: ConvertedMessage, *, submission_id: str, after_dot: Callable[[], None]
    ) -> SubmissionOutcome:
        """Submit `message` with the key `submission_id`. It is safe to repeat this."""
        notify = _WITH_SUCCESS if message.notify_success else frozenset()
        transaction = Transaction(
            Envelope(
                message.originator,
                envid=submission_id,
                smtputf8=message.smtputf8,
                eight_bit=message.eight_bit,
            ),
            recipients=tuple(ForwardPath(address, notify) for address in message.recipients),
            content=message.content,
            whole=True,
        )
        while True:
            try:
                connection = await self._open()
            except ConnectError as error:  # no reply here is about this message
                return SubmissionDeferred(error.outcome.evidence, is_down=True)
            if not connection.extensions.dsn:
                await self.close()  # the next attempt asks again
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
