"""Beat for this node, take over the claims of dead nodes, and notify other nodes of new work.

A beat is a commit of the write connection: it shows that this node can write, and looks whether
there are hold rules, which the commits that add mail read only then. Notifications go by a
separate connection, because a transaction with a NOTIFY takes a lock of the whole server: at most
NOTIFY_PER_S. Nodes also look for work each POLL_S, without a notification.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncpg

from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.observe.metrics import Metrics
from relay.base.task_set import TaskSet
from relay.store.spool.engine import News
from relay.store.spool.postgres import nodes
from relay.store.spool.postgres.claims import dead_owners
from relay.store.spool.postgres.maintenance import PostgresMaintenance, stores_without_node
from relay.store.spool.postgres.server import DatabaseHosts, translate_postgres_errors
from relay.store.spool.postgres.transactions import WriteTransaction
from relay.store.spool.postgres.writer import WriteConnection
from relay.store.spool.shared.hold_rules import hold_rules
from relay.store.spool.types import NodeNameError, SpoolError

POLL_S = 5.0
NOTIFY_PER_S = 20
_AGAIN_S = 1.0
_CHANNEL = "relay_spool"
_log = get_logger("spool")


@dataclass(eq=False, repr=False)
class NodeKeeper:
    """Runs in the event loop of the daemon."""

    writer: WriteConnection  # writes the beats
    hosts: DatabaseHosts  # of the server
    metrics: Metrics  # counts nodes
    take_over: Callable[[], Awaitable[int]]  # releases the claims of dead nodes
    on_news: Callable[[News], None]  # called with what other nodes may have done
    agreed: nodes.AgreedParts  # returns a digest of each part that must be equal on all nodes
    on_lost: Callable[[SpoolError], None]  # called when another node has this node's name
    maintenance: PostgresMaintenance  # learns which stores have no node

    def __post_init__(self) -> None:
        self._watch = nodes.Watch()
        self._said: Mapping[str, str] = {}  # the parts of which these are the digests
        self._digests = ""
        self._salt = ""
        self._differences: Sequence[str] = ()
        self.nodes: Sequence[nodes.NodeRow] = ()  # as they were at the last beat
        self._tasks = TaskSet()
        self._has_news = asyncio.Event()
        self._news = News(0)  # to tell

    def start(self) -> None:
        """Begin to beat and to listen, unless that was done before."""
        if self._tasks:  # a later step of the start has failed, and is tried again
            return
        for run in (self._keep_alive, self._keep_in_touch):
            self._tasks.start(run(), name=f"spool-{run.__name__[6:]}")

    async def stop(self) -> None:
        """End the beat and the notifications."""
        await self._tasks.end()

    def tell(self, news: News) -> None:
        """Notify the other nodes soon."""
        self._news |= news
        self._has_news.set()

    async def _keep_alive(self) -> None:
        fault = RepeatedError()
        while True:
            try:
                await self.beat()
                fault.clear()
            except SpoolError as error:
                fault.log(_log.warning, "this node cannot record that it lives", error)
            # a notification may have been lost
            self.on_news(News.RECORDED | News.DUE)
            await asyncio.sleep(nodes.BEAT_S)  # real time: no clock that jumps may end a lease

    async def beat(self) -> None:
        """Record that this node lives, read the other nodes, and take over the claims of dead ones.
        Raises SpoolError.
        """
        digests = await self._digests_now()
        sent_s = self.writer.elapsed_s()
        try:
            seen = await self.writer.submit(partial(self._look, digests), alone=True)
        except NodeNameError as error:
            self.on_lost(error)
            raise
        if seen is None:
            self.maintenance.forget()
            await self.writer.rejoin()
            return
        self.writer.confirm(sent_s)
        self.nodes, has_dead, without_node = seen
        self.maintenance.seen(without_node, now_s=self.writer.elapsed_s())
        states = Counter(row.state for row in self.nodes)
        for state in nodes.STATES:
            self.metrics.nodes.labels(state).set(states[state])
        self._compare()
        now_s = self.writer.elapsed_s()
        silent = self._watch.silent(self.nodes, self.writer.incarnation, now_s=now_s)
        if silent:
            died = await self.writer.submit(partial(nodes.declare_dead, seen=silent), alone=True)
            for row in died:
                _log.warning("a node is dead", name=row.identity.name, incarnation=row.incarnation)
        if silent or has_dead:
            entries = await self.take_over()
            if entries:
                _log.warning("claims of dead nodes taken over", entries=entries)

    async def _digests_now(self) -> str:
        """Return the digests of the parts. They are computed only when a part has changed."""
        parts = self.agreed()
        if parts != self._said:
            self._salt = self._salt or await self.writer.submit(_read_salt, alone=True)
            self._digests = await asyncio.to_thread(nodes.salted, parts, self._salt)
            self._said = parts
        return self._digests

    def _compare(self) -> None:
        """Log new differences between nodes."""
        differing = nodes.differences(self.nodes)
        for text in differing:
            if text not in self._differences:
                _log.warning("nodes differ in what must be equal", difference=text)
        if self._differences and not differing:
            _log.info("nodes do not differ any more")
        self._differences = differing

    def _look(
        self, digests: str, transaction: WriteTransaction
    ) -> tuple[Sequence[nodes.NodeRow], bool, Mapping[int, str]] | None:
        own = self.writer.own
        assert own is not None
        rows = nodes.beat(transaction, own, digests)
        self.writer.sample_wall(transaction)
        if rows is None:
            return None
        now_us = self.writer.clock.queue_us()
        self.writer.has_hold_rules = bool(hold_rules(transaction, now_us=now_us))
        self.writer.other_domains = nodes.exchange_domains(transaction, own.identity, self._said)
        return rows, bool(dead_owners(transaction)), stores_without_node(transaction)

    async def _keep_in_touch(self) -> None:
        fault, connection = RepeatedError(), None
        while True:
            try:
                with translate_postgres_errors(self.hosts):
                    connection = await self.hosts.connect(purpose="messages", lost=connection)
                    try:
                        await self._talk(connection, fault)
                    finally:
                        connection.terminate()
            except SpoolError as error:
                _log_no_notifications(fault, error)
            await asyncio.sleep(_AGAIN_S)  # real time: the server

    async def _talk(self, connection: asyncpg.Connection, fault: RepeatedError) -> None:
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        try:
            with translate_postgres_errors(self.hosts):
                own_pid = connection.pid
                await connection.add_listener(_CHANNEL, partial(self._heard, own_pid))
            fault.clear()
        except SpoolError as error:
            if connection.is_closed():
                raise
            # a pooler may refuse it: the other nodes still hear this one
            _log_no_notifications(fault, error)
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(self._tell(connection))
            await ended.wait()
            telling.cancel()

    async def _tell(self, connection: asyncpg.Connection) -> None:
        while True:
            await self._has_news.wait()
            news, self._news = self._news, News(0)
            self._has_news.clear()
            with suppress(SpoolError), translate_postgres_errors(self.hosts):
                await connection.execute("SELECT pg_notify($1, $2)", _CHANNEL, str(news.value))
            await asyncio.sleep(1 / NOTIFY_PER_S)  # real time: so often at most

    def _heard(self, own_pid: int, *message: Any) -> None:
        _, pid, _, text = message  # of a connection that may be closed by now
        if pid != own_pid:
            self.on_news(News(int(text)))


def _read_salt(transaction: WriteTransaction) -> str:
    """Return the salt of this spool."""
    transaction.has_changed = False
    return str(transaction.fetch_one("SELECT value FROM salt")[0])


def _log_no_notifications(fault: RepeatedError, error: SpoolError) -> None:
    event = "no notifications of other nodes: this node polls for work"
    fault.log(_log.warning, event, error, every_s=POLL_S)
