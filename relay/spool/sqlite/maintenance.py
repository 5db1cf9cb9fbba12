"""Maintain the spool on SQLite: sweep content files, and what a development relay removes.

A file that is being written is never removed. One that may be all that is left of a message is
moved aside: its row was lost, or an older spool was put back, which does not know the message.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import apsw

from relay.clock import Clock, first_id_after, id_time_us
from relay.journeys.message_list import ListedRecipient
from relay.message.lifecycle import RecipientState
from relay.observe.logs import get_logger
from relay.spool.common.claim_changes import CLAIMS_AT_ONCE, release_abandoned
from relay.spool.common.holds import count_removed
from relay.spool.common.recorded_events import last_sequence
from relay.spool.common.rows import LIVE_STATES, REMOVED_EVENTS
from relay.spool.common.shared_maintenance import AT_ONCE, SharedMaintenance
from relay.spool.sqlite.commits import COMMITS_COUNTER
from relay.spool.sqlite.content_files import ContentFiles, message_of
from relay.spool.sqlite.database import Reader, fetch, fetch_one
from relay.spool.sqlite.transactions import is_content_lost, is_file_needed, note_removed_events
from relay.spool.sqlite.writer import Batch, Writer
from relay.spool.tables import OpenTransaction
from relay.spool.types import Claim, QueueCounts

_TABLES = (
    ("recipient", "message_id"),
    ("event", "message_id"),
    ("entry", "message_id"),
    ("message", "id"),
)
_ABANDONED = (
    "SELECT message_id, number, next_hop, attempts, state"
    " FROM entry INDEXED BY entry_claimed WHERE claimed = 1 LIMIT ?"
)
_log = get_logger("spool")


def _data_version(cursor: apsw.Cursor) -> tuple[apsw.Connection, int]:
    """Return what changes when another connection of any process has committed."""
    return cursor.connection, cursor.connection.pragma("data_version")


def _remove_rows(cursor: apsw.Cursor, queue_ids: Sequence[str]) -> None:
    """Remove all rows of messages but their contents."""
    ids = [(one,) for one in queue_ids]
    sql = "SELECT max(sequence) FROM event WHERE message_id = ?"
    found = [last for (last,) in cursor.executemany(sql, ids) if last is not None]
    note_removed_events(cursor, max(found, default=None))
    for table, column in _TABLES:
        cursor.executemany(f"DELETE FROM {table} WHERE {column} = ?", ids)


def clear(batch: Batch) -> tuple[int, list[str]]:
    """Remove all messages and counts; return how many messages, without reports, and the names of
    the files of their contents.
    """
    (messages,) = fetch_one(batch.cursor, "SELECT count(*) FROM message WHERE source <> 'report'")
    files = fetch(batch.cursor, "SELECT file FROM content WHERE file IS NOT NULL")
    note_removed_events(batch.cursor, last_sequence(batch))
    for table in (*(name for name, _ in _TABLES), "content", "submission", "owed_receipt"):
        batch.cursor.execute(f"DELETE FROM {table}")
    kept = (COMMITS_COUNTER, REMOVED_EVENTS)
    batch.cursor.execute("DELETE FROM counter WHERE name NOT IN (?,?)", kept)
    for name in [*batch.counts]:  # of operations of the same transaction
        del batch.counts[name]
    return messages, [name for (name,) in files]


def discard(batch: Batch, until_us: int) -> tuple[int, list[str]]:
    """Remove some messages accepted until then that are not to be delivered, with their contents;
    return how many, and the names of files that are not needed any more.

    Recipients that were captured or held count as discarded.
    """
    cursor = batch.cursor
    ids = fetch(
        cursor,
        "SELECT id FROM message m WHERE id < ? AND NOT EXISTS (SELECT 1 FROM entry e WHERE"
        " e.message_id = m.id AND (e.claimed = 1 OR e.state IN ('queued', 'deferred')))"
        " ORDER BY id LIMIT ?",
        (first_id_after(until_us), AT_ONCE),
    )
    return len(ids), _remove_messages(batch, [queue_id for (queue_id,) in ids])


def remove(batch: Batch, queue_id: str) -> tuple[list[ListedRecipient] | None, list[str]]:
    """Remove a message in whatever state; return its recipients, and the names of files that are
    not needed any more. None, and nothing is removed, while delivery has it.
    """
    cursor = batch.cursor
    if fetch_one(
        cursor, "SELECT 1 FROM entry WHERE message_id = ? AND claimed = 1 LIMIT 1", (queue_id,)
    ):
        return None, []
    sql = "SELECT number, address, state FROM recipient WHERE message_id = ? AND added_by = ''"
    recipients = [ListedRecipient(*row) for row in fetch(cursor, sql, (queue_id,))]
    return recipients, _remove_messages(batch, [queue_id])


def _remove_messages(batch: Batch, queue_ids: Sequence[str]) -> list[str]:
    """Remove messages with their contents; return the names of files that are not needed any more.

    Live recipients count as discarded.
    """
    cursor = batch.cursor
    contents, live = [], 0
    count_removed(batch, queue_ids)
    for queue_id in queue_ids:
        contents += fetch(
            cursor,
            "SELECT DISTINCT content_id FROM entry WHERE message_id = ? AND state <> 'final'",
            (queue_id,),
        )
        sql = f"SELECT count(*) FROM recipient WHERE message_id = ? AND state IN {LIVE_STATES}"
        live += fetch_one(cursor, sql, (queue_id,))[0]
    names = []
    for content in contents:
        names += fetch(cursor, "DELETE FROM content WHERE id = ? RETURNING file", content)
    forgotten = [(one,) for one in queue_ids]
    cursor.executemany("DELETE FROM owed_receipt WHERE message_id = ?", forgotten)
    _remove_rows(cursor, queue_ids)
    if live:
        batch.counts[RecipientState.DISCARDED] += live
    return [name for (name,) in names if name and not is_file_needed(cursor, name)]


class Maintenance(SharedMaintenance):
    """A SpoolMaintenance, and a DevelopmentSpool."""

    def __init__(
        self,
        writer: Writer,
        files: ContentFiles,
        *,
        queries: Reader,
        counting: Reader,
        clock: Clock,
        was_closed: bool,
    ) -> None:
        """`was_closed`: the owner before has ended in order, and has left nothing unfinished."""
        super().__init__(read=queries.read, count=counting.read, change=writer.submit, clock=clock)
        self._writer = writer
        self._files = files
        self._queries = queries
        self._counting = counting
        self._is_unknown_foreign = was_closed  # files of messages that the spool does not know
        self._counted: tuple[apsw.Connection, int] | None = None  # the commit of the counts

    def take_over_some(self, transaction: OpenTransaction, *, now_us: int, at_us: int) -> int:
        """SharedMaintenance.take_over_some."""
        claimed = transaction.fetch(_ABANDONED, (CLAIMS_AT_ONCE,))
        release_abandoned(transaction, claimed, now_us=now_us, at_us=at_us)
        return len(claimed)

    def used_bytes(self, tables: Any) -> int:
        """SharedMaintenance.used_bytes: new rows use the free pages of the file first."""
        pragma = tables.cursor.connection.pragma
        return int((pragma("page_count") - pragma("freelist_count")) * pragma("page_size"))

    def remove_rows(self, transaction: Any, queue_ids: Sequence[str]) -> None:
        """SharedMaintenance.remove_rows."""
        _remove_rows(transaction.cursor, queue_ids)

    @property
    def unheld_stores(self) -> Sequence[str]:
        """SpoolMaintenance.unheld_stores: the owner of a file has the mail root."""
        return ()

    async def claim_unheld(self) -> Sequence[Claim]:
        """SpoolMaintenance.claim_unheld."""
        return ()

    async def sweep(self) -> int:
        """SpoolMaintenance.sweep."""
        removed = 0
        listed = self._files.listed()
        while (number := await self._queries.run(partial(self._sweep_some, listed))) is not None:
            removed += number
        self._is_unknown_foreign = False
        return removed

    async def sizes(self, limit: int) -> list[tuple[int, int]]:
        """DevelopmentSpool.sizes."""
        rows = await self._queries.run(
            lambda c: fetch(
                c,
                f"SELECT id, CASE WHEN {self.is_in_queue} THEN size ELSE 0 END FROM message m"
                " ORDER BY id DESC LIMIT ?",
                (limit,),
            )
        )
        return [(id_time_us(queue_id) or 0, size) for queue_id, size in rows]

    async def discard(self, until_us: int) -> int:
        """DevelopmentSpool.discard."""
        messages, files = await self._writer.submit(lambda batch: discard(batch, until_us))
        if files:
            self._queries.later(partial(self._files.remove, files))
        return messages

    async def remove(self, queue_id: str) -> Sequence[ListedRecipient] | None:
        """DevelopmentSpool.remove."""
        recipients, files = await self._writer.submit(lambda batch: remove(batch, queue_id))
        if files:
            self._queries.later(partial(self._files.remove, files))
        return recipients

    async def clear(self) -> int:
        """DevelopmentSpool.clear."""
        messages, files = await self._writer.submit(clear)
        self._pruned_to = ""
        self._counts = None
        if files:
            self._queries.later(partial(self._files.remove, files))
        return messages

    async def counts(self) -> QueueCounts:
        """SharedMaintenance.counts, again only after a commit of any process."""
        version = await self._counting.run(_data_version)
        if self._counts is None or version != self._counted:
            self._counts, self._counted = await super().counts(), version
        return self._counts

    def _sweep_some(self, listed: Iterator[tuple[str, ...]], cursor: apsw.Cursor) -> int | None:
        names = next(listed, None)
        if names is None:
            return None
        # In this order: a name that is not in use now has its row already, or never gets one.
        idle = [name for name in names if not self._files.is_in_use(name)]
        left = [name for name in idle if not is_file_needed(cursor, name)]
        aside = [name for name in left if self._may_be_needed(cursor, name)]
        if aside:
            self._files.put_aside(aside)
            _log.warning("contents moved aside", files=len(aside), first=aside[0])
        stale = [name for name in left if name not in aside]
        return self._files.remove(stale)  # a file that was just completed has another name

    def _may_be_needed(self, cursor: apsw.Cursor, name: str) -> bool:
        """Whether a file without a row may be all that is left of a message.

        A crash leaves files of messages that were not accepted, so these are not known either.
        """
        message_id = message_of(name)
        if not message_id:
            return False
        is_lost = is_content_lost(cursor, message_id)
        return self._is_unknown_foreign if is_lost is None else is_lost
