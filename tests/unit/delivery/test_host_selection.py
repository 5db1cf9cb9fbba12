"""The status of hosts: answers and connect failures."""

from relay.delivery.host_selection import ConnectFailure, HostStatusCache
from relay.message.outcome import DeferralClass, Deferred, Evidence
from relay.message.tls_policy import TlsPolicy

GONE = Deferred(Evidence("4.4.1", "refused"), DeferralClass.CONNECT)
HERE = ("192.0.2.1", 25, TlsPolicy("none"), "")
THERE = ("192.0.2.2", 25, TlsPolicy("none"), "")


def test_the_last_result_counts_up_to_the_given_age() -> None:
    memory = HostStatusCache()
    memory.note(HERE, ConnectFailure(GONE, 10.0))
    assert memory.failure(HERE, since_s=10.0) == ConnectFailure(GONE, 10.0)
    assert memory.failure(HERE, since_s=10.1) is None
    assert memory.failure(THERE, since_s=0.0) is None
    assert not memory.has_answered(HERE, since_s=0.0)
    memory.note(HERE, 20.0)
    assert memory.failure(HERE, since_s=0.0) is None
    assert memory.has_answered(HERE, since_s=20.0)
    assert not memory.has_answered(HERE, since_s=20.1)


def test_a_connect_failure_can_be_forgotten_and_an_answer_not() -> None:
    memory = HostStatusCache()
    memory.note(HERE, ConnectFailure(GONE, 10.0))
    memory.note(THERE, 10.0)
    for place in (HERE, THERE):
        memory.forget_failure(place)
    assert memory.failure(HERE, since_s=0.0) is None
    assert memory.has_answered(THERE, since_s=0.0)


def test_the_least_recently_used_host_goes_first() -> None:
    memory = HostStatusCache(hosts_max=100)
    for number in range(1000):
        memory.note((str(number), 25, TlsPolicy("none"), ""), ConnectFailure(GONE, float(number)))
        memory.note(HERE, float(number))
    assert len(memory) == 100
    assert memory.has_answered(HERE, since_s=999.0)
    assert memory.failure(("999", 25, TlsPolicy("none"), ""), since_s=0.0) is not None
    assert memory.failure(("900", 25, TlsPolicy("none"), ""), since_s=0.0) is None
