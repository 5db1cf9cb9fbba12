"""Read a URL to which requests are sent; refuse a URL that programs may read differently.

RFC 3986; a host that ends in a number is an address (WHATWG URL).
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

from msgspec import Struct

from relay.base.message.address import AddressError, to_ascii_domain

URL_CHARACTERS_MAX = 2048
_IN_BRACKETS = re.compile(r"\[[^\[\]]+\](?::[0-9]*)?")
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")
_LABEL = r"[a-z0-9_][a-z0-9_-]{0,62}+"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?>\.{_LABEL})*+", re.IGNORECASE)
_PORTS = {"https": 443, "http": 80}


class UrlError(ValueError):
    """A URL to which nothing can be sent; the text says what was found and expected."""


class WebUrl(Struct, frozen=True):
    """A URL, read strictly. `host` has A-labels, or is an address without brackets."""

    text: str
    scheme: str
    host: str
    port: int
    target: str  # path and query

    @property
    def authority(self) -> str:
        """The Host field (RFC 9110 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def with_query(self, more: str) -> "WebUrl":
        """Return the URL with a further parameter in its query."""
        joint = "&" if "?" in self.target else "?"
        url = f"{self.scheme}://{self.authority}{self.target}{joint}{more}"
        return WebUrl(url, self.scheme, self.host, self.port, f"{self.target}{joint}{more}")


def read_url(
    text: str, *, schemes: Sequence[str] = ("https",), most: int = URL_CHARACTERS_MAX
) -> WebUrl:
    """Return a URL that names a host and has no part that is not sent to it. Raises UrlError."""
    expected = f"expected {' or '.join(schemes)}://HOST[:PORT]/PATH"
    if len(text) > most:
        raise UrlError(f"found {len(text)} characters, expected at most {most}")
    if _NOT_IN_URLS.search(text) is not None:
        raise UrlError(f"found a character that has to be percent-encoded, {expected}")
    try:
        parts = urlsplit(text)
        port, host = parts.port, to_ascii_domain((parts.hostname or "").removesuffix("."))
    except (ValueError, AddressError) as error:
        raise UrlError(f"{error}; {expected}") from None
    if parts.scheme not in schemes:
        raise UrlError(f"found the scheme {parts.scheme!r}, {expected}")
    if "@" in parts.netloc:
        raise UrlError(f"found a user name or password, {expected}")
    if "#" in text:
        raise UrlError(f"found a fragment (#), {expected}")
    target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    if not target.isascii():
        raise UrlError(f"found a character that has to be percent-encoded, {expected}")
    if port == 0:
        raise UrlError(f"found port 0, {expected}")
    if "[" in parts.netloc:
        with suppress(ValueError):
            host = str(IPv6Address(host))
        if _IN_BRACKETS.fullmatch(parts.netloc) is None or "%" in host or ":" not in host:
            raise UrlError(f"found no IPv6 address in brackets, {expected}")
    elif _HOST.fullmatch(host) is None:
        raise UrlError(f"found the host {host[:100]!r}, {expected}")
    elif host.rpartition(".")[2][:1].isdigit():  # WHATWG URL: ends in a number
        try:
            host = str(IPv4Address(host))
        except ValueError:
            fault = f"found the host {host!r}, which is read as different addresses"
            raise UrlError(f"{fault}, expected a name or an address as 192.0.2.1") from None
    return WebUrl(text, parts.scheme, host, port or _PORTS[parts.scheme], target)
