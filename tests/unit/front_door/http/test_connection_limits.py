"""Limits on connections, requests and unread responses, and which connection is closed."""

import pytest

from relay.front_door.http.connection_limits import (
    STALLED_GRACE_S,
    UNREAD_GRACE_S,
    ConnectionLimits,
    ConnectionState,
    ConnectionTable,
    HttpConnection,
)

HEAVY, LIGHT = "192.0.2.1", "192.0.2.2"


class LimitedConnections:
    """A ConnectionTable with a clock, and the names of the closed connections."""

    def __init__(self, **limits: int | tuple[str, ...]) -> None:
        self.now_s = 0.0
        self.closed: list[str] = []
        self.connection_table = ConnectionTable(ConnectionLimits(**limits), lambda: self.now_s)  # type: ignore[arg-type]

    def add(
        self, host: str, name: str, state: ConnectionState = ConnectionState.HALF_OPEN
    ) -> HttpConnection:
        """Add a connection, which must succeed."""
        connection = self.connection_table.add(host, lambda: self.closed.append(name))
        assert connection is not None
        self.connection_table.set_state(connection, state)
        return connection


@pytest.mark.parametrize(
    ("stages", "first"),
    [
        ((ConnectionState.HALF_OPEN, ConnectionState.IDLE, ConnectionState.IDLE), "1"),
        ((ConnectionState.BUSY, ConnectionState.HALF_OPEN, ConnectionState.HALF_OPEN), "1"),
        ((ConnectionState.IDLE, ConnectionState.ANSWERED, ConnectionState.ANSWERED), "1"),
        ((ConnectionState.BUSY, ConnectionState.UNREAD, ConnectionState.UNREAD), "1"),
        ((ConnectionState.BUSY, ConnectionState.BUSY, ConnectionState.BUSY), "light"),
    ],
)
def test_the_oldest_idle_connection_of_the_heaviest_address_is_closed(
    stages: tuple[ConnectionState, ...], first: str
) -> None:
    limited = LimitedConnections(connections=4)
    limited.add(LIGHT, "light", ConnectionState.IDLE)
    for number, state in enumerate(stages):
        limited.add(HEAVY, str(number), state)
    limited.now_s = UNREAD_GRACE_S
    limited.add("192.0.2.3", "new")
    assert limited.closed == [first]


def test_a_new_connection_is_rejected_if_all_are_busy() -> None:
    limited = LimitedConnections(connections=2)
    connections = [limited.add(HEAVY, str(number), ConnectionState.BUSY) for number in range(2)]
    assert limited.connection_table.add(LIGHT, lambda: None) is None
    limited.connection_table.set_state(
        connections[1], ConnectionState.UNREAD
    )  # for less than the time of grace
    assert limited.connection_table.add(LIGHT, lambda: None) is None
    limited.connection_table.remove(connections[0])
    limited.connection_table.remove(connections[0])
    limited.add(LIGHT, "new")
    assert limited.connection_table.add(LIGHT, lambda: None) is not None
    assert limited.closed == ["new"]


def test_connections_of_proxies_are_closed_last() -> None:
    limited = LimitedConnections(connections=4, proxy_networks=("198.51.100.0/24",))
    for number in range(3):
        limited.add("198.51.100.7", f"proxy {number}", ConnectionState.IDLE)
    limited.add(LIGHT, "light", ConnectionState.IDLE)
    limited.add("", "unix")
    assert limited.closed == ["light"]
    limited.add("", "unix", ConnectionState.BUSY)
    assert limited.closed == ["light", "proxy 0"]


PROXY = "198.51.100.7"


def forwarding(address: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", address.encode())]


def test_a_request_of_a_proxy_counts_for_its_client() -> None:
    limited = LimitedConnections(requests=8, proxy_networks=("198.51.100.0/24",))
    table = limited.connection_table

    def may_start(address: str, host: str = PROXY) -> HttpConnection | None:
        connection = limited.add(host, address)
        assert table.identify(connection, forwarding(address)) == address
        if not table.may_start_request(connection):
            return None
        table.set_state(connection, ConnectionState.BUSY)
        return connection

    heavy = [may_start(HEAVY, host=host) for host in (PROXY, "", PROXY, PROXY)]
    assert all(heavy)
    assert may_start(HEAVY) is None
    [light] = [may_start(LIGHT)]
    assert light
    table.set_state(heavy[0], ConnectionState.IDLE)  # the proxy keeps it for any client
    table.identify(heavy[0], forwarding(LIGHT))
    assert table.may_start_request(heavy[0])
    table.set_state(heavy[0], ConnectionState.BUSY)
    assert may_start(LIGHT) is None  # two would be left, and it would have three
    for one in (*heavy, light):
        table.remove(one)
    for number in range(1, 5):
        assert may_start(f"2001:db8::{number}:0:0:1")
    assert may_start("2001:db8::5") is None
    assert may_start("2001:db8:0:1::1")


def test_a_stalled_request_of_who_has_most_makes_room() -> None:
    limited = LimitedConnections(requests=8)
    table = limited.connection_table
    for host, count in ((HEAVY, 4), (LIGHT, 2)):
        for number in range(count):
            limited.add(host, f"{host}/{number}", ConnectionState.RECEIVING)
    light, newcomer = limited.add(LIGHT, "light"), limited.add("192.0.2.3", "new")
    assert not table.may_start_request(light)
    assert table.may_start_request(newcomer)
    limited.now_s = STALLED_GRACE_S
    for _ in range(3):  # then it has most
        assert table.may_start_request(light)
        table.set_state(light, ConnectionState.BUSY)
        light = limited.add(LIGHT, "light")
    assert limited.closed == [f"{HEAVY}/0", f"{HEAVY}/1", f"{LIGHT}/0"]
    limited = LimitedConnections(requests=4)
    limited.add(LIGHT, "light", ConnectionState.RECEIVING)
    for number in range(2):
        limited.add(HEAVY, str(number), ConnectionState.BUSY)
    limited.now_s = STALLED_GRACE_S
    assert not limited.connection_table.may_start_request(limited.add(HEAVY, "more"))


def test_requests_of_all_are_bounded() -> None:
    limited = LimitedConnections(requests=2, proxy_networks=("198.51.100.0/24",))
    for number in range(2):
        connection = limited.add(PROXY, str(number))
        assert limited.connection_table.may_start_request(connection)
        limited.connection_table.set_state(connection, ConnectionState.BUSY)
    assert not limited.connection_table.may_start_request(limited.add(LIGHT, "light"))
