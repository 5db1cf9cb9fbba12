"""Where the copy for some recipients goes next: one frozen value, and its text in the spool.

On the path: routing makes it per recipient, the spool keeps it per entry, delivery dispatches on
    it.
Holds: str(hop) and NextHop.parse are inverse.
Fails: ValueError for a text that is no next hop.
Standards: RFC 5321 2.3.5, 5.1.
"""

from enum import StrEnum
from typing import NamedTuple, Self


class HopKind(StrEnum):
    """What kind of place it is."""

    LOCAL = "local"  # a mailbox of this relay
    MX = "mx"  # the MX hosts of `host`, a domain
    SMTP = "smtp"  # this host and port
    SMTPS = "smtps"  # the same, TLS from the first byte
    CAPTURE = "capture"  # kept here, never sent


class NextHop(NamedTuple):
    """A next hop; `host` is a domain for MX, a host name or address for SMTP and SMTPS, else "".

    A tuple, for it is looked up many times for each message: that costs no call of Python's.
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
        """Read what str() wrote.

        Raises ValueError that says what was expected.
        """
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
            f"{text!r} is no next hop: expected local, capture, mx:DOMAIN, smtp://HOST:PORT"
            " or smtps://HOST:PORT"
        )


LOCAL = NextHop(HopKind.LOCAL)
CAPTURE = NextHop(HopKind.CAPTURE)
