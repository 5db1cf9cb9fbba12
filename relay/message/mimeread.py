"""Read any MIME message as Graph's properties.

On the path: the front door checks MIME it is given; the store shows what others wrote.
Holds: damaged MIME gives the best that can be read of it; reading never raises.
Fails: never; what cannot be read is empty.
Standards: RFC 5322; RFC 2045-2047, 2231; RFC 2183 (inline, attachment).
"""

import contextlib
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from email import message_from_bytes
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import Compat32
from email.utils import collapse_rfc2231_value, getaddresses, parsedate_to_datetime

from relay.message.draft import Part, read_properties, split_private
from relay.message.encodedwords import decode_words, is_for_mail, printable
from relay.message.properties import Attachment, MessageProperties, Person

_FIELD = re.compile(rb"[!-9;-~]+:")
_HEADER_END = re.compile(rb"(?:\r\n|\n)(?=\r?\n)")
_UNFOLD = re.compile(r"[\r\n]+")
_SPACES = re.compile(r"\s+")
_AT_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|\(')  # what begins outside of comments
_IN_COMMENT = re.compile(r"\\.|[()]")
_HEADER_BYTES_MAX = 128 * 1024
_CONTENT_FIELD_CHARACTERS_MAX = 8192  # `email` is quadratic in a field's parameters
_PARSING_WORK_MAX = 40_000_000  # lines times depth: some ten seconds, and 150 MB of base64 is less
_PARTS_MAX = 1000
_ADDRESSES_MAX = 2000
_REPRESENTED = frozenset(
    (
        *("from", "sender", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id"),
        *("importance", "x-priority", "mime-version", "received", "return-path", "delivered-to"),
    )
)


class _AsItCame(Compat32):
    """Gives header values with their raw 8-bit octets, as surrogates, for _repaired().

    What is too long for a Content field is clipped.
    """

    def header_fetch_parse(self, name: str, value: str) -> str:
        is_content = name[:8].lower() == "content-"
        return value[:_CONTENT_FIELD_CHARACTERS_MAX] if is_content else value


_POLICY = _AsItCame()


@dataclass(frozen=True, slots=True)
class AttachmentFacts:
    """An attachment without its bytes; `size` counts the decoded ones."""

    name: str
    content_type: str
    size: int
    inline: bool
    content_id: str = ""


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """A message as it was read; `date_us` is 0 without a Date that makes sense."""

    properties: MessageProperties
    attachments: tuple[AttachmentFacts, ...]
    date_us: int


def check_mime(content: bytes) -> str | None:
    """Return why `content` is no MIME message that can be sent, or None if it is one."""
    if not content or content.isspace():
        return "expected a MIME message, found nothing"
    if b"\0" in content:
        return "expected a MIME message, found a NUL byte"
    header = header_of(content)
    if len(header) > _HEADER_BYTES_MAX:
        return f"its header has {len(header)} bytes, expected at most {_HEADER_BYTES_MAX}"
    # `email` ends the header at such a line: a recipient behind it would be lost without a word.
    for number, line in enumerate(header.splitlines(), start=1):
        if not _FIELD.match(line) and (number == 1 or line[:1] not in (b" ", b"\t")):
            return f"expected a MIME message, found no header field in line {number}"
    return None


def read_message(raw: bytes) -> ReadMessage:
    """Read a file of a mailbox: a draft by its block, anything else as MIME."""
    block, length = split_private(raw)
    if block is None or block.properties is None:
        return read_mime(raw[length:])
    attachments = tuple(_facts(part) for part in block.attachments)
    return ReadMessage(read_properties(raw), attachments, block.origin.modified_us)


def read_mime(content: bytes) -> ReadMessage:
    """Read a MIME message; attachments' bytes are only counted."""
    message = _parsed(content)
    html, text, attached = _sorted_parts(message)
    body = html if html is not None else text
    properties = MessageProperties(
        subject=read_text(message, "subject"),
        body_type="text" if html is None else "html",
        body="" if body is None else _text(body),
        from_=_first(read_people(message, "from")),
        sender=_first(read_people(message, "sender")),
        to=read_people(message, "to"),
        cc=read_people(message, "cc"),
        bcc=read_people(message, "bcc"),
        reply_to=read_people(message, "reply-to"),
        importance=_importance(message),
        internet_message_id=read_token(message, "message-id"),
        internet_message_headers=_other_fields(message),
    )
    facts = tuple(_attachment(part, len(_payload(part)), html is not None) for part in attached)
    return ReadMessage(properties, facts, _date_us(read_token(message, "date")))


def read_mime_attachments(content: bytes) -> tuple[Attachment, ...]:
    """Return the attachments of a MIME message with their bytes as base64."""
    html, _, attached = _sorted_parts(_parsed(content))
    found = []
    for part in attached:
        payload = _payload(part)
        facts = _attachment(part, len(payload), html is not None)
        found.append(
            Attachment(
                facts.name,
                facts.content_type,
                b64encode(payload),
                facts.size,
                inline=facts.inline,
                content_id=facts.content_id,
            )
        )
    return tuple(found)


def header_of(content: bytes) -> bytes:
    """Return the header section, without the empty line that ends it."""
    end = _HEADER_END.search(content)
    return content[: end.start()] if end else content


def read_header(header: bytes) -> "Message[str, str]":
    """Parse a header section alone."""
    return BytesHeaderParser(policy=_POLICY).parsebytes(header)


def read_people(message: "Message[str, str]", name: str) -> tuple[Person, ...]:
    """Return the people of an address field; groups flattened, names decoded."""
    with contextlib.suppress(Exception):  # headers of strangers break `email` in many ways
        pairs = getaddresses(_values(message, name))[:_ADDRESSES_MAX]
        return tuple(
            Person(_address(address), _words(person)) for person, address in pairs if "@" in address
        )
    return ()


def unread_people(message: "Message[str, str]", name: str) -> str:
    """Return what read_people() would pass over in an address field, "" if it reads everything.

    The stdlib's reader is lenient: it skips what is no address, and takes `a@x <b@y>` for two.
    """
    for value in _values(message, name):
        try:
            found = [address for _, address in getaddresses([value]) if address]
        except Exception:  # noqa: BLE001 - headers of strangers break `email` in many ways
            return value
        for address in found:
            if "@" not in address or "\ufffd" in address:
                return address
        text = _without_quotes(value)
        separators = text.count(",") + text.count(";")
        read = sum(_without_quotes(address).count("@") for address in found)
        if text.count("@") != read or len(set(map(_address, found))) > separators + 1:
            return value
    return ""


def _values(message: "Message[str, str]", name: str) -> list[str]:
    return [_UNFOLD.sub("", _repaired(value)) for value in message.get_all(name, [])]


def _without_quotes(value: str) -> str:
    """Return an address field without its quoted strings and comments."""
    pieces, position, depth = [], 0, 0
    while found := (_IN_COMMENT if depth else _AT_TEXT).search(value, position):
        if not depth:
            pieces.append(value[position : found.start()])
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        position = found.end()
    if not depth:
        pieces.append(value[position:])
    return "".join(pieces)


def _parsed(content: bytes) -> "Message[str, str]":
    """Parse a message; of one that is made to stall its reader the header alone."""
    lowered = content.lower()
    depth_max = lowered.count(b"multipart/") + lowered.count(b"message/") + 1
    del lowered
    if content.count(b"\n") * depth_max <= _PARSING_WORK_MAX:
        with contextlib.suppress(Exception):  # a boundary that is no UTF-8, nesting without end
            return message_from_bytes(content, policy=_POLICY)
    return read_header(header_of(content[:_HEADER_BYTES_MAX]))


def _sorted_parts(
    message: "Message[str, str]",
) -> tuple["Message[str, str] | None", "Message[str, str] | None", Sequence["Message[str, str]"]]:
    """Return the html body, the text body and everything else that is a leaf."""
    html = text = None
    attached = []
    for part in _leaves(message):
        kind = part.get_content_type()
        wants_to_attach = part.get_content_disposition() == "attachment" or _filename(part)
        if kind == "text/html" and html is None and not wants_to_attach:
            html = part
        elif kind == "text/plain" and text is None and not wants_to_attach:
            text = part
        else:
            attached.append(part)
    return html, text, attached


def _leaves(message: "Message[str, str]") -> Iterator["Message[str, str]"]:
    """Walk depth first without recursion; a message/rfc822 is a leaf."""
    waiting = [message]
    for _ in range(_PARTS_MAX):
        if not waiting:
            return
        part = waiting.pop()
        if part.get_content_maintype() == "multipart" and part.is_multipart():
            waiting += reversed(_inner(part))
        else:
            yield part


def _inner(part: "Message[str, str]") -> list["Message[str, str]"]:
    """Return the messages or parts in a part; `email` may raise on asking for them unchecked."""
    inner = part.get_payload() if part.is_multipart() else []
    return [one for one in inner if isinstance(one, Message)]


def _payload(part: "Message[str, str]") -> bytes:
    with contextlib.suppress(Exception):
        if part.is_multipart():  # message/rfc822
            return b"".join(one.as_bytes() for one in _inner(part))
        decoded = part.get_payload(decode=True)
        return decoded if isinstance(decoded, bytes) else b""
    return b""


def _text(part: "Message[str, str]") -> str:
    payload = _payload(part)
    with contextlib.suppress(Exception):  # LookupError, UnicodeError, and what damaged fields do
        charset = str(part.get_content_charset("utf-8"))
        if is_for_mail(charset):
            return payload.decode(charset)
    return payload.decode("utf-8", "replace")


def _attachment(part: "Message[str, str]", size: int, has_html: bool) -> AttachmentFacts:
    content_id = read_token(part, "content-id").strip("<> ")
    disposition = part.get_content_disposition()
    inline = disposition == "inline" or (disposition is None and bool(content_id) and has_html)
    return AttachmentFacts(
        name=_filename(part) or _title(part),
        content_type=part.get_content_type(),
        size=size,
        inline=inline,
        content_id=content_id,
    )


def _title(part: "Message[str, str]") -> str:
    """Name an attached message by its subject, as mail clients do."""
    inner = _inner(part)
    return read_text(inner[0], "subject") if inner else ""


def _filename(part: "Message[str, str]") -> str:
    """Return a part's name: by RFC 2231 to the letter, else with RFC 2047 words in it as well."""
    with contextlib.suppress(Exception):
        for name, field in (("filename", "content-disposition"), ("name", "content-type")):
            value = part.get_param(name, "", field)
            if isinstance(value, tuple):
                return printable(collapse_rfc2231_value(value))
            if value:
                return printable(_words(str(value)))
    return ""


def read_text(message: "Message[str, str]", name: str) -> str:
    """Return a field's text, unfolded and decoded; "" without one."""
    return _words(_UNFOLD.sub("", _value(message, name))).strip()


def read_token(message: "Message[str, str]", name: str) -> str:
    """Return a field's value as it is, on one line; "" without one."""
    return _SPACES.sub(" ", _value(message, name)).strip()


def _value(message: "Message[str, str]", name: str) -> str:
    with contextlib.suppress(Exception):
        return _repaired(str(message.get(name) or ""))
    return ""


def _repaired(value: str) -> str:
    """Read raw 8-bit header text as the UTF-8 that it mostly is."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _words(value: str) -> str:
    """Decode RFC 2047 words; what does not decode stays as it is."""
    return decode_words(_repaired(value).encode()) if "=?" in value else _repaired(value)


def _address(address: str) -> str:
    local_part, _, domain = _repaired(address).rpartition("@")
    return f"{local_part}@{domain.lower()}"


def _first(people: tuple[Person, ...]) -> Person | None:
    return people[0] if people else None


def _importance(message: "Message[str, str]") -> str:
    told = read_token(message, "importance").lower()
    if told in ("low", "normal", "high"):
        return told
    return {"1": "high", "2": "high", "4": "low", "5": "low"}.get(
        read_token(message, "x-priority")[:1], "normal"
    )


def _other_fields(message: "Message[str, str]") -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, _words(_UNFOLD.sub("", value)).strip())
        for name, value in message.items()
        if name.lower() not in _REPRESENTED
        and not name.lower().startswith(("content-", "x-relay-"))
    )


def _date_us(value: str) -> int:
    """Return the time, 0 for one that is none or lies before 1970 or beyond the calendar."""
    with contextlib.suppress(Exception):  # dates of strangers break `email` in many ways
        at = parsedate_to_datetime(value)
        at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0, int(at.timestamp()) * 1_000_000)
    return 0


def _facts(part: Part) -> AttachmentFacts:
    return AttachmentFacts(
        part.name, part.content_type, part.size, inline=part.inline, content_id=part.content_id
    )
