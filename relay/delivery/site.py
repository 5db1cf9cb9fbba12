"""A site: the hosts behind one next hop, and the connections that deliver to them.

On the path: the dispatcher pushes claims; each connection takes the next one, tries it, and
    settles.
Holds: at most `connections_max` connections; at most one unsettled transaction per connection: the
    next final dot waits until the settlement before it is durable.
Fails: never; what goes wrong becomes an outcome of the claims it concerns.
Standards: RFC 5321 5.1 (order of hosts), 4.5.4.1; RFC 7435.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from relay.clock import Clock
from relay.delivery.contents import unreadable
from relay.delivery.fairqueue import FairQueue
from relay.delivery.slots import ConnectionSlots
from relay.journal.logs import get_logger
from relay.message.outcome import DeferralClass, Deferred, Evidence, Failed, Outcome
from relay.routing import Host, Hosts
from relay.smtp import ConnectError, Connection, Recipient, Target, Timeouts, Transaction, connect
from relay.spool.types import Claim, SpoolError

_log = get_logger("delivery")

ADDRESSES_MAX = 5  # per claim, as Postfix's smtp_mx_address_limit
TRANSACTIONS_MAX = 1000  # per connection
_AGAIN_MAX = 100  # transactions for one claim whose recipients did not fit into one


class Settler(Protocol):
    """The dispatcher, as a site sees it."""

    async def settle(self, claim: Claim, outcomes: Mapping[int, Outcome]) -> None:
        """Make an attempt's outcomes durable; returns when they are. Never raises."""
        ...

    async def content_of(self, claim: Claim) -> bytes:
        """The bytes to send. Raises SpoolError."""
        ...


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """`down_s` is how long a site that could not be reached is not asked again."""

    ehlo_name: str
    tls: Literal["none", "opportunistic", "required", "implicit"]
    timeouts: Timeouts
    connections_max: int
    down_s: float
    idle_s: float = 5.0


@dataclass
class Site:
    """One site. `hosts` is renewed by whoever pushes: the same hosts, equals in another order."""

    name: str
    hosts: Hosts
    options: SiteOptions
    credentials: tuple[str, str] | None
    settler: Settler
    slots: ConnectionSlots
    clock: Clock
    ready: FairQueue = field(default_factory=FairQueue)

    def __post_init__(self) -> None:
        self._workers: set[asyncio.Task[None]] = set()
        self._sessions: set[_Session] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._host_down_until: dict[str, float] = {}
        self._down_until = 0.0
        self._down: Outcome | None = None
        self._proven = False  # a connection has stood since the site was last down
        self._closing = False

    @property
    def is_unused(self) -> bool:
        """Whether nothing waits and no connection is open."""
        return not self.ready and not self._workers

    def push(self, claim: Claim) -> None:
        """Take a claim; a connection is woken or opened for it."""
        self.ready.push(claim)
        if self._closing:
            return
        # RFC 5321 5.1 shares the load among equals: each has its connection before one has two.
        if len(self._workers) < len(self._equals()) and self._open_worker():
            return
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._open_worker()

    def close(self) -> list[Claim]:
        """Take no more; return what was not begun. Connections end after their transaction."""
        self._closing = True
        for waiter in self._idle:
            if not waiter.done():
                waiter.set_result(None)
        return self.ready.drain()

    async def join(self) -> None:
        """Wait until every connection has ended."""
        while self._workers:
            await asyncio.wait(self._workers)

    def abort(self) -> None:
        """End every connection at once."""
        for worker in self._workers:
            worker.cancel()

    def free_idle(self) -> bool:
        """Give up one idle connection, so that another site can have its slot."""
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.cancel()
                return True
        return False

    def _open_worker(self) -> bool:
        limit = self.options.connections_max if self._proven else 1
        if len(self._workers) >= limit:
            return False
        worker = asyncio.get_running_loop().create_task(self._work())
        self._workers.add(worker)
        worker.add_done_callback(self._ended)
        return True

    def _connected(self) -> None:
        """The first connection of a site is a probe: when it stands, the others may follow."""
        if self._proven:
            return
        self._proven = True
        for _ in range(len(self.ready)):
            self._open_worker()

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if self.ready and not self._closing:  # pushed while this one was saying goodbye
            self._open_worker()

    async def _work(self) -> None:
        """One connection's life: from the first claim to the end of an idle wait."""
        async with self.slots.hold(self):
            session = _Session(self)
            self._sessions.add(session)
            try:
                while (claim := self.ready.pop()) is not None or await self._wait_for_work():
                    if claim is not None:
                        await self._try(session, claim)
                    if self._closing:
                        break
            finally:
                self._sessions.remove(session)
                await session.end()

    async def _wait_for_work(self) -> bool:
        """Wait idle for a claim; False when the connection should close instead."""
        if self._closing:
            return False
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        timer = asyncio.get_running_loop().call_later(self.options.idle_s, waiter.cancel)
        try:
            await waiter
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return False
        finally:
            timer.cancel()
            if waiter in self._idle:
                self._idle.remove(waiter)
        return True

    async def _try(self, session: "_Session", claim: Claim) -> None:
        if self._down is not None and self.clock.monotonic() < self._down_until:
            await self.settler.settle(claim, _for_all(claim, self._down))
            return
        try:
            await session.deliver(claim)
        except ConnectError as error:
            await self._unreachable(claim, error.outcome)
        except Exception as error:  # noqa: BLE001 - ours: it must not end the worker
            _log.exception("attempt broken off", qid=claim.message.id)
            evidence = Evidence("4.3.0", f"4.3.0 internal error: {type(error).__name__}")
            failed = Deferred(evidence, DeferralClass.INTERNAL)
            await self.settler.settle(claim, _for_all(claim, failed))

    async def _unreachable(self, claim: Claim, outcome: Outcome) -> None:
        """One probe per dead site: what waits shares its outcome,
        and so does what comes soon after.
        """
        if isinstance(outcome, Deferred):
            self._down = outcome
            self._proven = False
            self._down_until = self.clock.monotonic() + self.options.down_s
            _log.info("site down", site=self.name, reply=outcome.evidence.reply)
        waiting = [claim, *self.ready.drain()]
        await asyncio.gather(*(self.settler.settle(one, _for_all(one, outcome)) for one in waiting))

    def _equals(self) -> list[Host]:
        """The hosts that are as good as the best; one that was down just now is not."""
        hosts = self._in_turn()
        return [host for host in hosts if self._rank(host) == self._rank(hosts[0])]

    def _in_turn(self) -> list[Host]:
        """Every host, the best first; of equals the one with the fewest connections."""
        busy = Counter(session.host for session in self._sessions)
        return sorted(self.hosts.hosts, key=lambda host: (self._rank(host), busy[host.name]))

    def _rank(self, host: Host) -> tuple[bool, int]:
        down = self._host_down_until.get(host.name, 0.0) > self.clock.monotonic()
        return (down, host.preference)

    async def connect(self, session: "_Session") -> Connection:
        """Open a connection for `session` to the best host that gives one. Raises ConnectError."""
        refused: ConnectError | None = None
        tried = 0
        session.host = ""
        for host in self._in_turn():
            session.host = host.name
            for address in host.addresses:
                if tried == ADDRESSES_MAX:
                    break
                tried += 1
                target = Target(
                    host=host.name, address=address, port=host.port, tls=self.options.tls,
                    credentials=self.credentials,
                )  # fmt: skip
                try:
                    connection = await connect(
                        target, ehlo_name=self.options.ehlo_name, timeouts=self.options.timeouts
                    )
                except ConnectError as error:
                    # A host that may come back weighs more than one that said no for good.
                    if refused is None or isinstance(refused.outcome, Failed):
                        refused = error
                else:
                    self._host_down_until.pop(host.name, None)
                    self._connected()
                    return connection
            self._host_down_until[host.name] = self.clock.monotonic() + self.options.down_s
        assert refused is not None
        raise refused


class _Session:
    """A connection with the settlement that its next final dot must wait for.

    `host` is where it goes, or where it went last.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self.host = ""
        self._connection: Connection | None = None
        self._unsettled: asyncio.Task[None] | None = None

    async def deliver(self, claim: Claim) -> None:
        """Try every recipient of the claim once, and begin to settle. Raises ConnectError."""
        try:
            content = await self._site.settler.content_of(claim)
        except SpoolError as error:
            _log.error("content unreadable", qid=claim.message.id, error=str(error))
            self._settle(claim, unreadable(claim, error))
            return
        outcomes: dict[int, Outcome] = {}
        left = list(range(len(claim.recipients)))
        for _ in range(_AGAIN_MAX):
            people = tuple(
                Recipient(one.address, one.notify, one.orcpt)
                for one in (claim.recipients[index] for index in left)
            )
            transaction = Transaction(
                claim.message.reverse_path, people, content, envid=claim.message.envid,
                ret=claim.message.ret, smtputf8=claim.message.smtputf8,
                eight_bit=claim.message.eight_bit,
            )  # fmt: skip
            try:
                again = await self._transact(transaction, claim, left=left, outcomes=outcomes)
            except ConnectError as error:
                if not outcomes:
                    raise
                for index in left:  # some were tried already: this attempt is theirs too
                    outcomes.setdefault(claim.recipients[index].id, error.outcome)
                break
            if not again:
                break
            left = again
        self._settle(claim, outcomes)

    async def _transact(
        self,
        transaction: Transaction,
        claim: Claim,
        *,
        left: list[int],
        outcomes: dict[int, Outcome],
    ) -> list[int]:
        """One transaction, on a fresh connection where the old one turns out dead; who is left."""
        while True:
            fresh = self._connection is None or not self._connection.is_open
            if fresh or self._connection is None:
                self._connection = await self._site.connect(self)
            result = await self._connection.transact(transaction, before_dot=self._before_dot)
            if not result.reusable:
                self._connection = None
            if not result.stale:
                break
        for index, outcome in result.outcomes.items():
            outcomes[claim.recipients[left[index]].id] = outcome
        connection = self._connection
        if connection is not None and connection.transactions >= TRANSACTIONS_MAX:
            self._connection = None
            await connection.quit()
        return [left[index] for index in result.again]

    def _settle(self, claim: Claim, outcomes: Mapping[int, Outcome]) -> None:
        before = self._unsettled
        settling = self._site.settler.settle(claim, outcomes)

        async def in_order() -> None:
            if before is not None:
                await before
            await settling

        self._unsettled = asyncio.get_running_loop().create_task(in_order())

    async def _before_dot(self) -> None:
        if self._unsettled is not None and not self._unsettled.done():
            await asyncio.shield(self._unsettled)

    async def end(self) -> None:
        """Wait for the last settlement, then say goodbye."""
        try:
            if self._unsettled is not None:
                await asyncio.shield(self._unsettled)
            if self._connection is not None and self._connection.is_open:
                await self._connection.quit()
        finally:
            if self._connection is not None:
                self._connection.close()


def _for_all(claim: Claim, outcome: Outcome) -> dict[int, Outcome]:
    return {recipient.id: outcome for recipient in claim.recipients}
