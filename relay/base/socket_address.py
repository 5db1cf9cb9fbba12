"""The address on which a socket listens or to which it connects, and the listening sockets that the
service manager opened: sd_listen_fds(3).

Client commands also read the configuration: this module does not import asyncio.
"""

import ipaddress
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

BOTH_FAMILIES = "*"  # the host of all IPv4 and IPv6 addresses of a machine
_MAPPED_BITS = 96
_NETWORK_BITS = 64  # of IPv6: one customer has at least a /64 and changes addresses within it


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on or connect to: host and port, or the path of a Unix socket.

    `plain` is an HTTP listener without TLS even if a certificate is configured. `systemd` is the
    name of sockets that the service manager opens; host and port, or path, are those of the
    sockets, and empty in a process that did not inherit them.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    plain: bool = False
    systemd: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether only the service manager knows the address."""
        return bool(self.systemd) and not (self.host or self.path)

    @property
    def is_loopback(self) -> bool:
        """Whether it is reachable only from this machine.

        True for sockets of the service manager whose address is not known; it is checked again at
        the start, which knows it.
        """
        is_here = bool(self.path) or self.host == "localhost" or self.is_elsewhere
        return is_here or is_loopback(self.host)

    def __str__(self) -> str:
        if self.is_elsewhere:
            return f"systemd:{self.systemd}"
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(64)
def network_of(text: str) -> IPv4Network | IPv6Network:
    """Return a network, or the network of an address; for IPv4 addresses in IPv6 (::ffff:0:0/96)
    the IPv4 network. Raises ValueError that says what was expected.
    """
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError(
            'networks such as "192.0.2.0/24" (with no bit set after the prefix) and addresses'
        ) from None
    mapped = network.network_address
    if isinstance(mapped, IPv6Address) and mapped.ipv4_mapped and network.prefixlen >= _MAPPED_BITS:
        return IPv4Network((int(mapped.ipv4_mapped), network.prefixlen - _MAPPED_BITS))
    return network


@lru_cache(maxsize=4096)
def client_of(address: str, *, bits: int = _NETWORK_BITS) -> str:
    """Return the key by which a client is counted, of IPv6 its network of `bits`; "" for a Unix
    socket.
    """
    try:
        ip = plain_ip(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(ip, IPv6Address) and not ip.is_loopback:
        return str(ip_network((ip, bits), strict=False))
    return str(ip)


@lru_cache(maxsize=4096)
def plain_ip(address: str) -> IPv4Address | IPv6Address:
    """Return an IP address; an IPv4-mapped one (RFC 4291 2.5.5.2) is IPv4. Raises ValueError."""
    ip = ip_address(address)
    return getattr(ip, "ipv4_mapped", None) or ip


@lru_cache(1024)
def is_in(networks: tuple[str, ...], ip: str) -> bool:
    """Return whether an address is in one of these networks; "" is in none."""
    address = ip_address(ip.partition("%")[0]) if networks and ip else None
    return address is not None and any(address in ip_network(network) for network in networks)


def is_loopback(host: str) -> bool:
    """Whether `host` is an address of this machine's loopback interface; a name never is."""
    address = ip_of(host)
    return address is not None and plain_ip(str(address)).is_loopback


def ip_of(text: str) -> IPv4Address | IPv6Address | None:
    """Return `text` as an IP address; it may be an address literal. None for a name."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
        if text[:5].lower() == "ipv6:":
            text = text[5:]
    try:
        return ip_address(text)
    except ValueError:
        return None


LISTEN_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_DIGITS_MAX = 7
_KINDS = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
_inherited: dict[str, list[socket.socket]] = {}  # by name; until the process ends


def inherit_sockets(variables: Mapping[str, str]) -> None:
    """Take over the sockets of the service manager; no child process inherits them."""
    pid, count, names = (variables.get(name, "") for name in LISTEN_VARIABLES)
    if pid != str(os.getpid()) or not (count.isdecimal() and len(count) < _DIGITS_MAX):
        return
    for descriptor, name in zip(
        range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)), names.split(":"), strict=False
    ):
        with suppress(OSError):  # no socket: inherited_sockets() reports it
            os.set_inheritable(descriptor, False)
            _inherited.setdefault(name, []).append(socket.socket(fileno=descriptor))


def inherited_address(name: str) -> Address:
    """Return where the sockets called `name` listen: the address that most clients can reach."""
    addresses = [
        _address_of(sock, name) for sock in _inherited.get(name, ()) if not _unusable(sock)
    ]
    return min(addresses, key=_reach, default=Address(systemd=name))


def _reach(address: Address) -> int:
    if address.path:
        return 2
    return int(ipaddress.ip_address(address.host.partition("%")[0]).is_loopback)


def _address_of(sock: socket.socket, name: str) -> Address:
    place = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Address(path=place, systemd=name)
    return Address(place[0], place[1], systemd=name)


def _unusable(sock: socket.socket) -> str:
    """Return what is wrong with a socket of the service manager, "" if a listener can use it."""
    if sock.family not in _KINDS or sock.type != socket.SOCK_STREAM:
        return "found one that is not TCP or a Unix stream"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "found one that does not listen"
    if sock.family == socket.AF_UNIX and not str(sock.getsockname()).startswith("/"):
        return "found a Unix socket without a path"
    return ""


def inherited_sockets(name: str) -> tuple[socket.socket, ...]:
    """Return the sockets called `name`. Raises OSError."""
    inherited = _inherited.get(name)
    if not inherited:
        names = ", ".join(sorted(_inherited)) or "none"
        raise OSError(f"systemd gave this process no socket of this name (it gave: {names})")
    for sock in inherited:
        if fault := _unusable(sock):
            raise OSError(f"{fault}, expected ListenStream= with Accept=no")
    for sock in inherited:
        sock.setblocking(False)
    return tuple([sock.dup() for sock in inherited])
