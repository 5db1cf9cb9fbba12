"""MTA-STS: what a domain publishes about the TLS of its MX hosts (RFC 8461). Pure functions.

A TXT record announces a policy; its id changes with the policy. The policy is a file that is
fetched by HTTPS. It names the MX hosts, and its mode says whether other hosts are refused.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from msgspec import Struct

from relay.base.message.address import DOMAIN_OCTETS_MAX, AddressError, to_ascii_domain

MAX_AGE_S_MIN = 300  # else a policy could be fetched for each message
MAX_AGE_S_MAX = 31_557_600  # RFC 8461 3.2: a year
MX_MAX = 100  # some thousand policies are in memory
Mode = Literal["enforce", "testing", "none"]
_MODES: dict[str, Mode] = {"enforce": "enforce", "testing": "testing", "none": "none"}
_RECORD = re.compile(r"v=STSv1;")
_ID = re.compile(r"id=([A-Za-z0-9]{1,32})")
_FIELD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}=[!-:<>-~]++")
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31}):[ \t]*+([^\r\n]*+)")
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?>\.[a-z0-9_-]{1,63})*+")
_MAX_AGE = re.compile(r"[0-9]{1,10}")


class StsPolicy(Struct, frozen=True):
    """A policy. `mx` are names in lower case with A-labels, or "*." and the rest of a name."""

    mode: Mode
    mx: frozenset[str]
    max_age_s: int

    def lists(self, host: str) -> bool:
        """Whether the policy names an MX host; "*" is exactly one label (RFC 8461 4.1)."""
        return host in self.mx or f"*.{host.partition('.')[2]}" in self.mx


class StsFinding(Struct, frozen=True):
    """What is known about a domain's policy. If it must be fetched, `fetch` waits for that."""

    policy: StsPolicy | None = None
    trouble: str = ""  # why it could not be fetched
    unasked: str = ""  # why it is not known whether there is a policy
    fetch: "Callable[[], Awaitable[StsFinding]] | None" = None

    def enforces(self, host: str) -> bool:
        """Whether a policy in force names an MX host."""
        return self.policy is not None and self.policy.mode == "enforce" and self.policy.lists(host)


NO_STS = StsFinding()


class StsPolicyError(ValueError):
    """The file is no valid policy; the text says what was found and expected."""


def may_publish(domain: str) -> bool:
    """Whether a domain can have a policy: an address literal cannot."""
    return _NAME.fullmatch(domain) is not None


def read_record(texts: Sequence[str]) -> str:
    """Return the id in the MTA-STS record among the TXT records `texts`.

    "" means that there is no policy: there is no valid record, or more than one (RFC 8461 3.1).
    """
    records = [text for text in texts if _RECORD.match(text)]
    if len(records) != 1:
        return ""
    fields = [field.strip(" \t") for field in records[0].split(";")[1:]]
    if fields[-1] == "":
        fields.pop()
    ids = [match[1] for field in fields if (match := _ID.fullmatch(field)) is not None]
    if len(ids) != 1 or not all(_FIELD.fullmatch(field) for field in fields):
        return ""
    return ids[0]


def read_policy(octets: bytes) -> StsPolicy:
    """Return the policy in a file, whose lines may end with LF (RFC 8461 3.2).

    The first occurrence of a key counts; unknown keys are ignored. Raises StsPolicyError.
    """
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        raise StsPolicyError("found octets that are not UTF-8, expected a policy") from None
    values: dict[str, str] = {}
    mx: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.rstrip(" \t\r")
        if not stripped:
            continue
        match = _LINE.fullmatch(stripped)
        if match is None:
            raise StsPolicyError(f"line {number}: found {stripped[:50]!r}, expected KEY: VALUE")
        key, value = match[1], match[2]
        if key == "mx":
            mx.add(_pattern(value, number))
        values.setdefault(key, value)
    if values.get("version") != "STSv1":
        raise StsPolicyError(f"version: found {_shown(values, 'version')}, expected STSv1")
    mode, max_age = _MODES.get(values.get("mode", "")), values.get("max_age", "")
    if mode is None:
        expected = "expected enforce, testing or none"
        raise StsPolicyError(f"mode: found {_shown(values, 'mode')}, {expected}")
    if _MAX_AGE.fullmatch(max_age) is None:
        raise StsPolicyError(f"max_age: found {_shown(values, 'max_age')}, expected seconds")
    if len(mx) > MX_MAX:
        raise StsPolicyError(f"mx: found {len(mx)} hosts, expected {MX_MAX} at most")
    if not mx and mode != "none":
        raise StsPolicyError("mx: found none, expected a host")
    max_age_s = max(MAX_AGE_S_MIN, min(int(max_age), MAX_AGE_S_MAX))
    return StsPolicy(mode, frozenset(mx), max_age_s)


def _pattern(value: str, line: int) -> str:
    wildcard = "*." if value.startswith("*.") else ""
    try:
        name = to_ascii_domain(value.removeprefix("*."))
    except AddressError:
        name = ""
    if _NAME.fullmatch(name) is None or len(name) > DOMAIN_OCTETS_MAX:
        expected = "expected a host, or *. and a domain"
        raise StsPolicyError(f"line {line}: mx: found {value[:50]!r}, {expected}")
    return wildcard + name


def _shown(values: dict[str, str], key: str) -> str:
    return repr(values[key][:50]) if key in values else "none"
