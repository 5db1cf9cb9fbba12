"""Claims whose route no longer sends them to their next hop."""

from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from relay.delivery.active_queue import ClaimsInMemory
from relay.delivery.rerouting import ClaimRerouter
from relay.message.nexthop import NextHop
from relay.routing.route_table import RouteTable
from relay.settings.tree import Route
from relay.spool.types import EntryExtra
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
