"""What PostgreSQL supplies so that operators can list and change its queue (a QueueEngine)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from relay.message.content import Content
from relay.spool.common.accepted_rows import CapturedMail
from relay.spool.postgres.bodies import BodyStore
from relay.spool.postgres.claims import read_claims
from relay.spool.postgres.tables import ConnectionTables, ReadConnection
from relay.spool.postgres.transactions import Bodies, add_message
from relay.spool.postgres.write_transaction import WriteTransaction
from relay.spool.postgres.writer import WriteConnection
from relay.spool.types import Claim, ContentKey, Key, NewMessage

T = TypeVar("T")
_ENDED = "WHERE message_id = ? AND number = ? AND state = 'final'"
_DROP = (
    "DELETE FROM content c WHERE message_id = ? AND number = ? AND NOT EXISTS (SELECT FROM entry e"
    " WHERE e.message_id = c.message_id AND e.content_id = c.number) RETURNING body"
)
_STORE = "SELECT coalesce(max(store), 0) FROM entry WHERE message_id = ?"
_ELSEWHERE = (
    "SELECT e.message_id, e.number, coalesce(n.name, 'a node that is gone') FROM entry e"
    " LEFT JOIN node n ON n.incarnation = e.owner"
    " WHERE e.message_id = ? AND e.number = ? AND e.claimed = 1 AND e.owner <> ?"
)
_OTHER_NODES = (
    "SELECT name FROM node WHERE state = 'alive' AND incarnation <> ? ORDER BY name LIMIT 100"
)
# A command may have given live entries another next hop.
_NEXT_HOPS = (
    "UPDATE recipient r SET next_hop = e.next_hop FROM entry e WHERE e.message_id = r.message_id"
    " AND e.number = r.entry AND r.message_id = ? AND r.next_hop <> e.next_hop"
)


class PostgresQueueEngine:
    """A QueueEngine. An entry that has ended is deleted; its recipients keep its next hop."""

    def __init__(
        self,
        writer: WriteConnection,
        reader: ReadConnection,
        bodies: BodyStore,
        *,
        captured: CapturedMail,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._bodies = bodies
        self._captured = captured

    async def read(self, query: Callable[[ConnectionTables], T]) -> T:
        """QueueEngine.read."""
        return await self._reader.read(query)

    async def change(self, operation: Callable[[WriteTransaction], T]) -> T:
        """QueueEngine.change."""
        return await self._writer.submit(operation, alone=True, is_order=True)

    def read_claims(
        self, tables: Any, keys: Collection[Key]
    ) -> tuple[Sequence[Claim], Mapping[Key, str]]:
        """QueueEngine.read_claims."""
        return read_claims(tables, tuple(keys))

    def elsewhere(self, tables: Any, keys: Collection[Key]) -> Mapping[Key, str]:
        """QueueEngine.elsewhere."""
        own = self._writer.incarnation
        rows = tables.fetch_each(_ELSEWHERE, [(*key, own) for key in keys])
        return {(row[0], row[1]): row[2] for row in rows}

    async def other_nodes(self) -> Sequence[str]:
        """QueueEngine.other_nodes."""
        own = (self._writer.incarnation,)
        rows = await self._reader.read(lambda tables: tables.fetch(_OTHER_NODES, own))
        return [name for (name,) in rows]

    async def read_content(self, key: ContentKey) -> Content:
        """QueueEngine.read_content."""
        return await self._bodies.read(*key)

    async def store_contents(self, reports: Sequence[NewMessage]) -> Sequence[Bodies]:
        """QueueEngine.store_contents."""
        return [await self._bodies.store(one) for one in reports]

    def add_reports(
        self,
        transaction: Any,
        reports: Sequence[NewMessage],
        stored: Sequence[Bodies],
        *,
        original: str,
    ) -> None:
        """QueueEngine.add_reports."""
        (store,) = transaction.fetch_one(_STORE, (original,))
        for report, bodies in zip(reports, stored, strict=True):
            add_message(
                transaction, report, bodies, claim=False, captured=self._captured, store=store
            )

    def committed(self, stored: Sequence[Bodies]) -> None:
        """QueueEngine.committed."""
        self._bodies.accepted(stored)

    async def discard(self, stored: Sequence[Bodies]) -> None:
        """QueueEngine.discard."""
        await self._bodies.discard(stored)

    def entries_ended(self, transaction: Any, ended: Mapping[Key, ContentKey]) -> Sequence[str]:
        """QueueEngine.entries_ended: return the bodies that may not be needed any more."""
        ids = dict.fromkeys(message_id for message_id, _ in ended)
        transaction.execute_each(_NEXT_HOPS, [(one,) for one in ids])
        transaction.execute_each(f"DELETE FROM entry {_ENDED}", list(ended))
        dropped = transaction.fetch_each(_DROP, [(key[0], number) for key, number in ended.items()])
        return [body for (body,) in dropped if body]

    def remove(self, left: Sequence[str]) -> None:
        """QueueEngine.remove."""
        self._bodies.remove_later(left)
