"""The client that a proxy forwards: X-Forwarded-For and Forwarded (RFC 7239)."""

import time

import pytest

from relay.front_door.http.connection_limits import Proxies
from tests.support.tables import each_row

PROXIES = Proxies(["10.0.0.0/8", "fd00::/8"])


def client(x_forwarded_for: tuple[str, ...] = (), forwarded: tuple[str, ...] = ()) -> str:
    fields = [(b"host", b"relay.test")]
    fields += [(b"x-forwarded-for", line.encode()) for line in x_forwarded_for]
    fields += [(b"forwarded", line.encode()) for line in forwarded]
    return PROXIES.client(fields)


@each_row(
    "lines, expected",
    [
        (["192.0.2.1"], "192.0.2.1"),
        (["192.0.2.9, 192.0.2.1"], "192.0.2.1"),
        (["192.0.2.9", "192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1, 10.1.2.3", "10.0.0.1"], "192.0.2.1"),
        (["nonsense, ,192.0.2.1 ,10.0.0.1,,"], "192.0.2.1"),
        (['"', "192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1:4711"], "192.0.2.1"),
        (["2001:db8::1"], "2001:db8::1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["::ffff:192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1, ::ffff:10.1.2.3, fd00::1"], "192.0.2.1"),
        (["192.0.2.1, unknown"], ""),
        (["192.0.2.1, unknown, 10.0.0.1"], ""),
        (["192.0.2.1, 192.0.2"], ""),
        (["192.0.2.1, " + "1" * 1000], ""),
        (["10.0.0.1, 10.0.0.2"], ""),
        (["192.0.2.1" + ", 10.0.0.1" * 40], ""),
        (["", " , "], ""),
        ([], ""),
    ],
)
def test_x_forwarded_for(lines: list[str], expected: str) -> None:
    assert client(tuple(lines)) == expected


@each_row(
    "lines, expected",
    [
        (["for=192.0.2.1"], "192.0.2.1"),
        (["for=192.0.2.60;proto=http;by=203.0.113.43"], "192.0.2.60"),
        (["proto=https; For=192.0.2.1"], "192.0.2.1"),
        (['For="[2001:db8:cafe::17]:4711"'], "2001:db8:cafe::17"),
        (['for="[2001:db8::1]:_port"'], "2001:db8::1"),
        (['for="192.0.2.43:47011"'], "192.0.2.43"),
        (["for=192.0.2.9, for=192.0.2.1"], "192.0.2.1"),
        (["for=192.0.2.9", "for=192.0.2.1, for=10.0.0.1"], "192.0.2.1"),
        (['for="\\192.0.2.1"'], "192.0.2.1"),
        (['for=192.0.2.9;x=", for=192.0.2.8;\\"", for=192.0.2.1'], "192.0.2.1"),
        (['for=192.0.2.1;x=";for=192.0.2.9"'], "192.0.2.1"),
        (['for="', "for=192.0.2.1"], "192.0.2.1"),
        (['for=192.0.2.9;x=", for=192.0.2.1'], ""),
        (["for=unknown"], ""),
        (["for=192.0.2.1, for=_gazonk"], ""),
        (['for=192.0.2.1, for="_SEVKISEK"'], ""),
        (["for=192.0.2.1, proto=https"], ""),
        (["for=192.0.2.1;for=192.0.2.9"], ""),
        (["for=192.0.2.1 by=192.0.2.9"], ""),
        (["192.0.2.1"], ""),
        (["for="], ""),
        (["for=10.0.0.1"], ""),
        (["", ","], ""),
    ],
)
def test_forwarded(lines: list[str], expected: str) -> None:
    assert client(forwarded=tuple(lines)) == expected


@each_row(
    "x_forwarded_for, forwarded, expected",
    [
        ("192.0.2.1", "for=192.0.2.1", "192.0.2.1"),
        ("2001:DB8::1", 'for="[2001:db8:0::1]:99"', "2001:db8::1"),
        ("192.0.2.9, 192.0.2.1", "for=192.0.2.1, for=10.0.0.1", "192.0.2.1"),
        ("192.0.2.1", "for=192.0.2.2", ""),
        ("192.0.2.1", "for=unknown", ""),
        ("unknown", "for=192.0.2.1", ""),
        ("unknown", "for=unknown", ""),
    ],
)
def test_two_fields_must_agree(x_forwarded_for: str, forwarded: str, expected: str) -> None:
    assert client((x_forwarded_for,), (forwarded,)) == expected


def test_a_unix_socket_is_a_proxy_if_there_are_any() -> None:
    assert [PROXIES.includes(host) for host in ("", "10.1.1.1", "::ffff:10.1.1.1", "fd00::1")] == [
        True,
        True,
        True,
        True,
    ]
    assert not PROXIES.includes("192.0.2.1")
    assert [Proxies().includes(host) for host in ("", "127.0.0.1")] == [False, False]


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"forwarded"])
@pytest.mark.parametrize("begin", [b"", b'for="', b'for=192.0.2.1;x="'])
@each_row(
    "piece",
    [
        *(b"10.0.0.1,", b"for=10.0.0.1,", b'for="10.0.0.1";a=b,', b"a=b;", b'a="";', b",", b" ,"),
        *(b"a ", b'"', b'\\"', b'"\\', b"\\", b"=", b"1", b":", b"for="),
    ],
)
def test_a_long_field_costs_no_more_than_its_length(
    name: bytes, begin: bytes, piece: bytes
) -> None:
    """A square of the length would be seconds."""
    line = begin + piece * (64 * 1024 // len(piece))
    began_s = time.process_time()
    PROXIES.client([(name, line)])
    PROXIES.client([(name, piece)] * (64 * 1024 // (len(piece) + 16)))
    assert time.process_time() - began_s < 0.25
