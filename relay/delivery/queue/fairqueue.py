"""Claims that wait for a connection: urgent ones first, with fair turns among senders.

On the path: a site keeps its ready claims here, the dispatcher those for mailboxes and for the
    resolver; who has time for one takes it out.
Holds: bounded by the scheduler's window; a sender with many does not delay another's one; a lane
    that was passed over often enough goes first, so none waits for ever.
Fails: never.
Standards: round robin.
"""

from collections import OrderedDict
from collections.abc import Iterator

from relay.spool.types import Claim, Key
from relay.spool.waiting import Lane

PASSED_OVER_MAX = 8  # turns that better lanes may have before one of this lane


class FairQueue:
    """By lane; round robin among a lane's senders; first in, first out for each sender."""

    def __init__(self) -> None:
        self._claims: dict[Key, Claim] = {}
        self._lanes = {lane: _Turns() for lane in Lane}

    def __len__(self) -> int:
        return len(self._claims)

    def __iter__(self) -> Iterator[Claim]:
        """In the order in which they came."""
        return iter(self._claims.values())

    def push(self, claim: Claim) -> None:
        """Put a claim behind those of its lane and sender."""
        key = claim.key
        self._claims[key] = claim
        self._lanes[claim.lane].push(key, claim)

    def pop(self) -> Claim | None:
        """Take the claim whose turn it is."""
        if not self._claims:  # it is asked after each message
            return None
        waiting = [turns for turns in self._lanes.values() if turns.by_sender]
        ours = waiting[0]
        if len(waiting) > 1:  # nearly never
            ours = _whose_turn(waiting)
            for turns in waiting:
                turns.passed_over += 1
        ours.passed_over = 0
        key, claim = ours.pop()
        del self._claims[key]
        return claim

    @property
    def first(self) -> Claim | None:
        """The claim whose turn it is, which stays here."""
        waiting = [turns for turns in self._lanes.values() if turns.by_sender]
        return _whose_turn(waiting).first if waiting else None

    def get(self, key: Key) -> Claim | None:
        """The claim of this entry, which stays here; None where it does not wait here."""
        return self._claims.get(key)

    def remove(self, key: Key) -> Claim | None:
        """Take the claim of this entry, None where it does not wait here."""
        claim = self._claims.pop(key, None)
        if claim is not None:
            self._lanes[claim.lane].remove(key, claim)
        return claim

    def drain(self) -> list[Claim]:
        """Take everything."""
        taken = []
        while (claim := self.pop()) is not None:
            taken.append(claim)
        return taken


class _Turns:
    """One lane: the sender whose turn it is comes first."""

    def __init__(self) -> None:
        self.by_sender: OrderedDict[int, OrderedDict[Key, Claim]] = OrderedDict()
        self.passed_over = 0

    def push(self, key: Key, claim: Claim) -> None:
        self.by_sender.setdefault(claim.sender, OrderedDict())[key] = claim

    @property
    def first(self) -> Claim:
        return next(iter(next(iter(self.by_sender.values())).values()))

    def pop(self) -> tuple[Key, Claim]:
        sender, waiting = self.by_sender.popitem(last=False)
        key_and_claim = waiting.popitem(last=False)
        if waiting:
            self.by_sender[sender] = waiting
        return key_and_claim

    def remove(self, key: Key, claim: Claim) -> None:
        waiting = self.by_sender[claim.sender]
        del waiting[key]
        if not waiting:
            del self.by_sender[claim.sender]


def _whose_turn(waiting: list[_Turns]) -> _Turns:
    """The lane whose turn it is, of those in which something waits."""
    return next((one for one in waiting if one.passed_over >= PASSED_OVER_MAX), waiting[0])
