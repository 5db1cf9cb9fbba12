"""One route: which mail it takes, where that goes, and how the hosts there are contacted.

A route is made from its [[route]]: `next_hop` becomes an action, and the files of its password and
CA are read. A route that cannot be made raises ValueError. Which route takes a message is decided
in `route_table`.
"""

from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from hashlib import sha256
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.address import own_mailbox, untagged
from relay.base.message.envelope import OWN_REPORT
from relay.base.message.nexthop import CAPTURE, LOCAL, HopKind, NextHop
from relay.base.message.status import split_reply
from relay.base.message.tls_policy import TlsLevel, TlsPolicy
from relay.base.phrases import without_login
from relay.base.settings import validation
from relay.base.settings.tree import MIME_MAX, SENDER, Route, RouteAuth
from relay.base.settings.values import parse_next_hop
from relay.transport.routing.routing_result import REJECT_STATUS, RemoteRecipient

_GRAPH_CONNECTIONS, _GRAPH_RATE = 4, "30/60.0"  # of a mailbox, as Exchange Online has them


class UseMx(Struct, frozen=True):
    """The MX hosts of the recipient's own domain."""


class RejectRoute(Struct, frozen=True):
    """Reject the recipient: `status` is 5.y.z, `text` is for the sender."""

    status: str
    text: str


class HoldMail(Struct, frozen=True):
    """Hold the mail. The routes that follow say where a release sends it."""


RouteAction = UseMx | RejectRoute | HoldMail | NextHop


@dataclass(frozen=True, slots=True)
class Credentials:
    """A login for a next hop: a password, or tokens of the [[oauth]] of this name."""

    user: str  # with tokens: the mailbox
    password: str = field(default="", repr=False)
    oauth: str = ""

    @property
    def is_sender(self) -> bool:
        """Whether the address in MAIL is the user."""
        return bool(self.oauth) and self.user == SENDER


class GraphOptions(Struct, frozen=True):
    """How mail leaves by Microsoft Graph, as in a [[route]]."""

    confirm: bool = True  # a lost answer is looked for
    mime_max: int = MIME_MAX  # octets of content
    convert: str = ""  # which content is converted beyond the usual
    upload_hosts: tuple[str, ...] = ()  # to which files may go besides the usual


class HopOptions(Struct, frozen=True):
    """How the hosts of a next hop are contacted, as its route says. Next hops whose options differ
    share no connection. The limits of [delivery] apply as well.
    """

    tls: TlsPolicy  # unless the domain or the message demands more
    login: Credentials | None = None  # None: mail is sent without one
    connections_max: int | None = None  # None: [delivery] decides
    rate: str = ""  # COUNT/SECONDS; "": [delivery] decides
    source_address: str = ""  # "": the system chooses
    requiretls: bool = False  # a verified name is enough for mail with REQUIRETLS
    is_mx: bool = False  # the DNS, not a route, names the host: one with our own name is a loop
    graph: GraphOptions | None = None  # None: SMTP or LMTP


class Fallback(Struct, frozen=True):
    """Where mail goes after no host of its next hop has answered for `after_us` microseconds; 0:
    only mail that is too large. `to` is None at the fallback itself: the next attempt goes back to
    the first next hop.
    """

    to: NextHop | None = None
    after_us: int = 0
    options: HopOptions | None = None  # how the hosts of a fallback are contacted

    def is_at(self, hop: NextHop) -> bool:
        """Whether a next hop is the fallback."""
        return self.for_mailbox(hop.mailbox).to == hop

    def for_mailbox(self, mailbox: str) -> "Fallback":
        """Return the fallback of mail from a mailbox."""
        login = self.options.login if self.options is not None else None
        if self.to is None or login is None or not login.is_sender:
            return self
        return replace(self, to=self.to._replace(mailbox=mailbox or SENDER))


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
    """Return the options that a route gives its hosts; the files of its password and CA are read
    here.

    With a login the default of `tls` is "verify", unless next_hop is a loopback address or
    localhost. Only the text of the route decides, so that no answer of the DNS lowers the level.
    Raises ValueError for a login without a host, and for a password file that cannot be read or is
    empty.
    """
    hop = action if isinstance(action, NextHop) else None
    if route.auth and (hop is None or not hop.host or hop.is_socket):
        text = "auth needs an smtp://, smtps://, lmtp:// or graph:// next hop"
        raise ValueError(f"route {validation.name_of(route)!r}: {text}")
    level = "verify" if validation.verifies(route) else route.tls or default
    is_graph = hop is not None and hop.kind is HopKind.GRAPH
    if is_graph and level != "verify":
        level = "none"
    confirm, mime_max = route.confirm is not False, route.mime_max or MIME_MAX
    graph = GraphOptions(confirm, mime_max, route.convert, route.upload_hosts)
    return HopOptions(
        tls=tls_of(hop, TlsPolicy(level, ca=route.ca, ca_digest=_digest(route.ca))),
        login=_login(validation.name_of(route), route.auth) if route.auth else None,
        connections_max=route.max_connections or (_GRAPH_CONNECTIONS if is_graph else None),
        rate=route.max_rate or (_GRAPH_RATE if is_graph else ""),
        source_address=route.source_address,
        requiretls=route.requiretls == "verified",
        is_mx=isinstance(action, UseMx),
        graph=graph if is_graph else None,
    )


def tls_of(hop: NextHop | None, policy: TlsPolicy) -> TlsPolicy:
    """Return the policy for a next hop: no TLS for a socket; TLS from the start for smtps://, and
    for graph:// unless its level is none.
    """
    if hop is not None and hop.is_socket:
        return TlsPolicy("none")
    kind = hop.kind if hop is not None else None
    is_https = kind is HopKind.GRAPH and policy.level != "none"
    return replace(policy, implicit=is_https or kind is HopKind.SMTPS)


def _digest(file: Path | None) -> str:
    """Return the digest of a CA file; "" if it cannot be read: the next connection reports it."""
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


@dataclass(frozen=True, slots=True)
class TableRoute:
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
    fallback: Fallback  # without `to`: it has none
    logs_in_as_sender: bool  # its login is the address in MAIL
    takes_reports: bool  # of Graph: except OWN_REPORT, as mail from who gets it

    def takes(self, address: str, reverse_path: str) -> bool:
        """Whether it takes mail with this reverse-path for an address of its domain."""
        sender = self.sender_of(reverse_path, address)
        is_of_sender = not self.sender or validation.sender_matches(self.sender, sender)
        return is_of_sender and self.may_take(sender) and self.takes_recipient(address)

    def may_take(self, sender: str) -> bool:
        """Whether it can send mail of this sender, also if a rule chooses it."""
        if self.logs_in_as_sender:
            return validation.sender_matches(self.sender, sender)
        return bool(sender) or self.options.graph is None  # Graph takes no null reverse-path

    def sender_of(self, reverse_path: str, address: str) -> str:
        """Return the address by which its `sender` decides: of an OWN_REPORT, if it takes such, who
        gets it.
        """
        if reverse_path != OWN_REPORT:
            return reverse_path
        return address if self.takes_reports else ""

    def with_mailbox(
        self, result: RemoteRecipient, reverse_path: str, address: str
    ) -> RemoteRecipient:
        """Return `result` with the mailbox that logs in at the next hop: the reverse-path, of an
        OWN_REPORT that of `address`.
        """
        if not self.logs_in_as_sender:
            return result
        mailbox = own_mailbox(untagged(address) if reverse_path == OWN_REPORT else reverse_path)
        return replace(result, next_hop=result.next_hop._replace(mailbox=mailbox))

    def takes_recipient(self, address: str) -> bool:
        """Whether it takes mail for an address of its domain."""
        return not self.recipient or validation.recipient_matches(self.recipient, address)

    def equals(self, other: "TableRoute") -> bool:
        """Whether the routes are equal, except for their place in the order."""
        return self == replace_fields(other, number=self.number)

    def leads_to(self, hop: NextHop) -> bool:
        """Whether it sends mail to this next hop, of whatever domain."""
        if self.fallback.is_at(hop):
            return True
        if isinstance(self.action, UseMx):
            return hop.kind is HopKind.MX
        if self.result is None or bool(hop.mailbox) != self.logs_in_as_sender:
            return False
        return self.result.next_hop == (hop._replace(mailbox="") if hop.mailbox else hop)


def table_route(number: int, route: Route, default: TlsLevel) -> TableRoute:
    """Make a route; `default` is its TLS level if it says none. Raises ValueError."""
    action, name = _action_of(route), validation.name_of(route)
    options, result, fallback = _options_of(route, action, default), None, Fallback()
    if isinstance(action, NextHop) and action != LOCAL:
        result = RemoteRecipient(action._replace(route=name) if action.host else action, name)
    if route.fallback:
        to = NextHop.parse(route.fallback)._replace(route=name)
        via = _options_of(validation.as_fallback(route), to, default)
        only_large = route.fallback_auth is not None and route.confirm is False
        after_s = 0 if only_large else route.fallback_after  # Graph may have sent the others
        fallback = Fallback(to, int(after_s * 1_000_000), via)
    return TableRoute(
        number,
        name,
        route.domain.lower(),
        route.sender,
        route.recipient,
        action,
        options,
        result,
        route.tls is not None or validation.verifies(route) or options.tls.implicit,
        fallback,
        options.login is not None and options.login.is_sender,
        route.reports,
    )


class RouteChanges(Struct, frozen=True):
    """How a new table differs: the names of routes, and the options under which no further
    transaction may begin.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    ended: frozenset[HopOptions]

    def ends(self, options: HopOptions) -> bool:
        """Whether no further transaction may begin with these options. A route that logs in as the
        sender ends the logins of all mailboxes.
        """
        login = options.login
        if login is not None and login.oauth:
            as_sender = replace(options, login=replace_fields(login, user=SENDER))
            return options in self.ended or as_sender in self.ended
        return options in self.ended


def _action_of(route: Route) -> RouteAction:
    try:
        return parse_action(route.next_hop)
    except ValueError as error:
        raise ValueError(f"route {route.name or route.domain!r}: next_hop: {error}") from error
