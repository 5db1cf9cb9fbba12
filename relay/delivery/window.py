"""How many claims are in memory, shared by all next hops so that none of them can fill it.

On the path: the dispatcher tells it of each claim that comes and goes, and asks who may have more.
Holds: a next hop gets no more once it has as many claims, or bytes, as are left free: however many
    a stalled one has, the others find room, and k of them leave one part in k + 1.
Fails: never.
Standards: dynamic thresholds (Choudhury and Hahne, 1998); docs/design.md 5 and 7.8.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from relay.message.nexthop import NextHop
from relay.spool.types import Claim

WINDOW_CLAIMS = 2000
WINDOW_BYTES = 64 * 1024 * 1024  # of contents that came with their claims


@dataclass(slots=True)
class _Share:
    """What a next hop has in the window."""

    claims: int = 0
    size_bytes: int = 0


class Window:
    """Counts claims and their inline content, in all and per next hop."""

    def __init__(
        self, *, claims_max: int = WINDOW_CLAIMS, size_max_bytes: int = WINDOW_BYTES
    ) -> None:
        self._claims_max = claims_max
        self.claims_left = claims_max
        self._left_bytes = size_max_bytes
        self._shares: dict[NextHop, _Share] = {}
        self._full: set[NextHop] = set()

    @property
    def full(self) -> AbstractSet[NextHop]:
        """The next hops that may have no more for now."""
        return self._full

    @property
    def is_worth_filling(self) -> bool:
        """Whether so much is left that fetching more is worth a look."""
        return self.claims_left > self._claims_max // 4

    def has_room_for(self, next_hop: NextHop) -> bool:
        """Whether another claim for `next_hop`, with its content, may come."""
        return self.claims_left > 0 and self._left_bytes > 0 and next_hop not in self._full

    def enter(self, claim: Claim) -> None:
        """Count a claim in; it has come, so it is counted wherever the limits are."""
        share = self._shares.setdefault(claim.next_hop, _Share())
        self._count(share, claim, 1)
        if share.claims >= self.claims_left or share.size_bytes >= self._left_bytes:
            self._full.add(claim.next_hop)

    def leave(self, claim: Claim) -> bool:
        """Count a claim out; True when its next hop was full and may have more again.

        It may when it has half of what made it full: so that a look for more finds a batch.
        """
        share = self._shares[claim.next_hop]
        self._count(share, claim, -1)
        if not share.claims:
            del self._shares[claim.next_hop]
        if claim.next_hop not in self._full:
            return False
        if 2 * share.claims > self.claims_left or 2 * share.size_bytes > self._left_bytes:
            return False
        self._full.remove(claim.next_hop)
        return True

    def _count(self, share: _Share, claim: Claim, sign: int) -> None:
        size_bytes = sign * len(claim.content or b"")
        share.claims += sign
        share.size_bytes += size_bytes
        self.claims_left -= sign
        self._left_bytes -= size_bytes
