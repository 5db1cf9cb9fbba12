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
    CAPTURE = "capture"  # stored here, never sent


HERE = frozenset({HopKind.LOCAL, HopKind.CAPTURE})  # without a host


class NextHop(NamedTuple):
    """A next hop; `host` is a domain for MX, a host name or address for SMTP and SMTPS, else "".

    `route` names the route that chose it, "" where none did: the domain's own MX, a mailbox here,
    or where an operator sent the mail (EntryExtra.chosen). str() is without it.

    It is a tuple because it is a dictionary key many times per message: hashing a tuple runs no
    Python code.
    """

    kind: HopKind
    host: str = ""
    port: int = 0
    route: str = ""

    def __str__(self) -> str:
        match self.kind:
            case HopKind.LOCAL | HopKind.CAPTURE:
                return str(self.kind)
            case HopKind.MX:
                return f"mx:{self.host}"
            case HopKind.SMTP | HopKind.SMTPS:
                host = f"[{self.host}]" if ":" in self.host else self.host
                return f"{self.kind}://{host}:{self.port}"

    @property
    def without_route(self) -> Self:
        """The same next hop, whatever route chose it."""
        return self._replace(route="")

    @property
    def key(self) -> str:
        """The text in the spool: that of str(), and the name of the route after a space."""
        return f"{self} {self.route}" if self.route else str(self)

    @classmethod
    def parse(cls, key: str) -> Self:
        """Parse `key`. Raises ValueError with what was expected."""
        text, _, route = key.partition(" ")
        if text in (HopKind.LOCAL, HopKind.CAPTURE):
            return cls(HopKind(text))
        if text.startswith("mx:") and len(text) > len("mx:"):
            return cls(HopKind.MX, text.removeprefix("mx:"), route=route)
        scheme, found, rest = text.partition("://")
        host, _, port = rest.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if found and scheme in (HopKind.SMTP, HopKind.SMTPS) and host and port.isdecimal():
            number = int(port)
            if 0 < number < 65536:
                return cls(HopKind(scheme), host, number, route)
        raise ValueError(
            f"{key!r} is not a next hop: expected local, capture, mx:DOMAIN, smtp://HOST:PORT"
            " or smtps://HOST:PORT"
        )


LOCAL = NextHop(HopKind.LOCAL)
CAPTURE = NextHop(HopKind.CAPTURE)


class Destination(Struct, frozen=True):
    """Where a reroute sends mail for an address. `chosen`: the command named the next hop, and no
    route has to match.
    """

    next_hop: NextHop
    chosen: bool = False
