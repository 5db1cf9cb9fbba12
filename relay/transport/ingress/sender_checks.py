"""What the results of SPF, DKIM and DMARC mean for a message of a stranger.

relay/transport/checks finds them. Where a milter of this relay reports a method, its results count
instead. With `sender_checks = "enforce"` the message gets what the policy of its author's domain
asks for, also where a milter found that it fails. Silent name servers refuse nothing, unless the
policy is known and the author may be right; what this relay was not able to check waits.
RFC 8601 (the field), RFC 9989 (DMARC), RFC 7372 3.2 (5.7.26), RFC 3463 3.8 (4.7.1).
"""

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Self

from msgspec import Struct

from relay.base.message.authentication_results import (
    AuthResult,
    checks_of,
    may_be_honest,
    proven_domains,
)
from relay.base.message.status import own_reply
from relay.base.settings.tree import SmtpListener
from relay.transport.checks.field import results_field


class SenderChecks(Struct, frozen=True):
    """What a listener does with the results: `sender_checks` and `sender_checks_except`."""

    enforces: bool = False
    excepted: tuple[str, ...] = ()  # networks and domains

    @classmethod
    def of(cls, listener: SmtpListener) -> Self | None:
        """Return those of a listener, None if it checks nothing."""
        if listener.sender_checks == "off":
            return None
        return cls(listener.sender_checks == "enforce", listener.sender_checks_except)


class CheckedSender(Struct, frozen=True):
    """All results for a message, and what follows from them."""

    results: tuple[AuthResult, ...] = ()  # of milters and ours
    field: bytes = b""  # Authentication-Results with ours, or b""
    reply: str = ""  # that refuses the message, or ""
    in_junk: bool = False  # copies for mailboxes of this relay go into Junk Email


def judge(
    checks: SenderChecks,
    by_milters: Sequence[AuthResult],
    ours: Sequence[AuthResult],
    *,
    ip: str,
    hostname: str,
) -> CheckedSender:
    """Return what becomes of a message of the client `ip`."""
    reported = {result.method for result in by_milters}
    used = [result for result in ours if result.method not in reported]
    results = (*by_milters, *used)
    checked = CheckedSender(results, results_field(hostname, used) if used else b"")
    dmarc = (checks_of(results) or {}).get("dmarc")
    if not (checks.enforces and dmarc) or _is_excepted(checks.excepted, results, ip):
        return checked
    domain, reason = dmarc["domain"], dmarc["reason"]
    reply, fails = "", dmarc["result"] == "fail"
    if "dmarc" not in reported and may_be_honest(ours):
        reply = own_reply("4.7.1", f"The author of the message cannot be checked now: {reason}")
    elif dmarc["result"] == "permerror" and "dmarc" not in reported:
        reply = own_reply("5.7.1", f"The author of the message cannot be checked: {reason}")
    elif fails and dmarc["policy"] == "reject":
        text = f"The DMARC policy of {domain} refuses the message: {reason}"
        reply = own_reply("5.7.26", text)
    in_junk = fails and dmarc["policy"] == "quarantine"
    return CheckedSender(results, checked.field, reply, in_junk)


def _is_excepted(excepted: Sequence[str], results: Sequence[AuthResult], ip: str) -> bool:
    passed = proven_domains(results)
    address = ip_address(ip.partition("%")[0])
    return any(address in ip_network(name) if "/" in name else name in passed for name in excepted)
