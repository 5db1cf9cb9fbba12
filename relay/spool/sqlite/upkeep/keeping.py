"""Looking after the spool: taking over from a dead owner, counting, history, files nobody names.

On the path: beside it; a start comes here first, the daemon's upkeep from time to time.
Holds: nothing here makes mail wait: each step is small, and others go on between two; what is
    being written is never taken for left over.
Fails: SpoolError and its children.
Standards: docs/design.md 4.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import apsw

from relay.clock import Clock, jump_us
from relay.spool.sqlite.disk.contents import ContentFiles
from relay.spool.sqlite.engine.batch import Batch
from relay.spool.sqlite.engine.reader import Reader
from relay.spool.sqlite.engine.writer import Writer
from relay.spool.sqlite.upkeep import counting, history, recovery
from relay.spool.sqlite.upkeep.history import Keep
from relay.spool.types import QueueCounts, SpoolUnavailableError

_STEPS_AT_ONCE = 50  # of prune(), for one who waits
_COUNT_S_MAX = 30.0
_FRESH_US = 3600 * 1_000_000  # history that is never taken for want of room


class Keeping:
    """The upkeep of one spool. `counting` is a reader of its own: it keeps a snapshot."""

    def __init__(
        self,
        writer: Writer,
        files: ContentFiles,
        *,
        queries: Reader,
        counting: Reader,
        clock: Clock,
    ) -> None:
        self._writer = writer
        self._files = files
        self._queries = queries
        self._counting = counting
        self._clock = clock
        self._pruned_to = ""
        self._unaccounted: int | None = None

    async def take_over(self) -> int:
        """Release a dead owner's claims; return how many there were."""
        now_us, at_us = self._clock.steady_us(), self._clock.time_us()
        released = 0
        while number := await self._writer.submit(
            lambda batch: recovery.release_some(batch.cursor, now_us=now_us, at_us=at_us)
        ):
            released += number
        return released

    async def sweep(self) -> int:
        """Remove files that no content has and nobody is writing; return how many there were."""
        removed = 0
        listed = self._files.listed()
        while (number := await self._queries.run(partial(self._sweep_some, listed))) is not None:
            removed += number
        return removed

    async def counts(self) -> QueueCounts:
        """Count entries, and recipients that are nowhere. Raises SpoolUnavailableError where that
        takes so long that the log, which cannot begin anew meanwhile, would grow too much.
        """
        count = counting.Count()
        deadline = self._clock.monotonic() + _COUNT_S_MAX
        try:
            while await self._counting.run(count.step):
                if self._clock.monotonic() > deadline:
                    raise SpoolUnavailableError(f"not counted within {_COUNT_S_MAX:g} s")
        finally:
            await self._counting.run(count.end)
        counts = count.result()
        self._unaccounted = counts.unaccounted
        return counts

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`; `unaccounted` is by the last count."""
        if self._unaccounted is None:
            await self.counts()
        now_us, ahead_us = self._clock.steady_us(), jump_us(self._clock)
        figures = await self._queries.run(
            lambda cursor: counting.stats(cursor, now_us=now_us, ahead_us=ahead_us)
        )
        return figures | {"unaccounted": self._unaccounted}

    async def prune(self, keep: Keep) -> int:
        """Remove some of what is not to be kept; how much, 0 when nothing is left.

        Messages are finished ones, the oldest first; submission keys end by their own time.
        A time that may never have passed makes nothing old.
        """
        now_us, ahead_us = self._clock.sure_us(), jump_us(self._clock)
        before_us = await self._queries.run(lambda c: _before_us(c, keep, now_us=now_us))
        keys = await self._writer.submit(lambda batch: history.prune_keys(batch.cursor, now_us))

        def prune_some(batch: Batch) -> history.Pruned:
            return history.prune(batch.cursor, before_us, after=self._pruned_to, ahead_us=ahead_us)

        while True:
            pruned = await self._writer.submit(prune_some)
            self._pruned_to = pruned.reached
            if pruned.messages or keys or not pruned.reached:
                return pruned.messages + keys

    async def prune_many(self, age_s: float, *, dry_run: bool = False) -> dict[str, Any]:
        """Remove, or with `dry_run` count, finished messages older than that, and submission keys:
        the JSON of POST /storage/prune. Ask again until it has `ended`.
        """
        if dry_run:
            now_us, ahead_us = self._clock.sure_us(), jump_us(self._clock)
            before_us = now_us - int(age_s * 1_000_000)
            would = await self._queries.run(
                lambda c: history.prunable(c, before_us, now_us, ahead_us=ahead_us)
            )
            return asdict(would) | {"ended": True}
        for _ in range(_STEPS_AT_ONCE):
            if not await self.prune(Keep(age_s)):
                return {"ended": True}
        return {"ended": False}

    def _sweep_some(self, listed: Iterator[tuple[str, ...]], cursor: apsw.Cursor) -> int | None:
        names = next(listed, None)
        if names is None:
            return None
        # In this order: what is not in work now has its row already, or never will.
        idle = [name for name in names if not self._files.is_in_work(name)]
        left = recovery.orphans(cursor, idle)
        self._files.remove(left)
        return len(left)


def _before_us(cursor: apsw.Cursor, keep: Keep, *, now_us: int) -> int:
    """Of when history goes: of any time but the last hour where it takes too much room."""
    before_us = now_us - int(keep.age_s * 1_000_000)
    if keep.size_bytes and history.used_bytes(cursor) > keep.size_bytes:
        return max(before_us, now_us - _FRESH_US)
    return before_us
