"""Read the header of any message: split it into fields, and read the fields as Graph's properties.

All readers of a header that may be damaged use this module, so that the reader of recipients and
the code that removes Bcc see the same fields. A line that is not a field does not end the header; a
NUL or a bare CR hides no field. For damaged fields the readers return what can be read. Nothing
raises; unreadable_addresses() reports what was skipped in a field of recipients.
For a message in transit, which has CRLF line ends, relay.mime.headers is faster.
RFC 5322 2.1, 2.2, 4.5; RFC 2047; RFC 4021; RFC 8098 2.1; MS-OXCMAIL 2.2.3.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from email import utils
from email.message import Message
from email.policy import Compat32
from email.utils import parsedate_to_datetime

from relay.message.address import AddressError, parse_mailbox
from relay.message.conversation import message_ids
from relay.message.properties import EmailAddress, MessageProperties
from relay.mime.encoded_words import decode_words

HEADER_OCTETS_MAX = 128 * 1024  # Postfix's message_header limit is 100 KB
_SEARCHED_OCTETS_MAX = 4 * 1024 * 1024  # a header without an end is refused long before
_CONTENT_FIELD_CHARACTERS_MAX = 8192  # `email` is quadratic in a field's parameters
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8: some programs write it before every text
MBOX_LINES = (b"From ", b">From ")  # before a message that was in an mbox file
_STAYS_FIRST = (*MBOX_LINES, b" ", b"\t")  # after a field, white space continues the field
_FIELD_START = re.compile(rb"(?:\xef\xbb\xbf)?([!-9;-~]+)[ \t]*:")
# Other readers do not take these lines for fields either, but their author meant recipients.
_MEANT_RECIPIENTS = re.compile(
    rb"[^A-Za-z:]{0,9}(?:(?:resent-)?(?:to|b?cc)[^A-Za-z0-9:-]{0,9}:|bcc[^A-Za-z0-9:-])",
    re.IGNORECASE,
)
# Any of the three line ends, the longest match, so that CRLF is not taken for two.
_EMPTY = re.compile(rb"\0*(?>\r\n|[\r\n])")
BLANK_LINE = re.compile(rb"(?>\r\n|[\r\n])\0*(?>\r\n|[\r\n])")  # with the line end before it
LINE_END = re.compile(rb"(?>\r\n|[\r\n])")
_UNFOLD = re.compile(r"[\r\n]+")
_SPACES = re.compile(r"\s+")
_AT_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|\(')  # starts of quoted strings and comments
_IN_COMMENT = re.compile(r"\\.|[()]")
_PHRASE = re.compile(r'((?:"(?:[^"\\]|\\.)*"|[^",])+|")')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_STRAY_ESCAPE = re.compile(r"\\(?:\Z|[^A-Za-z0-9 ])")
_ADDRESSES_MAX = 2000
ORIGINATORS_OCTETS_MAX = 4096  # more than a hundred authors; the worst takes some milliseconds
_PHRASES_MAX = 200
_IDS_MAX = 1000
_REPRESENTED = frozenset(
    (
        *("from", "sender", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id"),
        *("importance", "x-priority", "mime-version", "received", "return-path", "delivered-to"),
    )
)
_TORN_LINE_ENDS = frozenset(((b"\r", b"\r\n"), (b"\n", b"\r")))
_SHOWN_OCTETS = 80
_IMPORTANCES = frozenset(("low", "normal", "high"))
# The fields that other programs write instead of Importance, by the first word of the value.
_PRIORITIES = {
    "x-priority": {"1": "high", "2": "high", "3": "normal", "4": "low", "5": "low"},
    "x-msmail-priority": {"high": "high", "normal": "normal", "low": "low"},
    "priority": {"urgent": "high", "normal": "normal", "non-urgent": "low"},
}
_SENSITIVITIES = {
    "personal": "personal",
    "private": "private",
    "company-confidential": "confidential",
    "confidential": "confidential",
}


class _RawHeaderPolicy(Compat32):
    """Return header values with raw 8-bit octets as surrogates.

    Content fields are unfolded, because a boundary or a name may be folded, and clipped.
    """

    def header_fetch_parse(self, name: str, value: str) -> str:
        is_content = name[:8].lower() == "content-"
        return "".join(value[:_CONTENT_FIELD_CHARACTERS_MAX].split("\r\n")) if is_content else value


_POLICY = _RawHeaderPolicy()


@dataclass(frozen=True, slots=True)
class HeaderEnd:
    """The end of a header section, with its last line end, and the beginning of the body.

    The blank line is between them. If it is missing, they are the same place.
    """

    header: int
    body: int


def header_end(content: bytes) -> HeaderEnd:
    """Find the end of a message's header section.

    A line that is not a field does not end the header: it goes on to the blank line, so that no
    field is lost. Lines after the last field are the body of a message without a blank line.
    """
    if empty := _EMPTY.match(content):
        return HeaderEnd(0, empty.end())
    blank = BLANK_LINE.search(content, 0, _SEARCHED_OCTETS_MAX)
    if blank is None:
        end = len(content)
        last = fields_end(content[:_SEARCHED_OCTETS_MAX])
        return (
            HeaderEnd(last, last) if last < min(end, _SEARCHED_OCTETS_MAX) else HeaderEnd(end, end)
        )
    line_end = LINE_END.match(content, blank.start())
    assert line_end is not None
    last = fields_end(content[: line_end.end()])
    return HeaderEnd(last, blank.end() if last == line_end.end() else last)


def fields_end(header: bytes) -> int:
    """Return where the last field of a section ends: its length, unless other lines follow."""
    end = position = 0
    in_field = False
    for line in header.splitlines(keepends=True):
        position += len(line)
        bare = line.replace(b"\0", b"")
        if bare[:1] not in (b" ", b"\t"):
            in_field = bool(_FIELD_START.match(bare) or _MEANT_RECIPIENTS.match(bare))
        if in_field:
            end = position
    return end


def with_crlf(content: bytes) -> bytes:
    """Convert every line end to CRLF, without a copy if all are CRLF already."""
    pairs = content.count(b"\r\n")
    if pairs == content.count(b"\n") == content.count(b"\r"):
        return content
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content.replace(b"\n", b"\r\n")


def cleaned(header: bytes) -> bytes:
    """Return a header section with CRLF after every line, without NULs and byte order mark."""
    header = with_crlf(header.replace(b"\0", b"").removeprefix(BYTE_ORDER_MARK))
    return header + b"\r\n" if header and not header.endswith(b"\r\n") else header


def split_fields(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (lower-case name, field with its continuation lines); b"" for other lines."""
    field: list[bytes] = []
    for line in header.splitlines(keepends=True):
        if field and line[:1] in (b" ", b"\t"):
            field.append(line)
            continue
        if field:
            yield _name_of(field[0]), b"".join(field)
        field = [line]
    if field:
        yield _name_of(field[0]), b"".join(field)


def with_fields(
    fields: Sequence[tuple[bytes, bytes]], new: Sequence[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    """Return fields, as from split_fields(), with new ones added after the last field, or before
    the first line that is not a field: for most readers the header ends there.
    """
    odd = (
        at
        for at, (name, line) in enumerate(fields)
        if not name and (at > 0 or not line.startswith(_STAYS_FIRST))
    )
    place = next(odd, len(fields))
    return [*fields[:place], *new, *fields[place:]]


def parse_header(header: bytes) -> "Message[str, str]":
    """Parse a header section: values as they are, lines that are not fields skipped.

    Octets that are not ASCII are surrogates in the values.
    """
    message: Message[str, str] = Message(policy=_POLICY)
    for name, field in split_fields(cleaned(header)):
        if name:
            plain = field.removeprefix(BYTE_ORDER_MARK)
            name_text, _, value = plain.decode("ascii", "surrogateescape").partition(":")
            message.set_raw(name_text.rstrip(" \t"), value.lstrip(" \t").rstrip("\r\n"))
    return message


def malformed_recipients(header: bytes) -> bytes:
    """Return a line that was meant as a field of recipients but is not a field, b"" if none."""
    lines = (line for name, line in split_fields(cleaned(header)) if not name)
    return next(filter(_MEANT_RECIPIENTS.match, lines), b"")


def _name_of(line: bytes) -> bytes:
    match = _FIELD_START.match(line)
    return match[1].lower() if match else b""


def check_mime(content: bytes) -> str | None:
    """Return why `content` is not a MIME message that can be sent, or None.

    Damage is not a reason: a damaged message is sent almost as it is.
    """
    if not content or content.isspace():
        return "expected a MIME message, found nothing"
    end = header_end(content)
    return check_header(content[: end.header], content[end.header : end.body])


def check_header(header: bytes, blank: bytes) -> str | None:
    """Return why a message with this header section cannot be sent, or None if it can.

    `blank` is the empty line after it.
    """
    if not header:
        return "expected a MIME message, found no header field in line 1"
    if len(header) > HEADER_OCTETS_MAX:
        return f"its header has {len(header)} bytes, expected at most {HEADER_OCTETS_MAX}"
    if (header[-1:], blank) in _TORN_LINE_ENDS:  # what follows may be more of the header
        found = (header[-1:] + blank).replace(b"\r", b" CR").replace(b"\n", b" LF").decode()
        return f"the last line of its header ends in{found}, expected CR LF and an empty line"
    if line := malformed_recipients(header):
        shown = ascii(line[:_SHOWN_OCTETS].decode("utf-8", "replace").rstrip())
        return f"found {shown} in its header, expected a name such as Bcc, a colon and addresses"
    return None


def header_section(content: bytes) -> bytes:
    """Return the header section, without the empty line that ends it."""
    end = header_end(content)
    header = content[: end.header]
    if end.body == end.header:
        return header
    return header.removesuffix(b"\n").removesuffix(b"\r")


def read_properties_of_header(fields: "Message[str, str]") -> MessageProperties:
    """Return all properties that a header has: all but body and attachments."""
    in_reply_to = message_ids(read_token(fields, "in-reply-to"))
    return MessageProperties(
        subject=read_text(fields, "subject"),
        from_=_first(read_addresses(fields, "from")),
        sender=_first(read_addresses(fields, "sender")),
        to=read_addresses(fields, "to"),
        cc=read_addresses(fields, "cc"),
        bcc=read_addresses(fields, "bcc"),
        reply_to=read_addresses(fields, "reply-to"),
        importance=_importance(fields),
        internet_message_id=read_token(fields, "message-id"),
        internet_message_headers=_other_fields(fields),
        categories=tuple(_phrases(fields, "keywords")),
        sensitivity=_SENSITIVITIES.get(read_token(fields, "sensitivity").lower(), "normal"),
        read_receipt=bool(read_addresses(fields, "disposition-notification-to")),
        in_reply_to=in_reply_to[0] if in_reply_to else "",
        references=message_ids(read_token(fields, "references"))[:_IDS_MAX],
        conversation_index=read_token(fields, "thread-index").replace(" ", ""),
    )


def read_addresses(message: "Message[str, str]", name: str) -> tuple[EmailAddress, ...]:
    """Return the addresses of an address field; groups are flattened, names decoded."""
    with contextlib.suppress(Exception):  # damaged headers make `email` raise in many ways
        pairs = _addresses(_values(message, name))[:_ADDRESSES_MAX]
        return tuple(
            EmailAddress(_address(address), decode_text(person))
            for person, address in pairs
            if "@" in address
        )
    return ()


def unreadable_addresses(message: "Message[str, str]", name: str) -> str:
    """Return what read_addresses() would skip in an address field, "" if it reads everything.

    The standard library is lenient: it skips invalid addresses, and takes `a@x <b@y>` for two.
    """
    count = 0
    for value in _values(message, name):
        try:
            found = [address for _, address in _addresses([value]) if address]
        except Exception:  # noqa: BLE001 - damaged headers make `email` raise in many ways
            return value
        for address in found:
            if "@" not in address or "\ufffd" in address:
                return address
        text = _without_quotes(value)
        separators = text.count(",") + text.count(";")
        read = sum(_without_quotes(address).count("@") for address in found)
        count += len(found)
        if count > _ADDRESSES_MAX:
            return f"more than {_ADDRESSES_MAX} addresses"
        if text.count("@") != read or len(set(map(_address, found))) > separators + 1:
            return value
    return ""


@dataclass(frozen=True, slots=True)
class Originators:
    """A From or Sender field: its addresses, and what could not be read ("" if nothing)."""

    name: str
    addresses: tuple[EmailAddress, ...]
    unread: str


def originators(header: bytes) -> Iterator[Originators]:
    """Yield each From and each Sender field of a header section."""
    size = 0
    for name, octets in split_fields(cleaned(header)):
        if name not in (b"from", b"sender"):
            continue
        shown = name.decode().capitalize()
        size += len(octets)
        if size > ORIGINATORS_OCTETS_MAX:
            yield Originators(shown, (), f"more than {ORIGINATORS_OCTETS_MAX} octets")
            return
        field = parse_header(octets)
        addresses = tuple(_canonical(one) for one in read_addresses(field, shown))
        yield Originators(
            shown, addresses, unreadable_addresses(field, shown) or _ambiguous(field, shown)
        )


def _canonical(person: EmailAddress) -> EmailAddress:
    """Return an address without needless quotes around its local part.

    Addresses that are not ASCII stay: two domains that are equal in IDNA 2003 may differ today.
    """
    if not person.address.isascii():
        return person
    with contextlib.suppress(AddressError):
        return EmailAddress(parse_mailbox(person.address), person.name)
    return person


def _ambiguous(message: "Message[str, str]", name: str) -> str:
    """Return a value in which different readers may see different addresses, "" if none.

    Outside of quotes and comments a backslash is not an escape (RFC 5322 3.2.3), but some readers
    take it for one: for some the quote after it starts a string, for others it does not.
    """
    for value in _values(message, name):
        if any(_STRAY_ESCAPE.search(piece) for piece in _outside_quotes(value)):
            return value
    return ""


def _addresses(values: list[str]) -> list[tuple[str, str]]:
    """Return (name, address) of all addresses in the values, the same on every Python version.

    Later versions return nothing of a field with an error unless `strict` is False. Errors in
    fields of recipients are reported by unreadable_addresses().
    """
    if getattr(utils, "supports_strict_parsing", False):
        return utils.getaddresses(values, strict=False)
    return utils.getaddresses(values)


def _without_quotes(value: str) -> str:
    """Return an address field without quoted strings and comments; unterminated ones stay."""
    return "".join(_outside_quotes(value))


def _outside_quotes(value: str) -> list[str]:
    """Return the pieces between quoted strings and comments; unterminated ones stay."""
    pieces, outside, position, depth = [], 0, 0, 0
    while found := (_IN_COMMENT if depth else _AT_TEXT).search(value, position):
        if not depth:
            pieces.append(value[outside : found.start()])
            outside = found.start()
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        position = found.end()
        if not depth:
            outside = position
    return [*pieces, value[outside:]]


def read_text(message: "Message[str, str]", name: str) -> str:
    """Return a field's text, unfolded and decoded; "" if there is none."""
    return decode_text(_UNFOLD.sub("", _value(message, name))).strip()


def read_token(message: "Message[str, str]", name: str) -> str:
    """Return a field's value on one line, not decoded; "" if there is none."""
    return _SPACES.sub(" ", _value(message, name)).strip()


def decode_text(value: str) -> str:
    """Decode RFC 2047 words; words that cannot be decoded stay as they are."""
    return decode_words(_repaired(value).encode()) if "=?" in value else _repaired(value)


def date_us_of(message: "Message[str, str]") -> int:
    """Return the time in Date; 0 if there is none, or it is before 1970 or invalid."""
    with contextlib.suppress(Exception):  # damaged dates make `email` raise in many ways
        at = parsedate_to_datetime(read_token(message, "date"))
        at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0, int(at.timestamp()) * 1_000_000)
    return 0


def _phrases(message: "Message[str, str]", name: str) -> Iterator[str]:
    """Yield the decoded phrases of all fields of a name."""
    with contextlib.suppress(Exception):  # damaged headers make `email` raise in many ways
        for value in _values(message, name):
            for phrase in _PHRASE.findall(value)[:_PHRASES_MAX]:
                plain = _QUOTED.sub(lambda found: _ESCAPED.sub(r"\1", found[1]), phrase.strip())
                if plain.strip():
                    yield decode_text(plain).strip()


def _values(message: "Message[str, str]", name: str) -> list[str]:
    return [_UNFOLD.sub("", _repaired(value)) for value in message.get_all(name, [])]


def _value(message: "Message[str, str]", name: str) -> str:
    with contextlib.suppress(Exception):
        return _repaired(str(message.get(name) or ""))
    return ""


def _repaired(value: str) -> str:
    """Return header text with raw 8-bit octets read as UTF-8."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _address(address: str) -> str:
    local_part, _, domain = _repaired(address).rpartition("@")
    return f"{local_part}@{domain.lower()}"


def _first(addresses: tuple[EmailAddress, ...]) -> EmailAddress | None:
    return addresses[0] if addresses else None


def _importance(message: "Message[str, str]") -> str:
    given = read_token(message, "importance").lower()
    if given in _IMPORTANCES:
        return given
    for name, meanings in _PRIORITIES.items():
        word = read_token(message, name).partition(" ")[0].lower()
        if found := meanings.get(word) or meanings.get(word[:1]):
            return found
    return "normal"


def _other_fields(message: "Message[str, str]") -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, decode_text(_UNFOLD.sub("", value)).strip())
        for name, value in message.items()
        if name.lower() not in _REPRESENTED
        and not name.lower().startswith(("content-", "x-relay-"))
    )
