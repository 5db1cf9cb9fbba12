"""Places, or octets, for which keys wait in turn, so that a key that asks for many delays no other.

A key is an account, or the client as client_of() returns it. What is free goes to the key whose
turn it is and that has room: round robin among accounts, IPv4 addresses and IPv6 networks of 48
bits, and within such a network among those of 64 bits. Each has the share of Shares: it gets a
second place only while as many stay free as it then has.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import TypeAlias

from relay.base.round_robin import RoundRobinQueue
from relay.base.shares import NoPlaceError, Shares
from relay.base.socket_address import client_of

_NETWORK_BITS = 48  # of IPv6: one customer may have as many networks of 64 bits
_WAITING_MAX = 256
# what it waits for, what it leaves to others, and whether it has its place; None while it waits
_Wait: TypeAlias = "tuple[int, int, asyncio.Future[bool]]"


class Turns:
    """The places, and those that wait for one."""

    def __init__(self, bound: str, places: int, *, waiting_max: int = _WAITING_MAX) -> None:
        """If more than `waiting_max` wait, the last one of the longest line gets no place. `bound`
        is the name of the places in Shares.
        """
        self.bound, self._waiting_max = bound, waiting_max
        self._held = Shares(bound, places)
        # by network, the next one first; then by client
        self._lines = OrderedDict[str, RoundRobinQueue[str, _Wait]]()
        self._waiting = 0

    def is_short(self, client: str) -> bool:
        """Return whether anyone waits who has no more than this client: it makes room if it is
        slow.
        """
        has = self._held.of(_network_of(client))
        return any(self._held.of(network) <= has for network in self._lines)

    @property
    def places(self) -> int:
        """How many there are."""
        return self._held.limit

    @property
    def taken(self) -> int:
        """How much all have."""
        return self._held.taken

    def take_at_once(self, client: str, size: int = 1, *, spare: int = 0) -> bool:
        """Return whether there is room for `size`, which is taken then: it is no refusal."""
        network = _network_of(client)
        if has_room := self._held.has_room(network, size, spare=spare):
            self._held.add(network, size)
        return has_room

    async def take(
        self, client: str, size: int = 1, *, wait_s: float | None = None, spare: int = 0
    ) -> bool:
        """Return whether there was room in time for `size`, which the caller then gives back;
        `spare` stays for others.

        With `wait_s` None the wait has no limit. With 0 the caller asks elsewhere: that there is no
        room is no refusal.
        """
        if self.take_at_once(client, size, spare=spare):
            return True
        network = _network_of(client)
        place = asyncio.get_running_loop().create_future()
        wait = size, spare, place
        self._lines.setdefault(network, RoundRobinQueue()).push(client, wait)
        self._waiting += 1
        if self._waiting > self._waiting_max:
            self._send_one_away()
        try:
            if wait_s != 0 and not place.done():
                await asyncio.wait([place], timeout=wait_s)  # real time: peers of others
        except asyncio.CancelledError:
            if place.done() and place.result():
                self.give_back(client, size)
            raise
        finally:
            if not place.done():
                self._remove(network, client, wait)
        has_place: bool = place.done() and place.result()
        if wait_s != 0 and not has_place:
            self._held.refuse()
        return has_place

    @asynccontextmanager
    async def turn(
        self, client: str, size: int = 1, *, wait_s: float | None = None
    ) -> AsyncIterator[None]:
        """Hold `size` inside the with block. Raises NoPlaceError."""
        if not await self.take(client, size, wait_s=wait_s):
            raise NoPlaceError(self.bound)
        try:
            yield
        finally:
            self.give_back(client, size)

    def give_back(self, client: str, size: int = 1) -> None:
        """End the use of what the client took."""
        self._held.give_back(_network_of(client), size)
        self._serve()

    def _serve(self) -> None:
        """Give away what is free."""
        while (network := next(filter(self._has_room, self._lines), None)) is not None:
            line = self._lines[network]
            size, _, place = line.pop(next(iter(line)))
            place.set_result(True)
            self._lines.move_to_end(network)
            self._has_left(network)
            self._held.add(network, size)

    def _has_room(self, network: str) -> bool:
        """Return whether the next one of a network may have what it waits for."""
        line = self._lines[network]
        size, spare, _ = next(iter(line.items(next(iter(line)))))
        return self._held.has_room(network, size, spare=spare)

    def _send_one_away(self) -> None:
        """Give no place to the last one of the longest line."""
        # of lines that are as long, the one whose turn comes last
        network, line = max(reversed(self._lines.items()), key=lambda item: len(item[1]))
        client = max(reversed([*line]), key=lambda name: len(line.items(name)))
        [*_, last] = line.items(client)
        self._remove(network, client, last)
        last[-1].set_result(False)

    def _remove(self, network: str, client: str, wait: _Wait) -> None:
        self._lines[network].remove(client, wait)
        self._has_left(network)

    def _has_left(self, network: str) -> None:
        self._waiting -= 1
        if not self._lines[network]:
            del self._lines[network]


@lru_cache(maxsize=4096)
def _network_of(client: str) -> str:
    return client_of(client.partition("/")[0], bits=_NETWORK_BITS) or client
