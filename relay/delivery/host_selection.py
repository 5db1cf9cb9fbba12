"""Choose the next host of a site, for example when the first MX is down.

Hosts are tried by MX preference (RFC 5321 5.1). A host whose addresses all failed recently is tried
last, and so is an address that did not answer in the last SILENT_S. Among hosts of the same rank,
the one with the fewest sessions is first. A failure to connect is recorded for all sites that use
the address, so that not every message causes a new attempt. For a retried message a failure counts
for at most half of the time that the message has waited, so that each retry connects again. What a
host replies once its session stands changes nothing here, not even 421.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Failed,
    Peer,
    SessionFailure,
    SmtpStage,
)
from relay.base.message.tls_policy import CONFIGURATION, TlsPolicy
from relay.delivery.site_limits import SiteOptions
from relay.delivery.smtp.connect import ConnectError, Target
from relay.delivery.smtp.connection import BeforeDot, OnReplies
from relay.delivery.smtp.transaction import Extensions, Transaction, TransactionResult
from relay.store.spool.types import Claim
from relay.transport.routing.mx_hosts import Host, Hosts
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routes import Credentials, HopOptions
from relay.transport.routing.usable_hosts import Resolve, of_family, policy_of, usable_hosts

HOSTS_MAX = 20_000

# limit: addresses tried in an attempt
ADDRESSES_MAX = 5  # tried in one attempt, as Postfix's smtp_mx_address_limit; RFC 5321 5.1
_RESULT_CHARACTERS_MAX = 200
SILENT_S = 600.0
_AGAIN_S = 7200.0  # between failures that count as one: longer than the wait for a retry
ANSWERED_S = 600.0  # how long a connection shows that the host is reachable


class HostSession(Protocol):
    """An open session with a host, on which transactions follow each other: by SMTP or LMTP
    (relay.delivery.smtp.connection), or by Microsoft Graph (relay.delivery.graph.connection).
    """

    peer: Peer
    transactions: int

    @property
    def extensions(self) -> Extensions:
        """What the host takes."""

    @property
    def is_open(self) -> bool:
        """Whether it can take a transaction."""

    @property
    def is_worn(self) -> bool:
        """Whether the host may take no further transaction."""

    async def transact(
        self,
        transaction: Transaction,
        *,
        before_dot: BeforeDot | None = None,
        on_replies: OnReplies | None = None,
    ) -> TransactionResult:
        """Send one message: see relay.delivery.smtp.connection.Connection.transact()."""

    async def quit(self) -> None:
        """End the session."""

    def close(self) -> None:
        """Close it at once."""


# Opens a session that is ready for a transaction. Raises ConnectError.
Connect = Callable[[Target], Awaitable[HostSession]]


class HostKey(Struct, frozen=True):
    """An address and how it is contacted. A failure with one key says nothing about another key."""

    address: str
    port: int
    tls: TlsPolicy
    login: Credentials | None
    source_address: str
    is_mx: bool  # the DNS names the host


class ConnectFailure(Struct, frozen=True):
    """Why the last attempt to connect failed, and when (monotonic clock). `silent`: there was no
    connection. `first_s`: when the attempts without a reply began; inf: there was a reply.
    """

    outcome: Deferred | Failed
    at_s: float
    silent: bool = False
    first_s: float = math.inf

    @property
    def unanswered_since_s(self) -> float:
        """Since when there has been no reply; inf: there was one."""
        if isinstance(self.outcome, Failed) or self.outcome.kind is not DeferralClass.CONNECT:
            return math.inf
        return min(self.first_s, self.at_s)


class HostStatusCache:
    """The last result of connecting to each host. If it is full, the least recently used result is
    removed. All sites share it, and it remains when a site is removed.
    """

    def __init__(self, *, hosts_max: int = HOSTS_MAX) -> None:
        self._known = BoundedDict[HostKey, ConnectFailure | float](hosts_max)

    def __len__(self) -> int:
        return len(self._known)

    def note(self, key: HostKey, known: ConnectFailure | float) -> None:
        """Record a failure to connect, or the time of a connection."""
        if isinstance(known, ConnectFailure):
            before = self.failure(key, since_s=known.at_s - _AGAIN_S)
            known = replace(known, first_s=before.unanswered_since_s) if before else known
        self._known[key] = known

    def failure(self, key: HostKey, *, since_s: float) -> ConnectFailure | None:
        """The last failure, unless a connection followed or it is older than `since_s`."""
        known = self._known.get(key)
        if isinstance(known, ConnectFailure) and known.at_s >= since_s:
            return known
        return None

    def has_answered(self, key: HostKey, *, since_s: float) -> bool:
        """Whether the last result is a connection and not older than `since_s`."""
        known = self._known.get(key)
        return isinstance(known, float) and known >= since_s

    def forget_failure(self, key: HostKey) -> None:
        """Forget a failure, so that the host is tried again."""
        if isinstance(self._known.get(key), ConnectFailure):
            del self._known[key]


def target_of(host: Host, address: str, via: HopOptions) -> Target:
    """Return where to connect, and how; the host has its TLS."""
    return Target(
        host=host.name,
        address=address if host.port else "",
        port=host.port,
        path="" if host.port else address,
        lmtp=host.lmtp,
        tls=policy_of(host),
        tls_by=host.tls.by if host.tls is not None else CONFIGURATION,
        login=via.login,
        source_address=via.source_address,
        is_mx=via.is_mx,
        graph=via.graph,
    )


async def targets_of(next_hop: NextHop, table: RouteTable, resolve: Resolve) -> Sequence[Target]:
    """Look up the hosts of a next hop; return where to connect, the best host first."""
    via = table.options_for(next_hop)
    lookup = await usable_hosts(resolve, table, next_hop)
    return [
        target_of(host, address, via)
        for host in (lookup.hosts if isinstance(lookup, Hosts) else ())
        for address in of_family(host.addresses, via.source_address)
    ]


@dataclass(eq=False)
class SessionState:
    """What a site knows of the session of a worker; `host` is the last host that was tried."""

    host: str = ""  # the last one that was tried
    connection: HostSession | None = None  # the host may have closed it since
    is_over: bool = False  # begins no transaction any more

    @property
    def is_connected(self) -> bool:
        """Whether it has a connection, as far as is known: busy or idle."""
        return self.connection is not None


@dataclass(eq=False)
class HostSelection:
    """Connects to the best host that answers. `hosts` may be replaced by the same, reordered."""

    hosts: Hosts  # each with its TLS
    options: SiteOptions  # for how long a failure to connect counts
    _: KW_ONLY
    via: HopOptions  # the login and the source address
    host_status: HostStatusCache  # shared by all sites
    clock: Clock
    open_session: Connect

    def known_failure(self, claim: Claim) -> Deferred | None:
        """The last failure, if all hosts failed recently enough for `claim`."""
        since_s = self.clock.monotonic() - self.options.failure_age_max_s(claim)
        deferred: Deferred | None = None
        for key in self._keys():
            failure = self.host_status.failure(key, since_s=since_s)
            if failure is None:
                return None
            # A temporary failure of one host outweighs a permanent one of another.
            if deferred is None and isinstance(failure.outcome, Deferred):
                deferred = failure.outcome
        return deferred

    def last_failure(self) -> ConnectFailure | None:
        """The last failure to connect to one of the hosts, unless a connection followed."""
        known = (self.host_status.failure(key, since_s=-math.inf) for key in self._keys())
        return max(filter(None, known), key=lambda failure: failure.at_s, default=None)

    def unanswered_s(self) -> float | None:
        """For how long no host has answered; None: one did, with whatever reply."""
        known = (self.host_status.failure(key, since_s=-math.inf) for key in self._keys())
        times_s = [failure.unanswered_since_s for failure in known if failure]
        since_s = max(times_s, default=math.inf)
        return None if since_s == math.inf else self.clock.monotonic() - since_s

    def all_failed(self) -> bool:
        """Whether all hosts failed recently enough for mail that was never attempted."""
        since_s = self.clock.monotonic() - self.options.unreachable_s
        return all(self.host_status.failure(key, since_s=since_s) for key in self._keys())

    def has_answered(self) -> bool:
        """Whether one of the hosts was connected to recently, by any site."""
        since_s = self.clock.monotonic() - ANSWERED_S
        return any(self.host_status.has_answered(key, since_s=since_s) for key in self._keys())

    def forget_failures(self) -> None:
        """Forget failures, so that all hosts are tried again."""
        for key in self._keys():
            self.host_status.forget_failure(key)

    def count_of_best(self) -> int:
        """How many hosts have the same rank as the best one."""
        ranks = sorted(map(self._rank, self.hosts.hosts))
        return ranks.count(ranks[0])

    def has_others(self, names: Collection[str]) -> bool:
        """Whether there is a host to try without those of these names."""
        return any(host.name not in names for host, _ in self._addresses_of(self.hosts.hosts))

    async def connect(
        self,
        session: SessionState,
        others: Collection[SessionState],
        *,
        limit: Callable[[], AbstractAsyncContextManager[object]],
        without: Collection[str] = (),
    ) -> HostSession:
        """Open a connection to the best host that gives one, except those named in `without`.

        `session` gets the name of each host that is tried. `others` are the other sessions of the
        site. Each try runs in the context that `limit` returns. Raises ConnectError if no host
        gives a connection.
        """
        connected = {other.host for other in others if other.is_connected}
        since_s = self.clock.monotonic() - self.options.unreachable_s
        last: tuple[Deferred | Failed, SmtpStage] | None = None
        tried = 0
        results: list[str] = []  # of each address, for the journey
        for host, address in self._addresses_in_order(Counter(other.host for other in others)):
            key = self._key(host, address)
            known = self.host_status.failure(key, since_s=since_s)
            if host.name in without or (known is None and tried == ADDRESSES_MAX):
                continue
            session.host = host.name
            try:
                if known is None:
                    tried += 1
                    connection = await self._try(host, address, limit=limit)
                    self.host_status.note(key, self.clock.monotonic())
                    if results:
                        results.append(f"{_named(host, address)}: connected")
                        connection.peer = replace(connection.peer, hosts=tuple(results))
                    return connection
                outcome, stage = known.outcome, SmtpStage.CONNECT
            except ConnectError as error:
                judged = self.options.providers.judged
                outcome, stage = judged(error.outcome, self.via.login), error.stage
                # A connected host is reachable: it only takes no more connections.
                if host.name not in connected:
                    failure = ConnectFailure(
                        outcome, self.clock.monotonic(), silent=stage is SmtpStage.CONNECT
                    )
                    self.host_status.note(key, failure)
            if len(results) < ADDRESSES_MAX:
                reply = outcome.evidence.reply[:_RESULT_CHARACTERS_MAX]
                results.append(f"{_named(host, address)}: {reply}")
            # A temporary failure of one host outweighs a permanent one of another, and most of all
            # one that a [[reply]] entry has judged: it may pause the site.
            is_judged = isinstance(outcome, Deferred) and outcome.evidence.provider
            if last is None or isinstance(last[0], Failed) or is_judged:
                last = outcome, stage
        if last is None:
            raise self._no_address()
        outcome, stage = last
        if isinstance(outcome, Failed) and (unknown := self.hosts.unknown):
            reply = f"{outcome.evidence.reply}; of another host {unknown}"
            evidence = replace(outcome.evidence, status="4.7.5", reply=reply)
            outcome = Deferred(evidence, DeferralClass.TLS)
        if len(results) > 1:
            outcome = replace(outcome, evidence=replace(outcome.evidence, hosts=tuple(results)))
        raise ConnectError(outcome, stage)

    def _no_address(self) -> ConnectError:
        """The error where no host has an address of the source address's family."""
        text = f"no host has an address of the family of source_address {self.via.source_address}"
        peer = Peer(self.hosts.hosts[0].name)
        return ConnectError.broken(SmtpStage.CONNECT, SessionFailure.LOST, text, peer=peer)

    async def _try(
        self, host: Host, address: str, *, limit: Callable[[], AbstractAsyncContextManager[object]]
    ) -> HostSession:
        target = target_of(host, address, self.via)
        try:
            async with limit():
                return await self.open_session(target)
        except TimeoutError:
            text = "no answer yet; ended because other hosts waited for a connection attempt"
            peer = Peer(host.name, address=str(target))
            raise ConnectError.broken(
                SmtpStage.CONNECT, SessionFailure.TIMEOUT, text, peer=peer
            ) from None

    def _addresses_in_order(self, sessions: Counter[str]) -> list[tuple[Host, str]]:
        """Return all addresses, the best host's first; among equal hosts the one with the fewest
        sessions is first. Addresses that did not answer are last.
        """
        ordered = sorted(self.hosts.hosts, key=lambda host: (self._rank(host), sessions[host.name]))
        since_s = self.clock.monotonic() - SILENT_S
        pairs = self._addresses_of(ordered)
        return sorted(pairs, key=lambda pair: self._is_silent(*pair, since_s=since_s))

    def _is_silent(self, host: Host, address: str, *, since_s: float) -> bool:
        known = self.host_status.failure(self._key(host, address), since_s=since_s)
        return known is not None and known.silent

    def _rank(self, host: Host) -> tuple[bool, int]:
        since_s = self.clock.monotonic() - self.options.unreachable_s
        keys = (self._key(*pair) for pair in self._addresses_of([host]))
        down = all(self.host_status.failure(key, since_s=since_s) for key in keys)
        return (down, host.preference)

    def _keys(self) -> list[HostKey]:
        return [self._key(*pair) for pair in self._addresses_of(self.hosts.hosts)]

    def _addresses_of(self, hosts: Iterable[Host]) -> list[tuple[Host, str]]:
        """Return each address of the hosts that can be reached from the source address."""
        source = self.via.source_address
        return [(host, address) for host in hosts for address in of_family(host.addresses, source)]

    def _key(self, host: Host, address: str) -> HostKey:
        via = self.via
        return HostKey(
            address, host.port, policy_of(host), via.login, via.source_address, via.is_mx
        )


def _named(host: Host, address: str) -> str:
    return f"{host.preference} {host.name} [{address}]"
