"""`relay check`: whether a service can start with a configuration, and clients can use it.

Checks change nothing and start nothing. Each result names what was checked; no check raises.
"""

import asyncio
import os
import pwd
import socket
import stat
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

import uvloop

from relay.base.accounts.account import DEAD_LETTER
from relay.base.clock import Clock
from relay.base.files import open_to_others
from relay.base.message.envelope import OWN_REPORT
from relay.base.phrases import counted, named, shown
from relay.base.settings.document import Document, KeyPath, SettingsError, dotted, read_document
from relay.base.settings.reader import load, read_again
from relay.base.settings.tree import ListenerTls, NodeRole, SendmailSettings, Settings
from relay.base.settings.validation import as_fallback, hidden_routes, host_of, is_trusted, name_of
from relay.base.socket_address import Address
from relay.base.sockets import has_address
from relay.delivery.oauth.client_secrets import secret_states
from relay.delivery.oauth.tokens import TokenServer
from relay.delivery.provider_replies import load_provider_replies
from relay.delivery.reports.texts import load_texts
from relay.delivery.smtp.connect import TokenError
from relay.operation.app import state_dir
from relay.operation.app.account_file import accounts_of
from relay.operation.app.configuration import anonymous_fault, auth_missing, read_table, srs_in
from relay.operation.app.memory import IDLE_BYTES, memory_bound
from relay.operation.app.probes import missing_capabilities
from relay.operation.app.tenant_sets import load_strictly
from relay.operation.commands.check_listeners import check_listeners, listener_at
from relay.operation.commands.check_network import (
    CheckFinding,
    CheckResult,
    check_gate,
    check_milters,
    doubts_of_validation,
    mail_loops,
    needs_of_dns,
    port_fault,
    refusal_of,
    warning_of,
)
from relay.operation.commands.dkim import DNS_TIMEOUT_S, key_warnings, record_warnings
from relay.store import spool
from relay.store.mailbox.mailbox_list import mailbox_directories
from relay.store.mailbox.settings_file import has_automatic_replies
from relay.store.spool.types import SpoolDamagedError, SpoolError, SpoolUnavailableError
from relay.transport.ingress.dropped_mail import DROP_MODE
from relay.transport.policy.conditions import RecipientAddressCondition
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.globs import Globs
from relay.transport.routing.dns_client import REFUSED, name_servers_answer
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routing_result import InvalidRecipient, LocalRecipient
from relay.transport.signing.key_files import load_keys
from relay.transport.signing.keys import KeyRing

T = TypeVar("T")
_EXAMPLE_HOSTNAME = "relay.example.org"  # of conf/relay.toml


def check_file(
    file: Path,
    environ: Mapping[str, str],
    clock: Clock,
    *,
    role: NodeRole = NodeRole.ALL,
    online: bool = False,
) -> list[CheckFinding]:
    """Check a configuration and, if it can be loaded, everything that it names. With `online`, ask
    the token servers too.

    Root checks as the owner of state_dir, because the service runs as this user.
    """
    try:
        settings = load(file, environ, role=role)
    except SettingsError:
        return list(_check_file(file, environ, clock, role=role))
    if state_dir.foreign_state(settings):  # load all modules: the owner may not be able to
        list(_check_file(file, environ, clock, role=role))
    with state_dir.as_owner(settings):
        findings = list(_check_file(file, environ, clock, role=role))
        return [*findings, *_tokens(settings, read_document(file), clock, online=online)]


def _check_file(
    file: Path, environ: Mapping[str, str], clock: Clock, *, role: NodeRole
) -> Iterator[CheckFinding]:
    settings = yield from _loaded("configuration", lambda: load(file, environ, role=role))
    if settings is None:
        return
    yield CheckFinding("configuration", CheckResult.OK, str(file))
    place = read_document(file)  # for line numbers
    for removed in read_again(place, environ).removed:
        yield warning_of("configuration", removed)
    yield from _reach(settings, place)
    table = yield from _accounts(settings, file, environ, clock=clock)
    yield from _dovecot(settings.mailboxes.dovecot_auth)
    yield from _routes(settings, place)
    yield from _policies(settings, file, table)
    yield from _providers(settings, file)
    yield from _reports(settings)
    ring = yield from _signing_keys(settings, place, clock)
    unusable = state_dir.unusable_state(settings)
    missing = {} if unusable else missing_capabilities(settings, with_root=role is NodeRole.ALL)
    fault = unusable or str(missing.get("state_dir", ""))
    yield _folder("state_dir", settings.state_dir, fault, refuses_start=True)
    folders: dict[KeyPath, Path] = {(): file, ("state_dir",): settings.state_dir}
    if role is NodeRole.ALL:
        root = folders["mailboxes", "root"] = settings.mailboxes.root
        fault = str(missing.get("mailboxes.root", ""))
        unwritable = state_dir.unwritable("mailboxes.root", root)
        yield _folder("mailboxes.root", root, fault or unwritable, refuses_start=bool(fault))
        yield from _token_key(settings)
        yield from _without_replies(root)
    yield from _permissions(settings, place, environ, folders=folders)
    yield from _loaded("srs key", lambda: srs_in(settings))
    yield from check_listeners(settings, place, clock)
    yield check_gate(settings)
    if fault := memory_bound(settings).fault(IDLE_BYTES):
        yield CheckFinding("memory", CheckResult.WARNING, fault)
    yield from _sendmail(settings, place)
    yield from _spool(settings, is_usable=not unusable)
    yield from uvloop.run(check_milters(settings, place))
    yield from uvloop.run(_dns(settings, ring, place, clock=clock))


def _reach(settings: Settings, place: Document) -> Iterator[CheckFinding]:
    """Yield a warning for the hostname of the example, for a configuration without local domains
    and a route for all others, and for routes that let no mail leave.
    """
    if settings.hostname == _EXAMPLE_HOSTNAME:
        text = f'found "{_EXAMPLE_HOSTNAME}", the example, expected the name of this machine'
        yield warning_of("configuration", place.fault(("hostname",), text))
    sent_on = (route for route in settings.route if "://" in route.next_hop)
    if not settings.own_domains and not any(route.domain == "*" for route in sent_on):
        text = "found none, expected a domain: no mail is local, and no account can have an address"
        yield warning_of("configuration", place.fault(("mailboxes", "domains"), text))
    for number, route in enumerate(settings.route):
        if route.next_hop in ("", "hold"):
            continue  # the next routes decide
        if not route.next_hop.startswith(("local", "capture", "reject:")):
            return  # some mail leaves
        if route.domain == "*" and not route.sender:
            text = f'found "{route.next_hop}" for all domains, expected a way out: no mail leaves'
            yield warning_of("routes", place.fault(("route", number, "next_hop"), text))
            return


def _routes(settings: Settings, place: Document) -> Iterator[CheckFinding]:
    """Yield a warning for each route that gets no mail, leads back here, sends a password to an
    unverified host, or has a source address that this machine lacks; and for mail that is not
    retried.
    """
    delivery = settings.delivery
    if delivery.expire_after < delivery.retry[0]:
        text = (
            f"found {delivery.expire_after:g} s, expected more than the first wait of "
            f"delivery.retry, {delivery.retry[0]:g} s: no mail is retried before it expires"
        )
        yield warning_of("delivery", place.fault(("delivery", "expire_after"), text))
    for number, earlier in hidden_routes(settings.route, settings.own_domains):
        text = f"found a route that gets no mail: {dotted(('route', earlier))} takes all of it"
        yield warning_of("routes", place.fault(("route", number, "domain"), text))
    yield from _way_of_reports(settings, place)
    for number, route in enumerate(settings.route):
        if route.source_address and not has_address(route.source_address):
            text = f"found {route.source_address}, expected an address of this machine"
            fault = place.fault(("route", number, "source_address"), text)
            yield CheckFinding("routes", CheckResult.FAILED, str(fault))
        host = host_of(route)
        for key, target in (("next_hop", host), ("fallback", host_of(as_fallback(route)))):
            if target and (own := listener_at(target, settings)):
                start = f'found "{getattr(route, key)}", the address of {dotted(own.key)}'
                fault = place.fault(("route", number, key), f"{start}: mail comes back here")
                yield warning_of("routes", fault)
        after = ("route", number, "fallback_after")
        is_late = route.fallback_after >= delivery.expire_after
        if place.value(after) is not None and (is_late or not route.fallback):
            text = "expected a fallback, and less than delivery.expire_after"
            yield warning_of(
                "routes", place.fault(after, f"found {route.fallback_after:g} s, {text}")
            )
        is_unverified = route.tls in ("required", "opportunistic")
        if route.auth and is_unverified and host and not host.is_loopback:
            text = (
                f'found "{route.tls}" with auth, expected verify: any host that answers '
                "gets the password, whatever its certificate"
            )
            yield warning_of("routes", place.fault(("route", number, "tls"), text))
    with_tls = (route for route in settings.route if route.tls is not None)
    alone = [name_of(route) for route in with_tls if route.next_hop == "mx"]
    if alone:
        text = f"their tls goes before what a domain publishes: {', '.join(alone)}"
        yield CheckFinding("routes", CheckResult.OK, text)


def _way_of_reports(settings: Settings, place: Document) -> Iterator[CheckFinding]:
    """Yield a warning if all mail goes to Microsoft Graph, and no route for all takes reports."""
    routes = [(n, route) for n, route in enumerate(settings.route) if route.domain == "*"]
    graph = [number for number, route in routes if route.next_hop.startswith("graph://")]
    takes_reports = any(
        route.reports if number in graph else route.sender in ("", "<>")
        for number, route in routes
        if route.next_hop not in ("", "hold")
    )
    if graph and not takes_reports:
        text = (
            f'found "{settings.route[graph[0]].next_hop}" for all domains, expected reports = true,'
            ' or another route with sender = "<>": reports go to MX hosts'
        )
        yield warning_of("routes", place.fault(("route", graph[0], "next_hop"), text))


def _permissions(
    settings: Settings,
    place: Document,
    environ: Mapping[str, str],
    *,
    folders: Mapping[KeyPath, Path],
) -> Iterator[CheckFinding]:
    """Yield a warning for each file, and each of `folders`, whose permissions are too wide."""
    secrets = [*read_again(place, environ).secret_files]
    secrets += [
        (("route", number, key, "password_file"), auth.password_file)
        for number, route in enumerate(settings.route)
        for key, auth in (("auth", route.auth), ("fallback_auth", route.fallback_auth))
        if auth and auth.password_file
    ]
    listeners: list[tuple[KeyPath, ListenerTls | None]] = [(("http", "tls"), settings.http.tls)]
    listeners += [(("smtp", number, "tls"), smtp.tls) for number, smtp in enumerate(settings.smtp)]
    secrets += [
        ((*key, *at, "key"), pair.key) for key, tls in listeners if tls for at, pair in tls.pairs
    ]
    for key, path in secrets:
        if text := open_to_others(path, to_read=True):
            yield warning_of("permissions", place.fault(key, text))
    for key, path in folders.items():
        if text := open_to_others(path):
            yield warning_of("permissions", place.fault(key, text))


def _tokens(
    settings: Settings, place: Document, clock: Clock, *, online: bool
) -> Iterator[CheckFinding]:
    """Yield what an [[oauth]] lacks; if `online`, also the errors of its token server. A missing
    sign-in is a warning.
    """
    for number, client in enumerate(settings.oauth):
        server, now_s = TokenServer(client.name, settings), clock.time_us() // 1_000_000
        name = f'"{client.name}"'
        if server.secret_file and (text := open_to_others(server.secret_file, to_read=True)):
            yield warning_of("permissions", place.fault(("oauth", number), f"{name}: {text}"))
        state = secret_states([client])[client.name]
        if text := state.warning(clock.time_us()):
            yield warning_of("oauth", place.fault(("oauth", number), f"{name}: {text}"))
        finding = CheckFinding("oauth", CheckResult.OK, name)
        try:
            for use, mailbox in server.uses:
                server.form(use, mailbox, now_s)
                if online:
                    uvloop.run(server.token(use, mailbox, now_s))
        except TokenError as error:
            verdict = CheckResult.FAILED if online else CheckResult.WARNING
            verdict = CheckResult.FAULT if state.fault else verdict  # no start refuses it
            waits = f"{name}: {error}; mail waits in class auth"
            text = str(place.fault(("oauth", number), waits))
            finding = CheckFinding("oauth", verdict, text)
        yield finding


def _loaded(
    what: str, read: Callable[[], T], *, may_start: Callable[[Path], bool] = lambda _: False
) -> Generator[CheckFinding, None, T | None]:
    """Return what `read` returns; if its files have faults, yield them and return None. A start
    does not refuse those of the files of which `may_start` is true.
    """
    try:
        return read()
    except SettingsError as error:
        for fault in error.faults:
            yield CheckFinding(what, CheckResult.FAULT, str(fault), not may_start(fault.file))
    return None


def _token_key(settings: Settings) -> Iterator[CheckFinding]:
    """Yield the faults of the key for access tokens, if there is one."""
    path = settings.state_dir / "token-key.json"
    if not os.access(path, os.R_OK, effective_ids=True):
        return
    from relay.front_door.sign_in.access_tokens import read_token_key  # noqa: PLC0415 - slow

    yield from _loaded("token key", lambda: read_token_key(path), may_start=lambda _: True)


def _accounts(
    settings: Settings, file: Path, environ: Mapping[str, str], *, clock: Clock
) -> Generator[CheckFinding, None, RouteTable | None]:
    """Check accounts and routes. Return the route table, None after a fault."""
    accounts = yield from _loaded(
        "accounts", lambda: accounts_of(settings, clock=clock, environ=environ)
    )
    if accounts is None:
        return None
    table = yield from _loaded("routes", lambda: read_table(settings, accounts, file))
    if fault := anonymous_fault(settings.http.anonymous, accounts):
        yield refusal_of("accounts", f"http.anonymous: {fault}")
    for warning in (*map(str, accounts.tables.removed_keys), *accounts.tables.warnings):
        yield CheckFinding("accounts", CheckResult.WARNING, warning)
    for number, text in auth_missing(settings, accounts.tables).items():
        yield warning_of("listeners", read_document(file).fault(("smtp", number, "auth"), text))
    copy_to = ("reports.copy_to", settings.reports.copy_to, OWN_REPORT)
    for key, to, sender in (("limits.alert", settings.limits.alert, ""), copy_to):
        found = table and (table.expand(to, sender) or table.examine(to, sender))
        if to and isinstance(found, InvalidRecipient):
            yield CheckFinding("accounts", CheckResult.WARNING, f"{key}: {shown(to)} gets no mail")
    yield from _unread_reports(settings, table)
    yield from _unread_postmaster(settings, table)
    root = f"root@{settings.own_domains[0]}" if settings.sendmail and settings.own_domains else ""
    if root and table and isinstance(table.expand(root) or table.examine(root), InvalidRecipient):
        text = f"{root}: found no account or alias, expected one: cron writes to root"
        yield CheckFinding("accounts", CheckResult.WARNING, text)
    used = accounts.tables.schemes().most_common()
    schemes = ", ".join(f"{number} {name}" for name, number in used)
    text = f"{len(accounts.every())} in {settings.mailboxes.accounts}"
    text += f"; passwords: {schemes}" if schemes else ""
    yield CheckFinding("accounts", CheckResult.OK, text)
    accounts.close()
    return table


def _unread_reports(settings: Settings, table: RouteTable | None) -> Iterator[CheckFinding]:
    """Yield a warning if programs of this machine may send, and nobody reads their reports."""
    sender, reports = f"root@{settings.hostname}", settings.reports
    if table is None or not (settings.sendmail or is_trusted(settings.smtp, "127.0.0.1")):
        return
    result = table.expand(sender, OWN_REPORT) or table.examine(sender, OWN_REPORT)
    is_copied = reports.copy_to and "failure" in reports.copy_kinds
    if _is_unread(result) and not is_copied and table.expand("postmaster") is None:
        text = (
            f"reports to USER@{settings.hostname} end in the dead-letter mailbox, which nobody"
            " reads; expected reports.copy_to, mailboxes.postmaster or a [[route]] for this name"
        )
        yield CheckFinding("reports", CheckResult.WARNING, text)


def _unread_postmaster(settings: Settings, table: RouteTable | None) -> Iterator[CheckFinding]:
    """Yield a warning if programs of this machine write to a postmaster whom nobody reads."""
    if table is not None and settings.sendmail and settings.own_domains:
        address = f"postmaster@{settings.own_domains[0]}"
        if _is_unread(table.expand(address) or table.examine(address)):
            text = (
                f"mail to {address} ends in the dead-letter mailbox, which nobody reads; expected"
                " an alias or mailboxes.postmaster"
            )
            yield CheckFinding("accounts", CheckResult.WARNING, text)


def _is_unread(result: object) -> bool:
    return isinstance(result, LocalRecipient) and result.mailbox == DEAD_LETTER


def _without_replies(root: Path) -> Iterator[CheckFinding]:
    """Yield a warning for the mailboxes in which an older release has set automatic replies."""
    with suppress(OSError):
        mailboxes = [path for path in mailbox_directories(root) if has_automatic_replies(path)]
        if mailboxes:
            names = named([unquote(f"{path.name}@{path.parent.name}") for path in mailboxes])
            text = f"automatic replies are set in {names}; 0.7.0 sends none: Dovecot's Sieve does"
            yield CheckFinding("mailboxes.root", CheckResult.WARNING, text)


def _dovecot(path: str) -> Iterator[CheckFinding]:
    """Check that the socket for logins can be opened, if there is one."""
    if path:
        verdict, text = CheckResult.OK, f"unix:{path}"
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5.0)  # real time: a peer
                client.connect(path)
        except OSError as error:
            verdict, text = CheckResult.FAILED, f"{text}: {error.strerror or error}"
        yield CheckFinding("dovecot_auth", verdict, text)


def _policies(settings: Settings, file: Path, table: RouteTable | None) -> Iterator[CheckFinding]:
    tenants = [settings.policy.directory / tenant.name for tenant in settings.tenant]
    sets = yield from _loaded(
        "policy",
        lambda: load_strictly(settings, file),
        may_start=lambda file: any(map(file.is_relative_to, tenants)),
    )
    if sets is None:
        return
    for _, rules in sets:
        unmatched = _without_recipients(rules, table) if table else ()
        for warning in (*rules.warnings, *unmatched):
            yield CheckFinding("policy", CheckResult.WARNING, warning)
    files = sum(len(rules.files) for _, rules in sets)
    folders = [str(path) for path in (settings.policy.directory, settings.policy.shipped) if path]
    text = f"{counted(files, 'file')} in {named(folders)}, tests pass"
    text += f"; of {counted(len(sets) - 1, 'tenant')} too" if len(sets) > 1 else ""
    yield CheckFinding("policy", CheckResult.OK, text)


def _without_recipients(rules: RuleSet, table: RouteTable) -> Iterator[str]:
    """Yield a warning for each rule whose `recipient` names only invalid addresses. Rules get valid
    recipients and their aliases, so these rules never match.
    """
    conditions = ((rule, test) for rule in rules.rules for test in rule.when.on_recipient)
    for rule, condition in conditions:
        if not isinstance(condition, RecipientAddressCondition):
            continue
        names = condition.globs.whole
        kinds = {type(table.expand(name) or table.examine(name)) for name in names}
        if kinds == {InvalidRecipient} and condition == RecipientAddressCondition(Globs(names)):
            yield (
                f'{rule.file}:{rule.line}: rule "{rule.name}": recipient can never match, found'
                f" {named(sorted(names))}, expected an address that takes mail, or a glob"
            )


def _providers(settings: Settings, file: Path) -> Iterator[CheckFinding]:
    own = settings.delivery.providers
    replies = yield from _loaded("providers", lambda: load_provider_replies(own, file))
    if replies is not None and own is not None:
        text = f"{counted(len(replies.entries), 'entry')} of {own} and of the file that is shipped"
        yield CheckFinding("providers", CheckResult.OK, text)


def _reports(settings: Settings) -> Iterator[CheckFinding]:
    """Check the texts of reports that the operator has written, if there are any."""
    folder = settings.reports.templates
    if folder is None:
        return
    if texts := (yield from _loaded("reports", lambda: load_texts(settings.reports))):
        text = f"{counted(len(texts.templates), 'file')} in {folder}"
        yield CheckFinding("reports", CheckResult.OK, text)


def _signing_keys(
    settings: Settings, place: Document, clock: Clock
) -> Generator[CheckFinding, None, KeyRing]:
    """Check the keys of [[dkim]], if there are any; return those that can be used."""
    if not settings.dkim:
        return KeyRing()
    ring = yield from _loaded("dkim", lambda: load_keys(settings.dkim, place.file))
    if ring is None:
        return KeyRing()
    for warning in key_warnings(ring, place, now_us=clock.time_us()):
        yield warning_of("dkim", warning)
    text = f"{counted(len(ring.keys), 'key')} for {counted(len(ring.domains), 'domain')}"
    yield CheckFinding("dkim", CheckResult.OK, text)
    return ring


def _folder(name: str, folder: Path, fault: str, *, refuses_start: bool = False) -> CheckFinding:
    if fault:
        return CheckFinding(name, CheckResult.FAULT, fault, refuses_start)
    made = "" if folder.exists() else " (will be created)"
    return CheckFinding(name, CheckResult.OK, f"{folder}{made}")


def _sendmail(settings: Settings, place: Document) -> Iterator[CheckFinding]:
    """Yield a fault if nothing can listen on the socket, a warning for each user that does not
    exist, and a warning if the relay cannot take mail from the drop directory.
    """
    default = SendmailSettings()
    if sendmail := settings.sendmail:
        if expected := port_fault(Address(path=str(sendmail.socket)), settings.run_dir):
            text = f'found "{sendmail.socket}", expected {expected}'
            fault = place.fault(("sendmail", "socket"), text)
            yield refusal_of("sendmail", str(fault))
        for number, name in enumerate(sendmail.users):
            try:
                pwd.getpwnam(name)
            except KeyError:
                text = f"found {shown(name)}, expected a user of this machine"
                yield warning_of("sendmail", place.fault(("sendmail", "users", number), text))
    drop = (sendmail or default).drop
    if drop is None or not (sendmail or drop.exists()):
        return
    owner = os.geteuid()
    try:
        facts = drop.stat()
        if not settings.state_dir.exists():  # else this user is the owner of state_dir
            owner = facts.st_uid
        actual = f"the mode {stat.S_IMODE(facts.st_mode):04o} and the owner {facts.st_uid}"
    except OSError as error:
        actual = error.strerror or str(error)
    expected = f"the mode {DROP_MODE:04o} and the owner {owner}"
    if sendmail is None:
        text = f"found none, expected it: programs leave mail in {drop}"
        yield warning_of("sendmail", place.fault(("sendmail",), text))
    elif actual != expected:
        text = f"{drop}: found {actual}, expected {expected}, the user of the service"
        yield warning_of("sendmail", place.fault(("sendmail", "drop"), text))


def _spool(settings: Settings, *, is_usable: bool) -> Iterator[CheckFinding]:
    """Check that the spool can be opened; `relay storage verify` checks its content."""
    exists, fault = False, ""
    failures, warnings = list[str](), list[str]()
    try:
        stored = spool.storage(settings)
        fault = spool.left_behind(settings)
        exists = not fault and stored.exists()
        if exists:
            stored.check(has_owner=state_dir.is_running(settings.run_dir))
        failures += stored.faults()
        warnings += stored.warnings() if exists else ()
    except SpoolUnavailableError as error:
        failures = [str(error)]
    except (SpoolError, OSError) as error:
        hint = "; see relay restore" if isinstance(error, SpoolDamagedError) else ""
        fault = f"spool.url: {error}{hint}"
    if fault:
        yield refusal_of("spool", fault)
        return
    if stored.is_marked_damaged():
        failures.append(f"{stored} is damaged and accepts no mail; see relay storage verify")
    elif not is_usable:
        failures.append(f"{stored} cannot be opened: see state_dir")
    for text in failures:
        yield CheckFinding("spool", CheckResult.FAILED, text)
    for text in warnings:
        yield CheckFinding("spool", CheckResult.WARNING, text)
    if not failures:
        made = "" if exists else " (will be created)"
        yield CheckFinding("spool", CheckResult.OK, f"{stored}{made}")


async def _dns(
    settings: Settings, ring: KeyRing, place: Document, *, clock: Clock
) -> list[CheckFinding]:
    """Ask the name servers at the same time whether they answer, whether they validate, and for the
    records of the keys; then for the MX records of domains whose mail is passed on.
    """
    nameservers, timeout_s = settings.dns.nameservers, min(DNS_TIMEOUT_S, settings.dns.timeout)
    servers = ", ".join(map(str, nameservers)) or "the system's name servers"
    fault, doubts, warnings = await asyncio.gather(
        name_servers_answer(nameservers, timeout_s=timeout_s),
        doubts_of_validation(settings, place, timeout_s=timeout_s),
        record_warnings(ring, place, nameservers, now_us=clock.time_us(), timeout_s=timeout_s),
    )
    if fault:
        lost = await needs_of_dns(settings, clock)
        text = f"{servers}: {fault}: {lost or 'no mail'} is deferred for that"
        # one that refuses is there, and may be meant so: of a closed network
        refuses = fault.endswith(REFUSED)
        is_failure = lost and not refuses
        if refuses and any(listener.sender_checks != "off" for listener in settings.smtp):
            text += '; strangers get 451 with sender_checks = "enforce", and by rules with `auth`'
        verdict = CheckResult.FAILED if is_failure else CheckResult.WARNING
        return [CheckFinding("dns", verdict, text)]
    finding = CheckFinding("dns", CheckResult.OK, servers)
    loops = [loop async for loop in mail_loops(settings, place, clock)]
    return [finding, *doubts, *(warning_of("dkim", warning) for warning in warnings), *loops]
