"""Group commit on the write connection, and what becomes of a commit whose reply was lost.

Operations that only add rows share one statement (commit.sql), which is a whole transaction. All
operations that gathered during the last commit cost one round trip and one fsync of the server.
Other operations run alone, in a transaction. Every answer is known before the commit is sent.

Each commit has a number, which is in its rows of `counter`. When the connection is lost during a
commit, the writer does not know whether the commit took effect. It connects again, ends the old
session, and reads the greatest number. A commit that took effect is answered; the operations of one
that did not are repeated alone, and another loss is asked after in the same way. An acceptance that
has waited too long for this is answered with an error, although the message may be in the queue:
when its sender repeats it, it is a duplicate, as after any lost connection (RFC 1047).
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import uvloop
from msgspec.structs import replace

from relay.base.clock import Anchor, Clock, boot_s
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.observe.metrics import Metrics
from relay.store.spool.postgres import nodes, transactions
from relay.store.spool.postgres.claims import release_claims
from relay.store.spool.postgres.schema import bring_to_schema
from relay.store.spool.postgres.server import (
    OTHER_SESSION,
    DatabaseHosts,
    translate_postgres_errors,
)
from relay.store.spool.postgres.tables import ConnectionTables, without_nul
from relay.store.spool.shared.columns import ANCHOR_COLUMNS
from relay.store.spool.shared.group_commit import ANCHOR_S, BATCH_MAX, GroupWriter, WaitingOperation
from relay.store.spool.types import (
    Claim,
    NodeNameError,
    SpoolError,
    SpoolInUseError,
    SpoolUnavailableError,
)

COMMITS = "commits"  # the counter that a commit raises which raises no other
_BATCH_BYTES_MAX = 8 << 20
_CLOCK_DIFFERS_S = 60.0
_AGAIN_S = 1.0  # between two attempts to connect
_TIMES_MAX = 5  # repetitions of an operation that conflicts with other nodes
_ADD_UP_AFTER = 256  # commits
_ANSWER_S = 10.0  # after which an acceptance is answered, even if its outcome is unknown
_STATEMENT_S = 10.0  # a server that does not answer counts as lost
_OPERATION_S = 20.0  # for all statements of an operation
# What no statistics may change: see commit.sql.
PLANS = (
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;"
    " SET plan_cache_mode = force_generic_plan; SET synchronous_commit = on"
)
_ADD_UP = (
    "WITH gone AS (DELETE FROM counter WHERE node = ? AND number > ? AND number <= ?"
    " RETURNING node, name, value)"
    " INSERT INTO counter SELECT node, 0, name, sum(value) FROM gone GROUP BY node, name"
    " ON CONFLICT (node, number, name) DO UPDATE SET value = counter.value + excluded.value"
)
# A node continues from its last anchor if its machine was not rebooted, else from the latest.
_ANCHORS = (
    f"SELECT {ANCHOR_COLUMNS} FROM clock"
    " WHERE node = ? OR steady_us = (SELECT max(steady_us) FROM clock)"
)
_BEGIN = {False: "BEGIN", True: "BEGIN ISOLATION LEVEL REPEATABLE READ"}  # by is_order
# After these the connection is not used any more: another session, or an answer that is not known.
_LOSSES = (OSError, TimeoutError, BufferError, asyncpg.PostgresConnectionError, *OTHER_SESSION)
_OF_MESSAGES = {"message", "content", "entry", "recipient"}  # keys begin with a queue id
T = TypeVar("T")
_log = get_logger("spool")


class _LostError(Exception):
    """The connection was lost. If that was during a commit, its outcome is unknown: `answers` are
    the answers if it took effect.
    """

    def __init__(self, reason: str, answers: Sequence[Any]) -> None:
        super().__init__(reason)
        self.answers = answers


@dataclass(eq=False, repr=False)
class WriteConnection(GroupWriter):
    """Writes in a thread. submit() belongs to the event loop in which start() ran."""

    hosts: DatabaseHosts
    identity: nodes.NodeIdentity
    clock: Clock
    crash: CrashPoints
    metrics: Metrics
    # called in the event loop when another node has this node's name or the whole spool: this node
    # must end
    on_lost_ownership: Callable[[SpoolError], None]
    on_dropped: Callable[[Sequence[str]], None]  # called there with the bodies of removed contents

    def __post_init__(self) -> None:
        super().__init__(self.clock, self._run_to_end, self.metrics)
        self.elapsed_s: Callable[[], float] = boot_s  # counts a lease: no suspend stops it
        self.own: nodes.NodeRow | None = None  # this incarnation
        self._lease_until_s = 0.0
        self.other_domains: frozenset[str] | None = None  # local ones of other mail roots
        self.stores = nodes.Stores()
        self.fault = "the spool was not started yet"  # why the database cannot be used now
        self._said = RepeatedError()
        self.commits = 0  # the number of the last commit
        self._commits_there = 0  # the last commit that the server had after a reconnection
        self._unanswered: list[Claim] = []  # of operations that were answered with an error
        self._added_up_to = 0  # of the commits since this start
        self._anchored_s = -ANCHOR_S
        self._has_lost_ownership = False
        # Whether commits look for hold rules. It may be wrong until a beat, which looks itself.
        self.has_hold_rules = True
        self._loop: asyncio.AbstractEventLoop | None = None  # of the thread
        self._connection: Any = None
        self._opening = threading.Lock()

    async def start(self) -> None:
        """Connect and join, unless that was done before. Raises SpoolError; then nothing runs."""
        if self._thread.is_alive():  # a later step of the start has failed, and is tried again
            return
        self._home_loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._open)
        except SpoolError as error:
            self.fault = str(error)
            raise
        self.fault = ""
        self._thread.start()

    async def stop(self) -> None:
        """Write what waits, then close the connection."""
        await super().stop()
        await asyncio.to_thread(self._close)

    def rounds(self) -> int | None:
        """See SpoolEngine. A thread that waits for the server is not blocked: its loop runs."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._count_round)
        return super().rounds()

    def _count_round(self) -> None:
        self._rounds += 1

    @property
    def incarnation(self) -> int:
        """The number of this incarnation."""
        assert self.own is not None
        return self.own.incarnation

    def may_finish(self) -> bool:
        """Whether an attempt may send the final dot: the lease lasts for long enough."""
        return self.elapsed_s() < self._lease_until_s - nodes.NO_DOT_S

    def confirm(self, sent_s: float) -> None:
        """Extend the lease: the server has recorded a beat that was sent at `sent_s`."""
        self._lease_until_s = sent_s + nodes.DEAD_S

    def may_claim(self) -> bool:
        """Whether this node may accept and claim: its lease has not ended."""
        return self.elapsed_s() < self._lease_until_s

    async def rejoin(self) -> None:
        """Join as the next incarnation, after this one was declared dead. Raises SpoolError."""
        await self.submit(self._join_again, alone=True)

    def submit(
        self,
        operation: transactions.Operation[T],
        *,
        accepts: bool = False,
        leased: bool = False,
        alone: bool = False,
        is_order: bool = False,
        size: int = 0,
    ) -> "asyncio.Future[T]":
        """Queue `operation`; the future is done after the commit that contains it.

        Unless it runs `alone`, it only adds rows. Operations of the same iteration of the loop
        share a commit. With `is_order`, which runs alone, all its statements read the same state,
        and it is repeated if another node has changed the same rows. With `leased` or `accepts` it
        is refused after the end of the lease. Raises SpoolUnavailableError when too many wait, the
        writer is stopping, or the database cannot be used.
        """
        if self.fault:
            raise SpoolUnavailableError(self.fault)
        future: asyncio.Future[T] = self._future()
        self._queue(
            WaitingOperation(
                operation,
                future,
                accepts,
                size,
                leased or accepts,
                alone,
                is_order,
                self.clock.real_s(),
            )
        )
        return future

    # In the thread.

    def _run_to_end(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - the node must end: nothing is written now
            _log.exception("internal error of the spool")
            self._has_lost_ownership, self.fault = True, "internal error"
            self._call(self.on_lost_ownership, SpoolError(f"internal error: {error!r}"))
            self._fail_queued()

    def _run(self) -> None:
        while True:
            is_trying = self.fault and not self._has_lost_ownership
            self._wake.acquire(timeout=_AGAIN_S if is_trying else None)
            if self._has_lost_ownership or (self.fault and not self._reconnect()):
                self._fail_queued()
            while batch := self._gather():
                self._write(batch)
                if self.commits - self._added_up_to >= _ADD_UP_AFTER:
                    self._add_up()
            if self._stopping and not self._jobs:
                return

    def _add_up(self) -> None:
        """Add up the counters of the commits since the last time. If that fails, they stay."""
        first, self._added_up_to = self._added_up_to, self.commits
        values = (self.incarnation, first, self._added_up_to)
        assert self._home_loop is not None
        future = self._home_loop.create_future()
        future.add_done_callback(lambda done: done.exception())
        job = WaitingOperation(lambda tables: tables.execute(_ADD_UP, values), future, alone=True)
        self._write([job])

    def _gather(self) -> list[WaitingOperation]:
        self._count_round()
        batch: list[WaitingOperation] = []
        size = 0
        while self._jobs and len(batch) < BATCH_MAX and size < _BATCH_BYTES_MAX:
            is_alone = self._jobs[0].alone or self._jobs[0].is_repeated
            if is_alone and batch:
                break
            batch.append(self._jobs.popleft())
            size += batch[-1].size
            if is_alone:
                break
        return batch

    def _write(self, batch: Sequence[WaitingOperation], *, times: int = 0) -> None:
        began_s = self.clock.real_s()
        try:
            answers = self._commit(batch)
        except _LostError as error:
            self._lost(batch, error)
            return
        except Exception as error:  # noqa: BLE001 - passed to the callers
            is_conflict = isinstance(error.__cause__, asyncpg.TransactionRollbackError)
            # the row of a claim has another place if another node has noted an order in it
            is_conflict = is_conflict or isinstance(error, transactions.StaleClaimError)
            if len(batch) > 1 or (is_conflict and times < _TIMES_MAX):
                for job in batch:  # the operation at fault fails alone
                    self._write([job], times=times + 1)
            else:
                self._answer([(batch[0].future, None, error)])
            return
        self.metrics.commit_seconds.observe(self.commit_ended(began_s))
        self.metrics.commit_batch.observe(len(batch))
        answered = zip(batch, answers, strict=True)
        self._answer([(job.future, answer, None) for job, answer in answered])

    def _commit(self, batch: Sequence[WaitingOperation]) -> list[Any]:
        if self._connection is None or self._connection.is_closed():
            raise _LostError(self.fault or "the connection was closed", ())
        accepts = any(job.accepts for job in batch)
        if any(job.leased for job in batch) and not self.may_claim():
            raise SpoolUnavailableError("the database has not heard of this node for too long")
        assert self._loop is not None
        transaction = transactions.WriteTransaction(
            self._loop, self._connection, incarnation=self.incarnation, stores=self.stores
        )
        transaction.hold_rules = None if self.has_hold_rules else ()
        answers: list[Any] = []
        with self._translated(answers):
            try:
                if batch[0].alone:
                    transaction.wait(self._connection.execute(_BEGIN[batch[0].is_order]))
                answers += [job.operation(transaction) for job in batch]
                if accepts:
                    self.crash.reached(CrashPoint.SPOOL_BEFORE_COMMIT)
                if not transaction.has_changed:  # who counts rollbacks sees failures
                    transaction.wait(self._connection.execute("COMMIT"))
                    return answers
                self._send(transaction)
                if self._connection.is_in_transaction():
                    transaction.wait(self._connection.execute("COMMIT"))
            except BaseException:
                if not self._connection.is_closed() and self._connection.is_in_transaction():
                    with suppress(Exception):
                        transaction.wait(self._connection.execute("ROLLBACK", timeout=5))
                raise
        self.commits += 1
        if accepts:
            self.crash.reached(CrashPoint.SPOOL_COMMITTED)
        return answers

    def _send(self, transaction: transactions.WriteTransaction) -> None:
        rows = transaction.rows
        if not any(rows.counts.values()):  # any row has the number of the commit
            rows.counts[COMMITS] = 1
        now_s = self.clock.monotonic()
        is_anchored = now_s - self._anchored_s >= ANCHOR_S
        sql, values = rows.statement(
            incarnation=self.incarnation,
            name=self.identity.name,
            number=self.commits + 1,
            anchor=self.clock.anchor() if is_anchored else None,
            pid=self._connection.pid,
        )
        send = self._connection.fetchrow
        if self._connection.is_in_transaction():  # an error would end the transaction
            values = without_nul(values)
        try:
            row = transaction.wait(send(sql, *values, timeout=_STATEMENT_S))
        except asyncpg.CharacterNotInRepertoireError:
            if self._connection.is_in_transaction():
                raise
            row = transaction.wait(send(sql, *without_nul(values), timeout=_STATEMENT_S))
        if len(row) > 2 and row[2]:
            self._call(self.on_dropped, row[2])
        if is_anchored:
            self._anchored_s = now_s

    @contextmanager
    def _translated(self, answers: Sequence[Any]) -> Iterator[None]:
        """Turn asyncpg's exceptions into SpoolErrors. An exception on a closed connection becomes
        _LostError.
        """
        try:
            with translate_postgres_errors(self.hosts), self._limited():
                try:
                    yield
                except asyncpg.DivisionByZeroError:
                    raise transactions.StaleClaimError("the claim has ended") from None
                except asyncpg.UniqueViolationError as error:
                    if error.table_name == "submission":
                        raise transactions.KnownKeyError("the submission key is known") from None
                    if error.table_name in _OF_MESSAGES:  # two nodes have made the same id
                        text = "the queue id is that of another message: try again"
                        raise SpoolUnavailableError(text) from None
                    raise
                except asyncpg.ReadOnlySQLTransactionError:
                    self._connection.terminate()  # a failover: another host takes writes
                    raise
        except Exception as error:
            if self._connection.is_closed() or isinstance(error.__cause__, _LOSSES):
                self._connection.terminate()
                raise _LostError(str(error), answers) from error
            raise

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Close the connection if the server does not answer the block within _OPERATION_S."""
        assert self._loop is not None
        end = self._connection.abort
        limit = self._loop.call_later(_OPERATION_S, end)  # real time: the server
        try:
            yield
        finally:
            limit.cancel()

    def _lost(self, batch: Sequence[WaitingOperation], lost: _LostError) -> None:
        """Find out whether the commit of a batch took effect, and answer it or repeat its
        operations alone.

        Acceptances wait for this no longer than _ANSWER_S. Other operations wait for it once, and
        after another loss no longer either: one may be what ends each connection.
        """
        expected = self.commits + 1
        self.fault = str(lost)
        _log.warning("the connection to the database of the spool was lost", error=self.fault)
        waiting = self._without_expired(list(enumerate(batch)), lost)
        while not self._reconnect():
            waiting = self._without_expired(waiting, lost)
            self._fail_queued()
            if self._stopping or self._has_lost_ownership:
                error = SpoolUnavailableError(self.fault)
                self._answer([(job.future, None, error) for _, job in waiting])
                return
            self._wake.acquire(timeout=_AGAIN_S)
        waiting = self._without_expired(waiting, lost)
        with suppress(SpoolError):  # otherwise after the next reconnection
            self._release_unanswered(self._tables())
        # `lost` without answers: the connection ended before this commit was sent, so the number in
        # the database cannot say that it took effect.
        if lost.answers and self._commits_there == expected:
            self._answer([(job.future, lost.answers[index], None) for index, job in waiting])
            return
        again = [replace(job, is_repeated=True) for _, job in waiting]
        self._jobs.extendleft(reversed(again))

    def _without_expired(
        self, waiting: list[tuple[int, WaitingOperation]], lost: _LostError
    ) -> list[tuple[int, WaitingOperation]]:
        """Answer the operations that have waited too long, and return the others."""
        before_s = self.clock.real_s() - _ANSWER_S
        error = SpoolUnavailableError(self.fault or "the database of the spool was away too long")
        expired = [
            (index, job)
            for index, job in waiting
            if (job.accepts or job.is_repeated) and job.since_s < before_s
        ]
        self._answer([(job.future, None, error) for _, job in expired])
        answers = [lost.answers[index] for index, _ in expired if lost.answers]
        self._unanswered += [claim for answer in answers for claim in getattr(answer, "claims", ())]
        return [pair for pair in waiting if pair not in expired]

    def _release_unanswered(self, tables: ConnectionTables) -> None:
        """Release the claims of operations that failed for their callers. Raises SpoolError.

        This comes before any other claim by this incarnation, which could have the same epoch.
        """
        with translate_postgres_errors(self.hosts):
            release_claims(tables, self._unanswered)
        self._unanswered.clear()

    def _fail_queued(self) -> None:
        """Answer queued operations with an error: they were not sent."""
        error = SpoolUnavailableError(self.fault)
        while self._jobs:
            self._answer([(self._jobs.popleft().future, None, error)])

    def _reconnect(self) -> bool:
        """Connect again, as the same incarnation if it still lives. Return False, with the reason
        in `fault`, if that fails.
        """
        assert self.own is not None
        try:
            with translate_postgres_errors(self.hosts):
                tables = self._connect()
                with self._limited():
                    self.sample_wall(tables)
                    self._return(tables, self.own)
        except (NodeNameError, SpoolInUseError) as error:
            self.fault = str(error)
            self._has_lost_ownership = True
            self._call(self.on_lost_ownership, error)
            return False
        except SpoolError as error:
            self.fault = str(error)
            self._said.log(_log.error, "the database of the spool cannot be used", error)
            return False
        self.fault = ""
        self._said.clear()
        _log.info("the database of the spool is back")
        return True

    def _return(self, tables: ConnectionTables, own: nodes.NodeRow) -> None:
        at_us = self.clock.time_us()
        there = nodes.return_to(tables, own, at_us=at_us)
        self._release_unanswered(tables)
        known, self._commits_there = self.commits, _read_commits(tables, own.incarnation)
        lost = known - self._commits_there
        if there is None or lost > 0:  # results may be lost: the claims must be taken over
            self._join(tables, own=own.incarnation)
        else:
            self.own, self.commits = there, self._commits_there
        if lost > 0:  # a promoted standby may have lost them
            _log.error("the database of the spool has lost commits", commits=lost)
            self.metrics.lost_commits.inc(lost)

    def _join(
        self, tables: ConnectionTables, *, own: int = 0, silent: Sequence[nodes.NodeRow] = ()
    ) -> None:
        sent_s = self.elapsed_s()
        at_us = self.clock.time_us()
        self.own = nodes.join(tables, self.identity, at_us=at_us, silent=silent, own=own)
        self.commits = self._added_up_to = 0
        self.confirm(sent_s)
        if own:
            _log.warning("this node has joined again: its claims are taken over")

    def _join_again(self, transaction: transactions.WriteTransaction) -> None:
        """Join in place of the transaction of an operation; its rows get the new incarnation."""
        transaction.wait(self._connection.execute("ROLLBACK"))
        self._join(transaction, own=self.incarnation)
        transaction.wait(self._connection.execute("BEGIN"))
        transaction.incarnation = self.incarnation

    def _open(self) -> None:
        """Connect, bring the tables to this schema, join, and read the clock."""
        with self._opening, translate_postgres_errors(self.hosts):
            tables = self._connect()
            try:
                self.sample_wall(tables)
                self._tell_difference()
                nodes.lock_shared(tables, self.identity)
                bring_to_schema(tables, now_us=self.clock.time_us())
                tables.wait(self._connection.execute(PLANS))
                left = nodes.namesakes(tables, self.identity)
                silent = nodes.still_alive(tables, left)
                self._join(tables, silent=silent)
                self.stores = nodes.stores_of(tables, self.identity)
                self.other_domains = nodes.other_domains(tables, self.identity.store)
                rows = tables.fetch(_ANCHORS, (self.identity.name,))
                self.clock.resume_as_node([Anchor(*row) for row in rows])
            except BaseException:
                self._connection.terminate()
                raise

    def sample_wall(self, tables: ConnectionTables) -> None:
        """Set the clock by the server's clock, which all nodes use; in the writer's thread."""
        self.clock.sample_wall(lambda: int(tables.fetch_one(f"SELECT {nodes.WALL}")[0]))

    def _tell_difference(self) -> None:
        ahead_s = (self.clock.file_time_us() - self.clock.time_us()) / 1_000_000
        if abs(ahead_s) > _CLOCK_DIFFERS_S:
            _log.warning(
                "this machine's clock differs from the database's, which is used", seconds=ahead_s
            )

    def _connect(self) -> ConnectionTables:
        if self._connection is not None and not self._connection.is_closed():
            self._connection.terminate()
        self._loop = self._loop or uvloop.new_event_loop()
        opened = self.hosts.connect(purpose="writer", lost=self._connection)
        self._connection = self._loop.run_until_complete(opened)
        tables = self._tables()
        if self.own is not None:
            tables.wait(self._connection.execute(PLANS))
            nodes.lock_shared(tables, self.identity)
        return tables

    def _tables(self) -> ConnectionTables:
        assert self._loop is not None
        return ConnectionTables(self._loop, self._connection)

    def _close(self) -> None:
        self._opening.acquire()  # a start that was cancelled goes on in its thread
        if self._loop is None:
            return
        if self._connection is not None and not self._connection.is_closed():
            with suppress(Exception):  # the server may be gone
                if self.own is not None:
                    nodes.leave(self._tables(), self.own)
                self._loop.run_until_complete(self._connection.close(timeout=2))
        self._loop.run_until_complete(asyncio.sleep(0))  # ends what was terminated
        self._loop.close()


def _read_commits(tables: ConnectionTables, incarnation: int) -> int:
    sql = "SELECT coalesce(max(number), 0) FROM counter WHERE node = ?"
    return int(tables.fetch_one(sql, (incarnation,))[0])
