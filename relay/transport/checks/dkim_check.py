"""DKIM by dkimpy: the signatures of a message and their keys (RFC 6376, 8301, 8463, 8616).

dkimpy does the arithmetic. What it does not check is checked here first: From in h=, the flags and
hashes of a key, and what would take it long. Its canonical forms of a body, which take quadratic
time and much memory, are replaced by those of `signing`.
"""

import re
from collections.abc import Mapping, Sequence

import dkim
import dkim.canonicalization
from msgspec import Struct

from relay.base.message.address import AddressError, to_ascii_domain
from relay.base.message.authentication_results import AuthResult, clipped
from relay.transport.checks.dmarc import DOMAIN
from relay.transport.checks.wire import Known
from relay.transport.routing.dns_cache import DnsQuestion
from relay.transport.signing.record import RecordError, parse_record
from relay.transport.signing.signature import NAME, relaxed_body

_SIGNATURES_MAX = 5
_WHITE_RUN = re.compile(rb"\s{100}")  # in dkimpy, time is the square of its length
_STEPS_MAX = 1_000_000  # names in h= times fields of the header
_KEY_BITS_MIN, _KEY_BITS_MAX = 1024, 4096  # of RSA (RFC 8301 3.2)
_EXPONENT_BITS_MAX = 64
_MISMATCH = "body hash mismatch"  # how an error of dkimpy begins


class Signature(Struct, frozen=True):
    """A signature of a message: its place among them, its tags, and why it is not checked."""

    number: int
    domain: str
    tags: Mapping[str, str]
    fault: str = ""

    @property
    def question(self) -> DnsQuestion:
        """The question for its key."""
        return f"{self.tags.get('s', '').lower()}._domainkey.{self.domain}", "TXT"

    def result(self, result: str, reason: str) -> AuthResult:
        """Return a result that names this signature."""
        properties = {"header.d": self.domain}
        properties |= {f"header.{tag}": self.tags.get(tag, "") for tag in "sia"}
        properties["header.b"] = "".join(self.tags.get("b", "").split())[:8]
        stated = {name: clipped(value) for name, value in properties.items() if value}
        return AuthResult("dkim", result, clipped(reason), stated)


def signatures_of(message: dkim.DKIM) -> list[Signature]:
    """Return the first signatures, from the top."""
    name = NAME.lower().encode()
    fields = [value for key, value in message.headers if key.lower() == name]
    return [
        _signature(number, field, len(message.headers))
        for number, field in enumerate(fields[:_SIGNATURES_MAX])
    ]


def _signature(number: int, field: bytes, fields: int) -> Signature:
    try:
        tags = parse_record(field.decode("utf-8", "replace"))
        domain = to_ascii_domain(tags.get("d", ""))
    except (RecordError, AddressError) as error:
        return Signature(number, "", {}, str(error))
    signed = [name.strip().lower() for name in tags.get("h", "").split(":")]
    fault = ""
    if not (DOMAIN.fullmatch(domain) and DOMAIN.fullmatch(tags.get("s", "").lower())):
        fault = "d= or s= is not a name of the DNS"
    elif "from" not in signed:  # RFC 6376 5.4
        fault = "h= does not have From"
    elif _WHITE_RUN.search(field) or len(signed) * fields > _STEPS_MAX:
        fault = "the signature or the header is too long"
    return Signature(number, domain, tags, fault)


def signature_result(message: dkim.DKIM, signature: Signature, known: Known) -> AuthResult:
    """Return the result for a signature, whose key is known."""
    if signature.fault:
        return signature.result("permerror", signature.fault)
    records = known[signature.question]
    if not records:
        result = "temperror" if records is None else "permerror"
        name, _ = signature.question
        return signature.result(
            result, f"no {'answer for' if records is None else 'key at'} {name}"
        )
    try:
        return signature.result(*_judged(message, signature, records[0]))
    except MemoryError:
        raise
    except dkim.ValidationError as error:
        text, _, _ = str(error).partition(" (")
        return signature.result("fail" if text == _MISMATCH else "permerror", text)
    except Exception as error:  # noqa: BLE001 - dkimpy and what it calls raise many
        return signature.result("permerror", f"the signature or its key cannot be used: {error}")


def _judged(message: dkim.DKIM, signature: Signature, record: bytes) -> tuple[str, str]:
    """Return result and reason. Raises what dkimpy raises."""
    tags = signature.tags
    key = parse_record(record.decode("utf-8", "replace"))
    if fault := _key_fault(key, tags, signature.domain):
        return "permerror", fault
    public, bits, *_ = dkim.evaluate_pk(signature.question[0], record)
    is_rsa = tags["a"].startswith("rsa")
    if is_rsa and (
        bits > _KEY_BITS_MAX or public["publicExponent"].bit_length() > _EXPONENT_BITS_MAX
    ):
        return "permerror", f"{bits}-bit key, expected at most {_KEY_BITS_MAX}"
    if is_rsa and bits < _KEY_BITS_MIN:
        return "policy", f"{bits}-bit key, expected at least {_KEY_BITS_MIN} (RFC 8301)"
    if tags["a"] == "rsa-sha1":
        return "policy", "rsa-sha1 is not accepted (RFC 8301)"
    if not message.verify(signature.number, dnsfunc=lambda *_, **__: record):
        return "fail", f"the signature does not match the header, {bits}-bit key"
    if "l" in tags:
        is_relaxed = tags.get("c", "").lower().endswith("/relaxed")
        body = (relaxed_body if is_relaxed else _simple_body)(message.body)
        if int(tags["l"]) < len(body):
            return "policy", f"only {tags['l']} of {len(body)} octets of the body are signed (l=)"
    is_test = "y" in _list(key, "t")
    return "pass", f"{bits}-bit key{' in test mode (t=y)' if is_test else ''}"


def _key_fault(key: Mapping[str, str], tags: Mapping[str, str], domain: str) -> str:
    """Return why a key is not for a signature (RFC 6376 3.6.1), "" if it is."""
    kind, _, hash_name = tags.get("a", "").partition("-")
    if not key.get("p"):
        return "the key is revoked"
    if key.get("k", "rsa") != kind or hash_name not in _list(key, "h", hash_name):
        return f"the key is not for {tags.get('a', '')}"
    if not {"*", "email"}.intersection(_list(key, "s", "*")):
        return "the key is not for mail"
    identity = tags.get("i", domain).rpartition("@")[2].lower()
    if "s" in _list(key, "t") and identity != domain:
        return "the key is not for subdomains (t=s)"
    return ""


def _list(key: Mapping[str, str], tag: str, default: str = "") -> Sequence[str]:
    return [value.strip() for value in key.get(tag, default).split(":")]


def _simple_body(body: bytes) -> bytes:
    return body.rstrip(b"\r\n") + b"\r\n"


dkim.canonicalization.Relaxed.canonicalize_body = staticmethod(relaxed_body)
dkim.canonicalization.Simple.canonicalize_body = staticmethod(_simple_body)
