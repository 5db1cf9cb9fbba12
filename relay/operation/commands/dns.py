"""`relay dns`: ask the DNS what is published for a domain, and compare it.

SPF is followed through include and redirect, with at most ten further look-ups (RFC 7208 4.6.4).
The questions of a step are asked at once. NoDnsAnswerError says that the DNS does not answer.
"""

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock
from relay.base.message.mta_sts import StsPolicyError, read_policy
from relay.base.settings.tree import Settings
from relay.base.settings.validation import as_fallback, domain_matches, host_of, name_of
from relay.operation.app.configuration import server_certificates
from relay.operation.app.mta_sts import fetch_policy
from relay.operation.commands import dns_records
from relay.transport.routing.dns_cache import DnsQuestion
from relay.transport.routing.dns_client import look_up
from relay.transport.routing.mx_hosts import Answer, NoAnswer, Records
from relay.transport.routing.sts_policies import StsFetchError
from relay.transport.signing.keys import KeyRing

_LOOKUPS_MAX = 10  # RFC 7208 4.6.4
_ABOVE_MAX = 7  # RFC 9989 4.10: a tree walk has at most eight queries


class NoDnsAnswerError(Exception):
    """The DNS does not answer; the text says to what, and why."""


class ComparedZone(Struct, frozen=True):
    """The records of a domain; `notes` are for the operator."""

    records: tuple[dns_records.ZoneRecord, ...]
    notes: tuple[str, ...] = ()


async def compare_zone(
    zone: str, settings: Settings, keys: KeyRing, *, clock: Clock
) -> ComparedZone:
    """Return what to publish for mail from, and to, a domain (A-labels), and what is published.

    Raises NoDnsAnswerError.
    """
    hostname, is_local = settings.hostname, zone in settings.own_domains
    asked = _Dns(settings)
    usable = [
        key for key in keys.of_domain(keys.domain_for(zone)) if key.is_usable(clock.time_us())
    ]
    above = _domains_above(zone)
    await asked.all(
        [
            (zone, "MX"),
            (zone, "TXT"),
            (hostname, "A"),
            (hostname, "AAAA"),
            *((key.name, "TXT") for key in usable),
            *((f"_dmarc.{domain}", "TXT") for domain in (zone, *above)),
            (f"_mta-sts.{zone}", "TXT"),
            (f"_smtp._tls.{zone}", "TXT"),
            (f"_25._tcp.{hostname}", "TLSA"),
        ]
    )
    report_to = f"postmaster@{zone}"
    records = [dns_records.mx_record(zone, hostname, asked.needed(zone, "MX"))] if is_local else []
    texts = asked.needed(zone, "TXT")
    passes = await _passes(zone, dns_records.spf_texts(texts)[:1], asked, hostname=hostname)
    note = _foreign_hosts(settings, zone)
    records.append(dns_records.spf_record(zone, hostname, texts, passes=passes, note=note))
    records += [dns_records.dkim_record(key, asked.needed(key.name, "TXT")) for key in usable]
    own = asked.needed(f"_dmarc.{zone}", "TXT")
    others = (
        []
        if dns_records.dmarc_texts(own)
        else [
            (name, text)
            for name in above
            for text in dns_records.dmarc_texts(asked.needed(f"_dmarc.{name}", "TXT"))
            if "psd=y" not in "".join(text.lower().split())  # of a public suffix
        ]
    )
    records.append(dns_records.dmarc_record(zone, report_to, own, above=others))
    if is_local:
        at = clock.time_us() // 1_000_000
        sts = dns_records.mta_sts_record(
            zone, asked.advised(f"_mta-sts.{zone}", "TXT"), id_=str(at)
        )
        if sts.verdict is dns_records.ZoneVerdict.OK:
            exchanges = [mx.partition(" ")[2] for mx in asked.needed(zone, "MX")]
            if fault := await _policy_fault(zone, settings, {hostname, *exchanges}):
                sts = replace(sts, verdict=dns_records.ZoneVerdict.WRONG, note=fault)
        records.append(sts)
        records.append(
            dns_records.tls_rpt_record(zone, report_to, asked.advised(f"_smtp._tls.{zone}", "TXT"))
        )
        tlsa = asked.advised(f"_25._tcp.{hostname}", "TLSA")
        records += dns_records.tlsa_records(hostname, _public_keys(settings), tlsa)
    return ComparedZone(tuple(records), tuple(_notes(zone, settings, asked, has_key=bool(usable))))


async def _policy_fault(zone: str, settings: Settings, hosts: Iterable[str]) -> str:
    """Return what is wrong with the MTA-STS policy file of a domain, "" if nothing is."""

    async def lookup(name: str) -> list[str]:
        questions = [(name, "A"), (name, "AAAA")]
        replies = await look_up(settings.dns.nameservers, questions, timeout_s=settings.dns.timeout)
        answers = [answer for answer in replies.values() if isinstance(answer, Records)]
        return [address for answer in answers for address in answer.values]

    try:
        policy = read_policy(await fetch_policy(settings.delivery, lookup, zone))
    except (StsFetchError, StsPolicyError) as error:
        return f"the policy: {error}"
    missing = sorted(host for host in hosts if policy.mode != "none" and not policy.lists(host))
    return f"the policy does not list {', '.join(missing)}" if missing else ""


def _domains_above(zone: str) -> list[str]:
    labels = zone.split(".")
    return [".".join(labels[at:]) for at in range(1, len(labels))][-_ABOVE_MAX:]


class _Dns:
    """Asks the DNS, and keeps the answers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.dns
        self._answers: dict[DnsQuestion, Answer] = {}

    async def all(self, questions: Iterable[DnsQuestion]) -> None:
        """Ask the questions that have no answer yet."""
        new = [question for question in questions if question not in self._answers]
        servers, timeout_s = self._settings.nameservers, self._settings.timeout
        self._answers |= await look_up(servers, new, timeout_s=timeout_s)

    def needed(self, name: str, kind: str) -> list[str]:
        """Return the records, which may be none. Raises NoDnsAnswerError."""
        answer = self._answers[name, kind]
        if isinstance(answer, NoAnswer):
            raise NoDnsAnswerError(f"{name} {kind}: {answer.text}")
        values = answer.values if isinstance(answer, Records) else ()
        return [raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for raw in values]

    def advised(self, name: str, kind: str) -> list[str]:
        """Return the records; without an answer, return none."""
        try:
            return self.needed(name, kind)
        except NoDnsAnswerError:
            return []


async def _passes(zone: str, records: Sequence[str], asked: _Dns, *, hostname: str) -> bool:
    """Return whether the SPF record of a domain, or a record that it includes, lets this host
    send.
    """
    addresses = [ip_address(ip) for kind in ("A", "AAAA") for ip in asked.needed(hostname, kind)]
    waiting, seen, left = [(zone, records)], {zone}, _LOOKUPS_MAX
    for domain, texts in waiting:  # it grows
        if len(texts) != 1:  # includes nothing (RFC 7208 5.2)
            continue
        terms = dns_records.parse_spf(texts[0])
        hosts = [host or domain for host in terms.hosts]
        if terms.everybody or hostname in hosts:
            return True
        exchanged = [host or domain for host in terms.mail_hosts]
        others = [name for name in terms.others if name not in seen]
        steps: list[list[DnsQuestion]] = [
            *([(host, "A"), (host, "AAAA")] for host in hosts),
            *([(host, "MX")] for host in exchanged),
            *([(name, "TXT")] for name in others),
        ]
        steps, left = steps[:left], max(0, left - len(steps))
        questions = [question for step in steps for question in step]
        await asked.all(questions)
        networks = list(terms.networks)
        for name, kind in questions:
            published = asked.needed(name, kind)
            if kind == "MX" and any(mx.partition(" ")[2] == hostname for mx in published):
                return True
            if kind == "TXT":
                seen.add(name)
                waiting.append((name, dns_records.spf_texts(published)))
            elif kind != "MX":
                networks += published
        if dns_records.in_networks(networks, addresses):
            return True
    return False


def _foreign_hosts(settings: Settings, zone: str) -> str:
    """Return a text about routes that send mail of the domain by hosts of others. The SPF record of
    the domain must allow these hosts too.
    """
    named = []
    for route in settings.route:
        is_of_zone = not route.sender or domain_matches(route.sender.rpartition("@")[2], zone)
        if not is_of_zone or route.domain in settings.own_domains:
            continue
        for hop in (route, as_fallback(route)):
            host = host_of(hop)
            if host and not hop.next_hop.startswith(("lmtp", "graph")) and not host.is_loopback:
                named.append(f"{name_of(hop)} sends by {host.host}: its include: is yours to add")
        if route.domain == "*" and route.sender in ("", f"*@{zone}") and route.next_hop != "hold":
            break  # it takes all that is left
    return "; ".join(named)


def _public_keys(settings: Settings) -> list[bytes]:
    """Return the SHA-256 of the public keys of the certificates on port 25 (RFC 6698 2.1.2)."""
    listeners = zip(settings.smtp, server_certificates(settings).smtp, strict=True)
    files = [  # clients ask for the hostname (RFC 7672 8.1)
        made.pair_for(settings.hostname).certificate
        for smtp, made in listeners
        if smtp.role == "relay" and made
    ]
    if not files:
        return []
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415 -- a large library
    from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415 -- as above

    keys = [load_pem_x509_certificate(file.read_bytes()).public_key() for file in files]
    return [
        hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
        for key in keys
    ]


def _notes(zone: str, settings: Settings, asked: _Dns, *, has_key: bool) -> Iterable[str]:
    hostname = settings.hostname
    if zone not in settings.own_domains:
        known = "mailboxes.domains, and no [[domain]]"
        yield f"{zone} is none of {known}: its MX records are not looked at"
    elif not asked.needed(hostname, "A") and not asked.needed(hostname, "AAAA"):
        yield f"{hostname} has no address in the DNS: no other host can deliver to it"
    if not has_key:
        yield (
            f"no key signs mail from {zone}: `relay dkim keygen {zone} SELECTOR` makes one, "
            "[[dkim]] names it"
        )
