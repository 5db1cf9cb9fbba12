"""Maintain the spool on SQLite: sweep content files, and what a development relay removes.

A file that is being written is never removed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import apsw

from relay.base.clock import Clock, first_id_after, id_time_us
from relay.base.message.lifecycle import RecipientState
from relay.store.journeys.message_list import ListedRecipient
from relay.store.spool.shared.claimed import CLAIMS_AT_ONCE, release_abandoned
from relay.store.spool.shared.columns import LIVE_STATES, REMOVED_EVENTS
from relay.store.spool.shared.event_log import last_sequence
from relay.store.spool.shared.hold_counters import count_removed
from relay.store.spool.shared.maintenance import AT_ONCE, IS_IN_QUEUE, SpoolMaintenance
from relay.store.spool.shared.tables import OpenTransaction, QueueEngine
from relay.store.spool.sqlite.content_files import ContentFiles
from relay.store.spool.sqlite.transactions import is_file_needed, note_removed_events
from relay.store.spool.sqlite.write_ahead_log import COMMITS_COUNTER
from relay.store.spool.sqlite.writer import Batch, Writer

_TABLES = {"recipient": "message_id", "event": "message_id", "entry": "message_id", "message": "id"}
_ABANDONED = (
    "SELECT message_id, number, next_hop, attempts, state"
    " FROM entry INDEXED BY entry_claimed WHERE claimed = 1 LIMIT ?"
)
T = TypeVar("T")


def _data_version(tables: Any) -> tuple[apsw.Connection, int]:
    """Return what changes when another connection of any process has committed."""
    connection = tables.cursor.connection
    return connection, connection.pragma("data_version")


def clear(batch: Batch) -> tuple[int, list[str]]:
    """Remove all messages and counts. Return the number of messages that are not reports, and the
    names of all content files.
    """
    (messages,) = batch.fetch_one("SELECT count(*) FROM message WHERE source <> 'report'")
    files = batch.fetch("SELECT file FROM content WHERE file IS NOT NULL")
    note_removed_events(batch, last_sequence(batch))
    for table in (*_TABLES, "content", "submission", "owed_receipt", "suppressed"):
        batch.execute(f"DELETE FROM {table}")
    kept = (COMMITS_COUNTER, REMOVED_EVENTS)
    batch.execute("DELETE FROM counter WHERE name NOT IN (?,?)", kept)
    batch.counts.clear()  # of operations of the same transaction
    return messages, [name for (name,) in files]


def discard(batch: Batch, until_us: int) -> tuple[int, list[str]]:
    """Remove some messages that were accepted until this time and are not to be delivered. Return
    how many, and the names of files that are not needed any more.

    Recipients that were captured or held count as discarded.
    """
    ids = batch.fetch(
        "SELECT id FROM message m WHERE id < ? AND NOT EXISTS (SELECT 1 FROM entry e WHERE"
        " e.message_id = m.id AND (e.claimed = 1 OR e.state IN ('queued', 'deferred')))"
        " ORDER BY id LIMIT ?",
        (first_id_after(until_us), AT_ONCE),
    )
    return len(ids), _remove_messages(batch, [queue_id for (queue_id,) in ids])


def remove(batch: Batch, queue_id: str) -> tuple[list[ListedRecipient] | None, list[str]]:
    """Remove a message in any state. Return its recipients, and the names of files that are not
    needed any more. While delivery has the message, nothing is removed: return None.
    """
    sql = "SELECT 1 FROM entry WHERE message_id = ? AND claimed = 1 LIMIT 1"
    if batch.fetch_one(sql, (queue_id,)):
        return None, []
    sql = "SELECT number, address, state FROM recipient WHERE message_id = ? AND added_by = ''"
    recipients = [ListedRecipient(*row) for row in batch.fetch(sql, (queue_id,))]
    return recipients, _remove_messages(batch, [queue_id])


def _remove_messages(batch: Batch, queue_ids: Sequence[str]) -> list[str]:
    """Remove messages with their contents; return the names of files that are not needed any more.

    Live recipients count as discarded.
    """
    count_removed(batch, queue_ids)
    ids = [(queue_id,) for queue_id in queue_ids]
    sql = "SELECT DISTINCT content_id FROM entry WHERE message_id = ? AND state <> 'final'"
    contents = batch.fetch_each(sql, ids)
    sql = f"SELECT count(*) FROM recipient WHERE message_id = ? AND state IN {LIVE_STATES}"
    live = sum(number for (number,) in batch.fetch_each(sql, ids))
    files = batch.fetch_each("DELETE FROM content WHERE id = ? RETURNING file", contents)
    batch.execute_each("DELETE FROM owed_receipt WHERE message_id = ?", ids)
    _remove_rows(batch, queue_ids)
    if live:
        batch.counts[RecipientState.DISCARDED] += live
    return [name for (name,) in files if name and not is_file_needed(batch, name)]


def _remove_rows(batch: Batch, queue_ids: Sequence[str]) -> None:
    """Remove all rows of messages, without their contents."""
    ids = [(queue_id,) for queue_id in queue_ids]
    rows = batch.fetch_each("SELECT max(sequence) FROM event WHERE message_id = ?", ids)
    note_removed_events(batch, max((last for (last,) in rows if last is not None), default=None))
    for table, column in _TABLES.items():
        batch.execute_each(f"DELETE FROM {table} WHERE {column} = ?", ids)


@dataclass(eq=False, repr=False)
class Maintenance(SpoolMaintenance):
    """A SpoolMaintenance, and a DevelopmentSpool."""

    engine: QueueEngine
    clock: Clock
    writer: Writer
    files: ContentFiles

    def __post_init__(self) -> None:
        super().__init__(self.engine, self.clock)
        self._accepted: tuple[object, frozenset[str]] = None, frozenset()  # see accepted_ids()

    def take_over_some(self, transaction: OpenTransaction, *, now_us: int, at_us: int) -> int:
        """SpoolMaintenance.take_over_some."""
        claimed = transaction.fetch(_ABANDONED, (CLAIMS_AT_ONCE,))
        release_abandoned(transaction, claimed, now_us=now_us, at_us=at_us)
        return len(claimed)

    async def happened(self) -> tuple[apsw.Connection, int]:
        """SpoolMaintenance.happened."""
        return await self.engine.count(_data_version)

    def remove_rows(self, transaction: Any, queue_ids: Sequence[str]) -> None:
        """SpoolMaintenance.remove_rows."""
        _remove_rows(transaction, queue_ids)

    async def sweep(self) -> int:
        """SpoolMaintenance.sweep."""
        removed = 0
        sweep = partial(self._sweep_some, self.files.listed())
        while (number := await self.engine.read(sweep)) is not None:
            removed += number
        return removed

    async def sizes(self, limit: int) -> list[tuple[int, int]]:
        """DevelopmentSpool.sizes."""
        sql = (
            f"SELECT id, CASE WHEN {IS_IN_QUEUE} THEN size ELSE 0 END FROM message m"
            " ORDER BY id DESC LIMIT ?"
        )
        rows = await self.engine.read(lambda tables: tables.fetch(sql, (limit,)))
        return [(id_time_us(queue_id) or 0, size) for queue_id, size in rows]

    async def accepted_ids(self) -> frozenset[str]:
        """DevelopmentSpool.accepted_ids."""
        self._accepted = await self.engine.read(self._accepted_now)
        return self._accepted[1]

    def _accepted_now(self, tables: Any) -> tuple[object, frozenset[str]]:
        """Return the ids, and the version of the data: they are the same until the next commit."""
        now = _data_version(tables)
        if now == self._accepted[0]:
            return self._accepted
        rows = tables.fetch("SELECT id FROM message WHERE source <> 'report'")
        return now, frozenset(queue_id for (queue_id,) in rows)

    async def addresses(self, queue_ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """DevelopmentSpool.addresses."""
        sql = "SELECT message_id, address FROM recipient WHERE message_id = ? AND added_by = ''"
        ids = [(queue_id,) for queue_id in queue_ids]
        recipients: dict[str, list[str]] = {}
        for queue_id, address in await self.engine.read(lambda tables: tables.fetch_each(sql, ids)):
            recipients.setdefault(queue_id, []).append(address)
        return recipients

    async def discard(self, until_us: int) -> int:
        """DevelopmentSpool.discard."""
        return await self._remove_with_files(lambda batch: discard(batch, until_us))

    async def remove(self, queue_id: str) -> Sequence[ListedRecipient] | None:
        """DevelopmentSpool.remove."""
        return await self._remove_with_files(lambda batch: remove(batch, queue_id))

    async def clear(self) -> int:
        """DevelopmentSpool.clear."""
        messages = await self._remove_with_files(clear)
        self._pruned_to, self._counts = "", None
        return messages

    async def _remove_with_files(self, operation: Callable[[Batch], tuple[T, list[str]]]) -> T:
        """Run an operation, and remove the files that it returns once it is durable."""
        result, files = await self.writer.submit(operation)
        if files:
            self.engine.remove(files)
        return result

    def _sweep_some(self, listed: Iterator[tuple[str, ...]], tables: Any) -> int | None:
        names = next(listed, None)
        if names is None:
            return None
        # In this order: a name that is not in use now has a row already, or never gets one.
        idle = [name for name in names if not self.files.is_in_use(name)]
        left = [name for name in idle if not is_file_needed(tables, name)]
        return self.files.remove(left)  # a file that was just completed has another name
