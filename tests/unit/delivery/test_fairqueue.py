"""Turns in a ready list: among lanes, among senders; what is taken out; what expires there."""

from dataclasses import replace

from relay.delivery.active_queue import Residents
from relay.delivery.fair_queue import PASSED_OVER_MAX, FairQueue
from relay.message.nexthop import NextHop
from relay.message.verdict import Source
from relay.spool.types import Claim, MessageFacts
from relay.spool.waiting import Lane, sender_key

FACTS = MessageFacts(
    "q", "", Source.SMTP, True, 0, 10**15, 10, "", "", "", "", False, False, "", "", ""
)
HOP = NextHop.parse("mx:a.test")


def a_claim(name: str, sender: str = "a@x.test", *, lane: Lane = Lane.NORMAL) -> Claim:
    return Claim(
        1, 1, replace(FACTS, id=name), HOP, (), 0, 1, 10, sender=sender_key(sender), lane=lane
    )


def filled(*claims: Claim) -> FairQueue:
    queue = FairQueue()
    for claim in claims:
        queue.push(claim)
    return queue


def order(queue: FairQueue) -> list[str]:
    return [claim.message.id for claim in queue.drain()]


def test_the_first_is_the_one_that_comes_next_and_it_stays() -> None:
    claims = [
        a_claim(f"{lane.name}{number}", f"{number % 3}@x.test", lane=lane)
        for number in range(30)
        for lane in Lane
    ]
    queue = filled(*claims)
    for _ in claims:
        assert queue.first is queue.first is queue.pop()
    assert queue.first is None


def test_one_sender_with_many_does_not_delay_anothers_one() -> None:
    bulk = [a_claim(f"bulk{number}", "bulk@x.test") for number in range(100)]
    queue = filled(*bulk, a_claim("single", "single@x.test"))
    assert [queue.pop().message.id for _ in range(3)] == ["bulk0", "single", "bulk1"]
    assert len(queue) == 98
    assert len(queue.drain()) == 98
    assert queue.pop() is None


def test_what_is_urgent_goes_first_and_nothing_waits_for_ever() -> None:
    urgent = [a_claim(f"high{number}", lane=Lane.HIGH) for number in range(30)]
    queue = filled(a_claim("low", lane=Lane.LOW), a_claim("down", lane=Lane.DOWN), *urgent)
    names = order(queue)
    assert names.index("low") == PASSED_OVER_MAX
    assert names.index("down") == PASSED_OVER_MAX + 1
    assert len(names) == 32


def test_a_lane_alone_keeps_its_order() -> None:
    queue = filled(*(a_claim(str(number), lane=Lane.LOW) for number in range(20)))
    assert order(queue) == [str(number) for number in range(20)]


def test_what_is_taken_out_has_no_turn() -> None:
    queue = filled(*(a_claim(name, f"{name}@x.test") for name in "abc"))
    assert queue.remove(("b", 1)).message.id == "b"
    assert queue.remove(("b", 1)) is None
    assert queue.remove(("z", 1)) is None
    assert order(queue) == ["a", "c"]


def test_only_what_waits_can_be_taken_from_memory() -> None:
    residents, queue = Residents(), filled(a_claim("waits"), a_claim("works"))
    for name in ("waits", "works"):
        residents.wait(a_claim(name), queue)
    queue.remove(("works", 1))  # a connection took it
    assert residents.take(("works", 1)) is None
    assert residents.take(("waits", 1)).message.id == "waits"
    assert residents.take(("waits", 1)) is None
    assert residents.take(("unknown", 1)) is None


def test_what_waits_expires_on_time_and_what_is_in_work_when_it_waits_again() -> None:
    residents, queue = Residents(), FairQueue()
    claims = {name: a_claim(name) for name in ("late", "soon", "works", "settled")}
    for end_us, name in ((30, "late"), (10, "soon"), (20, "works"), (5, "settled")):
        queue.push(claims[name])
        residents.wait(claims[name], queue)
        residents.expires(claims[name], end_us)
    for name in ("works", "settled"):
        queue.remove((name, 1))
    residents.forget(claims["settled"])
    assert [one.message.id for one in residents.take_expired(10)] == ["soon"]
    assert residents.next_end_us == 20
    assert [one.message.id for one in residents.take_expired(30)] == ["late"]
    queue.push(claims["works"])  # its connection found nobody, another one talks
    again_us = residents.next_end_us
    assert again_us is not None
    assert residents.take_expired(again_us - 1) == []
    assert residents.take_expired(again_us) == [claims["works"]]
    assert residents.next_end_us is None


def test_what_was_settled_long_before_its_end_leaves_nothing_behind() -> None:
    residents, queue = Residents(), FairQueue()
    for number in range(10_000):
        claim = a_claim(str(number))
        residents.wait(claim, queue)
        residents.expires(claim, 10**15)
        residents.forget(claim)
    assert len(residents._heap) < 200
    assert (residents._where, residents._ends) == ({}, {})
