"""The round robin: first in first out for each key, and keys take turns."""

from relay.round_robin import RoundRobinQueue


def filled(*words: str) -> RoundRobinQueue[str, str]:
    """A queue of words; the first letter is the key."""
    queue: RoundRobinQueue[str, str] = RoundRobinQueue()
    for word in words:
        queue.push(word[0], word)
    return queue


def test_a_key_with_many_items_does_not_delay_another():
    queue = filled("a1", "a2", "a3", "b1", "c1")
    assert [queue.pop() for _ in range(6)] == ["a1", "b1", "c1", "a2", "a3", None]


def test_its_length_counts_what_waits():
    queue = filled("a1", "a2", "b1")
    assert len(queue) == 3
    queue.pop()
    assert len(queue) == 2


def test_a_key_that_may_not_be_taken_keeps_its_place():
    queue = filled("a1", "b1", "b2", "c1")
    assert queue.pop(lambda key: key != "a") == "b1"
    assert queue.pop(lambda key: key == "d") is None
    assert [queue.pop() for _ in range(3)] == ["a1", "c1", "b2"]
