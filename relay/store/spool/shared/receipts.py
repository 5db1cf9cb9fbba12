"""The read receipts that are owed: read, held after a restore, ended.

The results of attempts add them, and the acceptance of a receipt ends them (`accepted`). `version`
changes with each, so that a reader that keeps them in memory reads them again only when needed.
Rows with a number below 0 are automatic replies of releases before 0.7.0: they are removed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import asdict

from relay.base.message.receipt import OwedReceipt, ReceiptKey, ReceiptRequest
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.shared.columns import json_text
from relay.store.spool.shared.tables import OpenTransaction, QueueEngine, Tables
from relay.store.spool.types import Selector, SentReceipt

TOTAL_MAX = 50_000  # later requests are not recorded
# limit: read receipts that a mailbox owes; then the oldest goes
RECEIPTS_PER_MAILBOX_MAX = 1000
_OWED = (
    "SELECT message_id, number, mailbox, copy_id, folder, owed_us, request, state"
    " FROM owed_receipt WHERE state <> 'held'"
)
_ADD = (
    "INSERT INTO owed_receipt VALUES (?, ?, ?, ?, '', ?, 'owed', ?)"
    " ON CONFLICT (message_id, number) DO NOTHING"
)
_REMOVE_OLDEST = (
    "DELETE FROM owed_receipt WHERE (message_id, number) IN (SELECT message_id, number"
    " FROM owed_receipt WHERE mailbox = ? ORDER BY owed_us DESC, message_id DESC"
    f" LIMIT {TOTAL_MAX} OFFSET {RECEIPTS_PER_MAILBOX_MAX - 1})"
)
_MARK = "UPDATE owed_receipt SET state = 'sent' WHERE message_id = ? AND number = ?"
_END = "DELETE FROM owed_receipt WHERE message_id = ? AND number = ?"
_AT_ONCE = 100
_RESTORED = Selector(restored=True)
_CHANGES = {
    Operation.RELEASE: "UPDATE owed_receipt SET state = 'owed' WHERE state = 'held'",
    Operation.CANCEL: "DELETE FROM owed_receipt WHERE state = 'held'",
}


class ReceiptLedger:
    """What results have recorded as owed, until it is sent or ends."""

    def __init__(self, engine: QueueEngine, *, store: Callable[[], int]) -> None:
        """`store` returns the number of this node's mail root. Only what its mailboxes owe is
        returned: the node of another mail root does the same there.
        """
        self._engine = engine
        self._store = store
        self.count = 0  # how many are owed, held ones included
        self.version = 0  # changes when owed() may return others

    @property
    def has_any(self) -> bool:
        """Whether there may be any, without a disk access."""
        return self.count > 0

    @property
    def has_room(self) -> bool:
        """Whether one more would be recorded."""
        return self.count < TOTAL_MAX

    def added(self) -> None:
        """Note that a result has added some."""
        self.count += 1
        self.version += 1

    async def owed(self) -> Sequence[OwedReceipt]:
        """Return all read receipts, without those that a restore holds."""
        rows = await self._engine.read(lambda tables: tables.fetch(f"{_OWED} AND number > 0"))
        self.count = await self._engine.read(count_receipts)
        return self._own(rows)

    def _own(self, rows: Iterable[Sequence[Any]]) -> list[OwedReceipt]:
        receipts = []
        for message_id, number, mailbox, copy_id, folder, owed_us, request, state in rows:
            asked = msgspec.json.decode(request, type=dict[str, Any])
            if asked.get("store", 0) == self._store():
                owed = OwedReceipt(
                    (message_id, number),
                    mailbox,
                    copy_id,
                    folder,
                    owed_us,
                    to=asked.get("to", ""),
                    is_trusted=asked.get("is_trusted", False),
                    is_sent=state == "sent",
                )
                receipts.append(owed)
        return receipts

    async def find(self, mailbox: str, copy_ids: Sequence[str]) -> Sequence[OwedReceipt]:
        """Return what is owed for these copies in a mailbox."""
        rows: list[Any] = []
        for start in range(0, len(copy_ids), _AT_ONCE):
            chunk = copy_ids[start : start + _AT_ONCE]
            rows += await self._engine.read(partial(_of_copies, mailbox=mailbox, copy_ids=chunk))
        return self._own(rows)

    async def request(self, key: ReceiptKey) -> ReceiptRequest | None:
        """Return the request of a receipt; None if it is not owed any more."""
        sql = "SELECT request FROM owed_receipt WHERE message_id = ? AND number = ?"
        row = await self._engine.read(lambda tables: tables.fetch_one(sql, key))
        return None if row is None else msgspec.json.decode(row[0], type=ReceiptRequest)

    async def moved(self, key: ReceiptKey, folder: str) -> None:
        """Record the folder in which the copy was seen."""
        sql = "UPDATE owed_receipt SET folder = ? WHERE message_id = ? AND number = ?"
        await self._engine.change(
            lambda transaction: transaction.execute_each(sql, [(folder, *key)])
        )

    async def end(self, keys: Sequence[ReceiptKey]) -> None:
        """Remove these."""
        await self._engine.change(lambda transaction: transaction.execute_each(_END, keys))
        self.version += 1

    async def prune(self, before_us: int) -> None:
        """Remove what has been owed since before a queue time, but not what is held; and automatic
        replies.
        """
        sql = "DELETE FROM owed_receipt WHERE owed_us < ? AND state = 'owed' OR number < 0"
        await self._engine.change(lambda transaction: transaction.execute_each(sql, [(before_us,)]))
        self.version += 1

    async def follow(self, command: QueueCommand) -> None:
        """Hold all when a restore holds the queue. Release or end all when an operator releases or
        cancels everything that was restored.
        """
        if command.dry_run or not self.has_any:
            return
        sql = _CHANGES.get(command.operation) if command.selector == _RESTORED else None
        if command.operation is Operation.HOLD and command.backed_up_us is not None:
            sql = "UPDATE owed_receipt SET state = 'held' WHERE state = 'owed'"
        if sql is not None:
            await self._engine.change(lambda transaction: transaction.execute_each(sql, [()]))
            self.version += 1


def add_receipts(
    transaction: OpenTransaction,
    message_id: str,
    receipts: Mapping[str, tuple[int, ReceiptRequest]],
    *,
    now_us: int,
    store: int,
) -> None:
    """Record what the recipients of a message owe: ResultRows.receipts. `store` is Claim.store."""
    for copy_id, (number, request) in receipts.items():
        transaction.execute(_REMOVE_OLDEST, (request.mailbox,))
        asked = json_text(asdict(request) | ({"store": store} if store else {}))
        row = (message_id, number, request.mailbox, copy_id, now_us, asked)
        transaction.execute(_ADD, row)


def record_sent(transaction: OpenTransaction, receipt: SentReceipt) -> None:
    """Record that a receipt is sent, in the transaction that accepts it."""
    transaction.execute(_MARK if receipt.is_kept else _END, receipt.key)


def note_receipt(transaction: OpenTransaction, receipt: SentReceipt) -> None:
    """Append the event to the journey of the message that asked, if it is still known."""
    if transaction.fetch_one("SELECT 1 FROM message WHERE id = ?", receipt.key[:1]):
        transaction.append_events(receipt.key[0], (receipt.event,))


def count_receipts(tables: Tables) -> int:
    """Return how many receipts are owed, held ones included."""
    return int(tables.fetch_one("SELECT count(*) FROM owed_receipt")[0])


def _of_copies(tables: Tables, *, mailbox: str, copy_ids: Sequence[str]) -> list[Any]:
    where, values = tables.among("copy_id", copy_ids)
    return tables.fetch(f"{_OWED} AND mailbox = ? AND {where}", (mailbox, *values))
