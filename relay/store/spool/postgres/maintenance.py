"""Maintain the spool on PostgreSQL: counts, and mail for mail roots that no living node holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec.structs import replace

from relay.base.clock import Clock
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import LOCAL
from relay.base.observe.logs import get_logger
from relay.store.journeys.document import Journey
from relay.store.spool.postgres.bodies import BodyStore
from relay.store.spool.postgres.claims import claim_keys, find_ended, take_over
from relay.store.spool.postgres.nodes import node_list
from relay.store.spool.postgres.tables import ConnectionTables
from relay.store.spool.postgres.transactions import Operation, WriteTransaction
from relay.store.spool.postgres.writer import WriteConnection
from relay.store.spool.shared import stats
from relay.store.spool.shared.columns import REMOVED_EVENTS, WAITS
from relay.store.spool.shared.maintenance import SpoolMaintenance
from relay.store.spool.shared.tables import OpenTransaction, QueueEngine, Tables
from relay.store.spool.types import FIRST_POSITION, Claim, DueBatch, PriorityLevel

T = TypeVar("T")
_REMOVED = (
    "INSERT INTO counter VALUES (0, 0, ?, ?)"
    " ON CONFLICT (node, number, name) DO UPDATE"
    " SET value = greatest(counter.value, excluded.value)"
)
WITHOUT_NODE_S = 60.0
ROWS_AT_ONCE = 1000  # that are read
_LEVELS = list(PriorityLevel)
_IS_WITHOUT_NODE = (
    "NOT EXISTS (SELECT FROM node n WHERE n.store = r.store AND n.state = 'alive' OFFSET 0)"
)
_WITHOUT_NODE = f"""
SELECT r.number, r.store FROM mail_root r WHERE {_IS_WITHOUT_NODE} AND EXISTS (
    SELECT FROM unnest(?::integer[]) AS l (level) CROSS JOIN LATERAL (
        SELECT FROM entry WHERE {WAITS}
            AND turn = l.level + 8 * r.number ORDER BY due_us LIMIT 1
    ) e OFFSET 0
) ORDER BY r.store"""
_OF_MESSAGE = f"""
SELECT r.store FROM entry e JOIN mail_root r ON r.number = e.store
WHERE e.message_id = ? AND e.next_hop = ? AND e.claimed = 0 AND {_IS_WITHOUT_NODE} LIMIT 1"""
_WAITING = (RecipientState.QUEUED, RecipientState.DEFERRED)
_log = get_logger("spool")


@dataclass(eq=False, repr=False)
class PostgresMaintenance(SpoolMaintenance):
    """A SpoolMaintenance."""

    engine: QueueEngine
    clock: Clock
    writer: WriteConnection
    bodies: BodyStore
    scans = stats.WHOLE

    def __post_init__(self) -> None:
        super().__init__(self.engine, self.clock)
        self.heard = 0  # rises when other nodes may have done something, and at each beat
        self._since_s: dict[int, float] = {}  # of stores without a node, by their numbers
        self._logged: set[str] = set()  # their names
        self._after = FIRST_POSITION  # how far claim_without_node() has looked

    async def change(self, operation: Operation[T]) -> T:
        """SpoolMaintenance.change, in a separate transaction."""
        return await self.writer.submit(operation, alone=True)

    def take_over_some(self, transaction: Any, *, now_us: int, at_us: int) -> int:
        """SpoolMaintenance.take_over_some."""
        return take_over(transaction, now_us=now_us, at_us=at_us)

    async def happened(self) -> tuple[int, int] | None:
        """SpoolMaintenance.happened."""
        return None if self.writer.fault else (self.writer.commits, self.heard)

    async def claim_without_node(self) -> Sequence[Claim]:
        """SpoolMaintenance.claim_without_node."""
        now_us, at_us = self.clock.confirmed_us(), self.clock.time_us()
        if not (lasting := self._lasting(self.writer.elapsed_s())):
            return ()

        def claim(transaction: WriteTransaction) -> DueBatch:
            stores = stores_without_node(transaction)  # a holder may have joined
            turns = [
                level + 8 * number for number in lasting if number in stores for level in _LEVELS
            ]
            keys, self._after = find_ended(
                transaction, turns, self._after, now_us=now_us, limit=ROWS_AT_ONCE
            )
            if keys:
                return DueBatch(claim_keys(transaction, keys, now_us=now_us, at_us=at_us))
            transaction.has_changed = False
            return DueBatch()

        return (await self.writer.submit(claim, leased=True, alone=True)).claims

    def seen(self, stores: Mapping[int, str], *, now_s: float) -> None:
        """Take a reading of stores_without_node() at `now_s`, seconds since the boot.

        A store is logged when two readings have it.
        """
        self._since_s = {number: self._since_s.get(number, now_s) for number in stores}
        self.stores_without_node = tuple(stores.values())
        lasting = {stores[number] for number, since_s in self._since_s.items() if since_s < now_s}
        for name in sorted(lasting - self._logged):
            _log.warning("no node has a mail root for which mail waits", store=name)
        for name in sorted(self._logged - set(self.stores_without_node)):
            _log.info("no mail waits any more for this mail root without a node", store=name)
        self._logged = (self._logged | lasting) & set(self.stores_without_node)

    def forget(self) -> None:
        """Start the measurement again: this node was away."""
        self._since_s = {}

    def _lasting(self, now_s: float) -> list[int]:
        """Return the numbers of stores that have been without a node for WITHOUT_NODE_S."""
        since_s = self._since_s
        return [store for store in since_s if now_s - since_s[store] >= WITHOUT_NODE_S]

    async def sweep(self) -> int:
        """SpoolMaintenance.sweep."""
        return await self.bodies.sweep()

    def remove_rows(self, transaction: OpenTransaction, queue_ids: Sequence[str]) -> None:
        """SpoolMaintenance.remove_rows."""
        where, values = transaction.among("message_id", queue_ids)
        # OFFSET 0: not by the index of sequences
        events = f"SELECT sequence FROM event WHERE {where} OFFSET 0"
        (last,) = transaction.fetch_one(f"SELECT max(sequence) FROM ({events}) AS removed", values)
        if last is not None:
            note_removed_events(transaction, last)
        for table in ("recipient", "event", "content"):
            transaction.execute(f"DELETE FROM {table} WHERE {where}", values)
        where, values = transaction.among("id", queue_ids)
        transaction.execute(f"DELETE FROM message WHERE {where}", values)

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`, with the nodes."""
        nodes = await self.engine.read(lambda tables: node_list(tables, self.writer.incarnation))
        return await super().stats() | {"nodes": nodes}


def note_removed_events(transaction: OpenTransaction, last: int) -> None:
    """Record that events up to the sequence `last` were removed, so that followers notice."""
    transaction.execute(_REMOVED, (REMOVED_EVENTS, last))


def stores_without_node(tables: ConnectionTables) -> Mapping[int, str]:
    """Return the number and name of each store without a living node for which mail waits."""
    return dict(map(tuple, tables.fetch(_WITHOUT_NODE, (_LEVELS,))))


def with_store_without_node(tables: Tables, journey: Journey) -> Journey:
    """Return a journey with a reason for recipients that wait for a mail root that no node has."""
    waiting = [to for to in journey.recipients if to.state in _WAITING and to.next_hop == LOCAL.key]
    row = tables.fetch_one(_OF_MESSAGE, (journey.id, LOCAL.key)) if waiting else None
    if row is None:
        return journey
    reason = f'no node has the mail root of the store "{row[0]}"'
    recipients = (replace(to, reason=reason) if to in waiting else to for to in journey.recipients)
    return replace(journey, recipients=tuple(recipients))
