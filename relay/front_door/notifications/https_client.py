"""An HTTPS client for URLs from clients and operators: it decides where a request may go.

A name is resolved once for each request, and each of its addresses is checked. The connection goes
to an address that passed the check, and the certificate is verified for the name. So a name that
resolves differently at its next look-up (DNS rebinding) gains nothing. Redirects are not followed,
one time-out covers the whole request, and the answer is read up to a limit. RFC 9112, RFC 9525.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from msgspec import Struct

from relay.base.message.web_url import WebUrl, read_url
from relay.delivery.http_connection import ClientConnection, HttpError, HttpResponse, open_http
from relay.delivery.smtp.connect import reason

LOOPBACK = ("127.0.0.0/8", "::1/128")
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
ANYWHERE = ("0.0.0.0/0", "::/0")
# What some versions of ipaddress take for public: addresses of protocols and tunnels (6to4, Teredo,
# local NAT64), of sites, of documentation, and of segment routing.
_SPECIAL = (
    *("192.0.0.0/24", "192.88.99.0/24", "2002::/16", "2001::/32", "64:ff9b:1::/48"),
    *("::/96", "fec0::/10", "3fff::/20", "5f00::/16"),
)
_NAT64 = ip_network("64:ff9b::/96")
_IpAddress = IPv4Address | IPv6Address
Lookup = Callable[[str], Awaitable[Sequence[str]]]  # from a name to addresses; raises OSError


class Destinations(Struct, frozen=True):
    """Where requests may go: to the addresses in `networks`, and, if `public`, to all public ones.

    Without TLS (http) they go to addresses in `plain` only.
    """

    networks: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    public: bool = True

    def refusal(self, address: str, *, scheme: str) -> str:
        """Return why a request may not go to an address, "" if it may."""
        ip = _plain_address(address)
        if scheme != "https" and not _is_in(ip, self.plain):
            return f"{address}: expected https, except to {', '.join(self.plain) or 'nowhere'}"
        if _is_in(ip, self.networks) or (self.public and _is_public(ip)):
            return ""
        kind = "an address beyond this machine" if _is_public(ip) else "no public address"
        return f"{address} is {kind}"


@dataclass(eq=False, repr=False)
class HttpsClient:
    """Sends single requests.

    `lookup` resolves names. `ca` is the file of trusted certificates, None for the system's.
    """

    lookup: Lookup
    destinations: Destinations
    ca: Path | None = None

    def read_url(self, text: str) -> WebUrl:
        """Return the URL in `text`. Raises UrlError; whether its host is allowed is not checked."""
        schemes = ("https", "http") if self.destinations.plain else ("https",)
        return read_url(text, schemes=schemes)

    async def request(
        self,
        method: str,
        url: WebUrl,
        *,
        fields: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        timeout_s: float,
        answer_bytes_max: int = 0,
    ) -> HttpResponse:
        """Send a request. `answer_bytes_max` limits the body of the answer; with 0 the body is not
        read. Raises HttpError.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s  # real time: a peer
        try:
            async with asyncio.timeout_at(until_s):  # real time: a peer
                connection = await self._connected(url, timeout_s)
        except OSError as error:
            slow = (
                f"no connection within {timeout_s:g} s" if isinstance(error, TimeoutError) else ""
            )
            text = f"{url.authority}: {slow or reason(error)}"
            raise HttpError(text, timed_out=bool(slow)) from None
        left_s = max(0.1, round(until_s - loop.time(), 1))  # real time: a peer
        with closing(connection):
            return await connection.request(
                method,
                url.target,
                fields=(("Accept", "*/*"), *fields, ("Connection", "close")),
                body=body,
                timeout_s=left_s,
                answer_bytes_max=answer_bytes_max,
            )

    async def _connected(self, url: WebUrl, timeout_s: float) -> ClientConnection:
        """Connect to the first address that answers. Raises OSError, HttpError."""
        context = None
        if url.scheme == "https":
            new = _context if self.ca is None else partial(_new_context, self.ca)
            context = await asyncio.to_thread(new)
        failure = HttpError("")
        for address in await self._addresses(url):
            try:
                return await open_http(
                    address,
                    url.port,
                    authority=url.authority,
                    host=url.host,
                    context=context,
                    timeout_s=timeout_s,
                )
            except HttpError as error:
                if error.untrusted:
                    raise
                failure = error
        try:
            raise failure
        finally:
            del failure  # else it would be in a cycle with this frame

    async def _addresses(self, url: WebUrl) -> list[str]:
        """Return the addresses of a host that are allowed, at least one."""
        try:
            addresses: Sequence[str] = (str(ip_address(url.host)),)
        except ValueError:
            addresses = await self.lookup(url.host)
        refusals = {
            address: self.destinations.refusal(address, scheme=url.scheme) for address in addresses
        }
        allowed = [address for address, refusal in refusals.items() if not refusal]
        if not allowed:
            why = "; ".join(refusals.values()) or "the name has no address"
            raise HttpError(f"{url.authority}: {why}")
        return allowed


@lru_cache(maxsize=1)
def _context() -> ssl.SSLContext:
    """Return the context that trusts the system's certificates and SSL_CERT_FILE."""
    return _new_context(None)


def _new_context(ca: Path | None) -> ssl.SSLContext:
    """Return a context that trusts the certificates of a file alone. Raises OSError."""
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _plain_address(text: str) -> _IpAddress:
    """Return an address; an IPv6 address that stands for an IPv4 address becomes the IPv4
    address.
    """
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address
    return address


def _is_in(address: _IpAddress, networks: Sequence[str]) -> bool:
    return any(address in ip_network(network) for network in networks)


def _is_public(address: _IpAddress) -> bool:
    """Return whether an address is on the public internet."""
    is_other = address.is_multicast or address.is_reserved or _is_in(address, _SPECIAL)
    return address.is_global and not is_other
