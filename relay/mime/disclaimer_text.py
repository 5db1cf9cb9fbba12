"""A disclaimer, and where its words stand in a text or in HTML.

relay.mime.disclaimer finds the texts of a message and puts the new ones back; here they are strings
without transfer encoding and charset. Time is linear in the size of a text. Nothing raises.
RFC 3676 4 (format=flowed); the HTML standard 13.2.5 (what is a tag).
"""

import re
from collections.abc import Iterable
from html import escape
from itertools import accumulate
from typing import Self

from msgspec import Struct

from relay.mime.html_tokens import html_layout, unescaped

_MARK = "\ufeff"  # a byte order mark stays the first character
_LINE_END = re.compile(r"\r\n|\r|\n")
_SIGNATURE = "-- "  # RFC 3676 4.3: its space stays
_STUFFED = (" ", ">", "From ")  # RFC 3676 4.4
_META_CHARSET = re.compile(
    r"(<meta\b[^<>]{0,200}?\bcharset\s{0,9}=\s{0,9}[\"']?)[A-Za-z0-9_.:-]{1,40}", re.IGNORECASE
)
_META_WITHIN_CHARACTERS = 4096


class Disclaimer(Struct, frozen=True):
    """A text for the texts of messages, and HTML for their HTML; lines end in LF."""

    text: str  # for text/plain
    html: str  # for text/html: a fragment
    at_start: bool  # before what the author wrote, not after it
    text_words: str  # the text as it is searched for
    html_words: str  # the HTML as it is searched for, "" if no text is visible

    @classmethod
    def of(cls, text: str, html: str = "", *, at_start: bool = False) -> Self:
        """Make a disclaimer; without HTML it is the text, escaped, with <br> for line ends."""
        text = _lines(text).strip("\n")
        html = _lines(html).strip("\n") or f"<p>{escape(text)}</p>".replace("\n", "<br>\n")
        words = (_words([text]), _words(_visible(html_layout(html).texts)))
        return cls(text, html, at_start, *("".join(one) for one in words))


def in_text(disclaimer: Disclaimer, text: str, *, is_flowed: bool = False) -> str:
    """Return a text with the disclaimer and a blank line between; its line ends are kept.

    A text that has the words is returned as it is: white space, case and quote marks do not count.
    """
    if _has_words([text], disclaimer.text_words):
        return text
    lines = disclaimer.text.split("\n")
    if is_flowed:
        lines = [_fixed(line) for line in lines]
    line_end = _line_end(text)
    added = line_end.join(lines)
    if not text.strip():
        return text + added + line_end
    if disclaimer.at_start:
        mark = _MARK if text.startswith(_MARK) else ""
        return mark + added + 2 * line_end + text.removeprefix(mark)
    if text.endswith("\n"):
        return text + line_end + added + line_end
    return text + 2 * line_end + added


def _fixed(line: str) -> str:
    """Return a line as format=flowed has one that is not continued."""
    if line == _SIGNATURE:
        return line
    line = line.rstrip(" ")
    return f" {line}" if line.startswith(_STUFFED) else line


def in_html(disclaimer: Disclaimer, html: str) -> str:
    """Return HTML with the disclaimer, in a <div>, as a browser shows it at that place.

    HTML whose visible text has the words is returned as it is; the markup counts if the disclaimer
    has no visible text. HTML that ends inside a tag, a comment or a script gets it before that.
    """
    layout = html_layout(html)
    if disclaimer.html_words:
        has_words = _has_words(_visible(layout.texts), disclaimer.html_words)
    else:
        has_words = _has_words([html], "".join(_words([disclaimer.html])))
    if has_words:
        return html
    place = layout.start if disclaimer.at_start else layout.end
    if html.startswith(_MARK):
        place = max(place, len(_MARK))
    line_end = _line_end(html)
    added = disclaimer.html.replace("\n", line_end)
    return f"{html[:place]}{line_end}<div>{added}</div>{line_end}{html[place:]}"


def with_utf8_meta(html: str) -> str:
    """Return HTML whose <meta> names UTF-8 where it named a charset."""
    head, rest = html[:_META_WITHIN_CHARACTERS], html[_META_WITHIN_CHARACTERS:]
    return _META_CHARSET.sub(r"\1utf-8", head) + rest


def _lines(text: str) -> str:
    """Return a text with LF line ends."""
    return _LINE_END.sub("\n", text)


def _line_end(text: str) -> str:
    """Return how the lines of a text end: CRLF, or LF as in some that are encoded in base64."""
    return "\n" if "\n" in text and "\r\n" not in text else "\r\n"


def _visible(texts: Iterable[str]) -> list[str]:
    return [unescaped(one) for one in texts]


def _words(texts: Iterable[str]) -> list[str]:
    """Return the words in lower case. A quote mark separates words, as white space does."""
    return [word for one in texts for word in one.replace(">", " ").casefold().split()]


def _has_words(texts: Iterable[str], wanted: str) -> bool:
    """Return whether words follow each other in the texts, also where a line end divides one."""
    words = _words(texts)
    joined = "".join(words)
    found = joined.find(wanted)
    if found < 0:
        return False
    ends = {0, *accumulate(map(len, words))}
    while found >= 0:
        if _is_border(joined, found, ends) and _is_border(joined, found + len(wanted), ends):
            return True
        found = joined.find(wanted, found + 1)
    return False


def _is_border(joined: str, place: int, ends: set[int]) -> bool:
    return place in ends or not (joined[place - 1].isalnum() and joined[place].isalnum())
