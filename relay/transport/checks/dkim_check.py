"""DKIM by dkimpy: the signatures of a message and their keys (RFC 6376, 8301, 8463, 8616).

dkimpy does the arithmetic. What it does not check is checked here first: From in h=, the flags and
hashes of a key, and what would take it long. Its canonical forms of a body, which take quadratic
time and much memory, are replaced by those of `signing`.
"""

import re
from collections.abc import Mapping, Sized

import dkim
import dkim.canonicalization
from msgspec import Struct

from relay.base.message.address import AddressError, to_ascii_domain
from relay.base.message.authentication_results import AuthResult, clipped
from relay.transport.checks.checker import Known
from relay.transport.checks.dmarc import DOMAIN
from relay.transport.routing.dns_cache import DnsQuestion
from relay.transport.signing.record import RecordError, parse_record
from relay.transport.signing.signature import NAME, relaxed_body

_SIGNATURES_MAX = 5
_WHITE_RUN = re.compile(rb"\s{100}")  # in dkimpy, time is the square of its length
_STEPS_MAX = 1_000_000  # names in h= times fields of the header
_KEY_BITS_MIN, _KEY_BITS_MAX = 1024, 4096  # of RSA (RFC 8301 3.2)
_EXPONENT_MAX = 1 << 64


class Signature(Struct, frozen=True):
    """A signature of a message: its place among them, its tags, and why it is not checked."""

    number: int
    tags: Mapping[str, str] = {}
    domain: str = ""
    fault: str = ""

    @property
    def question(self) -> DnsQuestion:
        """The question for its key."""
        return f"{self.tags['s'].lower()}._domainkey.{self.domain}", "TXT"

    def result(self, result: str, reason: str) -> AuthResult:
        """Return a result that names this signature."""
        values = {"d": self.domain, **{tag: self.tags.get(tag, "") for tag in "sia"}}
        values["b"] = "".join(self.tags.get("b", "").split())[:8]
        properties = {f"header.{tag}": clipped(value) for tag, value in values.items() if value}
        return AuthResult("dkim", result, clipped(reason), properties)


def signatures_of(header: bytes) -> tuple[dkim.DKIM, list[Signature]]:
    """Return a message for dkimpy, without its body, and its first signatures from the top."""
    try:
        message = dkim.DKIM(header)
    except (dkim.DKIMException, IndexError):  # the first line may continue a field
        return dkim.DKIM(), [Signature(0, fault="the header has a line that is no field")]
    name, fields = NAME.lower().encode(), message.headers
    values = [value for field, value in fields if field.lower() == name][:_SIGNATURES_MAX]
    return message, [_signature(number, value, fields) for number, value in enumerate(values)]


def _signature(number: int, field: bytes, fields: Sized) -> Signature:
    try:
        tags = parse_record(field.decode("utf-8", "replace"))
        domain = to_ascii_domain(tags.get("d", ""))
    except (RecordError, AddressError) as error:
        return Signature(number, fault=str(error))
    signed = [name.strip().lower() for name in tags.get("h", "").split(":")]
    fault = ""
    if not (DOMAIN.fullmatch(domain) and DOMAIN.fullmatch(tags.get("s", "").lower())):
        fault = "d= or s= is not a name of the DNS"
    elif "from" not in signed:  # RFC 6376 5.4
        fault = "h= does not have From"
    elif _WHITE_RUN.search(field) or len(signed) * len(fields) > _STEPS_MAX:
        fault = "the signature or the header is too long"
    return Signature(number, tags, domain, fault)


def signature_result(message: dkim.DKIM, signature: Signature, known: Known) -> AuthResult:
    """Return the result for a signature; its key was asked for unless the message is too large."""
    if signature.fault:
        return signature.result("permerror", signature.fault)
    if signature.question not in known:
        return signature.result("none", "not checked: the message is too large")
    records, (name, _) = known[signature.question], signature.question
    if not records:
        is_open = records is None
        text = f"no answer for {name}" if is_open else f"no key at {name}"
        return signature.result("temperror" if is_open else "permerror", text)
    try:
        return signature.result(*_judged(message, signature, records[0]))
    except MemoryError:
        raise
    except dkim.ValidationError as error:
        text, _, _ = str(error).partition(" (")
        return signature.result("fail" if text.startswith("body hash") else "permerror", text)
    except Exception as error:  # noqa: BLE001 - dkimpy and what it calls raise many
        return signature.result("permerror", f"the signature or its key cannot be used: {error}")


def _judged(message: dkim.DKIM, signature: Signature, record: bytes) -> tuple[str, str]:
    """Return result and reason. Raises what dkimpy raises."""
    tags, key = signature.tags, parse_record(record.decode("utf-8", "replace"))
    kind, _, digest = tags["a"].partition("-")
    if not key.get("p"):
        return "permerror", "the key is revoked"
    if key.get("k", "rsa") != kind or digest not in key.get("h", digest).split(":"):
        return "permerror", f"the key is not for {tags['a']}"
    identity = tags.get("i", signature.domain).rpartition("@")[2].lower()
    if "s" in key.get("t", "").split(":") and identity != signature.domain:
        return "permerror", "the key is not for subdomains (t=s)"
    public, bits, *_ = dkim.evaluate_pk(signature.question[0], record)
    if kind == "rsa":
        if bits > _KEY_BITS_MAX or public["publicExponent"] > _EXPONENT_MAX:
            return "permerror", f"{bits}-bit key, expected at most {_KEY_BITS_MAX} bits"
        if bits < _KEY_BITS_MIN or digest == "sha1":
            return "policy", f"{tags['a']} with a {bits}-bit key is not accepted (RFC 8301)"
    if not message.verify(signature.number, dnsfunc=lambda *_, **__: record):
        return "fail", f"it does not match the header, {bits}-bit key"
    if "l" in tags:
        is_relaxed = tags.get("c", "").endswith("/relaxed")
        size = len(relaxed_body(message.body) if is_relaxed else _simple_body(message.body))
        if int(tags["l"]) < size:
            return "policy", f"only {tags['l']} of {size} octets of the body are signed (l=)"
    return "pass", f"{bits}-bit key"


def _simple_body(body: bytes) -> bytes:
    return body.rstrip(b"\r\n") + b"\r\n"


dkim.canonicalization.Relaxed.canonicalize_body = staticmethod(relaxed_body)
dkim.canonicalization.Simple.canonicalize_body = staticmethod(_simple_body)
