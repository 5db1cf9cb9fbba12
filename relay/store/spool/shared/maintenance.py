"""Maintain the spool as every engine does: release dead claims, prune history, count.

A start releases the claims of dead owners, PostgreSQL also while it runs.
`relay/operation/app/maintenance.py` calls the rest.
Each step is one small transaction, so that mail does not wait for it.

A message with a live entry is not pruned. Counters stay, so that relay_queue_unaccounted remains
correct.

See docs/design.md 4 (Counters and history), 7.2, 7.6 and 7.8.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from relay.base.clock import Clock, first_id_after, wall_offset_us
from relay.store.spool.shared import stats
from relay.store.spool.shared.tables import OpenTransaction, QueueEngine, Tables
from relay.store.spool.shared.traffic import TrafficCounter
from relay.store.spool.types import Claim, QueueCounts, SpoolError, SpoolUnavailableError

T = TypeVar("T")
AT_ONCE = 200
_STEPS_AT_ONCE = 50  # calls of prune() in one request
_COUNT_S_MAX = 30.0
# Of a message `m`. OFFSET 0: PostgreSQL searches by key for each message, and scans no table.
IS_IN_QUEUE = (
    "EXISTS (SELECT 1 FROM entry e WHERE e.message_id = m.id AND e.state <> 'final'"
    " LIMIT 1 OFFSET 0)"
)


class SpoolMaintenance(ABC):
    """Periodic work, in small transactions, so that mail does not wait for it.

    Each engine is a subclass.
    """

    scans = stats.SCANS
    # stores for which local mail waits while no living node has their mail root
    stores_without_node: Sequence[str] = ()

    def __init__(self, engine: QueueEngine, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock
        # Renews submission keys of mail that may come again. Raises SpoolError: then nothing ends.
        self.before_prune: Callable[[], Awaitable[None]] | None = None
        self._pruned_to = ""
        self._counts: QueueCounts | None = None  # the most recent ones
        self._counted: Any = None  # what had happened before that

    @abstractmethod
    def take_over_some(self, transaction: OpenTransaction, *, now_us: int, at_us: int) -> int:
        """Release some claims of dead owners; return how many, 0 when none is left."""

    @abstractmethod
    async def happened(self) -> Any:
        """Return a value that changes with each commit of any owner; None if that is not known."""

    @abstractmethod
    def remove_rows(self, transaction: OpenTransaction, queue_ids: Sequence[str]) -> None:
        """Remove all rows of finished messages."""

    @abstractmethod
    async def sweep(self) -> int:
        """Remove contents without a message, which a crash leaves; return their number."""

    async def claim_without_node(self) -> Sequence[Claim]:
        """Claim some local mail of stores without a node that has expired, or whose delay is to be
        reported. It is not attempted, because its mail root is not there.
        """
        return ()

    async def change(self, operation: Callable[[OpenTransaction], T]) -> T:
        """Run an operation, as QueueEngine.change."""
        return await self.engine.change(operation)

    async def take_over(self) -> int:
        """Release the claims of dead owners; return their number."""
        now_us, at_us = self.clock.queue_us(), self.clock.time_us()
        released = 0
        while number := await self.change(
            lambda transaction: self.take_over_some(transaction, now_us=now_us, at_us=at_us)
        ):
            released += number
        return released

    async def prune(self, age_s: float) -> int:
        """Remove some finished messages older than `age_s`, oldest first, and some expired
        submission keys; return how many, 0 when nothing is left.

        The age is by Clock.confirmed_us: doubtful time does not count.
        """
        return (await self._prune(age_s)).total()

    async def _prune(self, age_s: float) -> Counter[str]:
        now_us = self.clock.confirmed_us()
        before_us = now_us - int(age_s * 1_000_000)
        if self.before_prune is not None:
            await self.before_prune()
        keys = await self.change(lambda transaction: prune_keys(transaction, now_us))
        while True:
            messages, self._pruned_to = await self.change(
                lambda transaction: self.prune_some(transaction, before_us, after=self._pruned_to)
            )
            if messages or keys or not self._pruned_to:
                return Counter(messages=messages, submissions=keys)

    def prune_some(
        self, transaction: OpenTransaction, before_us: int, *, after: str
    ) -> tuple[int, str]:
        """Remove the finished messages of one slice, which begins after the id `after`. Return how
        many, and the last id of the slice, "" if it was the last slice.
        """
        rows = transaction.fetch(
            f"SELECT id, received_us < ? AND NOT {IS_IN_QUEUE}"
            " FROM message m WHERE id > ? AND id < ? ORDER BY id LIMIT ?",
            (before_us, after, self._ids_end(before_us), AT_ONCE),
        )
        ids = [row[0] for row in rows if row[1]]
        self.remove_rows(transaction, ids)
        return len(ids), rows[-1][0] if len(rows) == AT_ONCE else ""

    async def prune_many(self, age_s: float, *, dry_run: bool = False) -> dict[str, Any]:
        """Return the JSON of POST /storage/prune: remove finished messages older than `age_s`, and
        expired submission keys; with `dry_run` count them. Repeat until `ended` is true.
        """
        if dry_run:
            now_us = self.clock.confirmed_us()
            before_us = now_us - int(age_s * 1_000_000)
            would = await self.engine.read(
                lambda tables: self._removable(tables, before_us, now_us=now_us)
            )
            return would | {"ended": True}
        removed = Counter(messages=0, submissions=0)
        for _ in range(_STEPS_AT_ONCE):
            step = await self._prune(age_s)
            removed.update(step)
            if not step.total():
                return {**removed, "ended": True}
        return {**removed, "ended": False}

    def _removable(self, tables: Tables, before_us: int, *, now_us: int) -> dict[str, int]:
        finished = tables.fetch_one(
            "SELECT count(*) FROM message m WHERE id < ? AND received_us < ?"
            f" AND NOT {IS_IN_QUEUE}",
            (self._ids_end(before_us), before_us),
        )
        keys = tables.fetch_one("SELECT count(*) FROM submission WHERE expires_us < ?", (now_us,))
        return {"messages": finished[0], "submissions": keys[0]}

    def _ids_end(self, before_us: int) -> str:
        """Return the id at which a scan of messages received before `before_us` can stop: ids are
        ordered by wall time.
        """
        return first_id_after(before_us + max(0, wall_offset_us(self.clock)))

    @property
    def entries(self) -> int:
        """How many entries the most recent count found."""
        return sum(self._counts.entries.values()) if self._counts is not None else 0

    async def counts(self) -> QueueCounts:
        """SpoolEngine.counts. Without a commit since the last count, it is not repeated."""
        happened = await self.happened()
        if self._counts is None or happened is None or happened != self._counted:
            self._counts, self._counted = await self._count_queue(), happened
        return self._counts

    async def _count_queue(self) -> QueueCounts:
        """Count entries and unaccounted recipients.

        Raises SpoolUnavailableError when the snapshot was lost, and when the count takes too long:
        an open snapshot keeps the database from reusing dead rows or its log.
        """
        count = stats.QueueCounter(self.scans)
        deadline_s = self.clock.real_s() + _COUNT_S_MAX
        try:
            while await self.engine.count(count.step):
                if self.clock.real_s() > deadline_s:
                    raise SpoolUnavailableError(f"not counted within {_COUNT_S_MAX:g} s")
        finally:
            with suppress(SpoolError):  # it would replace the cancellation of a stop
                await self.engine.count(count.end)
        if count.snapshots > 1:
            raise SpoolUnavailableError("the count was cut off")
        return count.result()

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`; `unaccounted` is from the most recent count."""
        unaccounted = (self._counts or await self.counts()).unaccounted
        now_us, offset_us = self.clock.queue_us(), wall_offset_us(self.clock)
        figures = await self.engine.read(
            lambda tables: stats.stats(tables, now_us=now_us, offset_us=offset_us)
        )
        return figures | {"unaccounted": unaccounted}

    async def count_traffic(self, counter: TrafficCounter) -> None:
        """Run the steps of a count; other queries come between them."""
        while await self.engine.read(counter.step):
            pass


def prune_keys(transaction: OpenTransaction, now_us: int) -> int:
    """Remove some expired submission keys; return how many."""
    sql = "SELECT key FROM submission WHERE expires_us < ? ORDER BY expires_us LIMIT ?"
    keys = [key for (key,) in transaction.fetch(sql, (now_us, AT_ONCE))]
    where, values = transaction.among("key", keys)
    return transaction.execute(f"DELETE FROM submission WHERE {where}", values)
