"""Where a socket listens or connects to, as a value."""

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_NETWORK_BITS = 64  # of IPv6: one customer has at least a /64 and changes addresses within it


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on or connect to: host and port, or the path of a Unix socket.

    `plain` is an HTTP listener without TLS even if a certificate is configured. `systemd` is the
    name of sockets that the service manager opens; host and port, or path, are theirs, and empty in
    a process that has not got them.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    plain: bool = False
    systemd: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether only the service manager knows where it is."""
        return bool(self.systemd) and not (self.host or self.path)

    def __str__(self) -> str:
        if self.is_elsewhere:
            return f"systemd:{self.systemd}"
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def client_of(address: str) -> str:
    """Return the key by which failures of a client are counted; "" for a Unix socket."""
    try:
        ip = plain_ip(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(ip, IPv6Address) and not ip.is_loopback:
        return str(ip_network((ip, _NETWORK_BITS), strict=False))
    return str(ip)


@lru_cache(maxsize=4096)
def plain_ip(address: str) -> IPv4Address | IPv6Address:
    """Return an IP address; an IPv4-mapped one (RFC 4291 2.5.5.2) is IPv4. Raises ValueError."""
    ip = ip_address(address)
    return getattr(ip, "ipv4_mapped", None) or ip
