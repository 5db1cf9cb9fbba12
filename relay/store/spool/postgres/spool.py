"""The engine on PostgreSQL: nodes share one queue.

A coroutine returns after the server's commit, synchronous_commit = on. See docs/design.md 4.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from relay import __version__
from relay.base.clock import Clock
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.files import replace_file
from relay.base.message.content import Content, memory_part
from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.observe.metrics import Metrics
from relay.base.pressure import UNKNOWN_DISK, Disk
from relay.base.settings.postgres_url import ServerOptions, parse_postgres_url
from relay.base.settings.tree import Settings
from relay.store.journeys.document import Journey
from relay.store.spool import types
from relay.store.spool.engine import SUBMISSION_KEEP_S, News, SpoolEngine
from relay.store.spool.postgres import transactions
from relay.store.spool.postgres.bodies import BodyStore, IncomingParts
from relay.store.spool.postgres.claims import claim_due, next_due_us, read_claims, release_claims
from relay.store.spool.postgres.keeper import NodeKeeper
from relay.store.spool.postgres.maintenance import (
    PostgresMaintenance,
    note_removed_events,
    with_store_without_node,
)
from relay.store.spool.postgres.nodes import NodeIdentity, place_of
from relay.store.spool.postgres.server import DatabaseHosts, server_faults
from relay.store.spool.postgres.tables import ConnectionTables, ReadConnection
from relay.store.spool.postgres.transactions import KnownKeyError, StaleClaimError, WriteTransaction
from relay.store.spool.postgres.writer import WriteConnection
from relay.store.spool.queue_commands import ShownTimes
from relay.store.spool.shared import event_log, suppression
from relay.store.spool.shared.accepted import CapturedMail, NewMail, NotAccepted
from relay.store.spool.shared.columns import NO_EVENTS
from relay.store.spool.shared.receipts import count_receipts
from relay.store.spool.shared.results import NewResult, Recorded
from relay.store.spool.shared.tables import StoredBodies, StoredContents, StoredReports, Tables

_HOME_FILE = "spool-owner"
_BODIES = "bodies"
_AGAIN_S = 1.0
_OTHER_ROOT = "SELECT 1 FROM mail_root WHERE store <> ? AND id <> ''"
_ENDED = "WHERE message_id = ? AND number = ? AND state = 'final'"
_DROP = (
    "DELETE FROM content c WHERE message_id = ? AND number = ? AND NOT EXISTS (SELECT FROM entry e"
    " WHERE e.message_id = c.message_id AND e.content_id = c.number) RETURNING body"
)
_STORE = "SELECT coalesce(max(store), 0) FROM entry WHERE message_id = ?"
_ELSEWHERE = (
    "SELECT e.message_id, e.number, coalesce(n.name, 'a node that is gone') FROM entry e"
    " LEFT JOIN node n ON n.incarnation = e.owner"
    " WHERE e.message_id = ? AND e.number = ? AND e.claimed = 1 AND e.owner <> ?"
)
# A command may have given live entries another next hop.
_NEXT_HOPS = (
    "UPDATE recipient r SET next_hop = e.next_hop FROM entry e WHERE e.message_id = r.message_id"
    " AND e.number = r.entry AND r.message_id = ? AND r.next_hop <> e.next_hop"
)
T = TypeVar("T")
_LAST = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM event_number"
_OWN_ID = "SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint)"
_OLDEST_ID = "SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)"
_LOOKS = 30
_PAUSE_S = 0.001  # after the first look; each next one is a fifth longer
_log = get_logger("spool")


def open_engine(
    settings: Settings,
    *,
    clock: Clock,
    crash: CrashPoints,
    metrics: Metrics,
    delivers_captured: bool = False,
    holds_store: bool = True,
    alone: bool = False,
) -> "PostgresSpool":
    """See relay.store.spool.open(). Nothing is connected."""
    directory = settings.state_dir / _BODIES
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = NodeIdentity(
        settings.node,
        _home(settings.state_dir / _HOME_FILE),
        place_of(settings.state_dir, clock.anchor().boot_id),
        __version__,
        settings.mailboxes.store,
        holds_store,
        alone,
    )
    return PostgresSpool(
        parse_postgres_url(settings.spool.url),
        identity,
        directory,
        clock=clock,
        crash=crash,
        metrics=metrics,
        captured=CapturedMail(int(settings.spool.keep * 1_000_000), delivers_captured),
    )


class PostgresSpool(SpoolEngine):
    """The engine of a node."""

    maintenance: PostgresMaintenance
    _writer: WriteConnection
    contents_sql = (
        "SELECT e.message_id, c.size, c.data, c.header, c.body, c.eight_bit, c.crc32 FROM entry e"
        " JOIN content c ON c.message_id = e.message_id AND c.number = e.content_id WHERE {}"
    )

    def __init__(
        self,
        options: ServerOptions,
        identity: NodeIdentity,
        directory: Path,
        *,
        clock: Clock,
        crash: CrashPoints,
        metrics: Metrics,
        submission_keep_s: float = SUBMISSION_KEEP_S,
        captured: CapturedMail,
    ) -> None:
        """See SpoolEngine. `directory` is for bodies that are being received or sent."""
        super().__init__(
            clock=clock,
            metrics=metrics,
            submission_keep_s=submission_keep_s,
            captured=captured,
            store=lambda: self._writer.stores.own,
        )
        name = identity.name.replace("_", r"\_")  # any character, in LIKE
        self.details_of_here = f'%"node":"{name}"%'
        name = f"{options.application_name} {identity.name[:30]}"
        self._hosts = hosts = DatabaseHosts(replace(options, application_name=name))
        self._crash = crash
        self._fault = "the spool was not started yet"
        self._bodies = BodyStore(
            hosts,
            directory,
            incarnation=lambda: self._writer.own.incarnation if self._writer.own else 0,
        )
        self._writer = WriteConnection(
            hosts,
            identity=identity,
            clock=clock,
            crash=crash,
            metrics=metrics,
            on_lost_ownership=self._lost,
            on_dropped=self._bodies.remove_later,
        )
        self._connecting: asyncio.Task[None] | None = None
        self._queries = ReadConnection(hosts, purpose="queries")
        self._counting = ReadConnection(hosts, purpose="counting")
        self.maintenance = PostgresMaintenance(self, clock, self._writer, self._bodies)
        self.keeper = NodeKeeper(
            self._writer,
            hosts,
            metrics=metrics,
            take_over=self._take_over,
            on_news=self._hear,
            agreed=lambda: self.agreed(),  # noqa: PLW0108 - it is set later
            on_lost=self._lost,
            maintenance=self.maintenance,
        )
        self._final_to = 0  # all events up to this number are visible
        # the next such number, and the transaction id before which all transactions must end first
        self._final_next: tuple[int, int] | None = None

    def _lost(self, error: types.SpoolError) -> None:
        self._fault = str(error)
        self.on_lost(error)

    async def start(self, *, may_wait: bool = False) -> int:
        """SpoolEngine.start."""
        try:
            return await self._start()
        except types.SpoolUnavailableError as error:
            if not may_wait:
                raise
            self._fault = str(error)
            _log.error("the database of the spool cannot be used", error=self._fault)
            self._connecting = asyncio.create_task(self._start_later(), name="spool-start")
            return 0

    async def _start(self) -> int:
        await self._writer.start()
        faults = await self._queries.read(
            lambda tables: tables.wait(server_faults(tables.connection))
        )
        for fault in faults:
            _log.warning("the database of the spool is not safe for mail", error=fault)
        if self.suppression.settings is not None:  # a role that may create no table has none
            await self._queries.read(lambda tables: tables.fetch_one(suppression.COUNT))
        self._crash.reached(CrashPoint.SPOOL_OPENED)
        taken_over = await self.maintenance.take_over()
        self.keeper.start()
        self.receipts.count = await self._queries.read(count_receipts)
        self._fault = ""
        return taken_over

    def is_of_other_store(self, domain: str) -> bool:
        """SpoolEngine.is_of_other_store; True until the other domains were read."""
        others = self._writer.other_domains
        return others is None or domain in others

    def _hear(self, news: News) -> None:
        self.maintenance.heard += 1
        if News.HOLDS in news:
            self._writer.has_hold_rules = True
        self.on_news(news)

    async def _take_over(self) -> int:
        taken = await self.maintenance.take_over()
        self._metrics.takeovers.inc(taken)
        self.on_news(News.RECORDED | News.RELEASED)
        return taken

    async def _start_later(self) -> None:
        fault = RepeatedError()
        while self._fault:
            await self._clock.sleep(_AGAIN_S)  # sleeps: a new try each second
            try:
                await self._start()
            except types.SpoolUnavailableError as error:
                self._fault = str(error)
                fault.log(_log.error, "the database of the spool cannot be used", error)
            except types.SpoolError as error:
                self._lost(error)
                return
        _log.info("the database of the spool can be used")

    async def stop(self) -> None:
        """SpoolEngine.stop."""
        if self._connecting is not None:
            self._connecting.cancel()
            with suppress(asyncio.CancelledError):
                await self._connecting
        await self.keeper.stop()
        await self._writer.stop()
        for part in (self._queries, self._counting, self._bodies):
            await part.close()

    def close(self) -> None:
        """SpoolEngine.close: nothing was connected."""

    def _root(self, tables: Tables, store: str) -> tuple[str, bool]:
        root_id, was_used = super()._root(tables, store)
        if root_id or tables.fetch_one(_OTHER_ROOT, (store,)) is None:
            return root_id, was_used
        return "", False  # other mail roots were used

    async def _accept(self, new: NewMail) -> types.Accepted | NotAccepted:
        reads = transactions.reads_first(new) or any(new.stored)
        try:
            return await self._writer.submit(
                partial(transactions.accept, new=new),
                accepts=True,
                size=_size_of(new.messages),
                alone=reads,
            )
        except KnownKeyError:
            return await self._known(new.submission_key)
        except asyncio.CancelledError:
            await self.discard(new.stored)
            raise

    async def _known(self, submission_key: str) -> types.Accepted:
        queue_id = await self.accepted_as(submission_key)
        if not queue_id:
            raise types.SpoolUnavailableError("the submission key is being removed")
        return types.Accepted(queue_id, repeated=True)

    async def _record(self, new: NewResult) -> Recorded | None:
        self._check_usable()
        reports = new.claim_result.reports
        is_alone = transactions.runs_statements(new.claim_result, new.heard) or any(new.stored)
        is_alone = is_alone or new.order is not None
        record = partial(transactions.record, new=new)
        try:  # with is_order: another node may note an order on the same entry
            return await self._writer.submit(
                record, alone=is_alone, is_order=is_alone, size=_size_of(reports)
            )
        except StaleClaimError:
            return None
        except asyncio.CancelledError:
            await self.discard(new.stored)
            raise

    def _tell(self, news: News) -> None:
        self.keeper.tell(news)

    def may_finish(self, claim: types.Claim) -> bool:
        """SpoolEngine.may_finish."""
        return claim.owner == self._writer.incarnation and self._writer.may_finish()

    async def claim_due(self, now_us: int, limit: int, look: types.DueQuery) -> types.DueBatch:
        """SpoolEngine.claim_due."""
        at_us = self._clock.time_us()
        return await self._writer.submit(
            partial(claim_due, look=look, now_us=now_us, at_us=at_us, limit=limit),
            leased=True,
            alone=True,
        )

    async def next_due_us(self, after_us: int = 0) -> int | None:
        """SpoolEngine.next_due_us."""
        stores = self._writer.stores
        return await self.ask(lambda tables: next_due_us(tables, after_us, stores))

    async def release(self, claims: Sequence[types.Claim]) -> None:
        """SpoolEngine.release."""
        await self.change(lambda transaction: release_claims(transaction, claims))
        self._tell(News.RELEASED)

    def incoming_body(self) -> IncomingParts:
        """SpoolEngine.incoming_body."""
        return self._bodies.incoming()

    async def read_content(
        self,
        content_id: types.ContentKey,
        *,
        check: bool = True,  # noqa: ARG002 - it always is
    ) -> Content:
        """SpoolEngine.read_content."""
        return await self._bodies.read(*content_id)

    def content_of(self, tables: Tables, name: str, row: Sequence[Any]) -> Content:
        """SpoolEngine.content_of."""
        return self._bodies.content_of(tables, name, row)

    def _journey(
        self, tables: Tables, queue_id: str, times: ShownTimes, *, added: bool
    ) -> Journey | None:
        journey = super()._journey(tables, queue_id, times, added=added)
        return with_store_without_node(tables, journey) if journey is not None else None

    def _last_event(self, tables: Any) -> int:
        return max(self._read_final(tables), event_log.removed_to(tables), NO_EVENTS)

    def _greatest_event(self, tables: Tables) -> int:
        return max(int(tables.fetch_one(_LAST)[0]), NO_EVENTS)

    async def note_restored(self) -> None:
        """SpoolEngine.note_restored. When this node joined, the numbers moved on to that time."""

        def note(transaction: WriteTransaction) -> None:
            note_removed_events(transaction, self._greatest_event(transaction))

        await self.change(note)

    def _read_final(self, tables: ConnectionTables) -> int:
        """Return the number up to which all events are visible, while several nodes commit.

        Numbers are taken before the commit: a smaller one may become visible after a greater one. A
        transaction takes its id before it takes numbers (commit.sql). This function reads the last
        number, and then takes an id. When all transactions with smaller ids have ended
        (`pg_snapshot_xmin` is the oldest that runs), all numbers up to that one are visible. A
        transaction of another program that writes for longer than about a second delays the events,
        but loses none.
        """
        if self._final_next is not None and _oldest(tables) >= self._final_next[1]:
            self._final_to, self._final_next = self._final_next[0], None
        last = int(tables.fetch_one(_LAST)[0])
        if last <= self._final_to:
            return self._final_to
        before = int(tables.fetch_one(_OWN_ID)[0])
        pause_s = _PAUSE_S
        for _ in range(_LOOKS):
            if _oldest(tables) >= before:
                self._final_to, self._final_next = last, None
                return last
            tables.wait(asyncio.sleep(pause_s))  # real time: other transactions
            pause_s *= 1.2
        self._final_next = self._final_next or (last, before)
        return self._final_to

    def health(self) -> str:
        """SpoolEngine.health."""
        return self._fault or self._writer.fault

    def disk(self) -> Disk:
        """SpoolEngine.disk."""
        return UNKNOWN_DISK

    def _check_usable(self) -> None:
        if fault := self.health():
            raise types.SpoolUnavailableError(fault)

    async def read(self, query: Callable[[ConnectionTables], T]) -> T:
        """QueueEngine.read."""
        return await self._queries.read(query)

    async def count(self, query: Callable[[ConnectionTables], T]) -> T:
        """QueueEngine.count."""
        return await self._counting.read(query)

    async def change(self, operation: Callable[[WriteTransaction], T]) -> T:
        """QueueEngine.change."""
        return await self._writer.submit(operation, alone=True, is_order=True)

    async def change_hold_rules(self, change: Callable[[WriteTransaction], T]) -> T:
        """QueueEngine.change_hold_rules."""

        def expecting(transaction: WriteTransaction) -> T:
            self._writer.has_hold_rules = True  # in its thread: the next commit looks
            return change(transaction)

        return await self.change(expecting)

    async def ask(self, query: Callable[[ConnectionTables], T]) -> T:
        """SpoolEngine.ask."""
        return await self._bodies.reader.read(query)

    def read_claims(
        self, tables: Any, keys: Collection[types.Key]
    ) -> tuple[Sequence[types.Claim], Mapping[types.Key, str]]:
        """QueueEngine.read_claims."""
        return read_claims(tables, tuple(keys))

    def elsewhere(self, tables: Tables, keys: Collection[types.Key]) -> Mapping[types.Key, str]:
        """QueueEngine.elsewhere."""
        own = self._writer.incarnation
        rows = tables.fetch_each(_ELSEWHERE, [(*key, own) for key in keys])
        return {(row[0], row[1]): row[2] for row in rows}

    async def _store_new(self, messages: Sequence[types.NewMessage]) -> StoredContents:
        self._check_usable()
        return await self.store_contents(messages)

    async def store_contents(self, reports: Sequence[types.NewMessage]) -> StoredContents:
        """QueueEngine.store_contents. If one cannot be written, all are removed."""
        stored: list[StoredBodies] = []
        try:
            for message in reports:
                stored += [await self._bodies.store(message)]
        except BaseException:
            await self.discard(stored)
            raise
        return stored

    def add_reports(self, transaction: Any, reports: StoredReports) -> None:
        """QueueEngine.add_reports."""
        (store,) = transaction.fetch_one(_STORE, (reports.original,))
        for report, bodies in zip(reports.plan.messages, reports.stored, strict=True):
            transactions.add_message(
                transaction, report, bodies, claim=False, captured=self._captured, store=store
            )

    def committed(self, stored: StoredContents) -> None:
        """QueueEngine.committed."""
        self._bodies.accepted(stored)

    async def discard(self, stored: StoredContents) -> None:
        """QueueEngine.discard."""
        await self._bodies.discard(stored)

    def entries_ended(
        self, transaction: Any, ended: Mapping[types.Key, types.ContentKey]
    ) -> Sequence[str]:
        """QueueEngine.entries_ended: delete the entries, copy the next hop to their recipients, and
        return the bodies that may not be needed any more.
        """
        ids = dict.fromkeys(message_id for message_id, _ in ended)
        transaction.execute_each(_NEXT_HOPS, [(queue_id,) for queue_id in ids])
        transaction.execute_each(f"DELETE FROM entry {_ENDED}", list(ended))
        dropped = transaction.fetch_each(_DROP, [(key[0], number) for key, number in ended.items()])
        return [body for (body,) in dropped if body]

    def remove(self, left: Sequence[str]) -> None:
        """QueueEngine.remove."""
        self._bodies.remove_later(left)


def _size_of(messages: Sequence[types.NewMessage]) -> int:
    return sum(len(memory_part(content)) for message in messages for content in message.contents)


def _home(path: Path) -> str:
    """Return the id of the state_dir, which the first start writes. Raises SpoolError."""
    try:
        with suppress(FileNotFoundError):
            return path.read_text().strip()
        home = secrets.token_hex(8)
        replace_file(path, home.encode() + b"\n", mode=0o600)
    except OSError as error:
        raise types.SpoolUnavailableError(f"{path}: {error.strerror or error}") from error
    return home


def _oldest(tables: ConnectionTables) -> int:
    return int(tables.fetch_one(_OLDEST_ID)[0])
