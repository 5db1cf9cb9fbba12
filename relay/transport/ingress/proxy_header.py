"""Read the header in which a proxy says who its client is: the PROXY protocol, versions 1 and 2.

It is read from the socket before the session exists, without any octet after it. HAProxy's
proxy-protocol.txt, 2.1 and 2.2, has the format; the extensions of version 2 (TLV) are skipped.
"""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from msgspec import Struct

from relay.base.sockets import wait_readable

HEADER_S = 3.0
_V1_SIGNATURE, _V2_SIGNATURE = b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"
_V1_OCTETS_MAX = 107
_V2_OCTETS_MAX = 4096  # nginx reads no more either
_V2_FIXED_OCTETS = 16
_LOCAL, _PROXY = 0x20, 0x21  # version and command
_WITHOUT_ADDRESS = (0x00, 0x31)  # unspecified, and the socket of a Unix client
_ADDRESS_OCTETS = {0x11: 4, 0x21: 16}  # of TCP over IPv4 and over IPv6


class ProxyHeaderError(ValueError):
    """There is no usable header; the text is the reason."""


class ProxyHeader(Struct, frozen=True):
    """A header of `octets`; `client` is an IP address, "" if the header names no remote client."""

    octets: int
    client: str


def parse_header(data: bytes) -> ProxyHeader | None:
    """Return the header with which `data` begins, None if more must be read.

    A client on the loopback of the proxy has no address here: it is on another machine.
    Raises ProxyHeaderError.
    """
    for signature, parse in ((_V2_SIGNATURE, _version_2), (_V1_SIGNATURE, _version_1)):
        if data[: len(signature)] == signature[: len(data)]:
            return parse(data)
    raise ProxyHeaderError("there is none")


def _version_1(data: bytes) -> ProxyHeader | None:
    line, end, _ = data[:_V1_OCTETS_MAX].partition(b"\r\n")
    if not end:
        if len(data) >= _V1_OCTETS_MAX:
            raise ProxyHeaderError(f"its line is longer than {_V1_OCTETS_MAX} octets")
        return None
    octets = len(line) + len(end)
    family, *words = line.removeprefix(_V1_SIGNATURE).split(b" ")
    if family == b"UNKNOWN":
        return ProxyHeader(octets, "")
    try:
        source, destination, *ports = [word.decode("ascii") for word in words]
        ends = [ip_address(source), ip_address(destination)]
        has_ports = len(ports) == 2 and all(port.isdigit() and int(port) < 65536 for port in ports)
        is_valid = has_ports and {b"TCP%d" % address.version for address in ends} == {family}
    except ValueError:
        is_valid = False
    if not is_valid or b"%" in line:
        raise ProxyHeaderError("its line is not PROXY TCP4 or TCP6, two addresses and two ports")
    return ProxyHeader(octets, _client(ends[0]))


def _version_2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_FIXED_OCTETS:
        return None
    command, family = data[12:14]
    octets = _V2_FIXED_OCTETS + int.from_bytes(data[14:16])
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"its version and command are 0x{command:02x}")
    if octets > _V2_OCTETS_MAX:
        raise ProxyHeaderError(f"it has {octets} octets, and at most {_V2_OCTETS_MAX} are read")
    if command == _LOCAL or family in _WITHOUT_ADDRESS:
        return ProxyHeader(octets, "") if len(data) >= octets else None
    size = _ADDRESS_OCTETS.get(family)
    if size is None:
        raise ProxyHeaderError(f"its address family and protocol are 0x{family:02x}")
    if octets < _V2_FIXED_OCTETS + 2 * (size + 2):
        raise ProxyHeaderError("it is too short for its addresses")
    if len(data) < octets:
        return None
    return ProxyHeader(octets, _client(ip_address(data[_V2_FIXED_OCTETS:][:size])))


def _client(source: IPv4Address | IPv6Address) -> str:
    source = getattr(source, "ipv4_mapped", None) or source
    return "" if source.is_loopback else str(source)


async def read_header(connection: socket.socket) -> ProxyHeader | None:
    """Read the header; None if the peer sends nothing, or resets, as health checks of HAProxy do.

    Raises ProxyHeaderError, OSError.
    """
    data, header = b"", None
    try:
        async with asyncio.timeout(HEADER_S):  # real time: a client
            while header is None:
                await wait_readable(connection)
                seen = connection.recv(_V2_OCTETS_MAX - len(data), socket.MSG_PEEK)
                if not seen and not data:
                    return None
                if not seen:
                    raise ProxyHeaderError("the connection ended within it")
                header = parse_header(data + seen)
                data += connection.recv(header.octets - len(data) if header else len(seen))
    except ConnectionResetError:
        return None
    except TimeoutError:
        raise ProxyHeaderError(f"it did not arrive within {HEADER_S:g} seconds") from None
    return header
