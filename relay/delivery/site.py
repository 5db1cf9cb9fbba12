"""A site: the hosts that one next hop resolves to, and the connections that deliver to them.

Each connection is a worker that takes the next claim, attempts it and records it. A site opens one
connection first, as a probe; once that stands, as many as its ConcurrencyLimit allows. When no host
gives a connection, all claims that wait share the outcome of that probe. A site of which another
connection works is not unreachable: it opens no more connections for a while. A claim that waits
for the message rate holds no connection longer than an idle connection is kept. While claims wait
for the ConcurrencyLimit, a timer asks it again, since time alone may allow a connection.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Coroutine, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from msgspec import Struct

from relay.base.clock import Clock, Timer
from relay.base.message.outcome import INTERNAL_ERROR, Deferred, Failed, Outcome
from relay.base.observe.logs import get_logger
from relay.base.phrases import counted
from relay.delivery.attempt_result import same_outcome
from relay.delivery.connection_slots import ConnectionSlots, SiteStatus, Slot
from relay.delivery.dependencies import Scheduler
from relay.delivery.fair_queue import ClaimQueue
from relay.delivery.host_selection import HostSelection, HostUse
from relay.delivery.outbound_session import NoRoomError, OutboundSession
from relay.delivery.site_limits import (
    FEWER_S,
    ConcurrencyLimit,
    Pushback,
    SiteOptions,
    SitePause,
    SitePauses,
    TokenBucket,
)
from relay.delivery.smtp.connect import ConnectError
from relay.delivery.smtp.connection import Connection
from relay.store.spool.types import Claim, PriorityLevel

T = TypeVar("T")
_log = get_logger("delivery")

_AFTER_FAULT_S = 1.0
PROBE_S = 60.0  # for all hosts of a site
_NOBODY = 0  # the sender of a probe


class SiteState(Struct, frozen=True):
    """What a site does now: its connections, for how long it opens none for new mail, and the last
    failure to connect to one of its hosts, with its age.
    """

    connections: int
    paused_s: float
    failure: Deferred | Failed | None
    failed_s: float
    paused_by: str = ""  # the [[reply]] entry that paused it


class SiteProbe(Struct, frozen=True):
    """What a probe found: the host that gave a session, "" for none, with the address and the TLS
    of the session; `reply` says why there is none, `tried` what each host gave.
    """

    host: str = ""
    address: str = ""
    tls: str = ""
    cipher: str = ""
    reply: str = ""
    tried: tuple[str, ...] = ()


@dataclass(eq=False)
class Site:
    """One site."""

    name: str  # of its first hosts, for the log
    host_selection: HostSelection  # connects to the next host
    options: SiteOptions  # its limits
    scheduler: Scheduler  # records the results of claims
    slots: ConnectionSlots  # of all sites together
    clock: Clock  # for how long something is remembered
    pauses: SitePauses  # of all sites
    ready: ClaimQueue = field(default_factory=ClaimQueue)  # claims that wait here

    def __post_init__(self) -> None:
        # one for each connection, in the order of their start
        self.workers: dict[asyncio.Task[Any], None] = {}
        self._closing_workers: set[asyncio.Task[Any]] = set()
        self._sessions: set[OutboundSession] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._connections_max = self.options.connections_max
        self._concurrency = ConcurrencyLimit(self._connections_max)
        self._limit_timer: Timer | None = None
        self._bucket = TokenBucket(self.options.rate) if self.options.rate else None
        self._rate_timer: Timer | None = None
        self._closing = False
        self._is_probed = False

    @property
    def is_unused(self) -> bool:
        """Whether it has no claims, no connections and no state that must be kept."""
        spent = self._bucket is not None and not self._bucket.is_full(self.clock.monotonic())
        return not self.ready and not self.workers and not spent

    @property
    def state(self) -> SiteState:
        """What it does now."""
        now_s = self.clock.monotonic()
        failure = self.host_selection.last_failure()
        paused_s = self._bucket.wait_s(now_s) if self._bucket is not None else 0.0
        if failure is not None and not self._is_connected and self.host_selection.all_failed():
            paused_s = max(paused_s, failure.at_s + self.options.unreachable_s - now_s)
        pause = self.pauses.of(self._pause_key)
        if pause is not None:
            paused_s = max(paused_s, pause.until_s - now_s)
        return SiteState(
            connections=sum(session.is_connected for session in self._sessions),
            paused_s=paused_s,
            failure=failure.outcome if failure is not None else None,
            failed_s=now_s - failure.at_s if failure is not None else 0.0,
            paused_by=pause.provider if pause is not None else "",
        )

    @property
    def delayed_claims(self) -> int:
        """How many claims wait until the message rate allows them."""
        return len(self.ready) if self._rate_timer is not None else 0

    @property
    def _pause_key(self) -> Hashable:
        return self.name, self.host_selection.via.source_address

    def postpones(self, *claims: Claim) -> bool:
        """Whether a pause keeps the site from being contacted; then the claims wait for its end in
        the spool.
        """
        pause = self.pauses.of(self._pause_key)
        if pause is None:
            return False
        left_us = math.ceil((pause.until_s - self.clock.monotonic()) * 1e6)
        self.scheduler.postpone(claims, self.clock.queue_us() + left_us)
        return True

    def push(self, claim: Claim) -> None:
        """Take a claim; an idle connection is woken for it, or one is opened."""
        self.ready.push(claim)
        self._ensure_connection()
        self.slots.use_earlier_turn(self, claim.sender, is_new=claim.is_fresh)

    def has_known_failure_for(self, claim: Claim) -> bool:
        """Whether a known failure would end the claim, without another lookup."""
        return not self._is_connected and self.host_selection.known_failure(claim) is not None

    def has_answered(self) -> bool:
        """Whether it is connected, or was lately."""
        return self._is_connected or self.host_selection.has_answered()

    def retry_now(self) -> None:
        """Forget failures to connect, and a pause."""
        self.host_selection.forget_failures()
        self.pauses.end(self._pause_key)

    def close(self) -> list[Claim]:
        """Take no more claims; return those not begun. Connections end after their transaction."""
        self._closing = True
        for timer in (self._rate_timer, self._limit_timer):
            if timer is not None:
                timer.cancel()
        for waiter in self._idle:
            if not waiter.done():
                waiter.set_result(None)
        return self.ready.drain()

    def retire(self) -> list[Claim]:
        """Close. No further transaction begins, not even on a connection that is being opened."""
        for session in self._sessions:
            session.is_over = True
        self.host_selection.forget_failures()
        return self.close()

    def abort(self) -> None:
        """Cancel every connection."""
        for worker in self.workers:
            worker.cancel()

    def close_idle(self) -> bool:
        """Close one idle connection, so that another site can have its slot."""
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.cancel()
                return True
        return False

    async def probe(self) -> SiteProbe:
        """Open a session as delivery would, and end it before MAIL. It counts as a connection of
        the site, and is not opened where the site may have no more.

        A known failure does not count: the hosts are connected to.
        """
        if self._is_probed:
            return SiteProbe(reply="another probe of these hosts is in progress")
        connections = len(self.workers) - len(self._closing_workers)
        if len(self.workers) >= self._connections_max or not self._allows(connections + 1):
            more = "the site has the connections that it may have now"
            return SiteProbe(reply=f"{more}: {counted(connections, 'connection')}")
        self._is_probed = True
        worker = self._start(self._run_probe())
        try:
            await asyncio.wait([worker])
        finally:
            worker.cancel()
            self._is_probed = False
        if worker.cancelled():
            return SiteProbe(reply="the relay is shutting down")
        return SiteProbe(reply=INTERNAL_ERROR) if worker.exception() else worker.result()

    async def _run_probe(self) -> SiteProbe:
        self.host_selection.forget_failures()
        try:
            async with (
                asyncio.timeout(PROBE_S),  # real time: a peer
                self.slots.hold(
                    self, status=SiteStatus.UNKNOWN, sender=_NOBODY, is_new=False
                ) as slot,
            ):
                connection = await self.host_selection.connect(
                    self._use_of([*self._sessions]), lambda _host: None, probe_timeout=nullcontext
                )
                self.slots.mark_answered(slot)
                await connection.quit()
                peer = connection.peer
                return SiteProbe(peer.host, peer.address, peer.tls, peer.cipher, tried=peer.hosts)
        except TimeoutError:
            return SiteProbe(reply=f"no session within {PROBE_S:g} s")
        except ConnectError as error:
            evidence = error.outcome.evidence
            return SiteProbe(reply=evidence.reply, tried=evidence.hosts)

    # -- the number of connections
    def _ensure_connection(self) -> None:
        """Wake or open a connection for the next claim, if the rate allows it."""
        if self._closing or not self.ready or self._waits_for_rate():
            return
        # RFC 5321 5.1 shares the load among equals: each has its connection before one has two.
        if self._has_unused_equal_host() and self._open_worker():
            return
        if not self._wake_idle():
            self._open_worker()

    def _wake_idle(self) -> bool:
        """Wake an idle connection; return whether there was one."""
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return True
        return False

    def _has_unused_equal_host(self) -> bool:
        """Whether there are fewer connections than hosts as good as the best."""
        if len(self.workers) >= len(self.host_selection.hosts.hosts):  # nearly always
            return False
        return len(self.workers) < self.host_selection.count_of_best()

    def _open_worker(self) -> bool:
        if self._closing or len(self.workers) >= self._connections_max:
            return False  # a closing worker is still connected
        if not self._allows(len(self.workers) - len(self._closing_workers) + 1):
            self._watch_limit()
            return False
        self._start(self._run_connection())
        return True

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a worker."""
        worker = asyncio.get_running_loop().create_task(work)
        self.workers[worker] = None
        worker.add_done_callback(self._worker_ended)
        return worker

    def _worker_ended(self, worker: asyncio.Task[Any]) -> None:
        self.workers.pop(worker)
        self._closing_workers.discard(worker)
        fault = None if worker.cancelled() else worker.exception()
        if fault is not None:  # an internal error may repeat: pause
            _log.error("internal error in a connection", site=self.name, exc_info=fault)
            self.clock.call_later(_AFTER_FAULT_S, self._ensure_connection)
            return
        self._ensure_connection()  # a claim may have been pushed while this worker ended

    def _allows(self, connections: int) -> bool:
        """Whether there may be that many connections: one probe until a connection stands."""
        if connections <= 1 or not self._is_connected:
            return connections <= 1
        return self._concurrency.allows(connections, self.clock.monotonic())

    def _watch_limit(self) -> None:
        """Set a timer for when the limit may allow a connection for claims that wait."""
        if self._limit_timer is not None:  # nearly always
            return
        wait_s = self._concurrency.wait_s(self.clock.monotonic())
        if wait_s is not None:
            self._limit_timer = self.clock.call_later(wait_s, self._on_limit_timer)

    def _on_limit_timer(self) -> None:
        self._limit_timer = None
        self._open_connections()

    @property
    def _is_connected(self) -> bool:
        return any(session.is_connected for session in self._sessions)

    def _must_close(self, session: OutboundSession, served: int) -> bool:
        """Whether a connection should end although there may be claims for it."""
        if session.is_connected:  # one that is only tried may be refused: it takes no place of this
            one_too_many = not self._allows(len(self._sessions)) and not self._allows(
                sum(one.is_connected for one in self._sessions)
            )
        else:
            one_too_many = not self._allows(len(self.workers) - len(self._closing_workers))
        if not (one_too_many or self.slots.is_wanted_back(self, served=served)):
            return False
        worker = asyncio.current_task()
        assert worker is not None
        self._closing_workers.add(worker)
        return True

    # -- the message rate
    def _waits_for_rate(self) -> bool:
        """Whether the rate delays the next message; then a timer is set."""
        if self._bucket is None:
            return False
        wait_s = self._bucket.wait_s(self.clock.monotonic())
        if wait_s <= 0:
            return False
        if self._rate_timer is None:
            self._rate_timer = self.clock.call_later(wait_s, self._on_rate_timer)
        return True

    def _on_rate_timer(self) -> None:
        self._rate_timer = None
        self._ensure_connection()

    def _next_claim(self) -> Claim | None:
        """Take the next claim, if the rate allows it."""
        if self._bucket is None:
            return self.ready.pop()
        if self._waits_for_rate():
            return None
        claim = self.ready.pop()
        if claim is not None:
            self._bucket.take(self.clock.monotonic())
            self._ensure_connection()  # or set the timer
        return claim

    # -- one connection
    async def _run_connection(self) -> None:
        """Run one connection, from the first claim to the end of an idle wait."""
        await self._record_known_failures()
        first = self.ready.first
        if first is None or self._closing:
            return
        status = SiteStatus.UNKNOWN
        if self.has_answered():
            status = SiteStatus.ANSWERED
        elif first.level is PriorityLevel.UNREACHABLE:
            status = SiteStatus.UNREACHABLE
        if len(self.ready) > 1:  # once this waits: the turn of another claim may be earlier
            asyncio.get_running_loop().call_soon(self._use_earlier_turns)
        async with self.slots.hold(
            self, status=status, sender=first.sender, is_new=first.is_fresh
        ) as slot:
            was_attempted = first.attempts > 0
            session = OutboundSession(
                lambda session: self._connect(session, slot, was_attempted=was_attempted),
                self.scheduler,
                self.clock,
                judged=self._judged,
            )
            self._sessions.add(session)
            served = 0
            try:
                while not self._closing:
                    claim = self._next_claim()
                    if claim is None:
                        if not await self._wait_for_work():
                            break
                    elif not await self._attempt_with_room(session, claim):
                        break
                    else:
                        served += 1
                        if self._must_close(session, served):
                            break
            finally:
                self._sessions.remove(session)
                await session.end()

    def _use_earlier_turns(self) -> None:
        """Let the wait for a first slot have the earliest turn of all claims."""
        turns = dict.fromkeys((claim.sender, claim.is_fresh) for claim in self.ready)
        for sender, is_new in turns:
            self.slots.use_earlier_turn(self, sender, is_new=is_new)

    async def _wait_for_work(self) -> bool:
        """Wait idle for a claim; False when the connection should close instead."""
        if self._closing or self.slots.has_waiters:
            return False
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        timer = self.clock.call_later(self.options.idle_s, waiter.cancel)
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

    async def _attempt_with_room(self, session: OutboundSession, claim: Claim) -> bool:
        """Attempt a claim once there is room for its content; the message rate counts it then.
        Return False if there was no connection for it.
        """
        while True:
            try:
                return await self._attempt(session, claim)
            except NoRoomError:
                if self._bucket is not None:
                    self._bucket.give_back()
                    self._ensure_connection()  # for a claim whose content has room
            if not await self.scheduler.wait_for_room(claim):
                return True
            if self._waits_for_rate():
                await self._requeue(claim)
                return True
            if self._bucket is not None:
                self._bucket.take(self.clock.monotonic())

    async def _attempt(self, session: OutboundSession, claim: Claim) -> bool:
        """Attempt a claim; return False if there was no connection for it."""
        if session.is_connected:
            self._begin(session)
        try:
            pushback = await session.deliver(claim)
        except ConnectError as error:
            others = sum(one.is_connected for one in self._sessions if one is not session)
            if session.is_over:
                await self._requeue(claim)
            elif others:
                self._lower_limit(others, error.outcome)
                await self._requeue(claim)
            else:
                await self._unreachable(claim, error.outcome, took_s=session.took_s)
            return False
        finally:
            self._concurrency.end(session)
        if pushback is not Pushback.NONE:
            self._concurrency.pushed_back(pushback)
        elif session.host:  # otherwise no host was involved
            self._concurrency.succeeded(self.clock.monotonic())
            if self.ready and not self._waits_for_rate():
                self._open_worker()
        return True

    def _judged(self, outcome: Deferred | Failed) -> Deferred | Failed:
        """Return what a rejection means, and obey the [[reply]] entry that says so."""
        outcome = self.options.providers.judged(outcome)
        self._obey(outcome)
        return outcome

    def _obey(self, outcome: Outcome) -> None:
        """Use fewer connections, or none and postpone what waits, as an entry demands."""
        entry = self.options.providers.entries.get(outcome.evidence.provider)
        if entry is None:
            return
        now_s = self.clock.monotonic()
        if entry.connections:
            self._concurrency.full_at(entry.connections, until_s=now_s + FEWER_S)
        if entry.pause_s and self.pauses.of(self._pause_key) is None:
            _log.warning("site paused", site=self.name, provider=entry.name, pause_s=entry.pause_s)
            pause = SitePause(self.name, entry.name, now_s + entry.pause_s)
            self.pauses.begin(self._pause_key, pause)
            self.postpones(*self.ready.drain())

    def _begin(self, session: OutboundSession) -> None:
        """Note that a transaction begins. If it is slow, claims that wait no longer wait for it."""
        self._concurrency.begin(session, self.clock.monotonic())
        if self.ready:
            self._watch_limit()

    async def _connect(
        self, session: OutboundSession, slot: Slot, *, was_attempted: bool
    ) -> Connection:
        """Open a connection for `session`; its transaction begins then. Raises ConnectError."""
        self._concurrency.end(session)
        use = self._use_of([one for one in self._sessions if one is not session])
        # a fresh claim has the unreachable level for lack of room: its hosts may be reachable
        is_new = slot.status is SiteStatus.UNKNOWN or not (
            was_attempted or slot.status is SiteStatus.ANSWERED
        )
        probe_timeout = partial(self.slots.probe_timeout, slot) if is_new else nullcontext
        connection = await self.host_selection.connect(
            use, session.set_host, probe_timeout=probe_timeout
        )
        self.slots.mark_answered(slot)
        self._begin(session)
        if not use.connected:  # open connections for the claims that waited for this one
            asyncio.get_running_loop().call_soon(self._open_connections)
        return connection

    def _use_of(self, sessions: Sequence[OutboundSession]) -> HostUse:
        return HostUse(
            sessions=Counter(one.host for one in sessions),
            connected=frozenset(one.host for one in sessions if one.is_connected),
        )

    def _open_connections(self) -> None:
        """Open as many connections as there are claims, up to the limit."""
        for _ in range(len(self.ready)):
            if self._waits_for_rate() or not self._open_worker():
                return

    # -- failures to connect
    def _lower_limit(self, connections: int, outcome: Outcome) -> None:
        """Treat the failure as the site's connection limit, because its other connections work."""
        until_s = self.clock.monotonic() + self.options.unreachable_s
        self._concurrency.full_at(connections, until_s=until_s)
        reply = outcome.evidence.reply
        _log.info(
            "site connection limit reached", site=self.name, connections=connections, reply=reply
        )
        self._obey(outcome)

    async def _requeue(self, claim: Claim) -> None:
        """Let a claim wait for the other connections."""
        if self._closing:  # no worker would take it
            await self.scheduler.give_back(claim)
            return
        if self.postpones(claim):
            return
        self.ready.push(claim)
        self._wake_idle()

    async def _unreachable(self, claim: Claim, outcome: Outcome, *, took_s: float) -> None:
        """Record all claims that wait with the outcome of this failed probe for `claim`."""
        if isinstance(outcome, Deferred):
            self._concurrency = ConcurrencyLimit(self._connections_max)
            _log.info("site unreachable", site=self.name, reply=outcome.evidence.reply)
        self._obey(outcome)
        await self._record_all([(one, outcome) for one in (claim, *self.ready.drain())], took_s)

    async def _record_known_failures(self) -> None:
        """Record claims that came after a failed probe, if that failure is recent enough."""
        if self._is_connected or not self.ready:
            return
        known: list[tuple[Claim, Outcome]] = []
        for claim in list(self.ready):
            outcome = self.host_selection.known_failure(claim)
            if outcome is not None:
                self.ready.remove(claim.key)
                known.append((claim, outcome))
        await self._record_all(known)

    async def _record_all(
        self, outcomes: list[tuple[Claim, Outcome]], took_s: float | None = None
    ) -> None:
        """Record claims together in few commits. The first has had an attempt that took `took_s`;
        the others, and without it all, have none of their own.
        """
        await asyncio.gather(
            *(
                self.scheduler.record(
                    claim, same_outcome(claim, outcome), reached=False,
                    took_s=None if number else took_s,
                )
                for number, (claim, outcome) in enumerate(outcomes)
            )
        )  # fmt: skip
