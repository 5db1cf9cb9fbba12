"""The Spool on SQLite: one database file, one writer thread, several readers.

A coroutine returns after the fsync that covers its change. See docs/design.md 4.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
from msgspec.structs import replace

from relay.clock import Clock, advanced_us, wall_offset_us
from relay.crashpoints import CrashPoint, CrashPoints
from relay.files import disk_of
from relay.journeys.document import Journey
from relay.journeys.message_list import FoundPage, ListPosition, MessageSummary
from relay.journeys.message_search import FoundMessage, MessageSearch
from relay.journeys.spool_history import CONTENTS_MAX, KeptMessage, SpoolEvents
from relay.last_commit import LastCommit
from relay.message.content import Content, LargeContent, memory_part
from relay.observe.logs import get_logger, inherit
from relay.observe.metrics import Metrics
from relay.pressure import Disk
from relay.settings.tree import Settings
from relay.spool.common import mail_roots, message_list, queries, recorded_events
from relay.spool.common.accepted_rows import CapturedMail
from relay.spool.common.claim_changes import late_recipients
from relay.spool.common.queue_admin import SpoolQueueAdmin
from relay.spool.common.receipts import ReceiptRecords, count_receipts
from relay.spool.engine import News, RecordedRoot
from relay.spool.queue_commands import ShownTimes
from relay.spool.sqlite import transactions
from relay.spool.sqlite.claims import (
    find_due,
    next_due_us,
    release_claims,
    take_claims,
)
from relay.spool.sqlite.commits import commits_of
from relay.spool.sqlite.content_files import (
    ContentFiles,
    ContentRow,
    IncomingFile,
    StoredFile,
    checksum_of,
    is_in_file,
    verify_checksum,
)
from relay.spool.sqlite.damage import Damage
from relay.spool.sqlite.database import (
    CAPTURED_KEEP_S,
    Reader,
    SqliteTables,
    open_database,
    read_anchor,
)
from relay.spool.sqlite.disk_space import RESERVE_FILE, ReserveFile
from relay.spool.sqlite.maintenance import Maintenance
from relay.spool.sqlite.queue_engine import SqliteQueueEngine
from relay.spool.sqlite.spool_errors import translate_sqlite_errors
from relay.spool.sqlite.write_ahead_log import WriteAheadLog, rewrite_log
from relay.spool.sqlite.writer import WAITING_MAX, Batch, Writer
from relay.spool.types import (
    NEVER_US,
    Accepted,
    Claim,
    ClaimedRecipient,
    DueBatch,
    DueQuery,
    HoldsFullError,
    Key,
    NewMessage,
    QueueCounts,
    SentReceipt,
    Settlement,
    SpoolDamagedError,
    SpoolError,
    SpoolFullError,
    SpoolLoad,
    SpoolUnavailableError,
)

T = TypeVar("T")
_Files = Sequence[Sequence[StoredFile | None]]  # of each message's contents
_SUBMISSION_KEEP_S = 7 * 86400.0  # in addition to pickup.give_up_after
_CAPTURED = CapturedMail(int(CAPTURED_KEEP_S * 1_000_000))
_log = get_logger("spool")


def open_engine(
    settings: Settings,
    *,
    clock: Clock,
    crash: CrashPoints,
    metrics: Metrics,
    delivers_captured: bool = False,
) -> "SqliteSpool":
    """See relay.spool.open()."""
    path = settings.spool_file
    return SqliteSpool(
        path, clock=clock, crash=crash, metrics=metrics,
        submission_keep_s=settings.pickup.give_up_after + _SUBMISSION_KEEP_S,
        captured=CapturedMail(int(settings.spool.keep * 1_000_000), delivers_captured),
        reserve_file=ReserveFile(
            path.with_name(RESERVE_FILE), size_bytes=settings.spool.reserve_size,
            reserve_bytes=settings.pressure.disk_free,
        ),
    )  # fmt: skip


class SqliteSpool:
    """A SpoolEngine. Open it only with the owner's lock: the start frees claims of a dead owner."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        crash: CrashPoints,
        metrics: Metrics,
        submission_keep_s: float,
        captured: CapturedMail = _CAPTURED,
        reserve_file: ReserveFile | None = None,
        inline: bool = False,
    ) -> None:
        """`submission_keep_s` is how long a submission key is remembered after its first use,
        `captured` what happens to captured mail.

        `reserve_file` is on the disk of `path`; without it there is none. With `inline` there are
        no threads: the event loop runs everything.
        """
        self._path, self._clock, self._metrics = path, clock, metrics
        self._submission_keep_us = int(submission_keep_s * 1_000_000)
        self._captured = captured
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.reserve_file = reserve_file or ReserveFile(path.with_name(RESERVE_FILE))
        check_free_space = self.reserve_file.check_free_space
        self._files = ContentFiles(
            path, crash=crash, check_free_space=check_free_space, started_us=clock.time_us()
        )
        self._connection = self._open()
        with translate_sqlite_errors(path):
            clock.resume(read_anchor(self._connection))
        self.damage = Damage(path, metrics, clock)
        crash.reached(CrashPoint.SPOOL_OPENED)
        number = commits_of(self._connection) or 0
        self._last_commit = LastCommit(path, number, room="spool", crash=crash)
        self._last_commit.begin()
        self._crash = crash
        self._writer = Writer(
            WriteAheadLog(self._connection, self._last_commit), clock=clock, crash=crash,
            metrics=metrics, inline=inline, damage=self.damage, reopen=self._reopen,
            reserve_file=self.reserve_file,
        )  # fmt: skip
        self.on_lost: Callable[[SpoolError], None] = lambda _: None
        self.on_news: Callable[[News], None] = lambda _: None  # nobody shares a file
        self.agreed: Callable[[], Mapping[str, str]] = dict  # as on_news
        self._entries, reader = 0, partial(Reader, path, on_damage=self._found_damage)
        self._delivery = reader()  # delivery never waits for a long query
        self._queries = reader()
        self._counting = reader()
        # Reads whole large bodies; nothing else waits in this thread.
        threads = partial(ThreadPoolExecutor, 1, initializer=inherit())
        self._checking = threads(thread_name_prefix="spool-check")
        self.maintenance = Maintenance(
            self._writer, self._files, queries=self._queries, counting=self._counting, clock=clock,
            was_closed=self._last_commit.was_closed,
        )  # fmt: skip
        self.receipts = self._owed_receipts()
        self.queue_admin = SpoolQueueAdmin(
            self._queue_engine(), follow=self.receipts.follow, clock=clock, metrics=metrics,
            shown_times=self._shown_times)  # fmt: skip

    def _owed_receipts(self) -> ReceiptRecords:
        receipts = ReceiptRecords(read=self._queries.read, change=self._writer.submit)
        with translate_sqlite_errors(self._path):
            receipts.count = count_receipts(SqliteTables(self._connection.cursor()))
        return receipts

    @property
    def development(self) -> Maintenance:
        """SpoolEngine.development."""
        return self.maintenance

    def _queue_engine(self) -> SqliteQueueEngine:
        return SqliteQueueEngine(
            self._writer, self._queries, self._files, captured=self._captured,
            read_content=self.read_content, store_contents=self._store_reports,
            discard=self._remove,
        )  # fmt: skip

    def _open(self) -> apsw.Connection:
        try:
            rewrite_log(self._path)
            return open_database(self._path, captured_keep_us=self._captured.keep_us)
        except SpoolError as error:  # mail in the queue can be delivered only after a start
            if not self.reserve_file.release_for(error):
                raise
            rewrite_log(self._path)
            return open_database(self._path, captured_keep_us=self._captured.keep_us)

    async def mail_root(self, store: str) -> RecordedRoot:
        """SpoolEngine.mail_root."""
        return await self._queries.read(lambda tables: mail_roots.mail_root(tables, store))

    async def record_mail_root(self, store: str, root_id: str, *, instead_of: str = "") -> str:
        """SpoolEngine.record_mail_root."""
        record = partial(mail_roots.record_mail_root, store=store, root_id=root_id)
        return await self._writer.submit(partial(record, instead_of=instead_of))

    def _found_damage(self, error: SpoolDamagedError, repeat: Callable[[], object]) -> None:
        self.damage.found(error, repeat)
        self._writer.wake()

    def _reopen(self) -> WriteAheadLog:
        """Close all connections and open them again, so that nothing is left of what they read.

        If the file is older than what this process has answered, none is opened: what is in memory
        must not be recorded there, nor what is there be delivered. Raises SpoolError, OSError.
        """
        readers = (self._counting, self._queries, self._delivery)
        with ExitStack() as stack:
            for reader in readers:
                stack.enter_context(reader.closed())
            self._connection.close()
            needed = self._last_commit.answered()
            self._connection = open_database(self._path, needed=needed)
            try:
                for reader in readers:
                    reader.open()
            except BaseException:
                self._connection.close()
                raise
        return WriteAheadLog(self._connection, self._last_commit)

    async def start(self, *, may_wait: bool = False) -> int:  # noqa: ARG002 - a file is there
        """SpoolEngine.start."""
        self._writer.start()
        await asyncio.to_thread(self._files.prepare)
        return await self.maintenance.take_over()

    async def renew_submission_keys(self, keys: Sequence[str]) -> Collection[str]:
        """SpoolEngine.renew_submission_keys."""
        until_us = self._clock.queue_us() + self._submission_keep_us
        return await self._writer.submit(
            lambda batch: transactions.renew_submission_keys(batch.cursor, keys, until_us=until_us)
        )

    async def stop(self) -> None:
        """Finish waiting writes and close the file; also for a spool that was not started."""
        await self._writer.stop()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close a spool whose writer does not run."""
        for reader in (self._counting, self._queries, self._delivery):
            reader.close()
        self._checking.shutdown(cancel_futures=True)
        if not self._writer.is_open:  # the next start needs the record to know what is missing
            return
        self._writer.empty_log()
        self._crash.reached(CrashPoint.SPOOL_LOG_EMPTIED)
        try:
            self._connection.close()
        except apsw.Error as error:  # the log still has everything
            _log.warning("spool closed with its log", error=str(error))
        self._crash.reached(CrashPoint.SPOOL_CLOSED)
        self._last_commit.forget()
        self._crash.reached(CrashPoint.SPOOL_COMMIT_FORGOTTEN)

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
        self.damage.check()
        messages = (message, *reports)
        files = await self._store_large(messages)
        expires_us = self._clock.queue_us() + self._submission_keep_us if submission_key else 0
        inline_bytes = sum(
            len(memory_part(content))
            for content, file in zip(message.contents, files[0], strict=True)
            if not file or isinstance(content, LargeContent)
        )

        def write(batch: Batch) -> Accepted | None:
            accepted = transactions.accept(
                batch, messages, files, submission_key=submission_key,
                submission_expires_us=expires_us, captured=self._captured,
                claim=claim, receipt=receipt,
            )  # fmt: skip
            if accepted is not None and not accepted.repeated:  # a repetition needs no room
                batch.new_bytes.append(inline_bytes)
            return accepted

        try:
            accepted = await self._writer.submit(write, accepts=True)
        except Exception as error:
            await self._remove(files)
            if isinstance(error, SpoolDamagedError):
                raise SpoolUnavailableError(str(error)) from error
            raise
        if accepted is None:
            await self._remove(files)
            raise HoldsFullError("rules hold as many entries as they may")
        if receipt is not None:
            self.receipts.version += 1
        if accepted.repeated:
            await self._remove(files)
        else:
            self._files.committed(files)
            for one in messages:
                self._metrics.accepted_by(one.facts.source).inc()
        return accepted

    async def accepted_as(self, submission_key: str) -> str:
        """Spool.accepted_as."""
        return await self._delivery.run(lambda c: transactions.accepted_as(c, submission_key))

    async def settle(
        self, settlement: Settlement, *, claim_reports: bool = True
    ) -> tuple[bool, tuple[Claim, ...]]:
        """Spool.settle."""
        files = await self._store_reports(settlement.reports)
        now_us = self._clock.queue_us() if self.receipts.has_room else NEVER_US
        try:
            recorded = await self._writer.submit(
                lambda batch: transactions.settle(
                    batch,
                    settlement,
                    files,
                    claim_reports=claim_reports,
                    captured=self._captured,
                    now_us=now_us,
                )
            )
        except Exception:
            await self._remove(files)
            raise
        if recorded.unneeded:
            self._delivery.later(partial(self._files.remove, (recorded.unneeded,)))
        if recorded.owes:
            self.receipts.added()
        if not recorded.in_time:
            await self._remove(files)
        self._files.committed(files)
        for report in settlement.reports if recorded.in_time else ():
            self._metrics.accepted_by(report.facts.source).inc()
        return recorded.in_time, recorded.claims

    async def late_recipients(self, key: Key) -> Mapping[int, Sequence[ClaimedRecipient]]:
        """Spool.late_recipients."""
        return await self._delivery.read(lambda tables: late_recipients(tables, key))

    def may_finish(self, claim: Claim) -> bool:  # noqa: ARG002 - each claim
        """Spool.may_finish: nobody else has the file."""
        return True

    async def claim_due(self, now_us: int, limit: int, look: DueQuery) -> DueBatch:
        """Spool.claim_due."""
        found = await self._delivery.run(lambda c: find_due(c, look, now_us=now_us, limit=limit))
        if not found.seen.claims and not found.damaged:
            return found.seen
        at_us = self._clock.time_us()
        claims = await self._writer.submit(
            lambda b: take_claims(b, found, now_us=now_us, at_us=at_us)
        )
        return replace(found.seen, claims=claims)

    async def next_due_us(self, after_us: int = 0) -> int | None:
        """Spool.next_due_us."""
        return await self._delivery.run(lambda c: next_due_us(c, after_us))

    async def release(self, claims: Sequence[Claim]) -> None:
        """Spool.release."""
        await self._writer.submit(lambda b: release_claims(b, claims))

    def incoming_body(self) -> IncomingFile:
        """Spool.incoming_body."""
        return self._files.incoming_body()

    async def read_content(self, content_id: int, *, check: bool = True) -> Content:
        """Spool.read_content."""
        row = await self._delivery.run(
            lambda c: c.execute(
                "SELECT size, data, file, header, eight_bit, crc32 FROM content WHERE id = ?",
                (content_id,),
            ).fetchone()
        )
        if row is None:
            raise SpoolError(f"content {content_id} is not in the spool")
        size, data, file, header, eight_bit, crc32 = row
        if file:
            in_file = ContentRow(file, size, header, bool(eight_bit), crc32)
            read = partial(self._files.read, in_file, check=check)
            if check and not in_file.is_small:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._checking, read)
            return await self._delivery.run(lambda _: read())
        # Inline contents are small: no thread is needed.
        return _checked(str(content_id), data, size=size, crc32=crc32 if check else None)

    async def read_message(self, queue_id: str) -> KeptMessage:
        """SpoolHistory.read_message."""
        return await self._queries.run(lambda c: self._kept(c, queue_id))

    def _kept(self, cursor: apsw.Cursor, queue_id: str) -> KeptMessage:
        row = transactions.kept_content(cursor, queue_id)
        content = None
        try:
            content = None if row is None else self._opened(queue_id, row)
        except SpoolError:
            if transactions.kept_content(cursor, queue_id) is not None:
                raise  # otherwise the last entry was settled in the meantime
        return KeptMessage(content, queries.first_recipients(SqliteTables(cursor), queue_id))

    async def read_contents(self, queue_ids: Sequence[str]) -> Mapping[str, Content]:
        """SpoolHistory.read_contents."""
        return await self._queries.run(lambda c: self._kept_contents(c, queue_ids))

    def _kept_contents(self, cursor: apsw.Cursor, queue_ids: Sequence[str]) -> dict[str, Content]:
        found: dict[str, Content] = {}
        for queue_id, row in transactions.kept_contents(cursor, queue_ids[:CONTENTS_MAX]).items():
            with suppress(SpoolError):  # damaged, or gone meanwhile
                found[queue_id] = self._opened(queue_id, row)
        return found

    def _opened(self, queue_id: str, row: Sequence[Any]) -> Content:
        size, data, file, header, eight_bit, crc32 = row
        if file:
            return self._files.opened(ContentRow(file, size, header, bool(eight_bit), crc32))
        return _checked(queue_id, data, size=size, crc32=crc32)

    async def journey(self, queue_id: str) -> Journey | None:
        """SpoolHistory.journey."""
        times = self._shown_times()
        return await self._queries.read(lambda c: queries.journey(c, queue_id, times))

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
        return await self._queries.read(
            lambda c: queries.find_queue_ids(c, key, account=account, limit=limit)
        )

    async def search(
        self, wanted: MessageSearch, *, account: str | None, since_us: int | None, limit: int
    ) -> Sequence[FoundMessage]:
        """SpoolHistory.search."""
        return await self._queries.read(
            lambda c: message_list.search(
                c, wanted, account=account, since_us=since_us, limit=limit
            )
        )

    async def find_page(
        self, wanted: MessageSearch, *, account: str | None, before: ListPosition | None, limit: int
    ) -> FoundPage:
        """SpoolHistory.find_page."""
        return await self._queries.read(
            lambda c: message_list.find_page(c, wanted, account=account, before=before, limit=limit)
        )

    async def summaries(
        self, queue_ids: Sequence[str], *, account: str | None
    ) -> Sequence[MessageSummary]:
        """SpoolHistory.summaries."""
        return await self._queries.read(
            lambda c: message_list.summaries(c, queue_ids, account=account)
        )

    async def accepted_submissions(self, submission_ids: Sequence[str]) -> Sequence[str]:
        """SpoolHistory.accepted_submissions."""
        return await self._queries.read(
            lambda c: message_list.accepted_submissions(c, submission_ids)
        )

    async def count_states(
        self, *, account: str | None, limit: int
    ) -> tuple[int, Mapping[str, int]]:
        """SpoolHistory.count_states."""
        return await self._queries.read(
            lambda c: message_list.count_states(c, account=account, limit=limit)
        )

    async def recent_addresses(self, *, account: str | None, limit: int) -> Sequence[str]:
        """SpoolHistory.recent_addresses."""
        return await self._queries.read(
            lambda c: message_list.recent_addresses(c, account=account, limit=limit)
        )

    async def events_after(self, after: int, until: int, *, limit: int) -> SpoolEvents:
        """SpoolHistory.events_after."""
        at_once = not self._captured.is_delivered
        return await self._queries.read(
            lambda c: recorded_events.events_after(
                c, after, until, limit=limit, captures_at_once=at_once
            )
        )

    async def last_event(self) -> int:
        """SpoolHistory.last_event."""
        return await self._queries.read(recorded_events.last_event)

    def load(self) -> SpoolLoad:
        """Return the load, without a disk access."""
        return SpoolLoad(
            entries=self._entries,
            backlog=self._writer.waiting / WAITING_MAX,
            commit_s=self._writer.commit_timer.commit_s(),
            is_failing=self._writer.is_failing,
            kept_bytes=self.reserve_file.missing_bytes,
        )

    def health(self) -> str:
        """SpoolEngine.health."""
        return self.damage.text

    def disk(self) -> Disk:
        """SpoolEngine.disk."""
        self.reserve_file.make()
        return disk_of(self.reserve_file.directory)

    async def counts(self) -> QueueCounts:
        """SpoolEngine.counts."""
        counts = await self.maintenance.counts()
        self._entries = sum(counts.entries.values())
        return counts

    async def stats(self) -> dict[str, Any]:
        """The JSON of `queue stats`."""
        return await self.maintenance.stats()

    async def _store_large(self, messages: Iterable[NewMessage]) -> _Files:
        """Write the contents that need a file; return one for each, None where inline.

        If one cannot be written, all are removed.
        """
        files: list[Sequence[StoredFile | None]] = []
        try:
            for message in messages:
                used = {entry.content for entry in message.entries}
                large = {index for index in used if is_in_file(message.contents[index])}
                if large:
                    write = partial(
                        self._files.write, message.facts.id, message.contents, only=large
                    )
                    files.append(await asyncio.to_thread(write))
                else:
                    files.append((None,) * len(message.contents))
        except SpoolError:
            await self._remove(files)
            raise
        return files

    async def _store_reports(self, reports: Sequence[NewMessage]) -> _Files:
        """Store them like _store_large(); release the reserve file if the disk is full."""
        if not reports:
            return ()
        try:
            return await self._store_large(reports)
        except SpoolFullError:
            if not await asyncio.to_thread(self.reserve_file.release):
                raise
            return await self._store_large(reports)

    async def _remove(self, files: _Files) -> None:
        """Remove files that no transaction named."""
        names = [file.name for some in files for file in some if file]
        if names:
            await asyncio.to_thread(self._files.remove, names)


def _checked(name: str, data: Any, *, size: int, crc32: int | None) -> bytes:
    """Return an inline content. Raises SpoolError if it is damaged."""
    if not isinstance(data, bytes) or len(data) != size:
        raise SpoolError(f"content {name} is damaged: expected {size} bytes")
    verify_checksum(name, checksum_of((data,)), expected=crc32)
    return data
