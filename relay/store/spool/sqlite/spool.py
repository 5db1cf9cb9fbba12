"""The Spool on SQLite: one database file, one writer thread, several readers.

A coroutine returns after the fsync that covers its change. See docs/design.md 4.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
from msgspec.structs import replace

from relay.base.blocks import BodyDisk
from relay.base.clock import Clock
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.files import disk_of
from relay.base.message.content import Content, LargeContent, memory_part
from relay.base.observe.logs import get_logger, inherit
from relay.base.observe.metrics import Metrics
from relay.base.pressure import Disk
from relay.base.settings.tree import Settings
from relay.store.spool import types
from relay.store.spool.engine import SUBMISSION_KEEP_S, SpoolEngine
from relay.store.spool.shared.accepted import CapturedMail, NewMail, NotAccepted
from relay.store.spool.shared.columns import inline_content
from relay.store.spool.shared.receipts import count_receipts
from relay.store.spool.shared.results import NewResult, Recorded
from relay.store.spool.shared.tables import StoredBodies, StoredContents, StoredReports, Tables
from relay.store.spool.sqlite import transactions, write_ahead_log
from relay.store.spool.sqlite.content_files import (
    ContentFiles,
    ContentRow,
    IncomingFile,
    is_in_file,
)
from relay.store.spool.sqlite.damage import Damage
from relay.store.spool.sqlite.database import Reader, SqliteTables, open_database, read_anchor
from relay.store.spool.sqlite.disk_space import RESERVE_FILE, RESERVE_FILE_PARTS, ReserveFile
from relay.store.spool.sqlite.maintenance import Maintenance
from relay.store.spool.sqlite.spool_files import translate_sqlite_errors
from relay.store.spool.sqlite.transactions import (
    find_due,
    next_due_us,
    note_removed_events,
    read_claims,
    release_claims,
    take_claims,
)
from relay.store.spool.sqlite.writer import Batch, Writer

T = TypeVar("T")
_CONTENT = "c.size, c.data, c.file, c.header, c.eight_bit, c.crc32"
_CAPTURED = CapturedMail(14 * 86400 * 1_000_000)  # the default of spool.keep
_log = get_logger("spool")


def open_engine(
    settings: Settings,
    *,
    clock: Clock,
    crash: CrashPoints,
    metrics: Metrics,
    delivers_captured: bool = False,
) -> "SqliteSpool":
    """See relay.store.spool.open()."""
    path = settings.spool_file
    return SqliteSpool(
        path,
        clock=clock,
        crash=crash,
        metrics=metrics,
        captured=CapturedMail(int(settings.spool.keep * 1_000_000), delivers_captured),
        reserve_file=ReserveFile(
            path.with_name(RESERVE_FILE),
            size_bytes=settings.pressure.disk_free // RESERVE_FILE_PARTS,
            reserve_bytes=settings.pressure.disk_free,
        ),
    )


class SqliteSpool(SpoolEngine):
    """The engine of one process. Open it only with the owner lock: the start releases claims."""

    maintenance: Maintenance
    _writer: Writer
    contents_sql = (  # one statement, because the id of a content that is removed may be used again
        f"SELECT e.message_id, {_CONTENT} FROM entry e JOIN content c ON c.id = e.content_id"
        " WHERE {} AND e.state <> 'final'"
    )

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        crash: CrashPoints,
        metrics: Metrics,
        submission_keep_s: float = SUBMISSION_KEEP_S,
        captured: CapturedMail = _CAPTURED,
        reserve_file: ReserveFile | None = None,
        inline: bool = False,
    ) -> None:
        """See SpoolEngine.

        `reserve_file` is on the disk of `path`; without it there is none. With `inline` there are
        no threads: the event loop runs everything.
        """
        super().__init__(
            clock=clock, metrics=metrics, submission_keep_s=submission_keep_s, captured=captured
        )
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.reserve_file = reserve_file or ReserveFile(path.with_name(RESERVE_FILE))
        self._connection = self._open()
        with translate_sqlite_errors(path):
            clock.resume(read_anchor(self._connection))
        self.damage = Damage(path, metrics, clock)
        crash.reached(CrashPoint.SPOOL_OPENED)
        number = write_ahead_log.commits_of(self._connection) or 0
        self._last_commit = write_ahead_log.LastCommit(path, number, crash=crash)
        self._last_commit.begin()
        self._crash = crash
        self._writer = Writer(
            write_ahead_log.WriteAheadLog(self._connection, self._last_commit),
            clock=clock,
            crash=crash,
            metrics=metrics,
            inline=inline,
            damage=self.damage,
            reopen=self._reopen,
            reserve_file=self.reserve_file,
        )
        commit_s, free = self._writer.commit_s, self.reserve_file.check_free_space
        disk = BodyDisk(clock, commit_s, free)
        self._files = ContentFiles(path, disk, crash=crash, started_us=clock.time_us())
        reader = partial(Reader, path, on_damage=self._found_damage)
        self._delivery = reader()  # delivery never waits for a long query
        self._queries = reader()
        self._counting = reader()
        # Reads whole large bodies; nothing else waits in this thread.
        threads = partial(ThreadPoolExecutor, 1, initializer=inherit())
        self._checking = threads(thread_name_prefix="spool-check")
        self.maintenance = Maintenance(self, clock, self._writer, self._files)
        self.development = self.maintenance
        with translate_sqlite_errors(path):
            self.receipts.count = count_receipts(SqliteTables(self._connection.cursor()))

    def _open(self) -> apsw.Connection:
        try:
            write_ahead_log.rewrite_log(self._path)
            return open_database(self._path)
        except types.SpoolError as error:  # the start needs room, to deliver the mail in the queue
            if not self.reserve_file.release_for(error):
                raise
            write_ahead_log.rewrite_log(self._path)
            return open_database(self._path)

    def _found_damage(self, error: types.SpoolDamagedError, repeat: Callable[[], object]) -> None:
        self.damage.found(error, repeat)
        self._writer.wake()

    def _reopen(self) -> write_ahead_log.WriteAheadLog:
        """Close all connections and open them again, so that no page that they read stays in
        memory.

        If the file lacks a commit that was answered, none is opened: results must not be recorded
        in such a file, and its mail must not be delivered. Raises SpoolError, OSError.
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
        return write_ahead_log.WriteAheadLog(self._connection, self._last_commit)

    async def start(self, *, may_wait: bool = False) -> int:  # noqa: ARG002 - a file is there
        """SpoolEngine.start."""
        self._writer.start()
        await asyncio.to_thread(self._files.prepare)
        return await self.maintenance.take_over()

    async def stop(self) -> None:
        """Finish waiting writes and close the file; also for a spool that was not started."""
        await self._writer.stop()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close a spool whose writer does not run."""
        for reader in (self._counting, self._queries, self._delivery):
            reader.close()
        self._checking.shutdown(cancel_futures=True)
        if not self._writer.log.is_open:  # the next start needs the record: commits may be lost
            return
        try:  # the close of the last connection checkpoints the log, and removes it
            self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
            self._connection.close()
        except apsw.Error as error:  # the log still has everything
            _log.warning("spool closed with its log", error=str(error))
        self._crash.reached(CrashPoint.SPOOL_CLOSED)
        self._last_commit.forget()
        self._crash.reached(CrashPoint.SPOOL_COMMIT_FORGOTTEN)

    async def _accept(self, new: NewMail) -> types.Accepted | NotAccepted:
        inline_bytes = sum(
            len(memory_part(content))
            for index, content in enumerate(new.messages[0].contents)
            if index not in new.stored[0] or isinstance(content, LargeContent)
        )

        def write(batch: Batch) -> types.Accepted | NotAccepted:
            accepted = transactions.accept(batch, new)
            # a repetition needs no room
            if not isinstance(accepted, NotAccepted) and not accepted.repeated:
                batch.new_bytes.append(inline_bytes)
            return accepted

        try:
            return await self._writer.submit(write, accepts=True)
        except types.SpoolDamagedError as error:
            raise types.SpoolUnavailableError(str(error)) from error

    async def _record(self, new: NewResult) -> Recorded | None:
        recorded = await self._writer.submit(partial(transactions.record, new=new))
        if recorded is not None and recorded.unneeded:
            self._delivery.later(partial(self._files.remove, (recorded.unneeded,)))
        return recorded

    def may_finish(self, claim: types.Claim) -> bool:  # noqa: ARG002 - each claim
        """SpoolEngine.may_finish: no other process has the file."""
        return True

    async def claim_due(self, now_us: int, limit: int, look: types.DueQuery) -> types.DueBatch:
        """SpoolEngine.claim_due."""
        find = partial(find_due, look=look, now_us=now_us, limit=limit)
        seen, damaged = await self.ask(find)
        if not seen.claims and not damaged:
            return seen
        at_us = self._clock.time_us()
        claims = await self._writer.submit(
            lambda batch: take_claims(batch, seen.claims, damaged, now_us=now_us, at_us=at_us)
        )
        return replace(seen, claims=claims)

    async def next_due_us(self, after_us: int = 0) -> int | None:
        """SpoolEngine.next_due_us."""
        return await self.ask(lambda tables: next_due_us(tables, after_us))

    async def release(self, claims: Sequence[types.Claim]) -> None:
        """SpoolEngine.release."""
        await self._writer.submit(lambda batch: release_claims(batch, claims))

    def incoming_body(self) -> IncomingFile:
        """SpoolEngine.incoming_body."""
        return self._files.incoming_body()

    async def read_content(self, content_id: int, *, check: bool = True) -> Content:
        """SpoolEngine.read_content."""
        sql = f"SELECT {_CONTENT} FROM content c WHERE id = ?"
        row = await self.ask(lambda tables: tables.fetch_one(sql, (content_id,)))
        if row is None:
            raise types.SpoolError(f"content {content_id} is not in the spool")
        size, data, file, header, flags, crc32 = row
        if file:
            in_file = ContentRow(file, size, header, flags, crc32)
            read = partial(self._files.read, in_file, check=check)
            if check and not in_file.is_small:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._checking, read)
            return await self.ask(lambda _: read())
        # Inline contents are small: no thread is needed.
        return inline_content(str(content_id), data, size=size, crc32=crc32 if check else None)

    def content_of(self, tables: Tables, name: str, row: Sequence[Any]) -> Content:  # noqa: ARG002
        """SpoolEngine.content_of."""
        size, data, file, header, flags, crc32 = row
        if file:
            return self._files.opened(ContentRow(file, size, header, flags, crc32))
        return inline_content(name, data, size=size, crc32=crc32)

    def load(self) -> types.SpoolLoad:
        """SpoolEngine.load."""
        failing, kept_bytes = self._writer.log.is_failing, self.reserve_file.missing_bytes
        return replace(super().load(), is_failing=failing, kept_bytes=kept_bytes)

    def health(self) -> str:
        """SpoolEngine.health."""
        return self.damage.text

    def disk(self) -> Disk:
        """SpoolEngine.disk."""
        self.reserve_file.make()
        return disk_of(self.reserve_file.directory)

    async def _store_new(self, messages: Sequence[types.NewMessage]) -> StoredContents:
        self.damage.check()
        return await self._store_large(messages)

    async def _store_large(self, messages: Iterable[types.NewMessage]) -> StoredContents:
        """Write the contents that need a file. If one cannot be written, all are removed."""
        files: list[StoredBodies] = []
        try:
            for message in messages:
                used = {entry.content for entry in message.entries}
                large = {index for index in used if is_in_file(message.contents[index])}
                stored: StoredBodies = {}
                if large:
                    write = partial(self._files.write, message.facts.id, message.contents)
                    stored = await asyncio.to_thread(write, only=large)
                files.append(stored)
        except types.SpoolError:
            await self.discard(files)
            raise
        return files

    async def store_contents(self, reports: Sequence[types.NewMessage]) -> StoredContents:
        """QueueEngine.store_contents, which releases the reserve file if the disk is full."""
        if not reports:
            return ()
        try:
            return await self._store_large(reports)
        except types.SpoolFullError:
            if not await asyncio.to_thread(self.reserve_file.release):
                raise
            return await self._store_large(reports)

    async def discard(self, stored: StoredContents) -> None:
        """QueueEngine.discard."""
        names = [file.name for bodies in stored for file in bodies.values()]
        if names:
            await asyncio.to_thread(self._files.remove, names)

    def committed(self, stored: StoredContents) -> None:
        """QueueEngine.committed."""
        self._files.committed(stored)

    async def read(self, query: Callable[[SqliteTables], T]) -> T:
        """QueueEngine.read."""
        return await self._queries.read(query)

    async def count(self, query: Callable[[SqliteTables], T]) -> T:
        """QueueEngine.count."""
        return await self._counting.read(query)

    async def change(self, operation: Callable[[Batch], T]) -> T:
        """QueueEngine.change."""
        return await self._writer.submit(operation)

    async def note_restored(self) -> None:
        """SpoolEngine.note_restored."""
        now_us = self._clock.time_us()

        def note(batch: Batch) -> None:
            note_removed_events(batch, max(now_us, self._greatest_event(batch)))

        await self.change(note)

    async def ask(self, query: Callable[[SqliteTables], T]) -> T:
        """SpoolEngine.ask."""
        return await self._delivery.read(query)

    def read_claims(
        self, tables: Any, keys: Collection[types.Key]
    ) -> tuple[Sequence[types.Claim], Mapping[types.Key, str]]:
        """QueueEngine.read_claims."""
        return read_claims(tables, keys)

    def add_reports(self, transaction: Any, reports: StoredReports) -> None:
        """QueueEngine.add_reports."""
        for report, files in zip(reports.plan.messages, reports.stored, strict=True):
            transactions.add_message(
                transaction, report, files, claim=False, captured=self._captured
            )

    def entries_ended(
        self, transaction: Any, ended: Mapping[types.Key, types.ContentKey]
    ) -> Sequence[str]:
        """QueueEngine.entries_ended: return the files of contents that were removed. The entries
        stay, as history.
        """
        drop = partial(transactions.drop_content, transaction)
        dropped = [drop(key[0], content) for key, content in ended.items()]
        return [file for file in dropped if file]

    def remove(self, left: Sequence[str]) -> None:
        """QueueEngine.remove."""
        self._queries.later(partial(self._files.remove, left))
