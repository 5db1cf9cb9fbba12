"""Which check of a password begins next: strangers who guess must not keep users from logging in.

A check waits for a free place in one of three lines:

- known: a user at a client from which the user has logged in before. Users take turns. Half of the
  places are reserved for this line.
- outside: any other user and client. /48 networks take turns, and in each network its clients.
  Checks of one user begin a second apart.
- here: loopback and Unix sockets, whose clients cannot be distinguished. Users take turns.

The lines take turns too. The next check is the one whose turn was used the longest ago; only a
wrong password uses a turn. Clients that have not guessed therefore come first, and many users at
one address log in one after the other. A check is refused after waiting for WAIT_S, or if it is the
last in a line of more than WAITING_MAX.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_network

from relay.base.accounts.account import LoginDelayedError
from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock

WAIT_S = 30.0
# limit: logins that wait for a check; then 454
WAITING_MAX = 300  # a check usually takes a tenth of a second: this many are checked within WAIT_S
PACE_S = 1.0
BUSY_S = 1.0  # after which a refused client may try again
_TURNS_MAX = 10_000  # that are remembered
_NETWORK_BITS = 48  # of IPv6: the most that one customer usually has
_KNOWN, _HERE, _OUTSIDE = "known", "here", "outside"

_Turn = tuple[str, str]  # a line; a user, network or client in it, "" for the whole line


@dataclass(slots=True, eq=False)
class _QueuedCheck:
    """A check that waits for a place. `turns` are those of its line, network, client or user."""

    user: str
    line: str
    turns: list[_Turn]
    place: asyncio.Future[None]


class CheckQueue:
    """The checks that wait, and the places in which they run."""

    def __init__(self, clock: Clock, *, places: int) -> None:
        """`places` is how many checks may run at once, 2 or more."""
        self._clock = clock
        self._free, self._free_of_strangers = places, places // 2
        self._waiting: list[_QueuedCheck] = []
        self._taken_s = BoundedDict[_Turn, float](_TURNS_MAX)  # when a turn was last taken
        self._paced: set[str] = set()  # users whose next check from outside must wait

    async def run(
        self, user: str, client: str, check: Callable[[], Awaitable[bool]], *, is_known: bool
    ) -> bool:
        """Return what `check` returns, after waiting for a place.

        `client` is client_of() an address; "" if it cannot be distinguished from others. Raises
        LoginDelayedError for a check that got no place, and the errors of `check`.
        """
        line, turns = _turns(user, client, is_known=is_known)
        waiting = _QueuedCheck(user, line, turns, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._fill()
        self._refuse_surplus(line)
        timer = self._clock.call_later(WAIT_S, self._refuse, waiting)
        try:
            await waiting.place
        finally:
            timer.cancel()
        try:
            if not (is_right := await check()):
                self._take(turns)
            return is_right
        finally:
            self._free += 1
            self._free_of_strangers += not is_known
            self._fill()

    def _fill(self) -> None:
        """Begin the checks for which there is a place."""
        while self._free and (ready := [*filter(self._may_begin, self._waiting)]):
            self._begin(min(ready, key=self._rank))

    def _may_begin(self, waiting: _QueuedCheck) -> bool:
        if waiting.line == _KNOWN:
            return True
        is_paced = waiting.line == _OUTSIDE and waiting.user in self._paced
        return self._free_of_strangers > 0 and not is_paced

    def _begin(self, waiting: _QueuedCheck) -> None:
        self._waiting.remove(waiting)
        self._free -= 1
        self._free_of_strangers -= waiting.line != _KNOWN
        if waiting.line == _OUTSIDE:
            self._paced.add(waiting.user)
            self._clock.call_later(PACE_S, self._end_pace, waiting.user)
        if not waiting.place.done():  # it is done already when the event loop ends
            waiting.place.set_result(None)

    def _end_pace(self, user: str) -> None:
        self._paced.discard(user)
        self._fill()

    def _take(self, turns: Iterable[_Turn]) -> None:
        now = self._clock.monotonic()
        for turn in turns:
            self._taken_s[turn] = now

    def _rank(self, waiting: _QueuedCheck) -> list[float]:
        """Return the rank: the lowest rank is next; at equal ranks, who has waited longest."""
        return [self._taken_s.get(turn, -math.inf) for turn in waiting.turns]

    def _refuse_surplus(self, line: str) -> None:
        """Refuse the last check of a line that is too long.

        If several have the same rank, it is a check of the user with the most waiting checks, which
        may be waiting only because checks of one user begin a second apart.
        """
        of_line = [waiting for waiting in self._waiting if waiting.line == line]
        if len(of_line) > WAITING_MAX:
            of_user = Counter(waiting.user for waiting in of_line)
            last = max(
                reversed(of_line), key=lambda check: (self._rank(check), of_user[check.user])
            )
            self._refuse(last)

    def _refuse(self, waiting: _QueuedCheck) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            waiting.place.set_exception(LoginDelayedError("Too many logins at once", BUSY_S))


def _turns(user: str, client: str, *, is_known: bool) -> tuple[str, list[_Turn]]:
    """Return the line in which a check waits, and its turns there."""
    if is_known or not client:
        line, names = _KNOWN if is_known else _HERE, [user]
    else:
        line, names = _OUTSIDE, [_network_of(client), client]
    return line, [(line, name) for name in ("", *names)]


def _network_of(client: str) -> str:
    if "/" not in client:  # IPv4
        return client
    return str(ip_network(client).supernet(new_prefix=_NETWORK_BITS))
