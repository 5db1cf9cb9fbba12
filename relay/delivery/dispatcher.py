"""The scheduler: a bounded window of claims, sorted to sites and mailboxes, settled and put back.

On the path: ingress offers what was just accepted, the due index gives the rest; sites try them.
Holds: a bounded window of claims in memory, however long the queue, and no next hop fills it; no
    polling: one timer for the next due entry, a wake-up for what becomes due earlier.
Fails: a spool that cannot be read now is asked again; nothing is dropped.
Standards: RFC 5321 4.5.4.1; docs/design.md 5.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace

from relay.clock import Clock
from relay.delivery.conclude import for_all, is_expired
from relay.delivery.contents import Contents, unreadable
from relay.delivery.local import LocalDelivery
from relay.delivery.ports import LocalTable, Resolver
from relay.delivery.settlement import Settled, Settler
from relay.delivery.site import Site, SiteOptions
from relay.delivery.slots import ConnectionSlots
from relay.delivery.window import Window
from relay.journal.logs import get_logger
from relay.message.content import Content
from relay.message.nexthop import HopKind, NextHop
from relay.message.outcome import Outcome
from relay.routing import Hosts, TemporaryFailure, outcome_of
from relay.spool.types import Claim, Spool, SpoolError

_log = get_logger("delivery")

_REFILL_CLAIMS = 200
_CROWDED_S = 0.1  # between looks that pass over what waits for full next hops
_SLEEP_S_MAX = 60.0  # so that a jump of the wall clock is noticed
_LOCAL_AT_ONCE = 16
_SITES_MAX = 4000
_PLACES_MAX = 4000
_LAST_WORDS_S = 1.0  # for what is cut off to be written down, when the grace time is over
_PLACE_S = 1.0  # how long the site of a next hop is remembered without asking the resolver

# its places, whether TLS comes first, and the login
SiteKey = tuple[tuple[tuple[str, int], ...], bool, tuple[str, str] | None]


@dataclass(slots=True)
class _Place:
    """Where a next hop's claims went a moment ago."""

    site: Site
    until: float


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
        on_change: Callable[[str], None] = lambda _queue_id: None,
    ) -> None:
        """`on_change` hears the queue id of every message whose state has changed."""
        self._spool = spool
        self._settler = settler
        self._contents = contents
        self._local = local
        self._resolver = resolver
        self._table = table
        self._slots = slots
        self._options = options
        self._clock = clock
        self._on_change = on_change
        self._window = window
        self._wake = asyncio.Event()
        self._backlog = True
        self._sites: dict[SiteKey, Site] = {}
        self._places: dict[NextHop, _Place] = {}
        self._resolving: dict[NextHop, list[Claim]] = {}
        self._local_limit = asyncio.Semaphore(_LOCAL_AT_ONCE)
        self._searches: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def has_room_for(self, next_hop: NextHop) -> bool:
        """Whether what is accepted now may come as a claim; else it waits in the spool as due."""
        return self._window.has_room_for(next_hop) and not self._stopping

    def offer(self, claims: Iterable[Claim]) -> None:
        """Take claims over."""
        for claim in claims:
            self._window.enter(claim)
            self._dispatch(claim)

    def due_now(self) -> None:
        """Say that the spool has something due that came as no claim."""
        self._backlog = True
        self._wake.set()

    async def run(self) -> None:
        """Fetch what is due until cancelled."""
        pause_s = 0.0
        while True:
            try:
                pause_s = await self._refill()
            except SpoolError as error:
                _log.error("spool unreadable", error=str(error))
                pause_s = 1.0
            except Exception:  # noqa: BLE001 - ours: delivery goes on, whatever it was
                _log.exception("refill broken off")
                pause_s = 1.0
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                self._backlog = True
            self._wake.clear()
            if self._window.full:
                await asyncio.sleep(_CROWDED_S)

    async def drain(self, grace_s: float) -> None:
        """Give what was not begun back to the spool, finish what is in work within `grace_s`.

        What is cut off then goes back as well, or is indeterminate if its final dot was written.
        """
        self._stopping = True
        self._settler.claims_reports = False
        untried = [claim for site in self._sites.values() for claim in site.close()]
        untried += [claim for waiting in self._resolving.values() for claim in waiting]
        self._resolving.clear()
        for search in self._searches:
            search.cancel()
        await self.give_back(*untried)
        await self._all_ended(grace_s)
        for site in self._sites.values():
            site.abort()
        for task in self._tasks:
            task.cancel()
        await self._all_ended(_LAST_WORDS_S)

    async def _all_ended(self, timeout_s: float) -> None:
        """Wait until no connection and no task is left, with what they start at their end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while busy := self._tasks.union(*(one.workers for one in self._sites.values())):
                    await asyncio.wait(busy)

    # -- for the sites
    async def content_of(self, claim: Claim) -> Content:
        """What a claim is to send. Raises SpoolError."""
        return await self._contents.of(claim)

    async def settle(self, claim: Claim, outcomes: Mapping[int, Outcome]) -> None:
        """Settle an attempt and go on with what follows from it."""
        await self._settled(claim, self._settler.attempted(claim, outcomes))

    async def give_back(self, *claims: Claim) -> None:
        """Give claims back untried, on the way out; they are due at once."""
        if not claims:  # nor is the spool open, when a start came to nothing
            return
        try:
            await self._spool.release(claims)
        except SpoolError as error:  # the next start releases them
            _log.warning("claims kept", claims=len(claims), error=str(error))

    async def _refill(self) -> float:
        """Claim what is due while there is room; return for how many seconds nothing is."""
        window = self._window
        while self._backlog and window.claims_left > 0 and not self._stopping:
            limit = min(_REFILL_CLAIMS, max(1, window.claims_left // 2))
            claims = await self._spool.claim_due(
                self._clock.time_us(), limit, passing_over=window.full
            )
            self._backlog = len(claims) == limit
            self.offer(claims)
        if self._backlog:
            return _SLEEP_S_MAX  # woken when there is room
        due_us = await self._spool.next_due_us(passing_over=window.full)
        if due_us is None:
            return _SLEEP_S_MAX
        wait_s = (due_us - self._clock.time_us()) / 1_000_000
        return min(max(wait_s, 0.0), _SLEEP_S_MAX)

    async def _settled(self, claim: Claim, settling: Awaitable[Settled]) -> None:
        """Wait for the settlement; the claim's place is free then, whatever became of it."""
        settled = Settled((), None)
        try:
            settled = await settling
        except Exception:  # noqa: BLE001 - ours; until the next start the claim stays as it is
            _log.exception("settlement broken off", qid=claim.message.id, entry=claim.entry_id)
        if self._window.leave(claim):
            self._backlog = True
        if settled.due_us is not None or (self._backlog and self._window.is_worth_filling):
            self._wake.set()
        self.offer(settled.reports)
        self._on_change(claim.message.id)

    # -- where a claim goes
    def _dispatch(self, claim: Claim) -> None:
        if self._stopping:
            self._spawn(self.give_back(claim))
        elif is_expired(claim, self._clock.time_us()):
            self._spawn(self._settled(claim, self._settler.expired(claim)))
        elif claim.next_hop.kind is HopKind.LOCAL:
            self._spawn(self._deliver_locally(claim))
        else:
            place = self._places.get(claim.next_hop)
            if place is not None and place.until > self._clock.monotonic():
                place.site.push(claim)
            elif (waiting := self._resolving.get(claim.next_hop)) is not None:
                waiting.append(claim)
            else:
                self._resolving[claim.next_hop] = [claim]
                search = self._spawn(self._find_site(claim.next_hop))
                self._searches.add(search)
                search.add_done_callback(self._searches.discard)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _deliver_locally(self, claim: Claim) -> None:
        try:
            async with self._local_limit:
                outcomes = await self._into_mailboxes(claim)
        except asyncio.CancelledError:  # repeated, it finds what is there already
            self._spawn(self.give_back(claim))
            raise
        await self.settle(claim, outcomes)

    async def _into_mailboxes(self, claim: Claim) -> dict[int, Outcome]:
        try:
            content = await self._contents.of(claim)
        except SpoolError as error:
            return unreadable(claim, error)
        return {
            recipient.id: await self._local.deliver(claim, recipient, content)
            for recipient in claim.recipients
        }

    async def _find_site(self, next_hop: NextHop) -> None:
        """Resolve a next hop and push everything that waits for it."""
        try:
            resolution = await self._resolver.resolve(next_hop)
        except Exception as error:  # noqa: BLE001 - ours: else the next hop would wait for ever
            _log.exception("resolving broken off", next_hop=str(next_hop))
            resolution = TemporaryFailure(f"internal error: {type(error).__name__}")
        claims = self._resolving.pop(next_hop, [])
        if isinstance(resolution, Hosts):
            site = self._site(next_hop, resolution)
            if len(self._places) >= _PLACES_MAX:
                self._places.clear()
            self._places[next_hop] = _Place(site, self._clock.monotonic() + _PLACE_S)
            for claim in claims:
                site.push(claim)
            return
        outcome = outcome_of(resolution)
        await asyncio.gather(*(self.settle(one, for_all(one, outcome)) for one in claims))

    def _site(self, next_hop: NextHop, hosts: Hosts) -> Site:
        """The site of these hosts: the same for every domain that they serve."""
        credentials = self._table.credentials_for(next_hop)
        implicit = next_hop.kind is HopKind.SMTPS
        places = tuple(sorted((host.name, host.port) for host in hosts.hosts))
        key = (places, implicit, credentials)
        site = self._sites.get(key)
        if site is None:
            if len(self._sites) >= _SITES_MAX:
                self._forget_unused()
            site = self._sites[key] = Site(
                name=",".join(f"{name}:{port}" for name, port in places[:3]),
                hosts=hosts,
                options=replace(self._options, tls="implicit") if implicit else self._options,
                credentials=credentials,
                settler=self,
                slots=self._slots,
                clock=self._clock,
            )
        site.hosts = hosts
        return site

    def _forget_unused(self) -> None:
        self._places.clear()
        self._sites = {key: site for key, site in self._sites.items() if not site.is_unused}
