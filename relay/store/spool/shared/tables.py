"""What an engine supplies: tables, by SQL that both databases understand; transactions; contents.

What all engines do alike (relay.store.spool.shared) reads and changes rows through these Protocols,
in the thread that has the connection. A statement for them

- marks each value with "?", in the order of the values;
- may have SQLite's INDEXED BY, which another database leaves out, and which stands behind the table
  and its alias;
- uses LIKE with ESCAPE, CASE, coalesce, CAST to BIGINT or TEXT, FILTER, RETURNING, ON CONFLICT and
  row values, but none of GLOB, iif, instr, json functions, INSERT OR, numbered values, and max() or
  min() of several values: what these would do is done in Python;
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
from relay.store.spool.types import Claim, ContentKey, Key, NewMessage

P = ParamSpec("P")
T = TypeVar("T")
Leftovers = Any  # what a commit leaves to be removed; falsy where that is nothing


class StoredBody(Struct, frozen=True):
    """What was stored of a content, for its row."""

    name: str  # of the file or of the body in the database
    crc32: int  # of its octets
    parts: int = 1  # of a body in the database


StoredBodies = Mapping[int, StoredBody]  # by the index of the content in its message
StoredContents = Sequence[StoredBodies]  # of some messages


class Tables(Protocol):
    """Reads rows. Raises SpoolError."""

    next_hop: ClassVar[str]  # of a recipient `r`, whose entry `e` may have ended: an expression
    # of an entry, this engine's only, which are copied with it: each after a comma
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
        """Return a condition that holds where the column has one of these values, and the values
        for its marks.
        """

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All queries in the block read the same state. Not inside a transaction."""
        self.begin_snapshot()
        try:
            yield
        finally:
            self.end_snapshot()

    def begin_snapshot(self) -> None:
        """From now on all queries read the same state, until end_snapshot()."""

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


class QueueEngine(Protocol):
    """How queries and transactions of an engine run, and what contents, and entries that have
    ended, are in it. All other rows are those of Tables.

    What gets tables or a transaction is called in its thread, and only while it is open; all else
    in that of the event loop. Coroutines raise SpoolError.
    """

    contents_sql: str  # content rows of entries, after the id of the message; {} is a condition

    async def read(self, query: Callable[[Tables], T]) -> T:
        """Run a query; it never delays delivery."""

    async def count(self, query: Callable[[Tables], T]) -> T:
        """Run a step of a count, on a connection of its own: it may leave a snapshot open."""

    async def change(self, operation: Callable[[OpenTransaction], T]) -> T:
        """Run an operation in a transaction, and return when that is durable. An operation that
        raises changes nothing; it may be repeated.
        """

    def read_claims(
        self, tables: Tables, keys: Collection[Key]
    ) -> tuple[Sequence[Claim], Mapping[Key, str]]:
        """Return claims of these entries as they are, and what is wrong with the others."""

    def elsewhere(self, tables: Tables, keys: Collection[Key]) -> Mapping[Key, str]:  # noqa: ARG002
        """Return which of these entries other nodes have claimed, with the names of the nodes; none
        where there is one node.
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
        """Store of the contents of reports what must be there before their transaction."""

    def add_reports(
        self,
        transaction: OpenTransaction,
        reports: Sequence[NewMessage],
        stored: StoredContents,
        *,
        original: str,
    ) -> None:
        """Add reports about the message `original`, which wait unclaimed, to the transaction."""

    def committed(self, stored: StoredContents) -> None:
        """The transaction that has these contents is durable."""

    async def discard(self, stored: StoredContents) -> None:
        """Remove what was stored: no transaction has it."""

    def entries_ended(
        self, transaction: OpenTransaction, ended: Mapping[Key, ContentKey]
    ) -> Leftovers:
        """Remove contents that no entry in the queue needs any more. `ended` has the entries that
        are final since this transaction, with their contents. An engine that keeps no final entries
        removes them.
        """

    def remove(self, left: Leftovers) -> None:
        """Remove what entries_ended() has returned, in the background; its commit is durable."""


def reads(
    query: Callable[Concatenate[Tables, P], T],
) -> Callable[Concatenate[QueueEngine, P], Coroutine[Any, Any, T]]:
    """Make a method of an engine from a query: QueueEngine.read() calls it with the tables."""

    @wraps(query)
    async def read(engine: QueueEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await engine.read(lambda tables: query(tables, *args, **kwargs))

    return read
