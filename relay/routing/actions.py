"""What a [[route]]'s next_hop text means, and the credentials that go with it.

On the path: read once when the table is made.
Holds: a route that cannot be understood never becomes a route that does something else.
Fails: ValueError that names the route and says what was expected.
Standards: RFC 3463 (the code in front of a reject text).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from relay.message.nexthop import CAPTURE, LOCAL, HopKind, NextHop
from relay.message.status import split_reply
from relay.settings.checks import verifies
from relay.settings.tree import Route, RouteAuth, TlsLevel

REJECT_STATUS = "5.7.1"  # X.7.1: delivery not authorised, which is what a route that refuses says

_EXPECTED = "mx, local, capture, smtp://HOST:PORT, smtps://HOST:PORT or reject:TEXT"


@dataclass(frozen=True, slots=True)
class UseMx:
    """The MX hosts of the recipient's own domain."""


@dataclass(frozen=True, slots=True)
class Reject:
    """No such recipient: `status` is 5.y.z, `text` what the sender reads."""

    status: str
    text: str


Action = UseMx | Reject | NextHop


@dataclass(frozen=True, slots=True)
class HopTls:
    """The TLS that a next hop must offer; `level` None is that of [delivery]."""

    level: TlsLevel | None = None
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """A login for a next hop."""

    user: str
    password: str = field(repr=False)


def parse_action(text: str) -> Action:
    """Read a route's `next_hop`.

    "reject:5.1.6 Moved to example.org" carries its own enhanced status code; without one: 5.7.1.
    Raises ValueError that says what was expected.
    """
    if text == "mx":
        return UseMx()
    if text == "local":
        return LOCAL
    if text == "capture":
        return CAPTURE
    if text.startswith("reject:"):
        return _parse_reject(text.removeprefix("reject:").strip())
    try:
        hop = NextHop.parse(text)
    except ValueError:
        hop = None
    if hop is None or hop.kind not in (HopKind.SMTP, HopKind.SMTPS):
        raise ValueError(f"found {text!r}, expected {_EXPECTED}")
    return NextHop(hop.kind, hop.host.lower(), hop.port)


def read_credentials(routes: Sequence[tuple[Route, Action]]) -> Mapping[NextHop, Credentials]:
    """Read the password files of the routes that have `auth`; each comes with its parsed action.

    Raises ValueError for a route that has no host to log in to, for a file that cannot be read or
    is empty, and for two routes to one next hop of which one logs in and the other differently or
    not at all: the spool knows an entry's next hop, and not its route.
    """
    logins: dict[NextHop, Credentials | None] = {}
    for route, action in routes:
        hop = action if isinstance(action, NextHop) and action.host else None
        if route.auth and hop is None:
            raise ValueError(f"route {route.domain!r}: auth needs a smtp:// or smtps:// next hop")
        if hop is None:
            continue
        login = _login(route.domain, route.auth) if route.auth else None
        if logins.setdefault(hop, login) != login:
            raise ValueError(
                f"route {route.domain!r}: another route to {hop} logs in differently, or only one "
                "of them does; give the same auth to both, or the host a second name"
            )
    return {hop: login for hop, login in logins.items() if login}


def tls_of(route: Route) -> HopTls:
    """Return what the route asks of its hosts.

    A login makes "verify" the default, except where next_hop is a loopback address or localhost:
    the route's own text decides, so that no answer of the DNS lowers the level.
    """
    assert route.tls != "dane"  # refused when the configuration is read
    return HopTls("verify" if verifies(route) else route.tls, route.ca)


def read_tls(routes: Sequence[tuple[Route, Action]]) -> Mapping[NextHop, HopTls]:
    """Return what the routes ask of each configured host.

    Raises ValueError for two routes to one next hop that ask different things: the spool knows an
    entry's next hop, and not its route.
    """
    found: dict[NextHop, HopTls] = {}
    for route, action in routes:
        if not isinstance(action, NextHop) or not action.host:
            continue
        asked = tls_of(route)
        if found.setdefault(action, asked) != asked:
            raise ValueError(
                f"route {route.domain!r}: another route to {action} has another tls or ca; give "
                "the same to both, or the host a second name"
            )
    return found


def _login(domain: str, auth: RouteAuth) -> Credentials:
    path = auth.password_file
    try:
        password = path.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"route {domain!r}: password_file {path} cannot be read: {error}"
        ) from error
    if not password:
        raise ValueError(f"route {domain!r}: password_file {path} has an empty first line")
    return Credentials(auth.user, password)


def _parse_reject(text: str) -> Reject:
    reply = split_reply(text)
    status = reply.status or REJECT_STATUS
    if not status.startswith("5."):
        raise ValueError(f"found code {status}, expected 5.y.z: a reject is permanent")
    if not reply.text.strip() or not reply.text.isprintable():
        raise ValueError("found no printable text behind reject:, expected one line for the sender")
    return Reject(status, reply.text.strip())
