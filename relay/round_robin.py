"""A queue that is a round robin among keys, so that a key with many items does not delay another.

It is not bounded: its users bound it. A key without items takes no memory.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")


class RoundRobinQueue(Generic[KeyT, ItemT]):
    """First in first out for each key, round robin among keys."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[KeyT, deque[ItemT]] = OrderedDict()  # the next key is first
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, key: KeyT, item: ItemT) -> None:
        """Add an item after those of its key."""
        self._by_key.setdefault(key, deque()).append(item)
        self._length += 1

    def pop(self, may_take: Callable[[KeyT], bool] = lambda _: True) -> ItemT | None:
        """Take the next item of a key that `may_take` accepts; None if there is none."""
        key = next(filter(may_take, self._by_key), None)
        if key is None:
            return None
        items = self._by_key[key]
        item = items.popleft()
        self._length -= 1
        if items:
            self._by_key.move_to_end(key)
        else:
            del self._by_key[key]
        return item
