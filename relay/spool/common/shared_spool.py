"""What the spool of every engine does alike: its history, and the small records beside the queue.

An engine derives its SpoolEngine from SharedSpool, and adds what it stores in its own way.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from relay.base.clock import Clock, advanced_us, wall_offset_us
from relay.journeys.document import Journey
from relay.journeys.message_list import FoundPage, ListPosition, MessageSummary
from relay.journeys.message_search import FoundMessage, MessageSearch
from relay.journeys.spool_history import CONTENTS_MAX, KeptMessage, SpoolEvents
from relay.message.content import Content
from relay.observe.metrics import Metrics
from relay.spool.common import message_list, queries, recorded_events
from relay.spool.common.accepted_rows import CapturedMail, accepted_as
from relay.spool.common.claim_changes import late_recipients
from relay.spool.common.queue_admin import SpoolQueueAdmin
from relay.spool.common.queue_engine import QueueEngine
from relay.spool.common.receipts import ReceiptRecords
from relay.spool.common.shared_maintenance import SharedMaintenance
from relay.spool.engine import News, RecordedRoot
from relay.spool.queue_commands import QueueCommand, ShownTimes
from relay.spool.tables import OpenTransaction, Tables
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


class SharedSpool(QueueEngine):
    """The part of a SpoolEngine that needs only a QueueEngine, which the engine is itself."""

    maintenance: SharedMaintenance
    contents_sql: str  # content rows of entries, after the id of the message; {} is a condition

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
        self._submission_keep_us = int(submission_keep_s * 1_000_000)
        self.on_lost: Callable[[SpoolError], None] = lambda _: None
        self.on_news: Callable[[News], None] = lambda _: None
        self.agreed: Callable[[], Mapping[str, str]] = dict
        self.receipts = ReceiptRecords(self, store=store)
        self.queue_admin = SpoolQueueAdmin(
            self, follow=self._follow, clock=clock, metrics=metrics, shown_times=self._shown_times
        )

    async def _follow(self, command: QueueCommand) -> None:
        await self.receipts.follow(command)

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

    def content_of(self, tables: Tables, name: str, row: Sequence[Any]) -> Content:
        """Return the content in a row; it stays readable when it is removed. Raises SpoolError."""
        raise NotImplementedError

    async def read_message(self, queue_id: str) -> KeptMessage:
        """SpoolHistory.read_message."""

        def look(tables: Tables) -> KeptMessage:
            found = self._kept(tables, (queue_id,), strict=True)
            return KeptMessage(found.get(queue_id), queries.first_recipients(tables, queue_id))

        return await self.read(look)

    async def read_contents(self, queue_ids: Sequence[str]) -> Mapping[str, Content]:
        """SpoolHistory.read_contents."""
        ids = queue_ids[:CONTENTS_MAX]
        return await self.read(lambda tables: self._kept(tables, ids, strict=False))

    def _kept(
        self, tables: Tables, queue_ids: Sequence[str], *, strict: bool
    ) -> dict[str, Content]:
        """Return the contents of the first live entries of messages. With `strict` one that is
        damaged raises SpoolError.
        """
        where, values = tables.among("e.message_id", queue_ids)
        sql = f"{self.contents_sql.format(where)} ORDER BY e.message_id, e.number DESC"
        found: dict[str, Content] = {}
        for queue_id, row in {row[0]: tuple(row)[1:] for row in tables.fetch(sql, values)}.items():
            try:
                found[queue_id] = self.content_of(tables, queue_id, row)
            except SpoolError:
                if strict and tables.fetch(sql, values):
                    raise  # otherwise its last entry was settled in the meantime
        return found

    async def journey(self, queue_id: str) -> Journey | None:
        """SpoolHistory.journey."""
        times = self._shown_times()
        return await self.read(lambda tables: self._journey(tables, queue_id, times))

    def _journey(self, tables: Tables, queue_id: str, times: ShownTimes) -> Journey | None:
        return queries.journey(tables, queue_id, times)

    def _shown_times(self) -> ShownTimes:
        """Return how times are shown now. A development relay removes captured mail by real time,
        which an advance of the clock does not change.
        """
        captured_us = None
        if self._captured.is_delivered:
            captured_us = self._captured.keep_us + advanced_us(self._clock)
        return ShownTimes(wall_offset_us(self._clock), captured_us)

    async def find_queue_ids(self, key: str, *, account: str | None, limit: int) -> list[str]:
        """SpoolHistory.find_queue_ids."""
        return await self.read(
            lambda tables: queries.find_queue_ids(tables, key, account=account, limit=limit)
        )

    async def search(
        self, wanted: MessageSearch, *, account: str | None, since_us: int | None, limit: int
    ) -> Sequence[FoundMessage]:
        """SpoolHistory.search."""
        find = partial(message_list.search, account=account, since_us=since_us, limit=limit)
        return await self.read(lambda tables: find(tables, wanted))

    async def find_page(
        self, wanted: MessageSearch, *, account: str | None, before: ListPosition | None, limit: int
    ) -> FoundPage:
        """SpoolHistory.find_page."""
        search = partial(message_list.PageSearch, account=account, before=before, limit=limit)
        return await self.read(lambda tables: search(tables, wanted).find())

    async def summaries(
        self, queue_ids: Sequence[str], *, account: str | None
    ) -> Sequence[MessageSummary]:
        """SpoolHistory.summaries."""
        return await self.read(lambda one: message_list.summaries(one, queue_ids, account=account))

    async def accepted_submissions(self, submission_ids: Sequence[str]) -> Sequence[str]:
        """SpoolHistory.accepted_submissions."""
        return await self.read(lambda one: message_list.accepted_submissions(one, submission_ids))

    async def count_states(
        self, *, account: str | None, limit: int
    ) -> tuple[int, Mapping[str, int]]:
        """SpoolHistory.count_states."""
        return await self.read(
            lambda tables: message_list.count_states(tables, account=account, limit=limit)
        )

    async def recent_addresses(self, *, account: str | None, limit: int) -> Sequence[str]:
        """SpoolHistory.recent_addresses."""
        return await self.read(
            lambda tables: message_list.recent_addresses(tables, account=account, limit=limit)
        )

    async def events_after(self, after: int, until: int, *, limit: int) -> SpoolEvents:
        """SpoolHistory.events_after."""
        at_once = not self._captured.is_delivered

        def look(tables: Tables) -> SpoolEvents:
            last = min(until, self._last_event(tables))
            return recorded_events.events_after(
                tables, after, last, limit=limit, captures_at_once=at_once
            )

        return await self.read(look)

    async def last_event(self) -> int:
        """SpoolHistory.last_event."""
        return await self.read(self._last_event)

    def _last_event(self, tables: Tables) -> int:
        return recorded_events.last_event(tables)

    async def counts(self) -> QueueCounts:
        """SpoolEngine.counts."""
        return await self.maintenance.counts()

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`."""
        return await self.maintenance.stats()
