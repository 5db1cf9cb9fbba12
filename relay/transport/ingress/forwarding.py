"""Expand addresses: aliases, accounts that forward, and SRS addresses; rewrite senders of copies.

expand_recipients() replaces the recipients of a message before the rules (step 5). An address that
is reached twice, or that the client names in addition to its alias, is one recipient. An alias that
leads to one address ends as redirected, and that address gets the parameters of the alias. An alias
that leads to several ends as expanded: only failures and delays of its addresses are reported.

An SRS address of a local domain takes reports only, and leads to the sender that it stands for
(relay/base/message/srs.py). Its days count in queue time, which a wrong clock does not change. The
null sender proves nothing, so the number and size of such reports to one sender are limited. Mail
that an alias or an account has already forwarded, as Delivered-To says, is not forwarded again: the
account keeps it, the alias rejects it.

A copy for another domain leaves with a sender of this host. It passes SPF for the local domains,
and DMARC if From has one of them. So a copy of a stranger's mail with a local domain in From is
rejected. Mail that leaves by a login passes for the names of that login: a stranger's mail in such
a name is rejected, unless SPF or DKIM has passed for it. So is mail in whose From or Sender
programs may read other names. Copies that a rule sends outside have a sender of this host too: a
rule of the operator may use any local domain, a rule of a tenant only the tenant's.

An alias may take mail from some senders only (`from`), as aliases that Postfix protects by the
sender (its RESTRICTION_CLASS_README), and groups of Exchange (AcceptMessagesOnlyFrom). As in
Postfix, only the alias that the client names is checked, not the aliases that it leads to, nor what
rules add. A sender in an own domain counts only if the client may relay, else it may be forged. A
report has no sender; an alias takes reports if mail is sent in its name.

RFC 5321 3.9.1, 4.5.5; RFC 3461 5.2.1 (ORCPT), 5.2.7.2, 5.2.7.3; RFC 7489 3.1 (SPF and From);
RFC 9228 (Delivered-To).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial

from msgspec import Struct
from msgspec.structs import replace

from relay.base.accounts.account import AccountDirectory, AliasTarget, Expansion
from relay.base.clock import Clock
from relay.base.message.address import AddressError, own_mailbox, parse_mailbox
from relay.base.message.authentication_results import proof_of
from relay.base.message.envelope import ForwardPath, Notify, domain_of
from relay.base.message.header import Header
from relay.base.message.lifecycle import RecipientState
from relay.base.message.outcome import Evidence
from relay.base.message.srs import Srs, SrsError, is_srs
from relay.base.message.status import own_reply, split_reply
from relay.base.message.verdict import AddedRecipient, RateCharge, Verdict, tenant_of_rule
from relay.base.phrases import counted
from relay.base.settings.validation import sender_matches
from relay.formats.dsn import ReportedRecipient
from relay.store.spool.types import NewRecipient
from relay.transport.ingress.author_names import AuthorNames
from relay.transport.ingress.data import Submitter
from relay.transport.ingress.message_limits import RateLimits
from relay.transport.ingress.session_limits import EXPANDED_MAX
from relay.transport.policy.rule_book import TenantRules
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routing_result import (
    InvalidRecipient,
    LocalRecipient,
    RemoteRecipient,
    RoutingResult,
)

# limit: the size of a report to an SRS address; then 552
REPORT_BYTES_MAX = 1_000_000
REPORTS_PER_HOUR = 20  # to the SRS addresses of one sender
_HOUR_S = 3600.0
# RFC 3463 3.4
LARGE_REPORT = f"552 5.3.4 An SRS address takes reports of at most {REPORT_BYTES_MAX} octets"
# RFC 3463 3.8
MANY_REPORTS = f"450 4.7.1 The sender gets {REPORTS_PER_HOUR} reports in an hour, try again later"
_TOO_MANY = "5.5.3"  # RFC 3463 3.6: too many recipients
_LOOP_STATUS = "5.4.6"  # RFC 3463 3.5: routing loop detected
_LOOP_TEXT = "mail loop: this alias has forwarded the message before (Delivered-To)"
_EXPANDED = "2.1.5"  # RFC 3463 3.2: destination address valid
_NEVER = frozenset({Notify.NEVER})
_SUCCESS = frozenset({Notify.SUCCESS})
_DEFAULT = frozenset({Notify.FAILURE, Notify.DELAY})  # without NOTIFY
_LOOP = Expansion(())  # of an alias that has forwarded the mail before
_NOTHING: frozenset[str] = frozenset()
# RFC 3463 3.8
BORROWS = InvalidRecipient(
    "5.7.1",
    "550 5.7.1 From or Sender has a domain of this host, or a name of its login at another one, or "
    "is unclear: it sends such mail on only for authenticated clients",
)
UNPROVEN = InvalidRecipient(
    "4.7.1",
    "451 4.7.1 From or Sender has a name of the login of this host at another one, and cannot be "
    "checked now",
)


class Forwarder(Struct, frozen=True):
    """The aliases in force, and the key of SRS addresses."""

    accounts: AccountDirectory  # aliases, and accounts that forward
    router: RouteTable  # which domains are local
    srs: Srs
    clock: Clock
    rates: RateLimits  # count the reports to SRS addresses
    forward_own_from: bool = False  # strangers' mail in the name of local domains may leave

    def expand(self, address: str, reverse_path: str) -> Expansion | None:
        """Return who gets the mail for `address`; None for an address that is not expanded."""
        if self.router.leaving(address) is not None:  # most mail
            return None
        if not self._is_own_srs(address):
            return self.router.expand(address, reverse_path)
        try:
            original = self.srs.original(address, now_us=self.clock.queue_us())
        except SrsError:
            return None
        if reverse_path:
            return None
        return self.expand(original, "") or Expansion((AliasTarget(original),))

    def expander(self, reverse_path: str, header: Header) -> Callable[[str], Expansion | None]:
        """Return expand() for one message; after a loop, the expansion has no target."""
        passed = _passed(header)
        if not passed:  # nearly always
            return partial(self.expand, reverse_path=reverse_path)
        return partial(self._expand_once, reverse_path=reverse_path, passed=passed)

    def writer_rejection(self, address: str, expansion: Expansion, sender: Submitter) -> str:
        """Return the reply if `sender` may not write to the alias `address`, else ""."""
        writers, path = expansion.writers, sender.reverse_path
        if writers is None:  # nearly always
            return ""
        is_forged = not sender.is_trusted and self._is_local(path)
        names = {own_mailbox(name) for name in (sender.account, "" if is_forged else path) if name}
        names |= {self._mailbox_of(name) for name in names}
        to = expansion.targets if writers.members else ()
        members = {
            self._mailbox_of(address)
            for target in to
            for address in (target.address, *target.through)
        }
        own = writers.own if sender.is_trusted else ()
        may_write = writers.reports
        if path:
            may_write = any(
                name in members or domain_of(name) in own or writers.matches(name) for name in names
            )
        if may_write:
            return ""
        why = "log in to write" if is_forged else f"<{path}> may not write"
        return own_reply("5.7.1", f"<{address}>: {why} to this alias")

    def _mailbox_of(self, address: str) -> str:
        account = self.accounts.by_address(address)
        return account.address if account else own_mailbox(address)

    def examine(self, address: str, reverse_path: str, *, forwarded_by: str = "") -> RoutingResult:
        """Return the route of an address that expand() does not replace.

        `forwarded_by` is the alias that led to the address, or "".
        """
        route = self._srs_fault(address, reverse_path) or self.router.examine(address, reverse_path)
        is_answer = isinstance(route, RemoteRecipient) and self.router.is_daemon(forwarded_by)
        return replace(route, is_answer=True) if is_answer else route

    def find(self, address: str, reverse_path: str) -> Expansion | RoutingResult:
        """Return the expansion of an address, or its route if there is none."""
        return self.expand(address, reverse_path) or self.examine(address, reverse_path)

    def examiner(
        self, sender: Submitter, header: Header
    ) -> Callable[[str, str, bool], RoutingResult]:
        """Return examine() for one message; its third argument says whether the mail is a copy.

        A stranger's mail is rejected where it would borrow a name. What leaves is examined once for
        each domain.
        """
        names = partial(_names_in, header, [])
        known: dict[str, RoutingResult] = {}  # by "@domain"

        def examine(address: str, forwarded_by: str, is_copy: bool) -> RoutingResult:
            domain = "" if is_copy else address[address.rfind("@") :]
            if domain in known:
                return known[domain]
            route = self.examine(address, sender.reverse_path, forwarded_by=forwarded_by)
            route = self._vouched(route, names, sender, is_copy=is_copy)
            if domain and self.router.leaving(address) is not None:
                known[domain] = route
            return route

        return examine

    def examiner_of_chosen(
        self, sender: Submitter, header: Header
    ) -> Callable[[str, str, LocalRecipient | RemoteRecipient], RoutingResult]:
        """Return RouteTable.examine_chosen() for one message, as examiner() does."""
        names = partial(_names_in, header, [])

        def examine(
            address: str, way: str, usual: LocalRecipient | RemoteRecipient
        ) -> RoutingResult:
            path = sender.reverse_path
            route = self.router.examine_chosen(address, way, usual, reverse_path=path)
            vouched = self._vouched(route, names, sender)
            return route if vouched is route else replace(vouched, is_late=True)

        return examine

    def examiner_of_added(
        self,
        examine: Callable[[str, str, bool], RoutingResult],
        verdict: Verdict,
        tenants: Mapping[str, TenantRules],
        *,
        sender: Submitter,
    ) -> Callable[[AddedRecipient, str, str], RoutingResult]:
        """Return examine() for what rules add; a tenant's rules may use only its domains."""
        if not tenants:
            return lambda _added, address, by: examine(address, by, bool(by))
        names = cache(lambda at: AuthorNames.of(verdict.contents[at].header))

        def examine_added(added: AddedRecipient, address: str, forwarded_by: str) -> RoutingResult:
            route = examine(address, forwarded_by, bool(forwarded_by))
            tenant = tenants.get(tenant_of_rule(added.rule))
            if tenant is None:
                return route
            is_rewritten = added.content and names(added.content) != names(0)
            named = replace(sender, results=()) if is_rewritten else sender
            written, own = partial(names, added.content), tenant.domains
            return self._vouched(route, written, named, is_copy=True, own=own)

        return examine_added

    def _vouched(
        self,
        route: RoutingResult,
        names: Callable[[], AuthorNames],
        sender: Submitter,
        *,
        is_copy: bool = False,
        own: Collection[str] = (),
    ) -> RoutingResult:
        """Return the route, or the rejection of a stranger's mail that would leave in a name that
        it may not have: as a copy in that of a local domain; by a login in a name of that, unless
        it is proven. The tenant's `own` domains do not count.
        """
        if not isinstance(route, RemoteRecipient) or sender.is_trusted or self.forward_own_from:
            return route
        lends = is_copy and not route.is_local
        lent = self.router.names_of_login(route.next_hop, whole_domain=sender.is_checked)
        if not lends and lent is None:
            return route
        named = names()
        others = {address for address in named.addresses if domain_of(address) not in own}
        is_refused = named.is_unclear or (lends and any(map(self._is_local, others)))
        is_refused |= lent is not None and not named.has_author and bool(sender.reverse_path)
        proofs = {
            proof_of(domain_of(address), sender.results)
            for address in others
            if any(sender_matches(pattern, address) for pattern in lent or ())
        }
        if is_refused or "fail" in proofs:
            return BORROWS
        return UNPROVEN if "temperror" in proofs else route

    def sender_of(
        self, forwarded_by: str, address: str, reverse_path: str, *, trusted: bool
    ) -> str:
        """Return the rewritten sender of a copy for `address`, "" if it is `reverse_path`.

        An alias forwards the copy, or a rule sends it in the name of a local address. The sender is
        rewritten for other domains, unless it is null, or in a local domain and `trusted`.
        """
        if not reverse_path or not self._is_local(forwarded_by) or self._is_local(address):
            return ""
        if trusted and self._is_local(reverse_path):
            return ""
        domain, now_us = domain_of(forwarded_by), self.clock.queue_us()
        written = self.srs.rewritten(reverse_path, domain, now_us=now_us)
        return "" if written == reverse_path else written

    def reports_to(self, addresses: Iterable[str], reverse_path: str) -> list[RateCharge]:
        """Return the charges of a report to these addresses, one for each SRS address.

        They count for the original sender, since there are many SRS addresses for one sender.
        """
        charges = []
        for address in () if reverse_path else addresses:
            original = address
            with suppress(SrsError):
                while self._is_own_srs(original):
                    original = self.srs.original(original, now_us=self.clock.queue_us())
            if not self._is_own_srs(original) and original != address:
                charges.append(_report_to(original))
        return charges

    def report_rejection(self, address: str, size_bytes: int) -> str:
        """Return the reply if an SRS address does not take a report now, else ""."""
        charges = self.reports_to([address], "")
        if charges and size_bytes > REPORT_BYTES_MAX:
            return LARGE_REPORT
        reserved = self.rates.reserve(charges)
        if isinstance(reserved, RateCharge):
            return MANY_REPORTS
        reserved.give_back()
        return ""

    def _is_local(self, address: str) -> bool:
        return self.router.is_local_domain(domain_of(address))

    def _is_own_srs(self, address: str) -> bool:
        return is_srs(address) and self._is_local(address)

    def _srs_fault(self, address: str, reverse_path: str) -> InvalidRecipient | None:
        if not self._is_own_srs(address):
            return None
        if reverse_path:
            # RFC 3463 3.8
            text = "takes only reports of mail that was forwarded, with the null sender"
            return _invalid("5.7.1", f"<{address}> {text}")
        try:
            self.srs.original(address, now_us=self.clock.queue_us())
        except SrsError as error:
            # RFC 3463 3.2
            return _invalid("5.1.1", f"<{address}>: no such user here; the SRS address is {error}")
        return None

    def _expand_once(
        self, address: str, *, reverse_path: str, passed: Collection[str]
    ) -> Expansion | None:
        """Return expand() without targets by addresses that have forwarded the mail before.

        The account that has forwarded it keeps it instead. If it is the only target of its own
        address, None is returned. If an alias without a mailbox has forwarded it, the expansion has
        no target.
        """
        expansion = self.expand(address, reverse_path)
        if expansion is None:
            return None
        targets: dict[str, AliasTarget] = {}  # by mailbox
        for target in expansion.targets:
            place = next(
                (at for at, through in enumerate(target.through) if through in passed), None
            )
            if place is None:
                account = self.accounts.by_address(target.address)
                targets.setdefault(
                    account.address if account else own_mailbox(target.address), target
                )
                continue
            account = self.accounts.by_address(target.through[place])
            if account is None:
                return _LOOP
            keeper = AliasTarget(account.address, target.through[:place])
            targets.setdefault(account.address, keeper)
        own = self.accounts.by_address(address)
        if own is not None and list(targets) == [own.address]:
            return None
        return replace(expansion, targets=tuple(targets.values()))


def _names_in(header: Header, read: list[AuthorNames]) -> AuthorNames:
    """Return the names; `read` has them afterwards. functools.cache() takes long for a message."""
    if not read:
        read.append(AuthorNames.of(header))
    return read[0]


def _report_to(sender: str) -> RateCharge:
    """Return the charge of a report to the SRS addresses of a sender."""
    return RateCharge(
        rule="",
        per="srs",
        key=own_mailbox(sender),
        recipients=1,
        status="4.7.1",
        text=MANY_REPORTS,
        allowed=REPORTS_PER_HOUR,
        period_s=_HOUR_S,
    )


def _passed(header: Header) -> frozenset[str]:
    """Return the addresses in Delivered-To, as accounts.toml has them."""
    if "Delivered-To" not in header:
        return _NOTHING
    addresses = set()
    for value in header.values("Delivered-To"):
        text = value.decode("utf-8", "replace").strip().removeprefix("<").removesuffix(">")
        try:
            addresses.add(own_mailbox(parse_mailbox(text, smtputf8=True)))
        except AddressError:  # a program has written something else there
            continue
    return frozenset(addresses)


def _invalid(status: str, text: str) -> InvalidRecipient:
    return InvalidRecipient(status, own_reply(status, text))


_NOBODY: Mapping[int, NewRecipient] = {}


class ExpandedRecipients(Struct, frozen=True):
    """The recipients that get the message.

    `positions` are their places in the envelope, 0 if an alias led to the recipient. `forwarded_by`
    is the last alias that led to each, or "". `aliases` are the recipients that they replace, in
    their final states. `added_by` has the milter that added an address, by the address.
    """

    paths: Sequence[ForwardPath]
    positions: Sequence[int]
    forwarded_by: Sequence[str]
    aliases: tuple[NewRecipient, ...] = ()
    added_by: Mapping[str, str] = {}

    @property
    def originals(self) -> Mapping[str, Sequence[str]]:
        """The aliases that led to each address, by own_mailbox() of the address."""
        by_address: dict[str, list[str]] = {}
        for alias in self.aliases:
            for successor in alias.successors:
                by_address.setdefault(own_mailbox(successor), []).append(alias.path.address)
        return by_address

    @property
    def alias_by_address(self) -> Mapping[str, str]:
        """The last alias that led to each address, or "", by the address."""
        addresses = (path.address for path in self.paths)
        return dict(zip(addresses, self.forwarded_by, strict=True))

    @property
    def reported(self) -> tuple[ReportedRecipient, ...]:
        """The aliases of which the sender gets a report: NOTIFY=SUCCESS of a list."""
        return tuple(
            ReportedRecipient(alias.path, Evidence(alias.status, alias.reply))
            for alias in self.aliases
            if alias.state is RecipientState.EXPANDED and Notify.SUCCESS in alias.path.notify
        )


def expand_recipients(
    paths: Sequence[ForwardPath],
    expand: Callable[[str], Expansion | None],
    ended: Mapping[int, NewRecipient] = _NOBODY,
    *,
    refuse: Callable[[str, Expansion], str] = lambda _address, _expansion: "",
) -> ExpandedRecipients:
    """Replace each recipient that is an alias, or forwards, by the recipients that get its mail.

    An alias fails if it exceeds EXPANDED_MAX, if `refuse` returns a reply, or without a target (a
    loop). Recipients that have `ended` already, by their positions, are returned among `aliases`.
    """
    expansions = [None if at in ended else expand(path.address) for at, path in enumerate(paths, 1)]
    if not ended and not any(expansions):  # nearly always
        return ExpandedRecipients(paths, range(1, len(paths) + 1), [""] * len(paths))
    positions = [
        at for at, expansion in enumerate(expansions, 1) if expansion is None and at not in ended
    ]
    expanded = [paths[at - 1] for at in positions]
    forwarded_by = [""] * len(expanded)
    places = {own_mailbox(path.address): place for place, path in enumerate(expanded)}
    aliases = list(ended.values())
    count = 0
    for position, (path, expansion) in enumerate(zip(paths, expansions, strict=True), 1):
        if expansion is None:
            continue
        start = NewRecipient(path, position=position)
        reply = refuse(path.address, expansion)
        if not expansion.targets:
            reply = own_reply(_LOOP_STATUS, f"<{path.address}>: {_LOOP_TEXT}")
        if reply:
            status = split_reply(reply).status
            aliases.append(replace(start, state=RecipientState.FAILED, status=status, reply=reply))
            continue
        if count + len(expansion.targets) > EXPANDED_MAX:
            aliases.append(_failed(start, expansion))
            continue
        count += len(expansion.targets)
        aliases.append(replaced(start, expansion))
        onward = _onward(path, is_list=len(expansion.targets) > 1)
        for target in expansion.targets:
            place = places.setdefault(own_mailbox(target.address), len(expanded))
            if place == len(expanded):
                expanded.append(replace(onward, address=target.address))
                positions.append(0)
                forwarded_by.append(target.forwarded_by)
            else:
                notify = _either(expanded[place].notify, onward.notify)
                expanded[place] = replace(expanded[place], notify=notify)
    return ExpandedRecipients(expanded, positions, forwarded_by, tuple(aliases))


def with_added(
    recipients: ExpandedRecipients,
    expand: Callable[[str], Expansion | None],
    added: Mapping[str, str],
) -> ExpandedRecipients:
    """Return the recipients with the addresses that milters added; `added` has the milters' names.

    An alias is replaced, unless it is a loop.
    """
    paths, forwarded_by = [*recipients.paths], [*recipients.forwarded_by]
    known, added_by = {own_mailbox(path.address) for path in paths}, dict[str, str]()
    for address, milter in added.items():
        expansion = expand(address)
        targets = expansion.targets if expansion else ()
        for target in targets or (AliasTarget(address),):
            if own_mailbox(target.address) not in known:
                known.add(own_mailbox(target.address))
                paths.append(ForwardPath(target.address, _NEVER))
                forwarded_by.append(target.forwarded_by)
                added_by[target.address] = milter
    positions = (*recipients.positions, *[0] * len(added_by))
    return ExpandedRecipients(paths, positions, forwarded_by, recipients.aliases, added_by)


def _failed(start: NewRecipient, expansion: Expansion) -> NewRecipient:
    text = (
        f"<{start.path.address}>: {counted(len(expansion.targets), 'address')} and those of the"
        f" other aliases are over {EXPANDED_MAX}, send to it in another message"
    )
    reply = own_reply(_TOO_MANY, text)
    return replace(start, state=RecipientState.FAILED, status=_TOO_MANY, reply=reply)


def replaced(start: NewRecipient, expansion: Expansion) -> NewRecipient:
    """Return an alias in its final state: others get its mail."""
    successors = expansion.addresses
    if len(successors) == 1:
        return replace(start, state=RecipientState.REDIRECTED, successors=successors)
    reply = own_reply(_EXPANDED, f"expanded to {len(successors)} addresses")
    return replace(
        start, state=RecipientState.EXPANDED, successors=successors, status=_EXPANDED, reply=reply
    )


def _onward(path: ForwardPath, *, is_list: bool) -> ForwardPath:
    """Return the parameters that an alias passes on."""
    notify = path.notify
    if is_list and Notify.SUCCESS in notify:  # the alias itself has the report of success
        notify = notify - _SUCCESS or _NEVER
    kind = "rfc822" if path.address.isascii() else "utf-8"
    return ForwardPath(path.address, notify, path.orcpt or f"{kind};{path.address}")


def _either(first: frozenset[Notify], other: frozenset[Notify]) -> frozenset[Notify]:
    """Return NOTIFY of an address that is reached in two ways: the reports that either asks for."""
    if _NEVER in (first, other):
        return other if first == _NEVER else first
    asked = first | other
    if first and other:
        return asked
    return asked | _DEFAULT if Notify.SUCCESS in asked else frozenset()
