"""Remove the oldest mail of a development relay: by number, age and size.

A service keeps mailboxes for ever, and history by [spool] keep. A development relay is a tool that
runs for weeks and gets the mail of every test, so that its oldest messages go, in mailboxes and in
the queue. Mail that is still to be delivered stays, and so does a submission that is pending.
"""

import asyncio
import heapq
from collections.abc import Sequence

from msgspec import Struct

from relay.base.clock import Clock
from relay.mailbox.types import StoreError
from relay.observe.logs import get_logger
from relay.outbox.store import FileStore
from relay.spool.engine import DevelopmentSpool
from relay.spool.types import SpoolError

_log = get_logger("development")
_INTERVAL_S = 60.0
_AHEAD_US = 1_000_000  # more than between two looks at a clock


class KeepLimits(Struct, frozen=True):
    """What stays: `messages` in all mailboxes together, and as many in the queue and history; what
    is younger than `age_s`; `size_bytes` of both together.
    """

    messages: int = 10_000
    age_s: float = 7 * 86400.0
    size_bytes: int = 1 << 30


DEFAULT_LIMITS = KeepLimits()
KeptItem = tuple[int, int]  # its time in microseconds, and its size in bytes


def cut_us(*stores: Sequence[KeptItem], keep: KeepLimits, now_us: int) -> int:
    """Return a time so that the limits hold when everything from then or older is removed.

    The newest item of all stays, however large it is.
    """
    cut = now_us - int(keep.age_s * 1_000_000)
    ordered = [sorted(items, reverse=True) for items in stores]
    for items in ordered:
        if len(items) > keep.messages:
            cut = max(cut, items[keep.messages][0])
    total = 0
    for number, (at_us, size_bytes) in enumerate(heapq.merge(*ordered, reverse=True)):
        total += size_bytes
        if number and total > keep.size_bytes:
            return max(cut, at_us)
    return cut


class MailRetention:
    """Removes what is above the limits, each minute."""

    def __init__(
        self, store: FileStore, spool: DevelopmentSpool, *, keep: KeepLimits, clock: Clock
    ) -> None:
        self._store = store
        self._spool = spool
        self._keep = keep
        self._clock = clock

    async def run(self) -> None:
        """Remove until cancelled."""
        while True:
            try:
                await self.remove()
            except (StoreError, SpoolError) as error:
                _log.warning("old messages not removed", error=str(error))
            except Exception:  # noqa: BLE001 - the task must go on
                _log.exception("old messages not removed")
            await asyncio.sleep(_INTERVAL_S)  # real time: an advance makes no mail old

    async def remove(self) -> None:
        """Remove what is above the limits now. Raises StoreError, SpoolError.

        Nothing is older than in real time. The times of files are real: those of the queue are
        ahead of them by what the clock was, so that each is limited alone once it was advanced.
        """
        files = await self._store.stored_files()
        kept = await self._spool.sizes(self._keep.messages + 1)
        real_us = self._clock.file_time_us()
        sizes = [(one.at_us, one.size_bytes) for one in files]
        is_ahead = self._clock.time_us() - real_us > _AHEAD_US
        groups: list[list[Sequence[KeptItem]]] = [[sizes], [kept]] if is_ahead else [[sizes, kept]]
        cuts = [cut_us(*group, keep=self._keep, now_us=real_us) for group in groups]
        old = [one for one in files if one.at_us <= cuts[0]]
        removed = await self._store.remove_files(old) if old else 0
        messages = 0
        if any(at_us <= cuts[-1] for at_us, _ in kept):  # otherwise nothing is written
            while number := await self._spool.discard(cuts[-1]):
                messages += number
        if removed or messages:  # relay dev shows warnings only
            _log.warning("old messages removed", in_mailboxes=removed, in_the_queue=messages)
