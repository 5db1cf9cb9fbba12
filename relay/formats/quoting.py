"""Quote a message in a reply or forward: a comment, the block From, Sent, To, Subject, the body.

The quote has the type of the original's body, text or HTML, and its block is in English, as in
Outlook. The HTML of the original is written from its tags and texts: only listed elements,
attributes and kinds of links remain, all text is escaped, and style sheets, scripts, forms and
comments are dropped. A quote can therefore not run code, hide or cover the comment before it, or
look different after a forward. Time and memory are linear in the size of the body; no tree is
built. If the original is longer than QUOTE_CHARACTERS_MAX, its beginning is quoted, and a line says
so. Nothing raises.
The HTML standard 13.2.5 (tokenization), 13.3 (serializing).

unique_body() returns the text above the quoted message. The quotation begins where a common mail
program marks it: Outlook, Gmail, Apple Mail, Thunderbird, and Relay.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from html import escape

from relay.base.message.properties import EmailAddress, MessageProperties
from relay.base.message.status import one_line
from relay.base.phrases import words_in
from relay.formats.html_tokens import HtmlToken, attribute_value, split_html, tag_attributes
from relay.formats.read_mime import TEXT_OCTETS_MAX
from relay.formats.safe_markup import ATTRIBUTES, ELEMENTS, safe_style

QUOTE_CHARACTERS_MAX = TEXT_OCTETS_MAX
MARKUP_MAX = 500_000  # tags, attributes and declarations of style together: about two seconds
_VALUE_CHARACTERS_MAX = 8192
_CHARACTER_OCTETS_MAX = 4
_REST = "[The rest of the original message is not quoted.]"
_RULE = "_" * 32
_HTML_START = (
    '<html><head><meta http-equiv="Content-Type" content="text/html; charset=utf-8"></head><body>'
)
_HTML_RULE = '<hr tabindex="-1" style="display:inline-block; width:98%">'
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = words_in(
    "January February March April May June July August September October November December"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_MAX = 253_370_764_800  # in the year 9999, so that any time zone can be added

_WRITTEN_AS = {"xmp": "pre", "listing": "pre", "plaintext": "pre"}
_LINKS = {
    "href": re.compile(r"(?:https?|ftp|mailto|tel|cid):", re.IGNORECASE),
    "src": re.compile(r"https?:|cid:|data:image/(?:png|gif|jpeg|webp|bmp)[;,]", re.IGNORECASE),
}
_IN_URL = re.compile(r"[\x00-\x1f\x7f]+")
_HTML = re.compile(
    r"<hr tabindex=\"-1\"|<blockquote[^<>]{0,200}?type=\"?cite"
    r"|<div[^<>]{0,200}?(?:id=\"(?:x_)?(?:divRplyFwdMsg|appendonsend|mail-editor-reference-message)"
    r"|class=\"(?:gmail_quote|moz-cite-prefix|moz-forward-container|yahoo_quoted|protonmail_quote)"
    r"|border-top: ?solid #(?:E1E1E1|B5C4DF) 1\.0pt)",
    re.IGNORECASE,
)
_TEXT = re.compile(
    r"^(?:[ \t]*+-{2,20} ?(?:Original|Forwarded|Urspr\u00fcngliche|Weitergeleitete) [^\n]{1,40}-"
    r"|_{20,}+[ \t]*+\r?\n(?=[^\n:]{2,40}:)"
    r"|(?:On|Am|Le|El|Il|Op|Den) [^\n]{5,200}(?:\n[^\n]{0,80})?:[ \t]*+\r?\n\s*+>)",
    re.MULTILINE,
)


def quoted_body(
    original: MessageProperties, *, comment: str, sent_us: int, time_zone: tzinfo
) -> str:
    """Return the body of a reply to `original`, or of a forward; its type is that of the original.

    HTML is a complete document. `comment` is text; `sent_us` is in microseconds since 1970.
    """
    block = list(_block(original, _sent(sent_us, time_zone)))
    if original.body_type != "html":
        return _quoted_text(original.body, comment=comment, block=block)
    return _quoted_html(original.body, comment=comment, block=block)


def _is_longer(body: str) -> bool:
    """Return whether only a part of the original is quoted, or read_mime() read only a part."""
    if len(body) > QUOTE_CHARACTERS_MAX:
        return True
    return len(body.encode("utf-8", "replace")) > TEXT_OCTETS_MAX - _CHARACTER_OCTETS_MAX


def _block(original: MessageProperties, sent: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the block, each value on one line."""
    author = original.from_ or original.sender
    if author is not None:
        yield "From", _person(author)
    yield "Sent", sent
    for name, people in (("To", original.to), ("Cc", original.cc)):
        if people:
            yield name, "; ".join(map(_person, people))
    yield "Subject", one_line(original.subject)


def _person(person: EmailAddress) -> str:
    name, address = one_line(person.name), one_line(person.address)
    return f"{name} <{address}>" if name and address and name != address else name or address


def _sent(time_us: int, time_zone: tzinfo) -> str:
    """Return a time such as "Friday, November 20, 2026 9:21 AM (UTC+01:00)"."""
    seconds = min(time_us // 1_000_000, _SECONDS_MAX)
    at = (_EPOCH + timedelta(seconds=seconds)).astimezone(time_zone)
    offset = at.strftime("%z")
    zone = "UTC" if offset in ("", "+0000") else f"UTC{offset[:3]}:{offset[3:5]}"
    half = "AM" if at.hour < 12 else "PM"
    day = f"{_DAYS[at.weekday()]}, {_MONTHS[at.month - 1]} {at.day}, {at.year}"
    return f"{day} {at.hour % 12 or 12}:{at.minute:02} {half} ({zone})"


# -- text


def _quoted_text(body: str, *, comment: str, block: list[tuple[str, str]]) -> str:
    quoted = body[:QUOTE_CHARACTERS_MAX].replace("\0", "")
    lines = [
        _lines(comment).replace("\n", "\r\n"),
        "",
        _RULE,
        *(f"{name}: {value}" for name, value in block),
        "",
        quoted,
    ]
    return "\r\n".join([*lines, _REST] if _is_longer(body) else lines)


# -- HTML


def _quoted_html(body: str, *, comment: str, block: list[tuple[str, str]]) -> str:
    lines = "<br>\r\n".join(f"<b>{name}:</b> {escape(value)}" for name, value in block)
    return "".join(
        (
            _HTML_START,
            f"<div>{_html_of_text(comment)}</div>\r\n" if comment else "",
            _HTML_RULE,
            f'<div id="divRplyFwdMsg" dir="ltr">{lines}<div>&nbsp;</div></div>\r\n',
            *_safe_html(body),
            "</body></html>",
        )
    )


def _html_of_text(text: str) -> str:
    """Return a text as HTML, with its lines and spaces."""
    escaped = escape(text, quote=False).replace("  ", " &nbsp;")
    return _lines(escaped).replace("\n", "<br>\r\n")


def _lines(text: str) -> str:
    """Return a text with LF line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _safe_html(html: str) -> Iterator[str]:
    """Yield the safe HTML of a document, for use inside another document."""
    source = html[:QUOTE_CHARACTERS_MAX].encode("utf-8", "replace").decode().replace("\0", "")
    writer = _SafeWriter()
    for token in split_html(_lines(source)):
        if written := writer.written(token):
            yield written
        if writer.is_full:
            break
    if writer.has_body:
        yield "</div>"
    if writer.is_full or _is_longer(html):
        yield f"<p>{_REST}</p>"


class _SafeWriter:
    """Writes tokens as safe HTML; <body> becomes a <div>. At a limit, `is_full` becomes true."""

    def __init__(self) -> None:
        self.is_full = False
        self.has_body = False
        self._size = self._markup = 0

    def written(self, token: HtmlToken) -> str:
        """Return a token as safe HTML, "" if it is dropped."""
        if token.name:
            self._markup += 1
            written = self._tag(token)
        else:
            written = token.text.replace("<", "&lt;")
        self._size += len(written)
        self.is_full = self._markup > MARKUP_MAX or self._size > QUOTE_CHARACTERS_MAX
        return "" if self.is_full else written

    def _tag(self, token: HtmlToken) -> str:
        name = _WRITTEN_AS.get(token.name, token.name)
        if name == "body" and not token.is_end and not self.has_body:
            self.has_body = True
            name = "div"
        if name not in ELEMENTS:
            return ""
        if token.is_end:
            return f"</{name}>"
        if len(token.text) < 4:  # too short for an attribute
            return f"<{name}>"
        attributes = tag_attributes(token.text)
        self._markup += len(attributes) + token.text.count(";")
        return f"<{name}{_attributes(attributes)}>"


def _attributes(attributes: Mapping[str, str]) -> str:
    """Return the safe attributes of a tag, each with a space before it."""
    written = []
    for name, source in attributes.items():
        if len(source) > _VALUE_CHARACTERS_MAX and (name != "src" or "&" in source):
            continue
        value = attribute_value(source)
        if name in _LINKS:
            value = _IN_URL.sub("", value).strip()
            is_safe = _LINKS[name].match(value) is not None
        elif name == "style":
            value = safe_style(value)
            is_safe = bool(value)
        else:
            is_safe = name in ATTRIBUTES
        if is_safe:
            written.append(f' {name}="{escape(value)}"')
    return "".join(written)


def unique_body(body: str, body_type: str) -> str:
    """Return a body without the message that it quotes."""
    is_html = body_type == "html"
    match = (_HTML if is_html else _TEXT).search(body)
    if match is None:
        return body
    above = body[: match.start()].rstrip()
    return f"{above}</body></html>" if is_html else above
