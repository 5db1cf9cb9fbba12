"""Which site a next hop's claims go to: resolved when it is asked for, and for a moment known.

On the path: the dispatcher pushes claims; they wait here for the resolver, then in their site.
Holds: one search for a next hop at a time, and a bounded number in all; what was not found is not
    looked for again at once; the same hosts are one site, whatever domains they serve; sites and
    places are bounded.
Fails: never; what the resolver says is wrong becomes an outcome of all that waits for it.
Standards: RFC 5321 5.1.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from relay.clock import Clock
from relay.delivery.active_queue import Residents
from relay.delivery.attempt_result import for_all
from relay.delivery.connection_slots import ConnectionSlots
from relay.delivery.dependencies import Connect, LocalTable, Resolver, Scheduler
from relay.delivery.fair_queue import FairQueue, Turn, Turns
from relay.delivery.host_selection import HOSTS_MAX, HostMemory, Place, Refusal
from relay.delivery.site import Site
from relay.delivery.site_limits import SiteOptions, parse_rate
from relay.message.nexthop import HopKind, NextHop
from relay.message.outcome import INTERNAL_ERROR, Deferred, Outcome
from relay.observe.logs import get_logger
from relay.routing import Hosts, TemporaryFailure, Unresolved, outcome_of
from relay.settings.tree import TlsLevel
from relay.spool.types import Claim
from relay.spool.waiting import Lane

_TICK_S = 0.002
_PART = 0.4  # of the time since the last one that the loop may have been at work
_SLOWEST_S = 0.02  # between two, however busy it is


class Pace:
    """Calls `begin` from time to time, until it says that there is nothing more to begin."""

    def __init__(self, begin: Callable[[], bool], clock: Clock) -> None:
        """`begin` begins one and returns whether there are more."""
        self._begin = begin
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._last_s = self._last_busy_s = 0.0

    def go_on(self) -> None:
        """There is something to begin."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(0, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._may_begin() and not self._begin():
            return
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def _may_begin(self) -> bool:
        now_s, busy_s = self._clock.monotonic(), self._clock.busy_s()
        passed_s = now_s - self._last_s
        if busy_s - self._last_busy_s > _PART * passed_s and passed_s < _SLOWEST_S:
            return False
        self._last_s, self._last_busy_s = now_s, busy_s
        return True


SEARCHES_MAX = 120  # each asks several questions, and the resolver asks 256 at once
DOWN_MAX = 16
_RESERVED_PART = 8  # one in so many is for new mail, and half of them for senders that have none


class Searches:
    """Turns to ask the resolver."""

    def __init__(self, clock: Clock) -> None:
        self._new = _Line(SEARCHES_MAX, clock)
        self._down = _Line(DOWN_MAX, clock)

    @asynccontextmanager
    async def turn(self, claim: Claim, *, at_once: bool) -> AsyncIterator[None]:
        """Wait for a turn, and keep it for the block; `claim` is the first that asks. With
        `at_once` it comes before others, without their pace.
        """
        line = self._down if claim.lane is Lane.DOWN else self._new
        sender = await line.take(claim.next_hop, claim.sender, is_new=at_once)
        try:
            yield
        finally:
            line.give_back(sender)

    def has_mail_of(self, claim: Claim, *, at_once: bool) -> None:
        """Where a search waits already, let it have the turn of this claim if that is earlier."""
        for line in (self._new, self._down):
            line.has_mail_of(claim.next_hop, claim.sender, is_new=at_once)


class _Line:
    """So many at once; who waits has turns by sender, and what is for the queue has a pace."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._left = limit
        self._reserve = limit // _RESERVED_PART
        self._having: Counter[int] = Counter()
        self._waiting: Turns[asyncio.Future[int]] = Turns()
        self._turns: dict[NextHop, Turn[asyncio.Future[int]]] = {}  # of the searches that wait
        self._pace = Pace(self._begin_one, clock)

    async def take(self, next_hop: NextHop, sender: int, *, is_new: bool) -> int:
        """Wait for a place; whose turn it was in."""
        if is_new and self._has_place_for(sender, is_new=True):
            self._give(sender)
            return sender
        given: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._wait(next_hop, Turn(given, sender, is_new))
        try:
            return await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self.give_back(given.result())
            raise
        finally:
            self._turns.pop(next_hop, None)

    def has_mail_of(self, next_hop: NextHop, sender: int, *, is_new: bool) -> None:
        turn = self._turns.get(next_hop)
        if turn is None or turn.what.done():
            return
        other = Turn(turn.what, sender, is_new)
        if self._waiting.is_before(other, turn):
            self._waiting.remove(turn)
            self._wait(next_hop, other)

    def _wait(self, next_hop: NextHop, turn: Turn[asyncio.Future[int]]) -> None:
        self._turns[next_hop] = turn
        self._waiting.push(turn)
        self._begin_what_must()

    def give_back(self, sender: int) -> None:
        self._left += 1
        self._having[sender] -= 1
        if not self._having[sender]:
            del self._having[sender]
        self._begin_what_must()

    def _begin_one(self) -> bool:
        """Begin the next in its turn; whether another could begin."""
        if (first := self._first()) is not None:
            self._begin(first)
        return self._first() is not None

    def _begin_what_must(self) -> None:
        """Begin what is for new mail and comes next; the others at their pace."""
        while (first := self._first()) is not None:
            if not first.is_new:
                self._pace.go_on()
                return
            self._begin(first)

    def _first(self) -> Turn[asyncio.Future[int]] | None:
        """Who comes next and has a place."""
        waiting = self._waiting
        while cancelled := [one for one in waiting.next(self._having) if one.what.done()]:
            waiting.remove(cancelled[0])
        for turn in waiting.next(self._having):
            if self._has_place_for(turn.sender, is_new=turn.is_new):
                return turn
        return None

    def _begin(self, turn: Turn[asyncio.Future[int]]) -> None:
        self._waiting.take(turn)
        self._give(turn.sender)
        turn.what.set_result(turn.sender)

    def _give(self, sender: int) -> None:
        self._left -= 1
        self._having[sender] += 1

    def _has_place_for(self, sender: int, *, is_new: bool) -> bool:
        if not self._having[sender]:
            return self._left > 0
        return self._left > (self._reserve // 2 if is_new else self._reserve)


_log = get_logger("delivery")

_SITES_MAX = 4000
_PLACES_MAX = 4000
_PLACE_S = 1.0  # how long the site of a next hop is remembered without asking the resolver

# its places, the TLS that is asked there (its level, whether it comes first, the CA), and the login
SiteKey = tuple[tuple[tuple[str, int], ...], TlsLevel, bool, Path | None, tuple[str, str] | None]


@dataclass(slots=True)
class _Place:
    """Where a next hop's claims went a moment ago."""

    site: Site
    until: float


class Sites:
    """All sites, and the claims that wait until theirs is known."""

    def __init__(
        self,
        scheduler: Scheduler,
        residents: Residents,
        *,
        resolver: Resolver,
        table: LocalTable,
        slots: ConnectionSlots,
        options: SiteOptions,
        clock: Clock,
        connect: Connect,
    ) -> None:
        """`residents` hears where each claim waits."""
        self._scheduler = scheduler
        self._residents = residents
        self._resolver = resolver
        self._table = table
        self._slots = slots
        self._options = options
        self._clock = clock
        self._connect = connect
        self._sites: dict[SiteKey, Site] = {}
        self._places: dict[NextHop, _Place] = {}
        self._anew: dict[NextHop, None] = {}  # where somebody wants to be asked again who was down
        self._resolving: dict[NextHop, FairQueue] = {}
        self._searches: dict[NextHop, asyncio.Task[None]] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self._limit = Searches(clock)
        self._memory = HostMemory()

    def push(self, claim: Claim) -> None:
        """Take a claim for a next hop that is not here."""
        place = self._places.get(claim.next_hop)
        if place is not None and (
            place.until > self._clock.monotonic() or place.site.knows_nobody_for(claim)
        ):
            self._hand_on(claim, place.site)
            return
        waiting = self._resolving.get(claim.next_hop)
        if waiting is None and (refusal := self._not_found_lately(claim)) is not None:
            settling = self._not_found([claim], refusal.outcome)
            task = asyncio.get_running_loop().create_task(settling)
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)
            return
        if waiting is None:
            waiting = self._resolving[claim.next_hop] = FairQueue()
            search = asyncio.get_running_loop().create_task(self._find_site(claim))
            self._searches[claim.next_hop] = search
            search.add_done_callback(self._settling.discard)
        else:
            self._limit.has_mail_of(claim, at_once=self._is_urgent(claim))
        waiting.push(claim)
        self._residents.wait(claim, waiting)

    def try_anew(self, next_hops: Collection[NextHop]) -> None:
        """Forget that nobody was there."""
        for next_hop in next_hops:
            self._memory.forget_refusal(_name(next_hop))
            self._anew[next_hop] = None  # for the hosts that are found next
            if len(self._anew) > HOSTS_MAX:
                del self._anew[next(iter(self._anew))]
            place = self._places.get(next_hop)
            if place is not None:
                place.until = 0.0
                place.site.try_anew()

    def close(self) -> list[Claim]:
        """Take no more; return what was not begun. Connections end after their transaction."""
        untried = [claim for site in self._sites.values() for claim in site.close()]
        untried += [claim for waiting in self._resolving.values() for claim in waiting.drain()]
        for search in self._searches.values():
            search.cancel()
            self._settling.add(search)
        self._searches.clear()
        return untried

    def abort(self) -> None:
        """End every connection at once."""
        for site in self._sites.values():
            site.abort()

    @property
    def tasks(self) -> Iterator[asyncio.Task[None]]:
        """Searches, with what they settle, and connections that have not ended."""
        yield from self._searches.values()
        yield from self._settling
        for site in self._sites.values():
            yield from site.workers

    def _hand_on(self, claim: Claim, site: Site) -> None:
        self._residents.wait(claim, site.ready)
        site.push(claim)

    async def _find_site(self, first: Claim) -> None:
        """Resolve the next hop of the claim that asked first, and push all that waits for it."""
        next_hop = first.next_hop
        found = await self._found(first)
        self._settling.add(self._searches.pop(next_hop))  # from here on it is not cut off
        claims = self._resolving.pop(next_hop).drain()
        if isinstance(found, Site):
            if len(self._places) >= _PLACES_MAX:
                self._places.clear()
            self._places[next_hop] = _Place(found, self._clock.monotonic() + _PLACE_S)
            if next_hop in self._anew:
                del self._anew[next_hop]
                found.try_anew()
            for claim in claims:
                self._hand_on(claim, found)
            return
        outcome = outcome_of(found)
        if isinstance(outcome, Deferred):
            now_s = self._clock.monotonic()
            self._memory.refused(_name(next_hop), Refusal(outcome, now_s))
        await self._not_found(claims, outcome)

    def _not_found_lately(self, claim: Claim) -> Refusal | None:
        since_s = self._clock.monotonic() - self._options.trust_s(claim)
        return self._memory.refusal(_name(claim.next_hop), since_s=since_s)

    async def _found(self, first: Claim) -> Site | Unresolved:
        try:
            async with self._limit.turn(first, at_once=self._is_urgent(first)):
                found = await self._resolver.resolve(first.next_hop)
                return self._site(first.next_hop, found) if isinstance(found, Hosts) else found
        except Exception:  # noqa: BLE001 - an internal fault: try the hop again later
            _log.exception("resolving broken off", next_hop=str(first.next_hop))
            return TemporaryFailure(INTERNAL_ERROR)

    def _is_urgent(self, claim: Claim) -> bool:
        """Whether its next hop is looked up at once: for new mail, or where somebody was lately."""
        place = self._places.get(claim.next_hop)
        return claim.is_fresh or (place is not None and place.site.has_answered())

    async def _not_found(self, claims: Iterable[Claim], outcome: Outcome) -> None:
        settle = partial(self._scheduler.settle, reached=False)
        await asyncio.gather(*(settle(one, for_all(one, outcome)) for one in claims))

    def _site(self, next_hop: NextHop, hosts: Hosts) -> Site:
        """The site of these hosts: the same for every domain that they serve.

        Next hops that ask different TLS of one host have sites, and connections, of their own.
        """
        credentials = self._table.credentials_for(next_hop)
        asked = self._table.tls_for(next_hop)
        tls = asked.level or self._options.tls
        implicit = next_hop.kind is HopKind.SMTPS
        places = tuple(sorted((host.name, host.port) for host in hosts.hosts))
        key = (places, tls, implicit, asked.ca, credentials)
        site = self._sites.get(key)
        if site is None:
            if len(self._sites) >= _SITES_MAX:
                self._forget_unused()
            site = self._sites[key] = Site(
                name=",".join(f"{name}:{port}" for name, port in places[:3]),
                hosts=hosts,
                options=replace(self._options, tls=tls, implicit=implicit, ca=asked.ca),
                credentials=credentials,
                scheduler=self._scheduler,
                slots=self._slots,
                clock=self._clock,
                connect=self._connect,
                memory=self._memory,
            )
        site.renew(hosts)
        limits = self._table.limits_for(next_hop)
        site.bound(limits.connections_max, parse_rate(limits.rate))
        return site

    def _forget_unused(self) -> None:
        self._places.clear()
        self._sites = {key: site for key, site in self._sites.items() if not site.is_unused}


def _name(next_hop: NextHop) -> Place:
    """A next hop whose hosts cannot be found, as the memory of hosts keeps it."""
    return (str(next_hop), 0, "", "")
