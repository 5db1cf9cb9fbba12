"""What an operation of the write connection sees: a transaction, and the rows of its commit."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from relay.journeys.events import Event
from relay.spool.postgres.nodes import Stores
from relay.spool.postgres.rows import CommitRows
from relay.spool.postgres.tables import ConnectionTables
from relay.spool.types import SpoolError

T = TypeVar("T")


class WriteTransaction(ConnectionTables):
    """An OpenTransaction. Rows that are added are written with its commit, after all else."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: Any,
        *,
        incarnation: int,
        stores: Stores,
    ) -> None:
        super().__init__(loop, connection)
        self.rows = CommitRows()
        self.incarnation = incarnation  # of this node
        self.stores = stores
        self.has_changed = True  # an operation that runs alone and changes nothing says so

    @property
    def counts(self) -> Counter[str]:
        """OpenTransaction.counts."""
        return self.rows.counts

    def append_events(self, message_id: str, events: Sequence[Event]) -> None:
        """OpenTransaction.append_events."""
        self.rows.events += [(message_id, event) for event in events]


Operation = Callable[[WriteTransaction], T]


class WaitingOperation(Struct, frozen=True):
    """An operation that waits for its commit."""

    operation: Operation[Any]  # what it does
    future: asyncio.Future[Any]  # of its answer
    size: int = 0  # of the octets that it writes, about
    accepts: bool = False  # after some seconds its caller gets an error
    leased: bool = False  # it is refused once the lease of this node has ended
    alone: bool = False  # it reads, or runs statements
    is_order: bool = False  # see submit()
    since_s: float = 0.0  # when it was submitted

    @property
    def begin(self) -> str:
        """What begins its transaction, if it runs alone."""
        return "BEGIN ISOLATION LEVEL REPEATABLE READ" if self.is_order else "BEGIN"


class StaleClaimError(SpoolError):
    """A result is of a claim that has ended."""


class KnownKeyError(SpoolError):
    """A message was accepted with this submission key before."""
