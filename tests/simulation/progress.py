"""How long a process has done nothing about the claims that it has in memory.

A wake-up that is lost leaves a claim where it is until something else happens there, or until it
expires. No wait of the relay explains the time in which nothing at all is done: no lookup, no
connection, no transaction, no call of the spool.

A site is blocked while all its transactions are slow, although it may have a further connection
and no host of it has refused one lately.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.scenario import Scenario

_SLOW_S = 4.0  # a second later than for the relay
_REFUSED_S = 31.0
_NEVER = float("-inf")


@dataclass
class _SiteProgress:
    """The connections to one domain's hosts."""

    blocked_s: float = 0.0
    connecting: int = 0
    refused_s: float = _NEVER
    connections: list[Any] = field(default_factory=list)
    began_s: dict[int, float] = field(default_factory=dict)  # of transactions

    @property
    def count(self) -> int:
        """How many there were since the last look, at most: some may have ended meanwhile."""
        return self.connecting + len(self.connections)

    def blocked_from_s(self) -> float:
        """From when on it is blocked if nothing happens."""
        if self.connecting or not self.began_s:
            return float("inf")
        return max(max(self.began_s.values()) + _SLOW_S, self.refused_s + _REFUSED_S)


class Progress:
    """What goes on in one process."""

    def __init__(self, world: Any, plan: Scenario) -> None:
        self._world = world
        self._plan = plan
        self._sites: defaultdict[str, _SiteProgress] = defaultdict(_SiteProgress)
        self._seen_s = world.time()
        self._busy = 0
        self._idle_s = 0.0
        self._idle_since_s: float | None = world.time()

    @property
    def idle_s(self) -> float:
        """How long nothing was done, in all."""
        since_s = self._idle_since_s
        return self._idle_s + (0.0 if since_s is None else self._world.time() - since_s)

    def blocked_s(self, domain: str) -> float:
        """How long the site of a domain was blocked, in all."""
        self._look()
        return self._sites[domain].blocked_s

    def _look(self) -> None:
        """Count the time since the last look, before something changes."""
        since_s, self._seen_s = self._seen_s, self._world.time()
        sites = self._sites.values()
        if since_s == self._seen_s:
            return
        is_full = sum(site.count for site in sites) >= self._plan.connections_max
        for site in sites:
            if not is_full and site.count < self._plan.connections_per_site:
                from_s = max(since_s, site.blocked_from_s())
                site.blocked_s += max(0.0, self._seen_s - from_s)
            site.connections = [one for one in site.connections if one.protocol.is_open]

    @contextmanager
    def waiting_for_room(self, domain: str) -> Iterator[None]:
        """A connection to the domain waits for contents in memory: it keeps others from its place,
        and no slow transaction does.
        """
        began_s, waiter = self._sites[domain].began_s, object()
        self._look()
        began_s[id(waiter)] = float("inf")
        try:
            yield
        finally:
            self._look()
            del began_s[id(waiter)]

    @contextmanager
    def made(self) -> Iterator[None]:
        """Something is done in this block."""
        self._idle_s, self._idle_since_s = self.idle_s, None
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle_since_s = self._world.time()

    def watched_connect(self, connect: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        """Return `connect` where it, and each transaction of its connections, is something done."""

        async def watched(target: Any, **more: Any) -> Any:
            site = self._sites[target.host.partition(".")[2]]
            with self.made(), self._connecting(site):
                connection = await connect(target, **more)
            site.connections.append(connection)
            transact = connection.transact

            async def watched_transact(*args: Any, **more: Any) -> Any:
                self._look()
                site.began_s[id(connection)] = self._world.time()
                try:
                    with self.made():
                        return await transact(*args, **more)
                finally:
                    self._look()
                    del site.began_s[id(connection)]

            connection.transact = watched_transact
            return connection

        return watched

    @contextmanager
    def _connecting(self, site: _SiteProgress) -> Iterator[None]:
        self._look()
        is_blocked = site.blocked_from_s() <= self._world.time()
        self._world.reached["connected: next to slow transactions"] += is_blocked
        site.connecting += 1
        try:
            yield
        except BaseException:
            site.refused_s = self._world.time()
            raise
        finally:
            self._look()
            site.connecting -= 1
