"""A site: the hosts behind one next hop, and the connections that deliver to them.

On the path: the dispatcher pushes claims; each connection takes the next one, tries it, and
    settles.
Holds: never more connections than the site was seen to take, nor than its limits; at most one
    unsettled transaction per connection: the next final dot waits until the settlement before it is
    durable. What waits for its rate has one timer, and no connection for longer than an idle one.
Fails: never; what goes wrong becomes an outcome of the claims it concerns.
Standards: RFC 5321 5.1 (order of hosts), 4.5.4.1.
"""

import asyncio
from collections import Counter, deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

from relay.clock import Clock
from relay.delivery.attempt_result import for_all
from relay.delivery.connection_slots import ConnectionSlots, Slot, Standing
from relay.delivery.dependencies import Connect, Scheduler
from relay.delivery.fair_queue import FairQueue
from relay.delivery.host_selection import HostMemory, Reach, Use
from relay.delivery.outbound_session import Session
from relay.delivery.site_limits import Bucket, Concurrency, Rate, SiteOptions, stricter
from relay.message.outcome import Deferred, Outcome
from relay.observe.logs import get_logger
from relay.routing import Hosts
from relay.smtp import ConnectError, Connection
from relay.spool.types import Claim
from relay.spool.waiting import Lane

_log = get_logger("delivery")

_AFTER_FAULT_S = 1.0


@dataclass
class Site:
    """One site, by the hosts that it begins with."""

    name: str
    hosts: Hosts
    options: SiteOptions
    credentials: tuple[str, str] | None
    scheduler: Scheduler
    slots: ConnectionSlots
    clock: Clock
    connect: Connect
    memory: HostMemory = field(default_factory=HostMemory)
    ready: FairQueue = field(default_factory=FairQueue)

    def __post_init__(self) -> None:
        self.workers: dict[asyncio.Task[None], None] = {}  # one for each connection, in order
        self._leaving: set[asyncio.Task[None]] = set()
        self._sessions: set[Session] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._reach = Reach(
            self.hosts, self.options, credentials=self.credentials, memory=self.memory,
            clock=self.clock, connect=self.connect,
        )  # fmt: skip
        self._connections_max = self.options.connections_max
        self._concurrency = Concurrency(self._connections_max)
        self._bucket = Bucket(self.options.rate) if self.options.rate else None
        self._rate_timer: asyncio.TimerHandle | None = None
        self._closing = False

    def renew(self, hosts: Hosts) -> None:
        """The same hosts were found again, equals in another order."""
        self.hosts = self._reach.hosts = hosts

    def bound(self, connections_max: int | None, rate: Rate | None) -> None:
        """Hold to these limits as well from now on, each where it is stricter."""
        if connections_max is not None and connections_max < self._connections_max:
            self._connections_max = connections_max
            self._concurrency.lower(connections_max)
        strictest = stricter(self._bucket.rate if self._bucket else None, rate)
        if strictest is not None and (self._bucket is None or self._bucket.rate != strictest):
            self._bucket = Bucket(strictest)

    @property
    def is_unused(self) -> bool:
        """Whether nothing waits, no connection is open, and nothing would be forgotten with it."""
        spent = self._bucket is not None and not self._bucket.is_full(self.clock.monotonic())
        return not self.ready and not self.workers and not spent

    def push(self, claim: Claim) -> None:
        """Take a claim; a connection is woken or opened for it."""
        self.ready.push(claim)
        self._employ()
        self.slots.has_mail_of(self, claim.sender, is_new=claim.is_fresh)

    def knows_nobody_for(self, claim: Claim) -> bool:
        """Whether a claim would be settled by what is known, whatever the resolver said now."""
        return not self._stands and self._reach.known(claim) is not None

    def has_answered(self) -> bool:
        """Whether somebody is there, or was lately."""
        return self._stands or self._reach.has_answered()

    def try_anew(self) -> None:
        """Forget that nobody was there."""
        self._reach.forget()

    def close(self) -> list[Claim]:
        """Take no more; return what was not begun. Connections end after their transaction."""
        self._closing = True
        if self._rate_timer is not None:
            self._rate_timer.cancel()
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

    # -- how many connections
    def _employ(self) -> None:
        """Have a connection for what is ready, if it may go now."""
        if self._closing or not self.ready or self._waits_for_rate():
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

    def _leaves_equals_out(self) -> bool:
        """Whether there are fewer connections than hosts as good as the best."""
        if len(self.workers) >= len(self.hosts.hosts):  # nearly always, so it comes first
            return False
        return len(self.workers) < self._reach.equals_max()

    def _open_worker(self) -> bool:
        if self._closing or len(self.workers) - len(self._leaving) >= self._limit():
            return False
        if len(self.workers) >= self._connections_max:  # who is leaving is still connected
            return False
        worker = asyncio.get_running_loop().create_task(self._work())
        self.workers[worker] = None
        worker.add_done_callback(self._ended)
        return True

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self.workers.pop(worker)
        self._leaving.discard(worker)
        fault = None if worker.cancelled() else worker.exception()
        if fault is not None:  # ours: another one may come to the same end as fast
            _log.error("connection broken off", site=self.name, exc_info=fault)
            asyncio.get_running_loop().call_later(_AFTER_FAULT_S, self._employ)
            return
        self._employ()  # something may have been pushed while this one was saying goodbye

    def _limit(self) -> int:
        """How many connections there may be now: before one stands, only this probe."""
        return self._concurrency.limit if self._stands else 1

    @property
    def _stands(self) -> bool:
        return any(session.is_connected for session in self._sessions)

    def _has_to_go(self, served: int) -> bool:
        """Whether a connection should end though there may be work for it."""
        one_too_many = len(self.workers) - len(self._leaving) > self._limit()
        if not (one_too_many or self.slots.asks_back(self, served=served)):
            return False
        worker = asyncio.current_task()
        assert worker is not None
        self._leaving.add(worker)
        return True

    # -- how fast
    def _waits_for_rate(self) -> bool:
        """Whether the next message may not go yet; a timer is set then."""
        if self._bucket is None:
            return False
        wait_s = self._bucket.wait_s(self.clock.monotonic())
        if wait_s <= 0:
            return False
        if self._rate_timer is None:
            loop = asyncio.get_running_loop()
            self._rate_timer = loop.call_later(wait_s, self._rate_allows)
        return True

    def _rate_allows(self) -> None:
        self._rate_timer = None
        self._employ()

    def _next(self) -> Claim | None:
        """The next claim, if it may go now."""
        if self._bucket is None:
            return self.ready.pop()
        if self._waits_for_rate():
            return None
        claim = self.ready.pop()
        if claim is not None:
            self._bucket.take(self.clock.monotonic())
            self._employ()  # or set the timer
        return claim

    # -- one connection
    async def _work(self) -> None:
        """One connection's life: from the first claim to the end of an idle wait."""
        await self._share_what_is_known()
        first = self.ready.first
        if first is None or self._closing:
            return
        standing = Standing.DOWN if first.lane is Lane.DOWN else Standing.NEW
        if self.has_answered():
            standing = Standing.PROVEN
        async with self.slots.hold(
            self, standing=standing, sender=first.sender, is_new=first.is_fresh
        ) as slot:
            was_tried = first.attempts > 0
            session = Session(
                lambda session: self._connection(session, slot, was_tried=was_tried), self.scheduler
            )
            self._sessions.add(session)
            served = 0
            try:
                while not self._closing:
                    claim = self._next()
                    if claim is None:
                        if not await self._wait_for_work():
                            break
                    elif not await self._try(session, claim):
                        break
                    else:
                        served += 1
                        if self._has_to_go(served):
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
        """Try a claim; False when there was no connection for it."""
        try:
            pushed_back = await session.deliver(claim)
        except ConnectError as error:
            others = sum(one.is_connected for one in self._sessions if one is not session)
            if others:
                self._take_no_more_than(others, error.outcome)
                await self._put_back(claim)
            else:
                await self._unreachable(claim, error.outcome)
            return False
        if pushed_back:
            self._concurrency.pushed_back()
        elif session.host:  # else nothing was asked of it
            self._concurrency.succeeded(self.clock.monotonic())
            if self.ready and not self._waits_for_rate():
                self._open_worker()
        return True

    async def _connection(self, session: Session, slot: Slot, *, was_tried: bool) -> Connection:
        """Open a connection for `session`. Raises ConnectError."""
        others = [one for one in self._sessions if one is not session]
        use = Use(
            busy=Counter(one.host for one in others),
            standing=frozenset(one.host for one in others if one.is_connected),
        )
        # what is of lane DOWN for want of room elsewhere is for hosts that nobody asked yet
        is_new = slot.standing is Standing.NEW or not (
            was_tried or slot.standing is Standing.PROVEN
        )
        patience = partial(self.slots.patience, slot) if is_new else nullcontext
        connection = await self._reach.connection(use, session.goes_to, patience=patience)
        self.slots.proven(slot)
        if not use.standing:  # what waits for this answer
            asyncio.get_running_loop().call_soon(self._fill)
        return connection

    def _fill(self) -> None:
        """As many connections as there is work for, and as the site takes."""
        for _ in range(len(self.ready)):
            if self._waits_for_rate() or not self._open_worker():
                return

    # -- who cannot be reached
    def _take_no_more_than(self, connections: int, outcome: Outcome) -> None:
        """A site that talks on other connections is not dead: it has enough of them for a while."""
        until_s = self.clock.monotonic() + self.options.down_s
        self._concurrency.full_at(connections, until_s=until_s)
        reply = outcome.evidence.reply
        _log.info("site has enough", site=self.name, connections=connections, reply=reply)

    async def _put_back(self, claim: Claim) -> None:
        """Let a claim that there was no connection for wait for the others."""
        if self._closing:  # nobody would come for it
            await self.scheduler.give_back(claim)
            return
        self.ready.push(claim)
        self._wake_idle()

    async def _unreachable(self, claim: Claim, outcome: Outcome) -> None:
        """Nobody is there: all that waits shares the outcome of this one probe."""
        if isinstance(outcome, Deferred):
            self._concurrency = Concurrency(self._connections_max)
            _log.info("site down", site=self.name, reply=outcome.evidence.reply)
        await self._share([(one, outcome) for one in (claim, *self.ready.drain())])

    async def _share_what_is_known(self) -> None:
        """Settle what came behind a probe that found nobody, where that is news enough for it."""
        if self._stands or not self.ready:
            return
        known: list[tuple[Claim, Outcome]] = []
        for claim in list(self.ready):
            outcome = self._reach.known(claim)
            if outcome is not None:
                self.ready.remove(claim.key)
                known.append((claim, outcome))
        await self._share(known)

    async def _share(self, outcomes: list[tuple[Claim, Outcome]]) -> None:
        """Settle claims that were not tried for themselves, in as few commits as it takes."""
        await asyncio.gather(
            *(
                self.scheduler.settle(claim, for_all(claim, outcome), reached=False)
                for claim, outcome in outcomes
            )
        )
