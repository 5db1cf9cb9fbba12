"""What delivery needs of other rooms, and its parts of the dispatcher, as Protocols.

On the path: see the room; app passes the other rooms' real ones in.
Holds: nothing here knows a concrete class.
Fails: as each method says.
Standards: none.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Protocol

from relay.journeys.events import Event
from relay.message.content import Content
from relay.message.nexthop import NextHop
from relay.message.outcome import Outcome, Relayed
from relay.message.reporting import ReportedMessage, ReportedRecipient
from relay.message.verdict import Source
from relay.routing import HopLimits, HopTls, Resolution
from relay.smtp import Connection, Target, Timeouts
from relay.spool.types import Claim, NewMessage


class Scheduler(Protocol):
    """The dispatcher, whose claims they are, as sites and the mailroom see it."""

    async def settle(
        self, claim: Claim, outcomes: Mapping[int, Outcome], *, reached: bool = True
    ) -> None:
        """Make an attempt's outcomes durable; returns when they are. Never raises.

        Not `reached`: nobody answered for the next hop.
        """
        ...

    async def settle_some(self, claim: Claim, outcomes: Mapping[int, Relayed]) -> None:
        """Make it durable who has the message while others are still to be tried. Never raises."""
        ...

    async def give_back(self, *claims: Claim) -> None:
        """Say that claims were not tried, on the way out. Never raises."""
        ...

    def see_to(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Have it done beside whoever asks; a stop waits for it."""
        ...

    async def content_of(self, claim: Claim) -> Content:
        """What is to be sent. Raises SpoolError."""
        ...


class ReportPlan(Protocol):
    """Reports to make durable, and what the original's journey says of them."""

    @property
    def messages(self) -> tuple[NewMessage, ...]:
        """The reports, already routed."""
        ...

    @property
    def events(self) -> tuple[Event, ...]:
        """Step 7 of the original."""
        ...


class Reporter(Protocol):
    """Decides who hears of a failure."""

    def failures(
        self,
        message: ReportedMessage,
        *,
        trusted: bool,
        source: Source,
        account: str,
        recipients: Sequence[ReportedRecipient],
    ) -> ReportPlan:
        """The reports about these recipients; none where none may be sent."""
        ...


class Resolver(Protocol):
    """Next hop to hosts."""

    async def resolve(self, next_hop: NextHop) -> Resolution:
        """Hosts in the order to try them, or why there are none."""
        ...


class Connect(Protocol):
    """smtp.connect, or a simulated network's."""

    async def __call__(self, target: Target, *, ehlo_name: str, timeouts: Timeouts) -> Connection:
        """Open a connection that is ready for a transaction. Raises ConnectError."""
        ...


class LocalTable(Protocol):
    """The parts of the route table that delivery asks."""

    def mailbox_for(self, address: str) -> str | None:
        """The mailbox that takes mail for `address`, None if there is none."""
        ...

    def limits_for(self, next_hop: NextHop) -> HopLimits:
        """What its route allows it at most."""
        ...

    def tls_for(self, next_hop: NextHop) -> HopTls:
        """What its route asks of its hosts."""
        ...

    def credentials_for(self, next_hop: NextHop) -> tuple[str, str] | None:
        """User and password for a next hop."""
        ...
