"""The host to which a development relay may send captured mail that a person releases.

`relay dev --release-to` names it as a URL: smtp://HOST:PORT or smtps://HOST:PORT, with
USER:PASSWORD@ before the host for a login. The release itself is release_message() of
relay/api/handlers.py. The delivery code treats it as the next hop of a route:
a login is sent only with TLS and a verified certificate, unless the host is on loopback.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from relay.message.nexthop import HopKind, NextHop
from relay.settings.tree import Route, RouteAuth
from relay.settings.values import is_ip, parse_domain

EXPECTED = "smtp://HOST:PORT or smtps://HOST:PORT, with USER:PASSWORD@ before HOST for a login"
_PORTS = {HopKind.SMTP: 25, HopKind.SMTPS: 465}
_NO_DOMAIN = ""  # of no recipient: the route is there for its TLS policy and its login


@dataclass(frozen=True, slots=True)
class ReleaseTarget:
    """A next hop, and the login for it, "" without one."""

    next_hop: NextHop
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URL. Raises ValueError with what was expected."""
        try:
            url = urlsplit(text)
            kind = HopKind(url.scheme)
            port = _PORTS[kind] if url.port is None else url.port
            hop = NextHop(kind, _host(url.hostname or ""), port)
        except (ValueError, KeyError):
            raise ValueError(EXPECTED) from None
        user, password = unquote(url.username or ""), unquote(url.password or "")
        has_more = url.path.strip("/") or url.query or url.fragment
        is_line = (user + password).isprintable()
        if not port or has_more or bool(user) != bool(password) or not is_line:
            raise ValueError(EXPECTED)
        return cls(hop, user, password)

    def route(self, folder: Path) -> Route:
        """Return a route that no recipient matches. Writes the password into `folder`."""
        auth = None
        if self.user:
            file = folder / "release-password"
            file.touch(mode=0o600)
            file.write_text(f"{self.password}\n", encoding="utf-8")
            auth = RouteAuth(self.user, file)
        return Route(domain=_NO_DOMAIN, next_hop=str(self.next_hop), auth=auth)


def _host(text: str) -> str:
    return text if is_ip(text) else parse_domain(text)
