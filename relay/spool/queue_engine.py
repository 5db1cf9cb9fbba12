"""What an engine supplies so that its queue can be listed, changed, counted and maintained."""

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from relay.message.content import Content
from relay.spool.tables import OpenTransaction, Tables
from relay.spool.types import Claim, ContentKey, Key, NewMessage

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound="QueueEngine")
StoredContents = Any  # of some messages, as the engine names them
Leftovers = Any  # what a commit leaves to be removed; falsy where that is nothing


class QueueEngine(Protocol):
    """How queries and transactions of an engine run, and what contents, and entries that have
    ended, are in it. All other rows are those of relay.spool.tables.

    What gets tables or a transaction is called in its thread, and only while it is open; all else
    in that of the event loop. Coroutines raise SpoolError.
    """

    async def read(self, query: Callable[[Tables], T]) -> T:
        """Run a query; it never delays delivery."""
        ...

    async def count(self, query: Callable[[Tables], T]) -> T:
        """Run a step of a count, on a connection of its own: it may leave a snapshot open."""
        ...

    async def change(self, operation: Callable[[OpenTransaction], T]) -> T:
        """Run an operation in a transaction, and return when that is durable. An operation that
        raises changes nothing; it may be repeated.
        """
        ...

    def read_claims(
        self, tables: Tables, keys: Collection[Key]
    ) -> tuple[Sequence[Claim], Mapping[Key, str]]:
        """Return claims of these entries as they are, and what is wrong with the others."""
        ...

    def elsewhere(self, tables: Tables, keys: Collection[Key]) -> Mapping[Key, str]:  # noqa: ARG002
        """Return which of these entries other nodes have claimed, with the names of the nodes; none
        where there is one node.
        """
        return {}

    async def other_nodes(self) -> Sequence[str]:
        """Return the names of the other nodes that live."""
        return ()

    async def read_content(self, key: ContentKey) -> Content:
        """Read a content."""
        ...

    async def store_contents(self, reports: Sequence[NewMessage]) -> StoredContents:
        """Store of the contents of reports what must be there before their transaction."""
        ...

    def add_reports(
        self,
        transaction: OpenTransaction,
        reports: Sequence[NewMessage],
        stored: StoredContents,
        *,
        original: str,
    ) -> None:
        """Add reports about the message `original`, which wait unclaimed, to the transaction."""
        ...

    def committed(self, stored: StoredContents) -> None:
        """The transaction that has these contents is durable."""
        ...

    async def discard(self, stored: StoredContents) -> None:
        """Remove what was stored: no transaction has it."""
        ...

    def entries_ended(
        self, transaction: OpenTransaction, ended: Mapping[Key, ContentKey]
    ) -> Leftovers:
        """Remove contents that no entry in the queue needs any more. The entries here are final
        since this transaction, and listed: an engine that keeps none of these removes them.
        """
        ...

    def remove(self, left: Leftovers) -> None:
        """Remove what entries_ended() has returned, in the background; its commit is durable."""
        ...


def reads(
    query: Callable[Concatenate[E, Tables, P], T],
) -> Callable[Concatenate[E, P], Coroutine[Any, Any, T]]:
    """Make a coroutine of a method that is a query: QueueEngine.read() calls it with the tables."""

    @wraps(query)
    async def read(engine: E, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await engine.read(lambda tables: query(engine, tables, *args, **kwargs))

    return read
