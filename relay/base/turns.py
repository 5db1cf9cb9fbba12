"""Places for which keys wait in turn, so that a key that asks for many delays no other.

A key is an account, or the client as client_of() returns it. A free place goes to the key whose
turn it is: round robin among accounts, IPv4 addresses and IPv6 networks of 48 bits, and within such
a network among those of 64 bits. Each has the share of Shares: it gets a second place only while as
many stay free as it then has.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.base.round_robin import RoundRobinQueue
from relay.base.shares import NoPlaceError, Shares
from relay.base.socket_address import client_of

_NETWORK_BITS = 48  # of IPv6: one customer may have as many networks of 64 bits
_WAITING_MAX = 256


class Turns:
    """The places, and those that wait for one."""

    def __init__(self, bound: str, places: int, *, waiting_max: int = _WAITING_MAX) -> None:
        """If more than `waiting_max` wait, the last one of the longest line gets no place. `bound`
        is the name of the places in Shares.
        """
        self._held, self._waiting_max = Shares(bound, places), waiting_max
        # by network, the next one first; then by client
        self._lines = OrderedDict[str, RoundRobinQueue[str, asyncio.Future[bool]]]()
        self._waiting = 0

    async def take(self, client: str, *, wait_s: float | None = None) -> bool:
        """Return whether there was a place in time, which the caller then gives back.

        With `wait_s` None the wait has no limit. With 0 the caller asks elsewhere: that there is no
        place is no refusal.
        """
        place, network = asyncio.get_running_loop().create_future(), _network_of(client)
        self._lines.setdefault(network, RoundRobinQueue()).push(client, place)
        self._waiting += 1
        self._serve()
        if self._waiting > self._waiting_max:
            self._send_one_away()
        try:
            if wait_s != 0 and not place.done():
                await asyncio.wait([place], timeout=wait_s)  # real time: peers of others
        except asyncio.CancelledError:
            if place.done() and place.result():
                self.give_back(client)
            raise
        finally:
            if not place.done():
                self._remove(network, client, place)
        has_place: bool = place.done() and place.result()
        if wait_s != 0 and not has_place:
            self._held.refuse()
        return has_place

    @asynccontextmanager
    async def turn(self, client: str, *, wait_s: float | None = None) -> AsyncIterator[None]:
        """Hold a place inside the with block. Raises NoPlaceError."""
        if not await self.take(client, wait_s=wait_s):
            raise NoPlaceError(self._held.bound)
        try:
            yield
        finally:
            self.give_back(client)

    def give_back(self, client: str) -> None:
        """End the use of a place of the client."""
        self._held.give_back(_network_of(client))
        self._serve()

    def _serve(self) -> None:
        """Give the free places away."""
        while (network := next(filter(self._held.has_room, self._lines), None)) is not None:
            line = self._lines[network]
            line.pop(next(iter(line))).set_result(True)
            self._lines.move_to_end(network)
            self._has_left(network)
            self._held.take(network)

    def _send_one_away(self) -> None:
        """Give no place to the last one of the longest line."""
        # of lines that are as long, the one whose turn comes last
        network, line = max(reversed(self._lines.items()), key=lambda item: len(item[1]))
        client = max(reversed([*line]), key=lambda name: len(line.items(name)))
        [*_, place] = line.items(client)
        self._remove(network, client, place)
        place.set_result(False)

    def _remove(self, network: str, client: str, place: "asyncio.Future[bool]") -> None:
        self._lines[network].remove(client, place)
        self._has_left(network)

    def _has_left(self, network: str) -> None:
        self._waiting -= 1
        if not self._lines[network]:
            del self._lines[network]


def _network_of(client: str) -> str:
    return client_of(client.partition("/")[0], bits=_NETWORK_BITS) or client
