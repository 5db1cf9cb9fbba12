"""The configuration as one frozen, typed tree; its attribute names are the TOML keys.

Durations are seconds (float), sizes are bytes (int), paths are absolute. reader.load() has
validated everything. Annotations mark the syntax and the limits of a value, RELOADED the keys that
a reload (SIGHUP) applies.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from relay.base.settings import values
from relay.base.socket_address import Address, is_in


@dataclass(frozen=True, slots=True)
class Duration:
    """Marks a number of seconds, written as "8s", "5m", "4h", "2d" or a number of seconds."""

    at_least: float = 0.0


@dataclass(frozen=True, slots=True)
class Size:
    """Marks a number of bytes, written as "150 MiB", "64 kB" or a number of bytes."""

    at_least: int = 0
    or_zero: bool = False  # 0 has a special meaning


@dataclass(frozen=True, slots=True)
class Between:
    """Marks an integer with limits, both included."""

    low: int
    high: int


class NodeRole(StrEnum):
    """What a service does: all, or all that needs no mail root."""

    ALL = "all"
    TRANSPORT = "transport"  # SMTP, delivery and reports: a node of a PostgreSQL spool


class Secret:
    """Marks a text that no fault shows and that `relay config` hides."""


# Metadata of a key: a reload applies it. The others need a restart.
RELOADED: Final = {"reloaded": True}

Seconds = Annotated[float, Duration()]
PositiveSeconds = Annotated[float, Duration(at_least=0.001)]
Bytes = Annotated[int, Size(at_least=1024)]
Port = Annotated[int, Between(1, 65535)]
Domain = Annotated[str, values.parse_domain]
Mailbox = Annotated[str, values.parse_mailbox]
Network = Annotated[str, values.parse_networks]
Rate = Annotated[str, values.parse_rate]
Rates = tuple[Rate, ...]  # one text, "" for none, or a list of them
Language = Literal["de", "en"]  # of reports: relay/delivery/reports/texts has a file for each


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """A certificate chain and its key, PEM files."""

    certificate: Path = field(metadata=RELOADED)
    key: Path = field(metadata=RELOADED)


@dataclass(frozen=True, slots=True)
class ListenerTls(CertificateFiles):
    """TLS of a listener: one table, or the first of a list.

    `further` is no key: it has the other tables, for clients that ask for their names (SNI).
    """

    further: tuple[CertificateFiles, ...] = field(default=(), metadata=RELOADED)

    @property
    def pairs(self) -> "list[tuple[tuple[int, ...], CertificateFiles]]":
        """All certificates with their keys, each with the index that is added to the key path."""
        if not self.further:
            return [((), self)]
        return [((number,), pair) for number, pair in enumerate((self, *self.further))]


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The HTTP server: HTTPS with `tls`, except on Unix sockets and plain addresses. A development
    relay has pages without `pages`.
    """

    # http://HOST:PORT stays without TLS
    listen: tuple[Annotated[Address, values.parse_http_listener], ...] = (
        Address("127.0.0.1", 8025),
    )
    tls: ListenerTls | None = None  # None: no HTTPS
    # what Graph refuses is refused with "strict"
    profile: Literal["relaxed", "strict"] = "relaxed"
    # for links; "": as the client addressed the relay
    public_url: Annotated[str, values.parse_web_url] = ""
    proxy_networks: tuple[Network, ...] = ()  # proxies whose X-Forwarded-For counts
    # where receivers of notifications may be, although they are not on the internet
    notification_networks: tuple[Network, ...] = ()
    max_body: Bytes = 35 * 1024 * 1024  # of a request
    max_upload: Bytes = 150 * 1024 * 1024  # of MIME, and of the attachments of a draft together
    anonymous: Mailbox = ""  # the account of requests without a token; "": none
    pages: bool = False  # with a login


@dataclass(frozen=True, slots=True)
class TlsSettings(ListenerTls):
    """TLS of an SMTP listener; with `require` every client must use it."""

    require: bool = False


_LOOPBACK: Final = ("127.0.0.0/8", "::1/128")
_BY_ROLE: Final = ("",)  # stands for the default of the listener's role


@dataclass(frozen=True, slots=True)
class DnsBlocklist:
    """A zone of the DNS that lists addresses of clients (RFC 5782)."""

    zone: Domain
    # which answers count, such as 127.0.0.2-11; (): all of 127.0.0.0/8 that are no errors
    answers: tuple[Annotated[str, values.parse_blocklist_answers], ...] = ()
    # the text of the 554; "": names the zone and the address
    reply: Annotated[str, values.parse_reply_text] = ""


@dataclass(frozen=True, slots=True)
class SmtpListener:
    """One SMTP listener: relay is port 25, submission 587, submissions 465 (TLS at once).

    By default a relay listener trusts loopback. The others trust no address: all clients log in.
    """

    # address and port, the path of a Unix socket, or sockets of the service manager
    listen: Annotated[Address, values.parse_listener]
    # decides the defaults, and whether clients must log in
    role: Literal["relay", "submission", "submissions"] = "relay"
    # may relay without a login
    trusted_networks: tuple[Network, ...] = field(default=_BY_ROLE, metadata=RELOADED)
    proxy_networks: tuple[Network, ...] = ()  # proxies, which begin with a PROXY header
    # whether clients may log in; None: see takes_auth
    auth: bool | None = field(default=None, metadata=RELOADED)
    # whether mail does not tell from where who logged in sent it
    hide_client: bool = field(default=False, metadata=RELOADED)
    max_message_size: Bytes = field(default=150 * 1024 * 1024, metadata=RELOADED)  # then 552
    # of a message; then 452
    max_recipients: Annotated[int, Between(1, 100_000)] = field(default=1000, metadata=RELOADED)
    # of strangers, and of one trusted client or login; of all of these twice as many; then 421
    max_sessions: Annotated[int, Between(1, 100_000)] = field(default=500, metadata=RELOADED)
    # of an address, IPv6 by /64, that is not trusted, and four times as many of strangers of a
    # /48; then 421. Postfix's smtpd_client_connection_count_limit
    max_sessions_per_client: Annotated[int, Between(1, 100_000)] = field(
        default=50, metadata=RELOADED
    )
    # rejected commands of a session; then 421. Postfix's smtpd_hard_error_limit
    max_errors: Annotated[int, Between(1, 100_000)] = field(default=20, metadata=RELOADED)
    # of a session, of a client that is not trusted; then 421; 0: no limit
    max_messages: Annotated[int, Between(0, 1_000_000)] = field(default=0, metadata=RELOADED)
    # messages accepted from such an address; then 450; "": no limit
    max_rate_per_client: Rate = field(default="", metadata=RELOADED)
    # what refuses strangers at RCPT: a sender's domain without MX, A and AAAA
    reject_unknown_sender_domain: bool = field(default=False, metadata=RELOADED)
    # a name in EHLO that is no host name, or one without A and AAAA; "": none
    reject_helo: Literal["", "invalid", "unknown"] = field(default="", metadata=RELOADED)
    reject_no_ptr: bool = field(default=False, metadata=RELOADED)  # no name of the address
    dnsbl: tuple[DnsBlocklist, ...] = field(default=(), metadata=RELOADED)  # lists the address
    # how long a client may be silent, in seconds
    timeout: PositiveSeconds = field(default=300.0, metadata=RELOADED)
    # SPF, DKIM and DMARC of strangers' mail (the extra [checks]): recorded, or also enforced
    sender_checks: Literal["off", "record", "enforce"] = field(default="off", metadata=RELOADED)
    # clients, and domains that pass, whose mail is not refused and not put into Junk Email
    sender_checks_except: tuple[Annotated[str, values.parse_network_or_domain], ...] = field(
        default=(), metadata=RELOADED
    )
    # of content; None: DATA rejects it, BDAT makes it CRLF
    bare_newline: Literal["reject", "normalize"] | None = field(default=None, metadata=RELOADED)
    tls: TlsSettings | None = None  # None: no TLS

    def __post_init__(self) -> None:
        if self.trusted_networks == _BY_ROLE:
            networks = _LOOPBACK if self.role == "relay" else ()
            object.__setattr__(self, "trusted_networks", networks)

    def trusts(self, ip: str) -> bool:
        """Whether a client with this address may relay without a login."""
        return is_in(self.trusted_networks, ip)

    @property
    def serves_this_machine(self) -> bool:
        """Whether its clients are on this machine: a proxy there may have others."""
        return self.listen.is_loopback and not self.proxy_networks

    @property
    def takes_auth(self) -> bool:
        """Whether clients may log in: by default not at the port for other servers (RFC 6409 3), as
        in Postfix (smtpd_sasl_auth_enable), unless only this machine reaches it.
        """
        if self.auth is not None:
            return self.auth
        return self.role != "relay" or self.serves_this_machine

    @property
    def takes_programs(self) -> bool:
        """Whether programs of this machine can send to its TCP port, without a proxy."""
        return self.role == "relay" and bool(self.listen.port) and not self.proxy_networks


@dataclass(frozen=True, slots=True)
class MailboxSettings:
    """The local domains and the directory of their mailboxes."""

    domains: tuple[Domain, ...] = field(default=(), metadata=RELOADED)  # that are local
    root: Path = Path("mail")  # of the Maildirs
    # the name of this root: each on a PostgreSQL spool has one, and only its holder delivers there
    store: Annotated[str, values.parse_node_name] = "main"
    accounts: Path = field(default=Path("accounts.toml"), metadata=RELOADED)  # and aliases
    # the path of Dovecot's socket for auth clients, for logins of who is not there; "": none
    dovecot_auth: Annotated[str, values.parse_unix_socket] = field(default="", metadata=RELOADED)
    # of mail to unknown users: an account, or an address elsewhere; "": none
    catch_all: Mailbox = field(default="", metadata=RELOADED)
    # of mail to postmaster; "": the dead letters
    postmaster: Mailbox = field(default="", metadata=RELOADED)
    # whether mail of strangers in the name of a local domain may leave by an alias or a tenant
    forward_own_from: bool = field(default=False, metadata=RELOADED)
    # of the senders that forwarded mail gets; "": the alias's domain
    srs_domain: Domain = field(default="", metadata=RELOADED)
    # of the same; "": a file in state_dir
    srs_key: Annotated[str, values.parse_srs_key, Secret] = ""


@dataclass(frozen=True, slots=True)
class OwnDomain:
    """An own domain that is not in mailboxes.domains; the domains there have accounts."""

    name: Domain
    # which are valid: accounts here, or for mail that is passed on: "any", those that the next hop
    # takes ("verify"), or those in a file
    recipients: Annotated[str, values.parse_recipients] = "accounts"
    catch_all: Mailbox = ""  # with accounts: as in [mailboxes]
    postmaster: Mailbox = ""  # "": as in [mailboxes], or the next hop
    alias_of: Domain = ""  # each address is one of the same name there

    @property
    def file(self) -> Path | None:
        """The file with the recipients of the domain, if there is one."""
        path = self.recipients.removeprefix(values.FILE)
        return Path(path) if path != self.recipients else None

    @property
    def has_accounts(self) -> bool:
        """Whether accounts have addresses there."""
        return self.recipients == "accounts" and not self.alias_of


_SPOOL_FILE: Final = "spool.sqlite"


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """The durable queue.

    `url` is "sqlite:PATH" with PATH relative to state_dir, or the URL of a PostgreSQL server
    (relay/base/settings/postgres_url.py). `node` is this node's name there; "": the hostname.
    """

    url: Annotated[str, values.parse_spool_url, Secret] = field(
        default=f"sqlite:{_SPOOL_FILE}", repr=False
    )
    node: Annotated[str, values.parse_node_name] = ""
    keep: PositiveSeconds = 14 * 86400.0

    @property
    def is_file(self) -> bool:
        """Whether the queue is a file in state_dir, and not on a server."""
        return self.url.startswith("sqlite:")


@dataclass(frozen=True, slots=True)
class SuppressionSettings:
    """The list of dead addresses. `keep` is how long an address that Relay found stays there."""

    after: Annotated[int, Between(1, 10)] = 2
    keep: PositiveSeconds = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class PressureSettings:
    """The limits above which new mail is refused.

    `memory` 0 is three quarters of the machine's memory. Less than 16 MiB is an error, because
    Relay would never accept mail.
    """

    disk_free: Bytes = 64 * 1024 * 1024
    queue_entries: Annotated[int, Between(1, 1_000_000_000)] = 2_000_000
    memory: Annotated[int, Size(at_least=16 * 1024 * 1024, or_zero=True)] = 0
    commit_latency: PositiveSeconds = 30.0


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """Name servers as "IP" or "IP:PORT", by default the system's; and which addresses count."""

    nameservers: tuple[Annotated[Address, values.parse_name_server], ...] = ()
    # of hosts that mail is sent to; the first is preferred (Postfix: inet_protocols,
    # smtp_address_preference)
    protocols: tuple[Literal["ipv4", "ipv6"], ...] = ("ipv4", "ipv6")
    validating: bool = False  # they validate DNSSEC, and no host between can change their answers
    timeout: PositiveSeconds = 10.0


RetryList = tuple[PositiveSeconds, ...]
Connections = Annotated[int, Between(1, 10_000)]


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """Delivery: retries, limits, TLS. Times are in seconds."""

    port: Port = 25  # of MX hosts
    tls: Literal["none", "opportunistic", "required"] = "opportunistic"  # for hosts without a route
    # the delay before each retry; the last one repeats
    retry: RetryList = (60.0, 300.0, 900.0, 1800.0, 3600.0)
    delay_warning_after: Seconds = 4 * 3600.0  # from acceptance; 0: never
    expire_after: PositiveSeconds = 2 * 86400.0  # from acceptance
    # attempts of a recipient without an answer to the final dot; then it fails
    indeterminate_max: Annotated[int, Between(1, 1000)] = 3
    max_connections: Connections = 200  # to all hosts
    max_connections_per_next_hop: Connections = 20  # to one next hop
    max_rate_per_next_hop: Rate = ""  # such as 100/1m; "": no limit
    connect_timeout: PositiveSeconds = 30.0  # of one address
    command_timeout: PositiveSeconds = 300.0  # for each reply
    shutdown_grace: Seconds = 8.0  # for the attempts in progress at a stop
    providers: Path | None = None  # a file of [[reply]] tables; they go before the shipped ones
    mta_sts_port: Port = 443  # of the web servers with MTA-STS policies
    mta_sts_ca: Path | None = None  # trusted for them; None: the system's store
    mta_sts_allow: tuple[Network, ...] = ()  # of them, in addition to public addresses
    # of token servers and graph:// next hops, http://HOST:PORT; "": none
    proxy: Annotated[str, values.parse_proxy, Secret] = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class RouteAuth:
    """A login for a next hop: a password, or a token of the [[oauth]] of this name."""

    user: str  # with a token also SENDER: the address in MAIL
    password_file: Path | None = None
    oauth: str = ""


SENDER: Final = "sender"


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the route table: which mail it takes, its next hop, and how that is contacted."""

    # of the recipients; required, unless `recipient` has it
    domain: Annotated[str, values.parse_domain_pattern] = ""
    # required; as values.NEXT_HOP_EXPECTED says; "" where sender is "<>": the route is left out
    next_hop: Annotated[str, values.parse_next_hop] = ""
    auth: RouteAuth | None = None  # the login
    # None: "verify" with `auth` to a host that is not loopback, else as in [delivery]
    tls: Literal["none", "opportunistic", "required", "verify", "dane"] | None = None
    ca: Path | None = None  # None: the system's store
    max_connections: Connections | None = None  # per site, as well as in [delivery]
    max_rate: Rate = ""  # per site, as well as in [delivery]
    name: Annotated[str, values.parse_route_name] = ""  # "": validation.name_of()
    sender: Annotated[str, values.parse_sender_pattern] = ""  # "": every reverse-path
    recipient: Mailbox = ""  # only this address of the domain, with any tag; "": all
    # a host, instead of a silent one; "": none
    fallback: Annotated[str, values.parse_next_hop] = ""
    fallback_after: PositiveSeconds = 1800.0  # of silence
    fallback_auth: RouteAuth | None = None  # graph://: the login for `fallback`
    source_address: Annotated[str, values.parse_ip] = ""  # "": the system chooses
    # "verified": the name in next_hop, verified, is enough for mail with REQUIRETLS
    requiretls: Literal["", "verified"] = ""
    # graph://: whether a draft is made, sent and looked for after a lost answer; None: True
    confirm: bool | None = None
    # graph://: the largest content that goes as it is; larger goes to `fallback`, else it is
    # converted if `confirm`, else it fails; None: MIME_MAX
    mime_max: Bytes | None = None
    convert: Literal["", "signed"] = ""  # graph://: "signed": also what others have signed (DKIM)
    # graph://: hosts of upload URLs, with those below them, besides the next hop and Microsoft's
    upload_hosts: tuple[Annotated[str, values.parse_domain], ...] = ()
    reports: bool = False  # graph://: also takes delivery reports about mail of trusted clients

    def __post_init__(self) -> None:
        object.__setattr__(self, "domain", self.domain or self.recipient.rpartition("@")[2])


MIME_MAX: Final = 2_200_000


# of Microsoft's clouds; also with a name before them, such as westeurope
_LOGIN_HOSTS = (
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.partner.microsoftonline.cn",
    "login.chinacloudapi.cn",
    "login.microsoft.com",
    "login.windows.net",
    "sts.windows.net",
)


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """Where tokens for routes come from (RFC 6749). Without a secret, certificate, service account
    or assertion, the refresh token is used that `relay oauth login` has stored.
    """

    name: Annotated[str, values.parse_node_name]  # in routes, and of the file of its refresh token
    provider: Literal["", "microsoft", "google"] = ""  # "": token_url and scope
    tenant: str = ""  # of microsoft: its domain or id
    client_id: str = ""  # of the application
    # of an application, or of google with a person who has signed in
    client_secret: Annotated[str, Secret] = field(default="", repr=False)
    # the last day (UTC) of the secret, which warnings name; "": not known
    secret_ends: Annotated[str, values.parse_date] = ""
    certificate: Path | None = None  # PEM, with its key
    service_account: Path | None = None  # Google's JSON
    assertion_file: Path | None = None  # read at each request
    token_url: Annotated[str, values.parse_token_url] = ""  # "": the provider's
    device_url: Annotated[str, values.parse_token_url] = ""  # "": devicecode next to token_url
    scope: str = ""  # "": as the provider has it for what uses the token

    @property
    def is_microsoft(self) -> bool:
        """Whether its tokens are those of one of Microsoft's clouds."""
        host = urlsplit(self.token_url).hostname or ""
        at_microsoft = any(f".{host}".endswith(f".{name}") for name in _LOGIN_HOSTS)
        return self.provider == "microsoft" or at_microsoft


@dataclass(frozen=True, slots=True)
class DkimKey:
    """A key that signs mail from a domain, and from those below it that have no key."""

    domain: Domain
    selector: Annotated[str, values.parse_selector]  # of the record: SELECTOR._domainkey.DOMAIN
    key: Path  # PEM
    # the last day (UTC) on which it signs; "": no end
    until: Annotated[str, values.parse_date] = ""


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The mail-flow rules."""

    directory: Path = field(default=Path("policies"), metadata=RELOADED)
    # its files are read too, unless `directory` has one of the same name
    shipped: Path | None = field(default=None, metadata=RELOADED)
    # entries that rules hold; then 452
    held_max: Annotated[int, Between(0, 10_000_000)] = field(default=10_000, metadata=RELOADED)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Own domains with separate rules, in the directory of this name below the directory of
    [policy].
    """

    name: Annotated[str, values.parse_tenant_name]
    domains: tuple[Domain, ...]  # of its mail
    # the actions that may name addresses of others, and routes as "route:NAME"
    may: tuple[str, ...] = ()


Strangers = Literal["verified", "postmaster", "sender"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What each login, token's account and user of this machine may send to the outside. () is no
    limit. In an account, None means the value of [limits].
    """

    messages: Rates | None = field(default=None, metadata=RELOADED)
    recipients: Rates | None = field(default=None, metadata=RELOADED)


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class LimitsOfAll(Limits):
    """The table [limits]."""

    messages: Rates = field(default=(), metadata=RELOADED)
    recipients: Rates = field(default=(), metadata=RELOADED)
    # gets a message when an account has used 80 % of a limit, and when it has used all
    alert: Mailbox = field(default="", metadata=RELOADED)


@dataclass(frozen=True, slots=True)
class ReportsSettings:
    """Reports to senders."""

    # of those for whom no other is known
    language: Language = "en"
    templates: Path | None = None  # the directory of the operator's texts
    per_sender: Rate = "100/3600.0"  # of successes and delays; "": no limit
    copy_to: Mailbox = ""  # gets a copy, with the header only
    copy_kinds: tuple[Literal["failure", "delayed", "unknown"], ...] = ("failure",)
    # who gets a report if strangers' mail fails after its 250; verified: the sender, if a check of
    # the domain passed, else the postmaster
    strangers: Strangers = "verified"
    complaints: Mailbox = ""  # a mailbox here, to which reports about the mail of all come


@dataclass(frozen=True, slots=True)
class ObserveSettings:
    """Metrics, health and logs."""

    metrics: Annotated[Address, values.parse_metrics] | None = None
    log: Literal["auto", "json", "logfmt", "pretty"] = "auto"
    log_to: Literal["stderr", "stdout"] = "stderr"


# The names of events: of steps 4 to 7, and of the states of recipients; "*": all, also steps 1 to 3
# and "limit", which is of an account
WebhookEvent = Literal[
    "*",
    "accepted",
    "policy",
    "delivery",
    "reported",
    "complaint",
    "suppressed",
    "queued",
    "deferred",
    "held",
    "captured",
    "delivered",
    "relayed",
    "failed",
    "expired",
    "cancelled",
    "discarded",
    "redirected",
    "expanded",
    "limit",
]


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where events of journeys are posted to."""

    url: Annotated[str, values.parse_webhook_url]  # https, or http on loopback
    events: tuple[WebhookEvent, ...]
    # signs the requests: whsec_ and the base64 of 24 to 64 octets
    secret: Annotated[str, values.parse_webhook_key, Secret] = field(repr=False)
    accounts: tuple[Annotated[str, values.parse_glob], ...] = ("*",)  # globs of senders' accounts


MilterRole = Literal["relay", "submission", "submissions", "local"]


@dataclass(frozen=True, slots=True)
class Milter:
    """A filter that is asked about mail by the milter protocol."""

    name: Annotated[str, values.parse_node_name]
    address: Address  # host and port, or the path of a Unix socket
    # the listeners whose mail it sees; local: mail of pickup and of [sendmail]
    role: tuple[MilterRole, ...] = ("relay",)
    # what is done with mail while it does not answer
    when_down: Literal["accept", "defer", "reject"] = "defer"
    timeout: PositiveSeconds = 30.0  # for each answer; ten times as long for those about content


@dataclass(frozen=True, slots=True)
class SendmailSettings:
    """Mail of programs of this machine: `relay sendmail`."""

    socket: Path = Path("/run/relay/submit.sock")  # while the service runs
    users: tuple[str, ...] = ()  # and root: may send from any address
    drop: Path | None = Path("/var/spool/relay/maildrop")  # while it is down; None: then 75


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration."""

    hostname: Domain  # in the greeting, EHLO and Received
    state_dir: Path  # the spool, the sockets and the lock
    http: HttpSettings = field(default_factory=HttpSettings)  # [http]
    # whether SMTP sessions are in a separate process; auto: with two processors and more
    smtp_gate: Literal["auto", "on", "off"] = "auto"
    smtp: tuple[SmtpListener, ...] = ()  # each [[smtp]]
    mailboxes: MailboxSettings = field(default_factory=MailboxSettings)  # [mailboxes]
    domain: tuple[OwnDomain, ...] = field(default=(), metadata=RELOADED)  # each [[domain]]
    spool: SpoolSettings = field(default_factory=SpoolSettings)  # [spool]
    suppression: SuppressionSettings | None = None  # [suppression]; None: there is no list
    pressure: PressureSettings = field(default_factory=PressureSettings)  # [pressure]
    dns: DnsSettings = field(default_factory=DnsSettings, metadata=RELOADED)  # [dns]
    # the table [delivery]
    delivery: DeliverySettings = field(default_factory=DeliverySettings, metadata=RELOADED)
    # each [[route]], the first that matches is used
    route: tuple[Route, ...] = field(default=(), metadata=RELOADED)
    oauth: tuple[OAuthClient, ...] = field(default=(), metadata=RELOADED)  # each [[oauth]]
    dkim: tuple[DkimKey, ...] = field(default=(), metadata=RELOADED)  # each [[dkim]]
    policy: PolicySettings = field(default_factory=PolicySettings)  # [policy]
    tenant: tuple[Tenant, ...] = field(default=(), metadata=RELOADED)  # each [[tenant]]
    # the table [reports]
    reports: ReportsSettings = field(default_factory=ReportsSettings, metadata=RELOADED)
    limits: LimitsOfAll = LimitsOfAll()  # [limits]
    observe: ObserveSettings = field(default_factory=ObserveSettings)  # [observe]
    sendmail: SendmailSettings | None = None  # [sendmail]; None: no socket
    webhook: tuple[Webhook, ...] = field(default=(), metadata=RELOADED)  # each [[webhook]]
    # each [[milter]], in the order in which they are asked
    milter: tuple[Milter, ...] = field(default=(), metadata=RELOADED)

    @property
    def domains(self) -> tuple[str | OwnDomain, ...]:
        """All own domains; a plain name is a domain with accounts."""
        return (*self.mailboxes.domains, *self.domain)

    @property
    def own_domains(self) -> tuple[str, ...]:
        """The names of all own domains."""
        return (*self.mailboxes.domains, *(domain.name for domain in self.domain))

    @property
    def alias_domains(self) -> dict[str, str]:
        """The domain that each own domain with `alias_of` stands for, by the name of the latter."""
        return {domain.name: domain.alias_of for domain in self.domain if domain.alias_of}

    @property
    def account_domains(self) -> tuple[str, ...]:
        """The names of the domains in which accounts have addresses."""
        return (*self.mailboxes.domains, *(own.name for own in self.domain if own.has_accounts))

    @property
    def run_dir(self) -> Path:
        """The directory of the sockets and the lock."""
        return self.state_dir / "run"

    @property
    def spool_file(self) -> Path:
        """The file of the queue; for a queue on a server, the default file."""
        path = self.spool.url.removeprefix("sqlite:") if self.spool.is_file else _SPOOL_FILE
        return self.state_dir / path

    @property
    def node(self) -> str:
        """The name of this node."""
        return self.spool.node or self.hostname

    @property
    def node_of_many(self) -> str:
        """The name of this node if several may share the spool, else ""."""
        return "" if self.spool.is_file else self.node

    @property
    def webhook_cursors(self) -> Path:
        """The file of what webhooks were sent."""
        return self.state_dir / "webhooks.json"

    @property
    def pickup_socket(self) -> Path:
        """The Unix socket of the SMTP listener for pickup."""
        return self.run_dir / "pickup.sock"

    @property
    def refused_dir(self) -> Path:
        """The files of what SMTP sessions refused."""
        return self.state_dir / "refused"

    @property
    def control_socket(self) -> Path:
        """The Unix socket of `/relay/v1` with the role operate, for the command line."""
        return self.run_dir / "control.sock"
