"""The engine on PostgreSQL: nodes share one queue.

A coroutine returns after the server's commit, synchronous_commit = on. See docs/design.md 4.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from relay import __version__
from relay.clock import Clock, advanced_us, boot_s, wall_offset_us
from relay.crashpoints import CrashPoint, CrashPoints
from relay.files import replace_file
from relay.journeys.document import Journey
from relay.journeys.message_list import FoundPage, ListPosition, MessageSummary
from relay.journeys.message_search import FoundMessage, MessageSearch
from relay.journeys.spool_history import CONTENTS_MAX, KeptMessage, SpoolEvents
from relay.message.content import Content, memory_part
from relay.observe.logs import RepeatedError, get_logger
from relay.observe.metrics import Metrics
from relay.pressure import UNKNOWN_DISK, Disk
from relay.settings.postgres_url import ServerOptions, parse_postgres_url
from relay.settings.tree import Settings
from relay.spool.common import mail_roots, message_list, queries, recorded_events
from relay.spool.common.accepted_rows import CapturedMail
from relay.spool.common.claim_changes import late_recipients
from relay.spool.common.queue_admin import SpoolQueueAdmin
from relay.spool.common.receipts import ReceiptRecords, count_receipts
from relay.spool.common.rows import SEQUENCE_BASE
from relay.spool.engine import News, RecordedRoot
from relay.spool.postgres import transactions
from relay.spool.postgres.agreement import AgreedParts
from relay.spool.postgres.bodies import BodyStore, IncomingParts
from relay.spool.postgres.claims import claim_due, next_due_us, release_claims
from relay.spool.postgres.final_events import FinalEvents
from relay.spool.postgres.keeper import NodeKeeper
from relay.spool.postgres.maintenance import PostgresMaintenance
from relay.spool.postgres.nodes import NodeIdentity, place_of
from relay.spool.postgres.queue_engine import PostgresQueueEngine
from relay.spool.postgres.server import server_faults
from relay.spool.postgres.tables import ConnectionTables, ReadConnection
from relay.spool.postgres.transactions import Bodies
from relay.spool.postgres.unheld_stores import with_unheld_store
from relay.spool.postgres.write_transaction import KnownKeyError, StaleClaimError, WriteTransaction
from relay.spool.postgres.writer import WAITING_MAX, WriteConnection
from relay.spool.queue_commands import QueueCommand, ShownTimes
from relay.spool.types import (
    NEVER_US,
    Accepted,
    Claim,
    ClaimedRecipient,
    ContentKey,
    DueBatch,
    DueQuery,
    HoldsFullError,
    Key,
    NewMessage,
    QueueCounts,
    SentReceipt,
    Settlement,
    SpoolError,
    SpoolLoad,
    SpoolUnavailableError,
)

_SUBMISSION_KEEP_S = 7 * 86400.0  # in addition to pickup.give_up_after
_HOME_FILE = "spool-owner"
_BODIES = "bodies"
_AGAIN_S = 1.0
_CONTENT = "c.size, c.data, c.header, c.body, c.eight_bit, c.crc32"
_KEPT = (
    f"SELECT e.message_id, e.number, {_CONTENT} FROM entry e"
    " JOIN content c ON c.message_id = e.message_id AND c.number = e.content_id"
    " WHERE {} ORDER BY e.message_id, e.number DESC"
)
_RENEW = "UPDATE submission SET expires_us = ? WHERE key = ? RETURNING key"
_OTHER_ROOT = "SELECT 1 FROM mail_root WHERE store <> ? AND id <> ''"
_log = get_logger("spool")


def open_engine(
    settings: Settings,
    *,
    clock: Clock,
    crash: CrashPoints,
    metrics: Metrics,
    delivers_captured: bool = False,
    holds_store: bool = True,
) -> "PostgresSpool":
    """See relay.spool.open(). Nothing is connected."""
    directory = settings.state_dir / _BODIES
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = NodeIdentity(
        settings.node, _home(settings.state_dir / _HOME_FILE),
        place_of(settings.state_dir, clock.anchor().boot_id), __version__,
        settings.mailboxes.store, holds_store, settings.mailboxes.domains,
    )  # fmt: skip
    place = SpoolPlace(parse_postgres_url(settings.spool.url), identity, directory)
    return PostgresSpool(
        place, clock=clock, crash=crash, metrics=metrics,
        submission_keep_s=settings.pickup.give_up_after + _SUBMISSION_KEEP_S,
        captured=CapturedMail(int(settings.spool.keep * 1_000_000), delivers_captured),
    )  # fmt: skip


class SpoolPlace(Struct, frozen=True):
    """Where the spool is, and who uses it. `directory` is for bodies that are being received or
    sent.
    """

    options: ServerOptions
    identity: NodeIdentity
    directory: Path


class PostgresSpool:
    """A SpoolEngine."""

    def __init__(
        self,
        place: SpoolPlace,
        *,
        clock: Clock,
        crash: CrashPoints,
        metrics: Metrics,
        submission_keep_s: float,
        captured: CapturedMail,
        elapsed_s: Callable[[], float] = boot_s,
    ) -> None:
        """`submission_keep_s` is how long a submission key is remembered after its first use,
        `captured` what happens to captured mail. Leases are counted by `elapsed_s`.
        """
        options = self._options = place.options
        self._clock = clock
        self._crash = crash
        self._metrics = metrics
        self._submission_keep_us = int(submission_keep_s * 1_000_000)
        self._captured = captured
        self.on_lost: Callable[[SpoolError], None] = lambda _: None
        self.on_news: Callable[[News], None] = lambda _: None
        self.agreed: AgreedParts = dict
        self._fault = "the spool was not started yet"
        self._bodies = BodyStore(
            options, place.directory,
            incarnation=lambda: self._writer.own.incarnation if self._writer.own else 0,
        )  # fmt: skip
        self._writer = WriteConnection(
            options, identity=place.identity, clock=clock, crash=crash, metrics=metrics,
            on_lost_ownership=self._lost, on_dropped=self._bodies.remove_later,
            elapsed_s=elapsed_s,
        )  # fmt: skip
        self._counts: QueueCounts | None = None
        self._counted = (0, 0)  # what had happened before they were counted
        self._heard = 0  # how often other nodes may have done something
        self._connecting: asyncio.Task[None] | None = None
        self._queries = ReadConnection(options, purpose="queries")
        self._counting = ReadConnection(options, purpose="counting")
        self.maintenance = PostgresMaintenance(
            self._writer, self._bodies, queries=self._queries, counting=self._counting, clock=clock
        )
        self._engine = PostgresQueueEngine(
            self._writer, self._queries, self._bodies, captured=captured
        )
        self._keeper = NodeKeeper(
            self._writer, options, metrics=metrics, take_over=self._take_over,
            on_news=self._hear, agreed=self._agreed, on_lost=self._lost,
            unheld=self.maintenance.unheld,
        )  # fmt: skip
        self._final_events = FinalEvents()
        self.receipts = ReceiptRecords(
            read=self._engine.read, change=self._engine.change,
            store=lambda: self._writer.stores.own,
        )  # fmt: skip
        self.queue_admin = SpoolQueueAdmin(
            self._engine, follow=self._follow, clock=clock, metrics=metrics,
            shown_times=self._shown_times,
        )  # fmt: skip

    def _lost(self, error: SpoolError) -> None:
        self._fault = str(error)
        self.on_lost(error)

    @property
    def development(self) -> None:
        """SpoolEngine.development."""
        return

    async def start(self, *, may_wait: bool = False) -> int:
        """SpoolEngine.start."""
        try:
            return await self._start()
        except SpoolUnavailableError as error:
            if not may_wait:
                raise
            self._fault = str(error)
            _log.error("the database of the spool cannot be used", error=self._fault)
            self._connecting = asyncio.create_task(self._start_later(), name="spool-start")
            return 0

    async def _start(self) -> int:
        await self._writer.start()
        for one in await self._queries.read(self._faults_of):
            _log.warning("the database of the spool is not safe for mail", error=one)
        self._crash.reached(CrashPoint.SPOOL_OPENED)
        taken_over = await self.maintenance.take_over()
        self._keeper.start()
        self.receipts.count = await self._queries.read(count_receipts)
        self._fault = ""
        return taken_over

    async def _follow(self, command: QueueCommand) -> None:
        await self.receipts.follow(command)
        self._keeper.tell(News.RECORDED | News.DUE)

    def _agreed(self) -> Mapping[str, str]:
        return self.agreed()

    def _hear(self, news: News) -> None:
        self._heard += 1
        self.on_news(news)

    async def _take_over(self) -> int:
        taken = await self.maintenance.take_over()
        self._metrics.takeovers.inc(taken)
        self.on_news(News.RECORDED | News.RELEASED)
        return taken

    def _faults_of(self, tables: ConnectionTables) -> Sequence[str]:
        return tables.wait(server_faults(self._options, tables.connection))

    async def _start_later(self) -> None:
        fault = RepeatedError()
        while self._fault:
            await self._clock.sleep(_AGAIN_S)  # sleeps: a new try each second
            try:
                await self._start()
            except SpoolUnavailableError as error:
                self._fault = str(error)
                if fault.is_new(error):
                    _log.error("the database of the spool cannot be used", error=self._fault)
            except SpoolError as error:
                self._lost(error)
                return
        _log.info("the database of the spool is there")

    async def stop(self) -> None:
        """SpoolEngine.stop."""
        if self._connecting is not None:
            self._connecting.cancel()
            with suppress(asyncio.CancelledError):
                await self._connecting
        await self._keeper.stop()
        await self._writer.stop()
        for one in (self._queries, self._counting, self._bodies):
            await one.close()

    def close(self) -> None:
        """SpoolEngine.close: nothing was connected."""

    async def mail_root(self, store: str) -> RecordedRoot:
        """SpoolEngine.mail_root."""

        def read(tables: ConnectionTables) -> RecordedRoot:
            found = mail_roots.mail_root(tables, store)
            if found.id or tables.fetch_one(_OTHER_ROOT, (store,)) is None:
                return found
            return RecordedRoot("", was_used=False)  # the others were

        return await self._queries.read(read)

    async def record_mail_root(self, store: str, root_id: str, *, instead_of: str = "") -> str:
        """SpoolEngine.record_mail_root."""
        return await self._engine.change(
            lambda one: mail_roots.record_mail_root(one, store, root_id, instead_of=instead_of)
        )

    async def renew_submission_keys(self, keys: Sequence[str]) -> Collection[str]:
        """SpoolEngine.renew_submission_keys."""
        until_us = self._clock.queue_us() + self._submission_keep_us
        values = [(until_us, key) for key in keys]
        found = await self._engine.change(lambda one: one.fetch_each(_RENEW, values))
        return frozenset(key for (key,) in found)

    async def accept(
        self,
        message: NewMessage,
        *,
        reports: Sequence[NewMessage] = (),
        submission_key: str = "",
        claim: bool = True,
        receipt: SentReceipt | None = None,
    ) -> Accepted:
        """Spool.accept."""
        self._check_usable()
        messages = (message, *reports)
        bodies = await self._store(messages)
        expires_us = self._clock.queue_us() + self._submission_keep_us if submission_key else 0

        def write(transaction: WriteTransaction) -> Accepted | None:
            return transactions.accept(
                transaction, messages, bodies, submission_key=submission_key,
                submission_expires_us=expires_us, captured=self._captured, claim=claim,
                receipt=receipt,
            )  # fmt: skip

        try:
            accepted = await self._writer.submit(
                write, accepts=True, size=_size_of(messages),
                alone=transactions.reads_first(message, receipt) or transactions.has_bodies(bodies),
            )  # fmt: skip
        except KnownKeyError:
            await self._bodies.discard(bodies)
            return await self._known(submission_key)
        except BaseException:
            await self._bodies.discard(bodies)
            raise
        if accepted is None or accepted.repeated:
            await self._bodies.discard(bodies)
        if accepted is None:
            raise HoldsFullError("rules hold as many entries as they may")
        if receipt is not None:
            self.receipts.version += 1
        self._keeper.tell(News.RECORDED if accepted.claims else News.RECORDED | News.DUE)
        if not accepted.repeated:
            self._bodies.accepted(bodies)
            for one in messages:
                self._metrics.accepted_by(one.facts.source).inc()
        return accepted

    async def _known(self, submission_key: str) -> Accepted:
        queue_id = await self.accepted_as(submission_key)
        if not queue_id:
            raise SpoolUnavailableError("the submission key is being removed")
        return Accepted(queue_id, repeated=True)

    async def accepted_as(self, submission_key: str) -> str:
        """Spool.accepted_as."""
        return await self._queries.read(lambda t: transactions.accepted_as(t, submission_key))

    async def settle(
        self, settlement: Settlement, *, claim_reports: bool = True
    ) -> tuple[bool, tuple[Claim, ...]]:
        """Spool.settle."""
        self._check_usable()
        bodies = await self._store(settlement.reports)
        now_us = self._clock.queue_us() if self.receipts.has_room else NEVER_US
        try:
            recorded = await self._writer.submit(
                lambda transaction: transactions.settle(
                    transaction, settlement, bodies, captured=self._captured,
                    claim_reports=claim_reports, now_us=now_us,
                ),
                alone=transactions.runs_statements(settlement) or transactions.has_bodies(bodies),
                size=_size_of(settlement.reports),
            )  # fmt: skip
        except StaleClaimError:
            await self._bodies.discard(bodies)
            return False, ()
        except BaseException:
            await self._bodies.discard(bodies)
            raise
        if recorded.owes:
            self.receipts.added()
        self._bodies.accepted(bodies)
        for report in settlement.reports:
            self._metrics.accepted_by(report.facts.source).inc()
        self._keeper.tell(News.RECORDED)
        return True, recorded.claims

    def may_finish(self, claim: Claim) -> bool:
        """Spool.may_finish."""
        return claim.owner == self._writer.incarnation and self._writer.may_finish()

    async def late_recipients(self, key: Key) -> Mapping[int, Sequence[ClaimedRecipient]]:
        """Spool.late_recipients."""
        return await self._bodies.ask(lambda tables: late_recipients(tables, key))

    async def claim_due(self, now_us: int, limit: int, look: DueQuery) -> DueBatch:
        """Spool.claim_due."""
        at_us = self._clock.time_us()
        return await self._writer.submit(
            lambda one: claim_due(one, look, now_us=now_us, at_us=at_us, limit=limit),
            leased=True, alone=True,
        )  # fmt: skip

    async def next_due_us(self, after_us: int = 0) -> int | None:
        """Spool.next_due_us."""
        stores = self._writer.stores
        return await self._bodies.ask(lambda tables: next_due_us(tables, after_us, stores))

    async def release(self, claims: Sequence[Claim]) -> None:
        """Spool.release."""
        await self._engine.change(lambda one: release_claims(one, claims))
        self._keeper.tell(News.RELEASED)

    def incoming_body(self) -> IncomingParts:
        """Spool.incoming_body."""
        return self._bodies.incoming()

    async def read_content(
        self,
        content_id: ContentKey,
        *,
        check: bool = True,  # noqa: ARG002 - it always is
    ) -> Content:
        """Spool.read_content."""
        return await self._bodies.read(*content_id)

    async def read_message(self, queue_id: str) -> KeptMessage:
        """SpoolHistory.read_message."""

        def read(tables: ConnectionTables) -> KeptMessage:
            found = self._kept(tables, (queue_id,), strict=True)
            return KeptMessage(found.get(queue_id), queries.first_recipients(tables, queue_id))

        return await self._queries.read(read)

    async def read_contents(self, queue_ids: Sequence[str]) -> Mapping[str, Content]:
        """SpoolHistory.read_contents."""
        ids = queue_ids[:CONTENTS_MAX]
        return await self._queries.read(lambda tables: self._kept(tables, ids, strict=False))

    def _kept(
        self, tables: ConnectionTables, queue_ids: Sequence[str], *, strict: bool
    ) -> dict[str, Content]:
        """Return the contents of the first live entries of messages. With `strict` one that is
        damaged raises SpoolError.
        """
        where, values = tables.among("e.message_id", queue_ids)
        rows = {row[0]: tuple(row)[2:] for row in tables.fetch(_KEPT.format(where), values)}
        found: dict[str, Content] = {}
        for queue_id, row in rows.items():
            try:
                found[queue_id] = self._bodies.content_of(tables, queue_id, row)
            except SpoolError:
                if strict and tables.fetch(_KEPT.format(where), values):
                    raise  # otherwise its last entry was settled in the meantime
        return found

    async def journey(self, queue_id: str) -> Journey | None:
        """SpoolHistory.journey."""
        times = self._shown_times()

        def read(tables: ConnectionTables) -> Journey | None:
            found = queries.journey(tables, queue_id, times)
            return with_unheld_store(tables, found) if found is not None else None

        return await self._queries.read(read)

    def _shown_times(self) -> ShownTimes:
        """Return how times are shown now."""
        captured_us = None
        if self._captured.is_delivered:
            captured_us = self._captured.keep_us + advanced_us(self._clock)
        return ShownTimes(wall_offset_us(self._clock), captured_us)

    async def find_queue_ids(self, key: str, *, account: str | None, limit: int) -> list[str]:
        """SpoolHistory.find_queue_ids."""
        return await self._queries.read(
            lambda t: queries.find_queue_ids(t, key, account=account, limit=limit)
        )

    async def search(
        self, wanted: MessageSearch, *, account: str | None, since_us: int | None, limit: int
    ) -> Sequence[FoundMessage]:
        """SpoolHistory.search."""
        return await self._queries.read(
            lambda t: message_list.search(
                t, wanted, account=account, since_us=since_us, limit=limit
            )
        )

    async def find_page(
        self, wanted: MessageSearch, *, account: str | None, before: ListPosition | None, limit: int
    ) -> FoundPage:
        """SpoolHistory.find_page."""
        return await self._queries.read(
            lambda t: message_list.find_page(t, wanted, account=account, before=before, limit=limit)
        )

    async def summaries(
        self, queue_ids: Sequence[str], *, account: str | None
    ) -> Sequence[MessageSummary]:
        """SpoolHistory.summaries."""
        return await self._queries.read(
            lambda t: message_list.summaries(t, queue_ids, account=account)
        )

    async def accepted_submissions(self, submission_ids: Sequence[str]) -> Sequence[str]:
        """SpoolHistory.accepted_submissions."""
        return await self._queries.read(
            lambda t: message_list.accepted_submissions(t, submission_ids)
        )

    async def count_states(
        self, *, account: str | None, limit: int
    ) -> tuple[int, Mapping[str, int]]:
        """SpoolHistory.count_states."""
        return await self._queries.read(
            lambda t: message_list.count_states(t, account=account, limit=limit)
        )

    async def recent_addresses(self, *, account: str | None, limit: int) -> Sequence[str]:
        """SpoolHistory.recent_addresses."""
        return await self._queries.read(
            lambda t: message_list.recent_addresses(t, account=account, limit=limit)
        )

    async def events_after(self, after: int, until: int, *, limit: int) -> SpoolEvents:
        """SpoolHistory.events_after."""
        at_once = not self._captured.is_delivered

        def read(tables: ConnectionTables) -> SpoolEvents:
            last = min(until, self._last_event(tables))
            return recorded_events.events_after(
                tables, after, last, limit=limit, captures_at_once=at_once
            )

        return await self._queries.read(read)

    async def last_event(self) -> int:
        """SpoolHistory.last_event."""
        return await self._queries.read(self._last_event)

    def _last_event(self, tables: ConnectionTables) -> int:
        return max(
            self._final_events.read(tables), recorded_events.removed_to(tables), SEQUENCE_BASE
        )

    def load(self) -> SpoolLoad:
        """SpoolEngine.load. A server that is away is no pressure: programs' mail is taken."""
        return SpoolLoad(
            entries=sum(self._counts.entries.values()) if self._counts else 0,
            backlog=self._writer.waiting / WAITING_MAX,
            commit_s=self._writer.commit_timer.commit_s(),
        )

    def health(self) -> str:
        """SpoolEngine.health."""
        return self._fault or self._writer.fault

    def disk(self) -> Disk:
        """SpoolEngine.disk."""
        return UNKNOWN_DISK

    async def counts(self) -> QueueCounts:
        """SpoolEngine.counts. While no node does anything, they stay until the next beat."""
        happened = self._writer.commits, self._heard
        if self._counts is None or self._counted != happened or self.health():
            self._counts, self._counted = await self.maintenance.counts(), happened
        return self._counts

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`."""
        return await self.maintenance.stats()

    def _check_usable(self) -> None:
        if fault := self.health():
            raise SpoolUnavailableError(fault)

    async def _store(self, messages: Sequence[NewMessage]) -> Sequence[Bodies]:
        """Store the bodies of messages. If one cannot be written, all are removed."""
        stored: list[Bodies] = []
        try:
            for message in messages:
                stored += [await self._bodies.store(message)]
        except BaseException:
            await self._bodies.discard(stored)
            raise
        return stored


def _size_of(messages: Sequence[NewMessage]) -> int:
    return sum(len(memory_part(one)) for message in messages for one in message.contents)


def _home(path: Path) -> str:
    """Return the id of the state_dir, which the first start writes. Raises SpoolError."""
    try:
        with suppress(FileNotFoundError):
            return path.read_text().strip()
        home = secrets.token_hex(8)
        replace_file(path, home.encode() + b"\n", mode=0o600)
    except OSError as error:
        raise SpoolUnavailableError(f"{path}: {error.strerror or error}") from error
    return home
