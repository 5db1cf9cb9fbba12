"""Fair turns among senders for anything that is scarce.

On the path: slots and searches keep here who waits.
Holds: who has the least comes first; round robin among equals; first in, first out for each.
Fails: KeyError or ValueError for what does not wait here.
Standards: none.
"""

from collections import Counter, OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")
_NOTHING: Counter[int] = Counter()


class Turns(Generic[T]):
    """What waits, by sender."""

    def __init__(self) -> None:
        self._by_sender: OrderedDict[int, deque[T]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, sender: int, one: T) -> None:
        """Put it behind those of its sender."""
        self._by_sender.setdefault(sender, deque()).append(one)
        self._length += 1

    def ahead(self, sender: int, one: T | None = None) -> int:
        """How many of this sender's have their turn before `one`, or before what comes next."""
        waiting = self._by_sender.get(sender, ())
        return len(waiting) if one is None else waiting.index(one)

    def peek(self, having: Counter[int] = _NOTHING) -> tuple[int, T]:
        """The sender and what has the next turn; there must be one. `having` is what senders have
        already.
        """
        sender = next(iter(self._by_sender))
        if having:
            sender = min(self._by_sender, key=having.__getitem__)
        return sender, self._by_sender[sender][0]

    def pop(self, having: Counter[int] = _NOTHING) -> T:
        """Take what peek() shows."""
        sender, one = self.peek(having)
        waiting = self._by_sender.pop(sender)
        waiting.popleft()
        if waiting:
            self._by_sender[sender] = waiting
        self._length -= 1
        return one

    def remove(self, sender: int, one: T) -> None:
        """It waits no more."""
        waiting = self._by_sender[sender]
        waiting.remove(one)
        if not waiting:
            del self._by_sender[sender]
        self._length -= 1
