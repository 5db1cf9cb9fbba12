"""Maintain the spool on PostgreSQL: how much it holds, and mail of stores that no node holds."""

from collections.abc import Sequence
from typing import Any, TypeVar

from relay.base.clock import Clock
from relay.spool.postgres.bodies import BodyStore
from relay.spool.postgres.claims import claim_keys, take_over
from relay.spool.postgres.nodes import node_list
from relay.spool.postgres.unheld_stores import UnheldStores
from relay.spool.postgres.write_transaction import Operation, WriteTransaction
from relay.spool.postgres.writer import WriteConnection
from relay.spool.shared.columns import REMOVED_EVENTS
from relay.spool.shared.maintenance import SpoolMaintenance
from relay.spool.shared.queue import stats
from relay.spool.shared.tables import OpenTransaction, QueueEngine
from relay.spool.types import Claim, DueBatch

T = TypeVar("T")
_REMOVED = (
    "INSERT INTO counter VALUES (0, 0, ?, ?)"
    " ON CONFLICT (node, number, name) DO UPDATE"
    " SET value = greatest(counter.value, excluded.value)"
)


class PostgresMaintenance(SpoolMaintenance):
    """A SpoolMaintenance."""

    scans = stats.WHOLE

    def __init__(
        self,
        engine: QueueEngine,
        writer: WriteConnection,
        bodies: BodyStore,
        *,
        clock: Clock,
    ) -> None:
        super().__init__(engine, clock)
        self._writer = writer
        self._bodies = bodies
        self.unheld = UnheldStores()
        self.heard = 0  # how often other nodes may have done something: at each beat, for one

    async def change(self, operation: Operation[T]) -> T:
        """SpoolMaintenance.change, in a transaction of its own."""
        return await self._writer.submit(operation, alone=True)

    def take_over_some(self, transaction: Any, *, now_us: int, at_us: int) -> int:
        """SpoolMaintenance.take_over_some."""
        return take_over(transaction, now_us=now_us, at_us=at_us)

    async def happened(self) -> tuple[int, int] | None:
        """SpoolMaintenance.happened."""
        return None if self._writer.fault else (self._writer.commits, self.heard)

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

    async def sweep(self) -> int:
        """SpoolMaintenance.sweep."""
        return await self._bodies.sweep()

    def remove_rows(self, transaction: OpenTransaction, queue_ids: Sequence[str]) -> None:
        """SpoolMaintenance.remove_rows."""
        where, values = transaction.among("message_id", queue_ids)
        events = (
            f"SELECT sequence FROM event WHERE {where} OFFSET 0"  # not by the index of sequences
        )
        (last,) = transaction.fetch_one(f"SELECT max(sequence) FROM ({events}) AS removed", values)
        if last is not None:
            transaction.execute(_REMOVED, (REMOVED_EVENTS, last))
        for table in ("recipient", "event", "content"):
            transaction.execute(f"DELETE FROM {table} WHERE {where}", values)
        where, values = transaction.among("id", queue_ids)
        transaction.execute(f"DELETE FROM message WHERE {where}", values)

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`, with the nodes."""
        nodes = await self._engine.read(lambda one: node_list(one, self._writer.incarnation))
        return await super().stats() | {"nodes": nodes}
