"""DKIM by dkimpy: the signatures of a message and their keys (RFC 6376, 8301, 8463, 8616).

dkimpy does the arithmetic. What it does not check is checked here first: From in h=, the flags and
hashes of a key, and what would take it long. Its canonical forms of a body, which take quadratic
time and much memory, are replaced by those of `signing`.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache

import dkim
from dkim.canonicalization import Relaxed, Simple

from relay.base.message.address import lower_case, to_ascii_domain
from relay.base.message.authentication_results import (
    PROPERTY_CHARACTERS_MAX,
    UNABLE,
    AuthResult,
    clipped,
    may_be_aligned,
)
from relay.base.message.header import Header
from relay.transport.checks.checker import NOT_COMPUTED, TOO_MANY, CheckRequest, is_asked
from relay.transport.checks.dmarc import DOMAIN, Answers
from relay.transport.signing.record import listed, parse_record
from relay.transport.signing.signature import NAME, relaxed_body

_SIGNATURES_MAX = 5
_NAME = NAME.lower().encode()
_WHITE_RUN = re.compile(rb"\s{100}")  # in dkimpy, time is the square of its length
_STEPS_MAX = 1_000_000  # names in h= times fields of the header
_KEY_BITS_MIN, _KEY_BITS_MAX = 1024, 4096  # of RSA (RFC 8301 3.2)
_EXPONENT_MAX = 1 << 64


def dkim_results(
    header: Header, request: CheckRequest, answers: Answers, *, is_ready: bool
) -> list[AuthResult]:
    """Return the results of at most five signatures, in their order.

    Those that may be aligned are looked at first, then those at the top. Unless `is_ready`, only
    their keys are looked for.
    """
    if any(name == b"" for name, _ in header.fields):
        return [AuthResult("dkim", "permerror", "the header has a line that is no field")]
    message = dkim.DKIM(b"")
    # dkimpy reads a field of many lines in quadratic time
    pairs = (octets.partition(b":") for _, octets in header.fields)
    message.headers = [(name.rstrip(), rest) for name, _, rest in pairs]
    message.body = request.body if is_ready else None
    signatures = [octets for name, octets in header.fields if name == _NAME]
    results = list[AuthResult]()
    for number in _looked_at(signatures, answers.author):
        field = signatures[number]
        results.append(
            _result(message, number, field, answers=None if request.is_large else answers)
        )
    return results or [AuthResult("dkim", "none", "no signature")]


def _looked_at(signatures: Sequence[bytes], author: str) -> Sequence[int]:
    """Return the places of the signatures that are looked at."""
    if len(signatures) <= _SIGNATURES_MAX:
        return range(len(signatures))
    aligned = [may_be_aligned(_domain_of(octets), author) for octets in signatures]
    places = sorted(range(len(signatures)), key=lambda place: not aligned[place])
    return sorted(places[:_SIGNATURES_MAX])


def _tags(field: bytes) -> dict[str, str]:
    """Return the tags of a signature. Raises RecordError."""
    return parse_record(field.partition(b":")[2].decode("utf-8", "replace"))


def _domain_of(field: bytes) -> str:
    with suppress(KeyError, ValueError):
        return to_ascii_domain(_tags(field)["d"])
    return ""


def _result(
    message: dkim.DKIM, number: int, field: bytes, *, answers: Answers | None
) -> AuthResult:
    tags, domain = dict[str, str](), ""
    try:
        tags = _tags(field)
        domain = to_ascii_domain(tags["d"])
        if not is_asked(field):
            result, reason = "permerror", "the signature is too long"
        elif _WHITE_RUN.search(field):
            result, reason = "permerror", "the signature has too much white space"
        else:
            result, reason = _judged(message, number, tags | {"d": domain}, answers=answers)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - dkimpy and what it calls raise many
        text, _, _ = str(error).partition(" (")
        is_failure = text.startswith("body hash mismatch")
        result, reason = ("fail", text) if is_failure else ("permerror", f"it is invalid: {text}")
    values = {"d": domain, **{tag: tags.get(tag, "") for tag in "sia"}}
    values["b"] = "".join(tags.get("b", "").split())[:8]
    properties = {
        f"header.{tag}": clipped(text, PROPERTY_CHARACTERS_MAX)
        for tag, text in values.items()
        if text
    }
    return AuthResult("dkim", result, clipped(reason), properties)


def _judged(
    message: dkim.DKIM, number: int, tags: Mapping[str, str], *, answers: Answers | None
) -> tuple[str, str]:
    """Return result and reason. Raises what dkimpy raises."""
    name = f"{lower_case(tags['s'])}._domainkey.{tags['d']}"
    if not DOMAIN.fullmatch(name):
        return "permerror", "d= or s= is not a name of the DNS"
    signed = [field.strip().lower() for field in tags["h"].split(":")]
    if "from" not in signed or len(signed) * len(message.headers) > _STEPS_MAX:  # 5.4
        return "permerror", "h= does not have From, or has too many names"
    if answers is None:
        return "none", "not checked: the message is too large"
    answer = answers.of((name, "TXT"), tags["d"])
    if answer.failure:
        result = "permerror" if answer.failure == TOO_MANY else answer.undecided
        return result, f"{name}: {answer.failure}"
    if not answer.values:
        return "permerror", f"no key at {name}"
    if message.body is None:
        return UNABLE, NOT_COMPUTED
    return _verified(message, number, tags, record=answer.values[0])


def _verified(
    message: dkim.DKIM, number: int, tags: Mapping[str, str], *, record: bytes
) -> tuple[str, str]:
    """Return result and reason by a key's record. Raises what dkimpy raises."""
    key = parse_record(record.decode("utf-8", "replace"))
    kind, _, digest = tags["a"].partition("-")
    if not key["p"]:
        return "permerror", "the key is revoked"
    if key.get("k", "rsa") != kind or digest not in listed(key.get("h", digest)):
        return "permerror", f"the key is not for {tags['a']}"
    identity = to_ascii_domain(tags.get("i", tags["d"]).rpartition("@")[2])
    if "s" in listed(key.get("t", "")) and identity != tags["d"]:
        return "permerror", "the key is not for subdomains (t=s)"
    public, bits, *_ = dkim.evaluate_pk("", record)
    if kind == "rsa" and (bits > _KEY_BITS_MAX or public["publicExponent"] > _EXPONENT_MAX):
        return "permerror", f"{bits}-bit key, expected at most {_KEY_BITS_MAX} bits"
    if kind == "rsa" and (bits < _KEY_BITS_MIN or digest == "sha1"):
        return "policy", f"{tags['a']} with a {bits}-bit key is not accepted (RFC 8301)"
    if not message.verify(number, dnsfunc=lambda *_, **__: record):
        return "fail", f"it does not match the header, {bits}-bit key"
    form = Relaxed if tags.get("c", "").endswith("/relaxed") else Simple
    size = len(form.canonicalize_body(message.body))
    if int(tags.get("l", size)) < size:
        return "policy", f"only {tags['l']} of {size} octets of the body are signed (l=)"
    return "pass", f"{bits}-bit key"


# all signatures of a message have the same body
Relaxed.canonicalize_body = staticmethod(lru_cache(maxsize=1)(relaxed_body))
Simple.canonicalize_body = staticmethod(lambda body: body.rstrip(b"\r\n") + b"\r\n")
