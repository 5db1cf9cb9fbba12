"""The embedded spool: one SQLite file, one writer thread, readers beside it.

On the path: ingress accepts into it, delivery claims from it and settles, web and the command line
    read.
Holds: spool.types.Spool's promises; a coroutine returns after the fsync that covers its change.
Fails: SpoolFullError, SpoolUnavailableError, SpoolError.
Standards: docs/design.md 4.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw

from relay.clock import Clock
from relay.journal.crash import CrashPoints
from relay.journal.metrics import Metrics
from relay.message.content import Content, LargeContent, in_sight
from relay.message.nexthop import NextHop
from relay.spool.sqlite import claiming, history, queries, recovery, transactions
from relay.spool.sqlite.arriving import ArrivingFile
from relay.spool.sqlite.batch import Batch
from relay.spool.sqlite.contents import ContentFiles, InFile, is_in_file
from relay.spool.sqlite.database import open_database, translated
from relay.spool.sqlite.room import check_room
from relay.spool.sqlite.writer import Writer
from relay.spool.types import (
    Accepted,
    Claim,
    NewMessage,
    QueueCounts,
    Selector,
    Settlement,
    SpoolError,
    SpoolFullError,
)

T = TypeVar("T")
_RETRY_MAX = 100_000
_RETRY_AT_ONCE = 500


class SqliteSpool:
    """A Spool. Open it only while holding the owner's lock:
    it releases what a dead owner had claimed.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        crash: CrashPoints,
        metrics: Metrics,
        submission_keep_s: float,
    ) -> None:
        """`submission_keep_s` is how long a submission key is remembered after its first use."""
        self._path = path
        self._clock = clock
        self._metrics = metrics
        self._submission_keep_us = int(submission_keep_s * 1_000_000)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._files = ContentFiles(path.with_name(path.name + "-content"), crash=crash)
        self._connection = open_database(path)
        self._writer = Writer(self._connection, clock=clock, crash=crash, metrics=metrics)
        self._delivery = _Reader(path)  # what delivery waits for: never behind a long query
        self._queries = _Reader(path)

    async def start(self) -> int:
        """Release a dead owner's claims and sweep orphaned files;
        return how many claims there were.
        """
        self._writer.start()
        self._files.prepare()
        now_us = self._clock.time_us()
        released = await self._writer.submit(lambda b: recovery.release_all(b.cursor, now_us))
        await self._queries.run(self._sweep)
        return released

    async def stop(self) -> None:
        """Finish what waits and close the file; also what was never started."""
        await self._writer.stop()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close a spool whose writer does not run."""
        self._queries.close()
        self._delivery.close()
        self._connection.close()

    async def accept(
        self,
        message: NewMessage,
        *,
        reports: Sequence[NewMessage] = (),
        submission_key: str = "",
        claim: bool = True,
    ) -> Accepted:
        """Spool.accept."""
        messages = (message, *reports)
        files = await self._store_large(messages)
        expires_us = self._clock.time_us() + self._submission_keep_us
        inline_bytes = sum(
            len(in_sight(content))
            for content, file in zip(message.contents, files[0], strict=True)
            if not file or isinstance(content, LargeContent)
        )

        def write(batch: Batch) -> Accepted:
            accepted = transactions.accept(
                batch, messages, files, submission_key=submission_key,
                submission_expires_us=expires_us, claim=claim,
            )  # fmt: skip
            if not accepted.repeated:  # what is here already needs no room
                check_room(self._path.parent, inline_bytes)
            return accepted

        try:
            accepted = await self._writer.submit(write, accepts=True)
        except Exception:
            await self._remove(files)
            raise
        if accepted.repeated:
            await self._remove(files)
        else:
            for one in messages:
                self._metrics.accepted.labels(via=one.source).inc()
        return accepted

    async def settle(
        self, settlement: Settlement, *, claim_reports: bool = True
    ) -> tuple[bool, tuple[Claim, ...]]:
        """Spool.settle."""
        files = await self._store_large(settlement.reports) if settlement.reports else ()
        try:
            held, claims, unneeded = await self._writer.submit(
                lambda batch: transactions.settle(
                    batch, settlement, files, claim_reports=claim_reports
                )
            )
        except Exception:
            await self._remove(files)
            raise
        if unneeded:
            self._delivery.later(partial(self._files.remove, (unneeded,)))
        if not held:
            await self._remove(files)
        for report in settlement.reports if held else ():
            self._metrics.accepted.labels(via=report.source).inc()
        return held, claims

    async def claim_due(
        self, now_us: int, limit: int, *, passing_over: Collection[NextHop] = ()
    ) -> tuple[Claim, ...]:
        """Spool.claim_due."""
        names = [str(next_hop) for next_hop in passing_over]
        return await self._writer.submit(
            lambda b: claiming.claim_due(b.cursor, now_us, limit, passing_over=names)
        )

    async def next_due_us(self, *, passing_over: Collection[NextHop] = ()) -> int | None:
        """Spool.next_due_us."""
        names = [str(next_hop) for next_hop in passing_over]
        return await self._delivery.run(lambda c: queries.next_due_us(c, passing_over=names))

    async def release(self, claims: Sequence[Claim]) -> None:
        """Spool.release."""
        now_us = self._clock.time_us()
        await self._writer.submit(lambda b: claiming.release(b.cursor, claims, now_us))

    def arrival(self) -> ArrivingFile:
        """Spool.arrival."""
        return self._files.arrival()

    async def read_content(self, content_id: int) -> Content:
        """Spool.read_content."""
        row = await self._delivery.run(
            lambda c: c.execute(
                "SELECT size, data, file, header, eight_bit FROM content WHERE id = ?",
                (content_id,),
            ).fetchone()
        )
        if row is None:
            raise SpoolError(f"content {content_id} is not in the spool")
        size, data, file, header, eight_bit = row
        if file:
            in_file = InFile(file, size, header, bool(eight_bit))
            return await self._delivery.run(lambda _: self._files.read(in_file))
        if not isinstance(data, bytes) or len(data) != size:
            raise SpoolError(f"content {content_id} is damaged: expected {size} bytes")
        return data

    async def queue_list(self, selector: Selector, *, limit: int) -> list[dict[str, Any]]:
        """Spool.queue_list."""
        now_us = self._clock.time_us()
        return await self._queries.run(
            lambda c: queries.queue_list(c, selector, limit=limit, now_us=now_us)
        )

    async def retry(
        self, selector: Selector, *, now_us: int, who: str, dry_run: bool = False
    ) -> list[dict[str, Any]]:
        """Spool.retry."""
        listed = [
            one
            for one in await self.queue_list(selector, limit=_RETRY_MAX)
            if one["state"] in ("queued", "deferred")
        ]
        if dry_run:
            return listed
        done: set[tuple[str, int]] = set()
        for start in range(0, len(listed), _RETRY_AT_ONCE):  # mail goes on between them
            some = listed[start : start + _RETRY_AT_ONCE]
            keys = [(one["id"], one["entry"]) for one in some]
            make_due = partial(claiming.make_due, keys=keys, now_us=now_us, who=who)
            done |= await self._writer.submit(make_due)
        return [one for one in listed if (one["id"], one["entry"]) in done]

    async def journey(self, queue_id: str) -> dict[str, Any] | None:
        """Spool.journey."""
        return await self._queries.run(lambda c: queries.journey(c, queue_id))

    async def find_queue_ids(self, key: str, *, account: str | None, limit: int) -> list[str]:
        """Spool.find_queue_ids."""
        return await self._queries.run(
            lambda c: queries.find_queue_ids(c, key, account=account, limit=limit)
        )

    async def has_room(self) -> bool:
        """Whether new mail is taken on: the disk is not down to its reserve."""
        try:
            await asyncio.to_thread(check_room, self._path.parent, 0)
        except SpoolFullError:
            return False
        return True

    async def counts(self) -> QueueCounts:
        """Spool.counts."""
        return await self._queries.run(queries.counts)

    async def prune(self, before_us: int) -> int:
        """Remove some finished messages received before `before_us`, and some submission keys
        whose time is over; how many of both, 0 when none is left.
        """
        now_us = self._clock.time_us()
        return await self._writer.submit(lambda b: history.prune(b.cursor, before_us, now_us))

    async def _store_large(self, messages: Iterable[NewMessage]) -> Sequence[Sequence[str]]:
        """Write those contents that an entry needs into files; a name for each, "" where inline.

        Nothing is left of them when one cannot be written.
        """
        names: list[Sequence[str]] = []
        try:
            for message in messages:
                used = {entry.content for entry in message.entries}
                large = {index for index in used if is_in_file(message.contents[index])}
                if large:
                    write = partial(self._files.write, message.id, message.contents, only=large)
                    names.append(await asyncio.to_thread(write))
                else:
                    names.append(("",) * len(message.contents))
        except SpoolError:
            await self._remove(names)
            raise
        return names

    async def _remove(self, files: Iterable[Sequence[str]]) -> None:
        """Remove the files that no transaction named, before anybody writes them once more."""
        names = [name for names in files for name in names if name]
        if names:
            await asyncio.to_thread(self._files.remove, names)

    def _sweep(self, cursor: apsw.Cursor) -> None:
        for names in self._files.listed():
            self._files.remove(recovery.orphans(cursor, names))


class _Reader:
    """A connection for reading with the one thread that uses it."""

    def __init__(self, path: Path) -> None:
        self._connection = open_database(path, read_only=True)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="spool-reader")

    async def run(self, query: Callable[[apsw.Cursor], T]) -> T:
        """Run `query` in the reader's thread."""

        def ask() -> T:
            with translated():
                return query(self._connection.cursor())

        return await asyncio.get_running_loop().run_in_executor(self._executor, ask)

    def later(self, task: Callable[[], None]) -> None:
        """Run `task` in the reader's thread some time."""
        self._executor.submit(task)

    def close(self) -> None:
        """Break off what is being read, then close."""
        self._connection.interrupt()
        self._executor.shutdown()
        self._connection.close()
