"""The proxy of a development relay: it answers for some hosts itself and connects to none.

A tunnel to port 443 of one of them (CONNECT, RFC 9110 9.3.6) ends at the relay's own HTTP over TLS.
Every other request to a proxy is refused.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from msgspec import Struct

from relay.front_door.http.errors import ApiError, bad_request, quoted

# Clients show it, and no body: Python's "Tunnel connection failed: 403 Forbidden: …"
REFUSAL_PHRASE = "Forbidden: not a host of this proxy; name it in NO_PROXY"
_PORT = "443"
_WAYS_OUT = (
    "Two ways out: name the host in NO_PROXY, or unset HTTPS_PROXY and lead Graph's names here by "
    "the hosts file (docs/unmodified-programs.md)."
)


class TunnelHosts(Struct, frozen=True):
    """The hosts for which the relay answers as a proxy, in lower case."""

    names: frozenset[str] = frozenset()
    # returns the present TLS context; None: there are no names
    context: Callable[[], ssl.SSLContext] | None = None


def connect_error(
    target: bytes, fields: Iterable[tuple[bytes, bytes]], hosts: TunnelHosts
) -> ApiError | None:
    """Return the error for a CONNECT, None if its tunnel may be opened."""
    for name, value in fields:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            text = f"CONNECT: found {name.decode()}, expected a request without content."
            return bad_request(text)
    text = target.decode("latin-1")
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        return bad_request(f"CONNECT: found {quoted(text)}, expected HOST:PORT.")
    if port == _PORT and host.lower().removesuffix(".") in hosts.names:
        return None
    return _refused(f"CONNECT to {quoted(text)}", hosts)


def absolute_form_error(url: bytes, hosts: TunnelHosts) -> ApiError:
    """Return the error for a request in absolute form, as proxies get it (RFC 9112 3.2.2)."""
    text = url.decode("latin-1")
    with contextlib.suppress(ValueError):  # the request names the whole URL
        text = urlsplit(text).netloc or text
    return _refused(f"A request for {quoted(text)}", hosts)


def _refused(what: str, hosts: TunnelHosts) -> ApiError:
    proxy = f"a proxy for port {_PORT} of {', '.join(sorted(hosts.names))}"
    if not hosts.names:
        proxy = "no proxy, because other machines can reach it"
    text = f"{what}: this development relay is {proxy}, and connects to no other host. {_WAYS_OUT}"
    return ApiError(403, "ErrorAccessDenied", text)
