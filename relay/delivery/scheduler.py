"""The scheduler: a bounded window of claims, sorted to sites and mailboxes, settled and put back.

On the path: ingress offers what was just accepted, the queue gives the rest; sites try them.
Holds: a bounded window of claims in memory, however long the queue, and neither a next hop nor a
    sender fills it; what waits here expires on time; an operator can take it away.
Fails: a spool that cannot be read now is asked again; nothing is dropped.
Standards: RFC 5321 4.5.4.1; docs/design.md 5.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from types import MappingProxyType

from relay.clock import Clock
from relay.delivery.active_queue import Residents, Window
from relay.delivery.attempt_recorder import Settled, Settler
from relay.delivery.attempt_result import broken_off
from relay.delivery.connection_slots import ConnectionSlots
from relay.delivery.content_budget import Contents
from relay.delivery.dependencies import Connect, LocalTable, Resolver
from relay.delivery.local_delivery import LocalDelivery, Mailroom
from relay.delivery.next_hop_resolution import Sites
from relay.delivery.queue_scanner import Refill
from relay.delivery.retry import Errand, end_us, errand_of
from relay.delivery.site_limits import SiteOptions
from relay.message.content import Content
from relay.message.nexthop import HopKind, NextHop
from relay.message.outcome import Outcome, Relayed
from relay.observe.lasting import LastingFault
from relay.observe.logs import get_logger
from relay.smtp import connect
from relay.spool.types import Claim, Key, NewMessage, Spool, SpoolError
from relay.spool.waiting import Lane

_log = get_logger("delivery")

_SLEEP_S_MAX = 60.0
_LATE_US = 60_000_000  # between looks for what is late while it waits in memory
_AFTER_FAULT_S = 1.0
_GATHER_S = 0.1  # until a look for less than a batch
_UNTRIED: Mapping[int, Outcome] = MappingProxyType({})
_LAST_WORDS_S = 1.0  # for what is cut off to be written down, when the grace time is over


class Dispatcher:
    """Runs delivery. offer() takes claims at any time; run() fetches what is due."""

    def __init__(  # noqa: PLR0913 - it is where delivery's parts meet
        self,
        spool: Spool,
        settler: Settler,
        contents: Contents,
        *,
        local: LocalDelivery,
        resolver: Resolver,
        table: LocalTable,
        slots: ConnectionSlots,
        window: Window,
        options: SiteOptions,
        clock: Clock,
        connect: Connect = connect,
        on_change: Callable[[str], None] = lambda _queue_id: None,
    ) -> None:
        """`on_change` hears the queue id of every message whose state has changed."""
        self._spool = spool
        self._settler = settler
        self._contents = contents
        self._clock = clock
        self._on_change = on_change
        self._window = window
        self._residents = Residents()
        self._mailroom = Mailroom(local, self)
        self._sites = Sites(
            self, self._residents, resolver=resolver, table=table, slots=slots, options=options,
            clock=clock, connect=connect,
        )  # fmt: skip
        self._refill = Refill(spool, window, clock, offer=self.offer)
        self._started_us = self._late_us = clock.steady_us()
        self._wake = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None
        self._filling = asyncio.Lock()
        self._fault = LastingFault()
        self._tasks: dict[asyncio.Task[None], None] = {}  # in the order in which they began
        self._seen_to: set[asyncio.Task[None]] = set()  # settlements that connections began
        self._stopping = False

    def has_room_for(self, next_hop: NextHop, sender: int, lane: Lane) -> bool:
        """Whether what is accepted now may come as a claim; else it waits in the spool as due."""
        return not self._stopping and self._window.has_room_for(next_hop, sender, lane)

    def lane_of(self, next_hop: NextHop, sender: int, lane: Lane) -> Lane:
        """The lane for what is accepted now: DOWN where too much waits for unknown next hops."""
        return self._window.lane_of(next_hop, sender, lane)

    def offer(self, claims: Iterable[Claim]) -> None:
        """Take claims over."""
        for claim in claims:
            self._window.enter(claim)
            try:
                self._dispatch(claim)
            except Exception:  # noqa: BLE001 - an internal fault: others are not lost
                _log.exception("claim not dispatched", qid=claim.message.id, entry=claim.entry_id)
                self._residents.take(claim.key)
                outcomes = broken_off(claim)
                self._spawn(
                    self._settled(claim, self._settler.attempted(claim, outcomes), outcomes)
                )

    def accepted_unclaimed(self, messages: Iterable[NewMessage]) -> None:
        """Say that the spool has messages that came as no claims."""
        has_room = [self._refill.came(message) for message in messages]
        if any(has_room):
            self._wake.set()

    def due_now(self) -> None:
        """Say that something else may be due in the spool: an operator made it so."""
        self._refill.begin_anew()
        self._wake.set()

    def due_at(self, due_us: int) -> None:
        """Say when something in the spool is due: an operator made it so."""
        if due_us <= self._clock.steady_us():
            self.due_now()
        elif self._refill.due_at(due_us):
            self._wake.set()

    def try_anew(self, next_hops: Collection[NextHop]) -> None:
        """Look at what is due, and forget that nobody was there at these next hops."""
        self._sites.try_anew(next_hops)
        self.due_now()

    def waiting_of(self, keys: Collection[Key]) -> frozenset[Key]:
        """Return what withdraw() would, and take nothing."""
        return frozenset(key for key in keys if self._residents.waits(key))

    def withdraw(self, keys: Collection[Key]) -> frozenset[Key]:
        """Take claims that only wait out of memory; return whose those were.

        They are forgotten here: whoever asks raises their epoch in the spool, or puts them back
        there. What is not returned is in work, or was never here.
        """
        taken = []
        for key in sorted(keys):
            claim = self._residents.take(key)
            if claim is not None:
                self._contents.release(claim)
                self._leave(claim)
                taken.append(key)
        return frozenset(taken)

    async def run(self) -> None:
        """Fetch what is due, and give up what expires here, until cancelled."""
        while True:
            try:
                async with self._filling:
                    self._give_up_expired()
                    self._put_back_late()
                    await self._refill.run()
            except Exception as error:  # noqa: BLE001 - delivery goes on, whatever it was
                if self._fault.is_news(error):
                    if isinstance(error, SpoolError):
                        _log.error("spool unreadable", error=str(error))
                    else:
                        _log.exception("refill broken off")
                await asyncio.sleep(_AFTER_FAULT_S)  # sleeps: limits retries after a fault
            else:
                self._fault.is_over()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            self._wake.clear()
            if self._soon is not None:
                self._soon.cancel()
                self._soon = None

    async def drain(self, grace_s: float) -> None:
        """Give what was not begun back to the spool, finish what is in work within `grace_s`.

        What is cut off then goes back as well, or is indeterminate if its final dot was written. A
        spool that refuses all the while is left as it is: the next start finds the claims in it.
        """
        deadline_s = asyncio.get_running_loop().time() + grace_s
        self._stopping = True
        self._refill.stop()
        self._settler.claims_reports = False
        untried = [*self._sites.close(), *self._mailroom.ready.drain()]
        await self.give_back(*untried)
        await self._all_ended(deadline_s)
        self._sites.abort()
        self._mailroom.abort()
        for task in self._tasks:
            task.cancel()
        await self._all_ended(asyncio.get_running_loop().time() + _LAST_WORDS_S)
        self._settler.give_up()
        await self._all_ended(asyncio.get_running_loop().time() + _LAST_WORDS_S)

    async def _all_ended(self, deadline_s: float) -> None:
        """Wait until no connection and no task is left, with what they start at their end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline_s):
                async with self._filling:  # what is being claimed comes to be given back
                    pass
                while busy := [*self._works()]:
                    await asyncio.wait(busy)

    def _works(self) -> Iterator[asyncio.Task[None]]:
        """Whatever has not ended."""
        yield from self._tasks
        yield from self._seen_to
        yield from self._sites.tasks
        yield from self._mailroom.workers

    # -- for the sites and the mailroom
    async def content_of(self, claim: Claim) -> Content:
        """What a claim is to send. Raises SpoolError."""
        return await self._contents.of(claim)

    async def settle(
        self, claim: Claim, outcomes: Mapping[int, Outcome], *, reached: bool = True
    ) -> None:
        """Settle an attempt and go on with what follows from it. Not `reached`: nobody answered."""
        if reached:
            self._window.reached(claim.next_hop)
        else:
            self._window.unreached(claim.next_hop)
        await self._settled(
            claim, self._settler.attempted(claim, outcomes, reached=reached), outcomes
        )

    async def settle_some(self, claim: Claim, outcomes: Mapping[int, Relayed]) -> None:
        """Settle those who have the message already; the claim goes on with the others."""
        try:
            try:
                await self._settler.took_some(claim, outcomes)
            except SpoolError:
                raise
            except Exception:  # noqa: BLE001 - ours
                _log.exception("settlement broken off", qid=claim.message.id, entry=claim.entry_id)
                await self._settler.some_unrecorded(claim, outcomes)
        except SpoolError as error:
            self._kept(claim, error)
        self._announce(claim)

    def see_to(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do it beside whoever asks; drain() waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._seen_to.add(task)
        task.add_done_callback(self._seen_to.discard)
        return task

    async def give_back(self, *claims: Claim) -> None:
        """Give claims back untried, on the way out; they are due as they were."""
        if not claims:  # nor is the spool open, when a start came to nothing
            return
        try:
            await self._spool.release(claims)
        except SpoolError as error:  # the next start releases them
            _log.warning("claims kept", claims=len(claims), error=str(error))
        for claim in claims:
            self._contents.release(claim)
            self._leave(claim)
            self._put_back(claim, claim.due_us)

    async def _settled(
        self, claim: Claim, settling: Awaitable[Settled], outcomes: Mapping[int, Outcome] = _UNTRIED
    ) -> None:
        """Wait for the settlement; then the claim's place is free, whatever became of it."""
        settled = Settled((), None)
        try:
            try:
                settled = await settling
            except SpoolError:
                raise
            except Exception:  # noqa: BLE001 - ours
                _log.exception("settlement broken off", qid=claim.message.id, entry=claim.entry_id)
                settled = await self._settler.unrecorded(claim, outcomes)
        except SpoolError as error:
            self._kept(claim, error)
        self._leave(claim)
        if settled.due_us is not None:
            self._put_back(claim, settled.due_us)
        self.offer(settled.reports)
        self._announce(claim)

    def _announce(self, claim: Claim) -> None:
        """Say that a message has changed. A fault of who hears it must not end who settles."""
        try:
            self._on_change(claim.message.id)
        except Exception:  # noqa: BLE001 - ours
            _log.exception("change not announced", qid=claim.message.id)

    def _kept(self, claim: Claim, error: SpoolError) -> None:
        """The spool refused it to the end of a stop."""
        qid, entry = claim.message.id, claim.entry_id
        _log.warning("claim kept, unsettled", qid=qid, entry=entry, error=str(error))

    def _leave(self, claim: Claim) -> None:
        self._residents.forget(claim)
        self._refill.opened(self._window.leave(claim))
        if not self._refill.has_more:  # nearly always
            return
        if self._refill.is_worth_a_run:
            self._wake.set()
        elif self._soon is None and self._refill.wants_a_run:
            self._soon = asyncio.get_running_loop().call_later(_GATHER_S, self._wake.set)

    def _put_back(self, claim: Claim, due_us: int) -> None:
        if self._refill.put_back(claim, due_us):
            self._wake.set()

    # -- where a claim goes
    def _dispatch(self, claim: Claim) -> None:
        if self._stopping:
            self._spawn(self.give_back(claim))
            return
        now_us = self._clock.steady_us()
        sure_us = self._clock.sure_us()
        match errand_of(claim, now_us=now_us, sure_us=sure_us, started_us=self._started_us):
            case Errand.EXPIRE:
                self._spawn(self._settled(claim, self._settler.expired(claim)))
            case Errand.PUT_BACK:
                self._spawn(self._settled(claim, self._settler.late(claim)))
            case Errand.TRY:
                self._try(claim)

    def _try(self, claim: Claim) -> None:
        expires_us = end_us(claim, started_us=self._started_us)
        if expires_us is not None:
            self._residents.expires(claim, expires_us)
        if claim.next_hop.kind is HopKind.LOCAL:
            self._residents.wait(claim, self._mailroom.ready)
            self._mailroom.push(claim)
        else:
            self._sites.push(claim)

    def _give_up_expired(self) -> None:
        for claim in self._residents.take_expired(self._clock.steady_us()):
            self._spawn(self._settled(claim, self._settler.expired(claim)))

    def _put_back_late(self) -> None:
        """Have senders hear of what is late; it is due, and comes again at once."""
        now_us = self._clock.steady_us()
        if now_us < self._late_us:
            return
        self._late_us = now_us + _LATE_US
        for claim in self._residents.take_late(now_us):
            self._spawn(self._settled(claim, self._settler.late(claim)))

    def _pause_s(self) -> float:
        """For how long there is nothing to do, if nothing happens."""
        next_us = min(self._refill.next_run_us, self._late_us)
        if self._residents.next_end_us is not None:
            next_us = min(next_us, self._residents.next_end_us)
        return min(max(0.0, (next_us - self._clock.steady_us()) / 1_000_000), _SLEEP_S_MAX)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
