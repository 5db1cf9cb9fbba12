"""Listeners: all addresses of a name, stale and live Unix sockets, errors that name the address."""

import itertools
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.base import socket_address
from relay.base.socket_address import Address, inherited_address, is_loopback
from relay.base.sockets import Listener, open_listener
from tests.support.tables import each_row

NETWORK = """
ip link set lo up
ip link add one type veth peer name two
ip link set one up
ip link set two up
ip address add 192.0.2.1/24 dev one
ip address add 192.0.2.2/24 dev one
ip -6 address add 2001:db8::1/64 dev one nodad
ip -6 address add 2001:db8::2/64 dev one nodad
ip route add default via 192.0.2.9
ip -6 route add default via 2001:db8::9
for version in 4 6; do echo 1 > /proc/sys/net/ipv$version/ip_nonlocal_bind; done
"$@"
"""
IS_HERE = """
import sys
from ipaddress import ip_address
from relay.base.sockets import is_of_this_machine
print(*[each for each in sys.argv[1:] if is_of_this_machine(ip_address(each))])
"""


@pytest.fixture
def opened() -> Iterator[list[Listener]]:
    listeners: list[Listener] = []
    yield listeners
    for one in listeners:
        one.close()


def test_a_name_means_all_its_addresses_with_one_port(opened) -> None:
    found = socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)
    opened.append(open_listener(Address("localhost", 0), backlog=1))
    places = {one.getsockname()[:2] for one in opened[0].sockets}
    assert places <= {(place[0], opened[0].address.port) for *_, place in found}
    assert ("127.0.0.1", opened[0].address.port) in places


def test_a_stale_unix_socket_is_replaced_and_its_file_is_private(opened, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(path))
    opened.append(open_listener(Address(path=str(path)), backlog=1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))
    opened.pop().close()
    assert not path.exists()


def test_a_unix_socket_that_answers_and_a_file_stay(opened, tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "s"))
    opened.append(open_listener(address, backlog=1))
    with pytest.raises(OSError, match=f"cannot listen on {address}: Address already in use"):
        open_listener(address, backlog=1)
    file = tmp_path / "precious"
    file.write_text("text")
    with pytest.raises(FileExistsError, match="it exists and is not a socket"):
        open_listener(Address(path=str(file)), backlog=1)
    assert file.read_text() == "text"


@pytest.fixture
def given(monkeypatch) -> Iterator[dict[str, list[socket.socket]]]:
    """The sockets that the service manager gave this process, by name."""
    given: dict[str, list[socket.socket]] = {}
    monkeypatch.setattr(socket_address, "_inherited", given)
    yield given
    for one in itertools.chain(*given.values()):
        one.close()


def unix_socket(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


@pytest.mark.parametrize(
    ("hosts", "shown"),
    [
        (["127.0.0.1"], "127.0.0.1"),
        (["127.0.0.1", "0.0.0.0"], "0.0.0.0"),
        (["0.0.0.0", "127.0.0.1"], "0.0.0.0"),
        (["unix", "127.0.0.1"], "127.0.0.1"),
        (["unix"], "unix"),
    ],
)
def test_sockets_of_the_service_manager_have_the_address_that_most_can_reach(
    given, opened, tmp_path, hosts, shown
) -> None:
    given["a"] = [
        unix_socket(tmp_path / "s") if host == "unix" else socket.create_server((host, 0))
        for host in hosts
    ]
    address = inherited_address("a")
    assert (address.host or "unix") == shown
    assert str(address).startswith(shown)
    listener = open_listener(address, backlog=1)
    assert [one.getsockname() for one in listener.sockets] == [
        one.getsockname() for one in given["a"]
    ]
    listener.close()
    for one in given["a"]:  # it is the service manager's: it goes on
        with socket.socket(one.family) as client:
            client.connect(one.getsockname())
    opened.append(open_listener(address, backlog=1))


def test_an_abstract_unix_socket_is_refused(given) -> None:
    given["a"] = [socket.socket(socket.AF_UNIX)]
    given["a"][0].bind("")  # the kernel chooses
    given["a"][0].listen()
    with pytest.raises(OSError, match="found a Unix socket without a path, expected ListenStream="):
        open_listener(inherited_address("a"), backlog=1)


def test_which_addresses_are_of_this_machine() -> None:
    """Also where any address can be bound, as on a machine that has some of a cluster's in turn."""
    here = ["127.0.0.1", "127.0.0.7", "192.0.2.1", "192.0.2.2", "0.0.0.0"]
    here += ["::1", "2001:db8::1", "2001:db8::2"]
    others = ["192.0.2.3", "198.51.100.1", "2001:db8::3", "2001:db8:1::1"]
    network = ["unshare", "--net", "sh", "-ec", NETWORK, "sh"]
    if not shutil.which("unshare") or subprocess.run([*network, "true"], check=False).returncode:
        pytest.skip("only root makes a network, with ip(8)")
    command = [*network, sys.executable, "-c", IS_HERE, *here, *others]
    assert (
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        == here
    )


@each_row(
    "host, expected",
    [
        ("127.0.0.1", True),
        ("127.0.0.11", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("[127.0.0.1]", True),
        ("[IPv6:::1]", True),
        ("128.0.0.1", False),
        ("192.0.2.1", False),
        ("::", False),
        ("0.0.0.0", False),
        ("127.0.0.1.mail.test", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_only_an_address_is_loopback(host, expected):
    assert is_loopback(host) is expected
