"""Places that clients share, so that a client that asks for many delays no other.

A free place goes to the client whose turn it is: round robin among IPv4 addresses and IPv6 networks
of 48 bits, and within such a network among those of 64 bits. Each of these has at most a share,
which leaves places for a newcomer as long as there are more places than clients.
"""

import asyncio
from collections import Counter, OrderedDict

from relay.base.round_robin import RoundRobinQueue
from relay.base.socket_address import client_of

_NETWORK_BITS = 48  # of IPv6: one customer may have as many networks of 64 bits


class Turns:
    """The places, and those that wait for one."""

    def __init__(self, places: int, *, share: int, waiting_max: int) -> None:
        """If more than `waiting_max` wait, the last one of the longest line gets no place."""
        self._places, self._share, self._waiting_max = places, share, waiting_max
        self._held = Counter[str]()  # by network
        # by network, the next one first; then by client
        self._lines = OrderedDict[str, RoundRobinQueue[str, asyncio.Future[bool]]]()
        self._waiting = 0

    async def take(self, client: str, *, wait_s: float) -> bool:
        """Return whether there was a place in time, which the caller then gives back.

        `client` is what client_of() returns.
        """
        place, network = asyncio.get_running_loop().create_future(), _network_of(client)
        self._lines.setdefault(network, RoundRobinQueue()).push(client, place)
        self._waiting += 1
        self._serve()
        if self._waiting > self._waiting_max:
            self._send_one_away()
        try:
            if wait_s and not place.done():
                await asyncio.wait([place], timeout=wait_s)  # real time: peers of others
        except asyncio.CancelledError:
            if place.done() and place.result():
                self.give_back(client)
            raise
        finally:
            if not place.done():
                self._remove(network, client, place)
                self._serve()  # fewer clients have larger shares
        return place.done() and place.result()

    def give_back(self, client: str) -> None:
        """End the use of a place of the client."""
        network = _network_of(client)
        self._held[network] -= 1
        if not self._held[network]:
            del self._held[network]
        self._serve()

    def _serve(self) -> None:
        """Give the free places away."""
        free, clients = self._places - self._held.total(), len(self._held.keys() | self._lines)
        share = max(1, min(self._share, self._places // (clients + 1)))
        while free:
            network = next((name for name in self._lines if self._held[name] < share), None)
            if network is None:
                break
            line = self._lines[network]
            line.pop(next(iter(line))).set_result(True)
            self._lines.move_to_end(network)
            self._has_left(network)
            self._held[network] += 1
            free -= 1

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
    return client_of(client.partition("/")[0], bits=_NETWORK_BITS)
