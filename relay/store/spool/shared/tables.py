"""What an engine supplies: tables, by SQL that both databases understand; transactions; contents.

The modules of relay.store.spool.shared read and change rows through these Protocols, in the thread
that has the connection. A statement

- marks each value with "?", in the order of the values;
- may have SQLite's INDEXED BY after a table and its alias; for another database it is removed;
- uses LIKE with ESCAPE, CASE, coalesce, CAST to BIGINT or TEXT, FILTER, RETURNING, ON CONFLICT and
  row values;
- does not use GLOB, iif, instr, json functions, INSERT OR, numbered values, or max() and min() of
  several values;
- casts a sum to BIGINT, and reads truth from an INTEGER that is 0 or 1.

Text is compared octet by octet, and lower() changes ASCII only.
"""

from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ClassVar, Concatenate, ParamSpec, Protocol, TypeVar

from msgspec import Struct

from relay.base.message.content import Content
from relay.store.journeys.events import Event
from relay.store.spool.types import Claim, ContentKey, Key, NewMessage, ReportPlan

P = ParamSpec("P")
T = TypeVar("T")
Leftovers = Any  # files or bodies to be removed after a commit; falsy if there are none


class StoredBody(Struct, frozen=True):
    """The stored body of a content, as its row names it."""

    name: str  # of the file or of the body in the database
    crc32: int  # of its octets
    parts: int = 1  # of a body in the database


StoredBodies = Mapping[int, StoredBody]  # by the index of the content in its message
StoredContents = Sequence[StoredBodies]  # of some messages


class StoredReports(Struct, frozen=True):
    """Planned reports about a message, with their stored contents."""

    original: str  # the queue id of the message
    plan: ReportPlan
    stored: StoredContents


class Tables(Protocol):
    """Reads rows. Raises SpoolError."""

    next_hop: ClassVar[str]  # of a recipient `r`, whose entry `e` may have ended: an expression
    # columns of an entry that only this engine has, each after a comma; a copy gets them too
    entry_columns: ClassVar[str]

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a query."""

    def fetch_one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Return the first row of a query, or None."""

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Yield the rows of a query, which are read only as far as needed."""

    def fetch_each(self, sql: str, values: Iterable[Sequence[Any]]) -> list[Any]:
        """Run a statement once for each of these values, and return the rows of all, in order."""

    def among(self, column: str, values: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
        """Return the condition that the column has one of these values, and the values for its
        marks.
        """

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Have all queries in the block read the same state. Not inside a transaction."""
        self.begin_snapshot()
        try:
            yield
        finally:
            self.end_snapshot()

    def begin_snapshot(self) -> None:
        """Have all queries read the same state, until end_snapshot()."""

    def end_snapshot(self) -> None:
        """End begin_snapshot()."""

    @property
    def is_in_snapshot(self) -> bool:
        """Whether begin_snapshot() has not ended."""


class OpenTransaction(Tables, Protocol):
    """One open transaction, which a commit ends for all of its operations."""

    @property
    def counts(self) -> Counter[str]:
        """By how much counters change; written before the commit."""

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run a statement and return the number of rows that it has changed."""

    def execute_each(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each of these values."""

    def append_events(self, message_id: str, events: Sequence[Event]) -> None:
        """Append events to those of a message."""

    def forget_dead(self, addresses: Sequence[str]) -> None:
        """Remove what Relay found from the list of dead addresses: they have taken mail."""

    def lock_dead(self) -> None:
        """Have other transactions add to the list of dead addresses before this one reads it, or
        after its commit. Goes before the first query.
        """


class QueueEngine(Protocol):
    """Runs queries and transactions of an engine, and stores contents. All other rows are read and
    changed through Tables.

    A method that gets tables or a transaction is called in the thread of the connection, and only
    while they are open; any other method in the thread of the event loop. Coroutines raise
    SpoolError.
    """

    contents_sql: str  # content rows of entries, after the id of the message; {} is a condition

    async def read(self, query: Callable[[Tables], T]) -> T:
        """Run a query; it never delays delivery."""

    async def count(self, query: Callable[[Tables], T]) -> T:
        """Run a step of a count, on a separate connection: it may leave a snapshot open."""

    async def change(self, operation: Callable[[OpenTransaction], T]) -> T:
        """Run an operation in a transaction, and return when the commit is durable. An operation
        that raises changes nothing; it may be repeated.
        """

    async def change_hold_rules(self, change: Callable[[OpenTransaction], T]) -> T:
        """Run a change of the hold rules, as change() does."""
        return await self.change(change)

    def read_claims(
        self, tables: Tables, keys: Collection[Key]
    ) -> tuple[Sequence[Claim], Mapping[Key, str]]:
        """Return claims with the present epochs of these entries, and what is wrong with others."""

    def elsewhere(self, tables: Tables, keys: Collection[Key]) -> Mapping[Key, str]:  # noqa: ARG002
        """Return the names of the nodes that have claimed some of these entries; none where there
        is one node.
        """
        return {}

    async def read_content(self, content_id: ContentKey, *, check: bool = True) -> Content:
        """Read a content, a large one as its header and the file of its body. The file exists until
        the claim is recorded.

        `check` compares the checksum. Raises SpoolError when the content is missing or damaged.
        """

    def content_of(self, tables: Tables, name: str, row: Sequence[Any]) -> Content:
        """Return the content in a row; it stays readable when it is removed. Raises SpoolError."""

    async def store_contents(self, reports: Sequence[NewMessage]) -> StoredContents:
        """Store the contents of reports that must be there before the transaction."""

    def add_reports(self, transaction: OpenTransaction, reports: StoredReports) -> None:
        """Add reports, which wait unclaimed, to the transaction."""

    def committed(self, stored: StoredContents) -> None:
        """Note that the transaction with these contents is durable."""

    async def discard(self, stored: StoredContents) -> None:
        """Remove what was stored: no transaction has it."""

    def entries_ended(
        self, transaction: OpenTransaction, ended: Mapping[Key, ContentKey]
    ) -> Leftovers:
        """Remove contents that no entry in the queue needs any more. `ended` are the entries that
        end in this transaction, with their contents. An engine that keeps no final entries deletes
        these.
        """

    def remove(self, left: Leftovers) -> None:
        """Remove what entries_ended() returned, in the background, after its durable commit."""


def reads(
    query: Callable[Concatenate[Tables, P], T],
) -> Callable[Concatenate[QueueEngine, P], Coroutine[Any, Any, T]]:
    """Make a method of an engine from a query: QueueEngine.read() calls it with the tables."""

    @wraps(query)
    async def read(engine: QueueEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await engine.read(lambda tables: query(tables, *args, **kwargs))

    return read
