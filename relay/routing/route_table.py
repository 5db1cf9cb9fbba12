"""The route table: an address belongs to a mailbox here, to a next hop, or is invalid.

Ingress examines every recipient with it, delivery looks up mailboxes, TLS and limits, reports look
up next hops. The reply for an unknown user (550 5.1.1) is made here. The first route that
matches wins. A table that cannot be made raises ValueError; a lookup never fails and costs a few
dictionary reads. See RFC 5321 2.3.5, 4.5.1 (postmaster) and 5.1.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from msgspec import Struct
from msgspec.structs import replace

from relay.accounts.account import DEAD_LETTER, AccountDirectory
from relay.message.address import AddressError, to_ascii_domain
from relay.message.envelope import domain_of
from relay.message.nexthop import CAPTURE, LOCAL, HopKind, NextHop
from relay.message.status import own_reply, split_reply
from relay.message.tls_policy import TlsLevel, TlsPolicy
from relay.settings.tree import Route, RouteAuth
from relay.settings.validation import verifies

REJECT_STATUS = "5.7.1"  # X.7.1: delivery not authorised

_EXPECTED = "mx, local, capture, smtp://HOST:PORT, smtps://HOST:PORT or reject:TEXT"
_DOMAINS_KEPT = 4096  # domains whose route is cached: each address is looked up three times


class UseMx(Struct, frozen=True):
    """The MX hosts of the recipient's own domain."""


class RejectRoute(Struct, frozen=True):
    """Reject the recipient: `status` is 5.y.z, `text` is for the sender."""

    status: str
    text: str


RouteAction = UseMx | RejectRoute | NextHop


@dataclass(frozen=True, slots=True)
class Credentials:
    """A login for a next hop."""

    user: str
    password: str = field(repr=False)


def parse_action(text: str) -> RouteAction:
    """Parse a route's `next_hop`.

    "reject:5.1.6 Moved to example.org" has its own enhanced status code; the default is 5.7.1.
    Raises ValueError that says what was expected.
    """
    if text == "mx":
        return UseMx()
    if text == "local":
        return LOCAL
    if text == "capture":
        return CAPTURE
    if text.startswith("reject:"):
        return _parse_reject(text.removeprefix("reject:").strip())
    try:
        hop = NextHop.parse(text)
    except ValueError:
        hop = None
    if hop is None or hop.kind not in (HopKind.SMTP, HopKind.SMTPS):
        raise ValueError(f"found {text!r}, expected {_EXPECTED}")
    return NextHop(hop.kind, hop.host.lower(), hop.port)


def read_credentials(routes: Sequence[tuple[Route, RouteAction]]) -> Mapping[NextHop, Credentials]:
    """Read the password files of the routes that have `auth`.

    Raises ValueError for a route without a host, for a file that cannot be read or is empty, and
    for two routes to one next hop with different logins: the spool has the next hop of an entry,
    not its route.
    """
    logins: dict[NextHop, Credentials | None] = {}
    for route, action in routes:
        hop = action if isinstance(action, NextHop) and action.host else None
        if route.auth and hop is None:
            raise ValueError(f"route {route.domain!r}: auth needs a smtp:// or smtps:// next hop")
        if hop is None:
            continue
        login = _login(route.domain, route.auth) if route.auth else None
        if logins.setdefault(hop, login) != login:
            raise ValueError(
                f"route {route.domain!r}: another route to {hop} logs in differently, or only one "
                "of them does; give the same auth to both, or the host a second name"
            )
    return {hop: login for hop, login in logins.items() if login}


def _tls_of(route: Route, default: TlsLevel) -> TlsPolicy:
    """Return the TLS policy of the route's hosts.

    With a login the default is "verify", unless next_hop is a loopback address or localhost. Only
    the text of the route decides, so that no answer of the DNS lowers the level.
    """
    assert route.tls != "dane"  # rejected when the configuration is read
    level = "verify" if verifies(route) else route.tls or default
    return TlsPolicy(level, ca=route.ca)


def _tls_by_hop(
    routes: Sequence[tuple[Route, RouteAction]], policies: Sequence[TlsPolicy]
) -> dict[NextHop, TlsPolicy]:
    """Return the TLS policy of each configured host.

    Raises ValueError for two routes to one next hop with different policies: the spool has the
    next hop of an entry, not its route.
    """
    found: dict[NextHop, TlsPolicy] = {}
    for (route, action), policy in zip(routes, policies, strict=True):
        if not isinstance(action, NextHop) or not action.host:
            continue
        if found.setdefault(action, policy) != policy:
            raise ValueError(
                f"route {route.domain!r}: another route to {action} has another tls or ca; give "
                "the same to both, or the host a second name"
            )
    return found


def _login(domain: str, auth: RouteAuth) -> Credentials:
    path = auth.password_file
    try:
        password = path.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"route {domain!r}: password_file {path} cannot be read: {error}"
        ) from error
    if not password:
        raise ValueError(f"route {domain!r}: password_file {path} has an empty first line")
    return Credentials(auth.user, password)


def _parse_reject(text: str) -> RejectRoute:
    reply = split_reply(text)
    status = reply.status or REJECT_STATUS
    if not status.startswith("5."):
        raise ValueError(f"found code {status}, expected 5.y.z: a reject is permanent")
    if not reply.text.strip() or not reply.text.isprintable():
        raise ValueError("found no printable text after reject:, expected one line for the sender")
    return RejectRoute(status, reply.text.strip())


class LocalRecipient(Struct, frozen=True):
    """Mail for it goes into `mailbox`: an account's address, or DEAD_LETTER. `is_answer`: nobody
    has the address, and who writes to it answers a report.
    """

    mailbox: str
    is_answer: bool = False


class RemoteRecipient(Struct, frozen=True):
    """Mail for it leaves by `next_hop` (or is captured there)."""

    next_hop: NextHop


class InvalidRecipient(Struct, frozen=True):
    """Mail for it is rejected: `text` is a whole SMTP reply, `status` its enhanced code."""

    status: str
    text: str


class HopLimits(Struct, frozen=True):
    """The limits of a route for its next hop; None and "" are those of [delivery]. The rate is
    "COUNT/SECONDS".
    """

    connections_max: int | None = None
    rate: str = ""


RoutingResult = LocalRecipient | RemoteRecipient | InvalidRecipient


_NO_LIMITS = HopLimits()


class RouteTable:
    """The routes, the local domains and their mailboxes.

    A pattern is a domain, "*.suffix" (every domain below it, not itself) or "*". The first route
    whose pattern matches decides. "*" matches all domains that are not local, so that a smarthost
    for all other mail does not get local mail (name the domain to route it).
    Without a route, mail for a local domain goes to its mailboxes, other mail to the domain's MX.
    Address literals have no MX: they are rejected unless a route matches "*" or the literal itself.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        domains: Iterable[str],
        accounts: AccountDirectory,
        *,
        catch_all: str = "",
        postmaster: str = "",
        tls: TlsLevel = "opportunistic",
        hostname: str = "",
        is_simulated: Callable[[str], bool] | None = None,
    ) -> None:
        """Make the table; password files are read here. `tls` is for hosts without a route's.
        `hostname` is this relay's, in whose name MAILER-DAEMON writes reports.

        Mail for an address that `is_simulated` goes to the MX hosts of its domain, whatever the
        routes say, unless the domain is local.
        Raises ValueError for a route that cannot be understood, and for a catch_all or postmaster
        that is no account.
        """
        self._domains = frozenset(domain.lower() for domain in domains)
        self._accounts = accounts
        self._catch_all = self._mailbox_of("catch_all", catch_all)
        self._postmaster = self._mailbox_of("postmaster", postmaster) or DEAD_LETTER
        self._daemon = f"mailer-daemon@{hostname.lower()}"
        self._is_simulated = is_simulated
        actions = [_action_of(route) for route in routes]
        both = list(zip(routes, actions, strict=True))
        self._credentials = read_credentials(both)
        self._default_tls = TlsPolicy(tls)
        self._tls = [_tls_of(route, tls) for route in routes]
        self._tls_to = _tls_by_hop(both, self._tls)
        self._limits = [HopLimits(route.max_connections, route.max_rate) for route in routes]
        self._limits_to = _limits_by_hop(actions, self._limits)
        self._route_for = lru_cache(_DOMAINS_KEPT)(self._find_route)
        self._routes: dict[str, tuple[int, RouteAction]] = {}
        for number, (route, action) in enumerate(both):
            self._routes.setdefault(route.domain.lower(), (number, action))

    def examine(self, address: str) -> RoutingResult:
        """Return where mail for `address` goes; its syntax has been checked."""
        domain = domain_of(address)
        if not domain:
            return self._examine_without_domain(address)
        if not domain.isascii():
            try:
                domain = to_ascii_domain(domain)
            except AddressError:
                # RFC 3463 3.2
                return _rejected("5.1.2", address, "this domain cannot exist; check its spelling")
        if self._is_daemon(address):
            return LocalRecipient(self._postmaster, is_answer=True)
        if domain in self._domains and _local_part(address) == "postmaster":
            mailbox = self.mailbox_for(address) or self._postmaster
            return LocalRecipient(mailbox, is_answer=mailbox == DEAD_LETTER)
        if self._goes_to_simulator(address, domain):
            return RemoteRecipient(NextHop(HopKind.MX, domain))
        _, action = self._route_for(domain) or (0, None)
        match action:
            case None if domain in self._domains:
                return self._examine_local(address)
            case None | UseMx():
                return _examine_mx(address, domain, routed=action is not None)
            case RejectRoute(status, text):
                return _rejected(status, address, text)
            case NextHop(kind=HopKind.LOCAL):
                return self._examine_local(address)
            case NextHop():
                return RemoteRecipient(action)

    def mailbox_for(self, address: str) -> str | None:
        """Return the mailbox for local mail to `address`, None if there is none (any more).

        Routes are not consulted: examine() did that when the message was accepted.
        """
        if account := self._accounts.by_address(address):
            return account.address
        if self._is_daemon(address):
            return self._postmaster
        if _local_part(address) == "postmaster" and domain_of(address) in (*self._domains, ""):
            return self._postmaster
        return self._catch_all or None

    def _is_daemon(self, address: str) -> bool:
        """Whether it is the author of this relay's reports, and no account has the address."""
        return address.lower() == self._daemon and self._accounts.by_address(address) is None

    def next_hop_for(self, address: str) -> NextHop | None:
        """Return the next hop for a report to `address`, or None if the address is invalid."""
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

    def tls_for(self, next_hop: NextHop) -> TlsPolicy:
        """Return the TLS policy of a next hop: that of its route, or the default.

        Mail that an operator reroutes to the MX of a routed domain has the default.
        """
        if next_hop.kind is not HopKind.MX:
            found = self._tls_to.get(next_hop, self._default_tls)
            return replace(found, implicit=next_hop.kind is HopKind.SMTPS)
        route = self._route_for(next_hop.host)
        uses_mx = route is not None and isinstance(route[1], UseMx)
        return self._tls[route[0]] if route is not None and uses_mx else self._default_tls

    def limits_for(self, next_hop: NextHop) -> HopLimits:
        """Return the limits for a next hop, of several routes to one host the strictest."""
        if next_hop.kind is not HopKind.MX:
            return self._limits_to.get(next_hop, _NO_LIMITS)
        route = self._route_for(next_hop.host)
        return self._limits[route[0]] if route else _NO_LIMITS

    def is_local_domain(self, domain: str) -> bool:
        """Whether `domain` is local; rules check the sender with it."""
        return domain.lower() in self._domains

    def _goes_to_simulator(self, address: str, domain: str) -> bool:
        if self._is_simulated is None or domain in self._domains or domain.startswith("["):
            return False
        return self._is_simulated(f"{address.rpartition('@')[0]}@{domain}")

    def _find_route(self, domain: str) -> tuple[int, RouteAction] | None:
        """Find the first route among the few patterns that can match."""
        if not self._routes:
            return None
        best: tuple[int, RouteAction] | None = self._routes.get(domain)
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

    def _examine_local(self, address: str) -> RoutingResult:
        """Return the mailbox, or 550 5.1.1 for an unknown user."""
        if mailbox := self.mailbox_for(address):
            return LocalRecipient(mailbox)
        return _rejected("5.1.1", address, "no such user here; check the spelling")  # RFC 3463 3.2

    def _examine_without_domain(self, address: str) -> RoutingResult:
        # RFC 5321 4.5.1: postmaster is always accepted, also without a domain
        if address.lower() == "postmaster":
            return LocalRecipient(self._postmaster, is_answer=self._postmaster == DEAD_LETTER)
        return _rejected("5.1.3", address, "this address has no domain; write user@domain")

    def _mailbox_of(self, key: str, address: str) -> str:
        if not address:
            return ""
        account = self._accounts.by_address(address)
        if account is None:
            raise ValueError(f"mailboxes.{key}: found {address!r}, expected an account's address")
        return account.address


def _limits_by_hop(
    actions: Sequence[RouteAction], limits: Sequence[HopLimits]
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


def _action_of(route: Route) -> RouteAction:
    try:
        return parse_action(route.next_hop)
    except ValueError as error:
        raise ValueError(f"route {route.domain!r}: next_hop: {error}") from error


def _examine_mx(address: str, domain: str, *, routed: bool) -> RoutingResult:
    if not domain.startswith("["):
        return RemoteRecipient(NextHop(HopKind.MX, domain))
    host = literal_address(domain)
    if host is None:
        return _rejected("5.1.3", address, "this address literal is malformed; use a domain name")
    if not routed:
        # RFC 3463 3.2
        return _rejected("5.1.2", address, "no mail to address literals; use a domain name")
    return RemoteRecipient(NextHop(HopKind.MX, domain))


def literal_address(domain: str) -> str | None:
    """Return the IP address in "[192.0.2.1]" or "[IPv6:2001:db8::1]", None for other text."""
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


def _rejected(status: str, address: str, text: str) -> InvalidRecipient:
    return InvalidRecipient(status, own_reply(status, f"<{address}>: {text}"))
