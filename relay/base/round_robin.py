"""A queue that is a round robin among keys, so that a key with many items does not delay another.

Callers bound its size. A key without items takes no memory.
"""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT", bound=Hashable)


class RoundRobinQueue(Generic[KeyT, ItemT]):
    """First in first out for each key, round robin among keys.

    Iterates over the keys that have items, the next one first. Each item waits once. Methods raise
    KeyError for a key without items and for an item that does not wait.
    """

    def __init__(self) -> None:
        self._by_key: OrderedDict[KeyT, OrderedDict[ItemT, None]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[KeyT]:
        return iter(self._by_key)

    def push(self, key: KeyT, item: ItemT) -> None:
        """Add an item after those of its key."""
        items = self._by_key.setdefault(key, OrderedDict())
        self._length += item not in items
        items[item] = None

    def items(self, key: KeyT) -> Collection[ItemT]:
        """The items of a key, in their order; none for a key without items."""
        return self._by_key.get(key, {}).keys()

    def pop(self, key: KeyT) -> ItemT:
        """Take the first item of a key. The key goes to the end of the round."""
        item = next(iter(self._by_key[key]))
        self.remove(key, item)
        if key in self._by_key:
            self._by_key.move_to_end(key)
        return item

    def remove(self, key: KeyT, item: ItemT) -> None:
        """Remove an item. The key keeps its place."""
        items = self._by_key[key]
        del items[item]
        if not items:
            del self._by_key[key]
        self._length -= 1
