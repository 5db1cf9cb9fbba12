"""Claims for mailboxes of this relay: a few at once, in fair turns among senders.

On the path: the dispatcher pushes claims; each is delivered, then settled.
Holds: a bounded number of tasks; one sender's many do not delay another's one; what is cut off is
    in doubt, so that a repeat looks for what is in a mailbox already.
Fails: never.
Standards: docs/design.md 5.
"""

import asyncio

from relay.delivery.conclude import broken_off
from relay.delivery.contents import unreadable
from relay.delivery.local import LocalDelivery
from relay.delivery.ports import Scheduler
from relay.delivery.queue.fairqueue import FairQueue
from relay.message.outcome import Evidence, Indeterminate, Outcome
from relay.observe.logs import get_logger
from relay.spool.types import Claim, SpoolError

_log = get_logger("delivery")

_AT_ONCE = 16
_CUT_OFF = Evidence("4.3.0", "the relay was stopped while it delivered this")


class Mailroom:
    """The ready list of all mailboxes, and who works it off."""

    def __init__(self, local: LocalDelivery, scheduler: Scheduler) -> None:
        self._local = local
        self._scheduler = scheduler
        self.ready = FairQueue()
        self.workers: dict[asyncio.Task[None], None] = {}  # in the order in which they began

    def push(self, claim: Claim) -> None:
        """Take a claim."""
        self.ready.push(claim)
        if len(self.workers) < _AT_ONCE:
            worker = asyncio.get_running_loop().create_task(self._work())
            self.workers[worker] = None
            worker.add_done_callback(self.workers.pop)

    def abort(self) -> None:
        """Cut off what is being delivered."""
        for worker in self.workers:
            worker.cancel()

    async def _work(self) -> None:
        while (claim := self.ready.pop()) is not None:
            outcomes: dict[int, Outcome] = {}
            try:
                await self._deliver(claim, outcomes)
            except asyncio.CancelledError:
                await self._cut_off(claim, outcomes)
                raise
            except Exception:  # noqa: BLE001 - an internal fault must not end the worker
                _log.exception("delivery broken off", qid=claim.message.id)
                outcomes = broken_off(claim) | outcomes
            await self._scheduler.settle(claim, outcomes)

    async def _cut_off(self, claim: Claim, outcomes: dict[int, Outcome]) -> None:
        if outcomes:
            await self._scheduler.settle(claim, outcomes)
        else:
            await self._scheduler.give_back(claim)

    async def _deliver(self, claim: Claim, outcomes: dict[int, Outcome]) -> None:
        """Fill `outcomes`. What is cut off may be in the mailbox or not: a repeat looks for it."""
        try:
            content = await self._scheduler.content_of(claim)
        except SpoolError as error:
            outcomes |= unreadable(claim, error)
            return
        for recipients in self._local.by_mailbox(claim):
            outcome: Outcome = Indeterminate(_CUT_OFF)
            try:
                outcome = await self._local.deliver(claim, recipients, content)
            finally:
                outcomes |= dict.fromkeys((one.id for one in recipients), outcome)
