"""What sites and the local delivery queue need of the scheduler, as a Protocol."""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from typing import Protocol

from relay.base.message.outcome import Outcome, Success
from relay.delivery.content_cache import ContentCache
from relay.store.spool.types import Claim, Spool


class Scheduler(Protocol):
    """What sites and the local delivery queue use of DeliveryScheduler."""

    spool: Spool
    contents: ContentCache  # of the claims being delivered

    async def record(
        self,
        claim: Claim,
        outcomes: Mapping[int, Outcome],
        *,
        reached: bool = True,
        took_s: float | None = None,
    ) -> None:
        """Make the outcomes of an attempt durable; return when they are. Never raises.

        Not `reached`: no host of the next hop answered. `took_s` is how long the attempt took since
        the lookup of its next hop, None if the claim shares the outcome of another one.
        """
        ...

    async def record_some(
        self, claim: Claim, outcomes: Mapping[int, Success], *, took_s: float
    ) -> None:
        """Make the outcomes of some recipients durable; the attempt goes on. Never raises."""
        ...

    async def give_back(self, *claims: Claim) -> None:
        """Release claims that were not attempted, at a stop. Never raises."""
        ...

    def postpone(self, claims: Iterable[Claim], until_us: int) -> None:
        """Requeue claims that were not attempted: their site is paused until this queue time. Those
        that have expired end.
        """
        ...

    def run_in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run it in the background; a stop waits for it."""
        ...

    async def wait_for_room(self, claim: Claim) -> bool:
        """Wait until its content can be read. Until then the claim waits as one that is not begun:
        it expires on time, and may be withdrawn. Return False if it was: then the caller must not
        attempt it.
        """
        ...
