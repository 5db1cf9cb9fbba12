"""The parts of a message's content that a page shows: header, bodies, attachments, links, codes.

read_content() reads a MIME message of any size: bodies up to a limit, attachments as places in the
message. Only what is shown is decoded. All texts are bounded, and `notes` says what was cut off or
damaged. Templates escape the texts. In names, characters that reorder or hide other text are
replaced; a link whose text names another host is marked. Reading blocks: call it in a thread.
Raises OSError where the octets cannot be read. RFC 5322 2.2 (fields); RFC 2183 2.3 (file names);
RFC 6266 and RFC 8187 (Content-Disposition).
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from urllib.parse import quote

from msgspec import Struct

from relay.base.clock import rfc3339
from relay.base.message.content import Octets
from relay.base.message.header import Header, cleaned
from relay.formats.encoded_words import decode_words
from relay.formats.html_text import html_to_text
from relay.formats.html_tokens import content_ids
from relay.formats.links import (
    BodyLink,
    find_codes,
    links_of_html,
    links_of_text,
    other_host,
    text_of_html,
)
from relay.formats.read_header import body_charset, date_us_of, parse_header, read_stored_addresses
from relay.formats.read_mime import AttachedOctets, ReadParts, read_parts
from relay.formats.transfer_encoding import decoded_blocks
from relay.front_door.pages import sanitize

TEXT_CHARACTERS_MAX = 200_000
HEADER_OCTETS_MAX = 256 * 1024
FIELDS_MAX = 200
FIELD_OCTETS_MAX = 2000
ATTACHMENTS_MAX = 200
LINKS_MAX = 200
CODES_MAX = 5
NAME_CHARACTERS_MAX = 150
IMAGE_OCTETS_MAX = 4 * 1024 * 1024
PREVIEWS_MAX = 50  # images among the attachments that a page shows
_FIELD_NAME_OCTETS_MAX = 100
_HEAD_CHARACTERS_MAX = 300
_LINK_TEXT_CHARACTERS_MAX = 200
_LINK_CHARACTERS_MAX = 2000
_SEARCHED_CHARACTERS_MAX = 1_000_000

# Characters without a width, and those that reorder text: a name may look like another one.
_DECEPTIVE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u061c\u200b\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_NOT_IN_FILE_NAMES = re.compile(r'[/\\:*?"<>|%\x00-\x1f]')
_OPENED = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
_SAFE_DOWNLOADS = sanitize.RASTER_TYPES | {
    *("application/gzip", "application/json", "application/pdf", "application/zip"),
    *("text/calendar", "text/csv", "text/plain", "text/vcard"),
}
_IMAGE_BEGINNINGS = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
_BEGINNING_OCTETS = 12


class ShownField(Struct, frozen=True):
    """A header field with its decoded value."""

    name: str
    value: str


class ShownAttachment(Struct, frozen=True):
    """An attachment, or a part that the HTML shows. `number` counts from 1."""

    number: int
    name: str
    content_type: str
    size: int
    inline: bool
    content_id: str


class ShownLink(Struct, frozen=True):
    """A link; `target` is "" unless a page may open `shown_target`.

    `other_host` is the host that the text names if the target has another one.
    """

    text: str
    shown_target: str
    target: str
    other_host: str


class MessageHead(Struct, frozen=True):
    """The header fields that the page of a message shows first; "" for a missing field."""

    author: str  # From, with the display name
    to: str
    cc: str
    reply_to: str
    date: str  # RFC 3339
    addressed: tuple[str, ...]  # the addresses of To and Cc


@dataclass(frozen=True, slots=True)
class MessageContent:
    """The content of a message as pages show it."""

    size: int  # in octets
    head: MessageHead  # of the header, for all views
    fields: tuple[ShownField, ...]  # of the header, decoded
    text: str | None  # the plain text, or the text of the HTML; None without either
    has_html: bool  # there is an HTML body to show
    attachments: tuple[ShownAttachment, ...]  # the first ones
    attachment_count: int  # of all attachments
    links: tuple[ShownLink, ...]  # of the body
    codes: tuple[str, ...]  # that look like one-time passwords
    notes: tuple[str, ...]  # sentences about damage and omissions
    parts: ReadParts = field(repr=False)  # for parts that are loaded separately


def read_content(octets: Octets) -> MessageContent:
    """Read a message. Reading blocks; raises OSError."""
    parts = read_parts(octets)
    notes = list(parts.defects)
    bodies = parts.bodies
    text = bodies.text
    if text is not None and len(text) > TEXT_CHARACTERS_MAX:
        notes.append(f"the text has {len(text):,} characters: {TEXT_CHARACTERS_MAX:,} are shown")
        text = text[:TEXT_CHARACTERS_MAX]
    attached = parts.attachments
    searched_html = (bodies.html or "")[:_SEARCHED_CHARACTERS_MAX]
    searched_text = (bodies.text or "")[:_SEARCHED_CHARACTERS_MAX]
    used = content_ids(searched_html)
    if len(attached) > ATTACHMENTS_MAX:
        notes.append(f"{len(attached):,} attachments: {ATTACHMENTS_MAX} are listed")
    links = list(islice(_links(searched_html, searched_text), LINKS_MAX + 1))
    if len(links) > LINKS_MAX:
        notes.append(f"more than {LINKS_MAX} links: the first are listed")
    fields, is_cut = _fields(parts.header)
    if is_cut:
        notes.append("a long header: its beginning is shown, the source has all of it")
    return MessageContent(
        size=octets.size,
        head=_head(fields, parts.header[:HEADER_OCTETS_MAX]),
        fields=fields,
        text=text,
        has_html=bodies.html is not None,
        attachments=tuple(
            _shown_attachment(number, attachment, is_used=attachment.facts.content_id in used)
            for number, attachment in enumerate(attached[:ATTACHMENTS_MAX], 1)
        ),
        attachment_count=len(attached),
        links=tuple(links[:LINKS_MAX]),
        codes=_codes(searched_html, searched_text),
        notes=tuple(map(one_line, notes)),
        parts=parts,
    )


def html_document(
    parts: ReadParts, *, remote_url: sanitize.RemoteImageUrl | None = None, is_dark: bool = False
) -> sanitize.SafeDocument:
    """Return the HTML body as a safe document, "" without one; the options as in safe_document().

    Blocks; raises OSError.
    """
    if parts.bodies.html is None:
        return sanitize.SafeDocument("", sanitize.RemoteLoads(), lost_images=0, is_cut=False)
    images = _InlineImages(parts.attachments)
    return sanitize.safe_document(
        parts.bodies.html, images.url, remote_url=remote_url, is_dark=is_dark
    )


def shown_text(parts: ReadParts) -> str:
    """Return the text body, or the text of the HTML if there is no text body."""
    if parts.bodies.text is None and parts.bodies.html is not None:
        return html_to_text(parts.bodies.html[: sanitize.HTML_CHARACTERS_MAX])
    return parts.bodies.text or ""


def one_line(text: str) -> str:
    """Return a text on one line without characters that hide or reorder others."""
    return " ".join(_DECEPTIVE.sub("\ufffd", text).split())


def _fields(header: bytes) -> tuple[tuple[ShownField, ...], bool]:
    """Return the first fields with the beginning of their values, and whether anything was cut."""
    is_cut = len(header) > HEADER_OCTETS_MAX
    parsed = Header.parse(cleaned(header[:HEADER_OCTETS_MAX]))
    shown_fields: list[ShownField] = []
    raw = body_charset(parsed)
    for name, octets in parsed.fields:
        if not name:
            continue
        if len(shown_fields) >= FIELDS_MAX:
            is_cut = True
            break
        written, _, value = octets.partition(b":")
        is_cut = is_cut or len(value) > FIELD_OCTETS_MAX
        unfolded = b" ".join(value[:FIELD_OCTETS_MAX].split())
        shown_name = written[:_FIELD_NAME_OCTETS_MAX].decode("ascii", "replace")
        shown_fields.append(ShownField(one_line(shown_name), one_line(decode_words(unfolded, raw))))
    return tuple(shown_fields), is_cut


def _head(fields: Iterable[ShownField], header: bytes) -> MessageHead:
    first: dict[str, str] = {}
    for header_field in fields:
        first.setdefault(header_field.name.lower(), header_field.value)
    author, to, cc, reply_to = (
        text if len(text) <= _HEAD_CHARACTERS_MAX else f"{text[:_HEAD_CHARACTERS_MAX]}…"
        for text in (first.get(name, "") for name in ("from", "to", "cc", "reply-to"))
    )
    parsed = parse_header(header)
    date_us = date_us_of(parsed)
    people = read_stored_addresses(parsed)
    addressed = tuple(one_line(person.address) for person in (*people["to"], *people["cc"]))
    date = "" if date_us is None else rfc3339(date_us)
    return MessageHead(author, to, cc, reply_to, date, addressed)


# -- links and codes


def _links(html: str, text: str) -> Iterator[ShownLink]:
    """Yield the distinct links of both bodies."""
    seen = set()
    for link in _body_links(html, text):
        if link not in seen:
            seen.add(link)
            yield _shown_link(link)


def _body_links(html: str, text: str) -> Iterator[BodyLink]:
    targets = set()
    for link in links_of_html(html):
        if not link.target.startswith("#"):
            targets.add(link.target)
            yield link
    for link in links_of_text(text):
        if link.target not in targets:
            yield link


def _shown_link(link: BodyLink) -> ShownLink:
    may_open = _OPENED.match(link.target) and len(link.target) <= _LINK_CHARACTERS_MAX
    target = one_line(link.target)
    cut = target[:_LINK_CHARACTERS_MAX]
    return ShownLink(
        one_line(link.text[:_LINK_TEXT_CHARACTERS_MAX]),
        cut if target == cut else f"{cut}…",
        target if may_open and target == link.target else "",
        other_host(link),
    )


def _codes(html: str, text: str) -> tuple[str, ...]:
    """Return texts that look like one-time codes."""
    return tuple(find_codes((text, text_of_html(html)), needs_word=True)[:CODES_MAX])


# -- attachments


def _shown_attachment(number: int, attachment: AttachedOctets, *, is_used: bool) -> ShownAttachment:
    facts = attachment.facts
    return ShownAttachment(
        number,
        one_line(facts.name[: 4 * NAME_CHARACTERS_MAX])[:NAME_CHARACTERS_MAX],
        one_line(facts.content_type[:_FIELD_NAME_OCTETS_MAX]),
        facts.size,
        facts.inline or is_used,
        one_line(facts.content_id[:_FIELD_NAME_OCTETS_MAX]),
    )


def file_name(number: int, attachment: AttachedOctets) -> str:
    """Return a name for a download: one path component, without characters special to a shell or
    system.

    The beginning of the name and its extension remain.
    """
    name = one_line(_NOT_IN_FILE_NAMES.sub("_", attachment.facts.name[: 10 * NAME_CHARACTERS_MAX]))
    name = name.strip(" .~-")
    if len(name) > NAME_CHARACTERS_MAX:
        stem, dot, extension = name.rpartition(".")
        kept = dot + extension if stem and len(extension) < 20 else ""
        name = name[: NAME_CHARACTERS_MAX - len(kept)] + kept
    return name or (f"message-{number}.eml" if attachment.facts.item else f"part-{number}")


def content_disposition(name: str, *, is_shown: bool = False) -> str:
    """Return the value of Content-Disposition for a download with this name, or for a preview."""
    plain = name.encode("ascii", "replace").decode("ascii").replace("?", "_")
    kind = "inline" if is_shown else "attachment"
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def download_type(attachment: AttachedOctets) -> str:
    """Return the media type for a download: a harmless one, or application/octet-stream."""
    if attachment.facts.item:
        return "message/rfc822"
    kind = attachment.facts.content_type
    return kind if kind in _SAFE_DOWNLOADS else "application/octet-stream"


def image_type(attachment: AttachedOctets) -> str:
    """Return the media type of a PNG, JPEG, GIF or WebP image by its first octets; "" for others.
    Blocks; raises OSError.
    """
    if attachment.facts.item:
        return ""
    beginning = b""
    for block in decoded(attachment):
        beginning += block[:_BEGINNING_OCTETS]
        if len(beginning) >= _BEGINNING_OCTETS:
            break
    types = (kind for kind, pattern in _IMAGE_BEGINNINGS.items() if pattern.match(beginning))
    return next(types, "")


def previews(parts: ReadParts) -> frozenset[int]:
    """Return the numbers of the first attachments that a page shows. Blocks; raises OSError."""
    listed = enumerate(parts.attachments[:ATTACHMENTS_MAX], 1)
    return frozenset(
        islice((number for number, attachment in listed if image_type(attachment)), PREVIEWS_MAX)
    )


def decoded(attachment: AttachedOctets) -> Iterable[bytes]:
    """Yield the content of an attachment. Reading blocks; raises OSError."""
    return (block for block in decoded_blocks(attachment.octets, attachment.encoding) if block)


class _InlineImages:
    """Makes data: URLs for the images of a message, one for each image."""

    def __init__(self, attached: Iterable[AttachedOctets]) -> None:
        self._by_id = {
            attachment.facts.content_id: attachment
            for attachment in attached
            if attachment.facts.content_id
        }
        self._urls: dict[str, str | None] = {}
        self._characters = 0

    def url(self, content_id: str) -> str | None:
        """Return the data: URL of an image, None if it is missing, too large or no raster image."""
        if content_id not in self._by_id:
            return None
        if content_id not in self._urls and self._characters <= sanitize.IMAGE_CHARACTERS_MAX:
            url = self._urls[content_id] = self._read(self._by_id[content_id])
            self._characters += len(url or "")
        return self._urls.get(content_id)

    def _read(self, attachment: AttachedOctets) -> str | None:
        kind = attachment.facts.content_type
        if kind not in sanitize.RASTER_TYPES or attachment.facts.size > IMAGE_OCTETS_MAX:
            return None
        octets = b"".join(decoded_blocks(attachment.octets, attachment.encoding))
        if len(octets) > IMAGE_OCTETS_MAX:
            return None
        return f"data:{kind};base64,{b64encode(octets).decode('ascii')}"
