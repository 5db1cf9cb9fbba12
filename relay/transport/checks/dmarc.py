"""DMARC: does a domain that SPF or DKIM shows belong to the author's, and what if none does.

RFC 9989: the walk up the DNS (4.10), alignment (4.4), records and policies (4.7). Nothing is asked
here: Unanswered has the questions whose answers are needed.

A temporary error of SPF or DKIM counts only if its domain is aligned: the forger of a message
chooses all other domains.
"""

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from relay.base.message.address import ascii_address
from relay.base.message.authentication_results import AuthResult, clipped
from relay.base.message.header import Header
from relay.formats.read_header import originators
from relay.transport.checks.checker import Known, KnownAnswer
from relay.transport.routing.dns_cache import DnsQuestion

DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?>\.[a-z0-9_-]{1,63})*+")  # with A-labels
_LABELS_MAX = 7  # of the names of a walk after the first
_WEAKER = {"reject": "quarantine", "quarantine": "none", "none": "none"}  # what t=y makes of it
_POLICIES = ("p", "sp", "np")


class Unanswered(BaseException):
    """The arguments are questions that must be asked first. No handler of errors catches it."""


class _NoAnswerError(Exception):
    """The name servers gave no answer that is needed."""


class _Record(Struct, frozen=True):
    """A DMARC record, and the domain that publishes it."""

    domain: str
    tags: Mapping[str, str]


def author_of(header: Header) -> tuple[str, str]:
    """Return the domain of all addresses in From, with A-labels; or "" and the fault of From."""
    fields = tuple([field for field in header.fields if field[0] == b"from"])
    if len(fields) != 1:
        return "", f"the message has {len(fields) or 'no'} From field{'s' if fields else ''}"
    [from_] = originators(Header(fields))
    addresses = [ascii_address(person.address) for person in from_.addresses]
    domains = {address.rpartition("@")[2].lower() for address in addresses}
    # a name with an odd sign is no fault if no program can read another address
    is_unclear = from_.unread and fields[0][1].count(b"@") != 1
    if is_unclear or len(domains) != 1 or not DOMAIN.fullmatch(min(domains)):
        return "", "From has no author, an unclear one, or authors of several domains"
    return min(domains), ""


def walk_questions(domain: str) -> list[DnsQuestion]:
    """Return the questions of the walk from a domain to its top-level domain: at most eight."""
    above = domain.split(".")[1:][-_LABELS_MAX:]
    names = [domain, *[".".join(above[place:]) for place in range(len(above))]]
    return [(f"_dmarc.{name}", "TXT") for name in names if name]


def dmarc_result(
    author: str, fault: str, results: Sequence[AuthResult], *, known: Known
) -> AuthResult:
    """Return the result of DMARC for what author_of() returned.

    `results` are those of SPF and DKIM. Raises Unanswered.
    """
    if fault:
        return AuthResult("dmarc", "permerror", fault)
    properties = {"header.from": author}
    try:
        result, policy, reason = _judged(author, results, known)
    except _NoAnswerError as error:
        result, policy, reason = "temperror", "", str(error)
    if policy:
        properties["policy.dmarc"] = policy
    return AuthResult("dmarc", result, clipped(reason), properties)


def _judged(author: str, results: Sequence[AuthResult], known: Known) -> tuple[str, str, str]:
    """Return the result, the policy and the reason."""
    record = _record(author, known) or _inherited(author, known)
    policy, text = _policy(record, author, ("sp", "p")) if record else ("", "")
    if record is None or not policy:
        return "none", "", "no DMARC record"
    reasons, undecided = [text], list[str]()
    for result in sorted(results, key=lambda result: _domain_of(result) != author):
        if "smtp.helo" in result.properties:
            continue
        method, domain = result.method, _domain_of(result)
        name = f"{method.upper()} {domain}".strip()
        is_open = result.result in ("pass", "temperror")
        strict = record.tags.get(f"a{method}") == "s"
        if not (domain and is_open):
            reasons.append(f"{name} {result.result}")
        elif not _is_aligned(domain, author, known, strict=strict):
            reasons.append(f"{name} not aligned")
        elif result.result == "pass":
            return "pass", policy, f"{text}, {name} aligned"
        else:
            undecided.append(f"{text}, {name}: {result.reason}")
    if (
        "np" in record.tags
        and record.domain != author
        and not _answer((author, "A"), known).has_name
    ):
        policy, reasons[0] = _policy(record, author, ("np",))
    if undecided:
        return "temperror", "", undecided[0]
    return "fail", policy, ", ".join(reasons)


def _domain_of(result: AuthResult) -> str:
    return result.domain("header.d" if result.method == "dkim" else "smtp.mailfrom").lower()


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


def _inherited(author: str, known: Known) -> _Record | None:
    """Return the record above the author's domain that counts for it (4.10.1)."""
    organization, records = _organization(author, known), _walk(author, known)
    own = [record for record in records if record.domain == organization]
    public = [record for record in records[-1:] if record.tags.get("psd") == "y"]
    return next(iter(own + public), None)


def _is_aligned(domain: str, author: str, known: Known, *, strict: bool) -> bool:
    """Return whether a domain belongs to the author's (4.4)."""
    if strict or domain == author:
        return domain == author
    organization = _organization(author, known)
    is_inside = f".{domain}".endswith(f".{organization}")  # others need no walk
    return is_inside and _organization(domain, known) == organization


def _organization(domain: str, known: Known) -> str:
    """Return the organizational domain (4.10.2)."""
    records = _walk(domain, known)
    for record in records:
        if record.tags.get("psd") == "n":
            return record.domain
        if record.tags.get("psd") == "y" and record.domain != domain:
            labels = record.domain.count(".") + 2
            return ".".join(domain.split(".")[-labels:])
    return records[-1].domain if records else domain


def _walk(domain: str, known: Known) -> list[_Record]:
    """Return the records from the longest name to the shortest (4.10)."""
    questions = walk_questions(domain)
    if missing := [question for question in questions if question not in known]:
        raise Unanswered(*missing)
    records = list[_Record]()
    for name, _ in questions:
        record = _record(name.removeprefix("_dmarc."), known)
        if record is not None:
            records.append(record)
            ends = ("n",) if record.domain == domain else ("n", "y")
            if record.tags.get("psd") in ends:
                break
    return records


def _record(domain: str, known: Known) -> _Record | None:
    """Return the only DMARC record of a domain."""
    texts = _answer((f"_dmarc.{domain}", "TXT"), known).values
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


def _answer(question: DnsQuestion, known: Known) -> KnownAnswer:
    if question not in known:
        raise Unanswered(question)
    if failure := known[question].failure:
        raise _NoAnswerError(f"{question[1]} of {question[0]}: {failure}")
    return known[question]
