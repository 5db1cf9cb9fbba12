"""What is known of hosts."""

from relay.delivery.host_selection import HostMemory, Refusal
from relay.message.outcome import DeferralClass, Deferred, Evidence

GONE = Deferred(Evidence("4.4.1", "refused"), DeferralClass.CONNECT)
HERE = ("192.0.2.1", 25, "none", "")
THERE = ("192.0.2.2", 25, "none", "")


def test_the_last_word_counts_for_as_long_as_asked() -> None:
    memory = HostMemory()
    memory.refused(HERE, Refusal(GONE, 10.0))
    assert memory.refusal(HERE, since_s=10.0) == Refusal(GONE, 10.0)
    assert memory.refusal(HERE, since_s=10.1) is None
    assert memory.refusal(THERE, since_s=0.0) is None
    assert not memory.has_answered(HERE, since_s=0.0)
    memory.answered(HERE, 20.0)
    assert memory.refusal(HERE, since_s=0.0) is None
    assert memory.has_answered(HERE, since_s=20.0)
    assert not memory.has_answered(HERE, since_s=20.1)


def test_a_refusal_can_be_forgotten_and_an_answer_not() -> None:
    memory = HostMemory()
    memory.refused(HERE, Refusal(GONE, 10.0))
    memory.answered(THERE, 10.0)
    for place in (HERE, THERE):
        memory.forget_refusal(place)
    assert memory.refusal(HERE, since_s=0.0) is None
    assert memory.has_answered(THERE, since_s=0.0)


def test_the_longest_unused_goes_first() -> None:
    memory = HostMemory(hosts_max=100)
    for number in range(1000):
        memory.refused((str(number), 25, "none", ""), Refusal(GONE, float(number)))
        memory.answered(HERE, float(number))
    assert len(memory) == 100
    assert memory.has_answered(HERE, since_s=999.0)
    assert memory.refusal(("999", 25, "none", ""), since_s=0.0) is not None
    assert memory.refusal(("900", 25, "none", ""), since_s=0.0) is None
