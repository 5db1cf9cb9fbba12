"""Next-hop resolution: which site a next hop's claims go to, and when its hosts are looked up.

Which hosts a next hop has is decided in relay/transport/routing/usable_hosts.py.

Sites looks up the hosts of a next hop, once for all claims that wait, and gives the claims to
the site of those hosts. The same hosts are one site, whatever domains they serve. A next hop that
could not be resolved is not looked up again at once; its claims share that outcome. Mail that
demands more or less TLS than others (RFC 8689) has separate lookups and outcomes.

A lookup holds a slot, as a probe of a site does. Next hops that were not found the last time have a
small separate limit, so that they do not delay others. Lookups for sites that answered lately
count as those for new mail.
"""

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from itertools import chain

from msgspec.structs import replace

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import INTERNAL_ERROR, Deferred, Outcome
from relay.base.message.tls_policy import OPTIONAL, REQUIRETLS, TlsDemand, TlsPolicy
from relay.base.observe.logs import ContainedErrors, get_logger
from relay.delivery.attempt_recorder import AttemptRecorder
from relay.delivery.attempt_result import Lookup, same_outcome
from relay.delivery.connection_slots import ConnectionSlots, SiteStatus
from relay.delivery.fair_queue import ClaimQueue
from relay.delivery.graph.turns import FillingTurns
from relay.delivery.host_selection import HOSTS_MAX, Connect, HostSelection, HostStatusCache
from relay.delivery.outbound_session import serve
from relay.delivery.site import Site, SiteProbe, SiteState
from relay.delivery.site_limits import PAUSES_MAX, SiteOptions, SitePause, parse_rate
from relay.store.spool.types import Claim, PriorityLevel
from relay.transport.routing import mx_hosts
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routes import HopOptions
from relay.transport.routing.usable_hosts import (
    Resolve,
    find_hosts,
    mx_of,
    policy_of,
    with_policy,
    with_tls,
)

LOOKUPS_MAX = 120  # each sends several DNS queries, and the DNS client has 256 at once
LOOKUPS_UNREACHABLE_MAX = 16
_QUEUED_S = 0.005  # between lookups for queued mail, which leave the event loop time for new mail
_log = get_logger("delivery")
# Claims with the same key share a lookup: the next hop, with the TLS that the message demands.
LookupKey = NextHop | tuple[NextHop, TlsDemand]
_SITES_MAX = 4000
_RESOLVED_MAX = 4000
_RESOLVED_S = 1.0  # how long the site of a next hop is remembered without asking the resolver
# each host: its name or its socket's path, port, TLS policy, LMTP; and the other options
SiteKey = tuple[tuple[tuple[str, int, TlsPolicy, bool], ...], HopOptions]
_NO_TLS = TlsPolicy("none")  # in a SiteKey's options


@dataclass(eq=False)
class Sites:
    """All sites, and the claims that wait for next-hop resolution."""

    recorder: AttemptRecorder  # records the results of claims
    _: KW_ONLY
    resolve: Resolve  # finds the hosts of a next hop
    table: RouteTable  # how they are contacted
    slots: ConnectionSlots  # of all sites together
    options: SiteOptions  # of each site, before its route changes them
    clock: Clock  # for how long something is remembered
    connect: Connect  # opens connections

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all sites, and what hosts did."""
        self._sites: dict[SiteKey, Site] = {}
        self._retired: list[Site] = []  # those whose last transactions have not ended
        # their sites, and until when those count
        self._resolved = BoundedDict[LookupKey, tuple[Site, float]](_RESOLVED_MAX)
        self._found = BoundedDict[LookupKey, Lookup](_RESOLVED_MAX)  # for the evidence of attempts
        self._waiting: dict[LookupKey, ClaimQueue] = {}
        # the lookup forgets their hosts' failures
        self._retry_now = BoundedDict[LookupKey, None](HOSTS_MAX)
        self._lookups: dict[LookupKey, asyncio.Task[None]] = {}  # until they have an answer
        # of next hops that were not found the last time, and of others; each is a probe, of which
        # there are half as many as slots
        self._lookup_slots = {
            True: ConnectionSlots(2 * LOOKUPS_UNREACHABLE_MAX),
            False: ConnectionSlots(2 * LOOKUPS_MAX),
        }
        self._turn_s = 0.0  # of the last lookup for queued mail
        self._urgent: dict[LookupKey, asyncio.Event] = {}  # of those that wait for their turn
        self._host_status = HostStatusCache()
        # why the last lookup found no hosts, and when (monotonic clock)
        self._unresolved = BoundedDict[LookupKey, tuple[Deferred, float]](HOSTS_MAX)
        self._pauses = BoundedDict[Hashable, SitePause](PAUSES_MAX)
        self._turns = FillingTurns(self.recorder.claims, self.push)

    def push(self, claim: Claim) -> None:
        """Take a claim for a remote next hop."""
        key = lookup_key(claim)
        site, until_s = self._resolved.get(key, (None, 0.0))
        if site is not None and (
            until_s > self.clock.monotonic() or site.has_known_failure_for(claim)
        ):
            site.push(claim)
            return
        waiting = self._waiting.get(key)
        if waiting is None and (failure := self._recent_failure(claim)):
            self.recorder.begin(self._record_unresolved([claim], failure))
            return
        if waiting is None:
            waiting = self._waiting[key] = ClaimQueue()
            self._lookups[key] = self.recorder.begin(self._find_site(claim))
        else:  # once the lookup waits: it may have been created a moment ago
            asyncio.get_running_loop().call_soon(self._use_earlier_turn, claim)
        waiting.push(claim)
        self.recorder.claims.track(claim, waiting)

    def retry_now(self, next_hops: Collection[NextHop]) -> None:
        """Forget failures and pauses of these next hops and their hosts."""
        for key in chain.from_iterable(map(_lookup_keys, next_hops)):
            self._unresolved.pop(key, None)
            self._retry_now[key] = None  # for the hosts that the next lookup finds
            site, _ = self._resolved.get(key, (None, 0.0))
            if site is not None:
                self._resolved[key] = site, 0.0
                site.retry_now()

    def lookup_of(self, claim: Claim) -> Lookup | None:
        """Return what the last lookup for a claim gave; of some thousand next hops."""
        return self._found.get(lookup_key(claim))

    def close(self) -> list[Claim]:
        """Take no more claims; return those not begun. Connections end after their transaction."""
        not_begun = [claim for site in self._sites.values() for claim in site.close()]
        not_begun += [claim for waiting in self._waiting.values() for claim in waiting.drain()]
        not_begun += self._turns.drain()
        for lookup in self._lookups.values():
            lookup.cancel()
        self._lookups.clear()
        return not_begun

    def renew(
        self, options: SiteOptions, connect: Connect, is_over: Callable[[HopOptions], bool]
    ) -> list[Claim]:
        """Use other options. Return the claims that are not begun: the routes have to be asked
        again for them. Where the options of a route are over, no further transaction begins.
        """
        self.options, self.connect = options, connect
        self._resolved.clear()
        claims = [claim for waiting in self._waiting.values() for claim in waiting.drain()]
        claims += self._turns.drain()
        self._retired = [site for site in self._retired if site.workers]
        for key, site in [*self._sites.items()]:
            if is_over(site.hosts.via):
                claims += site.retire()
                self._retired.append(self._sites.pop(key))
            else:
                claims += site.ready.drain()
        return claims

    def abort(self) -> None:
        """Cancel every connection."""
        for site in (*self._sites.values(), *self._retired):
            site.abort()

    @property
    def tasks(self) -> Iterator[asyncio.Task[None]]:
        """Connections that have not ended."""
        for site in (*self._sites.values(), *self._retired):
            yield from site.workers

    @property
    def delayed_claims(self) -> int:
        """How many claims wait until a message rate allows them."""
        return sum(site.delayed_claims for site in self._sites.values())

    def paused(self) -> list[SitePause]:
        """The pauses that replies of hosts have begun."""
        now_s = self.clock.monotonic()
        return [pause for pause in self._pauses.values() if pause.until_s > now_s]

    def state_of(self, next_hop: NextHop, hosts: mx_hosts.Hosts) -> SiteState:
        """What the site of these hosts does now; one that is not in use may have failed hosts.
        They have their TLS.
        """
        options = self.table.options_for(next_hop)
        key = _site_key(hosts, options)
        return (self._sites.get(key) or self._new_site(key, hosts, options)).state

    async def probe(self, next_hop: NextHop, hosts: mx_hosts.Hosts) -> SiteProbe:
        """Open a session with the site of these hosts as delivery would, and end it before MAIL.
        They have their TLS.
        """
        return await self._site(hosts, self.table.options_for(next_hop)).probe()

    async def _find_site(self, first: Claim) -> None:
        """Resolve the next hop of `first`, and push all claims that wait for it."""
        key = lookup_key(first)
        resolved = await self._resolve(first)
        del self._lookups[key]  # from here on close() does not cancel it
        claims = self._waiting.pop(key).drain()
        if isinstance(resolved, Site):
            self._resolved[key] = resolved, self.clock.monotonic() + _RESOLVED_S
            if key in self._retry_now:
                del self._retry_now[key]
                resolved.retry_now()
            for claim in claims:
                resolved.push(claim)
            return
        outcome = mx_hosts.outcome_of(resolved, self.table.is_own_anywhere)
        if isinstance(outcome, Deferred):
            self._unresolved[key] = outcome, self.clock.monotonic()
        await self._record_unresolved(claims, outcome, took_s=0.0)

    def _recent_failure(self, claim: Claim) -> Deferred | None:
        outcome, at_s = self._unresolved.get(lookup_key(claim), (None, 0.0))
        age_s = self.clock.monotonic() - at_s
        return outcome if age_s <= self.options.failure_age_max_s(claim) else None

    async def _resolve(self, first: Claim) -> Site | mx_hosts.Unresolved:
        slots = self._lookup_slots[first.level is PriorityLevel.UNREACHABLE]
        hop = first.next_hop.key
        with ContainedErrors(_log, "internal error in next-hop resolution", next_hop=hop):
            async with slots.hold(
                lookup_key(first),
                status=SiteStatus.UNKNOWN,
                sender=first.sender,
                is_new=self._is_urgent(first),
            ) as slot:
                if not slot.is_new:
                    await self._wait_for_turn(lookup_key(first))
                began_s = self.clock.real_s()
                via = self.table.options_for(first.next_hop)
                lookup = await find_hosts(self.resolve, first.next_hop, via)
                took_s = self.clock.real_s() - began_s
            by, demand = self.table.tls_demanded_by(first.next_hop), first.message.envelope.tls
            # without a slot: a web server may be slow
            lookup = await with_policy(lookup, by, demand)
            options = self.table.options_for(first.next_hop)  # they may have changed
            lookup = with_tls(lookup, options, by, demand=demand)
            self._note_lookup(lookup_key(first), lookup, options, took_s=took_s)
            return self._site(lookup, options) if isinstance(lookup, mx_hosts.Hosts) else lookup
        return mx_hosts.TemporaryFailure(INTERNAL_ERROR)

    async def _wait_for_turn(self, key: LookupKey) -> None:
        """Wait until queued mail may have its next lookup, or until urgent mail needs the same
        lookup.
        """
        now_s = self.clock.real_s()
        self._turn_s = max(self._turn_s, now_s) + _QUEUED_S
        urgent = self._urgent[key] = asyncio.Event()
        try:
            await self.clock.wait(urgent, self._turn_s - now_s)
        finally:
            del self._urgent[key]

    def _use_earlier_turn(self, claim: Claim) -> None:
        """Let the lookup for a claim have its turn if that is earlier."""
        key, is_urgent = lookup_key(claim), self._is_urgent(claim)
        for slots in self._lookup_slots.values():
            slots.use_earlier_turn(key, claim.sender, is_new=is_urgent)
        if is_urgent and key in self._urgent:
            self._urgent[key].set()

    def _is_urgent(self, claim: Claim) -> bool:
        """Whether a claim is looked up as new mail is: it is new, or its site answered lately."""
        site, _ = self._resolved.get(lookup_key(claim), (None, 0.0))
        return claim.is_fresh or (site is not None and site.has_answered())

    def _note_lookup(
        self, key: LookupKey, lookup: mx_hosts.Resolution, options: HopOptions, *, took_s: float
    ) -> None:
        """Keep what a lookup gave; of too many next hops the oldest is forgotten."""
        hosts = lookup.hosts if isinstance(lookup, mx_hosts.Hosts) else ()
        mx = mx_of(lookup, options.source_address)
        self._found[key] = Lookup(
            tuple(map(str, mx.hosts)),
            mx.more,
            round(1000 * took_s, 1),
            {host.name: host.tls for host in hosts if host.tls is not None},
        )

    async def _record_unresolved(
        self, claims: Iterable[Claim], outcome: Outcome, *, took_s: float | None = None
    ) -> None:
        record = partial(self.recorder.record, reached=False, took_s=took_s)
        await self.recorder.finish(record(claim, same_outcome(claim, outcome)) for claim in claims)

    def _site(self, hosts: mx_hosts.Hosts, options: HopOptions) -> Site:
        """Return the site of these hosts, which have their TLS: the same for every domain that they
        serve.

        Under different policies or options, hosts are different sites, which share no connection.
        """
        key = _site_key(hosts, options)
        site = self._sites.get(key)
        if site is None:
            if len(self._sites) >= _SITES_MAX:
                self._forget_unused()
            site = self._sites[key] = self._new_site(key, hosts, options)
        site.hosts.hosts = hosts  # the same in a new order, with new addresses
        return site

    def _new_site(self, key: SiteKey, hosts: mx_hosts.Hosts, options: HopOptions) -> Site:
        return Site(
            name=",".join(f"{name}:{port}" for name, port, *_ in key[0][:3]),
            hosts=HostSelection(
                hosts,
                self.options,
                via=options,
                host_status=self._host_status,
                clock=self.clock,
                open_session=self.connect,
            ),
            options=self.options.limited(options.connections_max, parse_rate(options.rate)),
            slots=self.slots,
            recorder=self.recorder,
            serve=serve,
            pauses=self._pauses,
            clock=self.clock,
            turns=self._turns,
        )

    def _forget_unused(self) -> None:
        self._resolved.clear()
        self._sites = {key: site for key, site in self._sites.items() if not site.is_unused}


def _site_key(hosts: mx_hosts.Hosts, options: HopOptions) -> SiteKey:
    """The key of the site of these hosts, which have their TLS."""
    by_name = sorted(hosts.hosts, key=lambda host: (host.name, host.port))
    places = tuple(
        (host.name if host.port else host.addresses[0], host.port, policy_of(host), host.lmtp)
        for host in by_name
    )
    return places, replace(options, tls=_NO_TLS)


def _lookup_keys(next_hop: NextHop) -> tuple[LookupKey, ...]:
    return next_hop, (next_hop, REQUIRETLS), (next_hop, OPTIONAL)


def lookup_key(claim: Claim) -> LookupKey:
    """Return the key of the claim's lookup. Reports and ordinary mail demand nothing."""
    demand = claim.message.envelope.tls
    return (claim.next_hop, demand) if demand in (REQUIRETLS, OPTIONAL) else claim.next_hop
