"""SPF by pyspf, which gets known answers instead of asking the DNS (RFC 7208).

pyspf has the limits of 10 look-ups and 2 void ones. The explanation (exp=) is not fetched.
"""

import re
from typing import Any

import spf

from relay.base.message.authentication_results import AuthResult, clipped
from relay.transport.checks.dmarc import DOMAIN
from relay.transport.checks.wire import Known, Request
from relay.transport.routing.dns_cache import DnsQuestion

_NAME_MAX = 253
_RECORD_OCTETS_MAX = 16 * 1024
_LONG_TERM = re.compile(rb"[^ ]{500}")  # takes pyspf quadratic time


class MissingAnswer(BaseException):  # no handler of pyspf for errors may catch it
    """A question that must be asked first."""

    def __init__(self, question: DnsQuestion) -> None:
        super().__init__(question)
        self.question = question


def sender_result(request: Request, known: Known) -> AuthResult:
    """Return the result for the sender, which is postmaster of HELO for `<>` (2.4).

    Raises MissingAnswer.
    """
    sender = request.sender or f"postmaster@{request.helo}"
    local_part, _, domain = sender.rpartition("@")
    result, reason = _judged(request, sender, (local_part, domain), known)
    return AuthResult("spf", result, reason, {"smtp.mailfrom": clipped(sender)})


def helo_result(request: Request, known: Known) -> AuthResult:
    """Return the result for the name in HELO (2.3). Raises MissingAnswer."""
    sender = f"postmaster@{request.helo}"
    result, reason = _judged(request, sender, ("postmaster", request.helo), known)
    return AuthResult("spf", result, reason, {"smtp.helo": clipped(request.helo)})


def _judged(request: Request, sender: str, parts: tuple[str, str], known: Known) -> tuple[str, str]:
    """Return a result and its reason. `parts` are the local part and the domain of the sender."""
    local_part, domain = parts[0], parts[1].lower()
    if "." not in domain or not DOMAIN.fullmatch(domain):  # 4.3
        return "none", "no domain name"

    def look_up(name: str, kind: str, *_: object) -> list[tuple[DnsQuestion, Any]]:
        if len(name) > _NAME_MAX or not name.isascii():
            return []
        question = (name, kind)
        if question not in known:
            raise MissingAnswer(question)
        values = known[question]
        if values is None:
            raise spf.TempError(f"no answer for {kind} of {name}")
        return [(question, _as_pyspf(value, kind)) for value in values]

    spf.DNSLookup = look_up
    try:
        query = spf.query(i=request.ip, s=f"x@{domain}", h=request.helo, receiver=request.hostname)
        query.s, query.l = sender, local_part  # pyspf would end a quoted local part at its first @
        result, _, reason = query.check()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - pyspf raises many for strange records
        return "permerror", clipped(f"the record cannot be used: {error}")
    if result in ("permerror", "temperror"):
        return result, clipped(reason)
    return result, clipped(query.mechanism or "")


def _as_pyspf(value: bytes, kind: str) -> Any:
    if kind == "TXT":
        if spf.RE_SPF.match(value) and (
            len(value) > _RECORD_OCTETS_MAX or _LONG_TERM.search(value)
        ):
            raise spf.PermError("the record is too long")
        return (value,)
    text = value.decode()
    if kind != "MX":
        return text.rstrip(".")
    preference, _, name = text.partition(" ")
    return int(preference), name
