"""Say where an address goes: a mailbox here, a next hop, or nowhere.

On the path: ingress examines every recipient; delivery asks for mailboxes, reports for next hops.
Holds: pure once made; the first matching route wins; a look-up costs a few dictionary reads.
Fails: ValueError when made from routes or mailboxes that make no sense; never afterwards.
Standards: RFC 5321 2.3.5, 4.5.1 (postmaster), 5.1; RFC 3463.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from relay.accounts import AccountDirectory
from relay.accounts.account import DEAD_LETTER
from relay.message.address import AddressError, to_ascii_domain
from relay.message.envelope import domain_of
from relay.message.nexthop import LOCAL, HopKind, NextHop
from relay.message.status import own_reply
from relay.routing.actions import (
    Action,
    HopTls,
    Reject,
    UseMx,
    parse_action,
    read_credentials,
    read_tls,
    tls_of,
)
from relay.settings.tree import Route


@dataclass(frozen=True, slots=True)
class LocalRecipient:
    """Mail for it goes into `mailbox`: an account's address, or DEAD_LETTER."""

    mailbox: str


@dataclass(frozen=True, slots=True)
class RemoteRecipient:
    """Mail for it leaves by `next_hop` (or is captured there)."""

    next_hop: NextHop


@dataclass(frozen=True, slots=True)
class InvalidRecipient:
    """Mail for it goes nowhere, ever: `text` is a whole SMTP reply, `status` the code in it."""

    status: str
    text: str


@dataclass(frozen=True, slots=True)
class HopLimits:
    """What routes allow a next hop at most: None and "" is as the others; the rate is as settings
    write it, "COUNT/SECONDS".
    """

    connections_max: int | None = None
    rate: str = ""


Examination = LocalRecipient | RemoteRecipient | InvalidRecipient


_NO_LIMITS = HopLimits()
_DEFAULT_TLS = HopTls()
_DOMAINS_KEPT = 4096  # whose routes need not be looked for again: each address is asked for thrice


class RouteTable:
    """The routes, the local domains and who lives there.

    A pattern is a domain, "*.suffix" (every domain below it, not itself) or "*". The first route
    whose pattern matches decides; "*" stands for all domains that are not local, so that a
    smarthost for the rest of the world does not carry local mail away (name the domain to do that).
    Without a route a local domain's mail goes to its mailboxes, everything else to the domain's MX.
    Address literals have no MX: they are refused unless a route matches "*" or the literal itself.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        domains: Iterable[str],
        accounts: AccountDirectory,
        *,
        catch_all: str = "",
        postmaster: str = "",
    ) -> None:
        """Make the table; password files are read here.

        Raises ValueError for a route that cannot be understood, and for a catch_all or postmaster
        that is no account.
        """
        self._domains = frozenset(domain.lower() for domain in domains)
        self._accounts = accounts
        self._catch_all = self._mailbox_of("catch_all", catch_all)
        self._postmaster = self._mailbox_of("postmaster", postmaster) or DEAD_LETTER
        actions = [_action_of(route) for route in routes]
        both = list(zip(routes, actions, strict=True))
        self._credentials = read_credentials(both)
        self._tls_to = read_tls(both)
        self._tls = [tls_of(route) for route in routes]
        self._limits = [HopLimits(route.max_connections, route.max_rate) for route in routes]
        self._limits_to = _limits_by_hop(actions, self._limits)
        self._route_for = lru_cache(_DOMAINS_KEPT)(self._find_route)
        self._routes: dict[str, tuple[int, Action]] = {}
        for number, (route, action) in enumerate(zip(routes, actions, strict=True)):
            self._routes.setdefault(route.domain.lower(), (number, action))

    def examine(self, address: str) -> Examination:
        """Say where `address` goes; its syntax has been checked."""
        domain = domain_of(address)
        if not domain:
            return self._examine_without_domain(address)
        if not domain.isascii():
            try:
                domain = to_ascii_domain(domain)
            except AddressError:
                return _refused("5.1.2", address, "this domain cannot exist; check its spelling")
        if domain in self._domains and _local_part(address) == "postmaster":
            return LocalRecipient(self.mailbox_for(address) or self._postmaster)
        action = self._action_for(domain)
        match action:
            case None if domain in self._domains:
                return self._examine_local(address)
            case None | UseMx():
                return _examine_mx(address, domain, routed=action is not None)
            case Reject(status, text):
                return _refused(status, address, text)
            case NextHop(kind=HopKind.LOCAL):
                return self._examine_local(address)
            case NextHop():
                return RemoteRecipient(action)

    def mailbox_for(self, address: str) -> str | None:
        """Return the mailbox for local mail to `address`, None if there is none (any more).

        Routes are not asked: they were, when the copy for this mailbox was made.
        """
        if account := self._accounts.by_address(address):
            return account.address
        if _local_part(address) == "postmaster" and domain_of(address) in (*self._domains, ""):
            return self._postmaster
        return self._catch_all or None

    def next_hop_for(self, address: str) -> NextHop | None:
        """Return where a report to `address` goes, or None if nothing can be sent there."""
        match self.examine(address):
            case LocalRecipient():
                return LOCAL
            case RemoteRecipient(next_hop):
                return next_hop
            case InvalidRecipient():
                return None

    def credentials_for(self, next_hop: NextHop) -> tuple[str, str] | None:
        """Return user and password for a next hop, or None where no route has `auth` for it."""
        login = self._credentials.get(next_hop)
        return (login.user, login.password) if login else None

    def tls_for(self, next_hop: NextHop) -> HopTls:
        """Return what the route to a next hop asks of its hosts.

        Mail that an operator sends to a domain's MX in place of its route's host has the default.
        """
        if next_hop.kind is not HopKind.MX:
            return self._tls_to.get(next_hop, _DEFAULT_TLS)
        route = self._route_for(next_hop.host)
        uses_mx = route is not None and isinstance(route[1], UseMx)
        return self._tls[route[0]] if route is not None and uses_mx else _DEFAULT_TLS

    def limits_for(self, next_hop: NextHop) -> HopLimits:
        """Return what the routes to a next hop allow, of several to one host the strictest."""
        if next_hop.kind is not HopKind.MX:
            return self._limits_to.get(next_hop, _NO_LIMITS)
        route = self._route_for(next_hop.host)
        return self._limits[route[0]] if route else _NO_LIMITS

    def is_local_domain(self, domain: str) -> bool:
        """Whether mailboxes of `domain` are here: rules ask it of the sender."""
        return domain.lower() in self._domains

    def _action_for(self, domain: str) -> Action | None:
        found = self._route_for(domain)
        return found[1] if found else None

    def _find_route(self, domain: str) -> tuple[int, Action] | None:
        """Find, of the few patterns that can match, the one that was written first."""
        if not self._routes:
            return None
        best: tuple[int, Action] | None = self._routes.get(domain)
        patterns = [] if domain in self._domains else ["*"]
        labels = domain
        while "." in labels and not domain.startswith("["):
            labels = labels.partition(".")[2]
            patterns.append(f"*.{labels}")
        for pattern in patterns:
            found = self._routes.get(pattern)
            if found and (best is None or found[0] < best[0]):
                best = found
        return best

    def _examine_local(self, address: str) -> Examination:
        if mailbox := self.mailbox_for(address):
            return LocalRecipient(mailbox)
        return _refused("5.1.1", address, "no such user here; check the spelling")

    def _examine_without_domain(self, address: str) -> Examination:
        if address.lower() == "postmaster":  # RFC 5321 4.5.1: always taken, with no domain either
            return LocalRecipient(self._postmaster)
        return _refused("5.1.3", address, "this address has no domain; write user@domain")

    def _mailbox_of(self, key: str, address: str) -> str:
        if not address:
            return ""
        account = self._accounts.by_address(address)
        if account is None:
            raise ValueError(f"mailboxes.{key}: found {address!r}, expected an account's address")
        return account.address


def _limits_by_hop(
    actions: Sequence[Action], limits: Sequence[HopLimits]
) -> dict[NextHop, HopLimits]:
    found: dict[NextHop, HopLimits] = {}
    for action, each in zip(actions, limits, strict=True):
        if isinstance(action, NextHop):
            found[action] = _stricter(found.get(action, _NO_LIMITS), each)
    return found


def _stricter(one: HopLimits, other: HopLimits) -> HopLimits:
    counts = [each.connections_max for each in (one, other) if each.connections_max is not None]
    rates = [each.rate for each in (one, other) if each.rate]
    return HopLimits(min(counts, default=None), min(rates, default="", key=_per_second))


def _per_second(rate: str) -> float:
    count, _, seconds = rate.partition("/")
    return int(count) / float(seconds)


def _action_of(route: Route) -> Action:
    try:
        return parse_action(route.next_hop)
    except ValueError as error:
        raise ValueError(f"route {route.domain!r}: next_hop: {error}") from error


def _examine_mx(address: str, domain: str, *, routed: bool) -> Examination:
    if not domain.startswith("["):
        return RemoteRecipient(NextHop(HopKind.MX, domain))
    host = literal_address(domain)
    if host is None:
        return _refused("5.1.3", address, "this address literal is malformed; use a domain name")
    if not routed:
        return _refused("5.1.2", address, "no mail to address literals; use a domain name")
    return RemoteRecipient(NextHop(HopKind.MX, domain))


def literal_address(domain: str) -> str | None:
    """Return what is in an address literal, "[192.0.2.1]" or "[IPv6:2001:db8::1]", or None."""
    if not (domain.startswith("[") and domain.endswith("]")):
        return None
    inside = domain[1:-1]
    try:
        if inside[:5].lower() == "ipv6:":
            return str(IPv6Address(inside[5:]))
        return str(IPv4Address(inside))
    except AddressValueError:
        return None


def _local_part(address: str) -> str:
    return address.rpartition("@")[0].lower() if "@" in address else address.lower()


def _refused(status: str, address: str, text: str) -> InvalidRecipient:
    return InvalidRecipient(status, own_reply(status, f"<{address}>: {text}"))
