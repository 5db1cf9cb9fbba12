"""Refuse strangers by what the DNS says: of the sender's domain, the name in EHLO, the address.

A stranger is a client that is neither trusted nor logged in. Each check is a key of [[smtp]], and
its refusal is an answer to RCPT, so that log and records have sender and recipient. Mail to a
postmaster is never refused here (RFC 5321 4.5.1). A missing answer of a name server refuses nothing
but a sender whose domain is not known then (450).

A zone that lists clients (DNSBL, RFC 5782) is used only while it lists 127.0.0.2 and not 127.0.0.1
(RFC 5782 5). StrangerChecks remembers which zones are left out, and logs each change.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.message.address import literal_address
from relay.base.message.envelope import domain_of
from relay.base.observe.logs import get_logger
from relay.base.settings.tree import DnsBlocklist, SmtpListener
from relay.base.settings.values import parse_domain
from relay.base.socket_address import plain_ip
from relay.transport.ingress.send_as import null_mx_reply
from relay.transport.ingress.session_client import RecipientAnswer
from relay.transport.refusals.refusal import RefusalReason
from relay.transport.routing.dns_cache import Ask, DnsQuestion
from relay.transport.routing.mx_hosts import (
    NOT_ASKED,
    Answer,
    NoAnswer,
    NoName,
    NoRecords,
    NullMx,
    Records,
    exchanges_of,
)

_WAIT_S = 5.0  # a client waits for it
_BLOCKLISTS_S = 3.0
_LEFT_OUT_S = 10.0  # then a zone that cannot be used is asked again
_ZONES_MAX = 1000
_NO_FAULT = ("", 0.0)
_LISTINGS = IPv4Network("127.0.0.0/8")  # RFC 5782 2.3
_ERRORS = IPv4Network("127.255.255.0/24")  # such as "too many queries", of Spamhaus and others
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
_LISTED, _UNLISTED = "2.0.0.127", "1.0.0.127"  # RFC 5782 5
_log = get_logger("ingress")


def sender_reply(domain: str, answers: Sequence[Answer]) -> str:
    """Return the reply to a sender: `answers` are for MX, or if there is none for A and AAAA."""
    if has_none(answers):
        return f"550 5.1.8 The sender domain {domain} has no MX, A or AAAA record"  # RFC 3463 3.2
    if NOT_ASKED in answers or any(isinstance(answer, Records) for answer in answers):
        return ""
    # RFC 3463 3.2
    return f"450 4.1.8 The DNS does not answer for the sender domain {domain}, try again later"


def has_none(answers: Sequence[Answer]) -> bool:
    """Return whether there is certainly no record."""
    return all(isinstance(answer, NoName | NoRecords) for answer in answers)


def is_host_name(name: str) -> bool:
    """Return whether a name in EHLO is a host name with its domain (RFC 5321 2.3.5)."""
    with suppress(ValueError):
        # hosts have underscores and a final dot in it, and Postfix takes both
        return "." in parse_domain(name.removesuffix(".").replace("_", "x"))
    return False


def listing_in(answer: Answer, counted: Sequence[str]) -> str:
    """Return the first record that lists an address, or "".

    `counted` is `answers` of [[smtp]] dnsbl: () counts all in 127.0.0.0/8 that are no errors.
    """
    for text in answer.values if isinstance(answer, Records) else ():
        record = IPv4Address(text)
        is_counted = not counted or any(_is_within(record, listed) for listed in counted)
        if is_counted and record in _LISTINGS and record not in _ERRORS:
            return text
    return ""


def _is_within(record: IPv4Address, counted: str) -> bool:
    first, _, last = counted.partition("-")
    lowest = IPv4Address(first)
    return lowest <= record <= lowest + (int(last) - lowest.packed[3] if last else 0)


def zone_fault(listed: Answer, unlisted: Answer) -> str:
    """Return why a zone cannot be used, or "": `listed` is its answer for 127.0.0.2, `unlisted` for
    127.0.0.1.
    """
    for answer in (listed, unlisted):
        match answer:
            case NoAnswer(text):
                return text
            case Records(values=(text, *_)) if IPv4Address(text) in _ERRORS:
                return f"it answers {text}, which is an error"
    if not listing_in(listed, ()):
        return "it does not list 127.0.0.2"
    return "it lists 127.0.0.1" if isinstance(unlisted, Records) else ""


class StrangerChecks:
    """Asks the DNS about strangers, for all listeners. A check returns a reply, or ""."""

    def __init__(self, ask: Ask, *, is_own: Callable[[str], bool], clock: Clock) -> None:
        """`is_own` returns whether a domain is own: such a sender is not checked."""
        self._ask = ask
        self._is_own = is_own
        self._clock = clock
        # why a zone is left out, or "", and when it was asked
        self._faults = BoundedDict[str, tuple[str, float]](_ZONES_MAX)

    async def sender(self, _settings: SmtpListener, reverse_path: str) -> str:
        """Check that the domain of a sender can get mail."""
        domain, until_s = domain_of(reverse_path), _in(_WAIT_S)
        if domain.startswith("[") or self._is_own(domain):
            return ""
        [mx] = answers = await self._answers(until_s, (domain, "MX"))
        if isinstance(exchanges_of(domain, mx), NullMx):
            return null_mx_reply(domain)
        if isinstance(mx, NoRecords):  # RFC 5321 5.1
            answers = await self._answers(until_s, (domain, "A"), (domain, "AAAA"))
        return sender_reply(domain, answers)

    async def helo(self, settings: SmtpListener, name: str) -> str:
        """Check the name in EHLO."""
        if literal_address(name):
            return ""
        if not is_host_name(name):
            # RFC 5321 4.1.1.1; RFC 3463 3.6
            return f"550 5.5.4 EHLO {name}: expected a full host name or an address literal"
        host, until_s = name.lower(), _in(_WAIT_S)
        if settings.reject_helo == "unknown" and has_none(
            await self._answers(until_s, (host, "A"), (host, "AAAA"))
        ):
            return f"550 5.7.1 EHLO {name}: this host has no A or AAAA record"  # RFC 3463 3.8
        return ""

    async def pointer(self, _settings: SmtpListener, ip: str) -> str:
        """Check that the address of a client has a name."""
        question = (plain_ip(ip).reverse_pointer, "PTR")
        if has_none(await self._answers(_in(_WAIT_S), question)):
            return f"450 4.7.25 {ip} has no name (PTR) in the DNS, try again later"  # RFC 7372 3.3
        return ""

    async def blocklists(self, settings: SmtpListener, ip: str) -> str:
        """Check that no zone lists the address of a client."""
        address, until_s = plain_ip(ip), _in(_BLOCKLISTS_S)
        is_near = address.is_loopback or address.is_link_local
        if is_near or any(address in ip_network(network) for network in _PRIVATE):
            return ""
        asked = [self._listing(until_s, address, blocklist) for blocklist in settings.dnsbl]
        for blocklist, listing in zip(settings.dnsbl, await asyncio.gather(*asked), strict=True):
            if listing:
                text = blocklist.reply or f"{ip} is listed by {blocklist.zone} ({listing})"
                return f"554 5.7.1 {text}"  # RFC 3463 3.8
        return ""

    async def _listing(
        self, until_s: float, ip: IPv4Address | IPv6Address, blocklist: DnsBlocklist
    ) -> str:
        if not await self._is_usable(until_s, blocklist.zone):
            return ""
        # the octets or nibbles, the last first (RFC 5782 2.1, 2.4)
        name = ip.reverse_pointer.rsplit(".", 2)[0]
        [answer] = await self._answers(until_s, (f"{name}.{blocklist.zone}", "A"))
        return listing_in(answer, blocklist.answers)

    async def _is_usable(self, until_s: float, zone: str) -> bool:
        fault, asked_s = self._faults.get(zone, _NO_FAULT)
        if fault and self._clock.monotonic() < asked_s + _LEFT_OUT_S:
            return False
        tests = [(f"{test}.{zone}", "A") for test in (_LISTED, _UNLISTED)]
        now = zone_fault(*await self._answers(until_s, *tests))
        before, _ = self._faults.get(zone, _NO_FAULT)  # another session may have asked
        self._faults[zone] = now, self._clock.monotonic()
        if now != before:
            _log.warning("DNSBL is left out" if now else "DNSBL is used", zone=zone, error=now)
        return not now

    async def _answers(self, until_s: float, *questions: DnsQuestion) -> Sequence[Answer]:
        try:
            async with asyncio.timeout_at(until_s):  # real time: name servers
                return await self._ask(questions, client="", wait_s=_WAIT_S)
        except TimeoutError:
            return [NoAnswer("no answer in time")] * len(questions)


def _in(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds  # real time: name servers


_Check = Callable[[SmtpListener, str], Awaitable[str]]


class Stranger:
    """The checks of one session. What was checked last is not asked again."""

    def __init__(self, checks: StrangerChecks, settings: SmtpListener, ip: str) -> None:
        """`ip` is "" where the client has no address."""
        self._checks = checks
        self._settings = settings
        self._ip = ip.partition("%")[0]
        self._known: dict[_Check, tuple[str, str]] = {}  # what was checked last, and the reply

    async def refusal(self, address: str, reverse_path: str, *, helo: str) -> RecipientAnswer:
        """Return the answer to RCPT; `helo` is "" where it is not known."""
        if address.partition("@")[0].lower() == "postmaster":  # RFC 5321 4.5.1
            return RecipientAnswer()
        checks, settings = self._checks, self._settings
        asked = [
            (self._reply(check, subject), reason)
            for is_on, check, subject, reason in (
                (settings.dnsbl, checks.blocklists, self._ip, RefusalReason.CLIENT),
                (settings.reject_helo, checks.helo, helo, RefusalReason.CLIENT),
                (
                    settings.reject_unknown_sender_domain,
                    checks.sender,
                    reverse_path,
                    RefusalReason.SENDER,
                ),
                (settings.reject_no_ptr, checks.pointer, self._ip, RefusalReason.CLIENT),
            )
            if is_on and subject
        ]
        replies = await asyncio.gather(*(reply for reply, _ in asked))
        for reply, (_, reason) in zip(replies, asked, strict=True):
            if reply:
                return RecipientAnswer(reply, reason=reason)
        return RecipientAnswer()

    async def _reply(self, check: _Check, subject: str) -> str:
        known = self._known.get(check)
        if known is None or known[0] != subject:
            known = self._known[check] = subject, await check(self._settings, subject)
        return known[1]
