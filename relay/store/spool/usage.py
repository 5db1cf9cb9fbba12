"""The counts of relay/base/accounts/usage.py in the spool: a row for each account and node.

A node writes only the rows with its name, and replaces them: nodes do not wait for each other's
locks, and a repeated write changes nothing. Times are of the wall clock, which nodes share.
"""

from relay.base.accounts.usage import DAY_US, UsageCounter
from relay.base.clock import Clock
from relay.store.spool.engine import SpoolEngine

_KEPT_US = 2 * DAY_US  # longer than the longest period
_OVERLAP_US = 10_000_000  # what was written then may be committed later
_WRITE = (
    "INSERT INTO usage (account, node, changed_us, counts) VALUES (?, ?, ?, ?) ON CONFLICT"
    " (account, node) DO UPDATE SET changed_us = excluded.changed_us, counts = excluded.counts"
)
_READ = "SELECT account, node, counts FROM usage WHERE changed_us >= ? ORDER BY changed_us"
_PRUNE = "DELETE FROM usage WHERE changed_us < ?"


class UsageLedger:
    """Writes the counts of this node to the spool, and reads the counts of other nodes."""

    def __init__(
        self, engine: SpoolEngine, usage: UsageCounter, clock: Clock, *, node: str
    ) -> None:
        """`node` is the name of this node, "" if the spool is not shared."""
        self._engine, self._usage, self._clock, self._node = engine, usage, clock, node
        self._read_us: int | None = None  # when it was read last

    async def exchange(self) -> None:
        """Read what other nodes have counted, and the first time what this node had counted before;
        then write what has changed here. Raises SpoolError; call it again then.
        """
        if self._read_us is None or self._node:
            await self._read()
        if changed := self._usage.changed():
            now_us = self._clock.time_us()
            rows = [(account, self._node, now_us, counts) for account, counts in changed.items()]
            try:
                await self._engine.change(lambda tables: tables.execute_each(_WRITE, rows))
            except BaseException:
                self._usage.not_stored(changed)
                raise

    async def prune(self) -> None:
        """Remove rows that are older than the longest period. Raises SpoolError."""
        before_us = self._clock.time_us() - _KEPT_US
        await self._engine.change(lambda tables: tables.execute_each(_PRUNE, [(before_us,)]))

    async def _read(self) -> None:
        is_first, now_us = self._read_us is None, self._clock.time_us()
        values = (0 if self._read_us is None else self._read_us - _OVERLAP_US,)
        rows = await self._engine.ask(lambda tables: tables.fetch(_READ, values))
        for account, node, counts in rows:
            if node != self._node:
                self._usage.take(account, counts, node=node)
            elif is_first:
                self._usage.take(account, counts)
        self._read_us = now_us
