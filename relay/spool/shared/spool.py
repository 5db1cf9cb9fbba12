"""What the spool of every engine does alike: its history, and the small records beside the queue.

An engine derives its SpoolEngine from SharedSpool, and adds what it stores in its own way.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from relay.base.clock import Clock, advanced_us, rfc3339, wall_offset_us
from relay.observe.metrics import Metrics
from relay.spool.engine import News, RecordedRoot
from relay.spool.queue_commands import QueueCommand, ShownTimes
from relay.spool.shared.history.journeys import KeptMessages
from relay.spool.shared.history.message_list import MessageQueries
from relay.spool.shared.history.recorded_events import RecordedEvents
from relay.spool.shared.maintenance import SharedMaintenance
from relay.spool.shared.queue.admin import SpoolQueueAdmin
from relay.spool.shared.rows.accepted import CapturedMail, accepted_as
from relay.spool.shared.rows.claimed import late_recipients
from relay.spool.shared.rows.receipts import ReceiptRecords
from relay.spool.shared.tables import OpenTransaction, Tables
from relay.spool.types import ClaimedRecipient, Key, NewMessage, QueueCounts, SpoolError

T = TypeVar("T")
SUBMISSION_KEEP_S = 7 * 86400.0  # in addition to pickup.give_up_after
_RENEW = "UPDATE submission SET expires_us = ? WHERE key = ? RETURNING key"
_ROOT = "SELECT id FROM mail_root WHERE store = ?"
_RECORD_ROOT = (
    "INSERT INTO mail_root (store, id) VALUES (?, ?)"
    " ON CONFLICT (store) DO UPDATE SET id = excluded.id WHERE mail_root.id IN ('', ?)"
)
_WAS_USED = "SELECT 1 FROM counter WHERE name = 'delivered' AND value > 0"


class SharedSpool(KeptMessages, MessageQueries, RecordedEvents):
    """The part of a SpoolEngine that needs only a QueueEngine, which the engine is itself."""

    maintenance: SharedMaintenance

    def __init__(
        self,
        *,
        clock: Clock,
        metrics: Metrics,
        submission_keep_s: float,
        captured: CapturedMail,
        store: Callable[[], int] = lambda: 0,
    ) -> None:
        """`submission_keep_s` is how long a submission key is remembered after its first use,
        `captured` what happens to captured mail. `store` is for ReceiptRecords.
        """
        self._clock = clock
        self._metrics = metrics
        self._captured = captured
        self.captures_at_once = not captured.is_delivered
        self._submission_keep_us = int(submission_keep_s * 1_000_000)
        self.on_lost: Callable[[SpoolError], None] = lambda _: None
        self.on_news: Callable[[News], None] = lambda _: None
        self.agreed: Callable[[], Mapping[str, str]] = dict
        self.receipts = ReceiptRecords(self, store=store)
        self.queue_admin = SpoolQueueAdmin(
            self, follow=self._follow, clock=clock, metrics=metrics, shown_times=self.shown_times
        )

    def is_of_other_store(self, domain: str) -> bool:  # noqa: ARG002 - there is one store
        """SpoolEngine.is_of_other_store."""
        return False

    async def _follow(self, command: QueueCommand) -> None:
        await self.receipts.follow(command)

    def shown_times(self) -> ShownTimes:
        """Return how times are shown now. A development relay removes captured mail by real time,
        which an advance of the clock does not change.
        """
        captured_us = None
        if self._captured.is_delivered:
            captured_us = self._captured.keep_us + advanced_us(self._clock)
        return ShownTimes(wall_offset_us(self._clock), captured_us)

    async def ask(self, query: Callable[[Tables], T]) -> T:
        """Run a short query of delivery, which waits for no long one."""
        raise NotImplementedError

    async def mail_root(self, store: str) -> RecordedRoot:
        """SpoolEngine.mail_root."""
        return await self.read(lambda tables: self._root(tables, store))

    def _root(self, tables: Tables, store: str) -> RecordedRoot:
        row = tables.fetch_one(_ROOT, (store,))
        was_used = tables.fetch_one(_WAS_USED) is not None
        return RecordedRoot(row[0] if row is not None else "", was_used=was_used)

    async def record_mail_root(self, store: str, root_id: str, *, instead_of: str = "") -> str:
        """SpoolEngine.record_mail_root."""

        def record(transaction: OpenTransaction) -> str:
            transaction.execute(_RECORD_ROOT, (store, root_id, instead_of))
            return str(transaction.fetch_one(_ROOT, (store,))[0])

        return await self.change(record)

    async def renew_submission_keys(self, keys: Sequence[str]) -> Collection[str]:
        """SpoolEngine.renew_submission_keys."""
        until_us = self._clock.queue_us() + self._submission_keep_us
        values = [(until_us, key) for key in keys]
        found = await self.change(lambda one: one.fetch_each(_RENEW, values))
        return frozenset(key for (key,) in found)

    async def accepted_as(self, submission_key: str) -> str:
        """Spool.accepted_as."""
        return await self.ask(lambda tables: accepted_as(tables, submission_key))

    async def late_recipients(self, key: Key) -> Mapping[int, Sequence[ClaimedRecipient]]:
        """Spool.late_recipients."""
        return await self.ask(lambda tables: late_recipients(tables, key))

    def _count_accepted(self, messages: Iterable[NewMessage]) -> None:
        for one in messages:
            self._metrics.accepted_by(one.facts.source).inc()

    async def counts(self) -> QueueCounts:
        """SpoolEngine.counts."""
        return await self.maintenance.counts()

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`."""
        times = self.shown_times()
        holds = [
            {
                "domain": one.domain,
                "reason": one.reason,
                "since": rfc3339(one.since_us),
                "until": None if one.until_us is None else times.wall_time(one.until_us),
            }
            for one in self.queue_admin.standing.current()
        ]
        return {**await self.maintenance.stats(), "holds": holds}
