"""Which remote images a preview of `relay dev` may contain, when a person asks for them.

Only URLs that every browser reads in the same way are written, in a form of Relay's own; anything
else stays a box. So do URLs with a user part, and those of Relay itself: a message must not make
the browser of its reader ask the relay for something. A name that the DNS resolves to this machine
cannot be known here: the relay refuses such requests, since it answers for its own names only.
`sanitize` removes all others, and `content_pages` has the Content-Security-Policy.
WHATWG URL 4.4 (a host whose last label is a number is an IPv4 address); RFC 6761 6.3 (localhost).
"""

import re
from collections.abc import Callable, Iterator
from urllib.parse import quote

from msgspec import Struct

URL_CHARACTERS_MAX = 8192
RemoteImageUrl = Callable[[str], str | None]

_SPACE = "\t\n\f\r "
# Without a user part, backslashes, percent signs or characters beyond ASCII in the authority.
_URL = re.compile(
    r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{0,5}))?"
    r"([/?][^#\\\x00-\x1f\x7f]*)?(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)
DEFAULT_PORTS = {"http": 80, "https": 443}
_PORT_MAX = 65535
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
# What may be in a path or query without percent-encoding; no quote, bracket or backslash, so that
# the URL can be written between quotes in HTML and CSS.
_SAFE = "%/?:@!$&*+,;=~-._[]|"
_CANDIDATE = re.compile(rf"[{_SPACE},]*([^{_SPACE}]+)([^,]*)", re.ASCII)
_DESCRIPTOR = re.compile(r"[0-9]{1,5}w|[0-9]{1,3}(?:\.[0-9]{1,3})?x", re.ASCII)
_CANDIDATES_MAX = 100


class OwnPlaces(Struct, frozen=True):
    """Where a relay listens: the ports on this machine, and the names for which it answers."""

    ports: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()  # in lower case, without the dot at the end

    def has(self, host: str, port: int) -> bool:
        """Return whether a URL of this host and port may lead to the relay.

        Every IP address and every name without a dot may be this machine.
        """
        if port not in self.ports:
            return False
        name = host.rstrip(".")
        last = name.rpartition(".")[2]
        return (
            host.startswith("[")
            or "." not in name
            or _NUMBER.fullmatch(last) is not None
            or "localhost" in name.split(".")
            or name in self.names
        )


def remote_image_url(text: str, own: OwnPlaces) -> str | None:
    """Return an http or https URL as a document may have it, None if it stays a box."""
    found = _URL.fullmatch(text.strip(_SPACE)) if len(text) <= URL_CHARACTERS_MAX else None
    if found is None:
        return None
    scheme, host = found[1].lower(), found[2].lower()
    port = int(found[3]) if found[3] else DEFAULT_PORTS[scheme]
    if port > _PORT_MAX or own.has(host, port):
        return None
    authority = host if port == DEFAULT_PORTS[scheme] else f"{host}:{port}"
    return f"{scheme}://{authority}{quote(found[4] or '/', safe=_SAFE)}"


def srcset_candidates(text: str) -> Iterator[tuple[str, str]]:
    """Yield URL and descriptor of the first candidates of a srcset.

    HTML 4.8.4.2.1: a URL ends at white space, and at commas if no descriptor follows.
    """
    at = 0
    for _ in range(_CANDIDATES_MAX):
        if (found := _CANDIDATE.match(text, at)) is None:
            return
        at, url, descriptor = found.end(), found[1], found[2].strip(_SPACE)
        if url.endswith(","):
            at, url, descriptor = found.end(1), url.rstrip(","), ""
        yield url, descriptor


def remote_srcset(text: str, image_url: RemoteImageUrl) -> str:
    """Return a srcset of the candidates that may be loaded, "" if there are none."""
    candidates = []
    for source, descriptor in srcset_candidates(text):
        url = image_url(source)
        if url is not None and (not descriptor or _DESCRIPTOR.fullmatch(descriptor)):
            candidates.append(f"{url} {descriptor}".rstrip())
    return ", ".join(candidates)
