"""Claims that wait for a connection: urgent ones first, with fair turns among senders.

On the path: a site keeps its ready claims here, the dispatcher those for mailboxes and for the
    resolver; who has time for one takes it out.
Holds: bounded by the scheduler's window; a sender with many does not delay another's one; a lane
    that was passed over often enough goes first, so none waits for ever.
Fails: never.
Standards: round robin.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

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


T = TypeVar("T")
_NOTHING: Counter[int] = Counter()


@dataclass(frozen=True, slots=True, eq=False)
class Turn(Generic[T]):
    """What waits, in whose turn, and whether it is for mail that was just accepted."""

    what: T
    sender: int
    is_new: bool


class Turns(Generic[T]):
    """Those that wait, each of which is there once."""

    def __init__(self) -> None:
        self._lines: dict[bool, _Line[T]] = {True: _Line(), False: _Line()}  # new mail, the queue
        self._was_new = False

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def push(self, turn: Turn[T]) -> None:
        """Put it behind those of its sender and kind."""
        self._lines[turn.is_new].push(turn)

    def is_before(self, turn: Turn[T], other: Turn[T]) -> bool:
        """Whether `turn`, which is not here, would come before `other`, which is, as far as their
        senders' own turns go.
        """
        ahead = self._lines[turn.is_new].length_of(turn.sender)
        before = self._lines[other.is_new].index(other)
        return (not turn.is_new, ahead) < (not other.is_new, before)

    def next(self, having: Counter[int] = _NOTHING) -> list[Turn[T]]:
        """What comes next, and behind it what comes if that may not. `having` is what senders
        have already.
        """
        order = (False, True) if self._was_new else (True, False)
        return [self._lines[is_new].first(having) for is_new in order if self._lines[is_new]]

    def take(self, turn: Turn[T]) -> None:
        """It waits no more, for it has had its turn."""
        self._was_new = turn.is_new
        self._lines[turn.is_new].take(turn)

    def remove(self, turn: Turn[T]) -> None:
        """It waits no more."""
        self._lines[turn.is_new].remove(turn)


class _Line(Generic[T]):
    def __init__(self) -> None:
        self._by_sender: OrderedDict[int, deque[Turn[T]]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, turn: Turn[T]) -> None:
        self._by_sender.setdefault(turn.sender, deque()).append(turn)
        self._length += 1

    def length_of(self, sender: int) -> int:
        return len(self._by_sender.get(sender, ()))

    def index(self, turn: Turn[T]) -> int:
        return self._by_sender[turn.sender].index(turn)

    def first(self, having: Counter[int]) -> Turn[T]:
        sender = next(iter(self._by_sender))
        if having:
            sender = min(self._by_sender, key=having.__getitem__)
        return self._by_sender[sender][0]

    def take(self, turn: Turn[T]) -> None:
        self.remove(turn)
        if turn.sender in self._by_sender:
            self._by_sender.move_to_end(turn.sender)

    def remove(self, turn: Turn[T]) -> None:
        waiting = self._by_sender[turn.sender]
        waiting.remove(turn)
        if not waiting:
            del self._by_sender[turn.sender]
        self._length -= 1
