"""Fair turns among senders for anything that is scarce.

On the path: slots and searches keep here who waits.
Holds: what is for new mail comes before what is for the queue, but not twice in a row while both
    wait; who has the least comes first; round robin among equals; first in, first out for each.
Fails: KeyError or ValueError for what does not wait here.
Standards: none.
"""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

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
