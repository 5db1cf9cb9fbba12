"""An HTTPS client for URLs from clients and operators: it decides where a request may go.

A name is resolved once for each request, and each of its addresses is checked. The connection goes
to an address that passed the check, and the certificate is verified for the name. So a name that
resolves differently at its next look-up (DNS rebinding) gains nothing. Redirects are not followed,
one time-out covers the whole request, and the answer is read up to a limit. RFC 9112, RFC 9525.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import h11
from msgspec import Struct

from relay.base.message.web_url import WebUrl, read_url
from relay.delivery.smtp.connect import reason

LOOPBACK = ("127.0.0.0/8", "::1/128")
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
ANYWHERE = ("0.0.0.0/0", "::/0")
_HEADER_BYTES_MAX = 16 * 1024
_READ_BYTES = 16 * 1024
_REST_S = 0.5  # for the rest of an answer whose body nobody needs
_NAT64 = ip_network("64:ff9b::/96")
_IpAddress = IPv4Address | IPv6Address
Lookup = Callable[[str], Awaitable[Sequence[str]]]  # from a name to addresses; raises OSError


class RequestFailedError(Exception):
    """There is no valid answer.

    `timed_out`: the time was over. `untrusted`: the certificate is not trusted.
    """

    def __init__(self, text: str, *, timed_out: bool = False, untrusted: bool = False) -> None:
        super().__init__(text)
        self.timed_out = timed_out
        self.untrusted = untrusted


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


class HttpAnswer(Struct, frozen=True):
    """An answer; `body` is empty unless the caller asked for it."""

    status: int
    content_type: str  # the media type in lower case, without parameters
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether the status is a 2xx."""
        return 200 <= self.status < 300


class HttpsClient:
    """Sends single requests.

    `lookup` resolves names. `ca` is the file of trusted certificates, None for the system's.
    """

    def __init__(
        self, lookup: Lookup, destinations: Destinations, *, ca: Path | None = None
    ) -> None:
        self._lookup = lookup
        self._destinations = destinations
        self._ca = ca

    def read_url(self, text: str) -> WebUrl:
        """Return the URL in `text`. Raises UrlError; whether its host is allowed is not checked."""
        schemes = ("https", "http") if self._destinations.plain else ("https",)
        return read_url(text, schemes=schemes)

    async def post(
        self,
        url: WebUrl,
        body: bytes,
        *,
        timeout_s: float,
        content_type: str = "application/json",
        fields: Sequence[tuple[str, str]] = (),
        answer_bytes_max: int = 0,
    ) -> HttpAnswer:
        """Send a POST with the additional header `fields`.

        `answer_bytes_max` limits the body of the answer; with 0 the body is not read. Raises
        RequestFailedError.
        """
        fields = (("Content-Type", content_type), *fields, ("Content-Length", str(len(body))))
        request = h11.Request(method="POST", target=url.target, headers=_header(url, fields))
        return await self._answer(url, request, body, limits=(timeout_s, answer_bytes_max))

    async def get(self, url: WebUrl, *, timeout_s: float, answer_bytes_max: int) -> HttpAnswer:
        """Send a GET. Raises RequestFailedError."""
        request = h11.Request(method="GET", target=url.target, headers=_header(url, ()))
        return await self._answer(url, request, b"", limits=(timeout_s, answer_bytes_max))

    async def _answer(
        self, url: WebUrl, request: h11.Request, body: bytes, *, limits: tuple[float, int]
    ) -> HttpAnswer:
        timeout_s, octets = limits
        exchange = _Exchange(octets)
        try:
            async with asyncio.timeout(timeout_s) as limit:  # real time: a peer
                reader, writer = await self._connected(url)
                try:
                    writer.write(exchange.octets_of(request, body))
                    await writer.drain()
                    await exchange.read(reader, limit)
                finally:
                    writer.transport.abort()
        except TimeoutError:
            if exchange.status and not octets:  # later octets of the rest are cut off
                return exchange.answer()
            text = f"{url.authority}: no answer within {timeout_s:g} s"
            raise RequestFailedError(text, timed_out=True) from None
        except h11.ProtocolError as error:
            raise RequestFailedError(f"{url.authority}: no HTTP answer: {error}") from None
        except OSError as error:
            untrusted = isinstance(error, ssl.SSLCertVerificationError)
            text = f"{url.authority}: {reason(error)}"
            raise RequestFailedError(text, untrusted=untrusted) from None
        return exchange.answer()

    async def _connected(self, url: WebUrl) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address that answers. Raises OSError, RequestFailedError."""
        context = None
        if url.scheme == "https":
            new = _context if self._ca is None else partial(_new_context, self._ca)
            context = await asyncio.to_thread(new)
        failure = ""
        for address in await self._addresses(url):
            try:
                return await asyncio.open_connection(
                    address, url.port, ssl=context, server_hostname=url.host if context else None
                )
            except ssl.SSLError:
                raise
            except OSError as error:
                failure = reason(error)
        raise RequestFailedError(f"{url.authority}: {failure}")

    async def _addresses(self, url: WebUrl) -> list[str]:
        """Return the addresses of a host that are allowed, at least one."""
        try:
            addresses: Sequence[str] = (str(ip_address(url.host)),)
        except ValueError:
            addresses = await self._lookup(url.host)
        refusals = {
            address: self._destinations.refusal(address, scheme=url.scheme) for address in addresses
        }
        allowed = [address for address, refusal in refusals.items() if not refusal]
        if not allowed:
            why = "; ".join(refusals.values()) or "the name has no address"
            raise RequestFailedError(f"{url.authority}: {why}")
        return allowed


class _Exchange:
    """One request and its answer, of which at most `body_max` octets of the body are kept."""

    def __init__(self, body_max: int) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADER_BYTES_MAX)
        self._body_max = body_max
        self._left = _HEADER_BYTES_MAX + max(body_max, _READ_BYTES)  # octets that are read
        self._body = bytearray()
        self._content_type = ""
        self.status = 0

    def octets_of(self, request: h11.Request, body: bytes) -> bytes:
        """Return the request as it is sent."""
        events: tuple[Any, ...] = (request, h11.Data(data=body), h11.EndOfMessage())
        return b"".join(self._http.send(event) or b"" for event in events)

    async def read(self, reader: asyncio.StreamReader, limit: asyncio.Timeout) -> None:
        """Read the answer. Raises OSError, h11.ProtocolError, RequestFailedError."""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                octets = await reader.read(_READ_BYTES)
                self._left -= len(octets)
                if self._left < 0:
                    break
                self._http.receive_data(octets)
            elif isinstance(event, h11.Response):
                self.status = event.status_code
                kind = dict(event.headers).get(b"content-type", b"").decode("latin-1")
                self._content_type = kind.partition(";")[0].strip().lower()
                if not self._body_max:
                    now = asyncio.get_running_loop().time()  # real time: a peer
                    limit.reschedule(min(limit.when() or now, now + _REST_S))
            elif isinstance(event, h11.Data):
                self._body += event.data
                if self._body_max and len(self._body) > self._body_max:
                    break
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return
        if self._body_max or not self.status:
            raise RequestFailedError(f"the answer is longer than {self._body_max} octets")

    def answer(self) -> HttpAnswer:
        """Return the answer."""
        return HttpAnswer(self.status, self._content_type, bytes(self._body[: self._body_max]))


def _header(url: WebUrl, fields: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    fixed = (("Host", url.authority), ("User-Agent", "Relay"), ("Accept", "*/*"))
    return [*fixed, *fields, ("Connection", "close")]


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
    """Return whether an address is on the public internet; tunnel addresses (6to4, Teredo)
    are not.
    """
    if isinstance(address, IPv6Address):
        if address.sixtofour or address.teredo or address.is_site_local:
            return False
        if (int(address) >> 32) == 0:  # ::/96, IPv4-compatible
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved
