"""Limits on connections, running requests and unread responses, in all and per client address.

At the connection limit, a connection that waits for its client is closed to admit a new one. The
address with the most connections loses one first (RFC 9112 9.5 allows this). Running requests and
the memory for unread responses are shared by address (relay/base/shares.py). A proxy's connection
counts for the client of its running request. The time-outs of header and response are in
`protocol`.

The client behind a reverse proxy is in X-Forwarded-For or Forwarded (RFC 7239). A proxy of
`http.proxy_networks` appends the address of its client to one of the fields. The client may have
written the entries to the left, so the right-most address that is not a proxy counts.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import chain, islice

from msgspec import Struct

from relay.base.shares import Shares
from relay.base.socket_address import client_of

_ENTRIES_MAX = 32  # entries read, from the right: a chain of proxies is short
_ENTRY_LENGTH_MAX = 128
_X_FORWARDED_FOR, _FORWARDED = b"x-forwarded-for", b"forwarded"

# An address, with its port, which may be obfuscated (RFC 7239 6); IPv6 without a port as it is.
_NODE = re.compile(r"(?:\[([^\]]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
_QUOTED = rb'"(?>[^"\\]++|\\.)*+"'
_LIST = re.compile(rb'(?>[^"]++|%b)*+' % _QUOTED, re.DOTALL)
_ELEMENT = re.compile(rb'(?>[^",]++|%b)++' % _QUOTED, re.DOTALL)
_PAIR = rb'[ \t]*+([^"=;, \t]++)=(%b|[^"; \t]++)[ \t]*+(?:;|\Z)' % _QUOTED
_PAIRS = re.compile(rb"(?>%b)++" % _PAIR, re.DOTALL)
_EACH_PAIR = re.compile(_PAIR, re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)

_IpAddress = IPv4Address | IPv6Address
# limit: HTTP connections, at most a quarter of `LimitNOFILE`; then an idle one of the address with
# most is closed
CONNECTIONS_MAX = 2000
# limit of Graph: running requests, at most half of them for one address; then 503
REQUESTS_MAX = 1000
# limit: unread HTTP responses, at most half of them for one address; then 503
UNREAD_BYTES_MAX = 128 * 1024 * 1024
UNREAD_GRACE_S = 10.0  # how long a response may stay unread before its connection is closed
# limit: an HTTP body without 10 KiB of progress, while others wait for its room; then 408
STALLED_GRACE_S = 10.0
PROGRESS_BYTES = 10 * 1024

# The address of Unix sockets, and of proxies without a request whose client is known: they have no
# limit per address.
NOT_COUNTED = ""


class Proxies:
    """The reverse proxies of a server."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Raise ValueError for an invalid network."""
        self._networks = tuple(map(ip_network, networks))

    def includes(self, host: str) -> bool:
        """Return whether the peer of a connection is a proxy.

        "" is the peer of a Unix socket, which is a proxy if the server has proxies.
        """
        address = _address_of(host)
        return bool(self._networks) and (address is None or self._is_proxy(address))

    def client(self, fields: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the address of the client that a proxy forwards; names of `fields` in lower case.

        Return "" if no field has an address, if the right-most entry that is not a proxy is no
        address, or if the two fields disagree.
        """
        plain, forwarded = [], []
        for name, value in fields:
            if name == _X_FORWARDED_FOR:
                plain.append(value)
            elif name == _FORWARDED:
                forwarded.append(value)
        clients = []
        if plain:
            clients.append(self._right_most(_entries(plain)))
        if forwarded:
            clients.append(self._right_most(_forwarded_entries(forwarded)))
        if not clients or clients[0] is None or clients[0] != clients[-1]:
            return ""
        return str(clients[0])

    def _right_most(self, entries: Iterator[str]) -> _IpAddress | None:
        for entry in islice(entries, _ENTRIES_MAX):
            address = _address_of(entry)
            if address is None or not self._is_proxy(address):
                return address
        return None

    def _is_proxy(self, address: _IpAddress) -> bool:
        return any(address in network for network in self._networks)


def _entries(lines: Iterable[bytes]) -> Iterator[str]:
    """Yield the entries of X-Forwarded-For from the right; empty ones do not count."""
    for line in reversed([*lines]):
        for entry in reversed(line.rsplit(b",", _ENTRIES_MAX)):
            if text := entry.strip():
                yield text.decode("latin-1")


def _forwarded_entries(lines: Iterable[bytes]) -> Iterator[str]:
    """Yield the `for` of each element of Forwarded from the right, "" where it has none."""
    for line in reversed([*lines]):
        if not _LIST.fullmatch(line):
            yield ""  # a quoted string without its end
            return
        for element in reversed(_ELEMENT.findall(line)):
            if not element.isspace():
                yield _node_of(element)


def _node_of(element: bytes) -> str:
    """Return the parameter `for` of one element, "" if there is not one or the syntax is wrong."""
    if not _PAIRS.fullmatch(element):
        return ""
    named = [value for name, value in _EACH_PAIR.findall(element) if name.lower() == b"for"]
    if len(named) != 1:
        return ""
    [value] = named
    if value.startswith(b'"'):
        value = _ESCAPED.sub(rb"\1", value[1:-1])
    return bytes(value).decode("latin-1")


def _address_of(text: str) -> _IpAddress | None:
    """Return the address of an entry; None for `unknown`, for an obfuscated one and for others."""
    if len(text) > _ENTRY_LENGTH_MAX:
        return None
    if node := _NODE.fullmatch(text):
        text = node[1] or node[2]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class ConnectionState(IntEnum):
    """What a connection waits for. In the last three states it has a request in progress."""

    ANSWERED = 0  # the rest of a body, which is discarded: its response has been sent
    IDLE = 1  # the next request
    HALF_OPEN = 2  # the rest of a header
    RECEIVING = 3  # the rest of a body
    UNREAD = 4  # the client to read its response
    BUSY = 5  # the server


class ConnectionLimits(Struct, frozen=True):
    """The limits of one server.

    Connections from `proxy_networks` count for the client that they forward.
    """

    connections: int = CONNECTIONS_MAX
    requests: int = REQUESTS_MAX
    unread_bytes: int = UNREAD_BYTES_MAX
    proxy_networks: Sequence[str] = ()


@dataclass(eq=False, slots=True)
class HttpConnection:
    """One HTTP connection."""

    host: str  # of the client; "" for a Unix socket
    client: "ClientConnections"  # for whom the connection counts
    close: Callable[[], None]  # ends the connection at once
    is_of_proxy: bool = False  # a proxy: requests count for the clients that it names
    # decides which connection is closed for a new one
    state: ConnectionState = ConnectionState.HALF_OPEN
    # when it became idle, its request or response began, or its body last made progress
    since: float = 0.0
    received_bytes: int = 0  # of the body, since then
    response_bytes: int = 0  # of the response that is being sent
    buffered_bytes: int = 0  # sent responses in the buffer of the connection

    @property
    def unread_bytes(self) -> int:
        """Bytes in memory that the client has not read."""
        return self.response_bytes + self.buffered_bytes


@dataclass(eq=False, slots=True)
class ClientConnections:
    """The connections of one client address by state, the oldest of each state first."""

    address: str
    by_state: list[dict[HttpConnection, None]] = field(
        default_factory=lambda: [{} for _ in ConnectionState]
    )
    connections: int = 0
    # by which it has its shares, None: the limits per address do not apply
    key: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.key = None if self.address == NOT_COUNTED else self.address


class ConnectionTable:
    """The connections of one server; `now_s` returns the time of the event loop."""

    def __init__(self, limits: ConnectionLimits, now_s: Callable[[], float]) -> None:
        """Raise ValueError for an invalid network in `limits`."""
        self._limits = limits
        self._now_s = now_s
        self._proxies = Proxies(limits.proxy_networks)
        self.clients: dict[str, ClientConnections] = {}
        self.connections = 0
        self.added = 0  # connections, since the start
        self._requests = Shares("HTTP requests", limits.requests)
        self._unread = Shares("unread HTTP responses", limits.unread_bytes)

    def add(self, host: str, close: Callable[[], None]) -> HttpConnection | None:
        """Add a connection from `host`, "" for a Unix socket; at the limit close another one.

        Return None if no other connection may be closed.
        """
        if self.connections >= self._limits.connections:
            victim = self._heaviest(self._oldest_waiting, lambda client: client.connections)
            if victim is None:
                return None
            self._close_connection(victim)
        is_of_proxy = self._proxies.includes(host)
        client = self._client(NOT_COUNTED if is_of_proxy else client_of(host))
        connection = HttpConnection(
            host, client, close, is_of_proxy=is_of_proxy, since=self._now_s()
        )
        self._attach(connection, client)
        self.connections += 1
        self.added += 1
        return connection

    def remove(self, connection: HttpConnection) -> None:
        """Remove a connection; no effect if it was removed before."""
        if not self._has(connection):
            return
        self._count(connection, 0, 0)
        self._requests.add(connection.client.key, -_is_request(connection.state))
        self._detach(connection)
        self.connections -= 1

    def identify(self, connection: HttpConnection, fields: Iterable[tuple[bytes, bytes]]) -> str:
        """Count a connection for the client of its next request, which has these header fields.

        Return the address by which failures of this client are counted, "" for none.
        """
        if not connection.is_of_proxy:
            return connection.host
        address = self._proxies.client(fields)
        self._move(connection, client_of(address))
        return address

    def set_state(self, connection: HttpConnection, state: ConnectionState) -> None:
        """Record the state of a connection. Without a request, a proxy's connection has no
        client.
        """
        client = connection.client
        if state is connection.state or not self._has(connection):
            return
        is_request, was_request = _is_request(state), _is_request(connection.state)
        if not (is_request and was_request):
            self._requests.add(client.key, is_request - was_request)
            connection.since = self._now_s()
        del client.by_state[connection.state][connection]
        client.by_state[state][connection] = None
        connection.state = state
        if connection.is_of_proxy and not is_request:
            self._move(connection, NOT_COUNTED)

    def body_received(self, connection: HttpConnection, size_bytes: int) -> None:
        """Record that a part of a body arrived."""
        connections = connection.client.by_state[ConnectionState.RECEIVING]
        if connection in connections:
            connection.received_bytes += size_bytes
            if connection.received_bytes >= PROGRESS_BYTES:
                connection.since, connection.received_bytes = self._now_s(), 0
                connections[connection] = connections.pop(connection)

    def may_start_request(self, connection: HttpConnection) -> bool:
        """Return whether a request may start under the limits in all and per address.

        At a limit, a connection with an unread response or a stalled body is closed to make room.
        """
        client = connection.client
        if _is_request(connection.state) or self._requests.has_room(client.key):
            return True
        if self._close_one(client, self._stalled, self._requests):
            return True
        self._requests.refuse()
        return False

    def may_send_response(
        self, connection: HttpConnection, size_bytes: int, *, may_be_refused: bool
    ) -> bool:
        """Return whether a response may be sent; if so its bytes are counted until they are read.

        To make room, connections whose response is unread for 10 s are closed; if the response may
        not be refused, also connections with any unread response. A single response may exceed the
        limit.
        """
        find = self._unread_too_long if may_be_refused else _unread_longest
        if not self._make_room(connection.client, size_bytes, find) and may_be_refused:
            self._unread.refuse()
            return False
        if self._has(connection):  # else it was closed
            self._count(connection, size_bytes, connection.buffered_bytes)
            connection.since = self._now_s()
        return True

    def response_sent(self, connection: HttpConnection) -> None:
        """Record that a response was sent: from now on the buffer of its connection counts."""
        if connection.response_bytes:
            self._count(connection, 0, connection.buffered_bytes)

    def set_buffered_bytes(self, connection: HttpConnection, size_bytes: int) -> None:
        """Record the bytes in the buffer of a connection.

        Responses that could not be refused may exceed the limit: then other connections are closed.
        """
        if self._has(connection):
            self._count(connection, connection.response_bytes, size_bytes)
            if size_bytes:
                self._make_room(connection.client, 0, _unread_longest)

    def _has(self, connection: HttpConnection) -> bool:
        return connection in connection.client.by_state[connection.state]

    def _client(self, address: str) -> ClientConnections:
        return self.clients.setdefault(address, ClientConnections(address))

    def _move(self, connection: HttpConnection, address: str) -> None:
        """Count a connection for another address, with what it has in memory."""
        if address != connection.client.address and self._has(connection):
            before = connection.client.key
            self._detach(connection)
            self._attach(connection, self._client(address))
            is_request, unread_bytes = _is_request(connection.state), connection.unread_bytes
            if is_request or unread_bytes:
                for key, sign in ((before, -1), (connection.client.key, 1)):
                    self._requests.add(key, sign * is_request)
                    self._unread.add(key, sign * unread_bytes)

    def _attach(self, connection: HttpConnection, client: ClientConnections) -> None:
        connection.client = client
        client.by_state[connection.state][connection] = None
        client.connections += 1

    def _detach(self, connection: HttpConnection) -> None:
        client = connection.client
        del client.by_state[connection.state][connection]
        client.connections -= 1
        if not client.connections:
            del self.clients[client.address]

    def _make_room(
        self,
        client: ClientConnections,
        size_bytes: int,
        find: Callable[[ClientConnections], HttpConnection | None],
    ) -> bool:
        """Close the connections that `find` selects until `size_bytes` fit; return whether they
        fit.
        """
        while self._exceeds_limit(client, size_bytes):
            if not self._close_one(client, find, self._unread):
                return False
        return True

    def _exceeds_limit(self, client: ClientConnections, size_bytes: int) -> bool:
        unread = self._unread
        if size_bytes:
            return bool(unread.taken) and not unread.has_room(client.key, size_bytes)
        return max(unread.taken, 2 * unread.of(client.key)) > unread.limit

    def _count(self, connection: HttpConnection, response_bytes: int, buffered_bytes: int) -> None:
        before_bytes = connection.unread_bytes
        connection.response_bytes, connection.buffered_bytes = response_bytes, buffered_bytes
        self._unread.add(connection.client.key, connection.unread_bytes - before_bytes)

    def _oldest_waiting(self, client: ClientConnections) -> HttpConnection | None:
        """Return the client's connection to close to admit a new one: in the order of
        ConnectionState, the oldest first.
        """
        waiting = chain.from_iterable(client.by_state[: ConnectionState.RECEIVING])
        return next(waiting, None) or self._stalled(client)

    def _stalled(self, client: ClientConnections) -> HttpConnection | None:
        """Return a request whose body is stalled or whose response is unread for 10 s."""
        stalled = next(iter(client.by_state[ConnectionState.RECEIVING]), None)
        if stalled and self._now_s() - stalled.since >= STALLED_GRACE_S:
            return stalled
        return self._unread_too_long(client)

    def _unread_too_long(self, client: ClientConnections) -> HttpConnection | None:
        connection = _unread_longest(client)
        is_too_long = connection and self._now_s() - connection.since >= UNREAD_GRACE_S
        return connection if is_too_long else None

    def _heaviest(
        self,
        find: Callable[[ClientConnections], HttpConnection | None],
        weight: Callable[[ClientConnections], int],
        *,
        least: int = 0,
    ) -> HttpConnection | None:
        """Return what `find` selects of the client with the highest weight, of those with `least`;
        proxies come last.
        """
        most, heaviest = least - 1, None
        for client in self.clients.values():
            client_weight = weight(client) if client.key is not None else 0
            if client_weight > most and (connection := find(client)):
                most, heaviest = client_weight, connection
        return heaviest

    def _close_one(
        self,
        client: ClientConnections,
        find: Callable[[ClientConnections], HttpConnection | None],
        shares: Shares,
    ) -> bool:
        """Close for a client what `find` selects of the client that has most, if that is not less
        than what the client has itself. Return whether there was one.
        """
        has = shares.of(client.key)
        victim = self._heaviest(find, lambda other: shares.of(other.key), least=has)
        if victim is not None:
            self._close_connection(victim)
        return victim is not None

    def _close_connection(self, connection: HttpConnection) -> None:
        self.remove(connection)
        connection.close()


def _unread_longest(client: ClientConnections) -> HttpConnection | None:
    return next(iter(client.by_state[ConnectionState.UNREAD]), None)


def _is_request(state: ConnectionState) -> bool:
    return state >= ConnectionState.RECEIVING
