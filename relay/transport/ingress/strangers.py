"""Refuse strangers by what the DNS says: of the sender's domain, the name in EHLO, the address.

A stranger is a client that is neither trusted nor logged in. Each check is a key of [[smtp]], and
its refusal is an answer to RCPT, so that log and records have sender and recipient. At MAIL a null
MX is refused (RFC 7505 4.2). Mail to a postmaster is never refused here (RFC 5321 4.5.1). A missing
answer of a name server refuses nothing but a sender whose domain is not known then (450). For what
could not be asked in time, which is this relay's own fault, the client tries again (450 4.7.1).

A zone that lists clients (DNSBL, RFC 5782) is used only while it lists 127.0.0.2 and not 127.0.0.1
(RFC 5782 5). StrangerChecks remembers which zones are left out, and logs each change.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.message.address import literal_address
from relay.base.message.envelope import domain_of
from relay.base.observe.logs import get_logger
from relay.base.settings.tree import DnsBlocklist, SmtpListener
from relay.base.settings.values import parse_domain
from relay.base.socket_address import client_of, plain_ip
from relay.transport.ingress.send_as import null_mx_reply
from relay.transport.ingress.session_client import RecipientAnswer
from relay.transport.refusals.refusal import RefusalReason
from relay.transport.routing.dns_cache import Ask, DnsQuestion
from relay.transport.routing.mx_hosts import (
    Answer,
    NoAnswer,
    NoName,
    NoRecords,
    NullMx,
    Records,
    exchanges_of,
    is_own_fault,
)

_WAIT_S = 5.0  # a client waits for an answer
_BLOCKLISTS_S = 3.0
_LEFT_OUT_S = 10.0  # then a zone that cannot be used is asked again
_ZONES_MAX = 1000
_NO_FAULT = ("", 0.0)
_KNOWN_MAX = 100  # answers and replies of a session
_LISTINGS = IPv4Network("127.0.0.0/8")  # RFC 5782 2.3
_ERRORS = IPv4Network("127.255.255.0/24")  # such as "too many queries", of Spamhaus and others
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
_LISTED, _UNLISTED = "2.0.0.127", "1.0.0.127"  # RFC 5782 5
# RFC 3463 3.8
UNABLE = "450 4.7.1 Too many clients are being checked, try again later"
_log = get_logger("ingress")


def sender_reply(domain: str, answers: Sequence[Answer]) -> str:
    """Return the reply to a sender: `answers` are for MX, or if there is none for A and AAAA."""
    if has_none(answers):
        return f"550 5.1.8 The sender domain {domain} has no MX, A or AAAA record"  # RFC 3463 3.2
    if unable(answers) or any(isinstance(answer, Records) for answer in answers):
        return unable(answers)
    # RFC 3463 3.2
    return f"450 4.1.8 The DNS does not answer for the sender domain {domain}, try again later"


def unable(answers: Sequence[Answer]) -> str:
    """Return the reply if a question could not be asked, and the others do not suffice."""
    is_known = any(isinstance(answer, Records) for answer in answers)
    return UNABLE if not is_known and any(map(is_own_fault, answers)) else ""


def most_certain(replies: Iterable[str]) -> str:
    """Return the first reply that refuses, one of the relay's own inability last; else ""."""
    return min(filter(None, replies), key=lambda reply: reply == UNABLE, default="")


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
        self.ask = ask
        self._is_own = is_own
        self._clock = clock
        # why a zone is left out, or "", and when it was asked
        self._faults = BoundedDict[str, tuple[str, float]](_ZONES_MAX)

    async def null_mx(self, stranger: "Stranger", domain: str) -> str:
        """Check that the domain of a sender accepts mail; without an answer it does."""
        if self._is_known(domain):
            return ""
        [mx] = await stranger.answers((domain, "MX"))
        return null_mx_reply(domain) if isinstance(exchanges_of(domain, mx), NullMx) else ""

    async def sender(self, stranger: "Stranger", domain: str) -> str:
        """Check that the domain of a sender can get mail."""
        if self._is_known(domain):
            return ""
        [mx] = answers = await stranger.answers((domain, "MX"))
        if isinstance(exchanges_of(domain, mx), NullMx):
            return null_mx_reply(domain)
        if isinstance(mx, NoRecords):  # RFC 5321 5.1
            answers = await stranger.answers((domain, "A"), (domain, "AAAA"))
        return sender_reply(domain, answers)

    async def helo(self, stranger: "Stranger", name: str) -> str:
        """Check the name in EHLO."""
        if literal_address(name):
            return ""
        if not is_host_name(name):
            # RFC 5321 4.1.1.1; RFC 3463 3.6
            return f"550 5.5.4 EHLO {name}: expected a full host name or an address literal"
        if stranger.settings.reject_helo != "unknown":
            return ""
        host = name.lower()
        answers = await stranger.answers((host, "A"), (host, "AAAA"))
        if has_none(answers):
            return f"550 5.7.1 EHLO {name}: this host has no A or AAAA record"  # RFC 3463 3.8
        return unable(answers)

    async def pointer(self, stranger: "Stranger", ip: str) -> str:
        """Check that the address of a client has a name."""
        answers = await stranger.answers((plain_ip(ip).reverse_pointer, "PTR"))
        if has_none(answers):
            return f"450 4.7.25 {ip} has no name (PTR) in the DNS, try again later"  # RFC 7372 3.3
        return unable(answers)

    async def blocklists(self, stranger: "Stranger", ip: str) -> str:
        """Check that no zone lists the address of a client."""
        address = plain_ip(ip)
        is_near = address.is_loopback or address.is_link_local
        if is_near or any(address in ip_network(network) for network in _PRIVATE):
            return ""
        asked = [self._listed(stranger, address, zone) for zone in stranger.settings.dnsbl]
        return most_certain(await asyncio.gather(*asked))

    async def _listed(
        self, stranger: "Stranger", ip: IPv4Address | IPv6Address, blocklist: DnsBlocklist
    ) -> str:
        zone = blocklist.zone
        if fault := await self._fault(stranger, zone):
            return UNABLE if fault == UNABLE else ""
        # the octets or nibbles, the last first (RFC 5782 2.1, 2.4)
        name = ip.reverse_pointer.rsplit(".", 2)[0]
        answers = await stranger.answers((f"{name}.{zone}", "A"), wait_s=_BLOCKLISTS_S)
        if not (listing := listing_in(answers[0], blocklist.answers)):
            return unable(answers)
        text = blocklist.reply or f"{ip} is listed by {zone} ({listing})"
        return f"554 5.7.1 {text}"  # RFC 3463 3.8

    async def _fault(self, stranger: "Stranger", zone: str) -> str:
        """Return why a zone is left out, "" if it is used, UNABLE if it could not be asked."""
        fault, asked_s = self._faults.get(zone, _NO_FAULT)
        if fault and self._clock.monotonic() < asked_s + _LEFT_OUT_S:
            return fault
        tests = [(f"{test}.{zone}", "A") for test in (_LISTED, _UNLISTED)]
        answers = await self.ask(tests, client=stranger.client, wait_s=_BLOCKLISTS_S)
        if any(map(is_own_fault, answers)):
            return UNABLE
        now = zone_fault(*answers)
        before, _ = self._faults.get(zone, _NO_FAULT)  # another session may have asked
        self._faults[zone] = now, self._clock.monotonic()
        if now != before:
            _log.warning("DNSBL is left out" if now else "DNSBL is used", zone=zone, error=now)
        return now

    def _is_known(self, domain: str) -> bool:
        return domain.startswith("[") or self._is_own(domain)


_Check = Callable[["Stranger", str], Awaitable[str]]


class Stranger:
    """The checks of one session, in which no check is made twice."""

    def __init__(self, checks: StrangerChecks, settings: SmtpListener, ip: str) -> None:
        """`ip` is "" where the client has no address."""
        self.settings = settings
        self.client = client_of(ip)
        self._checks = checks
        self._ip = ip.partition("%")[0]
        self._answers = BoundedDict[DnsQuestion, Answer](_KNOWN_MAX)
        self._replies = BoundedDict[tuple[_Check, str], str](_KNOWN_MAX)

    async def sender_refusal(self, reverse_path: str) -> str:
        """Return the reply if MAIL is refused, else ""."""
        # of the message before only silence is remembered: an answer may be long, and is cached
        for question, answer in list(self._answers.items()):
            if not isinstance(answer, NoAnswer) or answer.is_own:
                del self._answers[question]
        for checked in [key for key, reply in self._replies.items() if reply == UNABLE]:
            del self._replies[checked]
        domain = domain_of(reverse_path)
        return await self._checks.null_mx(self, domain) if domain else ""

    async def refusal(self, address: str, reverse_path: str, *, helo: str) -> RecipientAnswer:
        """Return the answer to RCPT; `helo` is "" where it is not known."""
        if address.partition("@")[0].lower() == "postmaster":  # RFC 5321 4.5.1
            return RecipientAnswer()
        checks, settings = self._checks, self.settings
        asked = [
            (self._reply(check, subject), reason)
            for is_on, check, subject, reason in (
                (settings.dnsbl, checks.blocklists, self._ip, RefusalReason.CLIENT),
                (settings.reject_helo, checks.helo, helo, RefusalReason.CLIENT),
                (
                    settings.reject_unknown_sender_domain,
                    checks.sender,
                    domain_of(reverse_path),
                    RefusalReason.SENDER,
                ),
                (settings.reject_no_ptr, checks.pointer, self._ip, RefusalReason.CLIENT),
            )
            if is_on and subject
        ]
        replies = await asyncio.gather(*(reply for reply, _ in asked))
        reasons = {reply: reason for reply, (_, reason) in zip(replies, asked, strict=True)}
        reply = most_certain(replies)
        reason = RefusalReason.PRESSURE if reply == UNABLE else reasons.get(reply)
        return RecipientAnswer(reply, reason=reason)

    async def answers(self, *questions: DnsQuestion, wait_s: float = _WAIT_S) -> Sequence[Answer]:
        """Ask the DNS; in a session each question once."""
        new = [question for question in questions if question not in self._answers]
        if new:
            found = await self._checks.ask(new, client=self.client, wait_s=wait_s)
            self._answers.update(zip(new, found, strict=True))
        return [self._answers[question] for question in questions]

    async def _reply(self, check: _Check, subject: str) -> str:
        known = self._replies.get((check, subject))
        if known is None:
            known = self._replies[check, subject] = await check(self, subject)
        return known
