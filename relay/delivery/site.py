"""A site: the hosts that one next hop resolves to, the claims that wait for them, and its limits.

A site opens one connection first, as a probe; once that stands, as many as its ConcurrencyLimit
allows. `serve` runs each (OutboundSession). When no host gives a connection, all claims that wait
share the outcome of that probe. A site of which another connection works is not unreachable: it
opens no more connections for a while. A claim that waits for the message rate holds no connection
longer than an idle connection is kept. While claims wait for the ConcurrencyLimit, a timer asks it
again, since time alone may allow a connection.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec import Struct

from relay.base.clock import Clock, Timer
from relay.base.message.outcome import INTERNAL_ERROR, Deferred, Failed, Outcome
from relay.base.observe.logs import get_logger
from relay.base.phrases import counted
from relay.delivery import site_limits
from relay.delivery.attempt_recorder import AttemptRecorder
from relay.delivery.attempt_result import same_outcome
from relay.delivery.connection_slots import ConnectionSlots, SiteStatus
from relay.delivery.fair_queue import ClaimQueue
from relay.delivery.graph.turns import FillingTurns
from relay.delivery.host_selection import HostSelection, SessionState
from relay.delivery.smtp.connect import ConnectError
from relay.store.spool.types import Claim, PriorityLevel

T = TypeVar("T")
_log = get_logger("delivery")

_AFTER_FAULT_S = 1.0
RETRY_AFTER = "Retry-After"  # what pauses a site in place of a [[reply]] entry
PROBE_S = 60.0  # for all hosts of a site
_NO_SENDER = 0  # of a probe


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
    hosts: HostSelection  # connects to the next host
    options: site_limits.SiteOptions  # its limits
    slots: ConnectionSlots  # of all sites together
    recorder: AttemptRecorder  # records the results of claims
    pauses: dict[Hashable, site_limits.SitePause]  # of all sites; some are over
    serve: Callable[["Site"], Coroutine[Any, Any, None]]  # runs one connection
    clock: Clock  # for how long something is remembered
    turns: FillingTurns  # of all sites together
    ready: ClaimQueue = field(default_factory=ClaimQueue)  # claims that wait here

    def __post_init__(self) -> None:
        # one for each connection, in the order of their start
        self.workers: dict[asyncio.Task[Any], None] = {}
        self.sessions: set[SessionState] = set()
        self.closing = False
        self._closing_workers: set[asyncio.Task[Any]] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._connections_max = self.options.connections_max
        self.concurrency = site_limits.ConcurrencyLimit(self._connections_max)
        self._limit_timer: Timer | None = None
        self._bucket = site_limits.TokenBucket(self.options.rate) if self.options.rate else None
        self._rate_timer: Timer | None = None

    @property
    def is_unused(self) -> bool:
        """Whether it has no claims, no connections and no state that must be kept."""
        spent = self._bucket is not None and not self._bucket.is_full(self.clock.monotonic())
        return not self.ready and not self.workers and not spent

    @property
    def _pause(self) -> site_limits.SitePause | None:
        """The pause during which the site is not contacted, whatever its TLS policy."""
        pause = self.pauses.get(self._pause_key) if self.pauses else None  # nearly never one
        return pause if pause is not None and pause.until_s > self.clock.monotonic() else None

    @property
    def _pause_key(self) -> Hashable:
        via = self.hosts.via  # a login has limits of its own
        return self.name, via.source_address, via.login.user if via.login else ""

    @property
    def is_connected(self) -> bool:
        """Whether the site has an open connection."""
        return any(session.is_connected for session in self.sessions)

    @property
    def state(self) -> SiteState:
        """What it does now."""
        now_s = self.clock.monotonic()
        failure = self.hosts.last_failure()
        paused_s = self._bucket.wait_s(now_s) if self._bucket is not None else 0.0
        if failure is not None and not self.is_connected and self.hosts.all_failed():
            paused_s = max(paused_s, failure.at_s + self.options.unreachable_s - now_s)
        if (pause := self._pause) is not None:
            paused_s = max(paused_s, pause.until_s - now_s)
        return SiteState(
            connections=sum(session.is_connected for session in self.sessions),
            paused_s=paused_s,
            failure=failure.outcome if failure is not None else None,
            failed_s=now_s - failure.at_s if failure is not None else 0.0,
            paused_by=pause.provider if pause is not None else "",
        )

    @property
    def delayed_claims(self) -> int:
        """How many claims wait until the message rate allows them."""
        return len(self.ready) if self._rate_timer is not None else 0

    def push(self, claim: Claim) -> None:
        """Take a claim; an idle connection is woken for it, or one is opened."""
        if self._postpones(claim):
            return
        self.recorder.claims.track(claim, self.ready)
        self.ready.push(claim)
        self._ensure_connection()
        self.slots.use_earlier_turn(self, claim.sender, is_new=claim.is_fresh)

    def has_known_failure_for(self, claim: Claim) -> bool:
        """Whether a known failure would end the claim, without another lookup."""
        return not self.is_connected and self.hosts.known_failure(claim) is not None

    def has_answered(self) -> bool:
        """Whether it is connected, or was lately."""
        return self.is_connected or self.hosts.has_answered()

    def retry_now(self) -> None:
        """Forget failures to connect, and a pause."""
        self.hosts.forget_failures()
        self.pauses.pop(self._pause_key, None)

    def close(self) -> list[Claim]:
        """Take no more claims; return those not begun. Connections end after their transaction."""
        self.closing = True
        for timer in (self._rate_timer, self._limit_timer):
            if timer is not None:
                timer.cancel()
        for waiter in self._idle:
            if not waiter.done():
                waiter.set_result(None)
        return self.ready.drain()

    def retire(self) -> list[Claim]:
        """Close. No further transaction begins, not even on a connection that is being opened."""
        for session in self.sessions:
            session.is_over = True
        self.hosts.forget_failures()
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
        the site, and is not opened if the site may have no more. Known failures do not count: the
        hosts are contacted.
        """
        connections = len(self.workers) - len(self._closing_workers)
        if len(self.workers) >= self._connections_max or not self._allows(connections + 1):
            more = "the site has the connections that it may have now"
            return SiteProbe(reply=f"{more}: {counted(connections, 'connection')}")
        worker = self._start(self._run_probe())
        try:
            await asyncio.wait([worker])
        finally:
            worker.cancel()
        if worker.cancelled():
            return SiteProbe(reply="the relay is shutting down")
        return SiteProbe(reply=INTERNAL_ERROR) if worker.exception() else worker.result()

    async def _run_probe(self) -> SiteProbe:
        self.hosts.forget_failures()
        try:
            async with (
                asyncio.timeout(PROBE_S),  # real time: a peer
                self.slots.hold(self, status=SiteStatus.UNKNOWN, sender=_NO_SENDER, is_new=False),
            ):
                connection = await self.hosts.connect(
                    SessionState(), self.sessions, limit=nullcontext
                )
                await connection.quit()
        except TimeoutError:
            return SiteProbe(reply=f"no session within {PROBE_S:g} s")
        except ConnectError as error:
            evidence = error.outcome.evidence
            return SiteProbe(reply=evidence.reply, tried=evidence.hosts)
        peer = connection.peer
        return SiteProbe(peer.host, peer.address, peer.tls, peer.cipher, tried=peer.hosts)

    # -- the number of connections
    def _ensure_connection(self) -> None:
        """Wake or open a connection for the next claim, if the rate allows it."""
        if self.closing or not self.ready or self._waits_for_rate():
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
        if len(self.workers) >= len(self.hosts.hosts.hosts):  # nearly always
            return False
        return len(self.workers) < self.hosts.count_of_best()

    def open_connections(self) -> None:
        """Open as many connections as there are claims, up to the limit."""
        for _ in range(len(self.ready)):
            if self._waits_for_rate() or not self._open_worker():
                return

    def _open_worker(self) -> bool:
        if self.closing or len(self.workers) >= self._connections_max:
            return False  # a closing worker is still connected
        if not self._allows(len(self.workers) - len(self._closing_workers) + 1):
            self._watch_limit()
            return False
        self._start(self.serve(self))
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
        if connections <= 1 or not self.is_connected:
            return connections <= 1
        return self.concurrency.allows(connections, self.clock.monotonic())

    def _watch_limit(self) -> None:
        """Set a timer for when the limit may allow a connection for claims that wait."""
        if self._limit_timer is not None:  # nearly always
            return
        wait_s = self.concurrency.wait_s(self.clock.monotonic())
        if wait_s is not None:
            self._limit_timer = self.clock.call_later(wait_s, self._on_limit_timer)

    def _on_limit_timer(self) -> None:
        self._limit_timer = None
        self.open_connections()

    # -- for its sessions
    def status(self, first: Claim) -> SiteStatus:
        """What is known of it before a connection for `first` is opened."""
        if self.has_answered():
            return SiteStatus.ANSWERED
        if first.level is PriorityLevel.UNREACHABLE:
            return SiteStatus.UNREACHABLE
        return SiteStatus.UNKNOWN

    def next_claim(self) -> Claim | None:
        """Take the next claim, if the rate allows it."""
        if self._bucket is not None and self._waits_for_rate():
            return None
        claim = self.ready.pop()
        while claim is not None and not self.turns.begin(claim, self.hosts.via):
            claim = self.ready.pop()
        if claim is not None and self._bucket is not None:
            self._bucket.take(self.clock.monotonic())
            self._ensure_connection()  # or set the timer
        return claim

    async def wait_for_work(self) -> bool:
        """Wait idle for a claim; False when the connection should close instead."""
        if self.closing or self.slots.has_waiters:
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

    async def wait_for_room(self, claim: Claim) -> bool:
        """Wait until there is room for the content of a claim; then the message rate counts it.
        Return False if it must not be attempted: others took it, or it waits again.
        """
        if self._bucket is not None:
            self._bucket.give_back()
            self._ensure_connection()  # for a claim whose content has room
        if not await self.recorder.contents.wait_for_room(claim, self.recorder.claims):
            return False
        if self._waits_for_rate():
            self._requeue(claim)
            return False
        if self._bucket is not None:
            self._bucket.take(self.clock.monotonic())
        return True

    def begin(self, session: SessionState) -> None:
        """Note that a transaction begins. If it is slow, claims that wait no longer wait for it."""
        self.concurrency.begin(session, self.clock.monotonic())
        if self.ready:
            self._watch_limit()

    def answered(self) -> None:
        """Count a transaction that was answered, whatever the answer."""
        self.concurrency.answered(self.clock.monotonic())
        if self.ready and not self._waits_for_rate():
            self._open_worker()

    def must_close(self, session: SessionState, served: int) -> bool:
        """Whether a connection should end although there may be claims for it."""
        if session.is_connected:  # those that are being opened may be refused: they do not count
            one_too_many = not self._allows(len(self.sessions)) and not self._allows(
                sum(other.is_connected for other in self.sessions)
            )
        else:
            one_too_many = not self._allows(len(self.workers) - len(self._closing_workers))
        if not (one_too_many or self.slots.is_wanted_back(self, served=served)):
            return False
        worker = asyncio.current_task()
        assert worker is not None
        self._closing_workers.add(worker)
        return True

    def _requeue(self, claim: Claim) -> None:
        """Let a claim wait for the other connections."""
        if self.closing:  # no worker would take it
            self.recorder.begin(self.recorder.release(claim))
        elif not self._postpones(claim):
            self.ready.push(claim)
            self._wake_idle()

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

    # -- [[reply]] entries
    def judged(self, outcome: Deferred | Failed) -> Deferred | Failed:
        """Return what a rejection means, and obey the [[reply]] entry that says so."""
        outcome = self.options.providers.judged(outcome, self.hosts.via.login)
        self._obey(outcome)
        return outcome

    def _obey(self, outcome: Outcome) -> None:
        """Use fewer connections, or none and postpone what waits, as an entry or the host says."""
        evidence = outcome.evidence
        rule = self.options.providers.entries.get(evidence.provider)
        now_s = self.clock.monotonic()
        if rule is not None and rule.connections:
            self.concurrency.full_at(rule.connections, until_s=now_s + site_limits.FEWER_S)
        pause_s = evidence.pause_s or (rule.pause_s if rule is not None else 0.0)
        if pause_s and self._pause is None:
            provider = rule.name if rule is not None else RETRY_AFTER
            _log.warning("site paused", site=self.name, provider=provider, pause_s=pause_s)
            self.pauses[self._pause_key] = site_limits.SitePause(
                self.name, provider, now_s + pause_s
            )
            self._postpones(*self.ready.drain())

    @property
    def paused_until_us(self) -> int:
        """The queue time at which the pause ends, 0 without a pause."""
        if (pause := self._pause) is None:
            return 0
        left_us = math.ceil((pause.until_s - self.clock.monotonic()) * 1e6)
        return self.clock.queue_us() + left_us

    def _postpones(self, *claims: Claim) -> bool:
        """Whether the site is paused; then the claims wait in the spool until the pause ends."""
        if not (until_us := self.paused_until_us):
            return False
        self.recorder.postpone(claims, until_us)
        return True

    # -- failures to connect
    async def not_connected(
        self, session: SessionState, claim: Claim, outcome: Outcome, *, took_s: float
    ) -> None:
        """Take back a claim whose session got no connection. It waits for the other connections of
        the site; without any, all claims that wait share this outcome.
        """
        others = sum(other.is_connected for other in self.sessions if other is not session)
        if session.is_over:
            self._requeue(claim)
        elif others:
            self._lower_limit(others, outcome)
            self._requeue(claim)
        else:
            if isinstance(outcome, Deferred):
                self.concurrency = site_limits.ConcurrencyLimit(self._connections_max)
                _log.info("site unreachable", site=self.name, reply=outcome.evidence.reply)
            self._obey(outcome)
            claims = (claim, *self.ready.drain())
            await self._record_all([(waiting, outcome) for waiting in claims], took_s)

    def _lower_limit(self, connections: int, outcome: Outcome) -> None:
        """Treat the failure as the site's connection limit, because its other connections work."""
        until_s = self.clock.monotonic() + self.options.unreachable_s
        self.concurrency.full_at(connections, until_s=until_s)
        reply = outcome.evidence.reply
        _log.info(
            "site connection limit reached", site=self.name, connections=connections, reply=reply
        )
        self._obey(outcome)

    async def record_known_failures(self) -> None:
        """Record claims that came after a failed probe, if that failure is recent enough."""
        if self.is_connected or not self.ready:
            return
        known: list[tuple[Claim, Outcome]] = []
        for claim in list(self.ready):
            outcome = self.hosts.known_failure(claim)
            if outcome is not None:
                self.ready.remove(claim.key)
                known.append((claim, outcome))
        await self._record_all(known)

    async def _record_all(
        self, outcomes: list[tuple[Claim, Outcome]], took_s: float | None = None
    ) -> None:
        """Record claims together in few commits. `took_s` is the duration of the attempt with the
        first claim, None without one; the others have no duration.
        """
        unanswered_s = self.hosts.unanswered_s()
        await self.recorder.finish(
            self.recorder.record(
                claim,
                same_outcome(claim, outcome),
                reached=False,
                paused_until_us=self.paused_until_us,
                unanswered_s=unanswered_s,
                took_s=None if number else took_s,
            )
            for number, (claim, outcome) in enumerate(outcomes)
        )
