"""DMARC: does a domain that SPF or DKIM shows belong to the author's, and what if none does.

RFC 9989: the walk up the DNS (4.10), alignment (4.4), records and policies (4.7). Nothing is asked
here: Answers notes the questions whose answers are needed.

SPF or DKIM without an answer counts only if its domain may be aligned: the forger of a message
chooses all other domains.
"""

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from relay.base.message.address import literal_address, lower_case, own_mailbox
from relay.base.message.authentication_results import (
    ABOVE,
    ASKING,
    POLICY,
    UNABLE,
    AuthResult,
    clipped,
    domain_shown,
    may_be_aligned,
)
from relay.base.message.envelope import domain_of
from relay.base.message.header import Header
from relay.formats.read_header import ORIGINATORS_OCTETS_MAX, originators, parse_header, read_text
from relay.transport.checks.checker import TOO_MANY, Known, KnownAnswer
from relay.transport.routing.dns_cache import DnsQuestion

DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?>\.[a-z0-9_-]{1,63})*+")  # with A-labels
_ENDS = re.compile("[<>,;:]")  # of text that may be an address
_NO_DOMAIN = re.compile(r"[^@]*+@[\w\s-]*+")  # "Sales @ Friend"
_LABELS_MAX = 7  # of the names of a walk after the first
_WEAKER = {"reject": "quarantine", "quarantine": "none", "none": "none"}  # what t=y makes of it
_POLICIES = ("p", "sp", "np")
_BELOW = (("sp", "p"), ("np", "sp", "p"))  # of names that exist, and of those that do not
_OPEN = ("pass", "temperror", UNABLE)  # results with which DMARC may pass, the surest first
_NOT_YET = KnownAnswer(failure="no answer yet", is_own=True)


class Answers:
    """The DNS answers of a request. A question without one is noted, and is not answered yet."""

    def __init__(self, known: Known, author: str = "") -> None:
        self.author = author  # the domain of the author
        self.lacking = dict[DnsQuestion, bool]()  # whether it is for an aligned name
        self._known = known

    def of(self, question: DnsQuestion, domain: str) -> KnownAnswer:
        """Return the answer to a question about a domain."""
        if question in self._known:
            return self._known[question]
        is_kept = may_be_aligned(domain, self.author) or self.lacking.get(question, False)
        self.lacking[question] = is_kept
        return _NOT_YET


class _NoAnswerError(Exception):
    """There is no answer to a question, which is needed."""

    def __init__(self, question: DnsQuestion, answer: KnownAnswer) -> None:
        super().__init__(f"{question[1]} of {question[0]}: {answer.failure}")
        self.is_bound = answer.failure == TOO_MANY
        self.result = answer.undecided


class _Verdict(Struct, frozen=True):
    """The result of DMARC, why, and the policy as far as it is known."""

    result: str
    reason: str
    policy: str = ""
    above: str = ""


class _Record(Struct, frozen=True):
    """A DMARC record, and the domain that publishes it."""

    domain: str
    tags: Mapping[str, str]


def author_of(header: Header) -> tuple[str, str]:
    """Return the domain of all addresses in From, with A-labels; or "" and the fault of From."""
    fields = [field for field in header.fields if field[0] == b"from"]
    if len(fields) != 1:
        return "", f"the message has {len(fields) or 'no'} From field{'s' if fields else ''}"
    domains = {domain_of(address) for address in authors_of(*fields[0]) or ()}
    if len(domains) != 1 or not DOMAIN.fullmatch(min(domains)):
        return "", "From has no author, an unclear one, or authors of several domains"
    return domains.pop(), ""


def authors_of(name: bytes, octets: bytes) -> Sequence[str] | None:
    """Return the addresses in a From or Sender field, in lower case with A-labels; None if programs
    may read others. A domain may be an IP address in brackets.
    """
    [field] = originators(Header(((name, octets),)))
    written = [lower_case(person.address) for person in field.addresses]
    addresses = [own_mailbox(person.address) for person in field.addresses]
    is_folded = b"\n" in octets.partition(b":")[0]  # no From for some programs
    if len(octets) > ORIGINATORS_OCTETS_MAX or is_folded or not all(map(_is_sure, addresses)):
        return None
    if written and not field.unread:
        return addresses
    # an odd sign is no fault if each text that may be an address is read as one, also by programs
    # that decode the field first
    texts = (octets.decode("utf-8", "replace"), read_text(parse_header(octets), name.decode()))
    parts = {lower_case(part.strip(" \t\r\n'.")) for text in texts for part in _ENDS.split(text)}
    others = [part for part in parts.difference(written) if "@" in part]
    return addresses if all(written and _NO_DOMAIN.fullmatch(part) for part in others) else None


def _is_sure(address: str) -> bool:
    """Return whether an address has one @, and a domain or an IP address behind it."""
    domain = domain_of(address)
    is_known = DOMAIN.fullmatch(domain) or literal_address(domain)
    return address.count("@") == 1 and bool(is_known)


def walk_questions(domain: str) -> list[DnsQuestion]:
    """Return the questions of the walk from a domain to its top-level domain: at most eight."""
    above = domain.split(".")[1:][-_LABELS_MAX:]
    names = [domain, *[".".join(above[place:]) for place in range(len(above))]]
    return [(f"_dmarc.{name}", "TXT") for name in names if name]


def dmarc_result(fault: str, results: Sequence[AuthResult], answers: Answers) -> AuthResult:
    """Return the result of DMARC; `fault` is that of From, as author_of() returned it.

    `results` are those of SPF and DKIM. A policy that is not known is "temperror" or UNABLE, with
    ABOVE if a name above the author's asks for something.
    """
    if fault:
        return AuthResult("dmarc", "permerror", fault)
    verdict = _judged(answers.author, results, answers)
    properties = {"header.from": answers.author, POLICY: verdict.policy, ABOVE: verdict.above}
    stated = {name: text for name, text in properties.items() if text}
    return AuthResult("dmarc", verdict.result, clipped(verdict.reason), stated)


def _judged(author: str, results: Sequence[AuthResult], answers: Answers) -> _Verdict:
    records, unanswered = _walk(author, answers)
    record = next((record for record in records if record.domain == author), None)
    if record is None and unanswered:
        return _not_known(author, records, unanswered)
    record = record or _inherited(author, records, answers)
    policy, text = _policy(record, author, _BELOW[0]) if record else ("", "")
    if record is None or not policy:
        return _Verdict("none", "no DMARC record")
    reasons, undecided = [text], dict[str, str]()
    for result in sorted(results, key=lambda result: domain_shown(result) != author):
        if "smtp.helo" in result.properties:
            continue
        method, domain = result.method, domain_shown(result)
        name = f"{method.upper()} {domain}".strip()
        if not (domain and result.result in _OPEN):
            reasons.append(f"{name} {result.result}")
            continue
        aligned = _alignment(domain, author, answers, strict=record.tags.get(f"a{method}") == "s")
        if aligned == "fail":
            reasons.append(f"{name} not aligned")
        elif aligned == result.result == "pass":
            return _Verdict("pass", f"{text}, {name} aligned", policy)
        else:
            worse = max(aligned, result.result, key=_OPEN.index)
            undecided.setdefault(worse, f"{text}, {name}: {result.reason}")
    of_missing, why = _policy(record, author, _BELOW[1])
    if of_missing != policy:
        try:
            if not _answer((author, "A"), answers).has_name:
                policy, reasons[0] = of_missing, why
        except _NoAnswerError as error:
            return _not_known(author, [record], [error])
    for open_result in (UNABLE, "temperror"):
        if open_result in undecided:
            return _Verdict(open_result, undecided[open_result], policy)
    return _Verdict("fail", ", ".join(reasons), policy)


def _not_known(
    author: str, above: Sequence[_Record], unanswered: Sequence[_NoAnswerError]
) -> _Verdict:
    """Return the verdict if the policy is not known: sp, p and np of names above may count."""
    error = max(unanswered, key=_badness)
    stated = [_policy(record, author, tags)[0] for record in above for tags in _BELOW]
    asking = next((policy for policy in stated if policy in ASKING), "")
    return _Verdict(error.result, str(error), above=asking)


def _badness(error: _NoAnswerError) -> int:
    return _OPEN.index(error.result)


def _alignment(domain: str, author: str, answers: Answers, *, strict: bool) -> str:
    """Return "pass" or "fail"; "temperror" or UNABLE for a domain that may be aligned."""
    try:
        return "pass" if _is_aligned(domain, author, answers, strict=strict) else "fail"
    except _NoAnswerError as error:
        is_near = domain.split(".")[-2:] == author.split(".")[-2:]
        may_be = is_near or may_be_aligned(domain, author)
        return error.result if may_be and not error.is_bound else "fail"


def _policy(record: _Record, author: str, of_subdomains: Sequence[str]) -> tuple[str, str]:
    """Return what a record says for the author's domain, and how it says it (4.7, 4.10.1).

    `of_subdomains` are the tags that count below the record's domain, the first one first.
    """
    stated = {name: record.tags[name] for name in _POLICIES if name in record.tags}
    if "p" not in stated or not _WEAKER.keys() >= set(stated.values()):
        return ("none", "p=none") if "mailto:" in record.tags.get("rua", "") else ("", "")
    is_below = record.domain != author
    name = next(name for name in (of_subdomains if is_below else _POLICIES) if name in stated)
    policy, text = stated[name], f"{name}={stated[name]}"
    if record.tags.get("t") == "y":
        policy, text = _WEAKER[policy], f"{text}, t=y"
    return policy, f"{text} of {record.domain}" if is_below else text


def _inherited(author: str, records: Sequence[_Record], answers: Answers) -> _Record | None:
    """Return the record above the author's domain that counts for it (4.10.1)."""
    organization = _organization(author, answers)
    own = [record for record in records if record.domain == organization]
    public = [record for record in records[-1:] if record.tags.get("psd") == "y"]
    return next(iter(own + public), None)


def _is_aligned(domain: str, author: str, answers: Answers, *, strict: bool) -> bool:
    """Return whether a domain belongs to the author's (4.4). Raises _NoAnswerError."""
    if strict or domain == author:
        return domain == author
    organization = _organization(author, answers)
    is_inside = f".{domain}".endswith(f".{organization}")  # others need no walk
    return is_inside and _organization(domain, answers) == organization


def _organization(domain: str, answers: Answers) -> str:
    """Return the organizational domain (4.10.2). Raises _NoAnswerError."""
    records, unanswered = _walk(domain, answers)
    if unanswered:
        raise max(unanswered, key=_badness)
    for record in records:
        if record.tags.get("psd") == "n":
            return record.domain
        if record.tags.get("psd") == "y" and record.domain != domain:
            labels = record.domain.count(".") + 2
            return ".".join(domain.split(".")[-labels:])
    return records[-1].domain if records else domain


def _walk(domain: str, answers: Answers) -> tuple[list[_Record], list[_NoAnswerError]]:
    """Return the records from the longest name to the shortest (4.10), and what is not known."""
    records, unanswered = list[_Record](), list[_NoAnswerError]()
    for name, _ in walk_questions(domain):
        try:
            record = _record(name.removeprefix("_dmarc."), answers)
        except _NoAnswerError as error:
            unanswered.append(error)
            continue
        if record is not None:
            records.append(record)
            ends = ("n",) if record.domain == domain else ("n", "y")
            if record.tags.get("psd") in ends:
                break
    return records, unanswered


def _record(domain: str, answers: Answers) -> _Record | None:
    """Return the only DMARC record of a domain."""
    texts = _answer((f"_dmarc.{domain}", "TXT"), answers).values
    tags = [parsed for text in texts if (parsed := _tags(text.decode("utf-8", "replace")))]
    return _Record(domain, tags[0]) if len(tags) == 1 else None


def _tags(text: str) -> dict[str, str]:
    """Return the tags of a record, {} if it is not of DMARC (4.7)."""
    tags = dict[str, str]()
    for tag in text.split(";"):
        name, _, stated = tag.partition("=")
        tags.setdefault(name.strip().lower(), stated.strip())
    is_dmarc = next(iter(tags)) == "v" and tags["v"] == "DMARC1"
    return {name: stated.lower() for name, stated in tags.items()} if is_dmarc else {}


def _answer(question: DnsQuestion, answers: Answers) -> KnownAnswer:
    answer = answers.of(question, answers.author)
    if answer.failure:
        raise _NoAnswerError(question, answer)
    return answer
