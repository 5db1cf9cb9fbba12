"""The judges themselves: what is late in a process, and whose a reply is."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from relay.base.message.outcome import Evidence as Words
from relay.base.message.outcome import Failed
from relay.store.spool.types import ClaimResult
from tests.simulation.clock import BEGINNING_US, Time
from tests.simulation.ledger import Ledger
from tests.simulation.policies import GivenPolicies
from tests.simulation.scenario import Published, make
from tests.simulation.waits import Waits
from tests.support.claims import SECOND_US, a_claim

_COMMIT_S = 3.0
_PLAN = replace(make(0), commit_s=_COMMIT_S)


def test_mail_is_not_late_while_earlier_mail_is_claimed_on_a_slow_disk() -> None:
    waits = Waits(_PLAN)
    for number in range(20):
        waits.idle_from(10.0 * number)
        waits.claims_from(10.0 * number + _COMMIT_S)
    assert list(waits.claimed(a_claim(), ready_s=0.0)) == []


def test_mail_that_waits_in_an_idle_process_is_late() -> None:
    waits = Waits(_PLAN)
    waits.idle_from(0.0)
    waits.claims_from(60.0)
    [words] = waits.claimed(a_claim(), ready_s=10.0)
    assert words.endswith("was due, and no claim was in memory for 47.0 s")


def test_a_report_without_a_message_id_is_no_other_message() -> None:
    clocks = SimpleNamespace(steady_s=lambda: 0.0, queue_us=lambda: 0)
    world = SimpleNamespace(
        clocks=clocks, time=lambda: 0.0, note=lambda *_: None, reached=Counter(), fault=print
    )
    ledger = Ledger(cast("Any", world), _PLAN, claims_max=1)
    ledger.claimed([a_claim()], cast("Any", SimpleNamespace(tasks_open=0)))
    assert ledger.names == {}


def test_time_that_was_read_and_never_written_down_has_not_passed() -> None:
    """A process with a wrong clock dies in its start; the next one has the right time."""
    faults: list[str] = []
    world = SimpleNamespace(
        time=lambda: 200.0, note=lambda *_: None, reached=Counter(), fault=faults.append
    )
    world.clocks = Time(world)
    ledger = Ledger(cast("Any", world), _PLAN, claims_max=1)

    def ends_by_a_clock(expires_s: int) -> bool:
        claim = a_claim(expires_us=BEGINNING_US + expires_s * SECOND_US)
        expired = {1: Failed(Words("5.4.7", ""))}
        faults.clear()
        ledger.recorded(ClaimResult(claim, 0, {}, expired=expired), held=True, was_fenced=False)
        return any("expired by a clock" in line for line in faults)

    world.clocks.offset_us = 9_000_000 * SECOND_US
    ledger.resumed(100.0)
    assert ends_by_a_clock(300)
    world.clocks.offset_us = 0
    ledger.resumed(9_000_200.0)
    assert [ends_by_a_clock(150), ends_by_a_clock(300)] == [True, False]
    assert ledger.outage_s(0.0, 300.0) == 100.0


def test_a_policy_is_in_force_until_its_end_or_the_next_one_comes() -> None:
    first, second = (
        Published(0.0, number, "enforce", "*.d1.test", max_age_s=10) for number in range(2)
    )
    policies = GivenPolicies()
    policies.gave(first, now_us=100)
    policies.gave(second, now_us=5_000_100)
    assert policies.in_force(0, 99) == {None}
    assert policies.in_force(0, 200) == {None, first}
    assert policies.in_force(200, 6_000_000) == {first, second}
    assert policies.in_force(15_000_100, 15_000_100) == {None}
    policies.died(now_us=6_000_000)  # and has perhaps not written down the second one
    assert policies.in_force(6_000_000, 6_000_000) == {first, second}
