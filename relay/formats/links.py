"""Find the links and one-time codes in the bodies of a message, and check the links.

checked_links() lists the links of both bodies with the codes of LINK_PROBLEMS. Nothing is looked up
or fetched. Time is linear in the size of the bodies. Nothing raises.
RFC 3986 (URI); RFC 6068 (mailto); URL standard 3.5: a host whose last part is a number is an IPv4
address.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from itertools import islice
from operator import itemgetter
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

from relay.formats import html_tokens

_IN_TEXT = re.compile(r"\b(?:https?://|mailto:)[^\s<>\"'\x00-\x20]+", re.IGNORECASE)
_AFTER_LINK = ".,;:!?)]}'"
_NUMBER = re.compile(r"(?<![\w.,-])\d{4,8}(?![\w-]|[.,]\d)")
_NUMBERS_MAX = 1000  # of one text that are looked at
_CODE_DIGITS = 6  # of most codes
_CODE_WORD = re.compile(
    r"\b(?:code|pin|otp|tan|passcode|one-time|verification|kennwort|passwort|password)\b",
    re.IGNORECASE,
)
_NEAR_CHARACTERS = 60
_SENTENCE_END = re.compile(r"[.!?]\s|\n\s*\n")
_TEXTS_OF_LINK_MAX = 100  # pieces of text between two tags
# The texts for pages, by code. "other-host" is followed by the host that the text names.
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
_PLACEHOLDER = re.compile(
    r"\{\{|\{%|\$\{|<%|\[\[|\*\||%[A-Z][A-Z0-9_]++%(?![0-9A-Fa-f]{2})|%%[A-Za-z]"
)
_HOST_IN_TEXT = re.compile(
    r"(?:https?://|\bwww\.|^)([a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,24})(?=[/:?#\s]|$)",
    re.IGNORECASE,
)
_LAST_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
_TEXT_CHARACTERS_MAX = 200
_TARGET_CHARACTERS_MAX = 2000


class BodyLink(Struct, frozen=True):
    """A link: the text that a reader sees, and where it leads. In a text both are the same."""

    text: str
    target: str


def find_codes(texts: Sequence[str], *, needs_word: bool = False) -> list[str]:
    """Return numbers that look like one-time codes, each once, the most likely first.

    If a word such as "code" or "PIN" is near numbers, these are returned; else the numbers of six
    digits; else those of four to eight digits. With `needs_word`, the last ones, such as the year,
    are not returned.
    """
    numbers = [list(islice(_NUMBER.finditer(text), _NUMBERS_MAX)) for text in texts]
    words = [list(_CODE_WORD.finditer(text)) for text in texts]
    near: list[tuple[int, str]] = []
    for text, digits, near_words in zip(texts, numbers, words, strict=True):
        near += _near_a_word(text, digits, near_words)
    every = [code[0] for digits in numbers for code in digits]
    usual = [code for code in every if len(code) == _CODE_DIGITS]
    others = [] if needs_word else every
    by_distance = [code for _, code in sorted(near, key=itemgetter(0))]
    return list(dict.fromkeys(by_distance or usual or others))


def _near_a_word(
    text: str, numbers: Iterable[re.Match[str]], words: Sequence[re.Match[str]]
) -> Iterator[tuple[int, str]]:
    """Yield the distance and the number of each number near a word.

    A number before the word must be in the same sentence.
    """
    ends = [word.end() for word in words]
    for number in numbers:
        after = bisect_right(ends, number.start())  # the first word after the number
        gaps = [number.start() - words[after - 1].end()] if after else []
        if after < len(words):
            gap = text[number.end() : words[after].start()][: _NEAR_CHARACTERS + 1]
            if not _SENTENCE_END.search(gap):
                gaps.append(len(gap))
        if gaps and min(gaps) <= _NEAR_CHARACTERS:
            yield min(gaps), number[0]


def links_of_html(html: str) -> Iterator[BodyLink]:
    """Yield the links of <a> and <area> in their order, whatever their scheme is."""
    return (link for _, link in placed_links_of_html(html) if link.target)


def link_targets(html: str, text: str) -> list[str]:
    """Return where the links of both bodies lead, each once, in their order."""
    links = (*links_of_html(html), *links_of_text(text))
    return list(dict.fromkeys(link.target for link in links))


def placed_links_of_html(html: str) -> Iterator[tuple[int, BodyLink]]:
    """Yield the place and the link of each link, also of links without a target."""
    target: str | None = None
    texts: list[str] = []
    place = 0
    for token in html_tokens.split_html(html):
        if token.name not in ("a", "area"):
            if not token.name and target is not None and len(texts) < _TEXTS_OF_LINK_MAX:
                texts.append(token.text)
            continue
        if target is not None:
            yield place, BodyLink(_one_line(texts), target)
        target, texts, place = None, [], token.at
        if token.is_end:
            continue
        if (href := html_tokens.tag_attributes(token.text).get("href")) is not None:
            target = html_tokens.attribute_value(href).strip()
        if target is not None and token.name == "area":
            yield place, BodyLink("", target)
            target = None
    if target is not None:
        yield place, BodyLink(_one_line(texts), target)


def _one_line(texts: Iterable[str]) -> str:
    return " ".join(html_tokens.unescaped("".join(texts)).split())


def links_of_text(text: str) -> Iterator[BodyLink]:
    """Yield the URLs in a text in their order, without the punctuation after them."""
    return (link for _, link in placed_links_of_text(text))


def placed_links_of_text(text: str) -> Iterator[tuple[int, BodyLink]]:
    """Yield the place and the link of each link; see links_of_text()."""
    for match in _IN_TEXT.finditer(text):
        target = _without_punctuation(match[0])
        yield match.start(), BodyLink(target, target)


def _without_punctuation(url: str) -> str:
    """Return the URL without the punctuation after it; a ")" with a "(" in it is no such."""
    end, unopened = len(url), url.count(")") - url.count("(")
    while (last := url[end - 1]) in _AFTER_LINK and (last != ")" or unopened > 0):
        unopened -= last == ")"
        end -= 1
    return url[:end]


def text_of_html(html: str) -> str:
    """Return the texts of a document, each followed by a space, to search for codes in them."""
    return html_tokens.unescaped(
        " ".join(token.text for token in html_tokens.split_html(html) if not token.name)
    )


class CheckedLink(Struct, frozen=True):
    """A link and its faults."""

    target: str  # its beginning
    text: str  # that a reader sees
    part: str  # html or text
    line: int  # in this part, from 1
    problems: tuple[str, ...]  # codes of LINK_PROBLEMS
    other_host: str = ""  # that the text names


def checked_links(html: str, text: str) -> list[CheckedLink]:
    """Return the different links, those with problems first.

    Links of the text are left out if the HTML has the same target.
    """
    checked: dict[tuple[str, str], CheckedLink] = {}
    targets: set[str] = set()  # of the HTML
    for part, source, links in (
        ("html", html, placed_links_of_html(html)),
        ("text", text, placed_links_of_text(text)),
    ):
        numbers = html_tokens.LineNumbers(source)
        for at, link in links:
            key = link.text[:_TEXT_CHARACTERS_MAX], link.target[:_TARGET_CHARACTERS_MAX]
            if part == "html":
                targets.add(link.target)
            elif link.target in targets:
                continue
            if key not in checked:
                host = other_host(link)
                problems = tuple(filter(None, _problems(link.target)))
                problems += ("other-host",) if host else ()
                checked[key] = CheckedLink(key[1], key[0], part, numbers.at(at), problems, host)
    return sorted(checked.values(), key=lambda link: not link.problems)


def other_host(link: BodyLink) -> str:
    """Return the host that the text names if the target has a different host, else ""."""
    match = _HOST_IN_TEXT.search(link.text[:_TEXT_CHARACTERS_MAX].strip())
    if match is None:
        return ""
    name, url = match[1].lower(), _split(link.target)
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
    elif url.scheme in {"javascript", "vbscript", "data"}:
        yield "script"
    elif url.scheme in ("http", "https"):
        if url.scheme == "http":
            yield "http"
        yield _problem_of_host(_host_of(url))
    elif is_unfilled or target[:1] in ("", "#"):
        pass  # an anchor in the message, or a placeholder that was not replaced
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
        return "address" if _LAST_NUMBER.fullmatch(host.rpartition(".")[2]) else ""
    if address.is_loopback or address.is_unspecified:
        return "localhost"
    return "address"
