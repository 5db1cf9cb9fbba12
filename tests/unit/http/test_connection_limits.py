"""Limits on connections, requests and unread responses, and which connection is closed."""

from ipaddress import ip_network

import pytest

from relay.http.connection_limits import (
    STALLED_GRACE_S,
    UNREAD_GRACE_S,
    ConnectionLimits,
    ConnectionState,
    ConnectionTable,
    HttpConnection,
    client_address,
)

HEAVY, LIGHT = "192.0.2.1", "192.0.2.2"


class World:
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
        ((ConnectionState.BUSY, ConnectionState.UNREAD, ConnectionState.UNREAD), "1"),
        ((ConnectionState.BUSY, ConnectionState.BUSY, ConnectionState.BUSY), "light"),
    ],
)
def test_the_oldest_idle_connection_of_the_heaviest_address_is_closed(
    stages: tuple[ConnectionState, ...], first: str
) -> None:
    world = World(connections=4)
    world.add(LIGHT, "light", ConnectionState.IDLE)
    for number, state in enumerate(stages):
        world.add(HEAVY, str(number), state)
    world.now_s = UNREAD_GRACE_S
    world.add("192.0.2.3", "new")
    assert world.closed == [first]


def test_a_new_connection_is_rejected_if_all_are_busy() -> None:
    world = World(connections=2)
    connections = [world.add(HEAVY, str(number), ConnectionState.BUSY) for number in range(2)]
    assert world.connection_table.add(LIGHT, lambda: None) is None
    world.connection_table.set_state(
        connections[1], ConnectionState.UNREAD
    )  # for less than the time of grace
    assert world.connection_table.add(LIGHT, lambda: None) is None
    world.connection_table.remove(connections[0])
    world.connection_table.remove(connections[0])
    world.add(LIGHT, "new")
    assert world.connection_table.add(LIGHT, lambda: None) is not None
    assert world.closed == ["new"]


def test_connections_of_proxies_are_closed_last() -> None:
    world = World(connections=4, proxy_networks=("198.51.100.0/24",))
    for number in range(3):
        world.add("198.51.100.7", f"proxy {number}", ConnectionState.IDLE)
    world.add(LIGHT, "light", ConnectionState.IDLE)
    world.add("", "unix")
    assert world.closed == ["light"]
    world.add("", "unix", ConnectionState.BUSY)
    assert world.closed == ["light", "proxy 0"]


def test_one_address_has_half_of_the_requests() -> None:
    world = World(requests=4)
    operation = [world.add(HEAVY, str(number), ConnectionState.BUSY) for number in range(2)]
    more, light = world.add(HEAVY, "more"), world.add(LIGHT, "light")
    assert not world.connection_table.may_start_request(more)
    assert world.connection_table.may_start_request(light)
    assert world.connection_table.may_start_request(
        operation[0]
    )  # a further one on the same connection
    world.connection_table.set_state(operation[0], ConnectionState.UNREAD)
    assert not world.connection_table.may_start_request(more)
    world.now_s = UNREAD_GRACE_S
    assert world.connection_table.may_start_request(more)
    assert world.closed == ["0"]


def test_requests_of_all_are_bounded() -> None:
    world = World(requests=2, proxy_networks=("198.51.100.0/24",))
    for number in range(2):
        connection = world.add("198.51.100.7", str(number))
        assert world.connection_table.may_start_request(connection)
        world.connection_table.set_state(connection, ConnectionState.BUSY)
    assert not world.connection_table.may_start_request(world.add(LIGHT, "light"))


def test_a_stalled_body_is_closed_for_a_request() -> None:
    world = World(requests=4)
    for number in range(4):
        host = HEAVY if number < 2 else LIGHT
        world.connection_table.set_state(
            world.add(host, str(number), ConnectionState.BUSY), ConnectionState.RECEIVING
        )
    flowing = world.add("192.0.2.4", "flowing")
    other = world.add("192.0.2.3", "other")
    world.now_s = STALLED_GRACE_S - 1
    assert not world.connection_table.may_start_request(other)
    world.now_s = STALLED_GRACE_S
    assert world.connection_table.may_start_request(flowing)
    world.connection_table.set_state(flowing, ConnectionState.RECEIVING)
    assert world.connection_table.may_start_request(other)
    world.connection_table.set_state(other, ConnectionState.BUSY)
    assert world.closed == ["0", "2"]


def test_a_body_that_arrives_is_not_closed() -> None:
    world = World(requests=2)
    slow, stalled = (
        world.add(HEAVY, name, ConnectionState.RECEIVING) for name in ("slow", "stalled")
    )
    world.now_s = STALLED_GRACE_S
    world.connection_table.body_received(slow)
    world.connection_table.body_received(stalled)
    world.now_s = 1.5 * STALLED_GRACE_S
    world.connection_table.body_received(slow)
    world.now_s = 2 * STALLED_GRACE_S
    assert world.connection_table.may_start_request(world.add(LIGHT, "light"))
    assert world.closed == ["stalled"]
    assert not world.connection_table.may_start_request(world.add(HEAVY, "another"))


def test_unread_bytes_are_counted_until_read() -> None:
    world = World(unread_bytes=100)
    one, two = (world.add(HEAVY, name, ConnectionState.BUSY) for name in ("one", "two"))
    other = world.add(LIGHT, "other", ConnectionState.BUSY)
    may_answer = world.connection_table.may_send_response
    assert may_answer(one, 45, may_be_refused=True)
    assert not may_answer(two, 6, may_be_refused=True)
    assert may_answer(other, 50, may_be_refused=True)
    world.connection_table.set_buffered_bytes(one, 3)
    world.connection_table.response_sent(one)
    assert may_answer(two, 47, may_be_refused=True)
    assert not may_answer(other, 48, may_be_refused=True)  # of all
    world.connection_table.set_buffered_bytes(one, 0)
    world.connection_table.remove(two)
    world.connection_table.response_sent(other)
    assert may_answer(other, 1000, may_be_refused=True)  # alone
    assert world.closed == []


def test_the_response_to_a_change_closes_unread_connections() -> None:
    world = World(unread_bytes=100)
    connections = [world.add(HEAVY, str(number), ConnectionState.BUSY) for number in range(3)]
    for connection in connections[:2]:
        assert world.connection_table.may_send_response(connection, 25, may_be_refused=True)
        world.connection_table.set_state(connection, ConnectionState.UNREAD)
    assert world.connection_table.may_send_response(connections[2], 20, may_be_refused=False)
    assert world.closed == ["0"]


def test_responses_over_the_limit_are_closed_when_they_wait() -> None:
    world = World(unread_bytes=100)
    connections = [world.add(HEAVY, str(number), ConnectionState.BUSY) for number in range(4)]
    for connection in connections:
        assert world.connection_table.may_send_response(connection, 25, may_be_refused=False)
    for connection in connections:
        world.connection_table.set_buffered_bytes(connection, 0)
        world.connection_table.set_buffered_bytes(connection, 1)
        world.connection_table.set_state(connection, ConnectionState.UNREAD)
    assert world.closed == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2::3", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("10.1.2.3", ""),
        ("::ffff:10.1.2.3", ""),
        ("fd00::1", ""),
        ("", ""),
    ],
)
def test_a_client_is_an_address_or_a_network_of_64_bits(host: str, address: str) -> None:
    proxies = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    assert client_address(host, proxies) == address
