"""Read the values of Authentication-Results fields (RFC 8601 2.2), whatever they contain.

Text that is no result is skipped; results beyond RESULTS_MAX are ignored. Time is linear.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct, convert

from relay.base.message.envelope import domain_of

RESULTS_MAX = 50  # of a message
_OCTETS_MAX = 16384  # of a value
_TEXT_CHARACTERS_MAX = 200  # of a reason
# more than an address has, since a cut domain would be another one; less than a line may have
PROPERTY_CHARACTERS_MAX = 480
_TOKEN = re.compile(r'"(?P<quoted>(?>[^"\\]|\\.)*+)(?:"|\Z)|[();=]|[^\s();="]++', re.DOTALL)
_IN_COMMENT = re.compile(r"\\.|[()]", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_KEY_BITS = re.compile(r"\b(\d{3,5})-bit key\b")  # as filters write it in a comment
_POLICY = re.compile(r"\b(?:p|policy)=([a-z]{1,20})\b", re.IGNORECASE | re.ASCII)
_WORD = "word"
POLICY = "policy.dmarc"  # the property: what the author's domain asks for, once it is known
ABOVE = "policy.above"  # the property: what a name above it asks for, as long as it is not known
ASKING = ("quarantine", "reject")  # policies that forgeries meet
_PROVEN = {"spf": "smtp.mailfrom", "dkim": "header.d"}  # the property whose domain a pass proves
_Token = tuple[str, str]  # its kind: a sign, "(" of a comment, or a word; its text


UNABLE = "unable"  # a result: this relay was not able to check; in the field temperror
_OPEN = ("temperror", UNABLE)


class AuthResult(Struct, frozen=True):
    """The result of a filter by one method, such as "spf"; both in lower case."""

    method: str
    result: str
    reason: str = ""  # the reason and the comments in the field
    properties: Mapping[str, str] = {}  # such as "header.from"

    def domain(self, name: str) -> str:
        """Return the domain of a property, "" without it."""
        return self.properties.get(name, "").rpartition("@")[2]


def read_results(values: Sequence[bytes]) -> tuple[AuthResult, ...]:
    """Return the results in these fields."""
    results: list[AuthResult] = []
    for value in values:
        groups: list[list[_Token]] = [[]]
        for token in _tokens(value[:_OCTETS_MAX].decode("utf-8", "replace")):
            if token[0] == ";":
                groups.append([])
            else:
                groups[-1].append(token)
        results += filter(None, map(_result, groups[1:]))  # the first one is the id
    return tuple(results[:RESULTS_MAX])


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while token := _TOKEN.search(text, at):
        at = token.end()
        if token["quoted"] is not None:
            yield _WORD, _ESCAPED.sub(r"\1", token["quoted"])
        elif token[0] == "(":
            start, depth = at, 1
            marks = _IN_COMMENT.finditer(text, at)
            while depth and (mark := next(marks, None)):
                depth += {"(": 1, ")": -1}.get(mark[0], 0)
                at = mark.end()
            at = len(text) if depth else at
            yield "(", text[start : at if depth else at - 1]
        else:
            yield (token[0] if token[0] in ");=" else _WORD), token[0]


def _result(tokens: Sequence[_Token]) -> AuthResult | None:
    """Return a result, `method[/version]=result`, with its properties; None if it is none."""
    comments = [text for kind, text in tokens if kind == "("]
    rest = [token for token in tokens if token[0] != "("]
    pairs = [
        (name.lower(), clipped(value, PROPERTY_CHARACTERS_MAX))
        for (before, name), (sign, _), (after, value) in zip(rest, rest[1:], rest[2:], strict=False)
        if sign == "=" and before == after == _WORD
    ]
    if not pairs or rest[1][0] != "=":
        return None
    (method, result), *others = pairs
    properties = dict(others)
    said = [properties.pop("reason", ""), *comments]
    reason = clipped(" ".join(" ".join(said).split()))
    return AuthResult(method.partition("/")[0], result.lower(), reason, properties)


def clipped(text: str, characters_max: int = _TEXT_CHARACTERS_MAX) -> str:
    """Return the text of a result, without characters that are not printable."""
    return "".join([char if char.isprintable() else "?" for char in text[:characters_max]])


def is_of_helo(result: AuthResult) -> bool:
    """Return whether this is SPF's result for the name in EHLO, not for the sender."""
    return bool(result.domain("smtp.helo") and not result.domain("smtp.mailfrom"))


def is_aligned(results: Sequence[AuthResult]) -> bool:
    """Return whether DMARC passed, or SPF or DKIM for the author's very domain.

    The second counts for domains without a DMARC record.
    """
    for result in results:
        if result.method == "dmarc":
            author, is_none = domain_of(f"@{result.domain('header.from')}"), result.result == "none"
            return result.result == "pass" or (is_none and author in proven_domains(results))
    return False


def may_be_aligned(domain: str, author: str) -> bool:
    """Return whether a domain is the author's, or one of both is below the other.

    That is alignment as long as no DMARC record is known.
    """
    own, other = f".{domain}", f".{author}"
    return bool(domain and author) and (own.endswith(other) or other.endswith(own))


def has_aligned_pass(results: Sequence[AuthResult]) -> bool:
    """Return whether DMARC passed; as long as no record is known, an aligned SPF or DKIM."""
    for result in results:
        if result.method == "dmarc":
            is_open = result.result in _OPEN and not result.properties.get(POLICY)
            author = result.domain("header.from")
            passed = proven_domains(results) if is_open else ()
            return result.result == "pass" or any(may_be_aligned(name, author) for name in passed)
    return False


def proof_of(domain: str, results: Sequence[AuthResult]) -> str:
    """Return "pass" if DMARC passed for a domain, or else SPF or DKIM for it or a domain above it;
    "temperror" if another attempt may show that; else "fail".
    """
    author, dmarc = "", ""
    for result in results:
        if result.method == "dmarc":
            author, dmarc = domain_of(f"@{result.domain('header.from')}"), result.result
    if author == domain and dmarc in ("pass", "fail"):
        return dmarc
    if any(f".{domain}".endswith(f".{name}") for name in proven_domains(results)):
        return "pass"
    is_open = dmarc in _OPEN and author in ("", domain)
    for result in results:
        is_open |= result.result in _OPEN and may_be_aligned(domain_shown(result), domain)
    return "temperror" if is_open else "fail"


def may_be_honest(results: Sequence[AuthResult]) -> bool:
    """Return whether another attempt may show that a message, for which there is no pass, is no
    forgery; `results` are those of this relay, DMARC last.
    """
    properties, result = results[-1].properties, results[-1].result
    if result not in _OPEN or has_aligned_pass(results):
        return False
    policy = properties.get(POLICY) or properties.get(ABOVE)
    return policy in ASKING or (result == UNABLE and not policy)


def proven_domains(results: Sequence[AuthResult]) -> set[str]:
    """Return the domains for which SPF of the sender, or DKIM, passed; lower case, A-labels."""
    return {domain_shown(result) for result in results if result.result == "pass"} - {""}


def domain_shown(result: AuthResult) -> str:
    """Return the domain that a pass of SPF of the sender, or of DKIM, proves; else ""."""
    return domain_of(f"@{result.domain(_PROVEN.get(result.method, ''))}")


def checks_of(results: Sequence[AuthResult]) -> dict[str, Any] | None:
    """Return the `checks` of a journey, None where none of its methods has a result."""
    spf = [result for result in results if result.method == "spf"]
    of_helo = [result for result in spf if is_of_helo(result)]
    of_sender = [result for result in spf if result not in of_helo]
    dmarc = [result for result in results if result.method == "dmarc"]
    dkim = [
        {
            "domain": result.domain("header.d") or result.domain("header.i"),
            "selector": result.properties.get("header.s", ""),
            "result": result.result,
            "reason": result.reason,
            "key_bits": int(bits[1]) if (bits := _KEY_BITS.search(result.reason)) else None,
        }
        for result in results
        if result.method == "dkim"
    ]
    if not (spf or dmarc or dkim):
        return None
    return {
        "spf": _first(of_sender, "smtp.mailfrom"),
        "helo": _first(of_helo, "smtp.helo"),
        "dkim": dkim,
        "dmarc": _first(dmarc, "header.from", policy=True),
        "aligned": is_aligned(results) if dmarc else None,
    }


class _Check(Struct, frozen=True):
    """A result in the `checks` of a journey; others wrote those that are stored."""

    result: str = ""
    domain: str = ""
    reason: str = ""


class _Checks(Struct, frozen=True):
    """The `checks` of a journey."""

    spf: _Check | None = None
    helo: _Check | None = None
    dkim: tuple[_Check, ...] = ()
    dmarc: _Check | None = None


def check_words(checks: Mapping[str, Any]) -> str:
    """Return the `checks` of a journey as text, such as "SPF pass for a.test, DMARC none"; "" for
    what is none.
    """
    try:
        read = convert(checks, _Checks)
    except ValueError:
        return ""
    signatures = [("DKIM", signature) for signature in read.dkim]
    rows = (("SPF", read.spf), ("SPF of HELO", read.helo), *signatures, ("DMARC", read.dmarc))
    texts = []
    for name, row in rows:
        if row is not None:
            domain = f" for {row.domain}" if row.domain else ""
            reason = f" ({row.reason})" if row.reason else ""
            texts.append(f"{name} {row.result}{domain}{reason}")
    return ", ".join(texts)


def _first(
    results: Sequence[AuthResult], name: str, *, policy: bool = False
) -> dict[str, Any] | None:
    if not results:
        return None
    result = results[0]
    check = {"result": result.result, "domain": result.domain(name), "reason": result.reason}
    if policy:
        stated = _POLICY.search(result.reason)
        check["policy"] = result.properties.get(POLICY, stated[1].lower() if stated else "")
    return check
