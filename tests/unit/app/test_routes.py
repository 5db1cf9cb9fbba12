"""The ways that an operator may name."""

import pytest

from relay.app.routes import way_to
from relay.message.nexthop import NextHop


class Table:
    """As a RouteTable: everything to one host."""

    def next_hop_for(self, address: str) -> NextHop | None:
        return None if address == "no@a.test" else NextHop.parse("smtp://smart.test:25")


@pytest.mark.parametrize(
    ("text", "address", "hop"),
    [
        ("default", "x@a.test", "smtp://smart.test:25"),
        ("default", "no@a.test", "None"),
        ("mx", "x@A.test", "mx:a.test"),
        ("mx", "x@münchen.test", "mx:xn--mnchen-3ya.test"),
        ("mx", "postmaster", "None"),
        ("mx:B.test", "x@a.test", "mx:b.test"),
        ("local", "x@a.test", "local"),
        ("smtp://H.test:26", "x@a.test", "smtp://h.test:26"),
        ("smtps://[::1]:465", "x@a.test", "smtps://[::1]:465"),
    ],
)
def test_a_way_leads_an_address_to_its_next_hop(text: str, address: str, hop: str) -> None:
    assert str(way_to(text, Table)(address)) == hop


@pytest.mark.parametrize(
    "text", ["", "capture", "hold", "reject:no", "mx:", "mx:a b", "smtp://x", "b.test"]
)
def test_no_way_leads_where_nothing_is_sent(text: str) -> None:
    with pytest.raises(ValueError, match="expected default, mx, mx:DOMAIN, local, smtp://"):
        way_to(text, Table)


def test_the_routes_are_asked_only_for_a_way_that_needs_them() -> None:
    def table() -> Table:
        raise AssertionError

    assert str(way_to("mx:a.test", table)("x@b.test")) == "mx:a.test"
