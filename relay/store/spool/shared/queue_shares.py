"""Who has so much in the queue that more of it is refused while others' mail is taken.

The bound is pressure.queue_entries, by the rule of relay/base/shares.py. A key is the account of a
message, without one the network of its client: a reverse-path is what the client likes. From half
of the bound on, the entries of the heaviest keys are counted with the queue.
"""

import sys
from collections import Counter
from typing import Any

from relay.base.message.address import own_mailbox
from relay.base.shares import REFUSALS
from relay.base.socket_address import client_of
from relay.store.spool.shared.tables import QueueEngine

BOUND = "queue entries"
_COUNTED = 4096  # accounts and addresses; of a full queue, others have a thousandth at most
# what is behind the last [ of the client, "HELO [IP]"
_IP = "substr(m.client, length(rtrim(m.client, replace(m.client, '[', ''))) + 1)"
_HEAVIEST = (
    f"SELECT m.account, CASE WHEN m.account = '' THEN {_IP} ELSE '' END AS ip, count(*)"
    " FROM entry e JOIN message m ON m.id = e.message_id"
    " WHERE e.claimed = 0 AND e.due_us IS NOT NULL"
    f" GROUP BY m.account, ip ORDER BY 3 DESC LIMIT {_COUNTED}"
)


class QueueShares:
    """The keys that have their share. `limit` is pressure.queue_entries."""

    def __init__(self, engine: QueueEngine) -> None:
        self._engine, self.limit = engine, sys.maxsize
        self._spent: frozenset[str] = frozenset()
        REFUSALS.counts.setdefault(BOUND, 0)

    async def update(self, entries: int) -> None:
        """Count what the heaviest have, if `entries` in all leave less than one key may have.
        Raises SpoolError.
        """
        rows: list[Any] = []
        if 2 * entries >= self.limit:
            rows = await self._engine.count(lambda tables: list(tables.fetch(_HEAVIEST)))
        numbers = Counter[str]()
        for account, ip, number in rows:
            numbers[_key(account, ip.rstrip("]"))] += number
        left = self.limit - entries - 1
        self._spent = frozenset(key for key, number in numbers.items() if left < number + 1)

    def refuses(self, account: str, ip: str = "") -> bool:
        """Return whether an account, or a client without one, may add nothing now, and note the
        refusal.
        """
        key = _key(account, ip) if self._spent else ""
        if not key or key not in self._spent:
            return False
        REFUSALS.add(BOUND, key)
        return True


def _key(account: str, ip: str) -> str:
    """Return an address, or the network of a client; "" for a report of this relay."""
    return own_mailbox(account) if account else client_of(ip)
