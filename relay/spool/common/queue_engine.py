"""What an engine supplies so that operators can list and change its queue."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from relay.message.content import Content
from relay.spool.queue_commands import ShownTimes
from relay.spool.tables import OpenTransaction, Tables
from relay.spool.types import FIRST_KEY, Claim, ContentKey, Key, NewMessage, Selector

T = TypeVar("T")
StoredContents = Any  # of some messages, as the engine names them
Leftovers = Any  # what a commit leaves to be removed; falsy where that is nothing


class SelectedEntries(Protocol):
    """The entries that a selector matches, in the order of their ids."""

    @property
    def unknown(self) -> Sequence[str]:
        """The ids of the selector that match no entry."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left."""
        ...

    def step(self, tables: Tables) -> list[Key]:
        """Return the next of them; an empty list is not the end."""
        ...


class EntryListing(Protocol):
    """A list of entries as the JSON of `queue list`."""

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The list."""
        ...

    @property
    def recipients_left(self) -> int:
        """How many more recipients may be listed."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether no more entries are listed."""
        ...

    def add(
        self, tables: Tables, keys: Sequence[Key], more: Mapping[Key, Mapping[str, str]] = ...
    ) -> None:
        """Append these entries, as they are, each with the fields in `more`, until it is full."""
        ...


class QueueEngine(Protocol):
    """How queries and transactions of an engine run, and what contents, and entries that have
    ended, are in it. All other rows are those of relay.spool.tables.

    What gets tables or a transaction is called in its thread, and only while it is open; all else
    in that of the event loop. Coroutines raise SpoolError.
    """

    async def read(self, query: Callable[[Tables], T]) -> T:
        """Run a query; it never delays delivery."""
        ...

    async def change(self, operation: Callable[[OpenTransaction], T]) -> T:
        """Run an operation in a transaction, and return when that is durable. An operation that
        raises changes nothing; it may be repeated.
        """
        ...

    def select(
        self, selector: Selector, *, now_us: int, keys_at_once: int, after: Key = FIRST_KEY
    ) -> SelectedEntries:
        """Return the entries that are not final and match; of all but ids, those behind `after`.
        `now_us` is queue time; `keys_at_once` bounds what is in memory.
        """
        ...

    def listing(self, times: ShownTimes, *, entries_max: int, recipients_max: int) -> EntryListing:
        """Return an empty list for so many entries and recipients."""
        ...

    def read_claims(
        self, tables: Tables, keys: Collection[Key]
    ) -> tuple[Sequence[Claim], Mapping[Key, str]]:
        """Return claims of these entries as they are, and what is wrong with the others."""
        ...

    async def read_content(self, key: ContentKey) -> Content:
        """Read a content."""
        ...

    async def store_contents(self, reports: Sequence[NewMessage]) -> StoredContents:
        """Store of the contents of reports what must be there before their transaction."""
        ...

    def add_reports(
        self, transaction: OpenTransaction, reports: Sequence[NewMessage], stored: StoredContents
    ) -> None:
        """Add reports, which wait unclaimed, to the transaction."""
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
