"""Next hops that an operator may give to `relay queue reroute`."""

import pytest

from relay.base.accounts.account import Account
from relay.base.message.nexthop import Destination
from relay.base.settings.tree import Route
from relay.operation.app.configuration import parse_next_hop
from relay.transport.routing.route_table import RouteTable
from tests.support.accounts import TokenAccounts
from tests.support.tables import each_row

PEOPLE = TokenAccounts({name: Account(f"{name}@example.test") for name in ("alice", "bob")})


def table() -> RouteTable:
    routes = (
        Route(domain="reject.test", next_hop="reject:5.1.2 No mail for this domain"),
        Route(domain="home.test", next_hop="local"),
        Route(domain="slow.test", next_hop="mx", name="slow"),
        Route(domain="*", name="smart", next_hop="smtp://smart.test:25"),
    )
    return RouteTable(routes, ("example.test",), PEOPLE, catch_all="")


def table_with_catch_all() -> RouteTable:
    return RouteTable((), ("example.test",), PEOPLE, catch_all="alice@example.test")


def hop_of(found: Destination | None) -> str:
    return str(found and found.next_hop)


@each_row(
    "text, address, hop",
    [
        ("default", "x@a.test", "smtp://smart.test:25"),
        ("default", "x@reject.test", "None"),
        ("mx", "x@A.test", "mx:a.test"),
        ("mx", "x@münchen.test", "mx:xn--mnchen-3ya.test"),
        ("mx", "postmaster", "None"),
        ("mx:B.test", "x@a.test", "mx:b.test"),
        ("local", "bob+tag@Example.TEST", "local"),
        ("local", "postmaster@example.test", "local"),
        ("local", "nobody@example.test", "None"),
        ("local", "bob@a.test", "None"),
        ("local", "bob@home.test", "None"),
        ("lmtp://H.test:24", "x@a.test", "lmtp://h.test:24"),
        ("lmtp:unix:/run/lmtp", "x@a.test", "lmtp:unix:/run/lmtp"),
        ("route:smart", "x@home.test", "smtp://smart.test:25"),
        ("route:slow", "x@a.test", "mx:a.test"),
        ("route:slow", "postmaster", "None"),
    ],
)
def test_parse_next_hop_routes_an_address(text: str, address: str, hop: str) -> None:
    found = parse_next_hop(text, table)(address, "me@s.test")
    assert hop_of(found) == hop
    assert found is None or found.chosen == (text != "default")
    if found is not None and text.startswith("route:"):
        assert found.next_hop.route == text.removeprefix("route:"), "its login and TLS"


@each_row("text", ["", "capture", "hold", "reject:no", "mx:", "mx:a b", "smtp://x", "b.test"])
def test_parse_next_hop_rejects_routes_that_send_nothing(text: str) -> None:
    with pytest.raises(
        ValueError, match="expected default, mx, mx:DOMAIN, local, route:NAME, smtp"
    ):
        parse_next_hop(text, table)


@each_row(
    "text, expected",
    [
        ("route:home.test local", "expected the name of a route to hosts: slow, smart$"),
        ("route:", "found '', expected the name of a route to hosts: slow, smart$"),
        ("graph://g.test", "expected route:NAME, of a route to Microsoft Graph: it has the login"),
        ("imap://h.test:143", "smtps://HOST:PORT, lmtp://HOST:PORT or lmtp:unix:PATH"),
    ],
)
def test_parse_next_hop_says_what_is_expected(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_next_hop(text, table)


@pytest.mark.parametrize(
    ("address", "hop"), [("anyone@example.test", "local"), ("anyone@a.test", "None")]
)
def test_a_catch_all_takes_rerouted_mail_for_local_domains_only(address: str, hop: str) -> None:
    found = parse_next_hop("local", table_with_catch_all)(address, "me@s.test")
    assert hop_of(found) == hop


def test_the_route_table_is_loaded_only_when_needed() -> None:
    def unwanted() -> RouteTable:
        raise AssertionError

    assert hop_of(parse_next_hop("mx:a.test", unwanted)("x@b.test", "me@s.test")) == "mx:a.test"
