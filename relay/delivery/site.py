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
from dataclasses import dataclass, field
from typing import Literal

from relay.clock import Clock
from relay.delivery.conclude import for_all
from relay.delivery.fairqueue import FairQueue
from relay.delivery.session import Session, Settler
from relay.delivery.slots import ConnectionSlots
from relay.journal.logs import get_logger
from relay.message.outcome import Deferred, Failed, Outcome
from relay.routing import Host, Hosts
from relay.smtp import ConnectError, Connection, Target, Timeouts, connect
from relay.spool.types import Claim

_log = get_logger("delivery")

ADDRESSES_MAX = 5  # per claim, as Postfix's smtp_mx_address_limit


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
        self.workers: set[asyncio.Task[None]] = set()  # one for each connection
        self._sessions: set[Session] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._host_down_until: dict[str, float] = {}
        self._down_until = 0.0
        self._down: Outcome | None = None
        self._proven = False  # a connection has stood since the site was last down
        self._enough = self.options.connections_max  # as many connections as it was seen to take
        self._enough_until = 0.0
        self._closing = False

    @property
    def is_unused(self) -> bool:
        """Whether nothing waits and no connection is open."""
        return not self.ready and not self.workers

    def push(self, claim: Claim) -> None:
        """Take a claim; a connection is woken or opened for it."""
        self.ready.push(claim)
        if self._closing:
            return
        # RFC 5321 5.1 shares the load among equals: each has its connection before one has two.
        if self._leaves_equals_out() and self._open_worker():
            return
        if not self._wake_idle():
            self._open_worker()

    def _wake_idle(self) -> bool:
        """Let an idle connection take what is ready; whether there was one."""
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return True
        return False

    def close(self) -> list[Claim]:
        """Take no more; return what was not begun. Connections end after their transaction."""
        self._closing = True
        for waiter in self._idle:
            if not waiter.done():
                waiter.set_result(None)
        return self.ready.drain()

    def abort(self) -> None:
        """End every connection at once."""
        for worker in self.workers:
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
        if len(self.workers) >= self._limit():
            return False
        worker = asyncio.get_running_loop().create_task(self._work())
        self.workers.add(worker)
        worker.add_done_callback(self._ended)
        return True

    def _limit(self) -> int:
        """How many connections there may be now."""
        if not self._proven:
            return 1
        if self.clock.monotonic() < self._enough_until:
            return self._enough
        return self.options.connections_max

    def _connected(self) -> None:
        """The first connection of a site is a probe: when it stands, the others may follow."""
        if self._proven:
            return
        self._proven = True
        for _ in range(len(self.ready)):
            self._open_worker()

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self.workers.discard(worker)
        if self.ready and not self._closing:  # pushed while this one was saying goodbye
            self._open_worker()

    async def _work(self) -> None:
        """One connection's life: from the first claim to the end of an idle wait."""
        async with self.slots.hold(self):
            session = Session(self._connect, self.settler)
            self._sessions.add(session)
            try:
                while (claim := self.ready.pop()) is not None or await self._wait_for_work():
                    if claim is not None and not await self._try(session, claim):
                        break
                    if self._closing:
                        break
            finally:
                self._sessions.remove(session)
                await session.end()

    async def _wait_for_work(self) -> bool:
        """Wait idle for a claim; False when the connection should close instead."""
        if self._closing or self.slots.are_wanted:
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

    async def _try(self, session: Session, claim: Claim) -> bool:
        """Try a claim; False when this connection is one more than the site takes."""
        if self._down is not None and self.clock.monotonic() < self._down_until:
            await self._share(claim, self._down)
            return True
        try:
            await session.deliver(claim)
        except ConnectError as error:
            others = sum(one.is_connected for one in self._sessions if one is not session)
            if others:
                self._take_no_more_than(others, error.outcome)
                self.ready.push(claim)
                self._wake_idle()
                return False
            await self._unreachable(claim, error.outcome)
        return True

    def _take_no_more_than(self, connections: int, outcome: Outcome) -> None:
        """A site that talks on other connections is not dead: it has enough of them for a while."""
        self._enough = connections
        self._enough_until = self.clock.monotonic() + self.options.down_s
        reply = outcome.evidence.reply
        _log.info("site has enough", site=self.name, connections=connections, reply=reply)

    async def _unreachable(self, claim: Claim, outcome: Outcome) -> None:
        """Remember a dead site: what comes soon after its one probe shares the outcome."""
        if isinstance(outcome, Deferred):
            self._down = outcome
            self._proven = False
            self._down_until = self.clock.monotonic() + self.options.down_s
            _log.info("site down", site=self.name, reply=outcome.evidence.reply)
        await self._share(claim, outcome)

    async def _share(self, claim: Claim, outcome: Outcome) -> None:
        """Settle a claim, and all that waits with it, in as few commits as it takes."""
        waiting = [claim, *self.ready.drain()]
        await asyncio.gather(*(self.settler.settle(one, for_all(one, outcome)) for one in waiting))

    def _leaves_equals_out(self) -> bool:
        """Whether there are fewer connections than hosts as good as the best."""
        if len(self.workers) >= len(self.hosts.hosts):  # nearly always, so it comes first
            return False
        ranks = sorted(map(self._rank, self.hosts.hosts))
        return len(self.workers) < ranks.count(ranks[0])

    def _in_turn(self) -> list[Host]:
        """Every host, the best first; of equals the one with the fewest connections."""
        busy = Counter(session.host for session in self._sessions)
        return sorted(self.hosts.hosts, key=lambda host: (self._rank(host), busy[host.name]))

    def _rank(self, host: Host) -> tuple[bool, int]:
        down = self._host_down_until.get(host.name, 0.0) > self.clock.monotonic()
        return (down, host.preference)

    async def _connect(self, session: Session) -> Connection:
        """Open a connection for `session` to the best host that gives one. Raises ConnectError."""
        refused: ConnectError | None = None
        places = [(host, address) for host in self._in_turn() for address in host.addresses]
        for host, address in places[:ADDRESSES_MAX]:
            session.host = host.name
            target = Target(
                host=host.name, address=address, port=host.port, tls=self.options.tls,
                credentials=self.credentials,
            )  # fmt: skip
            try:
                connection = await connect(
                    target, ehlo_name=self.options.ehlo_name, timeouts=self.options.timeouts
                )
            except ConnectError as error:
                self._host_down_until[host.name] = self.clock.monotonic() + self.options.down_s
                # A host that may come back weighs more than one that said no for good.
                if refused is None or isinstance(refused.outcome, Failed):
                    refused = error
            else:
                self._host_down_until.pop(host.name, None)
                self._connected()
                return connection
        assert refused is not None
        raise refused
