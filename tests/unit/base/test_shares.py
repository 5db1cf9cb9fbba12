"""Shares: what one key, two keys and a newcomer get of a bound, and what operators read of it."""

import pytest

from relay.base.clock import SystemClock
from relay.base.shares import NoPlaceError, Refusals, Shares
from tests.support.logs import capture_logs


def all_of(shares: Shares, key: str) -> int:
    """Take until the bound refuses; return what the key has."""
    while shares.take(key):
        pass
    return shares.of(key)


@pytest.mark.parametrize(
    ("limit", "first", "second"), [(1, 1, 0), (2, 1, 1), (3, 1, 1), (100, 50, 25), (1000, 500, 250)]
)
def test_a_key_gets_more_only_if_as_much_is_left_as_it_then_has(limit, first, second):
    shares = Shares("places", limit)
    assert [all_of(shares, "a"), all_of(shares, "b")] == [first, second]
    assert shares.take("newcomer") is (limit >= 3)


def test_a_single_large_size_takes_what_is_left_and_leaves_nothing_behind():
    octets = Shares("bodies", 140)
    assert octets.take("a", 140)
    assert not octets.take("b", 1)
    octets.give_back("a", 140)
    with octets.held("a", 60), pytest.raises(NoPlaceError, match="bodies"):
        octets.held("a", 60).__enter__()
    assert (octets.taken, octets.heaviest) == (0, None)


def test_relay_itself_takes_all_and_spare_places_are_for_it():
    shares = Shares("waits", 10)
    while shares.take("user", spare=4) or shares.take("other", spare=4):
        pass
    assert shares.taken < 7
    while shares.take(None):
        pass
    assert shares.taken == 10


def test_refusals_are_counted_and_one_line_a_minute_names_the_heaviest(monkeypatch):
    clock, now = SystemClock(), [100.0]
    monkeypatch.setattr(clock, "real_s", lambda: now[0])
    refusals = Refusals(clock)
    with capture_logs() as lines:
        for _ in range(5):
            refusals.add("bodies of a test", "a@example.test")
    assert refusals.full == ["bodies of a test"]
    now[0] += 60
    assert refusals.full == []
    refusals.add("bodies of a test", "b@example.test", 2)
    assert refusals.counts["bodies of a test"] == 7
    [line] = [line for line in lines if line["event"] == "bound is full"]
    assert (line["bound"], line["most"]) == ("bodies of a test", "a@example.test")
