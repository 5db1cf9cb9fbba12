"""Who has so much in the queue that more of it is refused while others' mail is taken.

The bound is pressure.queue_entries, by the rule of relay/base/shares.py. A key is the login of a
message, else its reverse-path: NewMessage.sender_key. From half of the bound on, the entries of the
heaviest keys are counted with the queue.
"""

import sys
from typing import Any

from relay.base.shares import REFUSALS
from relay.store.spool.shared.tables import QueueEngine
from relay.store.spool.types import sender_key

BOUND = "queue entries"
_COUNTED = 64  # keys; others have less than a sixty-fourth
_HEAVIEST = (
    "SELECT sender, count(*) FROM entry WHERE claimed = 0 AND due_us IS NOT NULL"
    f" GROUP BY sender ORDER BY 2 DESC LIMIT {_COUNTED}"
)


class QueueShares:
    """The keys that have their share. `limit` is pressure.queue_entries."""

    def __init__(self, engine: QueueEngine) -> None:
        self._engine, self.limit = engine, sys.maxsize
        self._spent: frozenset[int] = frozenset()
        REFUSALS.counts.setdefault(BOUND, 0)

    async def update(self, entries: int) -> None:
        """Count what the heaviest have, if `entries` in all leave less than one key may have.
        Raises SpoolError.
        """
        rows: list[Any] = []
        if 2 * entries >= self.limit:
            rows = await self._engine.count(lambda tables: list(tables.fetch(_HEAVIEST)))
        left = self.limit - entries - 1
        self._spent = frozenset(key for key, number in rows if left < number + 1)

    def refuses(self, name: str) -> bool:
        """Return whether a login or reverse-path may add nothing now, and note the refusal."""
        if not self._spent or not name or sender_key(name) not in self._spent:
            return False
        REFUSALS.add(BOUND, name)
        return True
