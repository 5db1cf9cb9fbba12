"""Bounds that all share: places, octets, entries, of which no key takes what is everybody's.

A key is an account, or the network of a client. A key that has some of a bound gets more only if
what is then left is at least what it has: one key gets half, k keys leave 1/(k+1). Where a single
user should have more than half, the bound is larger. The key None is this relay itself: it takes
what is left.

REFUSALS counts what was refused, for relay_shares_refused_total and /readyz, and logs each bound
once a minute.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from relay.base.clock import Clock, SystemClock
from relay.base.observe.logs import get_logger

_WARNING_S = 60.0
_log = get_logger("base")


class NoPlaceError(Exception):
    """A bound has nothing left for a key: it is a 503 of HTTP. `args` has the name of the bound."""


class Refusals:
    """What the bounds of this process have refused. Belongs to the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.counts: dict[str, int] = {}  # since the start, by the name of the bound
        self._last_s: dict[str, float] = {}
        # of a child process: what its owner has to add, by bound the count and the heaviest key
        self.unsent: dict[str, tuple[int, str]] | None = None

    def add(self, bound: str, heaviest: Hashable, count: int = 1) -> None:
        """Count refusals of a bound, of which the key `heaviest` has most."""
        if self.unsent is not None:
            self.unsent[bound] = self.unsent.get(bound, (0, ""))[0] + count, str(heaviest)
            return
        self.counts[bound] = self.counts.get(bound, 0) + count
        self._last_s[bound] = self._clock.real_s()
        more = {"bound": bound, "most": str(heaviest)}
        _log.repeated("warning", "bound is full", of=bound, apart_s=_WARNING_S, **more)

    @property
    def full(self) -> list[str]:
        """The bounds that refused something in the last minute."""
        since_s = self._clock.real_s() - _WARNING_S
        return sorted(bound for bound, last_s in self._last_s.items() if last_s > since_s)


REFUSALS = Refusals(SystemClock())


class Shares:
    """One bound, and what each key has of it. A key that has nothing takes no memory."""

    def __init__(self, bound: str, limit: int) -> None:
        """`bound` is a name for operators, of which a process may have several instances."""
        self.bound, self.limit = bound, limit
        self.taken = 0  # by all keys
        self._by_key: dict[Hashable, int] = {}
        REFUSALS.counts.setdefault(bound, 0)

    def of(self, key: Hashable) -> int:
        """Return what a key has; of a key without anything 0."""
        return self._by_key.get(key, 0)

    @property
    def heaviest(self) -> Hashable:
        """The key that has most, None if no key has anything."""
        return max(self._by_key, key=self._by_key.__getitem__, default=None)

    def has_room(self, key: Hashable | None, size: int = 1, *, spare: int = 0) -> bool:
        """Return whether a key may take `size` more now, of which `spare` stays for others."""
        left, mine = self.limit - spare - self.taken - size, self._by_key.get(key)
        return left >= (mine + size if mine else 0)

    def take(self, key: Hashable | None, size: int = 1, *, spare: int = 0) -> bool:
        """Take `size` for a key and return True, or note a refusal and return False."""
        if not self.has_room(key, size, spare=spare):
            self.refuse()
            return False
        self.add(key, size)
        return True

    def add(self, key: Hashable | None, size: int = 1) -> None:
        """Count `size` more for a key, less if it is negative, whether there is room or not."""
        self.taken += size
        if key is not None:
            has = self._by_key.get(key, 0) + size
            if has:
                self._by_key[key] = has
            else:
                self._by_key.pop(key, None)

    def refuse(self) -> None:
        """Note a refusal: nothing was taken."""
        REFUSALS.add(self.bound, self.heaviest)

    def give_back(self, key: Hashable | None, size: int = 1) -> None:
        """Give back what was taken for a key."""
        self.add(key, -size)

    @contextmanager
    def held(self, key: Hashable | None, size: int = 1, *, spare: int = 0) -> Iterator[None]:
        """Hold `size` inside the with block. Raises NoPlaceError."""
        if not self.take(key, size, spare=spare):
            raise NoPlaceError(self.bound)
        try:
            yield
        finally:
            self.give_back(key, size)
