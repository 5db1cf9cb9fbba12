"""What delivery needs of other rooms, and what its parts need of the scheduler, as Protocols.

relay/app passes the other rooms' objects in; tests pass fakes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Protocol

from relay.message.content import Content
from relay.message.nexthop import NextHop
from relay.message.outcome import Outcome, Success
from relay.mime.encode_for_host import EncodedForHost, Need
from relay.routing.mx_hosts import Resolution
from relay.smtp.connect import Target
from relay.smtp.connection import Connection
from relay.spool.types import Claim


class Scheduler(Protocol):
    """The methods of DeliveryScheduler that sites and the local delivery queue call."""

    async def settle(
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

    async def settle_some(
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

    def may_finish(self, claim: Claim) -> bool:
        """Spool.may_finish."""
        ...

    def run_in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run it in the background; a stop waits for it."""
        ...

    async def content_of(self, claim: Claim) -> Content:
        """The content of a claim. Raises SpoolError."""
        ...

    async def encoded(self, claim: Claim, need: Need) -> EncodedForHost:
        """The content of a claim without what a host does not take. Raises CannotEncodeError and
        SpoolError.
        """
        ...

    def has_room_for_content(self, claim: Claim) -> bool:
        """Whether the content of a claim can be read now, within the memory for contents."""
        ...

    async def wait_for_room(self, claim: Claim) -> bool:
        """Wait until its content can be read. Until then the claim waits as one that is not begun:
        it expires on time, and may be withdrawn. False: it is not the caller's any more.
        """
        ...


class HostResolver(Protocol):
    """Resolves a next hop to its hosts."""

    async def resolve(self, next_hop: NextHop) -> Resolution:
        """Hosts in the order to try them, or why there are none."""
        ...


# Opens a connection that is ready for a transaction. Raises ConnectError.
Connect = Callable[[Target], Awaitable[Connection]]
