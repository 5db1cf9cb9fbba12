"""One worker's line to the relay's own pickup socket.

On the path: the daemon's workers submit converted messages; ingress listens there.
Holds: all recipients or none; ENVID is the submission id, always.
Fails: never; all trouble is a Verdict.
Standards: RFC 6409 (submission), RFC 3461 4.4 (ENVID).
"""

from collections.abc import Callable
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
