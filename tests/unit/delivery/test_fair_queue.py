"""Fair queues: order among priority levels and senders, and expiry in memory."""

from msgspec.structs import replace

from relay.base.message.envelope import Envelope, MessageFacts, Source
from relay.base.message.nexthop import NextHop
from relay.delivery.active_queue import ClaimsInMemory
from relay.delivery.fair_queue import PASSED_OVER_MAX, ClaimQueue
from relay.store.spool.types import Claim, PriorityLevel, sender_key

FACTS = MessageFacts("q", Envelope(""), Source.SMTP, True, 0, 10**15)
HOP = NextHop.parse("mx:a.test")


def a_claim(
    name: str, sender: str = "a@x.test", *, level: PriorityLevel = PriorityLevel.NORMAL
) -> Claim:
    return Claim(
        1, 1, replace(FACTS, id=name), HOP, (), 0, 1, 10, sender=sender_key(sender), level=level
    )


def filled(*claims: Claim) -> ClaimQueue:
    queue = ClaimQueue()
    for claim in claims:
        queue.push(claim)
    return queue


def order(queue: ClaimQueue) -> list[str]:
    return [claim.message.id for claim in queue.drain()]


def test_urgent_claims_go_first_and_none_waits_for_ever() -> None:
    urgent = [a_claim(f"high{number}", level=PriorityLevel.HIGH) for number in range(30)]
    queue = filled(
        a_claim("low", level=PriorityLevel.LOW),
        a_claim("down", level=PriorityLevel.UNREACHABLE),
        *urgent,
    )
    names = order(queue)
    assert names.index("low") == PASSED_OVER_MAX
    assert names.index("down") == PASSED_OVER_MAX + 1
    assert len(names) == 32


def test_a_waiting_claim_expires_on_time_and_a_busy_one_when_it_waits_again() -> None:
    claims_in_memory, queue = ClaimsInMemory(), ClaimQueue()
    claims = {name: a_claim(name) for name in ("late", "soon", "works", "settled")}
    for end_us, name in ((30, "late"), (10, "soon"), (20, "works"), (5, "settled")):
        queue.push(claims[name])
        claims_in_memory.track(claims[name], queue)
        claims_in_memory.track_expiry(claims[name], end_us)
    for name in ("works", "settled"):
        queue.remove((name, 1))
    claims_in_memory.forget(claims["settled"])
    assert [one.message.id for one in claims_in_memory.take_expired(10)] == ["soon"]
    assert claims_in_memory.next_expiry_us == 20
    assert [one.message.id for one in claims_in_memory.take_expired(30)] == ["late"]
    queue.push(claims["works"])  # its connection failed, another one is open
    again_us = claims_in_memory.next_expiry_us
    assert again_us is not None
    assert claims_in_memory.take_expired(again_us - 1) == []
    assert claims_in_memory.take_expired(again_us) == [claims["works"]]
    assert claims_in_memory.next_expiry_us is None
