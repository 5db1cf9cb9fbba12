"""The queue manager: takes claims, gives them to sites and local delivery, and lets them end.

New mail is offered by ingress as it is accepted; due mail is fetched from the spool while the
active queue has room. Claims that wait in memory expire on time, and an operator can withdraw them.
A spool that cannot be read is retried; no claim is dropped. See docs/design.md 5 and RFC 5321
4.5.4.1.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass

from relay.base.clock import Clock
from relay.base.message.nexthop import HERE, HopKind, NextHop
from relay.base.message.tls_policy import REQUIRETLS
from relay.base.observe.logs import ContainedErrors, RepeatedError, get_logger
from relay.delivery.active_queue import ActiveQueue
from relay.delivery.attempt_recorder import AttemptRecorder, EndedClaim
from relay.delivery.attempt_result import internal_error_outcomes
from relay.delivery.graph.drafts import DraftCleaner
from relay.delivery.host_selection import Connect
from relay.delivery.local_delivery import LocalDelivery
from relay.delivery.queue_scanner import QueueScanner, Wake
from relay.delivery.rerouting import ClaimRerouter
from relay.delivery.retry import ClaimAction, claim_action, end_us
from relay.delivery.site import SiteProbe
from relay.delivery.site_limits import SiteOptions
from relay.delivery.sites import Sites
from relay.store.spool.shared.queue_admin import QueueAdmin
from relay.store.spool.types import Claim, Key, NewMessage, PriorityLevel, SpoolError
from relay.transport.routing.mx_hosts import Hosts
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routes import HopOptions

_log = get_logger("delivery")

_SLEEP_S_MAX = 60.0
_DELAY_CHECK_US = 60_000_000  # between checks for delay notices that are due
_AFTER_FAULT_S = 1.0
_UNREADABLE_S = 10.0  # how long faults of the queue are expected to pass
_SCAN_DELAY_S = 0.1  # until a scan for less than a batch
_ABORTS, _EMPTIED_S = 2, 0.5  # how often, and how long each time, emptied() waits
_AFTER_CANCEL_S = 1.0  # for cancelled attempts to be recorded after the grace time


@dataclass(eq=False)
class DeliveryScheduler:
    """Runs delivery. offer() takes claims at any time; run() fetches what is due."""

    recorder: AttemptRecorder  # commits what came of attempts, to the spool that has the entries
    _: KW_ONLY
    sites: Sites  # to other hosts
    local: LocalDelivery  # into mailboxes here
    table: RouteTable  # which routes are in force
    active_queue: ActiveQueue  # for how many claims there is room
    clock: Clock  # for queue time
    queue_admin: QueueAdmin  # reroutes entries whose route has changed

    def __post_init__(self) -> None:
        self.recorder.ended, self.recorder.lookup_of = self.ended, self.sites.lookup_of
        self._rerouter = ClaimRerouter(
            self.recorder, table=self.table, admin=self.queue_admin, clock=self.clock
        )
        self.drafts = DraftCleaner(
            self.table, self.sites.resolve, self.sites.connect, self.queue_admin.note_deleted
        )
        self._scanner = QueueScanner(
            self.recorder.spool,
            self.active_queue,
            self.clock,
            offer=self.offer,
            delivers_captured=self.local.delivers_captured,
        )
        self._started_us = self._delayed_us = self.clock.queue_us()
        self._woken = asyncio.Event()
        self._why = Wake.NOT  # it was set
        self._scan_lock = asyncio.Lock()
        self._fault = RepeatedError()
        self._unread_since_s = math.inf  # in real time
        self._unread_because = ""
        self._stopping = False
        self._is_paused = False

    def has_room_for(self, next_hop: NextHop, sender: int, level: PriorityLevel) -> bool:
        """Whether mail accepted now may come as a claim; otherwise it waits in the spool."""
        is_closed = self._stopping or self._is_paused
        return not is_closed and self.active_queue.has_room_for(next_hop, sender, level)

    def offer(self, claims: Iterable[Claim]) -> None:
        """Take claims."""
        for claim in claims:
            self.active_queue.add(claim)
            qid, entry = claim.message.id, claim.entry_id
            with ContainedErrors(_log, "internal error in scheduling", qid=qid, entry=entry):
                self._route_claim(claim)
                continue
            self.recorder.claims.take(claim.key)
            outcomes = internal_error_outcomes(claim)
            self.recorder.begin(self.recorder.record(claim, outcomes, reached=True))

    def end_without_node(self, claims: Iterable[Claim]) -> None:
        """Take claims of SpoolMaintenance.claim_without_node(): they expire, or are reported."""
        now_us = self.clock.confirmed_us()
        for claim in claims:
            self.active_queue.add(claim)
            self.recorder.end_unattempted(claim, now_us)

    def pause(self, is_paused: bool) -> None:
        """Begin no attempt until this is called with False. Attempts in progress end; mail that
        expires or is late meanwhile is reported.
        """
        if is_paused == self._is_paused:
            return
        self._is_paused = is_paused
        self._scanner.look_for_ended(only=is_paused)
        for claim in self.recorder.claims.take_all():
            self.recorder.begin(self.recorder.requeue(claim))
        self._wake()

    def accepted_unclaimed(self, messages: Iterable[NewMessage]) -> None:
        """Report messages that were accepted and not claimed."""
        has_room = [self._scanner.add_unclaimed(message) for message in messages]
        if any(has_room):
            self._wake()

    def use(
        self, options: SiteOptions, connect: Connect, is_over: Callable[[HopOptions], bool]
    ) -> None:
        """Use other options after `table` has changed: the routes are asked again for all claims
        that are not begun. Where the options of a route are over, no further transaction begins.
        """
        self._rerouter.changed_us = self.clock.queue_us()
        self.drafts.connect = connect
        claims = self.sites.renew(options, connect, is_over) + self.local.ready.drain()
        for claim in claims:
            self._remove(claim)
        self.offer(claims)

    def due_now(self) -> None:
        """Scan the spool: an operator made entries due."""
        self._scanner.restart()
        self._wake()

    def look_for_work(self, *, from_start: bool) -> None:
        """Scan the spool for what others may have left there, with `from_start` also for what was
        due before.
        """
        if from_start:
            self._scanner.restart()
        self._scanner.newly_due()
        self._wake()

    def due_at(self, due_us: int) -> None:
        """Report a due time that an operator has set."""
        if due_us <= self.clock.queue_us():
            self.due_now()
        elif self._scanner.due_at(due_us):
            self._wake()

    def retry_now(self, next_hops: Collection[NextHop]) -> None:
        """Scan the spool and forget failures of these next hops: their mail is retried now."""
        self.sites.retry_now(next_hops)
        self.due_now()

    def waiting_among(self, keys: Collection[Key]) -> frozenset[Key]:
        """Return what withdraw() would return, without taking anything."""
        return frozenset(key for key in keys if self.recorder.claims.is_waiting(key))

    def withdraw(self, keys: Collection[Key]) -> frozenset[Key]:
        """Take claims that wait out of memory; return their keys.

        The caller raises their epoch in the spool, or requeues them there. Claims that are not
        returned are being delivered, or are not in memory.
        """
        taken = []
        for key in sorted(keys):
            claim = self.recorder.claims.take(key)
            if claim is not None:
                self.recorder.contents.release(claim)
                self._remove(claim)
                taken.append(key)
        return frozenset(taken)

    async def probe(self, next_hop: NextHop, hosts: Hosts) -> SiteProbe:
        """Open a session with the site of these hosts as delivery would, and end it before MAIL.
        They have their TLS.
        """
        if self._stopping:
            return SiteProbe(reply="the relay is shutting down")
        return await self.sites.probe(next_hop, hosts)

    @property
    def is_scanning(self) -> bool:
        """Whether entries may be due in the spool for which there is room."""
        wakes = self._why, self._scanner.wake()
        return any(wakes) or self._scan_lock.locked()

    @property
    def claims_in_progress(self) -> int:
        """The number of claims in memory that are not waiting for a later time."""
        return self.active_queue.claims - self.sites.delayed_claims

    def unread_s(self) -> float:
        """Return for how long the queue cannot be read; 0: it can."""
        return max(0.0, self.clock.real_s() - self._unread_since_s)

    def unreadable(self) -> str:
        """Return why the queue has been unreadable for a while; "" if it has not."""
        if self.unread_s() < _UNREADABLE_S:
            return ""
        return f"the queue cannot be read, and mail in it waits: {self._unread_because}"

    async def run(self) -> None:
        """Fetch due claims and expire waiting ones, until cancelled."""
        has_scanned = False
        while True:
            if not has_scanned:  # the start of the spool may set the clock
                self._started_us = self._delayed_us = self.clock.queue_us()
            try:
                async with self._scan_lock:
                    self._expire_waiting()
                    self._requeue_delayed()
                    await self._scanner.run()
            except Exception as error:  # noqa: BLE001 - delivery goes on
                self._unread_since_s = min(self._unread_since_s, self.clock.real_s())
                self._unread_because = str(error) or repr(error)
                if self._fault.is_new(error):
                    if isinstance(error, SpoolError):
                        _log.error("spool unreadable", error=str(error))
                    else:
                        _log.exception("internal error in the queue scan")
                await self.clock.sleep(_AFTER_FAULT_S)  # sleeps: limits retries after a fault
            else:
                self._fault.clear()
                self._unread_since_s = math.inf
                has_scanned = True
            await self._wait()

    async def drain(self, grace_s: float) -> None:
        """Release claims that were not begun, and finish attempts in progress within `grace_s`.

        Attempts that are cut off then are released as well, or are indeterminate if their final dot
        was written. If the spool cannot be written, the next start recovers the claims.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + grace_s  # real time: attempts at peers end
        self._stopping = True
        self._scanner.stop()
        self.recorder.claims_reports = False
        await self.recorder.release(*self._take_not_begun())
        await self._all_ended(deadline_s)
        self.sites.abort()
        self.local.abort()
        await self._all_ended(loop.time() + _AFTER_CANCEL_S)  # real time: as above
        self.recorder.stop_retrying()
        await self.drafts.looks.end()
        await self._all_ended(loop.time() + _AFTER_CANCEL_S)  # real time: as above

    @contextlib.asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """Forget all claims and what hosts did, end all attempts, and do nothing until the block
        ends.

        An attempt that is cut off is recorded before the block if its host ends it soon. The block
        removes the entries. Only the next start releases a claim that the block leaves in the
        spool.
        """
        loop = asyncio.get_running_loop()
        self._stopping = True
        try:
            async with self._scan_lock:
                for claim in self._take_not_begun():
                    self.recorder.contents.release(claim)
                    self._remove(claim)
                for _ in range(_ABORTS):  # a connection that was cut off says QUIT first
                    self.sites.abort()
                    deadline_s = loop.time() + _EMPTIED_S  # real time: a peer
                    await self._tasks_ended(deadline_s)
                self.sites.forget()
                yield
        finally:
            self._stopping = False
            self.due_now()

    def _take_not_begun(self) -> list[Claim]:
        """Take the claims that wait for an attempt. Connections end after their transaction."""
        waiting = [*self.sites.close(), *self.local.ready.drain()]
        return waiting + self.recorder.contents.roomless.drain() + self._rerouter.close()

    async def _all_ended(self, deadline_s: float) -> None:
        """Wait until all connections and tasks have ended, with the tasks that they start."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline_s):  # real time: attempts at peers end
                async with self._scan_lock:  # claims being fetched are released
                    pass
                await self._tasks_ended(deadline_s)

    async def _tasks_ended(self, deadline_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline_s):  # real time: attempts at peers end
                while busy := [*self._unfinished_tasks()]:
                    await asyncio.wait(busy)

    def _unfinished_tasks(self) -> Iterator[asyncio.Task[None]]:
        """All tasks that have not ended."""
        yield from self.recorder.unfinished
        yield from self.sites.tasks
        yield from self.local.workers

    # -- the end of a claim
    def ended(self, claim: Claim, end: EndedClaim, reached: bool | None) -> None:
        """See AttemptRecorder.ended."""
        if reached:
            self.active_queue.mark_reached(claim.next_hop)
        elif reached is False and claim.message.envelope.tls != REQUIRETLS:
            self.active_queue.mark_unreachable(claim.next_hop)  # other mail may reach its hosts
        self._remove(claim)
        if end.due_us is not None and self._scanner.requeued(claim, end.due_us):
            self._wake()
        if claim.next_hop.kind is HopKind.GRAPH and end.is_final and not self._stopping:
            self.drafts.delete_at_end(claim.key, claim.next_hop, claim.extra)
        self.offer(end.reports)
        if end.has_unclaimed:  # the scanner asks the spool when the first of them ends
            self.look_for_work(from_start=False)

    def _remove(self, claim: Claim) -> None:
        self.recorder.claims.forget(claim)
        if self.active_queue.remove(claim):
            self._scanner.capacity_freed(claim)
        self._wake(self._scanner.wake())

    def _wake(self, why: Wake = Wake.NOW) -> None:
        """Have run() go on."""
        if why > self._why:
            self._why = why
            self._woken.set()

    # -- what happens to a claim
    def _route_claim(self, claim: Claim) -> None:
        if self._stopping:
            self.recorder.begin(self.recorder.release(claim))
            return
        now_us = self.clock.queue_us()
        confirmed_us = self.clock.confirmed_us()
        action = claim_action(
            claim, now_us=now_us, confirmed_us=confirmed_us, started_us=self._started_us
        )
        match action:
            case ClaimAction.EXPIRE:
                self.recorder.begin(self.recorder.expire(claim))
            case ClaimAction.REQUEUE:
                self.recorder.begin(self.recorder.requeue(claim))
            case ClaimAction.ATTEMPT if self._is_paused:
                self.recorder.end_unattempted(claim, confirmed_us)
            case ClaimAction.ATTEMPT:
                self._attempt(claim)

    def _attempt(self, claim: Claim) -> None:
        expires_us = end_us(claim, started_us=self._started_us)
        if expires_us is not None:
            self.recorder.claims.track_expiry(claim, expires_us)
        if self._rerouter.takes(claim):
            return
        if claim.next_hop.kind in HERE:
            self.local.push(claim)
        else:
            self.sites.push(claim)

    def _expire_waiting(self) -> None:
        for claim in self.recorder.claims.take_expired(self.clock.queue_us()):
            self.recorder.begin(self.recorder.expire(claim))

    def _requeue_delayed(self) -> None:
        """Requeue claims whose delay notice is due, which records it; they come again at once."""
        now_us = self.clock.queue_us()
        if now_us < self._delayed_us:
            return
        self._delayed_us = now_us + _DELAY_CHECK_US
        for claim in self.recorder.claims.take_delayed(now_us):
            self.recorder.begin(self.recorder.requeue(claim))

    async def _wait(self) -> None:
        """Wait until something happens, an entry is due or a claim expires; or for a check, which
        may come later where the clock is advanced.
        """
        due_us, check_us = self._scanner.next_due_us, self._scanner.next_run_us
        if self.recorder.claims.next_expiry_us is not None:
            due_us = min(due_us, self.recorder.claims.next_expiry_us)
        now_us = self.clock.queue_us()
        due_s = max(0.0, (due_us - now_us) / 1_000_000)
        check_s = max(0.0, (min(check_us, self._delayed_us) - now_us) / 1_000_000)
        wait_s = min(due_s, check_s, _SLEEP_S_MAX)
        await self.clock.wait(self._woken, wait_s, slack_s=due_s - wait_s)
        if self._why is Wake.SOON:
            self._woken.clear()
            await self.clock.wait(self._woken, _SCAN_DELAY_S)
        self._why = Wake.NOT
        self._woken.clear()
