"""Schedule and fair turns."""

from dataclasses import replace

import pytest

from relay.delivery.conclude import conclude, expire, is_expired
from relay.delivery.fairqueue import FairQueue
from relay.delivery.schedule import Schedule
from relay.message.nexthop import NextHop
from relay.message.outcome import DeferralClass, Deferred, Evidence, Failed, Relayed
from relay.message.verdict import Source
from relay.spool.types import Claim, ClaimedRecipient, MessageFacts

SECOND_US = 1_000_000
OK = Relayed(Evidence("2.0.0", "250 ok"))
LATER = Deferred(Evidence("4.2.0", "450 later"), DeferralClass.RECIPIENT)


def a_claim(sender: str = "a@x.test", *, count: int = 1, attempts: int = 0) -> Claim:
    facts = MessageFacts(
        "q1", sender, Source.SMTP, True, 0, 3600 * SECOND_US, 10, "", "", "", "", False, False,
        "", "", "",
    )  # fmt: skip
    people = tuple(
        ClaimedRecipient(n, f"{n}@a.test", frozenset(), "", "") for n in range(1, count + 1)
    )
    return Claim(1, 1, facts, NextHop.parse("mx:a.test"), people, attempts, 1, 10)


@pytest.mark.parametrize(
    ("attempts", "chance", "seconds"),
    [(1, 0.5, 60), (2, 0.5, 300), (3, 0.5, 900), (9, 0.5, 900), (1, 0.0, 54), (1, 1.0, 66)],
)
def test_the_last_step_repeats_and_jitter_stays_within_ten_percent(
    attempts: int, chance: float, seconds: float
) -> None:
    schedule = Schedule((60, 300, 900), lambda: chance)
    due_us = schedule.due_us(attempts=attempts, now_us=0, expires_us=10**15)
    assert due_us == pytest.approx(seconds * SECOND_US)


def test_never_later_than_expiry() -> None:
    schedule = Schedule((3600,), lambda: 0.5)
    assert schedule.due_us(attempts=1, now_us=0, expires_us=5) == 5


def test_one_sender_with_many_does_not_delay_anothers_one() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.push(a_claim("bulk@x.test"))
    queue.push(a_claim("single@x.test"))
    turns = [queue.pop().message.reverse_path for _ in range(2)]
    assert turns == ["bulk@x.test", "single@x.test"]
    assert len(queue) == 99
    assert len(queue.drain()) == 99
    assert queue.pop() is None


def test_an_untried_recipient_waits_with_the_deferred() -> None:
    schedule = Schedule((60,), lambda: 0.5)
    conclusion = conclude(a_claim(count=2), {1: OK}, now_us=0, schedule=schedule)
    assert conclusion.due_us == 60 * SECOND_US
    assert conclusion.failed == ()


def test_everything_done_is_due_never() -> None:
    schedule = Schedule((60,), lambda: 0.5)
    no = Failed(Evidence("5.1.1", "550 no"))
    conclusion = conclude(a_claim(count=2), {1: OK, 2: no}, now_us=0, schedule=schedule)
    assert conclusion.due_us is None
    assert [one.address for one in conclusion.failed] == ["2@a.test"]


def test_a_message_that_was_never_tried_gets_its_one_attempt_after_its_time() -> None:
    assert not is_expired(a_claim(attempts=0), 10**15)
    assert is_expired(a_claim(attempts=1), 10**15)
    assert not is_expired(a_claim(attempts=1), 5)


def test_expiry_tells_the_last_reply() -> None:
    claim = a_claim(attempts=3)
    people = (replace(claim.recipients[0], status="4.2.0", reply="450 4.2.0 greylisted"),)
    conclusion = expire(replace(claim, recipients=people), now_us=5)
    assert conclusion.failed[0].evidence.status == "5.4.7"
    assert "greylisted" in conclusion.failed[0].evidence.reply
