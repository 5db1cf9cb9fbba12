"""One connection of a site: claims one after the other, each settled before the next final dot.

On the path: a site's worker hands it claims; it speaks through smtp and hands outcomes on.
Holds: at most one unsettled transaction; what is cut off is settled as far as it is known, in doubt
    only if its final dot may have been written.
Fails: ConnectError when no host gives a connection; nothing was tried then.
Standards: RFC 5321 4.5.3.1.10 (452), RFC 1047 (doubt).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Protocol

from relay.delivery.conclude import for_all
from relay.delivery.contents import unreadable
from relay.journal.logs import get_logger
from relay.message.content import Content
from relay.message.outcome import DeferralClass, Deferred, Evidence, Indeterminate, Outcome
from relay.smtp import ConnectError, Connection, Recipient, Transaction
from relay.spool.types import Claim, SpoolError

_log = get_logger("delivery")

TRANSACTIONS_MAX = 1000  # per connection
_AGAIN_MAX = 100  # transactions for one claim whose recipients did not fit into one


class Settler(Protocol):
    """The dispatcher, as a site sees it."""

    async def settle(self, claim: Claim, outcomes: Mapping[int, Outcome]) -> None:
        """Make an attempt's outcomes durable; returns when they are. Never raises."""
        ...

    async def give_back(self, *claims: Claim) -> None:
        """Say that claims were not tried, on the way out. Never raises."""
        ...

    async def content_of(self, claim: Claim) -> Content:
        """What is to be sent. Raises SpoolError."""
        ...


class Session:
    """A connection with the settlement that its next final dot must wait for.

    `host` is where it goes, or where it went last.
    """

    def __init__(
        self, connect: Callable[["Session"], Awaitable[Connection]], settler: Settler
    ) -> None:
        """`connect` opens a connection and says in `host` to whom. Raises ConnectError."""
        self._connect = connect
        self._settler = settler
        self.host = ""
        self._connection: Connection | None = None
        self._unsettled: asyncio.Task[None] | None = None
        self._in_doubt = False  # the final dot may have been written, and was not answered

    @property
    def is_connected(self) -> bool:
        """Whether it holds a connection, at work or idle."""
        return self._connection is not None

    async def deliver(self, claim: Claim) -> None:
        """Try every recipient of the claim once, and begin to settle. Raises ConnectError."""
        outcomes: dict[int, Outcome] = {}
        try:
            await self._attempt(claim, outcomes)
        except ConnectError:
            raise
        except asyncio.CancelledError:  # the grace time of a stop is over
            self._cut_off(claim, outcomes)
            raise
        except Exception as error:  # noqa: BLE001 - ours: it must not end the worker
            _log.exception("attempt broken off", qid=claim.message.id)
            evidence = Evidence("4.3.0", f"4.3.0 internal error: {type(error).__name__}")
            rest = for_all(claim, Deferred(evidence, DeferralClass.INTERNAL))
            outcomes = rest | outcomes
        self._finally(self._settler.settle(claim, outcomes))
        await self._leave_when_worn()

    async def _attempt(self, claim: Claim, outcomes: dict[int, Outcome]) -> None:
        """Fill `outcomes`. Raises ConnectError when nothing was tried."""
        self._in_doubt = False
        try:
            content = await self._settler.content_of(claim)
        except SpoolError as error:
            _log.error("content unreadable", qid=claim.message.id, error=str(error))
            outcomes |= unreadable(claim, error)
            return
        left = list(range(len(claim.recipients)))
        for _ in range(_AGAIN_MAX):
            people = tuple(
                Recipient(one.address, one.notify, one.orcpt)
                for one in (claim.recipients[index] for index in left)
            )
            transaction = Transaction(
                claim.message.reverse_path, people, content, envid=claim.message.envid,
                ret=claim.message.ret, smtputf8=claim.message.smtputf8,
                eight_bit=claim.message.eight_bit,
            )  # fmt: skip
            try:
                again = await self._transact(transaction, claim, left=left, outcomes=outcomes)
            except ConnectError as error:
                if not outcomes:
                    raise
                for index in left:  # some were tried already: this attempt is theirs too
                    outcomes.setdefault(claim.recipients[index].id, error.outcome)
                return
            if not again:
                return
            left = again

    async def _transact(
        self,
        transaction: Transaction,
        claim: Claim,
        *,
        left: list[int],
        outcomes: dict[int, Outcome],
    ) -> list[int]:
        """One transaction, on a fresh connection where the old one turns out dead; who is left."""
        while True:
            fresh = self._connection is None or not self._connection.is_open
            if fresh or self._connection is None:
                self._connection = await self._connect(self)
            result = await self._connection.transact(transaction, before_dot=self._before_dot)
            self._in_doubt = False
            if not result.reusable:
                self._connection = None
            if not result.stale:
                break
        for index, outcome in result.outcomes.items():
            outcomes[claim.recipients[left[index]].id] = outcome
        return [left[index] for index in result.again]

    def _cut_off(self, claim: Claim, outcomes: dict[int, Outcome]) -> None:
        """Keep what is known, say what is in doubt; with neither the claim was not tried."""
        if self._in_doubt:
            words = "the relay was stopped before the host answered the final dot"
            in_doubt = Indeterminate(Evidence("4.4.2", words, host=self.host))
            outcomes = for_all(claim, in_doubt) | outcomes
        settler = self._settler
        self._finally(settler.settle(claim, outcomes) if outcomes else settler.give_back(claim))

    def _finally(self, settling: Coroutine[None, None, None]) -> None:
        before = self._unsettled

        async def in_order() -> None:
            if before is not None:
                await before
            await settling

        self._unsettled = asyncio.get_running_loop().create_task(in_order())

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
