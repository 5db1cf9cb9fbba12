"""Load what a service runs with (settings, accounts, rules, texts of reports), reload it, and build
its route table.

A reload applies the reloadable keys (relay/base/settings/reloadable_keys.py), rules, accounts and
texts, and only if no file has a fault, but for rights that accounts have lost. A fault raises
SettingsError; a fault in the rules of a tenant does not: see relay/operation/app/tenant_sets.py.

The key of SRS addresses is `mailboxes.srs_key`, or a file in state_dir that the first start
creates. Reports arrive at SRS addresses of the last three weeks, so the key is never replaced: with
a file that cannot be used, a start fails. `relay backup` copies the file with state_dir.
"""

import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.accounts.account import AccountDirectory, Role
from relay.base.accounts.accounts_file import load_accounts
from relay.base.accounts.directory import AccountTables, FileAccounts
from relay.base.accounts.lost_rights import without_lost_rights
from relay.base.certificates import CertificateError, CheckedPair, ServerCertificate
from relay.base.clock import Clock, rfc3339
from relay.base.crashpoints import CrashPoints
from relay.base.files import read_key_file, replace_file
from relay.base.message.envelope import domain_of
from relay.base.message.nexthop import CAPTURE, LOCAL, ROUTE_PREFIX, Destination, HopKind, NextHop
from relay.base.message.srs import Srs
from relay.base.observe.logs import get_logger
from relay.base.phrases import without_login
from relay.base.settings.document import (
    Fault,
    KeyPath,
    SettingsError,
    dotted,
    parse_document,
    read_document,
    read_text,
)
from relay.base.settings.reader import load, read_again
from relay.base.settings.reloadable_keys import apply_reloadable
from relay.base.settings.tree import ListenerTls, NodeRole, Settings
from relay.base.settings.validation import name_of
from relay.base.settings.values import SRS_KEY_EXPECTED, parse_domain, parse_srs_key
from relay.delivery.oauth.client_secrets import secret_states
from relay.delivery.provider_replies import ProviderReplies, load_provider_replies
from relay.delivery.reports.texts import ReportTexts, load_texts
from relay.operation.app import tenant_sets
from relay.operation.app.account_file import accounts_of
from relay.store.spool.engine import LOCAL_DOMAINS
from relay.store.spool.queue_commands import RouteLookup
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.rule_book import RuleBook
from relay.transport.routing.route_table import Confinement, RouteTable
from relay.transport.routing.routes import parse_action
from relay.transport.routing.routing_result import LocalRecipient
from relay.transport.signing.key_files import load_keys
from relay.transport.signing.keys import KeyRing

SRS_KEY_FILE = "srs.key"
_SRS_KEY_BYTES = 32
_OF_MACHINE = ("auth", "ca", "source_address")  # keys of a route that may differ between nodes
_log = get_logger("app")


class Configuration(Struct, frozen=True):
    """The parts that are read together and replaced together."""

    settings: Settings  # as at the start, with the reloadable keys of the last reload
    accounts: AccountTables  # of accounts.toml
    rules: RuleBook  # of the policy directory
    tenants: Mapping[
        str, tenant_sets.TenantSet
    ]  # the part of `rules` that tenants wrote, by tenant
    texts: ReportTexts  # of reports
    keys: KeyRing  # that sign mail
    providers: ProviderReplies  # replies of hosts with a meaning that the outcome table lacks
    routes: RouteTable  # with the passwords and CA files of routes
    places: Mapping[str, "RoutePlace"]  # of the routes, by name
    # the certificates whose files have changed, each with its new key pairs
    new_pairs: Sequence[tuple[ServerCertificate, Sequence[CheckedPair]]] = ()
    text: str = ""  # of relay.toml


class ListenerCertificates(Struct, frozen=True):
    """The certificate of each SMTP listener and of the HTTP server; None without TLS."""

    smtp: Sequence[ServerCertificate | None]
    http: ServerCertificate | None


class ActiveConfiguration:
    """The configuration of the last successful load, `now`; `accounts` are always its accounts."""

    def __init__(
        self,
        file: Path,
        environ: Mapping[str, str],
        *,
        clock: Clock,
        role: NodeRole = NodeRole.ALL,
        crash_at: str = "",
        on_settings: Callable[[Settings], None] = lambda _: None,
    ) -> None:
        """Load the configuration `file` and the files that it names; call `on_settings` before the
        first warning. Raises SettingsError.
        """
        self._file, self._environ, self._clock, self._role = file, environ, clock, role
        self._on_settings = on_settings
        text = self._text_at_start = read_text(file)
        settings = self._load(text)
        self._last_good = tenant_sets.LastGoodSets(settings.state_dir, CrashPoints(crash_at))
        self.now = replace(self._with_files(settings, None), text=text)
        self.accounts = FileAccounts(
            self.now.accounts, clock, dovecot_auth=settings.mailboxes.dovecot_auth
        )
        self._agreed: tuple[Configuration, Mapping[str, str]] | None = None
        self.certificates = server_certificates(settings)

    @property
    def settings(self) -> Settings:
        """The settings of the start, with the reloadable keys of the last reload."""
        return self.now.settings

    def as_read(self) -> dict[str, str]:
        """The text of relay.toml as it was read last, and at the start."""
        return {"text": self.now.text, "text_at_start": self._text_at_start}

    def impaired(self) -> str:
        """Return which tenants do not have their newest rules, "" if all have."""
        return tenant_sets.trouble_of(self.now.tenants)

    def keep_sets(self) -> None:
        """Copy the active rules of tenants to state_dir: a start uses the copy if the files then
        have a fault. Only the owner of state_dir may call it. Blocks.
        """
        self._last_good.keep_all(self.now.tenants, self.settings.policy.directory)

    def agreed(self) -> Mapping[str, str]:
        """Return a digest of each part that must be equal on all nodes of a spool."""
        if self._agreed is None or self._agreed[0] is not self.now:
            now = self.now
            parts = agreed_parts(
                now.settings, rules=now.rules.digest, accounts=now.accounts.digest, keys=now.keys
            )
            self._agreed = now, parts
        return self._agreed[1]

    def read(self, on_restart_key: Callable[[str], None]) -> Configuration:
        """Load the files again and return the new configuration, for use(). Blocks.

        `on_restart_key` is called with each changed key that needs a restart, even if a later file
        has a fault. Raises SettingsError.
        """
        text = read_text(self._file)
        read = self._load(text, is_reload=True)
        settings, changes = apply_reloadable(self.now.settings, read)
        for change in changes:
            on_restart_key(change)
        pairs = self._new_pairs(settings)
        loaded = self._with_files(settings, self.now)
        self._last_good.keep_all(loaded.tenants, settings.policy.directory)
        return replace(loaded, new_pairs=pairs, text=text)

    def without_lost_rights(self) -> tuple[Configuration, list[str]]:
        """Return the active configuration without the rights that accounts.toml does not give any
        more, and which accounts lose some. Blocks. Raises SettingsError for a fault of the file.
        """
        if not self.now.accounts.accounts:  # the file may be missing
            return self.now, []
        settings, clock, environ = self.settings, self._clock, self._environ
        file, domains = settings.mailboxes.accounts, settings.domains
        read = load_accounts(file, domains, clock=clock, environ=environ, writers=None)
        accounts, lost = without_lost_rights(self.now.accounts, read.tables)
        return replace(self.now, accounts=accounts, new_pairs=()), lost

    def _load(self, text: str, *, is_reload: bool = False) -> Settings:
        """Return the settings in a `text` of the file; log the keys of older releases. A secret
        with which no token can be asked for refuses a reload, and is logged at a start.
        """
        place = parse_document(self._file, text)
        settings = load(place, self._environ, role=self._role)
        faults = [
            place.fault(("oauth", number), f'"{name}": {state.fault}; mail waits in class auth')
            for number, (name, state) in enumerate(secret_states(settings.oauth).items())
            if state.fault
        ]
        if faults and is_reload:
            raise SettingsError(faults)
        if not is_reload:
            self._on_settings(settings)
        for fault in (*read_again(place, self._environ).removed, *faults):
            _log.warning("a key of relay.toml is of no use", key=fault.key, detail=str(fault))
        return settings

    def use(self, read: Configuration) -> None:
        """Make this configuration the active one."""
        self.now = read
        self.accounts.use(read.accounts, dovecot_auth=read.settings.mailboxes.dovecot_auth)
        for certificate, pairs in read.new_pairs:
            certificate.use(pairs)

    def _new_pairs(
        self, settings: Settings
    ) -> list[tuple[ServerCertificate, Sequence[CheckedPair]]]:
        """Return the certificates whose files have changed, each with its new key pairs."""
        replaced: list[tuple[ServerCertificate, Sequence[CheckedPair]]] = []
        now_s = self._clock.time_us() / 1_000_000
        listeners: list[tuple[KeyPath, ServerCertificate | None, ListenerTls | None]] = [
            (("smtp", number, "tls"), self.certificates.smtp[number], listener.tls)
            for number, listener in enumerate(settings.smtp)
        ]
        listeners.append((("http", "tls"), self.certificates.http, settings.http.tls))
        for path, certificate, tls in listeners:
            if certificate is None or tls is None:
                continue
            pairs = []
            for place, files in tls.pairs:
                try:
                    pairs.append(certificate.pair(files.certificate, files.key, now_s=now_s))
                except CertificateError as error:
                    key = dotted((*path, *place, "certificate"))
                    text = f'found "{files.certificate}", expected a valid one: {error}'
                    raise SettingsError([Fault(self._file, 0, key, text)]) from None
            if tuple(pairs) != certificate.pairs:
                replaced.append((certificate, pairs))
        return replaced

    def _with_files(self, settings: Settings, before: Configuration | None) -> Configuration:
        """Load the files that `settings` name; `before` is the configuration in force."""
        rules = tenant_sets.load_set(
            settings,
            None,
            config=self._file,
            loaded=rfc3339(self._clock.time_us()),
            examine=warn_of_rules,
            before=before.rules.operator if before else None,
        )
        tenant_sets.check_operator(settings, self._file, rules)
        texts = load_texts(settings.reports)
        keys = load_keys(settings.dkim, self._file)
        providers = load_provider_replies(settings.delivery.providers, self._file, settings.oauth)
        accounts = accounts_of(settings, clock=self._clock, environ=self._environ)
        for fault in accounts.tables.removed_keys:
            _log.warning("a key of accounts.toml is of no use", key=fault.key, detail=str(fault))
        for number, text in auth_missing(settings, accounts.tables).items():
            _log.warning("AUTH is off", key=dotted(("smtp", number, "auth")), detail=text)
        anonymous = settings.http.anonymous
        if text := anonymous_fault(anonymous, accounts):
            raise SettingsError([Fault(self._file, 0, "http.anonymous", text)])
        table = read_table(settings, accounts, self._file)
        places = route_places(self._file, settings)
        sets = tenant_sets.load_tenants(
            settings,
            self._last_good,
            before=before.tenants if before else {},
            clock=self._clock,
            examine=warn_of_rules,
        )
        of_tenants = ((tenant_set.tenant, tenant_set.rules) for tenant_set in sets.values())
        book = tenant_sets.book_of([(None, rules), *of_tenants], settings)
        return Configuration(
            settings, accounts.tables, book, sets, texts, keys, providers, table, places
        )

    def close(self) -> None:
        """Stop the threads of the accounts."""
        self.accounts.close()


def warn_of_rules(rules: RuleSet) -> None:
    """Log a warning for each rule without its group, or that takes all mail, and if there is no
    folder of rules.
    """
    for warning in rules.warnings:
        _log.warning("a warning about rules", detail=warning)


def auth_missing(settings: Settings, tables: AccountTables) -> dict[int, str]:
    """Return a warning, by the number of the listener, for each relay listener where accounts may
    be unable to log in because `auth` is not set. It is empty if accounts have no passwords, or if
    another role of listener is configured. `relay check` does not know where sockets of systemd
    listen.
    """
    has_logins = tables.passwords or settings.mailboxes.dovecot_auth
    if not has_logins or any(listener.role != "relay" for listener in settings.smtp):
        return {}
    return {
        number: f'found none, expected true or false: "{listener.listen}" has no AUTH by default '
        "if other machines reach it, and accounts have passwords"
        for number, listener in enumerate(settings.smtp)
        if listener.auth is None and listener.tls is not None and listener.role == "relay"
        if listener.listen.is_elsewhere or not listener.takes_auth
    }


def anonymous_fault(anonymous: str, accounts: AccountDirectory) -> str:
    """Return why requests without a token cannot use this account, "" if they can."""
    if not anonymous:
        return ""
    account = accounts.by_address(anonymous)
    if account is None or account.is_disabled:
        return f'found "{anonymous}", expected the address of an account that is not disabled'
    if account.role is not Role.USER:
        fault = f'found "{anonymous}" with the role {account.role}'
        return f"{fault}, expected the role user: every local program would have the role"
    return ""


def server_certificates(settings: Settings) -> ListenerCertificates:
    """Load the certificates of the listeners. Raises CertificateError."""
    return ListenerCertificates(
        smtp=tuple(_certificate(listener.tls) for listener in settings.smtp),
        http=_certificate(settings.http.tls),
    )


def _certificate(tls: ListenerTls | None) -> ServerCertificate | None:
    if tls is None:
        return None
    further = [(pair.certificate, pair.key) for pair in tls.further]
    return ServerCertificate(tls.certificate, tls.key, *further)


# a fault in a key outside [[route]]
_TABLE_FAULT = re.compile(r"(domain|mailboxes)(?:\[(\d++)\])?\.(\w++): (.*+)\Z", re.DOTALL)
_NEXT_HOP_EXPECTED = (
    "default, mx, mx:DOMAIN, local, route:NAME, smtp://HOST:PORT, smtps://HOST:PORT,"
    " lmtp://HOST:PORT or lmtp:unix:PATH"
)


def route_table(
    settings: Settings, accounts: AccountDirectory, *, confinement: Confinement | None = None
) -> RouteTable:
    """Return the table of the routes and local domains in `settings`."""
    boxes = settings.mailboxes
    table = RouteTable(
        settings.route,
        settings.domains,
        accounts,
        catch_all=boxes.catch_all,
        postmaster=boxes.postmaster,
        tls=settings.delivery.tls,
        hostname=settings.hostname,
        confinement=confinement,
    )
    table.signed = {key.domain for key in settings.dkim}
    return table


def read_table(settings: Settings, accounts: AccountDirectory, file: Path) -> RouteTable:
    """Return the table of `settings`, which were read from `file`. Raises SettingsError."""
    try:
        table = route_table(settings, accounts)
    except ValueError as error:
        if not (match := _TABLE_FAULT.match(str(error))):
            raise SettingsError([Fault(file, 0, "route", str(error))]) from None
        name, number, key, text = match.groups()
        path: KeyPath = (name, key) if number is None else (name, int(number), key)
        raise SettingsError([read_document(file).fault(path, text)]) from None
    complaints = settings.reports.complaints
    expansion = table.expand(complaints)
    is_kept = expansion is None or any(not target.through for target in expansion.targets)
    if complaints and not (is_kept and isinstance(table.examine(complaints), LocalRecipient)):
        text = f'found "{complaints}", expected the address of a mailbox here'
        raise SettingsError([read_document(file).fault(("reports", "complaints"), text)])
    return table


class RoutePlace(Struct, frozen=True):
    """Where a route is written."""

    file: str
    line: int


def route_places(file: Path, settings: Settings) -> Mapping[str, RoutePlace]:
    """Return the place of each route by its name; `settings` were read from `file`.

    Raises SettingsError.
    """
    document = read_document(file)
    return {
        name_of(route): RoutePlace(str(file), document.line(("route", number)))
        for number, route in enumerate(settings.route)
    }


def parse_next_hop(
    text: str, table: Callable[[], RouteTable], *, check: Callable[[NextHop], None] | None = None
) -> RouteLookup:
    """Return the function from address to destination that the text of `queue reroute --to` means.

    "default" uses the routes, as for new mail; "mx" is the MX of each recipient's domain;
    "local" accepts only recipients with a mailbox here; "route:NAME" is as the rule action
    next_hop. "capture" is not accepted: hold instead.
    `check` raises ValueError for a host that is not allowed. Raises ValueError.
    """
    if text == "default":
        return table().destination_of
    if text == "mx":
        return _own_mx
    if text == "local":
        return lambda address, _sender: _local(address, table())
    if text.startswith(ROUTE_PREFIX):
        return table().lookup_by_route(text.removeprefix(ROUTE_PREFIX))
    hop = _next_hop(text)
    if check is not None:
        check(hop)
    return lambda _address, _sender: Destination(hop, chosen=True)


def _next_hop(text: str) -> NextHop:
    if text.startswith("mx:"):
        try:
            return NextHop(HopKind.MX, parse_domain(text.removeprefix("mx:")))
        except ValueError:
            raise ValueError(
                f"found {without_login(text)!r}, expected {_NEXT_HOP_EXPECTED}"
            ) from None
    try:
        action = parse_action(text)
    except ValueError:
        if text.startswith(HopKind.LMTP):  # the error says what is special about it
            raise
        action = CAPTURE
    if not isinstance(action, NextHop) or action == CAPTURE:
        raise ValueError(f"found {without_login(text)!r}, expected {_NEXT_HOP_EXPECTED}")
    if action.kind is HopKind.GRAPH:
        expected = "route:NAME, of a route to Microsoft Graph: it has the login"
        raise ValueError(f"found {text!r}, expected {expected}")
    return action


def _own_mx(address: str, _sender: str) -> Destination | None:
    domain = domain_of(address)
    return Destination(NextHop(HopKind.MX, domain), chosen=True) if domain else None


def _local(address: str, table: RouteTable) -> Destination | None:
    """Return LOCAL if local delivery takes `address`: a catch_all is for local domains only."""
    is_local = table.is_local_domain(domain_of(address)) or table.next_hop_for(address) == LOCAL
    return Destination(LOCAL, chosen=True) if is_local and table.mailbox_for(address) else None


def agreed_parts(
    settings: Settings, *, rules: str, accounts: str, keys: KeyRing
) -> Mapping[str, str]:
    """Return a digest of each part that must be equal on all nodes of a spool, by the name of the
    part: one node may accept a message and another deliver it. `rules` and `accounts` are digests.

    Each mail root has local domains and accounts, so these parts are named after the store. Other
    nodes read the local domains, so they are text, not a digest. Some digests are of secrets and
    must not leave this process.
    """
    routes = [
        {key.name: getattr(route, key.name) for key in fields(route) if key.name not in _OF_MACHINE}
        for route in settings.route
    ]
    signing = sorted(
        (key.domain, key.selector, key.private.public().hex(), key.ends_us or 0)
        for key in keys.keys
    )
    store = settings.mailboxes.store
    parts = {
        "rules": rules,
        "routes": _digest(routes),
        LOCAL_DOMAINS.format(store): " ".join(sorted(settings.account_domains)),
        f"accounts of the store {store}": accounts,
        "domains that are passed on": _digest(
            sorted(
                (domain.name, domain.recipients.partition(":")[0], domain.alias_of)
                for domain in settings.domain
                if not domain.has_accounts
            )
        ),
        "DKIM keys": _digest(signing),
    }
    with suppress(SettingsError):  # a damaged key file must not end a running service
        if (srs := srs_in(settings)) is not None:
            parts["srs_key"] = srs.digest()
    return parts


def _digest(value: object) -> str:
    return sha256(msgspec.json.encode(value)).hexdigest()


def srs_of(settings: Settings) -> Srs:
    """Return the writer and reader of SRS addresses. If no key is configured and the key file does
    not exist, create the file. Raises SettingsError, OSError.
    """
    if srs := srs_in(settings):
        return srs
    path = settings.state_dir / SRS_KEY_FILE
    replace_file(path, f"{secrets.token_hex(_SRS_KEY_BYTES)}\n".encode(), mode=0o600)
    return Srs(_read_key(path).encode(), settings.mailboxes.srs_domain)


def srs_in(settings: Settings) -> Srs | None:
    """Return the writer and reader of SRS addresses, or None if there is no key: the next start
    creates one. Raises SettingsError.
    """
    key, path = settings.mailboxes.srs_key, settings.state_dir / SRS_KEY_FILE
    if not key and not os.access(path, os.F_OK):
        return None
    return Srs((key or _read_key(path)).encode(), settings.mailboxes.srs_domain)


def _read_key(path: Path) -> str:
    """Read the key in a file. Raises SettingsError if it has none, or others can read it."""
    try:
        content = read_key_file(path, expected=SRS_KEY_EXPECTED, is_secret=True)
        try:
            return parse_srs_key(content.decode().rstrip("\r\n"))
        except ValueError:
            kind = "something else" if content.strip() else "nothing"
            text = f"found {kind}, expected {SRS_KEY_EXPECTED}, from a backup"
            raise ValueError(text) from None
    except ValueError as error:
        raise SettingsError([Fault(path, 0, "", str(error))]) from None
