"""The tables of an open spool, by SQL that the database of each engine understands.

What all engines do alike (relay.spool.rows, queue, history) reads and changes rows through these
Protocols, in the thread that has the connection. A statement for them

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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from relay.journeys.events import Event


class Tables(Protocol):
    """Reads rows. Raises SpoolError."""

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a query."""
        ...

    def fetch_one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Return the first row of a query, or None."""
        ...

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Yield the rows of a query, which are read only as far as needed."""
        ...

    def fetch_each(self, sql: str, values: Iterable[Sequence[Any]]) -> list[Any]:
        """Run a statement once for each of these values, and return the rows of all, in order."""
        ...

    def among(self, column: str, values: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
        """Return a condition that holds where the column has one of these values, and the values
        for its marks.
        """
        ...

    @property
    def next_hop(self) -> str:
        """The next hop of a recipient `r`, whose entry `e` may have ended: an expression."""
        ...

    @property
    def entry_columns(self) -> str:
        """The columns of an entry that are this engine's only and are copied with it, each after a
        comma.
        """
        ...

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All queries in the block read the same state. Not inside a transaction."""
        self.begin_snapshot()
        try:
            yield
        finally:
            self.end_snapshot()

    def begin_snapshot(self) -> None:
        """From now on all queries read the same state, also those of later calls."""
        ...

    def end_snapshot(self) -> None:
        """End begin_snapshot()."""
        ...

    @property
    def is_in_snapshot(self) -> bool:
        """Whether begin_snapshot() has not ended."""
        ...


class OpenTransaction(Tables, Protocol):
    """One open transaction, which a commit ends for all of its operations."""

    @property
    def counts(self) -> Counter[str]:
        """By how much counters change; written before the commit."""
        ...

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run a statement and return the number of rows that it has changed."""
        ...

    def execute_each(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each of these values."""
        ...

    def append_events(self, message_id: str, events: Sequence[Event]) -> None:
        """Append events to those of a message."""
        ...
