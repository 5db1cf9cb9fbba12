"""The Host field: whether it is there once, and whether it names this server.

On the path: the protocol asks for every request, before anything else looks at it.
Holds: pure. A page of another site that resolves its own name to this machine (DNS rebinding) is
refused where names are given.
Fails: never; returns what is wrong.
Standards: RFC 9112 3.2; RFC 9110 7.2, 7.4 (421); RFC 6761 6.3 (localhost).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from relay.http.errors import ApiError, shown

# RFC 3986 3.2.2: an IP literal or a registered name, which may be empty; then a port
_HOST = re.compile(r"(\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")


@dataclass(frozen=True, slots=True)
class HostNames:
    """The names that a server answers to, lower case, besides those of the loopback interface."""

    names: frozenset[str] = frozenset()

    def has(self, name: str) -> bool:
        """Whether a host without its port is one of them."""
        name = name.lower().removesuffix(".")
        if name in self.names or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            return ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False


def host_fault(
    named: Sequence[bytes], *, is_required: bool, allowed: HostNames | None = None
) -> ApiError | None:
    """Return why a request with these Host fields is refused, None if it is not.

    Without `allowed` every host will do.
    """
    if not named and not is_required:
        return None
    if len(named) != 1:
        found = f"{len(named)} Host fields" if named else "none"
        return ApiError(400, "BadRequest", f"Host: found {found}, expected one with the host name.")
    text = named[0].decode("latin-1")
    parts = _HOST.fullmatch(text)
    if parts is None:
        return ApiError(
            400, "BadRequest", f"Host: found {shown(text)}, expected NAME or NAME:PORT."
        )
    if allowed is None or allowed.has(parts[1]):
        return None
    message = (
        f"Host: found {shown(text)}. This development relay answers to localhost and to loopback "
        "addresses; to use another name, start it with: relay dev --host NAME"
    )
    return ApiError(421, "MisdirectedRequest", message)
