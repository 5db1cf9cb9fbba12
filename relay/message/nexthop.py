"""The next hop of a recipient: a value, and its text in the spool.

Routing chooses it per recipient, the spool stores it per entry, delivery dispatches on it.
str(hop) and NextHop.parse() are inverse. RFC 5321 2.3.5, 5.1.
"""

from enum import StrEnum
from typing import NamedTuple, Self


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

    It is a tuple because it is a dictionary key many times per message: hashing a tuple runs no
    Python code.
    """

    kind: HopKind
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        match self.kind:
            case HopKind.LOCAL | HopKind.CAPTURE:
                return str(self.kind)
            case HopKind.MX:
                return f"mx:{self.host}"
            case HopKind.SMTP | HopKind.SMTPS:
                host = f"[{self.host}]" if ":" in self.host else self.host
                return f"{self.kind}://{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text of str(). Raises ValueError with what was expected."""
        if text in (HopKind.LOCAL, HopKind.CAPTURE):
            return cls(HopKind(text))
        if text.startswith("mx:") and len(text) > len("mx:"):
            return cls(HopKind.MX, text.removeprefix("mx:"))
        scheme, found, rest = text.partition("://")
        host, _, port = rest.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if found and scheme in (HopKind.SMTP, HopKind.SMTPS) and host and port.isdecimal():
            number = int(port)
            if 0 < number < 65536:
                return cls(HopKind(scheme), host, number)
        raise ValueError(
            f"{text!r} is not a next hop: expected local, capture, mx:DOMAIN, smtp://HOST:PORT"
            " or smtps://HOST:PORT"
        )


LOCAL = NextHop(HopKind.LOCAL)
CAPTURE = NextHop(HopKind.CAPTURE)
