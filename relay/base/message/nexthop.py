"""The next hop of a recipient: a value, and its text in the spool.

Routing chooses it per recipient, the spool stores it per entry, delivery dispatches on it. Two
routes to one host are two next hops. NextHop.key and NextHop.parse() are inverse. RFC 5321 2.3.5,
5.1.
"""

from enum import StrEnum
from typing import NamedTuple, Self

from msgspec import Struct


class HopKind(StrEnum):
    """The kind of a next hop."""

    LOCAL = "local"  # a mailbox of this relay
    MX = "mx"  # the MX hosts of `host`, a domain
    SMTP = "smtp"  # this host and port
    SMTPS = "smtps"  # the same, TLS from the first byte
    LMTP = "lmtp"  # mailboxes at this host and port, or at a Unix socket (RFC 2033)
    GRAPH = "graph"  # Microsoft Graph at this host and port, by HTTPS
    CAPTURE = "capture"  # stored here, never sent


_SOCKET = "lmtp:unix:"
_SMTP_PORT = 25  # never LMTP's: RFC 2033 5
ROUTE_PREFIX = "route:"  # of a rule's next hop that names a route
BY_RULE = "rule"  # the name of no route
HERE = frozenset({HopKind.LOCAL, HopKind.CAPTURE})  # without a host
HTTPS_PORT = 443
_WITH_PORT = (HopKind.SMTP, HopKind.SMTPS, HopKind.LMTP, HopKind.GRAPH)
_BEFORE_MAILBOX = "\t"  # in a key; no name of a route has it


def without_mailbox(key: str) -> str:
    """Return the key of a next hop as it is shown: without the mailbox."""
    return key.partition(_BEFORE_MAILBOX)[0]


def text_and_route(key: str) -> tuple[str, str]:
    """Return the text of a next hop and the name of its route, by its key. Never fails."""
    text, _, route = without_mailbox(key).partition(" ")
    return text, route


class NextHop(NamedTuple):
    """A next hop; `host` is a domain for MX, a host name or address for SMTP, SMTPS, LMTP and
    GRAPH, for LMTP also the path of a Unix socket, else "".

    `route` names the route that chose it. It is "" for the domain's own MX, for a mailbox here, and
    for a next hop that an operator chose (EntryExtra.chosen). BY_RULE means that a mail rule named
    the host; then no route's login is used. `mailbox` is the mailbox that logs in, "" where the
    route names one login for all mail. str() contains neither.

    It is a tuple because it is a dictionary key many times per message: hashing a tuple runs no
    Python code.
    """

    kind: HopKind
    host: str = ""
    port: int = 0
    route: str = ""
    mailbox: str = ""

    def __str__(self) -> str:
        match self.kind:
            case HopKind.LOCAL | HopKind.CAPTURE:
                return str(self.kind)
            case HopKind.MX:
                return f"mx:{self.host}"
            case HopKind.LMTP if self.is_socket:
                return f"{_SOCKET}{self.host}"
            case HopKind.SMTP | HopKind.SMTPS | HopKind.LMTP | HopKind.GRAPH:
                host = f"[{self.host}]" if ":" in self.host else self.host
                return f"{self.kind}://{host}:{self.port}"

    @property
    def is_socket(self) -> bool:
        """Whether it is a Unix socket, which has neither a name nor TLS."""
        return self.host.startswith("/")

    @property
    def without_route(self) -> Self:
        """The next hop without its route and mailbox."""
        return self._replace(route="", mailbox="")

    @property
    def key(self) -> str:
        """The text in the spool: that of str(), after a space the name of the route, and after a
        tab the mailbox.
        """
        key = f"{self} {self.route}" if self.route else str(self)
        return f"{key}{_BEFORE_MAILBOX}{self.mailbox}" if self.mailbox else key

    @classmethod
    def parse(cls, key: str) -> Self:
        """Parse `key`. Raises ValueError with what was expected."""
        text, route = text_and_route(key)
        mailbox = key.partition(_BEFORE_MAILBOX)[2]
        if text in (HopKind.LOCAL, HopKind.CAPTURE):
            return cls(HopKind(text))
        if text.startswith("mx:") and len(text) > len("mx:"):
            return cls(HopKind.MX, text.removeprefix("mx:"), route=route)
        if text.startswith(f"{_SOCKET}/") and key.isprintable():
            return cls(HopKind.LMTP, text.removeprefix(_SOCKET), route=route)
        scheme, separator, rest = text.partition("://")
        host, _, port = rest.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        is_host = host and not host.startswith("/") and port.isdecimal()
        if separator and scheme in _WITH_PORT and is_host:
            number = int(port)
            is_other = scheme == HopKind.LMTP and number == _SMTP_PORT
            if 0 < number < 65536 and not is_other:
                return cls(HopKind(scheme), host, number, route, mailbox)
        raise ValueError(
            f"{key!r} is not a next hop: expected local, capture, mx:DOMAIN, smtp://HOST:PORT,"
            " smtps://HOST:PORT, lmtp://HOST:PORT (not port 25), lmtp:unix:PATH or graph://HOST:PORT"
        )


LOCAL = NextHop(HopKind.LOCAL)
CAPTURE = NextHop(HopKind.CAPTURE)


class Destination(Struct, frozen=True):
    """Where a reroute sends mail for an address.

    `chosen`: the command named the next hop, and no route has to match. `held` is why the mail
    is held there, "" if it is not.
    """

    next_hop: NextHop
    chosen: bool = False
    held: str = ""
