"""`relay check`: is everything there that a start would need? It starts nothing.

On the path: before it.
Holds: every look is read-only; each check says what it looked at.
Fails: never; what is wrong becomes a Finding.
Standards: none.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from relay.accounts import load_accounts
from relay.app.commands.listening import http_listeners, judge, port_fault, smtp_listeners
from relay.app.lock import is_taken
from relay.app.permissions import open_to_others, unusable_state, unwritable
from relay.app.routes import route_table
from relay.clock import Clock
from relay.policy import PolicyError, load_rules
from relay.routing import name_servers_answer
from relay.settings import Settings, SettingsError, load
from relay.settings.document import Document, Fault, KeyPath, read_document
from relay.settings.validation import host_of, is_loopback
from relay.spool.sqlite.disk.presence import is_or_was_there
from relay.spool.sqlite.engine.damage import mark_of
from relay.spool.sqlite.engine.migrating import check_files
from relay.spool.types import SpoolDamagedError, SpoolError


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"  # it works, and does harm
    FAULT = "fault"  # relay serve would refuse to start, or clients would refuse it
    FAILED = "failed"  # it would start, but not work as meant


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check."""

    what: str
    verdict: Verdict
    text: str


def check_file(file: Path, environ: Mapping[str, str], clock: Clock) -> Iterator[Finding]:
    """Check a configuration, and everything behind it once it can be read."""
    try:
        settings = load(file, environ)
    except SettingsError as error:
        yield from _faults("configuration", error)
        return
    yield Finding("configuration", Verdict.OK, str(file))
    place = read_document(file)  # for the lines of what is found beyond it
    yield from _accounts(settings, environ, clock)
    yield from _routes(settings, place)
    yield from _policies(settings)
    unusable = unusable_state(settings)
    root = settings.mailboxes.root
    yield _folder("state_dir", settings.state_dir, unusable)
    yield _folder("mailboxes.root", root, unwritable("mailboxes.root", root))
    yield from _open_to_others(settings, place)
    yield from _listeners(settings, place, clock)
    yield from _spool(settings, is_usable=not unusable)
    yield asyncio.run(_dns(settings))


def _routes(settings: Settings, place: Document) -> Iterator[Finding]:
    """Yield the routes whose password goes to a host that is not verified."""
    for number, route in enumerate(settings.route):
        host = host_of(route)
        trusts_anybody = route.tls in ("required", "opportunistic")
        if route.auth and trusts_anybody and host and not is_loopback(host):
            text = (
                f'found "{route.tls}" with auth, expected verify: the password goes to any host '
                "that answers there, whatever its certificate"
            )
            yield _warning("routes", place.fault(("route", number, "tls"), text))


def _open_to_others(settings: Settings, place: Document) -> Iterator[Finding]:
    """Files and folders that other users of this machine can read or write."""
    secrets: list[tuple[KeyPath, Path]] = [
        (("route", number, "auth", "password_file"), route.auth.password_file)
        for number, route in enumerate(settings.route)
        if route.auth
    ]
    secrets += [
        (("smtp", number, "tls", "key"), listener.tls.key)
        for number, listener in enumerate(settings.smtp)
        if listener.tls
    ]
    folders: list[tuple[KeyPath, Path]] = [
        (("state_dir",), settings.state_dir),
        (("mailboxes", "root"), settings.mailboxes.root),
    ]
    for key, path in secrets:
        if text := open_to_others(path, to_read=True):
            yield _warning("permissions", place.fault(key, text))
    for key, path in folders:
        if text := open_to_others(path):
            yield _warning("permissions", place.fault(key, text))


def _listeners(settings: Settings, place: Document, clock: Clock) -> Iterator[Finding]:
    """Ports, certificates, and who hears what is said there."""
    http, smtp = http_listeners(settings), smtp_listeners(settings)
    is_free = True
    for one in (*http, *smtp):
        if expected := port_fault(one.address, settings.run_dir, is_http=one in http):
            is_free = False
            text = f'found "{one.address}", expected {expected}'
            yield Finding("listeners", Verdict.FAULT, str(place.fault(one.key, text)))
    for one in http:
        if one.is_open:
            text = (
                f'found "{one.address}", where tokens and mail travel in the clear; expected '
                "loopback behind a proxy that speaks TLS"
            )
            yield _warning("listeners", place.fault(one.key, text))
    for one in smtp:
        if one.tls is None:
            continue
        judgement = judge(one, settings.hostname, clock.time_us() / 1e6)
        key = (*one.tls_key, "certificate")
        if judgement.fault:
            text = str(place.fault(key, judgement.fault))
            yield Finding("certificates", Verdict.FAULT, text)
        if judgement.warning:
            yield _warning("certificates", place.fault(key, judgement.warning))
    if is_free:
        addresses = ", ".join(str(one.address) for one in (*http, *smtp))
        yield Finding("listeners", Verdict.OK, addresses)


def _warning(what: str, fault: Fault) -> Finding:
    return Finding(what, Verdict.WARNING, str(fault))


def _faults(what: str, error: SettingsError) -> Iterator[Finding]:
    for fault in error.faults:
        yield Finding(what, Verdict.FAULT, str(fault))


def _accounts(settings: Settings, environ: Mapping[str, str], clock: Clock) -> Iterator[Finding]:
    boxes = settings.mailboxes
    try:
        accounts = load_accounts(boxes.accounts, boxes.domains, clock=clock, environ=environ)
    except SettingsError as error:
        yield from _faults("accounts", error)
        return
    try:
        route_table(settings, accounts)
    except ValueError as error:
        yield Finding("routes", Verdict.FAULT, f"route: {error}")
    for warning in accounts.warnings():
        yield Finding("accounts", Verdict.WARNING, warning)
    yield Finding("accounts", Verdict.OK, f"{len(accounts.accounts)} in {boxes.accounts}")
    accounts.close()


def _policies(settings: Settings) -> Iterator[Finding]:
    try:
        rules = load_rules(settings.policy.directory, local_domains=settings.mailboxes.domains)
    except PolicyError as error:
        yield from _faults("policy", error)
        return
    files = len(rules.files)
    yield Finding("policy", Verdict.OK, f"{files} files in {settings.policy.directory}, tests pass")


def _folder(name: str, folder: Path, fault: str) -> Finding:
    if fault:
        return Finding(name, Verdict.FAULT, fault)
    made = "" if folder.exists() else " (it will be made)"
    return Finding(name, Verdict.OK, f"{folder}{made}")


def _spool(settings: Settings, *, is_usable: bool) -> Iterator[Finding]:
    """Whether the file can be opened; `relay storage verify` looks further.

    In a state_dir that is not usable it cannot be opened, whatever is in it.
    """
    database = settings.spool_file
    try:
        if is_or_was_there(database):
            check_files(database, has_owner=is_taken(settings.run_dir))
    except (SpoolError, OSError) as error:
        hint = "; see relay storage salvage" if isinstance(error, SpoolDamagedError) else ""
        yield Finding("spool", Verdict.FAULT, f"spool.url: {error}{hint}")
        return
    mark = mark_of(database)
    if mark.exists():
        text = f"{database} is damaged, no new mail is taken on; see relay storage salvage"
        yield Finding("spool", Verdict.FAILED, text)
        return
    if not is_usable:
        text = f"{database} cannot be opened: see state_dir"
        yield Finding("spool", Verdict.FAILED, text)
        return
    made = "" if database.exists() else " (it will be made)"
    yield Finding("spool", Verdict.OK, f"{database}{made}")


async def _dns(settings: Settings) -> Finding:
    servers = ", ".join(map(str, settings.dns.nameservers)) or "the system's name servers"
    trouble = await name_servers_answer(settings.dns.nameservers, timeout_s=_DNS_TIMEOUT_S)
    if trouble:
        return Finding("dns", Verdict.FAILED, f"{servers}: {trouble}")
    return Finding("dns", Verdict.OK, servers)


_DNS_TIMEOUT_S = 3.0
