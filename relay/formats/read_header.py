"""Read the fields of any header as Graph's properties.

relay.base.message.header splits the header. Of a damaged field, the readable part is returned.
Nothing raises; unreadable_addresses() returns an address that programs may read differently.
RFC 5322 2.2, 3.6; RFC 2047; RFC 4021; RFC 8098 2.1; MS-OXCMAIL 2.2.3.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.message import Message
from email.policy import Compat32
from email.utils import parsedate_tz
from itertools import chain, islice

from msgspec import Struct

from relay.base.message import header as headers
from relay.base.message.address import AddressError, lower_case, parse_mailbox, parse_odd_mailbox
from relay.base.message.conversation import message_ids, own_message_id
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.base.phrases import words_in
from relay.formats.address_list import AddressBudget, address_entries
from relay.formats.content_fields import charset_of
from relay.formats.encoded_words import decode_words

HEADER_OCTETS_MAX = 128 * 1024  # Postfix's message_header limit is 100 KB
_CONTENT_FIELD_CHARACTERS_MAX = 8192
_SPACES = re.compile(r"\s+")
_PHRASE = re.compile(r'(?>"(?>[^"\\]|\\.?)*+(?:"|\Z)|[^",]++)++', re.DOTALL)
_QUOTED = re.compile(r'"((?>[^"\\]|\\.?)*+)(?:"|\Z)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)")
# The only author of most messages: `Name <local@domain>`, or the address alone.
_PLAIN_ADDRESS = rb"([A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)"
_PLAIN_AUTHOR = re.compile(
    rb"(?:[A-Za-z0-9 -]*<" + _PLAIN_ADDRESS + rb">|" + _PLAIN_ADDRESS + rb")"
)
_ADDRESSES_MAX = 2000
_ADDRESS_FIELDS = words_in("from sender reply-to to cc bcc disposition-notification-to")
_ORIGINATORS_MAX = 50  # fields
ORIGINATORS_OCTETS_MAX = 4096  # more than a hundred authors; takes at most some milliseconds
_DECODED_CHARACTERS_MAX = 16 * 1024  # in the values of all fields
_FIELD_COSTS = 64  # characters that each field counts in addition
_TEXT_CHARACTERS_MAX = 32 * 1024  # of a field
_PHRASES_MAX = 200
KEYWORDS_CHARACTERS_MAX = 4096  # of all Keywords fields of a message
_IDS_MAX = 1000
_ZONE_S_MAX = 100 * 3600  # -9959 to +9959 (RFC 5322 3.3)
# Dates as programs write them, not only as in RFC 5322.
_DATE_CHARACTERS_MAX = 1000
_ZONE = re.compile(r"(?:GMT|UTC)?([+-]\d\d):?(\d\d)\b")
_ENCODED_WORD = re.compile(r"\s*=\?[^?\s]+\?[bBqQ]\?[^?\s]*\?=\s*")
_HOURS = re.compile(r"(?:(?:GMT|UTC) ?([+-]\d\d?)| ([+-]\d))\b(?!:)")
_ZONES = {"CET": 1, "CEST": 2, "WEST": 1, "EET": 2, "EEST": 3, "JST": 9, "AEST": 10}
_ZONE_NAME = re.compile(rf"(?<=[\d ] )({'|'.join(_ZONES)})\b(?! ?[+-])", re.IGNORECASE)
_COMMENT = re.compile(r"\([^()]*+\)")
_GAP = re.compile(r" ?(:) ?| (,)")
_ISO_8601 = re.compile(r"\A(\d{4})-(0[1-9]|1[0-2])-(\d\d)[Tt ]")
_TIME = re.compile(r"(\d\d?)(:\d\d(?::\d\d)?)(?:[.,]\d+)?(?: ?([AaPp])\.?[Mm]\b\.?)?")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DATE_US_MIN, _DATE_US_MAX = -11_644_473_600_000_000, 253_402_300_799_000_000  # 1601 to 9999
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


_Fields = Message | Mapping[str, str]  # by name; the names of a Mapping are in lower case


class _RawHeaderPolicy(Compat32):
    """Return header values with raw 8-bit octets as surrogates.

    Content fields are unfolded, because a boundary or a name may be folded, and clipped.
    """

    def header_fetch_parse(self, name: str, value: str) -> str:
        if name[:8].lower() != "content-":
            return value
        return "".join(value[:_CONTENT_FIELD_CHARACTERS_MAX].split("\r\n"))


_POLICY = _RawHeaderPolicy()


def parse_header(header: bytes) -> "Message[str, str]":
    """Parse a header section; values are not decoded, octets that are not ASCII are surrogates.

    Lines that are not fields are skipped, unless they continue the parameters of a Content field.
    """
    return fields_of_header(headers.Header.parse(headers.cleaned(header)))


def fields_of_header(header: headers.Header) -> "Message[str, str]":
    """Return the same as parse_header(), from a section that is cleaned and split already."""
    message: Message[str, str] = Message(policy=_POLICY)
    pairs: list[tuple[str, str]] = []
    for name, field in header.fields:
        text = field.removeprefix(headers.BYTE_ORDER_MARK).decode("ascii", "surrogateescape")
        if name:
            name_text, _, value = text.partition(":")
            pairs.append((name_text.rstrip(), value.lstrip(" \t").rstrip("\r\n")))
        elif pairs and pairs[-1][1].endswith(";") and pairs[-1][0][:8].lower() == "content-":
            # a continuation line that lacks its white space
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]} {text.strip()}")
    for pair in pairs:
        message.set_raw(*pair)
    return message


def body_charset(header: headers.Header) -> str:
    """Return the charset that the Content-Type of a header names, "" if it names none."""
    return charset_of(content_type_of(header))


def content_type_of(header: headers.Header) -> str:
    """Return the value of the Content-Type of a header, "" if there is none."""
    value = header.first("Content-Type") or b""
    return value[:_CONTENT_FIELD_CHARACTERS_MAX].decode("latin-1")


def check_mime(content: bytes) -> str | None:
    """Return why `content` is not a MIME message that can be sent, or None.

    Damage is not a reason: a damaged message is sent almost as it is.
    """
    if not content or content.isspace():
        return "expected a MIME message, found nothing"
    end = headers.header_end(content)
    if reason := check_header(content[: end.header], content[end.header : end.body]):
        return reason
    if len(headers.with_first_fields(content)) < len(content):
        return f"its header has too many fields, expected at most {headers.FIELDS_MAX}"
    return None


def check_header(header: bytes, blank: bytes) -> str | None:
    """Return why a message with this header section cannot be sent, or None if it can.

    `blank` is the empty line after it.
    """
    if not header:
        return "expected a MIME message, found no header field in line 1"
    if len(header) > HEADER_OCTETS_MAX:
        return f"its header has {len(header)} bytes, expected at most {HEADER_OCTETS_MAX}"
    if (header[-1:], blank) in _TORN_LINE_ENDS:  # the header may continue after it
        ending = (header[-1:] + blank).replace(b"\r", b" CR").replace(b"\n", b" LF").decode()
        return f"the last line of its header ends in{ending}, expected CR LF and an empty line"
    if line := headers.malformed_recipients(header):
        start = ascii(line[:_SHOWN_OCTETS].decode("utf-8", "replace").rstrip())
        return f"found {start} in its header, expected a name such as Bcc, a colon and addresses"
    return None


def read_properties_of_header(
    fields: "Message[str, str]",
    *,
    is_stored: bool = True,
    has_addresses: bool = True,
    has_fields: bool = True,
) -> MessageProperties:
    """Return the properties that a header has, which are all but body and attachments.

    The addresses of a stored message are limited as in read_stored_addresses(). Those of a
    submission are all read, because it is sent to them. Reading many addresses takes long: without
    `has_addresses` there are none. Without `has_fields` internet_message_headers is empty.
    """
    first = {name.lower(): value for name, value in reversed(fields.items())}  # of each name
    in_reply_to = message_ids(read_token(first, "in-reply-to"))
    people: dict[str, tuple[EmailAddress, ...]] = dict.fromkeys(_ADDRESS_FIELDS, ())
    if has_addresses and is_stored:
        people = read_stored_addresses(fields)
    elif has_addresses:
        people = {name: read_addresses(fields, name) for name in _ADDRESS_FIELDS}
    return MessageProperties(
        subject=read_text(first, "subject"),
        from_=first_person(people["from"]),
        sender=first_person(people["sender"]),
        to=people["to"],
        cc=people["cc"],
        bcc=people["bcc"],
        reply_to=people["reply-to"],
        importance=_importance(first),
        internet_message_id=own_message_id(read_token(first, "message-id")),
        internet_message_headers=_all_fields(fields) if has_fields else (),
        categories=tuple(_phrases(fields, "keywords")),
        sensitivity=_SENSITIVITIES.get(read_token(first, "sensitivity").lower(), "normal"),
        read_receipt=any(person.address for person in people["disposition-notification-to"]),
        in_reply_to=in_reply_to[0] if in_reply_to else "",
        references=message_ids(read_token(first, "references"))[:_IDS_MAX],
        conversation_index=read_token(first, "thread-index").replace(" ", ""),
    )


def read_stored_addresses(message: "Message[str, str]") -> dict[str, tuple[EmailAddress, ...]]:
    """Return the people in the address fields of a stored message, by the names of the fields.

    Strangers write these fields, and each list of messages reads them. One AddressBudget limits
    all fields together, in the order From, Sender, Reply-To, To, Cc, Bcc; only whole entries count.
    """
    budget = AddressBudget()
    return {name: read_addresses(message, name, budget) for name in _ADDRESS_FIELDS}


def read_addresses(
    message: "Message[str, str]", name: str, budget: AddressBudget | None = None
) -> tuple[EmailAddress, ...]:
    """Return the people in an address field; groups are flattened, names decoded.

    The address is "" for text that is not an address. With `budget`, which is for what is shown,
    only the whole entries at the beginning of the fields are read, and a From as _only_author().
    """
    values = _raw_values(message, name, budget.fields if budget else None)
    if budget:
        budget.fields -= len(values)
    raw = _raw_charset(message, values)
    entries = chain.from_iterable(address_entries(value, budget) for value in values)
    first = islice(entries, _ADDRESSES_MAX)
    people = (
        EmailAddress(_address(parsed.address), decode_text(parsed.name, raw)) for parsed in first
    )
    read = tuple([person for person in people if person.address or person.name])
    return _only_author(values, read) if budget and name.lower() == "from" else read


def _only_author(
    values: Sequence[str], people: tuple[EmailAddress, ...]
) -> tuple[EmailAddress, ...]:
    """Return the author of a From whose name has a comma outside of quotes, or that is one encoded
    word; else the same people. Who may send is not decided with this.
    """
    names = [person.name for person in people]
    if len(people) == len(values) == 1 and _ENCODED_WORD.fullmatch(values[0]):
        entries = [*address_entries(names[0])]
        if len(entries) == 1 and entries[0].address:
            return (EmailAddress(_address(entries[0].address), entries[0].name),)
    is_only = [bool(person.address) for person in people] == [False] * (len(people) - 1) + [True]
    if is_only and "@" not in "".join(names[:-1]):
        return (EmailAddress(people[-1].address, ", ".join(filter(None, names))),)
    return people


def unreadable_addresses(message: "Message[str, str]", name: str) -> str:
    """Return the first entry of an address field in which programs may read different addresses.

    "" if there is none.
    """
    entries = chain.from_iterable(map(address_entries, _raw_values(message, name)))
    for count, parsed in enumerate(entries):
        if count == _ADDRESSES_MAX:
            return f"more than {_ADDRESSES_MAX} addresses"
        if not parsed.is_plain or "\ufffd" in _address(parsed.address):
            return repaired(parsed.text)
    return ""


class Originators(Struct, frozen=True):
    """A field of originators: its addresses, and what could not be read ("" if nothing)."""

    name: str
    addresses: tuple[EmailAddress, ...]
    unread: str


def originators(header: headers.Header) -> Iterator[Originators]:
    """Yield each From and Sender, and each Resent-From and Resent-Sender of the last resending.

    Resent fields are added at the top of a header (RFC 5322 3.6.6), and each hop adds its Received
    above them. A Received after the first Resent-From therefore ends the block of the last
    resending; resent fields below it belong to earlier resendings.
    """
    size = count = 0
    is_resent = is_history = False
    for name, octets in header.fields:
        is_resent |= name == b"resent-from"
        is_history |= is_resent and name == b"received"
        if name not in (b"from", b"sender") and (
            is_history or name not in (b"resent-from", b"resent-sender")
        ):
            continue
        title = name.decode().title()
        size += len(octets)
        count += 1
        if size > ORIGINATORS_OCTETS_MAX or count > _ORIGINATORS_MAX:
            most = f"{ORIGINATORS_OCTETS_MAX} octets or {_ORIGINATORS_MAX} fields"
            yield Originators(title, (), f"more than {most}")
            return
        field = parse_header(octets)
        addresses = tuple(
            _canonical(author) for author in read_addresses(field, title) if author.address
        )
        unread = unreadable_addresses(field, title)
        if b"\0" in octets:  # some programs end the field there
            unread = "a NUL"
        elif b"\n" in octets.partition(b":")[0]:  # some programs do not read it as a field (4.5)
            unread = "a fold before the colon"
        yield Originators(title, addresses, unread)


class SubmittedHeader(Struct, frozen=True):
    """Sender and recipients by the header of a message, or the `fault` why it cannot be sent.

    `unreadable` is the first recipient that some programs cannot read as an address: its field,
    its text, and the reason.
    """

    fault: str = ""
    properties: MessageProperties = MessageProperties()  # only To, Cc, Bcc and Message-ID
    originators: tuple[Originators, ...] = ()
    unreadable: tuple[str, str, str] | None = None


def read_submitted(content: bytes, *, to_send: bool) -> SubmittedHeader:
    """Read the header of MIME for a draft; originators are read only with `to_send`.

    `content` has at least the whole header. Which account may send it is not decided here.
    """
    if fault := check_mime(content):
        return SubmittedHeader(fault)
    section = content[: headers.header_end(content).header]
    clean = headers.cleaned(section)
    header = headers.Header.parse(clean)
    message = fields_of_header(header)
    recipients = {name: read_addresses(message, name) for name in ("To", "Cc", "Bcc")}
    ids = message_ids(read_token(message, "Message-ID"))
    properties = MessageProperties(
        to=recipients["To"],
        cc=recipients["Cc"],
        bcc=recipients["Bcc"],
        internet_message_id=next(iter(ids), ""),
    )
    parsed = header if clean == section else headers.Header.parse(section)
    authors = tuple(originators(parsed)) if to_send else ()
    return SubmittedHeader("", properties, authors, _unreadable(message, recipients))


def _unreadable(
    message: "Message[str, str]", recipients: Mapping[str, Sequence[EmailAddress]]
) -> tuple[str, str, str] | None:
    for name, people in recipients.items():
        # a field with too many addresses is refused for their number
        if len(people) < _ADDRESSES_MAX and (unread := unreadable_addresses(message, name)):
            return name, unread, "expected addresses with commas between them"
    for name, people in recipients.items():
        for person in people:
            try:
                parse_odd_mailbox(person.address, smtputf8=True)
            except AddressError as error:
                return name, person.address, str(error)
    return None


def addressees(header: headers.Header) -> tuple[str, ...]:
    """Return the addresses in To and Cc."""
    lines = b"".join([octets for name, octets in header.fields if name in (b"to", b"cc")])
    fields = parse_header(lines)
    people = chain.from_iterable(read_addresses(fields, name) for name in ("To", "Cc"))
    return tuple([_canonical(person).address for person in people if person.address])


class Author(Struct, frozen=True):
    """The only address in From, or the reason why there is none."""

    address: str = ""
    fault: str = ""


def sole_author(header: headers.Header) -> Author:
    """Return the author of a message that has one From field with exactly one address.

    Every program must read the same address in it (RFC 5322 3.6.2).
    """
    count = header.count("From")
    if count != 1:
        return Author(fault=f"the message has {count or 'no'} From field{'s' if count else ''}")
    value = header.values("From")[0]
    is_short = len(value) < ORIGINATORS_OCTETS_MAX // 2
    if is_short and (plain := _PLAIN_AUTHOR.fullmatch(value)):  # nearly always
        return Author((plain[1] or plain[2]).decode())
    [from_] = originators(
        headers.Header(tuple(field for field in header.fields if field[0] == b"from"))
    )
    if from_.unread:
        return Author(fault="From has what is no address")
    if len(from_.addresses) != 1:
        return Author(fault=f"From has {len(from_.addresses) or 'no'} addresses")
    if any(parsed.in_group for parsed in address_entries(value.decode("utf-8", "replace"))):
        return Author(fault="From has a group")
    return Author(from_.addresses[0].address)


def _canonical(person: EmailAddress) -> EmailAddress:
    """Return an address without needless quotes around its local part.

    Addresses that are not ASCII stay: domains that are equal in IDNA 2003 may differ in IDNA 2008.
    """
    if not person.address.isascii():
        return person
    with contextlib.suppress(AddressError):
        return EmailAddress(parse_mailbox(person.address), person.name)
    return person


def read_text(message: _Fields, name: str) -> str:
    """Return a field's text, unfolded and decoded; "" if there is none."""
    value = _unfolded(str(message.get(name) or "")[:_TEXT_CHARACTERS_MAX])
    return decode_text(value, _raw_charset(message, [value])).strip()


def read_token(message: _Fields, name: str) -> str:
    """Return a field's value on one line, not decoded; "" if there is none."""
    return _SPACES.sub(" ", _value(message, name)).strip()


def decode_text(value: str, raw: str = "") -> str:
    """Decode RFC 2047 words and raw octets that are not ASCII; see decode_words()."""
    if value.isascii() and "=?" not in value:
        return value
    return decode_words(value.encode("utf-8", "surrogateescape"), raw)


def date_us_of(message: "Message[str, str]") -> int | None:
    """Return the time in Date, None if Date is missing, invalid or before 1601.

    Times of Exchange begin in 1601. A leap second is read as the second after it.
    """
    with contextlib.suppress(Exception):  # damaged dates make `email` raise in many ways
        if parsed := parsedate_tz(_plain_date(read_token(message, "date")[:_DATE_CHARACTERS_MAX])):
            year, month, day, hour, minute, second, *_, offset_s = parsed
            year += 1900 if year < 1000 else 0  # RFC 5322 4.3
            is_leap = second == 60
            at = datetime(year, month, day, hour, minute, second - is_leap, tzinfo=UTC)
            at_us = (int(at.timestamp()) + is_leap - (offset_s or 0)) * 1_000_000
            if abs(offset_s or 0) < _ZONE_S_MAX and DATE_US_MIN <= at_us <= _DATE_US_MAX:
                return at_us
    return None


def _plain_date(text: str) -> str:
    """Return a date in the form of RFC 5322.

    Comments, blanks around colons or before a comma, and fractions of a second are removed.
    """
    text, before = _ESCAPED.sub("", text), ""
    while text != before:  # comments may be nested
        text, before = _COMMENT.sub(" ", text), text
    text = _GAP.sub(r"\1\2", _SPACES.sub(" ", text).strip())
    text = _ISO_8601.sub(lambda match: f"{match[3]} {MONTHS[int(match[2]) - 1]} {match[1]} ", text)
    text = _ZONE.sub(r"\1\2", _TIME.sub(_plain_time, text, count=1))
    text = _ZONE_NAME.sub(lambda match: f"+{_ZONES[match[1].upper()]:02}00", text)
    return _HOURS.sub(lambda match: f" {int(match[1] or match[2]):+03}00", text)


def _plain_time(match: re.Match[str]) -> str:
    hour, half = int(match[1]), (match[3] or "").lower()
    if half and hour <= 12:
        hour = hour % 12 + (12 if half == "p" else 0)
    return f"{hour:02}{match[2]} "


def _phrases(message: "Message[str, str]", name: str) -> Iterator[str]:
    """Yield the decoded phrases of all fields of a name, up to KEYWORDS_CHARACTERS_MAX."""
    left = KEYWORDS_CHARACTERS_MAX
    with contextlib.suppress(Exception):  # damaged headers make `email` raise in many ways
        values = _raw_values(message, name)
        raw = _raw_charset(message, values)
        for value in values:
            phrases = _PHRASE.findall(value[:left])
            if len(value) > left:
                phrases = phrases[:-1]  # it may be cut
            left = max(left - len(value), 0)
            for phrase in phrases[:_PHRASES_MAX]:
                plain = _QUOTED.sub(lambda match: _ESCAPED.sub(r"\1", match[1]), phrase.strip())
                if plain.strip():
                    yield decode_text(plain, raw).strip()


def _raw_values(message: "Message[str, str]", name: str, most: int | None = None) -> list[str]:
    return [_unfolded(value) for value in message.get_all(name, [])[:most]]


def _unfolded(text: str) -> str:
    return text.replace("\r", "").replace("\n", "")


def _raw_charset(message: _Fields, values: Iterable[str]) -> str:
    """Return the charset of the body if one of the values may need it."""
    if all(map(str.isascii, values)):
        return ""
    return charset_of(str(message.get("content-type") or ""))


def _value(message: _Fields, name: str) -> str:
    with contextlib.suppress(Exception):
        return repaired(str(message.get(name) or "")[:_TEXT_CHARACTERS_MAX])
    return ""


def repaired(text: str) -> str:
    """Return a structured value, such as an address, with raw 8-bit octets read as UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _address(address: str) -> str:
    local_part, at, domain = repaired(address).rpartition("@")
    return f"{local_part}{at}{lower_case(domain) if at else domain}"


def first_person(people: Sequence[EmailAddress]) -> EmailAddress | None:
    """Return the first person with an address, else the first person, None if there are none."""
    return next((person for person in people if person.address), next(iter(people), None))


def _importance(message: _Fields) -> str:
    importance = read_token(message, "importance").lower()
    if importance in _IMPORTANCES:
        return importance
    for name, meanings in _PRIORITIES.items():
        word = read_token(message, name).partition(" ")[0].lower()
        if meaning := meanings.get(word) or meanings.get(word[:1]):
            return meaning
    return "normal"


def _all_fields(message: "Message[str, str]") -> tuple[tuple[str, str], ...]:
    """Return the names and values of all fields in their order, except the fields of Relay.

    Values are decoded up to a total of _DECODED_CHARACTERS_MAX.
    """
    items, pairs = message.items(), []
    raw, left = _raw_charset(message, [value for _, value in items]), _DECODED_CHARACTERS_MAX
    for name, value in items:
        text = _unfolded(value)
        if not text.isascii() or "=?" in text:  # decoding takes long
            left -= len(text) + _FIELD_COSTS
            text = decode_text(text, raw) if left >= 0 else repaired(text)
        if name[:8].lower() != "x-relay-":
            pairs.append((name, text.strip()))
    return tuple(pairs)
