"""The TLS policy of a host: whether TLS must be used, and which certificates are accepted.

RouteTable.options_for() has the policy of a next hop, from its route and [delivery]; decide_tls()
makes it that of each host. Sites and connections are shared only under equal policies. See
RFC 7435 (opportunistic), RFC 8314 (implicit TLS), RFC 9525 (names).
"""

from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

TlsLevel = Literal["none", "opportunistic", "required", "verify"]
CONFIGURATION = "configuration"  # who demands a level that no route names
USUAL_POLICY = f"{CONFIGURATION}: opportunistic"  # of an attempt; it is not recorded
_LAX = ("none", "opportunistic")


class TlsPolicy(Struct, frozen=True):
    """The TLS that a host must have; `implicit` is TLS from the first byte.

    "verify" trusts the system's store, or the file `ca` alone, and requires one of `names` in the
    certificate; () is the host's own name. The other levels accept any certificate. `ca_digest`
    tells the content of the file from an earlier one.
    """

    level: TlsLevel = "opportunistic"
    implicit: bool = False
    ca: Path | None = None
    names: tuple[str, ...] = ()
    ca_digest: str = ""

    def for_host(self, name: str) -> "TlsPolicy":
        """Return the policy for one host of the next hop, with the names that are compared."""
        return replace(self, names=(self.names or (name,)) if self.level == "verify" else ())


class TlsDecision(Struct, frozen=True):
    """What one host must have. `policy` is part of the keys of sites and connections; who demands
    it, `by`, is not: the same connection serves all who demand the same.
    """

    policy: TlsPolicy
    by: str = CONFIGURATION  # or "route NAME"


def decide_tls(
    name: str, policy: TlsPolicy, *, by: str = CONFIGURATION, has_login: bool = False
) -> TlsDecision:
    """Return what the host `name` must have. Delivery and `explain` ask here, and nothing else
    decides: connect() does what the policy says.

    `policy` is that of the next hop, `by` who demands it: a route that names the level, or the
    configuration. TLS from the first byte is "required" at least; so is opportunistic TLS if a
    login goes to another machine.

    A route decides alone. What a domain or the DNS publishes has to come in here, as a further
    argument: it counts only where `by` is CONFIGURATION, and raises the level, never lowers it.
    """
    level = policy.level
    if level in _LAX and (policy.implicit or (has_login and level == "opportunistic")):
        policy = replace(policy, level="required")
    return TlsDecision(policy.for_host(name), by)
