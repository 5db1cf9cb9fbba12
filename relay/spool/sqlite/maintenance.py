"""Maintain the spool: release the claims of a dead owner, prune history, remove stale files.

The start releases claims before anything else. `relay/app/maintenance.py` calls the rest. Each
step is one small transaction, so that mail does not wait for it. A file that is being written is
never removed. One that may be all that is left of a message is moved aside: its row was lost, or
an older spool was put back, which does not know the message.

A message with a live entry is not pruned. Neither is one with a live recipient whose entry was
lost: its sender would get no report. Counters stay, so that relay_queue_unaccounted remains
correct.

See docs/design.md 4 (Counters and history), 7.2, 7.6, 7.8 and 7.9; RFC 1047.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import apsw
from msgspec import Struct
from msgspec.structs import asdict

from relay.clock import Clock, first_id_after, id_time_us, wall_offset_us
from relay.journeys.message_list import ListedRecipient
from relay.message.lifecycle import RecipientState
from relay.observe.logs import get_logger
from relay.spool.common import stats
from relay.spool.common.claim_changes import CLAIMS_AT_ONCE, release_abandoned
from relay.spool.common.holds import count_removed
from relay.spool.common.recorded_events import last_sequence
from relay.spool.common.rows import (
    LIVE_STATES,
    REMOVED_EVENTS,
)
from relay.spool.engine import Retention
from relay.spool.sqlite.commits import COMMITS_COUNTER
from relay.spool.sqlite.content_files import ContentFiles, message_of
from relay.spool.sqlite.database import (
    Reader,
    fetch,
    fetch_one,
)
from relay.spool.sqlite.transactions import (
    is_content_lost,
    is_file_needed,
    note_removed_events,
)
from relay.spool.sqlite.writer import Batch, Writer
from relay.spool.types import Claim, QueueCounts, SpoolUnavailableError

AT_ONCE = 200
_IS_IN_QUEUE = "EXISTS (SELECT 1 FROM entry e WHERE e.message_id = m.id AND e.state <> 'final')"
_HAS_LIVE = (
    f"EXISTS (SELECT 1 FROM recipient r WHERE r.message_id = m.id AND r.state IN {LIVE_STATES})"
)
_TABLES = (
    ("recipient", "message_id"),
    ("event", "message_id"),
    ("entry", "message_id"),
    ("message", "id"),
)
_STEPS_AT_ONCE = 50  # calls of prune() in one request
_COUNT_S_MAX = 30.0
_FRESH_US = 3600 * 1_000_000  # of history that is kept even where the file is too large
_ABANDONED = (
    "SELECT message_id, number, next_hop, attempts, state"
    " FROM entry INDEXED BY entry_claimed WHERE claimed = 1 LIMIT ?"
)
_log = get_logger("spool")


class Prunable(Struct, frozen=True):
    """What prune() would remove; `kept` are old messages that stay because an entry was lost."""

    messages: int
    submissions: int
    kept: int


class Pruned(Struct, frozen=True):
    """`messages` were removed; `reached` is the last one read, "" when none was left."""

    messages: int
    reached: str


def prune(cursor: apsw.Cursor, before_us: int, *, after: str, offset_us: int) -> Pruned:
    """Remove finished messages received before `before_us`, from a slice after the id `after`.

    `offset_us` is how far the wall clock, whose time the ids have, is ahead of queue time.
    """
    rows = fetch(
        cursor,
        f"SELECT id, received_us < ?1 AND NOT {_IS_IN_QUEUE} AND NOT {_HAS_LIVE}"
        " FROM message m WHERE id > ?2 AND id < ?3 ORDER BY id LIMIT ?4",
        (before_us, after, _ids_end(before_us, offset_us), AT_ONCE),
    )
    ids = [row[0] for row in rows if row[1]]
    _remove_rows(cursor, ids)
    return Pruned(len(ids), rows[-1][0] if len(rows) == AT_ONCE else "")


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


def prune_keys(cursor: apsw.Cursor, now_us: int) -> int:
    """Remove some expired submission keys; return how many."""
    keys = fetch(
        cursor, "SELECT key FROM submission WHERE expires_us < ? LIMIT ?", (now_us, AT_ONCE)
    )
    cursor.executemany("DELETE FROM submission WHERE key = ?", keys)
    return len(keys)


def prunable(cursor: apsw.Cursor, before_us: int, now_us: int, *, offset_us: int) -> Prunable:
    """Count the messages and submission keys that would be removed; `offset_us` as for prune()."""
    finished, kept = fetch_one(
        cursor,
        f"SELECT count(*), count(*) FILTER (WHERE {_HAS_LIVE})"
        f" FROM message m WHERE id < ? AND received_us < ? AND NOT {_IS_IN_QUEUE}",
        (_ids_end(before_us, offset_us), before_us),
    )
    keys = fetch_one(cursor, "SELECT count(*) FROM submission WHERE expires_us < ?", (now_us,))
    return Prunable(finished - kept, keys[0], kept)


def _ids_end(before_us: int, offset_us: int) -> str:
    """Return the id at which a scan of messages received before `before_us` can stop.

    Ids are ordered by wall time.
    """
    return first_id_after(before_us + max(0, offset_us))


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


def used_bytes(cursor: apsw.Cursor) -> int:
    """Return the used size of the file; new rows use its free pages first."""
    pages = cursor.connection.pragma("page_count") - cursor.connection.pragma("freelist_count")
    return int(pages * cursor.connection.pragma("page_size"))


class Maintenance:
    """Maintains one spool. `counting` is a reader of its own, because it keeps a snapshot."""

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
        self._writer = writer
        self._files = files
        self._queries = queries
        self._counting = counting
        self._clock = clock
        self._is_unknown_foreign = was_closed  # files of messages that the spool does not know
        self._pruned_to = ""
        self._counts: QueueCounts | None = None  # as of the commit `_counted`
        self._counted: tuple[apsw.Connection, int] | None = None

    async def take_over(self) -> int:
        """Release the claims of a dead owner; return their number."""
        now_us, at_us = self._clock.queue_us(), self._clock.time_us()
        released = 0
        while number := await self._writer.submit(
            lambda batch: _take_over(batch, now_us=now_us, at_us=at_us)
        ):
            released += number
        return released

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
                f"SELECT id, CASE WHEN {_IS_IN_QUEUE} THEN size ELSE 0 END FROM message m"
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
        """Count entries and unaccounted recipients, again only after a commit of any process.

        Raises SpoolUnavailableError when this takes so long that the log, which cannot be reused
        during the snapshot, would grow too much, or when the snapshot was lost.
        """
        version = await self._counting.run(_data_version)
        if self._counts is not None and version == self._counted:
            return self._counts
        count = stats.QueueCounter()
        deadline = self._clock.real_s() + _COUNT_S_MAX
        try:
            while await self._counting.read(count.step):
                if self._clock.real_s() > deadline:
                    raise SpoolUnavailableError(f"not counted within {_COUNT_S_MAX:g} s")
        finally:
            await self._counting.read(count.end)
        if count.snapshots > 1:
            raise SpoolUnavailableError("the count was cut off")
        self._counts, self._counted = count.result(), version
        return self._counts

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`; `unaccounted` is from the most recent count."""
        unaccounted = (self._counts or await self.counts()).unaccounted
        now_us, offset_us = self._clock.queue_us(), wall_offset_us(self._clock)
        figures = await self._queries.read(
            lambda tables: stats.stats(tables, now_us=now_us, offset_us=offset_us)
        )
        return figures | {"unaccounted": unaccounted}

    async def prune(self, keep: Retention) -> int:
        """Remove some of the history; return how much, 0 when nothing is left.

        Finished messages are removed oldest first; submission keys expire by themselves. Time that
        is in doubt (Clock.confirmed_us) makes nothing old.
        """
        now_us, offset_us = self._clock.confirmed_us(), wall_offset_us(self._clock)
        before_us = await self._queries.run(lambda c: _before_us(c, keep, now_us=now_us))
        keys = await self._writer.submit(lambda batch: prune_keys(batch.cursor, now_us))

        def prune_some(batch: Batch) -> Pruned:
            return prune(batch.cursor, before_us, after=self._pruned_to, offset_us=offset_us)

        while True:
            pruned = await self._writer.submit(prune_some)
            self._pruned_to = pruned.reached
            if pruned.messages or keys or not pruned.reached:
                return pruned.messages + keys

    async def prune_many(self, age_s: float, *, dry_run: bool = False) -> dict[str, Any]:
        """Remove, or with `dry_run` count, finished messages older than `age_s`, and submission
        keys: the JSON of POST /storage/prune. Repeat until it has `ended`.
        """
        if dry_run:
            now_us, offset_us = self._clock.confirmed_us(), wall_offset_us(self._clock)
            before_us = now_us - int(age_s * 1_000_000)
            would = await self._queries.run(
                lambda c: prunable(c, before_us, now_us, offset_us=offset_us)
            )
            return asdict(would) | {"ended": True}
        for _ in range(_STEPS_AT_ONCE):
            if not await self.prune(Retention(age_s)):
                return {"ended": True}
        return {"ended": False}

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


def _before_us(cursor: apsw.Cursor, keep: Retention, *, now_us: int) -> int:
    """Return the time before which history is removed. If the file is too large, that is any time
    but the last hour.
    """
    before_us = now_us - int(keep.age_s * 1_000_000)
    if keep.size_bytes and used_bytes(cursor) > keep.size_bytes:
        return max(before_us, now_us - _FRESH_US)
    return before_us


def _take_over(batch: Batch, *, now_us: int, at_us: int) -> int:
    """Release some abandoned claims; return how many, 0 when none is left."""
    claimed = batch.fetch(_ABANDONED, (CLAIMS_AT_ONCE,))
    release_abandoned(batch, claimed, now_us=now_us, at_us=at_us)
    return len(claimed)
