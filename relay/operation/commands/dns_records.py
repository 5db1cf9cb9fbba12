"""What to publish in the DNS for a domain, and whether the published records are right.

Functions are pure: relay.operation.commands.dns asks the DNS. The proposed records keep the right
parts of the published ones. RFC 7208 (SPF), RFC 9989 (DMARC), RFC 6376 3.6.1 (DKIM), RFC 8461
(MTA-STS), RFC 8460 (TLS-RPT), RFC 7672 (TLSA).
"""

import re
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_network

from msgspec import Struct

from relay.transport.signing.keys import SigningKey
from relay.transport.signing.record import (
    RecordError,
    compare_record,
    key_record,
    parse_record,
    zone_line,
)

_PREFERENCE = 10
_SPF_VERSION = "v=spf1"
_MECHANISM = re.compile(
    r"([+?~-]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?:([:/])(.*))?", re.IGNORECASE | re.DOTALL
)
_MODIFIER = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)
_POLICIES = ("none", "quarantine", "reject")
_STS_ID = re.compile(r"[A-Za-z0-9]{1,32}", re.ASCII)

HostAddress = IPv4Address | IPv6Address


class ZoneVerdict(StrEnum):
    """What is published, compared with what to publish."""

    OK = "ok"
    MISSING = "missing"
    WRONG = "wrong"
    EXTRA = "extra"  # not needed, and harmless


class ZoneRecord(Struct, frozen=True):
    """One record: the data to publish, and the data that was found, a line for each record.

    `verdict` is None for an advised record that is not published. The text of a TXT record is
    without quotes.
    """

    name: str
    type: str
    value: str
    found: str
    verdict: ZoneVerdict | None
    note: str = ""  # for the operator

    def as_json(self) -> dict[str, str]:
        """Return the JSON of `relay dns`."""
        return {
            "name": self.name,
            "type": self.type,
            "value": self.value,
            "found": self.found,
            "verdict": str(self.verdict),
        } | ({"note": self.note} if self.note else {})

    def zone_line(self) -> str:
        """Return the record as a line of a zone file (RFC 1035 5.1)."""
        if self.type == "TXT":
            return zone_line(self.name, self.value)
        return f"{self.name}. IN {self.type} {self.value}"


def mx_record(zone: str, hostname: str, exchanges: Sequence[str]) -> ZoneRecord:
    """Compare the MX records, each "PREFERENCE NAME": this host must be one of them."""
    published = "\n".join(exchanges)
    for exchange in exchanges:
        if exchange.partition(" ")[2] == hostname:
            return ZoneRecord(zone, "MX", f"{exchange}.", published, ZoneVerdict.OK)
    value = f"{_PREFERENCE} {hostname}."
    verdict = ZoneVerdict.WRONG if exchanges else ZoneVerdict.MISSING
    note = f"{hostname} is not among them" if exchanges else ""
    return ZoneRecord(zone, "MX", value, published, verdict, note)


# -- SPF
def spf_texts(texts: Sequence[str]) -> list[str]:
    """Return the SPF records among TXT texts (RFC 7208 4.5)."""
    return [text for text in texts if text.lower().partition(" ")[0] == _SPF_VERSION]


class SpfTerms(Struct, frozen=True):
    """The hosts that an SPF record allows: networks, and names to look up. `faults` are invalid
    terms.
    """

    networks: tuple[str, ...] = ()  # of ip4 and ip6
    hosts: tuple[str, ...] = ()  # of a; "" is the domain of the record
    mail_hosts: tuple[str, ...] = ()  # of mx; "" is the domain of the record
    others: tuple[str, ...] = ()  # of include, and of redirect without all
    everybody: bool = False  # +all
    faults: tuple[str, ...] = ()


def parse_spf(text: str) -> SpfTerms:
    """Return what the terms of an SPF record allow; macros and `exists` are ignored."""
    kinds: dict[str, list[str]] = {"ip4": [], "ip6": [], "a": [], "mx": [], "include": []}
    everybody, has_all, redirect, faults = False, False, "", []
    for term in text.split()[1:]:
        if match := _MECHANISM.fullmatch(term):
            qualifier, name, sign, value = match.groups()
            name, passes = name.lower(), qualifier in ("", "+")
            has_all |= name == "all"
            everybody |= name == "all" and passes
            target = value.partition("/")[0] if sign == ":" and name in ("a", "mx") else value or ""
            if sign == "/" and name in ("a", "mx"):
                target = ""
            if passes and name in kinds and "%" not in target:
                kinds[name].append(target.lower().removesuffix("."))
        elif match := _MODIFIER.fullmatch(term):
            if match[1].lower() == "redirect":
                redirect = match[2].lower().removesuffix(".")
        else:
            faults.append(term)
    others = [*kinds["include"], *([redirect] if redirect and not has_all else ())]
    return SpfTerms(
        (*kinds["ip4"], *kinds["ip6"]),
        tuple(kinds["a"]),
        tuple(kinds["mx"]),
        tuple(others),
        everybody,
        tuple(faults),
    )


def in_networks(networks: Collection[str], addresses: Sequence[HostAddress]) -> bool:
    """Return whether there are addresses, and all of them are in the networks."""
    parsed = []
    for text in networks:
        try:
            parsed.append(ip_network(text, strict=False))
        except ValueError:
            continue
    return bool(addresses) and all(any(ip in network for network in parsed) for ip in addresses)


def spf_record(
    zone: str, hostname: str, texts: Sequence[str], *, passes: bool, note: str = ""
) -> ZoneRecord:
    """Compare the SPF record; `passes`: the first published SPF record allows this host to send."""
    records = spf_texts(texts)
    published = "\n".join(records)
    if not records:
        value = f"{_SPF_VERSION} a:{hostname} ~all"
        return ZoneRecord(zone, "TXT", value, "", ZoneVerdict.MISSING, note)
    faults = parse_spf(records[0]).faults
    version, *terms = records[0].split()
    kept = [term for term in terms if term not in faults]
    value = " ".join([version, *([] if passes else [f"a:{hostname}"]), *kept])
    if len(records) > 1:
        text = f"found {len(records)} SPF records, expected one, with what all of them say"
    elif faults:
        text = f'found "{faults[0]}", which is no term of SPF'
    elif not passes:
        text = f"nothing in it stands for {hostname}"
    else:
        return ZoneRecord(zone, "TXT", records[0], published, ZoneVerdict.OK, note)
    return ZoneRecord(
        zone, "TXT", value, published, ZoneVerdict.WRONG, "; ".join(filter(None, (text, note)))
    )


# -- DKIM and DMARC
def dkim_record(key: SigningKey, texts: Sequence[str]) -> ZoneRecord:
    """Compare the record of a key, by its tags."""
    compared = compare_record(texts, key.private)
    return ZoneRecord(
        key.name,
        "TXT",
        key_record(key.private),
        "\n".join(texts),
        ZoneVerdict(compared.verdict),
        "; ".join(map(str, compared.faults)),
    )


def dmarc_texts(texts: Sequence[str]) -> list[str]:
    """Return the DMARC records among TXT texts (RFC 9989 4.7: v= is first, its value exact)."""
    return [text for text in texts if re.match(r"\s*v\s*=\s*DMARC1\s*(;|$)", text)]


def dmarc_fault(text: str) -> str:
    """Return why receivers ignore a DMARC record, "" if they do not."""
    try:
        tags = {name.lower(): value for name, value in parse_record(text).items()}
    except RecordError as error:
        return f"found {error}, expected tags such as p=none with ; between them"
    if tags.get("p", "").lower() in _POLICIES:
        return ""
    if "p" in tags:
        return f"found p={tags['p'][:40]}, expected one of {', '.join(_POLICIES)}"
    return "" if tags.get("rua") else "found no p="


def dmarc_record(
    zone: str, report_to: str, texts: Sequence[str], *, above: Sequence[tuple[str, str]] = ()
) -> ZoneRecord:
    """Compare the DMARC record. `above` has the names and texts of DMARC records of parent domains,
    the nearest first; the first valid one is used if the domain has none (RFC 9989 4.10).
    """
    name, records = f"_dmarc.{zone}", dmarc_texts(texts)
    value, published = f"v=DMARC1; p=none; rua=mailto:{report_to}", "\n".join(records)
    if not records:
        for place, text in above:
            if not dmarc_fault(text):
                note = f"the record of {place} counts"
                return ZoneRecord(name, "TXT", text, text, ZoneVerdict.OK, note)
        return ZoneRecord(name, "TXT", value, "", ZoneVerdict.MISSING)
    if len(records) > 1:
        note = f"found {len(records)} records, expected one"
        return ZoneRecord(name, "TXT", records[0], published, ZoneVerdict.WRONG, note)
    if fault := dmarc_fault(records[0]):
        return ZoneRecord(name, "TXT", value, published, ZoneVerdict.WRONG, fault)
    return ZoneRecord(name, "TXT", records[0], published, ZoneVerdict.OK, _dmarc_note(records[0]))


def _dmarc_note(text: str) -> str:
    """Return which tags of a valid record do not do what they say (RFC 9989 4.7, C.2)."""
    tags = {name.lower(): value.lower() for name, value in parse_record(text).items()}
    removed = ", ".join(f"{tag}=" for tag in ("pct", "rf", "ri") if tag in tags)
    notes = [f"{removed}: RFC 9989 has removed this, receivers ignore it"] if removed else []
    if tags.get("t") == "y":
        notes.append("t=y: receivers apply the next weaker policy")
    return "; ".join(notes)


# -- Advice
def mta_sts_record(zone: str, texts: Sequence[str], *, id_: str) -> ZoneRecord:
    """Compare the record of MTA-STS (RFC 8461 3.1), if there is one; `id_` is for a new one."""
    value = f"v=STSv1; id={id_};"
    return _advised(f"_mta-sts.{zone}", value, texts, tag="id", is_valid=_STS_ID.fullmatch)


def mta_sts_policy(hostname: str) -> list[str]:
    """Return the lines of the policy file to begin with (RFC 8461 3.2)."""
    return ["version: STSv1", "mode: testing", f"mx: {hostname}", "max_age: 86400"]


def tls_rpt_record(zone: str, report_to: str, texts: Sequence[str]) -> ZoneRecord:
    """Compare the record of TLS-RPT (RFC 8460 3), if there is one."""
    value = f"v=TLSRPTv1; rua=mailto:{report_to}"
    is_valid = partial(re.match, "mailto:|https:")
    return _advised(f"_smtp._tls.{zone}", value, texts, tag="rua", is_valid=is_valid)


def _advised(
    name: str, value: str, texts: Sequence[str], *, tag: str, is_valid: Callable[[str], object]
) -> ZoneRecord:
    records = [text for text in texts if text.startswith(value.partition(";")[0])]
    if not records:
        return ZoneRecord(name, "TXT", value, "", None)
    try:
        valid = len(records) == 1 and is_valid(parse_record(records[0]).get(tag, ""))
    except RecordError:
        valid = False
    verdict = ZoneVerdict.OK if valid else ZoneVerdict.WRONG
    published = "\n".join(records)
    return ZoneRecord(name, "TXT", records[0] if valid else value, published, verdict)


def tlsa_records(
    hostname: str, digests: Sequence[bytes], published: Sequence[str]
) -> list[ZoneRecord]:
    """Compare the TLSA records of port 25, if there are any, with the certificates in use.
    `digests` are the SHA-256 of their public keys (RFC 7672 3.1: 3 1 1).
    """
    name = f"_25._tcp.{hostname}"
    records = [" ".join(text.lower().split(maxsplit=3)) for text in published]
    values = list(dict.fromkeys(f"3 1 1 {digest.hex()}" for digest in digests))
    if not published:
        note = "only in a signed zone (DNSSEC)"
        return [ZoneRecord(name, "TLSA", value, "", None, note) for value in values]
    made = []
    for value in values:
        verdict = ZoneVerdict.OK if value in records else ZoneVerdict.WRONG
        note = "" if value in records else "the certificate in use is another one"
        made.append(ZoneRecord(name, "TLSA", value, "\n".join(records), verdict, note))
    others = [record for record in records if record not in values] if values else records
    note = "it belongs to no certificate in use"
    return made + [ZoneRecord(name, "TLSA", "", text, ZoneVerdict.EXTRA, note) for text in others]
