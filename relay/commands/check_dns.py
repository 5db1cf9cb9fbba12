"""Check whether the name servers validate DNSSEC, where the configuration says so."""

from relay.commands.check_findings import CheckFinding, CheckResult, warning_of
from relay.routing.dns_client import validated
from relay.settings.document import Document
from relay.settings.tree import Settings
from relay.settings.validation import is_loopback

_KEY = ("dns", "validating")


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
