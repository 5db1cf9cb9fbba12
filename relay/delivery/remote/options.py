"""How sites are used: what [delivery] says, in the words of this room.

On the path: app makes it, every site has it.
Holds: frozen; durations in seconds.
Fails: never.
Standards: none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from relay.delivery.remote.rate import Rate
from relay.settings.tree import TlsLevel
from relay.smtp import Timeouts
from relay.spool.types import Claim

_KNOWN_S_MAX = 300.0  # so long at most a refusal counts


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """`implicit` and `ca` are as in smtp.Target. `rate` None is no limit. `down_s` is how long it
    counts that a host gave no connection, for mail that was never tried; `waited_s` how long a
    claim has waited for this try.
    """

    ehlo_name: str
    tls: TlsLevel
    timeouts: Timeouts
    connections_max: int
    down_s: float
    idle_s: float = 5.0
    implicit: bool = False
    ca: Path | None = None
    rate: Rate | None = None
    waited_s: Callable[[Claim], float] = lambda _claim: 0.0

    def trust_s(self, claim: Claim) -> float:
        """How old what is known of a host may be, to count for a claim: no older than half of what
        it has waited, so that each wait ends with a look at the host.
        """
        if not claim.attempts:
            return self.down_s
        return max(self.down_s, min(self.waited_s(claim) / 2, _KNOWN_S_MAX))
