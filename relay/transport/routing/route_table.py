"""The route table: an address belongs to a mailbox here, to a next hop, or is invalid.

Ingress examines every recipient with it, delivery looks up mailboxes, TLS and limits, reports look
up next hops. The first route that matches decides where the mail leaves; the address that its
`recipient` names is valid. A table that cannot be made raises ValueError. A lookup never fails and
costs a few dictionary reads.

In a local domain with accounts, the addresses of accounts are valid. With `catch_all` every other
address is valid too: it is an alias if the catch_all is an address elsewhere. In a local domain
whose mail is passed on, `own_domains` says which addresses are valid.

Mail to postmaster (also without a domain) and to MAILER-DAEMON of this host is valid without an
account. It goes to the postmaster, or into the dead-letter mailbox if no postmaster is set; without
a domain to an alias for postmaster in the first local domain, if no postmaster is set. In a
domain whose mail is passed on, mail to postmaster is passed on too.

is_local_domain() decides which domain is local, or own. A result is local if its recipient is: then
every client may send to it, and rules do not treat it as outbound. Aliases:
relay/base/accounts/aliases.py; one route and its options: `routes`; the values that are returned,
and the replies to invalid recipients: `routing_result`.

See RFC 5321 2.3.5, 4.5.1 (postmaster) and 5.1.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace as replace_fields
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

from relay.base.accounts.account import DEAD_LETTER, AccountDirectory, AliasTarget, Expansion
from relay.base.message.address import literal_address, own_mailbox, untagged
from relay.base.message.envelope import OWN_REPORT, domain_of, main_address
from relay.base.message.nexthop import (
    BY_RULE,
    CAPTURE,
    LOCAL,
    ROUTE_PREFIX,
    Destination,
    HopKind,
    NextHop,
)
from relay.base.message.tls_policy import CONFIGURATION, TlsLevel, TlsPolicy
from relay.base.settings.tree import OwnDomain, Route
from relay.base.settings.validation import sender_matches
from relay.transport.routing.own_domains import OwnDomains, catch_alls_elsewhere
from relay.transport.routing.routes import (
    Fallback,
    GraphOptions,
    HoldMail,
    HopOptions,
    RejectRoute,
    RouteChanges,
    TableRoute,
    UseMx,
    table_route,
    tls_of,
)
from relay.transport.routing.routing_result import (
    REJECT_STATUS,
    UNKNOWN,
    InvalidRecipient,
    LocalRecipient,
    RemoteRecipient,
    RoutingResult,
    rejected,
    unknown_user,
)

# A host that trusts this one may read ann+bob%elsewhere as bob@elsewhere (Postfix:
# allow_untrusted_routing).
_SENDER_ROUTED = re.compile("[@%!]")
_DOMAINS_KEPT = 4096  # domains whose route is cached: each address is looked up three times


class Confinement(Struct, frozen=True):
    """What is different where no mail leaves this machine. Mail for an address that `is_simulated`
    goes to the MX hosts of its domain, whatever the routes say, unless the domain is local. What a
    rule sends to a next hop that this `captures` is captured.
    """

    is_simulated: Callable[[str], bool]
    captures: Callable[[NextHop], bool]


class RouteTable:
    """The routes, the local domains and their mailboxes.

    A pattern is a domain, "*.suffix" (every domain below it, not itself) or "*". The first route
    whose pattern matches decides. "*" matches all domains that are not local, so that a smarthost
    for all other mail does not get local mail (name the domain to route it).
    Without a route, mail for a local domain with accounts goes to its mailboxes, other mail to the
    domain's MX.
    Address literals have no MX: they are rejected unless a route matches "*" or the literal itself.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        domains: Iterable[str | OwnDomain],
        accounts: AccountDirectory,
        *,
        catch_all: str = "",
        postmaster: str = "",
        tls: TlsLevel = "opportunistic",
        hostname: str = "",
        confinement: Confinement | None = None,
    ) -> None:
        """Make the table, and read the files of passwords and recipients. `domains` are the local
        ones; a plain name is a domain with accounts and this `catch_all`. `tls` is for hosts to
        which no route leads. `hostname` is the name of this relay, as which MAILER-DAEMON writes
        reports.

        Raises ValueError for a route that cannot be understood, and for a catch_all or postmaster
        that is no account; SettingsError for a file of recipients.
        """
        self._accounts = accounts
        domains = tuple(domains)
        self._outside = catch_alls_elsewhere(domains, catch_all)
        self._catch_all = self._mailbox_of("mailboxes.catch_all", catch_all)
        self._postmaster = self._mailbox_of("mailboxes.postmaster", postmaster) or DEAD_LETTER
        first = next((d if isinstance(d, str) else d.name for d in domains), "")
        self._first_postmaster = f"postmaster@{first}"
        self._own = OwnDomains(domains, catch_all=self._catch_all, mailbox_of=self._mailbox_of)
        self.alias_domains = self._own.alias_domains
        self._hostname = hostname.lower()
        self.signed: Collection[str] = ()  # the domains of keys for DKIM
        self._confinement = confinement
        # returns whether a domain is local at another node
        self.is_of_other_store: Callable[[str], bool] = lambda _domain: False
        self._default_options = HopOptions(TlsPolicy(tls), is_mx=True)
        self._routes_for = lru_cache(_DOMAINS_KEPT)(self._find_routes)
        self._leaving = lru_cache(_DOMAINS_KEPT)(self._find_leaving)
        self._by_pattern: dict[str, list[TableRoute]] = {}  # each in their order
        self.named: dict[str, TableRoute] = {}
        self._routes_to: dict[NextHop, list[TableRoute]] = {}  # each host, in their order
        for number, setting in enumerate(routes):
            if not setting.next_hop:  # it is left out
                continue
            route = table_route(number, setting, tls)
            self._by_pattern.setdefault(route.domain, []).append(route)
            self.named[route.name] = route
            if isinstance(route.action, NextHop):
                self._routes_to.setdefault(route.action, []).append(route)
        takers = {self._catch_all, self._postmaster, *self._own.takers} - {"", DEAD_LETTER}
        is_routed = any(self._routes_for(domain_of(mailbox)) for mailbox in takers)
        self._may_move = is_routed or bool(self._outside)

    def use(self, read: "RouteTable") -> RouteChanges:
        """Take over the routes and domains of the table `read`, at once for all callers of this
        one. The accounts stay: they are reloaded separately. Return the differences.
        """
        before, now = self.named, read.named
        changed = [name for name in before if name in now and not before[name].equals(now[name])]
        removed = [name for name in before if name not in now]
        over = [before[name] for name in (*changed, *removed)]
        ended = {via for route in over for via in (route.options, route.fallback.options) if via}
        kept = ("_accounts", "is_of_other_store")
        self.__dict__ |= read.__dict__ | {name: self.__dict__[name] for name in kept}
        return RouteChanges(
            added=tuple(name for name in now if name not in before),
            changed=tuple(changed),
            removed=tuple(removed),
            ended=frozenset(ended - {self._default_options}),
        )

    def examine(self, address: str, reverse_path: str = "") -> RoutingResult:
        """Return where mail for `address` goes; its syntax has been checked. Without
        `reverse_path` it is a report; OWN_REPORT is one that a route to Graph may take.
        """
        if (leaving := self.leaving(address)) is not None:
            return leaving
        address = self.target_of(address)
        domain = domain_of(address)
        if not domain:
            return self._examine_without_domain(address)
        if not domain.isascii():
            # RFC 3463 3.2
            return rejected("5.1.2", address, "this domain cannot exist; check its spelling")
        if self.is_daemon(address):
            return LocalRecipient(self._postmaster, is_answer=True)
        if self._goes_to_simulator(address, domain):
            return RemoteRecipient(NextHop(HopKind.MX, domain))
        is_report = reverse_path in ("", OWN_REPORT)
        if is_report and self._is_of_host(domain, address):
            return LocalRecipient(self._postmaster, is_answer=True, is_local=False)
        result = self._examine_by_routes(address, domain, reverse_path)
        if _local_part(address) == "postmaster" and (mailbox := self._postmaster_of(domain)):
            account = self._accounts.by_address(address)
            if account is None or isinstance(result, InvalidRecipient):  # RFC 5321 4.5.1
                mailbox = account.address if account else mailbox
                return LocalRecipient(mailbox, is_answer=mailbox == DEAD_LETTER)
        return result

    def leaving(self, address: str) -> RemoteRecipient | None:
        """Return where mail for a domain leaves, if neither the rest of the address nor the sender
        changes it. Nearly all other domains are such; their addresses are not expanded.
        """
        _, at, domain = address.rpartition("@")
        return self._leaving(domain) if at else None

    def _find_leaving(self, domain: str) -> RemoteRecipient | None:
        domain = domain_of(f"@{domain}")
        is_own = domain in ("", self._hostname) or self.is_local_domain(domain)
        if is_own or not domain.isascii() or self._confinement is not None:
            return None
        routes = self._routes_for(domain)
        if any(route.sender or route.recipient or route.options.graph for route in routes):
            return None
        result = self._examine_by_routes("", domain, "")
        return result if isinstance(result, RemoteRecipient) else None

    def _examine_by_routes(
        self, address: str, domain: str, reverse_path: str, *, after: int = -1
    ) -> RoutingResult:
        """Return where the first route sends mail that takes it and comes after the route number
        `after`. Without such a route, the accounts or the MX of the domain decide.
        """
        route = self._route_for(domain, reverse_path, address=address, after=after)
        own = self._own.find(domain)
        if route is None:
            if own is not None and own.has_accounts:
                return self._examine_local(address)
            mx = _examine_mx(address, domain)
            return mx if own is None else self._passed_on(address, own, mx)
        match route.action:
            case HoldMail():
                result = self._examine_by_routes(address, domain, reverse_path, after=route.number)
                if isinstance(result, InvalidRecipient):
                    return result
                return replace(result, held=f"route {route.name}")
            case RejectRoute(status, text):
                return rejected(status, address, text, route=route.name)
            case NextHop() if route.result is None:  # LOCAL
                return self._examine_local(address, route=route.name)
        result = route.result or _examine_mx(address, domain, route=route.name)
        if isinstance(result, RemoteRecipient):
            result = route.with_mailbox(result, reverse_path, address)
        if own is None:
            return result
        return self._passed_on(address, own, result, is_named=bool(route.recipient))

    def _passed_on(
        self, address: str, own: OwnDomain, result: RoutingResult, *, is_named: bool = False
    ) -> RoutingResult:
        """Return `result`, by which mail for an own domain leaves, if the address is valid there or
        a route names it (`is_named`).
        """
        if not isinstance(result, RemoteRecipient):
            return result
        local_part = _local_part(address)
        if own.has_accounts and not is_named and self._accounts.by_address(address) is None:
            return self._examine_local(address)  # expand() knows where the catch_all's mail leaves
        is_listed = is_named or self._own.lists(own, address)
        if not is_listed and local_part != "postmaster":  # RFC 5321 4.5.1
            return unknown_user(address)
        is_known = is_named or own.has_accounts or own.file is not None
        if _SENDER_ROUTED.search(local_part.partition("+")[2] if is_known else local_part):
            text = "@, % and ! in a local part are not passed on"
            return rejected(REJECT_STATUS, address, text)
        return replace(result, is_local=True, is_asked=own.recipients == "verify")

    def examine_chosen(
        self, address: str, way: str, usual: LocalRecipient | RemoteRecipient, *, reverse_path: str
    ) -> LocalRecipient | RemoteRecipient:
        """Return where mail for `address` goes if a rule sends it by `way`: "route:NAME", or the
        text of a next hop.

        `usual` is where it goes without the rule. That remains for an answer to a report, for an
        address without a domain whose MX could take it, and if the route sends no mail with this
        `reverse_path`. If `usual` is held, the result is held too. Raises LookupError for a route
        that does not exist or gives no next hop.
        """
        if usual.is_answer:
            return usual
        name = way.removeprefix(ROUTE_PREFIX)
        if name == way:
            result = RemoteRecipient(NextHop.parse(way)._replace(route=BY_RULE), BY_RULE)
        else:
            route = self.named[name]
            if isinstance(route.action, HoldMail):
                return usual if usual.held else replace(usual, held=f"route {name}")
            if isinstance(route.action, UseMx):
                domain = domain_of(address)
                mx = _examine_mx(address, domain, route=name)
                if not isinstance(mx, RemoteRecipient):
                    return usual
                result = mx
            elif route.result is None:
                raise LookupError(f"route {name!r} gives no next hop")
            elif not self._may_take(route, route.sender_of(reverse_path, address)):
                return usual
            else:
                result = route.with_mailbox(route.result, reverse_path, address)
        if self._confinement is not None and self._confinement.captures(result.next_hop):
            result = RemoteRecipient(CAPTURE, result.route)
        return replace(result, held=usual.held, chosen=True)

    def lookup_by_route(self, name: str) -> Callable[[str, str], Destination | None]:
        """Return a function that gives addresses the next hop of the route `name`, which an
        operator has chosen. Raises ValueError for a route that does not exist or gives no next hop.
        """
        leading = [
            route_name
            for route_name, route in self.named.items()
            if route.result is not None or isinstance(route.action, UseMx)
        ]
        if name not in leading:
            expected = ", ".join(leading) or "there is none"
            raise ValueError(f"found {name!r}, expected the name of a route to hosts: {expected}")
        nowhere = RemoteRecipient(CAPTURE, "")

        def next_hop(address: str, reverse_path: str) -> Destination | None:
            way = f"{ROUTE_PREFIX}{name}"
            result = self.examine_chosen(address, way, nowhere, reverse_path=reverse_path)
            if not isinstance(result, RemoteRecipient) or not domain_of(address):
                return None
            return None if result.next_hop == CAPTURE else Destination(result.next_hop, chosen=True)

        return next_hop

    def expand(self, address: str, reverse_path: str = "") -> Expansion | None:
        """Return who gets the mail for an alias, for an address of a domain with `alias_of`, or for
        an address that a catch_all elsewhere takes; examine() does not know aliases. If another
        catch_all or a postmaster takes the mail, and a route sends mail for that account elsewhere,
        the mail goes to the account's address. None for any other address.
        """
        main = self.target_of(address)
        is_unread = main == "postmaster" and self._postmaster == DEAD_LETTER
        expansion = self._accounts.expand(self._first_postmaster if is_unread else main)
        if expansion is None and main != address:
            expansion = Expansion((AliasTarget(main, (own_mailbox(address),)),))
        if not self._may_move:  # nearly always
            return expansion
        targets = expansion.targets if expansion is not None else (AliasTarget(address),)
        moved: dict[str, AliasTarget] = {}
        for alias_target in [self._moved(target, reverse_path) for target in targets]:
            moved.setdefault(own_mailbox(alias_target.address), alias_target)
        made = Expansion(tuple(moved.values()), expansion.writers if expansion else None)
        return expansion if made.targets == targets else made

    def _moved(self, target: AliasTarget, reverse_path: str) -> AliasTarget:
        result = self.examine(target.address, reverse_path)
        if isinstance(result, InvalidRecipient) and result.status == UNKNOWN and not result.route:
            elsewhere = self._outside.get(domain_of(self.target_of(target.address)))
            through = (*target.through, own_mailbox(target.address))
            return AliasTarget(elsewhere, through) if elsewhere else target
        if not isinstance(result, LocalRecipient) or self._accounts.by_address(target.address):
            return target
        if not isinstance(self.examine(result.mailbox, reverse_path), RemoteRecipient):
            return target
        return AliasTarget(result.mailbox, (*target.through, own_mailbox(target.address)))

    def target_of(self, address: str) -> str:
        """Return the address in the main domain, if the domain has `alias_of`; otherwise the
        address.
        """
        return main_address(address, self.alias_domains) if self.alias_domains else address

    def mailbox_for(self, address: str) -> str | None:
        """Return the mailbox for local mail to `address`, None if there is none (any more).

        Routes are not consulted: examine() did that when the message was accepted.
        """
        address = self.target_of(address)
        if account := self._accounts.by_address(address):
            return account.address
        domain = domain_of(address)
        if self.is_daemon(address) or self._is_of_host(domain, address):
            return self._postmaster
        if _local_part(address) == "postmaster" and (mailbox := self._postmaster_of(domain)):
            return mailbox
        own = self._own.find(domain)
        return (self._catch_all if own is None else own.catch_all) or None

    def _postmaster_of(self, domain: str) -> str:
        """Return the mailbox of a domain's postmaster without an account, "" if it has none."""
        own = self._own.find(domain)
        if own is None:
            return "" if domain else self._postmaster
        return own.postmaster or (self._postmaster if own.has_accounts else "")

    def is_daemon(self, address: str) -> bool:
        """Whether the address is MAILER-DAEMON, the author of this relay's reports, without an
        account.
        """
        daemon = f"mailer-daemon@{self._hostname}"
        return own_mailbox(address) == daemon and self._accounts.by_address(address) is None

    def _is_of_host(self, domain: str, address: str) -> bool:
        """Whether reports to an address of this host's name go to the postmaster. This requires
        that the name is no own domain, and that only routes for "*" take the mail: the hosts there
        know no such address.
        """
        if domain != self._hostname or self.is_local_domain(domain):
            return False
        routes = [route for route in self._routes_for(domain) if route.takes_recipient(address)]
        others = [route for route in routes if route.domain != "*" or route.action == CAPTURE]
        return bool(routes) and not others

    def next_hop_for(self, address: str, reverse_path: str = "") -> NextHop | None:
        """Return the next hop of mail for `address`, or None if the address is invalid. Without
        `reverse_path` it is a report.
        """
        destination = self.destination_of(address, reverse_path)
        return None if destination is None else destination.next_hop

    def destination_of(self, address: str, reverse_path: str = "") -> Destination | None:
        """Return the next hop, and why mail is held there: a RouteLookup of the routes."""
        return _destination(self.examine(address, reverse_path))

    def options_for(self, next_hop: NextHop) -> HopOptions:
        """Return how to contact the hosts of a next hop, as its route says.

        Without the name of a route, the first route to the host decides. For the MX of a domain
        this is the domain's route, if that leads to the MX. Without a route, [delivery] decides.
        """
        route = self._route_behind(next_hop)
        if route is not None:
            is_fallback = route.fallback.is_at(next_hop)
            options = (is_fallback and route.fallback.options) or route.options
            if next_hop.mailbox and options.login is not None:
                login = replace_fields(options.login, user=next_hop.mailbox)
                return replace(options, login=login)
            return options
        if next_hop.kind is HopKind.MX:
            return self._default_options
        tls = tls_of(next_hop, self._default_options.tls)
        is_graph = next_hop.kind is HopKind.GRAPH  # of a route that is gone: there is no login
        return HopOptions(tls, graph=GraphOptions() if is_graph else None)

    def graph_mailbox(self, next_hop: NextHop) -> str:
        """Return the mailbox as which mail leaves at a graph:// next hop, "" at any other."""
        login = self.options_for(next_hop).login if next_hop.kind is HopKind.GRAPH else None
        return login.user if login is not None else ""

    def login_address(self, next_hop: NextHop) -> str:
        """Return the user of the login at a next hop by SMTP if that is an address, else the first
        address that a route with this login has as its `sender`; "" without either.
        """
        login = None if next_hop.kind is HopKind.GRAPH else self.options_for(next_hop).login
        if login is None or "@" in login.user:
            return login.user if login is not None else ""
        names = self.names_of_login(next_hop, whole_domain=False) or ()
        return next((name for name in names if "*" not in name), "")

    def names_of_login(self, next_hop: NextHop, *, whole_domain: bool) -> tuple[str, ...] | None:
        """Return the patterns of addresses that the login at a next hop stands for, `local@domain`
        or `*@domains`: its mailbox, the mailbox's domain and those below it if it is local or
        signed (DKIM), always with `whole_domain`; the `sender` of each route with this login; and
        those of its fallback's login. None without a login.
        """
        login = self.options_for(next_hop).login
        if login is None:
            return None
        mailbox = untagged(own_mailbox(login.user))
        domain, patterns = domain_of(mailbox), [mailbox]
        is_signed = any(f".{domain}".endswith(f".{name}") for name in self.signed)
        if whole_domain or is_signed or self.is_local_domain(domain):
            patterns += [f"*@{domain}", f"*@*.{domain}"]
        for route in self.named.values():
            other = route.options.login
            if other is None or replace_fields(other, user=login.user) != login:
                continue
            takes = route.logs_in_as_sender and sender_matches(route.sender, mailbox)
            if takes or untagged(own_mailbox(other.user)) == mailbox:
                patterns.append(route.sender)
        if (way := self.fallback_for(next_hop)) is not None and way.to is not None:
            patterns += self.names_of_login(way.to, whole_domain=whole_domain) or ()
        return tuple([pattern for pattern in patterns if "@" in pattern])

    def tls_demanded_by(self, next_hop: NextHop) -> str:
        """Return who demands the TLS level of options_for(): "route NAME" or "configuration"."""
        route = self._route_behind(next_hop)
        return f"route {route.name}" if route is not None and route.demands_tls else CONFIGURATION

    def fallback_for(self, next_hop: NextHop) -> Fallback | None:
        """Return where mail goes if no host of a next hop answers; None: it waits there."""
        route = self.named.get(next_hop.route)
        if route is None or route.fallback.to is None or not route.leads_to(next_hop):
            return None
        way = route.fallback
        return Fallback() if way.is_at(next_hop) else way.for_mailbox(next_hop.mailbox)

    def is_too_large(self, next_hop: NextHop, size: int) -> bool:
        """Whether the route that led to a next hop takes no content of `size` octets."""
        route = self.named.get(next_hop.route)
        graph = route.options.graph if route is not None else None
        return graph is not None and graph.mime_max < size

    def must_stay(self, next_hop: NextHop, *, chosen: bool, is_report: bool = False) -> bool:
        """Whether mail stays at a next hop wherever the routes lead. Captured mail stays. What a
        rule or an operator has `chosen` stays, unless it is a route that no longer leads there, or
        an OWN_REPORT (`is_report`) whose route takes none any more.
        """
        if next_hop == CAPTURE or not chosen:
            return next_hop == CAPTURE
        route = self.named.get(next_hop.route)
        is_named = next_hop.route not in ("", BY_RULE)
        if not is_named or route is None:
            return not is_named
        if is_report and route.options.graph and not route.takes_reports:
            return False
        mailbox = next_hop.mailbox
        return route.leads_to(next_hop) and (not mailbox or self._may_take(route, mailbox))

    def _may_take(self, route: TableRoute, sender: str) -> bool:
        return route.may_take(sender) or route.may_take(self.target_of(sender))

    def _route_behind(self, next_hop: NextHop) -> TableRoute | None:
        """Return the route that says how to contact a next hop."""
        if next_hop.route:
            route = self.named.get(next_hop.route)
            if route is not None and route.leads_to(next_hop):
                return route
        if next_hop.kind is HopKind.MX:
            route = self._route_for(next_hop.host, "")
            while route is not None and isinstance(route.action, HoldMail):
                route = self._route_for(next_hop.host, "", after=route.number)
            return route if route is not None and isinstance(route.action, UseMx) else None
        # of no route, if it is named and gone
        return next(iter(self._routes_to.get(next_hop, ())), None)

    def is_local_domain(self, domain: str) -> bool:
        """Whether `domain` is local. All rooms ask here."""
        return self._own.find(domain) is not None

    def is_own_anywhere(self, domain: str) -> bool:
        """Whether `domain` is local, here or at another node of the spool."""
        return self.is_local_domain(domain) or self.is_of_other_store(domain)

    def _goes_to_simulator(self, address: str, domain: str) -> bool:
        if self._confinement is None or self.is_local_domain(domain) or domain.startswith("["):
            return False
        return self._confinement.is_simulated(f"{address.rpartition('@')[0]}@{domain}")

    def _route_for(
        self, domain: str, reverse_path: str, *, address: str = "", after: int = -1
    ) -> TableRoute | None:
        """Return the first route that takes the mail and comes after the route number `after`."""
        for route in self._routes_for(domain):
            if route.number > after and (
                route.takes(address, reverse_path)
                or (self.alias_domains and route.takes(address, self.target_of(reverse_path)))
            ):
                return route
        return None

    def _find_routes(self, domain: str) -> tuple[TableRoute, ...]:
        """Return the routes for a domain in their order; only the few patterns that can match are
        read.
        """
        if not self._by_pattern:
            return ()
        patterns = [domain] if self.is_local_domain(domain) else [domain, "*"]
        labels = domain
        while "." in labels and not domain.startswith("["):
            labels = labels.partition(".")[2]
            patterns.append(f"*.{labels}")
        routes = [route for pattern in patterns for route in self._by_pattern.get(pattern, ())]
        return tuple(sorted(routes, key=lambda route: route.number))

    def _examine_local(self, address: str, *, route: str = "") -> RoutingResult:
        """Return the mailbox, or 550 5.1.1 for an unknown user."""
        if mailbox := self.mailbox_for(address):
            return LocalRecipient(mailbox, route=route)
        return unknown_user(address)

    def _examine_without_domain(self, address: str) -> RoutingResult:
        # RFC 5321 4.5.1: postmaster is always accepted, also without a domain
        if address.lower() == "postmaster":
            return LocalRecipient(self._postmaster, is_answer=self._postmaster == DEAD_LETTER)
        return rejected("5.1.3", address, "this address has no domain; write user@domain")

    def _mailbox_of(self, key: str, address: str) -> str:
        if not address or address in self._outside.values():
            return ""
        account = self._accounts.by_address(address)
        if account is None:
            raise ValueError(f"{key}: found {address!r}, expected an account's address")
        return account.address


def _destination(result: RoutingResult) -> Destination | None:
    if isinstance(result, InvalidRecipient):
        return None
    hop = LOCAL if isinstance(result, LocalRecipient) else result.next_hop
    return Destination(hop, held=result.held)


def _examine_mx(address: str, domain: str, *, route: str = "") -> RoutingResult:
    is_literal = domain.startswith("[")
    if is_literal and literal_address(domain) is None:
        return rejected("5.1.3", address, "this address literal is malformed; use a domain name")
    if is_literal and not route:
        # RFC 3463 3.2
        return rejected("5.1.2", address, "no mail to address literals; use a domain name")
    return RemoteRecipient(NextHop(HopKind.MX, domain, route=route), route)


def _local_part(address: str) -> str:
    local_part, at, name = own_mailbox(address).rpartition("@")
    return local_part if at else name
