"""SPF by pyspf, which gets known answers instead of asking the DNS (RFC 7208).

pyspf has the limits of 10 look-ups and 2 void ones. The explanation (exp=) is not fetched.
"""

import re
from typing import Any

import spf

from relay.base.message.authentication_results import (
    PROPERTY_CHARACTERS_MAX,
    UNABLE,
    AuthResult,
    clipped,
)
from relay.transport.checks.checker import TOO_MANY, SenderQuestion
from relay.transport.checks.dmarc import DOMAIN, Answers
from relay.transport.routing.dns_cache import DnsQuestion

_NAME_MAX = 253
_OCTETS_MAX = 16_384  # of the records that count: pyspf reads all of them in each round
_RECORD = re.compile(rb"v=spf1(?: |\Z)", re.IGNORECASE)
_LONG_WORD = re.compile(rb"[^ ]{500}")  # quadratic in pyspf


def spf_result(question: SenderQuestion, answers: Answers, *, of_helo: bool) -> AuthResult:
    """Return the result for the sender, or for the name in HELO (2.3, 2.4)."""
    local_part, _, domain = question.sender.rpartition("@")
    if of_helo or not question.sender:
        local_part, domain = "postmaster", question.helo
    sender = f"{local_part}@{domain}"
    property_name, checked = ("smtp.helo", domain) if of_helo else ("smtp.mailfrom", sender)
    octets, pointers, is_unable = 0, set[str](), False

    def look_up(name: str, kind: str, *_: object) -> list[tuple[DnsQuestion, Any]]:
        nonlocal octets, is_unable
        if len(name) > _NAME_MAX or not name.isascii():
            return []
        answer = answers.of((name, kind), "" if of_helo else domain.lower())
        is_unable |= answer.is_own
        if answer.failure and not answer.is_own and (kind == "PTR" or name in pointers):
            return []  # the client chooses these names (5.5)
        if answer.failure:
            error = spf.PermError if answer.failure == TOO_MANY else spf.TempError
            raise error(f"{kind} of {name}: {answer.failure}")
        records = [record for record in answer.values if kind != "TXT" or _RECORD.match(record)]
        octets += sum(map(len, records))
        if octets > _OCTETS_MAX or any(map(_LONG_WORD.search, records)):
            raise spf.PermError("the records are too long")
        pairs = [((name, kind), _as_pyspf(record, kind)) for record in records]
        if kind == "PTR":
            pointers.update(pointer.lower() for _, pointer in pairs)
        return pairs

    spf.DNSLookup = look_up
    result, reason = "none", "no domain name"
    if "." in domain and DOMAIN.fullmatch(domain.lower()):  # 4.3
        try:
            query = spf.query(question.ip, f"x@{domain}", question.helo, receiver=question.hostname)
            query.s, query.l = sender, local_part  # pyspf ends a local part at its first @
            result, _, reason = query.check()
            if result == "temperror" and is_unable:
                result = UNABLE
            if result not in ("permerror", "temperror", UNABLE):
                reason = query.mechanism or ""
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - pyspf raises many for strange records
            result, reason = "permerror", f"the record cannot be used: {error}"
    return AuthResult(
        "spf", result, clipped(reason), {property_name: clipped(checked, PROPERTY_CHARACTERS_MAX)}
    )


def _as_pyspf(record: bytes, kind: str) -> Any:
    if kind == "TXT":
        return (record,)
    preference, _, name = record.decode().rpartition(" ")
    return (int(preference), name) if kind == "MX" else name.rstrip(".")
