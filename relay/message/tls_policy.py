"""The TLS policy of a host: whether TLS must be used, and which certificates are accepted.

RouteTable.options_for() has the policy of a next hop, from its route and [delivery]. The resolver
may give a host a policy of its own, from the DNS (RFC 7672) or from the domain (RFC 8461). Sites
and connections are shared only under equal policies. See RFC 7435 (opportunistic), RFC 9525
(names).
"""

from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

TlsLevel = Literal["none", "opportunistic", "required", "verify"]
CONFIGURATION = "configuration"  # who demands a level that no route names
USUAL_POLICY = f"{CONFIGURATION}: opportunistic"  # of an attempt; it is not recorded
_LEVELS: tuple[TlsLevel, ...] = ("none", "opportunistic", "required", "verify")


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

    def for_host(self, name: str, own: "TlsPolicy | None" = None) -> "TlsPolicy":
        """Return the policy for one host of the next hop, with the names that are compared.

        The host's `own` policy replaces this one if its level is higher: nothing that is found
        outside the configuration lowers a level. Only the next hop decides on `implicit`.
        """
        found = own if own and _LEVELS.index(own.level) > _LEVELS.index(self.level) else self
        names = (found.names or (name,)) if found.level == "verify" else ()
        return replace(found, implicit=self.implicit, names=names)
