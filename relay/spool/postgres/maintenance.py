"""Maintain the spool: take over from a dead owner, prune history, sweep bodies, count.

Each step is one small transaction, so that mail does not wait for it. What is pruned is what the
SQLite engine prunes: a message without a live entry and without a live recipient.

See docs/design.md 4 (Counters and history), 7.2, 7.6 and 7.8.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from relay.clock import Clock, first_id_after, wall_offset_us
from relay.spool.common import stats
from relay.spool.common.rows import LIVE_STATES, REMOVED_EVENTS
from relay.spool.engine import Retention
from relay.spool.postgres.bodies import BodyStore
from relay.spool.postgres.claims import claim_keys, take_over
from relay.spool.postgres.nodes import node_list
from relay.spool.postgres.tables import ConnectionTables, ReadConnection
from relay.spool.postgres.unheld_stores import UnheldStores
from relay.spool.postgres.write_transaction import WriteTransaction
from relay.spool.postgres.writer import WriteConnection
from relay.spool.types import Claim, DueBatch, QueueCounts, SpoolUnavailableError

AT_ONCE = 200
_STEPS_AT_ONCE = 50  # calls of prune() in one request
_COUNT_S_MAX = 30.0
_FRESH_US = 3600 * 1_000_000  # of history that is kept even where the database is too large
# OFFSET 0: it is looked for by the key of each message; no table is read as a whole.
_IS_IN_QUEUE = "EXISTS (SELECT 1 FROM entry e WHERE e.message_id = m.id OFFSET 0)"
_HAS_LIVE = (
    "EXISTS (SELECT 1 FROM recipient r"
    f" WHERE r.message_id = m.id AND r.state IN {LIVE_STATES} OFFSET 0)"
)
_PRUNABLE = (
    f"SELECT id, received_us < ? AND NOT {_IS_IN_QUEUE} AND NOT {_HAS_LIVE}"
    " FROM message m WHERE id > ? AND id < ? ORDER BY id LIMIT ?"
)
_COUNT = (
    f"SELECT count(*), count(*) FILTER (WHERE {_HAS_LIVE})"
    f" FROM message m WHERE id < ? AND received_us < ? AND NOT {_IS_IN_QUEUE}"
)
# Of what a table holds, without the room of dead rows: as many rows as there are, each as large as
# the newest ones, with their share of the indexes.
_BYTES = (
    "SELECT CAST(CASE WHEN s.n_live_tup > 0 THEN s.n_live_tup ELSE greatest(c.reltuples, 0) END"
    " * (28 + coalesce((SELECT avg(size) FROM (SELECT {size} AS size FROM {table} t"
    " ORDER BY {key} DESC LIMIT 100) AS newest), 0)) * (1 + CAST(pg_indexes_size(c.oid) AS float8)"
    " / greatest(pg_table_size(c.oid), 8192)) AS BIGINT)"
    " FROM pg_class c JOIN pg_stat_user_tables s ON s.relid = c.oid"
    " WHERE c.oid = CAST('{table}' AS regclass)"
)
_DATA = "coalesce(pg_column_size({}), 0)"  # of a column that is stored outside of its row
_TABLES = {
    "message": ("id", "pg_column_size(t)"),
    "recipient": ("message_id", "pg_column_size(t)"),
    "event": ("message_id", "pg_column_size(t)"),
    "entry": ("message_id", "pg_column_size(t)"),
    "content": ("message_id", f"100 + {_DATA.format('data')} + {_DATA.format('header')}"),
    "body": ("id", f"100 + {_DATA.format('data')}"),
}
_COUNT_ROWS_NOW = "SELECT pg_stat_force_next_flush()"  # n_live_tup of this session's changes
_REMOVED = (
    "INSERT INTO counter VALUES (0, 0, ?, ?)"
    " ON CONFLICT (node, number, name) DO UPDATE"
    " SET value = greatest(counter.value, excluded.value)"
)


class Removable(Struct, frozen=True):
    """What prune() would remove; `kept` are old messages that stay because an entry was lost."""

    messages: int
    submissions: int
    kept: int


class PostgresMaintenance:
    """A SpoolMaintenance."""

    def __init__(
        self,
        writer: WriteConnection,
        bodies: BodyStore,
        *,
        queries: ReadConnection,
        counting: ReadConnection,
        clock: Clock,
    ) -> None:
        self._writer = writer
        self._bodies = bodies
        self._queries = queries
        self._counting = counting
        self._clock = clock
        self.unheld = UnheldStores()
        self._pruned_to = ""
        self._unaccounted: int | None = None

    async def take_over(self) -> int:
        """Release the claims of earlier owners; return their number."""
        now_us, at_us = self._clock.queue_us(), self._clock.time_us()
        released = 0
        while number := await self._writer.submit(
            lambda transaction: take_over(transaction, now_us=now_us, at_us=at_us),
            alone=True,
        ):
            released += number
        return released

    @property
    def unheld_stores(self) -> Sequence[str]:
        """SpoolMaintenance.unheld_stores."""
        return self.unheld.names

    async def claim_unheld(self) -> Sequence[Claim]:
        """SpoolMaintenance.claim_unheld."""
        now_us, at_us = self._clock.confirmed_us(), self._clock.time_us()
        if not (lasting := self.unheld.lasting(self._writer.elapsed_s())):
            return ()

        def claim(transaction: WriteTransaction) -> DueBatch:
            if keys := self.unheld.ended(transaction, lasting, now_us=now_us):
                return DueBatch(claim_keys(transaction, keys, now_us=now_us, at_us=at_us))
            transaction.has_changed = False
            return DueBatch()

        return (await self._writer.submit(claim, leased=True, alone=True)).claims

    async def prune(self, keep: Retention) -> int:
        """SpoolMaintenance.prune. Time that is in doubt makes nothing old."""
        now_us, offset_us = self._clock.confirmed_us(), wall_offset_us(self._clock)
        before_us = now_us - int(keep.age_s * 1_000_000)
        keys = await self._writer.submit(lambda one: _prune_keys(one, now_us), alone=True)
        if keep.size_bytes and await self._queries.read(_used_bytes) > keep.size_bytes:
            before_us = max(before_us, now_us - _FRESH_US)
        end = first_id_after(before_us + max(0, offset_us))

        def prune_some(transaction: WriteTransaction) -> int:
            return self._prune(transaction, before_us, end)

        while True:
            messages = await self._writer.submit(prune_some, alone=True)
            if messages or keys or not self._pruned_to:
                return messages + keys

    async def prune_many(self, age_s: float, *, dry_run: bool = False) -> dict[str, Any]:
        """SpoolMaintenance.prune_many."""
        if dry_run:
            now_us, offset_us = self._clock.confirmed_us(), wall_offset_us(self._clock)
            before_us = now_us - int(age_s * 1_000_000)
            end = first_id_after(before_us + max(0, offset_us))
            would = await self._queries.read(
                lambda one: _removable(one, before_us, now_us=now_us, end=end)
            )
            return asdict(would) | {"ended": True}
        for _ in range(_STEPS_AT_ONCE):
            if not await self.prune(Retention(age_s)):
                return {"ended": True}
        return {"ended": False}

    async def sweep(self) -> int:
        """SpoolMaintenance.sweep."""
        return await self._bodies.sweep()

    async def counts(self) -> QueueCounts:
        """Count entries and unaccounted recipients. Raises SpoolUnavailableError when this takes so
        long that the snapshot would keep the server from removing dead rows.
        """
        count = stats.QueueCounter(stats.WHOLE)
        deadline_s = self._clock.real_s() + _COUNT_S_MAX
        try:
            while await self._counting.read(count.step):
                if self._clock.real_s() > deadline_s:
                    raise SpoolUnavailableError(f"not counted within {_COUNT_S_MAX:g} s")
        finally:
            await self._counting.read(count.end)
        if count.snapshots > 1:
            raise SpoolUnavailableError("the count was cut off")
        counts = count.result()
        self._unaccounted = counts.unaccounted
        return counts

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`; `unaccounted` is from the most recent count."""
        if self._unaccounted is None:
            await self.counts()
        now_us, offset_us = self._clock.queue_us(), wall_offset_us(self._clock)
        figures = await self._queries.read(
            lambda tables: stats.stats(tables, now_us=now_us, offset_us=offset_us)
        )
        nodes = await self._queries.read(lambda one: node_list(one, self._writer.incarnation))
        return figures | {"unaccounted": self._unaccounted, "nodes": nodes}

    def _prune(self, transaction: WriteTransaction, before_us: int, end: str) -> int:
        """Remove the finished messages of a slice; return their number."""
        rows = transaction.fetch(_PRUNABLE, (before_us, self._pruned_to, end, AT_ONCE))
        self._pruned_to = rows[-1][0] if len(rows) == AT_ONCE else ""
        ids = [row[0] for row in rows if row[1]]
        transaction.fetch(_COUNT_ROWS_NOW)
        _remove_messages(transaction, ids)
        return len(ids)


def _remove_messages(transaction: WriteTransaction, ids: Sequence[str]) -> None:
    where, values = transaction.among("message_id", ids)
    events = f"SELECT sequence FROM event WHERE {where} OFFSET 0"  # not by the index of sequences
    (last,) = transaction.fetch_one(f"SELECT max(sequence) FROM ({events}) AS removed", values)
    if last is not None:
        transaction.execute(_REMOVED, (REMOVED_EVENTS, last))
    for table in ("recipient", "event", "content"):
        transaction.execute(f"DELETE FROM {table} WHERE {where}", values)
    where, values = transaction.among("id", ids)
    transaction.execute(f"DELETE FROM message WHERE {where}", values)


def _prune_keys(transaction: WriteTransaction, now_us: int) -> int:
    """Remove some expired submission keys; return how many."""
    transaction.fetch(_COUNT_ROWS_NOW)
    sql = "SELECT key FROM submission WHERE expires_us < ? ORDER BY expires_us LIMIT ?"
    keys = [key for (key,) in transaction.fetch(sql, (now_us, AT_ONCE))]
    where, values = transaction.among("key", keys)
    return transaction.execute(f"DELETE FROM submission WHERE {where}", values)


def _removable(tables: ConnectionTables, before_us: int, *, now_us: int, end: str) -> Removable:
    finished, kept = tables.fetch_one(_COUNT, (end, before_us))
    (keys,) = tables.fetch_one("SELECT count(*) FROM submission WHERE expires_us < ?", (now_us,))
    return Removable(finished - kept, keys, kept)


def _used_bytes(tables: ConnectionTables) -> int:
    parts = (
        tables.fetch_one(_BYTES.format(table=table, key=key, size=size))
        for table, (key, size) in _TABLES.items()
    )
    return sum(int(one[0]) for one in parts)
