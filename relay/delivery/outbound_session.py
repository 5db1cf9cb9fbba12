"""One connection of a site: claims one after the other, each settled before the next final dot.

On the path: a site's worker hands it claims; it speaks through smtp and hands outcomes on.
Holds: at most one unsettled transaction; what is cut off is settled as far as it is known, in doubt
    only if its final dot may have been written.
Fails: ConnectError when no host gives a connection; nothing was tried then.
Standards: RFC 5321 4.5.3.1.10 (452), RFC 1047 (doubt).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace

from relay.delivery.attempt_result import broken_off, for_all
from relay.delivery.content_budget import unreadable
from relay.delivery.dependencies import Scheduler
from relay.delivery.site_limits import pushes_back
from relay.message.outcome import Evidence, Indeterminate, Outcome, Relayed
from relay.observe.logs import get_logger
from relay.smtp import ConnectError, Connection, Recipient, Transaction, TransactionResult
from relay.spool.types import Claim, SpoolError

_log = get_logger("delivery")

TRANSACTIONS_MAX = 1000  # per connection
_AGAIN_MAX = 100  # transactions for one claim whose recipients did not fit into one


@dataclass
class _Attempt:
    """What is known of one. `claim` has the recipients that are not settled yet."""

    claim: Claim
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    has_settled_some: bool = False

    def take_relayed(self) -> dict[int, Relayed]:
        """Take out those who have the message."""
        outcomes = self.outcomes.items()
        taken = {key: outcome for key, outcome in outcomes if isinstance(outcome, Relayed)}
        for key in taken:
            del self.outcomes[key]
        others = tuple(one for one in self.claim.recipients if one.id not in taken)
        self.claim = replace(self.claim, recipients=others)
        self.has_settled_some = self.has_settled_some or bool(taken)
        return taken


class Session:
    """A connection with the settlement that its next final dot must wait for.

    `host` is where it goes, or where it went last.
    """

    def __init__(
        self, connect: Callable[["Session"], Awaitable[Connection]], scheduler: Scheduler
    ) -> None:
        """`connect` opens a connection and says in `host` to whom. Raises ConnectError."""
        self._connect = connect
        self._scheduler = scheduler
        self.host = ""
        self._connection: Connection | None = None
        self._unsettled: asyncio.Task[None] | None = None
        self._in_doubt = False  # the final dot may have been written, and was not answered

    @property
    def is_connected(self) -> bool:
        """Whether it holds a connection, at work or idle."""
        return self._connection is not None

    def goes_to(self, host: str) -> None:
        """It is about to ask `host` for a connection."""
        self.host = host

    async def deliver(self, claim: Claim) -> bool:
        """Try every recipient of the claim once, and begin to settle; whether the host turned it
        away for its own sake. Raises ConnectError.
        """
        attempt = _Attempt(claim)
        try:
            await self._attempt(attempt)
        except ConnectError:
            raise
        except asyncio.CancelledError:  # the grace time of a stop is over
            self._cut_off(attempt)
            raise
        except Exception:  # noqa: BLE001 - an internal fault must not end the worker
            _log.exception("attempt broken off", qid=claim.message.id)
            attempt.outcomes = broken_off(attempt.claim) | attempt.outcomes
        self._finally(self._scheduler.settle(attempt.claim, attempt.outcomes))
        await self._leave_when_worn()
        return pushes_back(attempt.outcomes.values())

    async def _attempt(self, attempt: _Attempt) -> None:
        """Fill its outcomes. Raises ConnectError when nothing was tried."""
        self._in_doubt = False
        claim = attempt.claim
        await self._connected()  # first: who is not there must not keep contents in memory
        try:
            content = await self._scheduler.content_of(claim)
        except SpoolError as error:
            _log.error("content unreadable", qid=claim.message.id, error=str(error))
            attempt.outcomes |= unreadable(claim, error)
            return
        left = claim.recipients
        for _ in range(_AGAIN_MAX):
            transaction = Transaction(
                claim.message.reverse_path,
                tuple(Recipient(one.address, one.notify, one.orcpt) for one in left),
                content, envid=claim.message.envid, ret=claim.message.ret,
                smtputf8=claim.message.smtputf8, eight_bit=claim.message.eight_bit,
            )  # fmt: skip
            try:
                result = await self._transact(transaction)
            except ConnectError as error:
                if not attempt.outcomes and not attempt.has_settled_some:
                    raise
                for one in left:  # others were tried already: this attempt is theirs too
                    attempt.outcomes.setdefault(one.id, error.outcome)
                return
            for index, outcome in result.outcomes.items():
                attempt.outcomes[left[index].id] = outcome
            if not result.again:
                return
            left = tuple(left[index] for index in result.again)
            tried = attempt.claim
            if taken := attempt.take_relayed():  # before the next final dot
                self._finally(self._scheduler.settle_some(tried, taken))

    async def _transact(self, transaction: Transaction) -> TransactionResult:
        """One transaction, on a fresh connection where the old one turns out dead."""
        while True:
            connection = await self._connected()
            result = await connection.transact(transaction, before_dot=self._before_dot)
            self._in_doubt = False
            if not result.reusable:
                self._connection = None
            if not result.stale:
                return result

    async def _connected(self) -> Connection:
        """The connection, a new one where there is none that is good. Raises ConnectError."""
        if self._connection is None or not self._connection.is_open:
            self._connection = await self._connect(self)
        return self._connection

    def _cut_off(self, attempt: _Attempt) -> None:
        """Keep what is known, say what is in doubt; with neither the claim was not tried."""
        claim, outcomes = attempt.claim, attempt.outcomes
        if self._in_doubt:
            words = "the relay was stopped before the host answered the final dot"
            in_doubt = Indeterminate(Evidence("4.4.2", words, host=self.host))
            outcomes = for_all(claim, in_doubt) | outcomes
        scheduler = self._scheduler
        self._finally(scheduler.settle(claim, outcomes) if outcomes else scheduler.give_back(claim))

    def _finally(self, settling: Coroutine[None, None, None]) -> None:
        """Begin to settle, after what the connection settles already.

        A transaction without a final dot waits for nothing before. If its settlement were done
        first, the entry would be put back while those who have the message are not recorded, and
        the next final dot would not wait for the settlement before.
        """
        before = self._unsettled

        async def in_order() -> None:
            try:
                if before is not None:
                    await before
            finally:  # a fault of that one must not leave this claim unsettled
                await settling

        self._unsettled = self._scheduler.see_to(in_order())

    async def _before_dot(self) -> None:
        if self._unsettled is not None and not self._unsettled.done():
            await asyncio.shield(self._unsettled)
        self._in_doubt = True

    async def _leave_when_worn(self) -> None:
        connection = self._connection
        if connection is not None and connection.transactions >= TRANSACTIONS_MAX:
            self._connection = None
            await connection.quit()

    async def end(self) -> None:
        """Wait for the last settlement, then say goodbye."""
        try:
            if self._unsettled is not None:
                await asyncio.shield(self._unsettled)
            if self._connection is not None and self._connection.is_open:
                await self._connection.quit()
        finally:
            if self._connection is not None:
                self._connection.close()
