"""How the server's places are shared among client addresses: connections, requests, unread answers.

On the path: each connection has a place and reports what it does; the protocol asks before it takes
on more.
Holds: a connection that waits for its client gives way to a new one, the heaviest address first; an
address never has more than half of the running requests and of the octets that wait to be read.
Fails: never; a limit that is reached says no.
Standards: RFC 9112 9.3, 9.5 (a server may close an idle connection at any time).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import chain

from relay.accounts.passwords import client_of

CONNECTIONS_MAX = 2000
REQUESTS_MAX = 1000
UNREAD_BYTES_MAX = 128 * 1024 * 1024
UNREAD_GRACE_S = 10.0  # no answer is cut off earlier, so that bursts have time to be read
STALLED_GRACE_S = 10.0  # nor a body of which nothing comes
_SHARE = 2  # one address gets this part of the requests and of the unread octets

NOT_COUNTED = ""  # the address of what is not counted by address: Unix sockets, proxies


class Stage(IntEnum):
    """What a connection waits for. With the last three it has a request."""

    IDLE = 0  # a further request
    HALF_OPEN = 1  # the rest of a header
    RECEIVING = 2  # the rest of a body
    UNREAD = 3  # the client has to read before more can be sent
    BUSY = 4  # the server's own work


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one server takes on. Connections from `proxy_networks` are not counted by address."""

    connections: int = CONNECTIONS_MAX
    requests: int = REQUESTS_MAX
    unread_bytes: int = UNREAD_BYTES_MAX
    proxy_networks: Sequence[str] = ()


@dataclass(eq=False, slots=True)
class Place:
    """The place of one connection. `cut` closes it; `since` is when it began to wait, its request
    or answer began, or the last octets of a body came.
    """

    client: "Client"
    cut: Callable[[], None]
    stage: Stage = Stage.HALF_OPEN
    since: float = 0.0
    promised_bytes: int = 0  # of an answer that is being sent
    buffered_bytes: int = 0  # of those that were sent and wait in the connection's buffer

    @property
    def unread_bytes(self) -> int:
        """How many octets are in memory because the client has not read."""
        return self.promised_bytes + self.buffered_bytes


@dataclass(eq=False, slots=True)
class Client:
    """One client address: its places by stage, the oldest of each stage first."""

    address: str
    at: list[dict[Place, None]] = field(default_factory=lambda: [{} for _ in Stage])
    connections: int = 0
    unread_bytes: int = 0

    @property
    def requests(self) -> int:
        """How many of them are more than open."""
        return sum(len(places) for places in self.at[Stage.RECEIVING :])

    @property
    def is_counted(self) -> bool:
        """Whether the limits of one address hold for it."""
        return self.address != NOT_COUNTED


class Places:
    """The places of one server; `now_s` is the event loop's time."""

    def __init__(self, limits: ConnectionLimits, now_s: Callable[[], float]) -> None:
        """Raises ValueError for a network."""
        self._limits = limits
        self._now_s = now_s
        self._proxies = tuple(map(ip_network, limits.proxy_networks))
        self._clients: dict[str, Client] = {}
        self._connections = 0
        self._requests = 0
        self._unread_bytes = 0

    def enter(self, host: str, cut: Callable[[], None]) -> Place | None:
        """Give a new connection from `host` a place, if need be another's; None if there is none.

        `host` is "" for a Unix socket.
        """
        if self._connections >= self._limits.connections:
            victim = self._heaviest(self._first_to_go, lambda client: client.connections)
            if victim is None:
                return None
            self._cut(victim)
        address = client_address(host, self._proxies)
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = Client(address)
        place = Place(client, cut, since=self._now_s())
        client.at[place.stage][place] = None
        client.connections += 1
        self._connections += 1
        return place

    def leave(self, place: Place) -> None:
        """Give a place back; once more does no harm."""
        client = place.client
        if place not in client.at[place.stage]:
            return
        self._count(place, promised_bytes=0, buffered_bytes=0)
        self._requests -= _is_request(place.stage)
        del client.at[place.stage][place]
        client.connections -= 1
        self._connections -= 1
        if not client.connections:
            del self._clients[client.address]

    def move(self, place: Place, stage: Stage) -> None:
        """Note that a connection waits for something else."""
        client = place.client
        if stage is place.stage or place not in client.at[place.stage]:
            return
        is_one, was_one = _is_request(stage), _is_request(place.stage)
        if not (is_one and was_one):
            self._requests += is_one - was_one
            place.since = self._now_s()
        del client.at[place.stage][place]
        client.at[stage][place] = None
        place.stage = stage

    def received(self, place: Place) -> None:
        """Note that octets of a body came."""
        places = place.client.at[Stage.RECEIVING]
        if place in places:
            place.since = self._now_s()
            places[place] = places.pop(place)

    def may_begin(self, place: Place) -> bool:
        """Whether a request may begin: its address has less than its share of those that run.

        An answer that has not been read for long gives way, and a body that has stopped.
        """
        limit, client = self._limits.requests, place.client
        if _is_request(place.stage):
            return True
        if client.is_counted and client.requests >= max(limit // _SHARE, 1):
            return self._gives_way(self._silent_for_long(client))
        if self._requests >= limit:
            return self._gives_way(
                self._heaviest(self._silent_for_long, lambda client: client.requests)
            )
        return True

    def may_answer(self, place: Place, size_bytes: int, *, may_be_refused: bool) -> bool:
        """Whether an answer of so many octets may be sent; if so they are counted until read.

        Others that have not been read for long give way; if the answer may not be refused, any.
        One alone may be larger than the limit.
        """
        find = self._unread_for_long if may_be_refused else _unread_longest
        if not self._make_room(place.client, size_bytes, find) and may_be_refused:
            return False
        if place in place.client.at[place.stage]:  # else it is closed, and keeps nothing
            self._count(place, promised_bytes=size_bytes, buffered_bytes=place.buffered_bytes)
            place.since = self._now_s()
        return True

    def answered(self, place: Place) -> None:
        """Note that an answer was sent whole: from now on its connection's buffer counts."""
        if place.promised_bytes:
            self._count(place, promised_bytes=0, buffered_bytes=place.buffered_bytes)

    def buffered(self, place: Place, size_bytes: int) -> None:
        """Note how many octets wait in a connection's buffer.

        Answers that could not be refused may be too many by then: others give way to this one.
        """
        if place in place.client.at[place.stage]:
            self._count(place, promised_bytes=place.promised_bytes, buffered_bytes=size_bytes)
            if size_bytes:
                self._make_room(place.client, 0, _unread_longest)

    @property
    def _unread_share(self) -> int:
        return self._limits.unread_bytes // _SHARE

    def _make_room(
        self, client: Client, size_bytes: int, find: Callable[[Client], Place | None]
    ) -> bool:
        """Cut off what `find` has until so many octets more fit; return whether they do."""
        while self._is_too_much(client, size_bytes):
            if client.is_counted and client.unread_bytes + size_bytes > self._unread_share:
                victim = find(client)
            else:
                victim = self._heaviest(find, lambda client: client.unread_bytes)
            if victim is None:
                return False
            self._cut(victim)
        return True

    def _is_too_much(self, client: Client, size_bytes: int) -> bool:
        of_client = client.unread_bytes if client.is_counted else 0
        return bool(of_client and of_client + size_bytes > self._unread_share) or bool(
            self._unread_bytes and self._unread_bytes + size_bytes > self._limits.unread_bytes
        )

    def _count(self, place: Place, *, promised_bytes: int, buffered_bytes: int) -> None:
        before_bytes = place.unread_bytes
        place.promised_bytes, place.buffered_bytes = promised_bytes, buffered_bytes
        place.client.unread_bytes += place.unread_bytes - before_bytes
        self._unread_bytes += place.unread_bytes - before_bytes

    def _first_to_go(self, client: Client) -> Place | None:
        """Return which connection of a client gives way to a new one: the oldest idle first."""
        waiting = chain(client.at[Stage.IDLE], client.at[Stage.HALF_OPEN])
        return next(waiting, None) or self._silent_for_long(client)

    def _silent_for_long(self, client: Client) -> Place | None:
        """Return a request whose client has to do something, and has not for long."""
        stalled = next(iter(client.at[Stage.RECEIVING]), None)
        if stalled and self._now_s() - stalled.since >= STALLED_GRACE_S:
            return stalled
        return self._unread_for_long(client)

    def _unread_for_long(self, client: Client) -> Place | None:
        place = _unread_longest(client)
        return place if place and self._now_s() - place.since >= UNREAD_GRACE_S else None

    def _heaviest(
        self, find: Callable[[Client], Place | None], weight: Callable[[Client], int]
    ) -> Place | None:
        """Return what `find` has of the heaviest client; proxies are many clients and come last."""
        most, heaviest = -1, None
        for client in self._clients.values():
            its = weight(client) if client.is_counted else 0
            if its > most and (place := find(client)):
                most, heaviest = its, place
        return heaviest

    def _gives_way(self, victim: Place | None) -> bool:
        if victim is None:
            return False
        self._cut(victim)
        return True

    def _cut(self, place: Place) -> None:
        self.leave(place)
        place.cut()


def client_address(host: str, proxies: Iterable[IPv4Network | IPv6Network] = ()) -> str:
    """Return what stands for a client in counts: an IPv4 address, or the /64 of an IPv6 one.

    NOT_COUNTED for what is in `proxies` and for a Unix socket.
    """
    if not host:
        return NOT_COUNTED
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if any(address in network for network in proxies):
        return NOT_COUNTED
    return client_of(str(address))


def _unread_longest(client: Client) -> Place | None:
    return next(iter(client.at[Stage.UNREAD]), None)


def _is_request(stage: Stage) -> bool:
    return stage >= Stage.RECEIVING
