"""The hosts of a site: in which order they are asked, and what is known of them.

On the path: a site asks before it tries a claim, and has connections opened here.
Holds: a host that gave no connection is not asked again for a while, by whichever site; what is
    known counts for a claim no longer than half the time that it has waited for this try.
Fails: ConnectError when no host gives a connection.
Standards: RFC 5321 5.1 (order of hosts); RFC 7435.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from relay.clock import Clock
from relay.delivery.dependencies import Connect
from relay.delivery.site_limits import SiteOptions
from relay.message.classify import Peer, Stage, Trouble, classify_trouble
from relay.message.outcome import Deferred, Failed
from relay.routing import Host, Hosts
from relay.smtp import ConnectError, Connection, Target
from relay.spool.types import Claim

HOSTS_MAX = 20_000

# an address, a port, how TLS is used there, and as whom: who is not there for one login is for none
Place = tuple[str, int, str, str]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What came of the last try, and when (a clock that never goes back)."""

    outcome: Deferred | Failed
    at_s: float


class HostMemory:
    """Answers and refusals by place."""

    def __init__(self, *, hosts_max: int = HOSTS_MAX) -> None:
        self._hosts_max = hosts_max
        self._known: OrderedDict[Place, Refusal | float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def answered(self, place: Place, now_s: float) -> None:
        """A connection to it stands."""
        self._note(place, now_s)

    def refused(self, place: Place, refusal: Refusal) -> None:
        """It gave no connection."""
        self._note(place, refusal)

    def refusal(self, place: Place, *, since_s: float) -> Refusal | None:
        """What it refused with, if that was its last word and not before `since_s`."""
        known = self._known.get(place)
        if isinstance(known, Refusal) and known.at_s >= since_s:
            return known
        return None

    def has_answered(self, place: Place, *, since_s: float) -> bool:
        """Whether its last word was a connection, not before `since_s`."""
        known = self._known.get(place)
        return isinstance(known, float) and known >= since_s

    def forget_refusal(self, place: Place) -> None:
        """Somebody wants it to be asked again."""
        if isinstance(self._known.get(place), Refusal):
            del self._known[place]

    def _note(self, place: Place, known: Refusal | float) -> None:
        self._known[place] = known
        self._known.move_to_end(place)
        if len(self._known) > self._hosts_max:
            self._known.popitem(last=False)


ADDRESSES_MAX = 5  # asked for a connection, as Postfix's smtp_mx_address_limit
ANSWERED_S = 600.0  # so long an answer stands for the next one


@dataclass(frozen=True, slots=True)
class Use:
    """What a site has of its hosts: how many sessions, with those that are being opened, and which
    hosts have a connection that stands.
    """

    busy: Counter[str]
    standing: frozenset[str]


class Reach:
    """Finds the way to one of the hosts. `hosts` may be renewed: the same ones in another order."""

    def __init__(
        self,
        hosts: Hosts,
        options: SiteOptions,
        *,
        credentials: tuple[str, str] | None,
        memory: HostMemory,
        clock: Clock,
        connect: Connect,
    ) -> None:
        self.hosts = hosts
        self._options = options
        self._credentials = credentials
        self._memory = memory
        self._clock = clock
        self._connect = connect
        self._tls = f"{options.tls} {options.implicit} {options.ca or ''} "

    def known(self, claim: Claim) -> Deferred | None:
        """What came of the last tries at all hosts, if that is news enough for `claim`."""
        since_s = self._clock.monotonic() - self._options.trust_s(claim)
        found: Deferred | None = None
        for place in self._places():
            refusal = self._memory.refusal(place, since_s=since_s)
            if refusal is None:
                return None
            # A host that may come back weighs more than one that said no for good.
            if found is None and isinstance(refusal.outcome, Deferred):
                found = refusal.outcome
        return found

    def has_answered(self) -> bool:
        """Whether one of the hosts gave a connection lately, to whichever site."""
        since_s = self._clock.monotonic() - ANSWERED_S
        return any(self._memory.has_answered(place, since_s=since_s) for place in self._places())

    def forget(self) -> None:
        """Ask again those that were not there."""
        for place in self._places():
            self._memory.forget_refusal(place)

    def equals_max(self) -> int:
        """How many hosts are as good as the best."""
        ranks = sorted(map(self._rank, self.hosts.hosts))
        return ranks.count(ranks[0])

    async def connection(
        self,
        use: Use,
        at: Callable[[str], None],
        *,
        patience: Callable[[], AbstractAsyncContextManager[object]],
    ) -> Connection:
        """Open a connection to the best host that gives one, of equals to the least busy.

        `at` hears whom it asks; each is asked within `patience`. Raises ConnectError.
        """
        since_s = self._clock.monotonic() - self._options.down_s
        refused: ConnectError | None = None
        asked = 0
        for host, address in self._in_turn(use.busy):
            place = self._place(host, address)
            known = self._memory.refusal(place, since_s=since_s)
            if known is None and asked == ADDRESSES_MAX:
                continue
            at(host.name)
            try:
                if known is None:
                    asked += 1
                    connection = await self._ask(host, address, patience=patience)
                    self._memory.answered(place, self._clock.monotonic())
                    return connection
                error = ConnectError(known.outcome, Stage.CONNECT)
            except ConnectError as raised:
                error = raised
                if host.name not in use.standing:  # else it is there, but has enough
                    refusal = Refusal(error.outcome, self._clock.monotonic())
                    self._memory.refused(place, refusal)
            # A host that may come back weighs more than one that said no for good.
            if refused is None or isinstance(refused.outcome, Failed):
                refused = error
        assert refused is not None
        raise refused

    async def _ask(
        self,
        host: Host,
        address: str,
        *,
        patience: Callable[[], AbstractAsyncContextManager[object]],
    ) -> Connection:
        options = self._options
        target = Target(
            host=host.name, address=address, port=host.port, tls=options.tls,
            implicit=options.implicit, ca=options.ca, credentials=self._credentials,
        )  # fmt: skip
        try:
            async with patience():
                return await self._connect(
                    target, ehlo_name=options.ehlo_name, timeouts=options.timeouts
                )
        except TimeoutError:
            words = "no answer yet, and others waited to be asked"
            peer = Peer(host.name)
            outcome = classify_trouble(Stage.CONNECT, Trouble.TIMEOUT, words, peer=peer)
            assert isinstance(outcome, Deferred)
            raise ConnectError(outcome, Stage.CONNECT) from None

    def _in_turn(self, busy: Counter[str]) -> list[tuple[Host, str]]:
        """Every address, those of the best host first; of equals of the least busy."""
        ordered = sorted(self.hosts.hosts, key=lambda host: (self._rank(host), busy[host.name]))
        return [(host, address) for host in ordered for address in host.addresses]

    def _rank(self, host: Host) -> tuple[bool, int]:
        since_s = self._clock.monotonic() - self._options.down_s
        down = all(
            self._memory.refusal(self._place(host, address), since_s=since_s) is not None
            for address in host.addresses
        )
        return (down, host.preference)

    def _places(self) -> list[Place]:
        return [
            self._place(host, address) for host in self.hosts.hosts for address in host.addresses
        ]

    def _place(self, host: Host, address: str) -> Place:
        login = self._credentials[0] if self._credentials else ""
        # The name is what is verified: under another one the same address may have another answer.
        name = host.name if self._options.tls == "verify" else ""
        return (address, host.port, f"{self._tls}{name}", login)
