"""The counts of relay/base/accounts/usage.py in the spool: a row for each account and node.

A node writes its own rows only, whole each time, so that nodes wait for no lock of each other, and
a write that is repeated changes nothing. Times are of the wall clock, which nodes share.
"""

from collections.abc import Mapping, Sequence

from relay.base.accounts.usage import DAY_US, UsageCounter
from relay.base.clock import Clock
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.shared.tables import OpenTransaction, Tables
from relay.store.spool.types import SpoolError

_KEPT_US = 2 * DAY_US  # longer than the longest period
_OVERLAP_US = 10_000_000  # what was written then may be committed later
_WRITE = (
    "INSERT INTO usage (account, node, changed_us, counts) VALUES (?, ?, ?, ?) ON CONFLICT"
    " (account, node) DO UPDATE SET changed_us = excluded.changed_us, counts = excluded.counts"
)


class UsageLedger:
    """Brings the counts of this node to the spool, and those of others from there."""

    def __init__(
        self, engine: SpoolEngine, usage: UsageCounter, clock: Clock, *, node: str, is_shared: bool
    ) -> None:
        """`node` is the name of this one; `is_shared`: others may have the spool too."""
        self._engine = engine
        self._usage = usage
        self._clock = clock
        self._node = node
        self._is_shared = is_shared
        self._read_us: int | None = None  # when it was read last

    async def exchange(self) -> None:
        """Read what others have counted, and the first time what this node had; then write what has
        changed here. Raises SpoolError: it is to be repeated.
        """
        if self._read_us is None or self._is_shared:
            await self._read()
        if changed := self._usage.changed():
            try:
                await self._engine.change(lambda one: self._write(one, changed))
            except SpoolError:
                self._usage.not_stored(changed)
                raise

    async def prune(self) -> None:
        """Remove the rows that count no longer."""
        before_us = self._clock.time_us() - _KEPT_US
        sql = "DELETE FROM usage WHERE changed_us < ?"
        await self._engine.change(lambda one: one.execute(sql, (before_us,)))

    async def _read(self) -> None:
        first, now_us = self._read_us is None, self._clock.time_us()
        since_us = now_us - _KEPT_US if self._read_us is None else self._read_us - _OVERLAP_US
        sql = "SELECT account, node, counts FROM usage WHERE changed_us >= ? ORDER BY changed_us"

        def read(tables: Tables) -> Sequence[tuple[str, str, str]]:
            return tables.fetch(sql, (since_us,))

        for account, node, counts in await self._engine.ask(read):
            is_own = node == self._node
            if first or not is_own:
                self._usage.take(account, counts, node="" if is_own else node)
        self._read_us = now_us

    def _write(self, transaction: OpenTransaction, changed: Mapping[str, str]) -> None:
        now_us = self._clock.time_us()
        rows = [(account, self._node, now_us, counts) for account, counts in changed.items()]
        transaction.execute_each(_WRITE, rows)
