"""The newest refusals, in memory: for a development relay, which ends with its user's session."""

from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from relay.clock import rfc3339
from relay.refusals.refusal import Refusal, RefusalPage, RefusalSearch, place_after, select

KEPT_MAX = 1000


class RecentRefusals:
    """A RefusalStore that forgets the oldest record when there are more than KEPT_MAX."""

    def __init__(self, on_record: Callable[[], None] = lambda: None) -> None:
        """`on_record` is called when a record can be read."""
        self._kept: deque[Refusal] = deque(maxlen=KEPT_MAX)
        self._last = ""
        self._on_record = on_record

    def record(self, refusal: Refusal) -> None:
        """See RefusalRecorder."""
        self._last = place_after(self._last, refusal.at)
        self._kept.append(replace(refusal, at=self._last))
        self._on_record()

    async def page(self, wanted: RefusalSearch) -> RefusalPage:
        """See RefusalStore."""
        return select(reversed(self._kept), wanted, last=self._last)

    async def prune(self, before_us: int, *, dry_run: bool = False) -> int:
        """See RefusalStore."""
        before = rfc3339(max(0, before_us))
        old = sum(one.at < before for one in self._kept)
        if old and not dry_run:
            kept = [one for one in self._kept if one.at >= before]
            self._kept = deque(kept, maxlen=KEPT_MAX)
        return old

    async def clear(self) -> None:
        """See RefusalStore."""
        self._kept.clear()

    async def close(self) -> None:
        """See RefusalStore."""
