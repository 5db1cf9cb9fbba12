"""Turns among senders."""

from collections import Counter

import pytest

from relay.delivery.fair_queue import Turn, Turns


def some(words: str) -> dict[str, Turn[str]]:
    """`a1` is for the sender 1; with a `+` in front it is for new mail."""
    return {
        word: Turn(word.strip("+"), int(word[-1]), is_new=word.startswith("+"))
        for word in words.split()
    }


def taken(turns: Turns[str], having: Counter[int] | None = None) -> str:
    order = []
    while turns:
        turn = turns.next(having or Counter())[0]
        turns.take(turn)
        order.append(turn.what)
    return " ".join(order)


@pytest.mark.parametrize(
    ("waiting", "having", "order"),
    [
        ("a1 b1 c1 d2 e2 f3", "", "a1 d2 f3 b1 e2 c1"),
        ("a1 b1 c1 d2 e2 f3", "112", "f3 d2 e2 a1 b1 c1"),
        ("a1 b1 +c1 +d1", "", "c1 a1 d1 b1"),
        ("a1 +b2 +c2 +d2 +e3", "", "b2 a1 e3 c2 d2"),
        ("a1 +b2 +c2", "2222", "b2 a1 c2"),
    ],
)
def test_turns(waiting: str, having: str, order: str) -> None:
    turns: Turns[str] = Turns()
    for turn in some(waiting).values():
        turns.push(turn)
    assert len(turns) == len(waiting.split())
    assert taken(turns, Counter(map(int, having))) == order
    assert len(turns) == 0


def test_who_may_not_have_its_turn_leaves_it_to_the_next() -> None:
    turns: Turns[str] = Turns()
    waiting = some("a1 +b2")
    for turn in waiting.values():
        turns.push(turn)
    assert [turn.what for turn in turns.next()] == ["b2", "a1"]
    turns.remove(waiting["+b2"])
    assert [turn.what for turn in turns.next()] == ["a1"]


@pytest.mark.parametrize(
    ("one", "other", "is_before"),
    [
        ("x1", "c1", False),  # behind three of its own
        ("x2", "c1", True),
        ("x2", "a1", False),
        ("+x1", "a1", True),
        ("+x3", "+d3", False),
        ("x2", "+d3", False),
    ],
)
def test_what_would_come_earlier(one: str, other: str, is_before: bool) -> None:
    turns: Turns[str] = Turns()
    waiting = some("a1 b1 c1 +d3")
    for turn in waiting.values():
        turns.push(turn)
    (new,) = some(one).values()
    assert turns.is_before(new, waiting[other]) is is_before
