"""The checks of `relay check` that ask the machine and the network: whether an address is free (the
check does not listen there), whether the name servers and the milters answer.
"""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from relay.base.clock import Clock
from relay.base.message.nexthop import HopKind, NextHop
from relay.base.phrases import named
from relay.base.sandbox import available
from relay.base.settings.document import Document, Fault
from relay.base.settings.tree import OwnDomain, Settings
from relay.base.settings.validation import as_fallback, domain_matches, host_of
from relay.base.socket_address import Address
from relay.base.sockets import LACKING_ADDRESS, bind_error, places_of, process_at
from relay.operation.app.state_dir import is_running
from relay.operation.app.transport import resolver_of, why_in_process
from relay.store import spool
from relay.store.spool.types import SpoolError
from relay.transport.milter.connection import fault_of_milter
from relay.transport.routing.dns_client import validated
from relay.transport.routing.mx_hosts import NO_MX, THIS_RELAY, Hosts, TemporaryFailure


class CheckResult(StrEnum):
    """The result of one check."""

    OK = "ok"
    WARNING = "warning"  # the service works, but is at risk
    FAULT = "fault"  # relay serve does not start, or clients cannot use it
    FAILED = "failed"  # it starts, but does not work as configured


class CheckFinding(Struct, frozen=True, rename={"what": "check"}):
    """One line of the output."""

    what: str
    verdict: CheckResult
    text: str
    refuses_start: bool = False  # `relay serve` ends with this fault, as a unit of systemd


def refusal_of(what: str, text: str) -> CheckFinding:
    """Return a fault with which `relay serve` does not start."""
    return CheckFinding(what, CheckResult.FAULT, text, refuses_start=True)


def warning_of(what: str, fault: Fault) -> CheckFinding:
    """Return a finding with the verdict "warning"."""
    return CheckFinding(what, CheckResult.WARNING, str(fault))


OCCUPIED = "a free address: "  # for which a start waits
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


def port_fault(address: Address, run_dir: Path) -> str:
    """Return what was expected if a relay cannot listen at `address`, "" if it can.

    While the relay of this `run_dir` runs, it is assumed to be the user of an address in use.
    """
    if address.path:
        return _unix_fault(Path(address.path), run_dir)
    if not address.port:
        return ""
    try:
        places = places_of(address)
    except (OSError, UnicodeError):
        return "an address of this machine, or a name that has one"
    lacking = []
    for family, _, _, _, place in places:
        with _as_root():
            error = bind_error(family, place)
            program = process_at(address) if error == errno.EADDRINUSE else ""
        if program and is_running(run_dir):
            continue
        if program:
            return f"{OCCUPIED}{program} listens there"
        if error in (errno.EACCES, errno.EPERM):
            return (
                "a port that this user may bind: a port below 1024 needs the capability "
                "CAP_NET_BIND_SERVICE, which the shipped unit gives"
            )
        if error in LACKING_ADDRESS:
            lacking.append(error)
        elif error:
            return f"an address of this machine ({os.strerror(error).lower()})"
    if len(lacking) == len(places):
        return f"an address of this machine ({os.strerror(lacking[0]).lower()})"
    return ""


@contextmanager
def _as_root() -> Iterator[None]:
    """Run the block with the rights of root, if this process has them: the unit of the service
    allows it to bind any port.
    """
    user = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(user)


def _unix_fault(path: Path, run_dir: Path) -> str:
    if not path.parent.exists() and path.parent in (run_dir, run_dir.parent):
        return ""  # created at start
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True)):
        return f"a socket in a directory that this user can write, which {path.parent} is not"
    if not path.exists():
        return ""
    if not path.is_socket():
        return "the path of a socket, or a path that does not exist"
    if is_running(run_dir) or not _is_listened_at(path):  # a start replaces an unused socket
        return ""
    return "a free socket: another program listens there"


def _is_listened_at(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)  # a full backlog
        return client.connect_ex(str(path)) != errno.ECONNREFUSED


_KEY = ("dns", "validating")
_OTHERS_MAX = 100  # domains of other stores whose MX records are checked


async def doubts_of_validation(
    settings: Settings, place: Document, *, timeout_s: float
) -> list[CheckFinding]:
    """Return why the DNSSEC results of the name servers may be wrong, if dns.validating is set."""
    if not settings.dns.validating:
        return []
    nameservers, findings = settings.dns.nameservers, []
    if not nameservers or not all(server.is_loopback for server in nameservers):
        text = "found true, expected nameservers on this machine: on the way answers can be changed"
        findings.append(warning_of("dns", place.fault(_KEY, text)))
    is_validated = await validated(nameservers, timeout_s=timeout_s)
    if is_validated is None:
        text = "no answer for the root: not known whether the name servers validate DNSSEC"
        findings.append(CheckFinding("dns", CheckResult.OK, text))
    elif not is_validated:
        text = "found true, expected name servers that validate: the root's answer is without AD"
        findings.append(CheckFinding("dns", CheckResult.FAILED, str(place.fault(_KEY, text))))
    return findings


def _domains_by_mx(settings: Settings) -> Iterator[tuple[int, OwnDomain]]:
    """Yield the own domains whose mail is passed on without a route, with their numbers."""
    for number, domain in enumerate(settings.domain):
        asks = domain.recipients == "verify"  # also while mail is held
        is_routed = any(
            domain_matches(route.domain, domain.name)
            for route in settings.route
            if route.domain != "*" and not (route.recipient or (asks and route.next_hop == "hold"))
        )
        if not (domain.has_accounts or domain.alias_of or is_routed):
            yield number, domain


async def needs_of_dns(settings: Settings, clock: Clock) -> str:
    """Return which mail is not sent while the name servers do not answer, "" if all is."""
    takes_all = any(
        route.domain == "*"
        and route.next_hop != "hold"
        and not route.next_hop.startswith("graph://")  # which takes no reports
        and not (route.sender or route.recipient)
        for route in settings.route
    )
    next_hops = {route.next_hop for route in settings.route}
    uses_mx = "mx" in next_hops or any(_domains_by_mx(settings))
    if uses_mx or not takes_all:
        return "mail that needs an MX record"
    resolver = resolver_of(settings, clock)
    hops = (hop for route in settings.route for hop in (route, as_fallback(route)))
    hosts = dict.fromkeys(address.host for hop in hops if (address := host_of(hop)))
    lost = [host for host in hosts if not isinstance(await resolver.addresses(host), tuple)]
    await resolver.close()
    return f"mail by {named(lost)}" if lost else ""


async def mail_loops(
    settings: Settings, place: Document, clock: Clock
) -> AsyncIterator[CheckFinding]:
    """Yield a fault for each own domain whose mail is passed on without a route, if its MX is this
    host; and a warning for each domain of another store whose MX is this host.
    """
    resolver = resolver_of(settings, clock)
    for number, own in _domains_by_mx(settings):
        answer = await resolver.resolve(NextHop(HopKind.MX, own.name))
        if not isinstance(answer, Hosts | TemporaryFailure):
            text = f'found "{own.name}", expected a [[route]] for it, or an MX host in the DNS'
            fault = place.fault(("domain", number, "name"), f"{text} that is preferred to this one")
            yield CheckFinding("domains", CheckResult.FAULT, str(fault))
    others: Sequence[str] = ()
    with suppress(SpoolError, OSError):  # it is reported elsewhere
        others = await asyncio.to_thread(spool.storage(settings).other_domains)
    for domain in [name for name in others if name not in settings.own_domains][:_OTHERS_MAX]:
        mx = getattr(await resolver.resolve(NextHop(HopKind.MX, domain)), "mx", NO_MX)
        if any(host.skipped == THIS_RELAY for host in mx.hosts):
            text = "is a domain of another store, and its MX records lead to this node; expected"
            text = f"{domain} {text} the nodes of that store: this one answers 450"
            yield CheckFinding("domains", CheckResult.WARNING, text)
    await resolver.close()


async def check_milters(settings: Settings, place: Document) -> list[CheckFinding]:
    """Connect to each milter. A milter that is down is only a warning, because `when_down` decides
    what happens to mail until it is up again.
    """
    findings = list[CheckFinding]()
    faults = await asyncio.gather(*map(fault_of_milter, settings.milter))
    for number, (milter, fault) in enumerate(zip(settings.milter, faults, strict=True)):
        text = f'"{milter.name}" at {milter.address}'
        if fault:
            down = place.fault(("milter", number, "address"), f"{text} is down: {fault}")
            findings.append(warning_of("milter", down))
        else:
            findings.append(CheckFinding("milter", CheckResult.OK, text))
    return findings


def check_gate(settings: Settings) -> CheckFinding:
    """Return whether SMTP sessions have a separate process."""
    text = "SMTP sessions are in a process of their own"
    if reason := why_in_process(settings):
        text = f"SMTP sessions are in the process of relay serve: {reason}"
    elif missing := available():
        text = f"{text}, without what this kernel lacks of its sandbox: {' and '.join(missing)}"
    return CheckFinding("smtp_gate", CheckResult.OK, text)
