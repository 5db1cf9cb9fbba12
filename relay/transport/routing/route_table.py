"""The route table: an address belongs to a mailbox here, to a next hop, or is invalid.

In a local domain with accounts, their addresses are valid, and every other one with `catch_all`,
which is as an alias of that name where it is an address elsewhere;
in one whose mail is passed on, those that `own_domains` says. Mail to postmaster (also without a
domain) and to MAILER-DAEMON of this host is valid without an account and goes to the postmaster, or
into the dead-letter mailbox if no postmaster is set; in a domain whose mail is passed on it
goes there. A route decides where the mail of a valid address leaves; its `recipient` is valid.
What aliases lead to is in relay/base/accounts/aliases.py.

Which domain is local, or own, is decided in is_local_domain(). A result is local if its recipient
is: then anybody may send to it, and in rules it is not outbound.

Ingress examines every recipient with it, delivery looks up mailboxes, TLS and limits, reports look
up next hops. The reply for an unknown user (550 5.1.1) is made here. The first route that
matches wins. A table that cannot be made raises ValueError; a lookup never fails and costs a few
dictionary reads. See RFC 5321 2.3.5, 4.5.1 (postmaster) and 5.1.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from relay.base.accounts.account import DEAD_LETTER, AccountDirectory, AliasTarget, Expansion
from relay.base.message.address import literal_address, own_mailbox
from relay.base.message.envelope import domain_of, main_address
from relay.base.message.nexthop import (
    BY_RULE,
    CAPTURE,
    LOCAL,
    ROUTE_PREFIX,
    Destination,
    HopKind,
    NextHop,
)
from relay.base.message.status import own_reply, split_reply
from relay.base.message.tls_policy import CONFIGURATION, TlsLevel, TlsPolicy
from relay.base.phrases import without_login
from relay.base.settings.tree import MIME_MAX, SENDER, OwnDomain, Route, RouteAuth
from relay.base.settings.validation import (
    as_fallback,
    name_of,
    recipient_matches,
    sender_matches,
    verifies,
)
from relay.base.settings.values import parse_next_hop
from relay.transport.routing.own_domains import OwnDomains, catch_alls_elsewhere

_UNKNOWN = "5.1.1"  # RFC 3463 3.2
REJECT_STATUS = "5.7.1"  # X.7.1: delivery not authorised

# A host that trusts this one may read ann+bob%elsewhere as bob@elsewhere (Postfix:
# allow_untrusted_routing).
_SENDER_ROUTED = re.compile("[@%!]")
_GRAPH_CONNECTIONS, _GRAPH_RATE = 4, "30/60.0"  # of a mailbox, as Exchange Online has them
_DOMAINS_KEPT = 4096  # domains whose route is cached: each address is looked up three times


class UseMx(Struct, frozen=True):
    """The MX hosts of the recipient's own domain."""


class RejectRoute(Struct, frozen=True):
    """Reject the recipient: `status` is 5.y.z, `text` is for the sender."""

    status: str
    text: str


class HoldMail(Struct, frozen=True):
    """The mail is held: the routes that follow say where a release sends it."""


RouteAction = UseMx | RejectRoute | HoldMail | NextHop


@dataclass(frozen=True, slots=True)
class Credentials:
    """A login for a next hop: a password, or tokens of the [[oauth]] of this name."""

    user: str  # with tokens: the mailbox
    password: str = field(default="", repr=False)
    oauth: str = ""


class HopOptions(Struct, frozen=True):
    """How the hosts of a next hop are contacted, as its route says. Next hops whose options differ
    share no connection. The limits apply in addition to those of [delivery].
    """

    tls: TlsPolicy  # unless the domain or the message demands more
    login: Credentials | None = None  # None: mail is sent without one
    connections_max: int | None = None  # None: that of [delivery]
    rate: str = ""  # COUNT/SECONDS; "": that of [delivery]
    source_address: str = ""  # "": the system chooses
    requiretls: bool = False  # a verified name is enough for mail with REQUIRETLS
    is_mx: bool = False  # the DNS, not a route, names the host: one with our own name is a loop
    confirm: bool = True  # of Graph: a lost answer is looked for
    mime_max: int = 0  # of Graph: octets of content


class WayAround(Struct, frozen=True):
    """Where mail goes if no host of its next hop has answered for so long; `to` is None for the way
    back from a fallback, which the next attempt takes.
    """

    to: NextHop | None = None
    after_us: int = 0
    options: HopOptions | None = None  # how the hosts of a fallback are contacted


def parse_action(text: str) -> RouteAction:
    """Parse a route's `next_hop`.

    "reject:5.1.6 Moved to example.org" has its own enhanced status code; the default is 5.7.1.
    Raises ValueError that says what was expected.
    """
    if text == "mx":
        return UseMx()
    if text == "local":
        return LOCAL
    if text == "hold":
        return HoldMail()
    if text == "capture":
        return CAPTURE
    if text.startswith("reject:"):
        return _parse_reject(text.removeprefix("reject:").strip())
    try:
        text = parse_next_hop(text)
    except ValueError as error:
        raise ValueError(f"found {without_login(text)!r}, expected {error}") from None
    return NextHop.parse(text)


def _options_of(route: Route, action: RouteAction, default: TlsLevel) -> HopOptions:
    """Return what the route says of its hosts; the files of its password and CA are read here.

    With a login the default of `tls` is "verify", unless next_hop is a loopback address or
    localhost. Only the text of the route decides, so that no answer of the DNS lowers the level.
    Raises ValueError for a login without a host, and for a password file that cannot be read or is
    empty.
    """
    hop = action if isinstance(action, NextHop) else None
    if route.auth and (hop is None or not hop.host or hop.is_socket):
        text = "auth needs an smtp://, smtps://, lmtp:// or graph:// next hop"
        raise ValueError(f"route {name_of(route)!r}: {text}")
    level = "verify" if verifies(route) else route.tls or default
    is_graph = hop is not None and hop.kind is HopKind.GRAPH
    if is_graph and level != "verify":
        level = "none"
    return HopOptions(
        tls=_tls_of(hop, TlsPolicy(level, ca=route.ca, ca_digest=_digest(route.ca))),
        login=_login(name_of(route), route.auth) if route.auth else None,
        connections_max=route.max_connections or (_GRAPH_CONNECTIONS if is_graph else None),
        rate=route.max_rate or (_GRAPH_RATE if is_graph else ""),
        source_address=route.source_address,
        requiretls=route.requiretls == "verified",
        is_mx=isinstance(action, UseMx),
        confirm=route.confirm is not False,
        mime_max=(route.mime_max or MIME_MAX) if is_graph else 0,
    )


def _tls_of(hop: NextHop | None, policy: TlsPolicy) -> TlsPolicy:
    """Return the policy for a next hop: what its scheme says prevails."""
    if hop is not None and hop.is_socket:
        return TlsPolicy("none")
    kind = hop.kind if hop is not None else None
    is_https = kind is HopKind.GRAPH and policy.level != "none"
    return replace(policy, implicit=is_https or kind is HopKind.SMTPS)


def _digest(file: Path | None) -> str:
    """Return that of a CA file; "" if it cannot be read, which the next connection reports."""
    try:
        return sha256(file.read_bytes()).hexdigest() if file is not None else ""
    except OSError:
        return ""


def _login(name: str, auth: RouteAuth) -> Credentials:
    if auth.oauth:
        return Credentials(auth.user, oauth=auth.oauth)
    path = auth.password_file
    assert path is not None  # the settings have either
    try:
        password = path.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"route {name!r}: password_file {path} cannot be read: {error}") from error
    if not password:
        raise ValueError(f"route {name!r}: password_file {path} has an empty first line")
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
    route: str = ""  # that decided; "": none did
    held: str = ""  # the reason, "route NAME": it waits for a release; "": it does not
    held_until_us: int = 0  # in queue time; 0: no time ends the hold
    is_local: bool = True  # False: of this host's name, which is no own domain


class RemoteRecipient(Struct, frozen=True):
    """Mail for it leaves by `next_hop` (or is captured there)."""

    next_hop: NextHop  # where it leaves, or CAPTURE
    route: str = ""  # that decided; "": none did
    held: str = ""  # as of a LocalRecipient
    held_until_us: int = 0  # the same
    chosen: bool = False  # by a mail-flow rule: no route has to match
    is_local: bool = False  # valid in a local domain, whose mail leaves for this address
    is_asked: bool = False  # the next hop says whether it takes the address of a local domain
    is_answer: bool = False  # the postmaster gets it, as of a LocalRecipient


class InvalidRecipient(Struct, frozen=True):
    """Mail for it is rejected: `text` is a whole SMTP reply, `status` its enhanced code."""

    status: str
    text: str
    route: str = ""  # that rejects it; "": its address or domain is unknown


RoutingResult = LocalRecipient | RemoteRecipient | InvalidRecipient


@dataclass(frozen=True, slots=True)
class _TableRoute:
    """One route: which mail it takes, where to, and how."""

    number: int  # its place in the order
    name: str  # unique
    domain: str  # the pattern of the recipients' domains, in lower case
    sender: str  # the pattern of the reverse-path, "" for all
    recipient: str  # the only address that it takes, with any tag; "" for all
    action: RouteAction  # what becomes of the mail
    options: HopOptions  # how its hosts are contacted
    result: RemoteRecipient | None  # for all mail that it takes; None: it depends on the address
    demands_tls: bool  # whether it says the TLS level itself
    fallback: WayAround  # without `to`: it has none
    is_graph: bool  # Graph takes no mail with the null reverse-path
    logs_in_as_sender: bool  # with the address in MAIL

    def takes(self, address: str, reverse_path: str) -> bool:
        """Whether it takes mail with this reverse-path for an address of its domain."""
        is_of_sender = not self.sender or sender_matches(self.sender, reverse_path)
        return is_of_sender and self.may_take(reverse_path) and self.takes_recipient(address)

    def may_take(self, reverse_path: str) -> bool:
        """Whether it can send mail with this reverse-path, also if a rule chooses it."""
        if self.logs_in_as_sender:
            return sender_matches(self.sender, reverse_path)
        return bool(reverse_path) or not self.is_graph

    def with_mailbox(self, result: RemoteRecipient, reverse_path: str) -> RemoteRecipient:
        """Return where it sends mail, with the mailbox that logs in there for this reverse-path."""
        if not self.logs_in_as_sender:
            return result
        mailbox = own_mailbox(reverse_path)
        return replace(result, next_hop=result.next_hop._replace(mailbox=mailbox))

    def takes_recipient(self, address: str) -> bool:
        """Whether it takes mail for an address of its domain."""
        return not self.recipient or recipient_matches(self.recipient, address)

    def equals(self, other: "_TableRoute") -> bool:
        """Whether they differ in their place at most."""
        return self == replace_fields(other, number=self.number)

    def leads_to(self, hop: NextHop) -> bool:
        """Whether it sends mail to this next hop, of whatever domain."""
        if hop == self.fallback.to:
            return True
        if isinstance(self.action, UseMx):
            return hop.kind is HopKind.MX
        if self.result is None or bool(hop.mailbox) != self.logs_in_as_sender:
            return False
        return self.result.next_hop == (hop._replace(mailbox="") if hop.mailbox else hop)


def _table_route(number: int, route: Route, default: TlsLevel) -> _TableRoute:
    action, name = _action_of(route), name_of(route)
    options, result, fallback = _options_of(route, action, default), None, WayAround()
    if isinstance(action, NextHop) and action != LOCAL:
        result = RemoteRecipient(action._replace(route=name) if action.host else action, name)
    if route.fallback:
        to = NextHop.parse(route.fallback)._replace(route=name)
        via = _options_of(as_fallback(route), to, default)
        fallback = WayAround(to, int(route.fallback_after * 1_000_000), via)
    return _TableRoute(
        number,
        name,
        route.domain.lower(),
        route.sender,
        route.recipient,
        action,
        options,
        result,
        route.tls is not None or verifies(route) or options.tls.implicit,
        fallback,
        isinstance(action, NextHop) and action.kind is HopKind.GRAPH,
        route.auth is not None and bool(route.auth.oauth) and route.auth.user == SENDER,
    )


class RouteChanges(Struct, frozen=True):
    """How another table differs: the names of routes, and the options under which no transaction
    may begin any more.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    ended: frozenset[HopOptions]

    def ends(self, options: HopOptions) -> bool:
        """Whether these are over; a login as the sender is that of each mailbox."""
        login = options.login
        if login is not None and login.oauth:
            as_sender = replace(options, login=replace_fields(login, user=SENDER))
            return options in self.ended or as_sender in self.ended
        return options in self.ended


class Confinement(Struct, frozen=True):
    """What is different where no mail leaves this machine: mail for an address that `is_simulated`
    goes to the MX hosts of its domain, whatever the routes say, unless the domain is local; what a
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
        """Make the table; password files, and those of recipients, are read here. `domains` are
        the local ones; a name is that of one with accounts and this `catch_all`. `tls` is for hosts
        without a route's. `hostname` is this relay's, in whose name MAILER-DAEMON writes reports.

        Raises ValueError for a route that cannot be understood, and for a catch_all or postmaster
        that is no account; SettingsError for a file of recipients.
        """
        self._accounts = accounts
        domains = tuple(domains)
        self._outside = catch_alls_elsewhere(domains, catch_all)
        self._catch_all = self._mailbox_of("mailboxes.catch_all", catch_all)
        self._postmaster = self._mailbox_of("mailboxes.postmaster", postmaster) or DEAD_LETTER
        self._own = OwnDomains(domains, catch_all=self._catch_all, mailbox_of=self._mailbox_of)
        self.alias_domains = self._own.alias_domains
        self._hostname = hostname.lower()
        self._confinement = confinement
        # returns why an operator holds what comes for an address, and until when
        self.hold_of: Callable[[str], tuple[str, int]] = lambda _address: ("", 0)
        # returns whether a domain is local at another node
        self.is_of_other_store: Callable[[str], bool] = lambda _domain: False
        self._default_options = HopOptions(TlsPolicy(tls), is_mx=True)
        self._routes_for = lru_cache(_DOMAINS_KEPT)(self._find_routes)
        self._by_pattern: dict[str, list[_TableRoute]] = {}  # each in their order
        self.named: dict[str, _TableRoute] = {}
        self._routes_to: dict[NextHop, list[_TableRoute]] = {}  # each host, in their order
        for number, setting in enumerate(routes):
            route = _table_route(number, setting, tls)
            self._by_pattern.setdefault(route.domain, []).append(route)
            self.named[route.name] = route
            if isinstance(route.action, NextHop):
                self._routes_to.setdefault(route.action, []).append(route)
        takers = {self._catch_all, self._postmaster, *self._own.takers} - {"", DEAD_LETTER}
        is_routed = any(self._routes_for(domain_of(mailbox)) for mailbox in takers)
        self._may_move = is_routed or bool(self._outside)

    def use(self, read: "RouteTable") -> RouteChanges:
        """Become the table `read`, at once for all that ask this one; the accounts and the holds of
        what comes stay those of this one, which are reloaded themselves. Return what is different.
        """
        before, now = self.named, read.named
        changed = [name for name in before if name in now and not before[name].equals(now[name])]
        removed = [name for name in before if name not in now]
        over = [before[name] for name in (*changed, *removed)]
        ended = {via for route in over for via in (route.options, route.fallback.options) if via}
        kept = ("_accounts", "hold_of", "is_of_other_store")
        self.__dict__ |= read.__dict__ | {name: self.__dict__[name] for name in kept}
        return RouteChanges(
            added=tuple(name for name in now if name not in before),
            changed=tuple(changed),
            removed=tuple(removed),
            ended=frozenset(ended - {self._default_options}),
        )

    def examine(self, address: str, reverse_path: str = "") -> RoutingResult:
        """Return where mail for `address` goes; its syntax has been checked. Without
        `reverse_path` it is a report.
        """
        result = self._examine(address, reverse_path)
        if isinstance(result, InvalidRecipient) or result.held:
            return result
        held, until_us = self.hold_of(address)
        return replace(result, held=held, held_until_us=until_us) if held else result

    def _examine(self, address: str, reverse_path: str) -> RoutingResult:
        address = self.target_of(address)
        domain = domain_of(address)
        if not domain:
            return self._examine_without_domain(address)
        if not domain.isascii():
            # RFC 3463 3.2
            return _rejected("5.1.2", address, "this domain cannot exist; check its spelling")
        if self.is_daemon(address):
            return LocalRecipient(self._postmaster, is_answer=True)
        if self._goes_to_simulator(address, domain):
            return RemoteRecipient(NextHop(HopKind.MX, domain))
        if not reverse_path and self._is_of_host(domain, address):
            return LocalRecipient(self._postmaster, is_answer=True, is_local=False)
        result = self._examine_by_routes(address, domain, reverse_path)
        if _local_part(address) == "postmaster" and (mailbox := self._postmaster_of(domain)):
            account = self._accounts.by_address(address)
            if account is None or isinstance(result, InvalidRecipient):  # RFC 5321 4.5.1
                mailbox = account.address if account else mailbox
                return LocalRecipient(mailbox, is_answer=mailbox == DEAD_LETTER)
        return result

    def _examine_by_routes(
        self, address: str, domain: str, reverse_path: str, *, after: int = -1
    ) -> RoutingResult:
        """Let the first route behind the route `after` decide that takes the mail."""
        route = self._route_for(domain, reverse_path, address=address, after=after)
        own = self._own.find(domain)
        if route is None:
            if own is not None and own.has_accounts:
                return self._examine_local(address)
            mx = _examine_mx(address, domain)
            return mx if own is None else self._passed_on(address, own, mx)
        if route.result is not None and own is None and not route.logs_in_as_sender:
            return route.result  # most mail that leaves
        match route.action:
            case HoldMail():
                result = self._examine_by_routes(address, domain, reverse_path, after=route.number)
                if isinstance(result, InvalidRecipient):
                    return result
                return replace(result, held=f"route {route.name}")
            case RejectRoute(status, text):
                return _rejected(status, address, text, route=route.name)
            case NextHop() if route.result is None:  # LOCAL
                return self._examine_local(address, route=route.name)
        result = route.result or _examine_mx(address, domain, route=route.name)
        if isinstance(result, RemoteRecipient):
            result = route.with_mailbox(result, reverse_path)
        if own is None:
            return result
        return self._passed_on(address, own, result, is_named=bool(route.recipient))

    def _passed_on(
        self, address: str, own: OwnDomain, result: RoutingResult, *, is_named: bool = False
    ) -> RoutingResult:
        """Return `result`, where mail for an own domain leaves, if the address is valid there, or a
        route names it.
        """
        if not isinstance(result, RemoteRecipient):
            return result
        local_part = _local_part(address)
        if own.has_accounts and not is_named and self._accounts.by_address(address) is None:
            return self._examine_local(address)  # expand() knows where the catch_all's mail leaves
        is_listed = is_named or self._own.lists(own, address)
        if not is_listed and local_part != "postmaster":  # RFC 5321 4.5.1
            return _unknown(address)
        is_known = is_named or own.has_accounts or own.file is not None
        if _SENDER_ROUTED.search(local_part.partition("+")[2] if is_known else local_part):
            text = "@, % and ! in a local part are not passed on"
            return _rejected(REJECT_STATUS, address, text)
        return replace(result, is_local=True, is_asked=own.recipients == "verify")

    def examine_chosen(
        self,
        address: str,
        way: str,
        usual: LocalRecipient | RemoteRecipient,
        *,
        reverse_path: str,
    ) -> LocalRecipient | RemoteRecipient:
        """Return where mail for `address` goes that a rule sends by `way`: "route:NAME", or the
        text of a next hop. `usual` is where it goes without the rule; what holds it, still does.
        Answers to reports stay here, and so does what has no domain whose MX could take it. `usual`
        also has what the route does not send because of its `reverse_path`.

        Raises LookupError for a route that there is not, or that gives no next hop.
        """
        if usual.is_answer:
            return usual
        name = way.removeprefix(ROUTE_PREFIX)
        if name == way:
            result = RemoteRecipient(NextHop.parse(way)._replace(route=BY_RULE), BY_RULE)
        else:
            route = self.named[name]
            if isinstance(route.action, HoldMail):
                if usual.held and not usual.held_until_us:
                    return usual
                return replace(usual, held=f"route {name}", held_until_us=0)
            if isinstance(route.action, UseMx):
                domain = domain_of(address)
                mx = _examine_mx(address, domain, route=name)
                if not isinstance(mx, RemoteRecipient):
                    return usual
                result = mx
            elif route.result is None:
                raise LookupError(f"route {name!r} gives no next hop")
            elif not self._may_take(route, reverse_path):
                return usual
            else:
                result = route.with_mailbox(route.result, reverse_path)
        if self._confinement is not None and self._confinement.captures(result.next_hop):
            result = RemoteRecipient(CAPTURE, result.route)
        until_us = usual.held_until_us
        return replace(result, held=usual.held, held_until_us=until_us, chosen=True)

    def lookup_by_route(self, name: str) -> Callable[[str, str], Destination | None]:
        """Return the function that gives an address the next hop of this route, as an operator has
        chosen it. Raises ValueError for a route that there is not, or that gives no next hop.
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
        """Return who gets the mail for an alias, which examine() does not know, or for an address
        of a domain with `alias_of`, or that a catch_all elsewhere takes. What another catch_all or
        postmaster takes is mail to the address of that account, if that leaves by a route.
        """
        main = self.target_of(address)
        expansion = self._accounts.expand(main)
        if expansion is None and main != address:
            expansion = Expansion((AliasTarget(main, (address.lower(),)),))
        if not self._may_move:  # nearly always
            return expansion
        targets = expansion.targets if expansion is not None else (AliasTarget(address),)
        moved: dict[str, AliasTarget] = {}
        for alias_target in [self._moved(target, reverse_path) for target in targets]:
            moved.setdefault(alias_target.address.lower(), alias_target)
        made = Expansion(tuple(moved.values()), expansion.writers if expansion else None)
        return expansion if made.targets == targets else made

    def _moved(self, target: AliasTarget, reverse_path: str) -> AliasTarget:
        result = self.examine(target.address, reverse_path)
        if isinstance(result, InvalidRecipient) and result.status == _UNKNOWN and not result.route:
            elsewhere = self._outside.get(domain_of(self.target_of(target.address)))
            through = (*target.through, target.address.lower())
            return AliasTarget(elsewhere, through) if elsewhere else target
        if not isinstance(result, LocalRecipient) or self._accounts.by_address(target.address):
            return target
        if not isinstance(self.examine(result.mailbox, reverse_path), RemoteRecipient):
            return target
        return AliasTarget(result.mailbox, (*target.through, target.address.lower()))

    def target_of(self, address: str) -> str:
        """Return the address that one of a domain with `alias_of` means; another one as it is."""
        return main_address(address, self.alias_domains)

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
        """Whether it is the author of this relay's reports, and no account has the address."""
        daemon = f"mailer-daemon@{self._hostname}"
        return address.lower() == daemon and self._accounts.by_address(address) is None

    def _is_of_host(self, domain: str, address: str) -> bool:
        """Whether reports to this host's name go to the postmaster: it is no own domain, and of the
        routes only "*" would take them, to where nobody has its addresses.
        """
        if domain != self._hostname or self.is_local_domain(domain):
            return False
        routes = [route for route in self._routes_for(domain) if route.takes_recipient(address)]
        return bool(routes) and all(
            route.domain == "*" and route.action != CAPTURE for route in routes
        )

    def next_hop_for(self, address: str, reverse_path: str = "") -> NextHop | None:
        """Return the next hop of mail for `address`, or None if the address is invalid. Without
        `reverse_path` it is a report.
        """
        destination = self.destination_of(address, reverse_path)
        return None if destination is None else destination.next_hop

    def destination_of(self, address: str, reverse_path: str = "") -> Destination | None:
        """Return the next hop, and why mail is held there: a RouteLookup of the routes."""
        return _destination(self.examine(address, reverse_path))

    def destination_by_routes(self, address: str, reverse_path: str) -> Destination | None:
        """Return the same for mail that waits, of which an operator holds nothing by its domain."""
        return _destination(self._examine(address, reverse_path))

    def options_for(self, next_hop: NextHop) -> HopOptions:
        """Return how to contact the hosts of a next hop: as its route says.

        Without a route's name: as the first route to this host says, for a domain's MX as the route
        of the domain if that leads there. Otherwise as [delivery] says.
        """
        route = self._route_behind(next_hop)
        if route is not None:
            is_fallback = next_hop == route.fallback.to
            options = (is_fallback and route.fallback.options) or route.options
            if next_hop.mailbox and options.login is not None:
                login = replace_fields(options.login, user=next_hop.mailbox)
                return replace(options, login=login)
            return options
        if next_hop.kind is HopKind.MX:
            return self._default_options
        is_graph = next_hop.kind is HopKind.GRAPH  # of a route that is gone: there is no login
        return HopOptions(
            _tls_of(next_hop, self._default_options.tls), mime_max=MIME_MAX if is_graph else 0
        )

    def tls_demanded_by(self, next_hop: NextHop) -> str:
        """Return who demands the TLS level of options_for(): "route NAME" or "configuration"."""
        route = self._route_behind(next_hop)
        return f"route {route.name}" if route is not None and route.demands_tls else CONFIGURATION

    def way_around(self, next_hop: NextHop) -> WayAround | None:
        """Return where mail goes if no host of a next hop answers; None: it waits there."""
        route = self.named.get(next_hop.route)
        if route is None or route.fallback.to is None or not route.leads_to(next_hop):
            return None
        return route.fallback if next_hop != route.fallback.to else WayAround()

    def is_too_large(self, next_hop: NextHop, size: int) -> bool:
        """Whether the route that has led to a next hop takes no content of this size in octets."""
        route = self.named.get(next_hop.route)
        return route is not None and 0 < route.options.mime_max < size

    def is_settled(self, next_hop: NextHop, *, chosen: bool) -> bool:
        """Whether mail stays at a next hop wherever the routes lead: it is captured, or a rule or
        an operator has `chosen` a host, or a route that still leads there.
        """
        if next_hop == CAPTURE or not chosen:
            return next_hop == CAPTURE
        route = self.named.get(next_hop.route)
        is_named = next_hop.route not in ("", BY_RULE)
        if not is_named or route is None:
            return not is_named
        mailbox = next_hop.mailbox
        return route.leads_to(next_hop) and (not mailbox or self._may_take(route, mailbox))

    def _may_take(self, route: _TableRoute, reverse_path: str) -> bool:
        return route.may_take(reverse_path) or route.may_take(self.target_of(reverse_path))

    def _route_behind(self, next_hop: NextHop) -> _TableRoute | None:
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
        """Whether `domain` is local, for all that asks."""
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
    ) -> _TableRoute | None:
        """Return the first route that takes the mail, behind the route `after`."""
        for route in self._routes_for(domain):
            if route.number > after and (
                route.takes(address, reverse_path)
                or (self.alias_domains and route.takes(address, self.target_of(reverse_path)))
            ):
                return route
        return None

    def _find_routes(self, domain: str) -> tuple[_TableRoute, ...]:
        """Find the routes for a domain, in their order, among the few patterns that can match."""
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
        return _unknown(address)

    def _examine_without_domain(self, address: str) -> RoutingResult:
        # RFC 5321 4.5.1: postmaster is always accepted, also without a domain
        if address.lower() == "postmaster":
            return LocalRecipient(self._postmaster, is_answer=self._postmaster == DEAD_LETTER)
        return _rejected("5.1.3", address, "this address has no domain; write user@domain")

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
    return Destination(hop, held=result.held, held_until_us=result.held_until_us)


def _action_of(route: Route) -> RouteAction:
    try:
        return parse_action(route.next_hop)
    except ValueError as error:
        raise ValueError(f"route {route.name or route.domain!r}: next_hop: {error}") from error


def _examine_mx(address: str, domain: str, *, route: str = "") -> RoutingResult:
    is_literal = domain.startswith("[")
    if is_literal and literal_address(domain) is None:
        return _rejected("5.1.3", address, "this address literal is malformed; use a domain name")
    if is_literal and not route:
        # RFC 3463 3.2
        return _rejected("5.1.2", address, "no mail to address literals; use a domain name")
    return RemoteRecipient(NextHop(HopKind.MX, domain, route=route), route)


def _local_part(address: str) -> str:
    return address.rpartition("@")[0].lower() if "@" in address else address.lower()


def _unknown(address: str) -> InvalidRecipient:
    # RFC 3463 3.2
    return _rejected(_UNKNOWN, address, "no such user here; check the spelling")


def _rejected(status: str, address: str, text: str, *, route: str = "") -> InvalidRecipient:
    return InvalidRecipient(status, own_reply(status, f"<{address}>: {text}"), route)
