"""Read the header of any message as Graph's properties.

On the path: the front door checks MIME with it, conversion asks for recipients, the store shows it.
Holds: damaged fields give the best that can be read of them; reading never raises. What is passed
over in a field of recipients can be told.
Fails: never; what cannot be read is empty.
Standards: RFC 5322; RFC 2047; RFC 4021; RFC 8098 2.1; MS-OXCMAIL 2.2.3.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from email import utils
from email.message import Message
from email.utils import parsedate_to_datetime

from relay.message.address import AddressError, parse_mailbox
from relay.message.properties import MessageProperties, Person
from relay.mime.conversation import message_ids
from relay.mime.encodedwords import decode_words
from relay.mime.section import (
    HEADER_OCTETS_MAX,
    cleaned,
    header_end,
    lost_recipients,
    read_header,
    split_fields,
)

_UNFOLD = re.compile(r"[\r\n]+")
_SPACES = re.compile(r"\s+")
_AT_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|\(')  # what begins outside of comments
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
# What other programs say instead of Importance, by the first word of the value.
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


def check_mime(content: bytes) -> str | None:
    """Return why `content` is no MIME message that can be sent, or None if it is one.

    Damage is no reason: it is sent more or less as it is.
    """
    if not content or content.isspace():
        return "expected a MIME message, found nothing"
    end = header_end(content)
    return check_header(content[: end.header], content[end.header : end.body])


def check_header(header: bytes, blank: bytes) -> str | None:
    """Return why a header section is none of a message that can be sent, or None if it is.

    `blank` is the empty line behind it.
    """
    if not header:
        return "expected a MIME message, found no header field in line 1"
    if len(header) > HEADER_OCTETS_MAX:
        return f"its header has {len(header)} bytes, expected at most {HEADER_OCTETS_MAX}"
    if (header[-1:], blank) in _TORN_LINE_ENDS:  # and what is behind it may be more of the header
        found = (header[-1:] + blank).replace(b"\r", b" CR").replace(b"\n", b" LF").decode()
        return f"the last line of its header ends in{found}, expected CR LF and an empty line"
    if line := lost_recipients(header):
        shown = ascii(line[:_SHOWN_OCTETS].decode("utf-8", "replace").rstrip())
        return f"found {shown} in its header, expected a name such as Bcc, a colon and addresses"
    return None


def header_of(content: bytes) -> bytes:
    """Return the header section, without the empty line that ends it."""
    end = header_end(content)
    header = content[: end.header]
    if end.body == end.header:
        return header
    return header.removesuffix(b"\n").removesuffix(b"\r")


def read_properties_of_header(fields: "Message[str, str]") -> MessageProperties:
    """Return what a header tells: all properties but body and attachments."""
    in_reply_to = message_ids(read_token(fields, "in-reply-to"))
    return MessageProperties(
        subject=read_text(fields, "subject"),
        from_=_first(read_people(fields, "from")),
        sender=_first(read_people(fields, "sender")),
        to=read_people(fields, "to"),
        cc=read_people(fields, "cc"),
        bcc=read_people(fields, "bcc"),
        reply_to=read_people(fields, "reply-to"),
        importance=_importance(fields),
        internet_message_id=read_token(fields, "message-id"),
        internet_message_headers=_other_fields(fields),
        categories=tuple(_phrases(fields, "keywords")),
        sensitivity=_SENSITIVITIES.get(read_token(fields, "sensitivity").lower(), "normal"),
        read_receipt=bool(read_people(fields, "disposition-notification-to")),
        in_reply_to=in_reply_to[0] if in_reply_to else "",
        references=message_ids(read_token(fields, "references"))[:_IDS_MAX],
        conversation_index=read_token(fields, "thread-index").replace(" ", ""),
    )


def read_people(message: "Message[str, str]", name: str) -> tuple[Person, ...]:
    """Return the people of an address field; groups flattened, names decoded."""
    with contextlib.suppress(Exception):  # headers of strangers break `email` in many ways
        pairs = _addresses(_values(message, name))[:_ADDRESSES_MAX]
        return tuple(
            Person(_address(address), words_in(person))
            for person, address in pairs
            if "@" in address
        )
    return ()


def unread_people(message: "Message[str, str]", name: str) -> str:
    """Return what read_people() would pass over in an address field, "" if it reads everything.

    The stdlib's reader is lenient: it skips what is no address, and takes `a@x <b@y>` for two.
    """
    count = 0
    for value in _values(message, name):
        try:
            found = [address for _, address in _addresses([value]) if address]
        except Exception:  # noqa: BLE001 - headers of strangers break `email` in many ways
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
    """A From or Sender field: who stands in it, and what could not be read ("" if nothing)."""

    name: str
    people: tuple[Person, ...]
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
        field = read_header(octets)
        people = tuple(_in_one_form(person) for person in read_people(field, shown))
        yield Originators(shown, people, unread_people(field, shown) or _ambiguous(field, shown))


def _in_one_form(person: Person) -> Person:
    """Return a person whose local part has no quotes that it does not need.

    What is not ASCII stays: two domains may have one form in IDNA 2003 and be different today.
    """
    if not person.address.isascii():
        return person
    with contextlib.suppress(AddressError):
        return Person(parse_mailbox(person.address), person.name)
    return person


def _ambiguous(message: "Message[str, str]", name: str) -> str:
    """Return a value in which readers may see different addresses, "" if there is none.

    Outside of quotes and comments a backslash is no escape (RFC 5322 3.2.3), but some readers take
    it for one: the quote after it begins a string for some and not for others.
    """
    for value in _values(message, name):
        if any(_STRAY_ESCAPE.search(piece) for piece in _outside_quotes(value)):
            return value
    return ""


def _addresses(values: list[str]) -> list[tuple[str, str]]:
    """Return (name, address) of all in some fields, the same on every Python.

    Later ones give nothing at all of a field that they find fault with, unless told not to;
    what is wrong with recipients is unread_people()'s to say.
    """
    if getattr(utils, "supports_strict_parsing", False):
        return utils.getaddresses(values, strict=False)
    return utils.getaddresses(values)


def _without_quotes(value: str) -> str:
    """Return an address field without its quoted strings and comments; one without end stays."""
    return "".join(_outside_quotes(value))


def _outside_quotes(value: str) -> list[str]:
    """Return what stands between quoted strings and comments; one without end stays."""
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
    """Return a field's text, unfolded and decoded; "" without one."""
    return words_in(_UNFOLD.sub("", _value(message, name))).strip()


def read_token(message: "Message[str, str]", name: str) -> str:
    """Return a field's value as it is, on one line; "" without one."""
    return _SPACES.sub(" ", _value(message, name)).strip()


def words_in(value: str) -> str:
    """Decode RFC 2047 words; what does not decode stays as it is."""
    return decode_words(_repaired(value).encode()) if "=?" in value else _repaired(value)


def date_us_of(message: "Message[str, str]") -> int:
    """Return the time in Date; 0 for none, and for one before 1970 or beyond the calendar."""
    with contextlib.suppress(Exception):  # dates of strangers break `email` in many ways
        at = parsedate_to_datetime(read_token(message, "date"))
        at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0, int(at.timestamp()) * 1_000_000)
    return 0


def _phrases(message: "Message[str, str]", name: str) -> Iterator[str]:
    """Yield the phrases of a field, and of others of its name, each decoded."""
    with contextlib.suppress(Exception):  # headers of strangers break `email` in many ways
        for value in _values(message, name):
            for phrase in _PHRASE.findall(value)[:_PHRASES_MAX]:
                plain = _QUOTED.sub(lambda found: _ESCAPED.sub(r"\1", found[1]), phrase.strip())
                if plain.strip():
                    yield words_in(plain).strip()


def _values(message: "Message[str, str]", name: str) -> list[str]:
    return [_UNFOLD.sub("", _repaired(value)) for value in message.get_all(name, [])]


def _value(message: "Message[str, str]", name: str) -> str:
    with contextlib.suppress(Exception):
        return _repaired(str(message.get(name) or ""))
    return ""


def _repaired(value: str) -> str:
    """Read raw 8-bit header text as the UTF-8 that it mostly is."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _address(address: str) -> str:
    local_part, _, domain = _repaired(address).rpartition("@")
    return f"{local_part}@{domain.lower()}"


def _first(people: tuple[Person, ...]) -> Person | None:
    return people[0] if people else None


def _importance(message: "Message[str, str]") -> str:
    told = read_token(message, "importance").lower()
    if told in _IMPORTANCES:
        return told
    for name, meanings in _PRIORITIES.items():
        word = read_token(message, name).partition(" ")[0].lower()
        if found := meanings.get(word) or meanings.get(word[:1]):
            return found
    return "normal"


def _other_fields(message: "Message[str, str]") -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, words_in(_UNFOLD.sub("", value)).strip())
        for name, value in message.items()
        if name.lower() not in _REPRESENTED
        and not name.lower().startswith(("content-", "x-relay-"))
    )
