"""What the name servers say: whether they validate DNSSEC, and which mail comes back here."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from relay import spool
from relay.app.transport import resolver_of
from relay.base.clock import Clock
from relay.commands.check_findings import CheckFinding, CheckResult, warning_of
from relay.message.nexthop import HopKind, NextHop
from relay.routing.dns_client import validated
from relay.routing.mx_hosts import NO_MX, THIS_RELAY, Hosts, TemporaryFailure
from relay.settings.document import Document
from relay.settings.tree import Settings
from relay.settings.validation import domain_matches, is_loopback
from relay.spool.types import SpoolError

_KEY = ("dns", "validating")
_OTHERS_MAX = 100  # domains of other stores that are asked for


async def doubts_of_validation(
    settings: Settings, place: Document, *, timeout_s: float
) -> list[CheckFinding]:
    """Return why what the name servers say of DNSSEC may not count, where it has to."""
    if not settings.dns.validating:
        return []
    nameservers, found = settings.dns.nameservers, []
    if not nameservers or not all(map(is_loopback, nameservers)):
        text = "found true, expected nameservers on this machine: on the way answers can be changed"
        found.append(warning_of("dns", place.fault(_KEY, text)))
    is_validated = await validated(nameservers, timeout_s=timeout_s)
    if is_validated is None:
        text = "no answer for the root: not known whether the name servers validate DNSSEC"
        found.append(CheckFinding("dns", CheckResult.OK, text))
    elif not is_validated:
        text = "found true, expected name servers that validate: the root's answer is without AD"
        found.append(CheckFinding("dns", CheckResult.FAILED, str(place.fault(_KEY, text))))
    return found


async def mail_loops(
    settings: Settings, place: Document, clock: Clock
) -> AsyncIterator[CheckFinding]:
    """Yield a fault for each domain whose mail is passed on, has no route, and whose MX would be
    this host itself; a warning for each of another store whose MX is this host.
    """
    resolver = resolver_of(settings, clock)
    for number, one in enumerate(settings.domain):
        asks = one.recipients == "verify"  # also while mail is held
        is_routed = any(
            domain_matches(route.domain, one.name)
            for route in settings.route
            if route.domain != "*" and not (asks and route.next_hop == "hold")
        )
        if one.has_accounts or one.alias_of or is_routed:
            continue
        found = await resolver.resolve(NextHop(HopKind.MX, one.name))
        if not isinstance(found, Hosts | TemporaryFailure):
            text = f'found "{one.name}", expected a [[route]] for it, or an MX host in the DNS'
            fault = place.fault(("domain", number, "name"), f"{text} that is preferred to this one")
            yield CheckFinding("domains", CheckResult.FAULT, str(fault))
    others: Sequence[str] = ()
    with suppress(SpoolError, OSError):  # it is reported elsewhere
        others = await asyncio.to_thread(spool.storage(settings).other_domains)
    for domain in [one for one in others if one not in settings.own_domains][:_OTHERS_MAX]:
        mx = getattr(await resolver.resolve(NextHop(HopKind.MX, domain)), "mx", NO_MX)
        if any(one.skipped == THIS_RELAY for one in mx.hosts):
            text = "is a domain of another store, and its MX records lead to this node; expected"
            text = f"{domain} {text} the nodes of that store: this one answers 450"
            yield CheckFinding("domains", CheckResult.WARNING, text)
    await resolver.close()
