"""The read receipts that are owed: found by their copy, held after a restore, ended.

Settlements add them, and acceptances of notifications end them (transactions.py). `version` changes
with each of these, so that who has them in memory reads them again only when needed.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import apsw
import msgspec

from relay.message.receipt import OwedReceipt, ReceiptKey, ReceiptRequest
from relay.spool.queue_commands import Operation, QueueCommand
from relay.spool.sqlite.database import Reader, fetch, fetch_one
from relay.spool.sqlite.spool_errors import translate_sqlite_errors
from relay.spool.sqlite.writer import Batch, Writer
from relay.spool.types import Selector

TOTAL_MAX = 50_000  # later requests are not recorded
_OWED = (
    "SELECT message_id, number, mailbox, copy_id, folder, owed_us, request ->> '$.to',"
    " request ->> '$.is_trusted', state = 'sent' FROM owed_receipt WHERE state <> 'held'"
)
_AT_ONCE = 100
_RESTORED = Selector(restored=True)
_CHANGES = {
    Operation.RELEASE: "UPDATE owed_receipt SET state = 'owed' WHERE state = 'held'",
    Operation.CANCEL: "DELETE FROM owed_receipt WHERE state = 'held'",
}


class SqliteReceipts:
    """A ReceiptLedger."""

    def __init__(self, writer: Writer, reader: Reader, connection: apsw.Connection) -> None:
        """`connection` is only used here. Raises SpoolError."""
        self._writer = writer
        self._reader = reader
        with translate_sqlite_errors():
            self._count = _count(connection.cursor())
        self.version = 0

    @property
    def has_any(self) -> bool:
        """ReceiptLedger.has_any."""
        return self._count > 0

    @property
    def has_room(self) -> bool:
        """Whether another one is recorded."""
        return self._count < TOTAL_MAX

    def added(self) -> None:
        """Note that a settlement has added some."""
        self._count += 1
        self.version += 1

    async def owed(self) -> Sequence[OwedReceipt]:
        """ReceiptLedger.owed."""
        rows = await self._reader.run(lambda c: fetch(c, _OWED))
        self._count = await self._reader.run(_count)
        return [_receipt(row) for row in rows]

    async def find(self, mailbox: str, copy_ids: Sequence[str]) -> Sequence[OwedReceipt]:
        """ReceiptLedger.find."""
        found: list[Any] = []
        for start in range(0, len(copy_ids), _AT_ONCE):
            some = copy_ids[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            sql = f"{_OWED} AND mailbox = ? AND copy_id IN ({marks})"
            found += await self._reader.run(partial(fetch, sql=sql, values=(mailbox, *some)))
        return [_receipt(row) for row in found]

    async def request(self, key: ReceiptKey) -> ReceiptRequest | None:
        """ReceiptLedger.request."""
        sql = "SELECT request FROM owed_receipt WHERE message_id = ? AND number = ?"
        row = await self._reader.run(lambda c: fetch_one(c, sql, key))
        return None if row is None else msgspec.json.decode(row[0], type=ReceiptRequest)

    async def moved(self, key: ReceiptKey, folder: str) -> None:
        """ReceiptLedger.moved."""
        sql = "UPDATE owed_receipt SET folder = ? WHERE message_id = ? AND number = ?"
        await self._writer.submit(lambda batch: _execute(batch, sql, [(folder, *key)]))

    async def end(self, keys: Sequence[ReceiptKey]) -> None:
        """ReceiptLedger.end."""
        sql = "DELETE FROM owed_receipt WHERE message_id = ? AND number = ?"
        await self._writer.submit(lambda batch: _execute(batch, sql, keys))
        self.version += 1

    async def prune(self, before_us: int) -> None:
        """ReceiptLedger.prune."""
        sql = "DELETE FROM owed_receipt WHERE owed_us < ? AND state = 'owed'"
        await self._writer.submit(lambda batch: _execute(batch, sql, [(before_us,)]))
        self.version += 1

    async def follow(self, command: QueueCommand) -> None:
        """Do to all that is held what an operator does to everything that was restored; a restore
        holds everything.
        """
        if command.dry_run or not self.has_any:
            return
        sql = _CHANGES.get(command.operation) if command.selector == _RESTORED else None
        if command.operation is Operation.HOLD and command.backed_up_us is not None:
            sql = "UPDATE owed_receipt SET state = 'held' WHERE state = 'owed'"
        if sql is not None:
            await self._writer.submit(lambda batch: _execute(batch, sql, [()]))
            self.version += 1


def _count(cursor: apsw.Cursor) -> int:
    """Return how many receipts are owed, held ones included."""
    return int(fetch_one(cursor, "SELECT count(*) FROM owed_receipt")[0])


def _execute(batch: Batch, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    batch.cursor.executemany(sql, rows)


def _receipt(row: Sequence[Any]) -> OwedReceipt:
    message_id, number, mailbox, copy_id, folder, owed_us, to, is_trusted, is_sent = row
    return OwedReceipt(
        (message_id, number), mailbox, copy_id, folder, owed_us, to=to,
        is_trusted=bool(is_trusted), is_sent=bool(is_sent),
    )  # fmt: skip
