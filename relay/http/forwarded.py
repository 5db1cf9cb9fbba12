"""The client of a request that a reverse proxy forwards: X-Forwarded-For, Forwarded (RFC 7239).

A proxy of `http.proxy_networks` appends the address of its client to one of the fields. The
client may have written the entries to the left of it, so that the right-most address that is no
proxy's counts.
The work is linear in the length of the fields.
"""

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import islice

_ENTRIES_MAX = 32  # that are read from the right: a chain of proxies is short
_ENTRY_LENGTH_MAX = 128
_X_FORWARDED_FOR, _FORWARDED = b"x-forwarded-for", b"forwarded"

# An address, with its port, which may be obfuscated (RFC 7239 6); IPv6 without a port as it is.
_NODE = re.compile(r"(?:\[([^\]]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
_QUOTED = rb'"(?:[^"\\]++|\\.)*+"'
_LIST = re.compile(rb'(?:[^"]++|%b)*+' % _QUOTED, re.DOTALL)
_ELEMENT = re.compile(rb'(?:[^",]++|%b)++' % _QUOTED, re.DOTALL)
_PAIR = rb'[ \t]*+([^"=;, \t]++)=(%b|[^"; \t]++)[ \t]*+(?:;|\Z)' % _QUOTED
_PAIRS = re.compile(rb"(?:%b)++" % _PAIR, re.DOTALL)
_EACH_PAIR = re.compile(_PAIR, re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)

_IpAddress = IPv4Address | IPv6Address


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

        Return "" if no field has one, if the right-most entry that is no proxy's is no address, or
        if the two fields have different ones.
        """
        plain, forwarded = [], []
        for name, value in fields:
            if name == _X_FORWARDED_FOR:
                plain.append(value)
            elif name == _FORWARDED:
                forwarded.append(value)
        found = []
        if plain:
            found.append(self._right_most(_entries(plain)))
        if forwarded:
            found.append(self._right_most(_forwarded_entries(forwarded)))
        if not found or found[0] is None or found[0] != found[-1]:
            return ""
        return str(found[0])

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


def _address_of(entry: str) -> _IpAddress | None:
    """Return the address of an entry; None for `unknown`, for an obfuscated one and for others."""
    if len(entry) > _ENTRY_LENGTH_MAX:
        return None
    if node := _NODE.fullmatch(entry):
        entry = node[1] or node[2]
    try:
        address = ip_address(entry.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
