"""The copy of a message for Microsoft Graph, which has no envelope: To, Cc and Bcc are it.

They are rewritten to exactly the recipients of one request. A field that some reader may
understand in another way is written again as a whole, with the names that people see. Lines that
are no fields leave the header: for some readers it ends there. The body stays as it is.
Nothing raises. RFC 5322 3.6.3, 3.6.6.
"""

import re
from collections.abc import Sequence
from contextlib import suppress

from msgspec import Struct

from relay.base.message.address import AddressError, own_mailbox, parse_odd_mailbox
from relay.base.message.content import Content
from relay.base.message.header import Header, HeaderField, ParsedContent, cleaned
from relay.base.message.properties import EmailAddress
from relay.formats.address_list import Entry, address_entries
from relay.formats.read_header import body_charset, decode_text, repaired
from relay.formats.write_header import address_list_field, is_message_id

_FIELDS = ("To", "Cc", "Bcc")
_RESENT = ("Resent-To", "Resent-Cc", "Resent-Bcc")
_ID = "Message-ID"
# A group, a comment, an escape, a control, or no entry: not every reader sees the same addresses.
_DOUBTFUL = re.compile(rb"[;:()\\\0-\x08\v\f\x0e-\x1f\x7f]|,\s*+(?:,|\Z)|\A\s*+,")
_BLANK_LINE = re.compile(rb"\0*+(?>\r\n|[\r\n])")
_WHITE_LINE = re.compile(rb"(?<=\r\n)[ \t]++\r\n")  # for some readers the end of the header


class GraphCopy(Struct, frozen=True):
    """The content, and the addresses that its fields have no more."""

    content: Content
    left_out: tuple[str, ...]


def graph_copy(content: Content, recipients: Sequence[str], *, message_id: str = "") -> GraphCopy:
    """Return a copy whose To, Cc and Bcc are these recipients, each once, in the first field that
    has it, and in Bcc if none has; with this Message-ID, "" for its own.
    """
    parsed = ParsedContent.of(content)
    header = _clean(parsed.header)
    keys = {_key(address): address for address in recipients}
    waiting, left = dict(keys), dict[str, None]()
    for name in (*_FIELDS, *_RESENT):
        for person in _entries(header, name):
            if person.address and _key(person.address) not in keys:
                left[repaired(person.address)] = None
    header = header.remove(_RESENT)
    charset = body_charset(header)
    for name in _FIELDS:
        people, is_same = _people(header, name, waiting, charset=charset)
        if name == _FIELDS[-1] and waiting:
            people += [EmailAddress(address) for address in waiting.values()]
            is_same = False
        if not people:
            header = header.remove((name,))
        elif not is_same:
            field = address_list_field(name, people)
            header = header.set(name, field.encode("utf-8", "replace"))
    if message_id and header.values(_ID) != [message_id.encode()]:
        header = header.remove((_ID,)).append(f"{_ID}: {message_id}\r\n".encode())
    rest = parsed.rest
    if isinstance(rest, bytes):
        blank = _BLANK_LINE.match(rest)
        rest = b"\r\n" + rest[blank.end() if blank else 0 :]
    content = ParsedContent(header, rest).joined()
    return GraphCopy(content, tuple(left))


def sole_message_id(content: Content) -> str:
    """Return the Message-ID of a content, "" if it has none, several, or no valid one."""
    values = Header.of(content).values(_ID)
    text = values[0].decode("ascii", "replace") if len(values) == 1 else ""
    return text if is_message_id(text) else ""


def _clean(header: Header) -> Header:
    """Return the header as each reader sees it."""
    fields: list[HeaderField] = []
    for name, octets in Header.parse(_WHITE_LINE.sub(b"", cleaned(header.octets))).fields:
        before, _, rest = octets.partition(b":")
        if name:
            fields.append((name, before.rstrip() + b":" + rest))
        elif fields and fields[-1][0].startswith(b"content-") and fields[-1][1].endswith(b";\r\n"):
            fields[-1] = (fields[-1][0], fields[-1][1] + b" " + octets)  # a fold without a blank
    return Header(tuple(fields))


def _entries(header: Header, name: str) -> list[Entry]:
    values = [text.decode("ascii", "surrogateescape") for text in header.values(name)]
    return [person for text in values for person in address_entries(text)]


def _people(
    header: Header, name: str, waiting: dict[str, str], *, charset: str
) -> tuple[list[EmailAddress], bool]:
    """Return who of those that wait for a field is in this one, and take them out; and whether the
    field needs no change.
    """
    octets = header.first_octets(name) or b""
    body = octets.partition(b":")[2]
    is_same = header.count(name) == 1 and body.isascii() and not _DOUBTFUL.search(body)
    people = []
    for person in _entries(header, name):
        address = waiting.pop(_key(person.address), "")
        is_same &= bool(address) and person.is_plain and f"{person.address}." not in person.text
        if address:
            people.append(EmailAddress(address, decode_text(person.name, charset)))
    return people, is_same


def _key(address: str) -> str:
    """Return an address as it is compared."""
    address = repaired(address)
    with suppress(AddressError):
        address = parse_odd_mailbox(address, smtputf8=True)
    return own_mailbox(address)
