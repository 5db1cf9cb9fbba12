"""The round robin: first in first out for each key, and keys take turns."""

from relay.base.round_robin import RoundRobinQueue


def filled(*words: str) -> RoundRobinQueue[str, str]:
    """A queue of words; the first letter is the key."""
    queue: RoundRobinQueue[str, str] = RoundRobinQueue()
    for word in words:
        queue.push(word[0], word)
    return queue


def order(queue: RoundRobinQueue[str, str]) -> list[str]:
    return [queue.pop(next(iter(queue))) for _ in range(len(queue))]


def test_a_key_that_is_passed_over_keeps_its_place():
    queue = filled("a1", "b1", "b2", "c1")
    assert queue.pop("b") == "b1"
    assert order(queue) == ["a1", "c1", "b2"]


def test_a_removed_item_does_not_come_and_its_key_keeps_its_place():
    queue = filled("a1", "a2", "b1", "c1")
    queue.remove("a", "a1")
    queue.remove("b", "b1")
    assert (len(queue), [*queue.items("a")], [*queue.items("b")]) == (2, ["a2"], [])
    assert order(queue) == ["a2", "c1"]
    assert not queue
