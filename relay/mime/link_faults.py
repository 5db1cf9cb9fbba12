"""Say what is wrong in the links of a message; nothing is looked up or fetched.

checked_links() lists the links of both bodies with the codes of LINK_PROBLEMS. Time is linear in
the size of the bodies. Nothing raises. RFC 3986 (URI); URL standard 3.5: a host whose last part is
a number is an IPv4 address.
"""

import re
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

from relay.mime.html_tokens import LineNumbers
from relay.mime.links import BodyLink, placed_links_of_html, placed_links_of_text

# What a page says of a link. "other-host" is followed by the host that the text names.
LINK_PROBLEMS = {
    "empty": "leads nowhere",
    "placeholder": "contains a placeholder that nothing has replaced",
    "relative": "is relative: a message has no address to which it could be",
    "script": "is a script or data, which mail programs block",
    "http": "is not encrypted: http",
    "localhost": "leads to the machine of the reader",
    "address": "leads to an IP address",
    "other-host": "has a text that names another host:",
    "blank": "contains white space that is not encoded",
    "invalid": "cannot be read as a URL",
}
_SCRIPTS = frozenset(("javascript", "vbscript", "data"))
_PLACEHOLDER = re.compile(
    r"\{\{|\{%|\$\{|<%|\[\[|\*\||%[A-Z][A-Z0-9_]++%(?![0-9A-Fa-f]{2})|%%[A-Za-z]"
)
_HOST_IN_TEXT = re.compile(
    r"(?:https?://|\bwww\.|^)([a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,24})(?=[/:?#\s]|$)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
_TEXT_CHARACTERS_MAX = 200
_TARGET_CHARACTERS_MAX = 2000


class CheckedLink(Struct, frozen=True):
    """A link with what is wrong in it."""

    target: str  # its beginning
    text: str  # that a reader sees
    part: str  # html or text
    line: int  # in this part, from 1
    problems: tuple[str, ...]  # codes of LINK_PROBLEMS
    other_host: str = ""  # that the text names


def checked_links(html: str, text: str) -> list[CheckedLink]:
    """Return the different links, those with problems first; of the text what the HTML lacks."""
    found: dict[tuple[str, str], CheckedLink] = {}
    targets: set[str] = set()  # of the HTML
    for part, source, links in (
        ("html", html, placed_links_of_html(html)),
        ("text", text, placed_links_of_text(text)),
    ):
        numbers = LineNumbers(source)
        for at, link in links:
            shown = link.text[:_TEXT_CHARACTERS_MAX], link.target[:_TARGET_CHARACTERS_MAX]
            if part == "html":
                targets.add(link.target)
            elif link.target in targets:
                continue
            if shown not in found:
                host = other_host(link)
                problems = tuple(filter(None, _problems(link.target)))
                problems += ("other-host",) if host else ()
                found[shown] = CheckedLink(shown[1], shown[0], part, numbers.at(at), problems, host)
    return sorted(found.values(), key=lambda one: not one.problems)


def other_host(link: BodyLink) -> str:
    """Return the host that the text names if the target has another one, "" otherwise."""
    named = _HOST_IN_TEXT.search(link.text[:_TEXT_CHARACTERS_MAX].strip())
    if named is None:
        return ""
    name, url = named[1].lower(), _split(link.target.strip())
    host = (_host_of(url) or url.path.rpartition("@")[2]).lower() if url else ""
    return "" if host.removeprefix("www.") == name.removeprefix("www.") else name


def _split(target: str) -> SplitResult | None:
    try:
        return urlsplit(target)
    except ValueError:
        return None


def _host_of(url: SplitResult) -> str:
    return (url.hostname or "").rstrip(".")


def _problems(target: str) -> Iterator[str]:
    target = target.strip()
    if target in ("", "#"):
        yield "empty"
    if any(map(str.isspace, target)):
        yield "blank"
    is_unfilled = _PLACEHOLDER.search(target) or _PLACEHOLDER.search(unquote(target))
    if is_unfilled:
        yield "placeholder"
    url = _split(target)
    if url is None:
        yield "invalid"
    elif url.scheme in _SCRIPTS:
        yield "script"
    elif url.scheme in ("http", "https"):
        if url.scheme == "http":
            yield "http"
        yield _problem_of_host(_host_of(url))
    elif is_unfilled or target[:1] in ("", "#"):
        pass  # a place in the message, or nobody knows
    elif not url.scheme:
        yield "relative"


def _problem_of_host(host: str) -> str:
    if not host:
        return "invalid"
    if host == "localhost" or host.endswith(".localhost"):
        return "localhost"
    try:
        address = ip_address(host)
    except ValueError:
        return "address" if _NUMBER.fullmatch(host.rpartition(".")[2]) else ""
    if address.is_loopback or address.is_unspecified:
        return "localhost"
    return "address"
