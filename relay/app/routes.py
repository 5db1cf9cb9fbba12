"""The route table of a configuration, made in one way for the service, its check and its reload;
and the ways that an operator may name in place of it.

On the path: before step 5; compose keeps the table, check and reload only see whether one can be.
Holds: what a start would refuse is refused here.
Fails: ValueError for a route, a password file, a catch_all or postmaster that is no account, and a
    way that makes no sense.
Standards: docs/names.md (Commands: `queue reroute`).
"""

from collections.abc import Callable

from relay.accounts import AccountDirectory
from relay.message.address import AddressError, to_ascii_domain
from relay.message.envelope import domain_of
from relay.message.nexthop import CAPTURE, LOCAL, HopKind, NextHop
from relay.routing import RouteTable
from relay.routing.route_table import parse_action
from relay.settings import Settings
from relay.settings.values import parse_domain
from relay.spool.operating import Way

_WAY_EXPECTED = "default, mx, mx:DOMAIN, local, smtp://HOST:PORT or smtps://HOST:PORT"


def route_table(settings: Settings, accounts: AccountDirectory) -> RouteTable:
    """Return the table of the routes and local domains in `settings`."""
    boxes = settings.mailboxes
    return RouteTable(
        settings.route,
        boxes.domains,
        accounts,
        catch_all=boxes.catch_all,
        postmaster=boxes.postmaster,
    )


def way_to(text: str, table: Callable[[], RouteTable]) -> Way:
    """Return the way that an operator's words mean, for any address.

    "default" asks the routes, as for mail that is new; "mx" is that of each recipient's own domain;
    "local" takes recipients who have a mailbox here, and no others.
    Nothing is captured so: what is to stay here can be held. Raises ValueError.
    """
    if text == "default":
        return table().next_hop_for
    if text == "mx":
        return _own_mx
    if text == "local":
        return lambda address: _local(address, table())
    hop = _next_hop(text)
    return lambda _address: hop


def _next_hop(text: str) -> NextHop:
    if text.startswith("mx:"):
        try:
            return NextHop(HopKind.MX, parse_domain(text.removeprefix("mx:")))
        except ValueError:
            raise ValueError(f"found {text!r}, expected {_WAY_EXPECTED}") from None
    try:
        action = parse_action(text)
    except ValueError:
        action = CAPTURE
    if not isinstance(action, NextHop) or action == CAPTURE:
        raise ValueError(f"found {text!r}, expected {_WAY_EXPECTED}")
    return action


def _own_mx(address: str) -> NextHop | None:
    domain = _ascii_domain(address)
    return NextHop(HopKind.MX, domain) if domain else None


def _local(address: str, table: RouteTable) -> NextHop | None:
    """Return LOCAL if local delivery takes `address`: a catch_all is for local domains only."""
    is_local = table.is_local_domain(_ascii_domain(address)) or table.next_hop_for(address) == LOCAL
    return LOCAL if is_local and table.mailbox_for(address) else None


def _ascii_domain(address: str) -> str:
    """Return the domain of an address in lower case and ASCII, "" where it has none."""
    domain = domain_of(address)
    if not domain.isascii():
        try:
            domain = to_ascii_domain(domain)
        except AddressError:
            return ""
    return domain.lower()
