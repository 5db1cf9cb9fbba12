"""Claims whose route no longer sends them to their next hop."""

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay.delivery.active_queue import ClaimsInMemory
from relay.delivery.attempt_result import AttemptTime, result_of_attempt
from relay.delivery.rerouting import ClaimRerouter
from relay.delivery.retry import RetrySchedule
from relay.message.nexthop import NextHop
from relay.message.outcome import Failed, Outcome
from relay.routing.route_table import RouteTable
from relay.settings.tree import OwnDomain, Route
from relay.spool.types import Claim, EntryExtra
from tests.support.claims import a_claim
from tests.support.manual_clock import ManualClock


class Directory:
    def by_address(self, _address: str) -> None:
        return None


def not_run(work: Coroutine[Any, Any, Any]) -> object:
    work.close()
    return object()


@pytest.mark.parametrize(
    ("key", "chosen", "taken"),
    [
        ("smtp://h.test:25 of-a", False, False),
        ("smtp://h.test:25 of-b", False, True),  # another domain
        ("smtp://h.test:25 of-b", True, False),
        ("smtp://h.test:25 gone", True, True),
        ("smtp://i.test:25 of-b", True, True),
        ("smtp://i.test:25", True, False),
        # of an older spool, or chosen
        ("smtp://h.test:25", False, False),
        ("smtp://h.test:25", True, False),
        ("smtp://i.test:25", False, False),
        ("smtp://j.test:25", False, True),  # the first route to it is that of another domain
        ("smtp://j.test:25", True, False),
        ("smtp://k.test:25", False, False),  # no route to it takes this mail
        ("local", False, True),  # its domain is local no longer
        ("local", True, False),
    ],
)
def test_a_chosen_route_need_not_match(key: str, chosen: bool, taken: bool) -> None:
    routes = [Route(f"{one}.test", "smtp://h.test:25", name=f"of-{one}") for one in "ab"]
    routes += [Route(f"{one}.test", "smtp://j.test:25", name=f"to-j-{one}") for one in "ca"]
    routes += [Route("b.test", "smtp://k.test:25", name="to-k"), Route("a.test", "local")]
    rerouter = ClaimRerouter(
        SimpleNamespace(run_in_background=not_run), ClaimsInMemory(),
        table=RouteTable(routes, [], Directory()), admin=SimpleNamespace(), clock=ManualClock(),
    )  # fmt: skip
    claim = a_claim(next_hop=NextHop.parse(key), epoch=2, extra=EntryExtra(chosen=chosen))
    assert rerouter.takes(claim) is taken
    assert bool(rerouter.ready) is taken


def test_an_address_that_became_invalid_ends_and_the_others_of_its_entry_are_due(
    tmp_path: Path,
) -> None:
    """A reroute would change nothing: the others are at their next hop already."""
    (tmp_path / "listed").write_text("1@a.test\n")
    settled: dict[int, Outcome] = {}

    async def settle(_claim: Claim, outcomes: Mapping[int, Outcome]) -> None:
        settled.update(outcomes)

    scheduler = SimpleNamespace(run_in_background=asyncio.run, settle=settle)
    table = RouteTable([], [OwnDomain("a.test", f"file:{tmp_path}/listed")], Directory())
    rerouter = ClaimRerouter(
        scheduler, ClaimsInMemory(), table=table, admin=SimpleNamespace(), clock=ManualClock()
    )
    assert not rerouter.takes(a_claim(count=1, epoch=2))
    claim = a_claim(count=2, epoch=2, cause="mailbox", cause_attempts=3)
    assert rerouter.takes(claim)
    assert not rerouter.ready
    assert {number: type(outcome) for number, outcome in settled.items()} == {2: Failed}
    assert settled[2].evidence.status == "5.1.1"
    result = result_of_attempt(
        claim,
        settled,
        time=AttemptTime(now_us=5, at_us=5),
        schedule=RetrySchedule((60.0,), lambda: 0.5),
    )
    assert [one.path.address for one in result.failed] == ["2@a.test"]
    assert result.waiting is not None
    assert (result.waiting.due_us, result.waiting.cause_attempts) == (5, 3)
