"""The status of hosts: answers and connect failures; which address is tried last."""

from contextlib import nullcontext

import pytest

from relay.base.message.outcome import DeferralClass, Deferred, Evidence, SmtpStage
from relay.base.message.tls_policy import TlsDecision, TlsPolicy
from relay.delivery.host_selection import (
    SILENT_S,
    ConnectFailure,
    HostKey,
    HostSelection,
    HostStatusCache,
    SessionState,
)
from relay.delivery.site_limits import SiteOptions
from relay.delivery.smtp.connect import ConnectError
from relay.transport.routing.mx_hosts import Host, Hosts
from relay.transport.routing.routes import Credentials, HopOptions
from tests.support.manual_clock import ManualClock

GONE = Deferred(Evidence("4.4.1", "refused"), DeferralClass.CONNECT)


def key_of(address: str) -> HostKey:
    return HostKey(address, 25, TlsPolicy("none"), login=None, source_address="", is_mx=True)


HERE, THERE = key_of("192.0.2.1"), key_of("192.0.2.2")


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


def test_the_least_recently_used_host_goes_first() -> None:
    memory = HostStatusCache(hosts_max=100)
    for number in range(1000):
        memory.note(key_of(str(number)), ConnectFailure(GONE, float(number)))
        memory.note(HERE, float(number))
    assert len(memory) == 100
    assert memory.has_answered(HERE, since_s=999.0)
    assert memory.failure(key_of("999"), since_s=0.0) is not None
    assert memory.failure(key_of("900"), since_s=0.0) is None


@pytest.mark.parametrize("stage", [SmtpStage.CONNECT, SmtpStage.BANNER])
async def test_an_address_that_did_not_answer_is_tried_last_for_ten_minutes(stage) -> None:
    tls, clock, tried = TlsDecision(TlsPolicy("none")), ManualClock(), []
    best = Host("mx1.test", 10, ("192.0.2.1", "192.0.2.2"), 25, tls)
    other = Host("mx2.test", 20, ("192.0.2.3",), 25, tls)

    async def refuse(target):
        tried.append(target.address[-1])
        raise ConnectError(GONE, stage if target.address == "192.0.2.1" else SmtpStage.BANNER)

    async def order() -> str:
        del tried[:]
        with pytest.raises(ConnectError):
            await selection.connect(SessionState(), (), limit=nullcontext)
        return "".join(tried)

    selection = HostSelection(
        Hosts((best, other)),
        SiteOptions(1, unreachable_s=1.0),
        via=HopOptions(tls),
        host_status=HostStatusCache(),
        clock=clock,
        open_session=refuse,
    )
    assert await order() == "123"
    clock.now_s += 2
    assert await order() == ("231" if stage is SmtpStage.CONNECT else "123")
    clock.now_s += SILENT_S + 1
    assert await order() == "123"


async def test_a_failure_with_a_login_says_nothing_about_another() -> None:
    tls, clock, tried = TlsDecision(TlsPolicy("none")), ManualClock(), []
    hosts, status = Hosts((Host("a.test", 10, ("192.0.2.1",), 25, tls),)), HostStatusCache()

    async def refuse(target):
        tried.append(target.login.oauth)
        raise ConnectError(GONE, SmtpStage.AUTH)

    for name in ("m365", "other", "m365"):
        via = HopOptions(tls, login=Credentials("box@a.test", oauth=name))
        options = SiteOptions(1, unreachable_s=1.0)
        selection = HostSelection(
            hosts, options, via=via, host_status=status, clock=clock, open_session=refuse
        )
        with pytest.raises(ConnectError):
            await selection.connect(SessionState(), (), limit=nullcontext)
    assert tried == ["m365", "other"]


async def test_addresses_that_the_source_address_cannot_reach_do_not_count() -> None:
    """Otherwise the site never is one whose hosts have all failed, and each message connects."""
    tls = TlsDecision(TlsPolicy("none"))

    async def refuse(_target):
        raise ConnectError(GONE, SmtpStage.CONNECT)

    selection = HostSelection(
        Hosts((Host("mx.test", 10, ("2001:db8::1", "192.0.2.1"), 25, tls),)),
        SiteOptions(1, unreachable_s=1.0),
        via=HopOptions(tls, source_address="192.0.2.9"),
        host_status=HostStatusCache(),
        clock=ManualClock(),
        open_session=refuse,
    )
    assert not selection.all_failed()
    with pytest.raises(ConnectError):
        await selection.connect(SessionState(), (), limit=nullcontext)
    assert selection.all_failed()
