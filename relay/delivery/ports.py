"""What delivery needs of rooms beside it and below it, as Protocols; app passes the real ones in.

On the path: see the room.
Holds: nothing here knows a concrete class of another room.
Fails: as each method says.
Standards: none.
"""

from collections.abc import Sequence
from typing import Protocol

from relay.journal.events import Event
from relay.message.nexthop import NextHop
from relay.message.reporting import ReportedMessage, ReportedRecipient
from relay.message.verdict import Source
from relay.routing import Resolution
from relay.spool.types import NewMessage


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


class LocalTable(Protocol):
    """The parts of the route table that delivery asks."""

    def mailbox_for(self, address: str) -> str | None:
        """The mailbox that takes mail for `address`, None if there is none."""
        ...

    def credentials_for(self, next_hop: NextHop) -> tuple[str, str] | None:
        """User and password for a next hop."""
        ...
