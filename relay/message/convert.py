"""Turn a draft into the MIME that is submitted: once per message, the Graph process's step 3.

On the path: pickup hands the note's bytes in and submits what comes out.
Holds: no private block, no Bcc; Date and Message-ID are there; lines end in CRLF. MIME content goes
out as it came otherwise. The same note gives the same bytes, so that a repeat after a crash is the
same message.
Fails: ConversionError, with a text for the report to the sender.
Standards: RFC 5321 2.3.1 (envelope and content).
"""

from collections.abc import Iterable

from relay.message.address import AddressError, parse_mailbox
from relay.message.content import Content, MemoryOctets, Octets, in_sight, is_eight_bit
from relay.message.converted import ConversionError, Converted
from relay.message.draft import DraftOrigin, read_private
from relay.message.fields import ascii_address
from relay.message.from_mime import from_mime, header_end, with_crlf
from relay.message.from_properties import from_properties
from relay.message.mimeread import (
    check_mime,
    header_of,
    read_header,
    read_people,
    read_text,
    read_token,
    unread_people,
)
from relay.message.properties import Person
from relay.message.propertyfields import sender_beside

__all__ = ["ConversionError", "Converted", "convert", "render"]

_RECIPIENT_FIELDS = ("To", "Cc", "Bcc")


def convert(note: bytes | Octets, *, now_us: int, hostname: str) -> Converted:
    """Return the MIME, the recipients (To, Cc, Bcc; each once) and what the transport must know.

    `now_us` and `hostname` serve only a message without Date or Message-ID that has no block.
    Raises ConversionError, and OSError where the note cannot be read.
    """
    note = MemoryOctets(note) if isinstance(note, bytes) else note
    block, length = read_private(note)
    is_mime = block is None or block.properties is None
    raw = note.read(0, note.size) if is_mime else b""
    origin = block.origin if block else _origin_of_a_stranger(raw, now_us, hostname)
    content: Content
    authors: tuple[Person | None, ...]
    notify_success, header_is_ascii = False, True
    if block is not None and block.properties is not None:
        properties = block.properties
        content = from_properties(note, block, length, keep_bcc=False)
        people = (*properties.to, *properties.cc, *properties.bcc)
        authors = (sender_beside(properties), properties.from_)
        message_id, subject = origin.message_id, properties.subject
        notify_success = properties.delivery_receipt
        header_is_ascii = header_of(in_sight(content)).isascii()  # of Reply-To's addresses, too
    else:
        if reason := check_mime(raw[length:]):
            raise ConversionError(f"The draft cannot be sent: {reason}.")
        content, had = from_mime(raw[length:], origin)
        header = read_header(had)
        for name in _RECIPIENT_FIELDS:
            if unread := unread_people(header, name):
                raise ConversionError(f"The draft cannot be sent: {name} has {unread[:100]!r}.")
        people = tuple(one for name in _RECIPIENT_FIELDS for one in read_people(header, name))
        authors = tuple(next(iter(read_people(header, name)), None) for name in ("sender", "from"))
        message_id = read_token(header, "message-id") or origin.message_id
        subject = read_text(header, "subject")
    named = [one.address for one in authors if one] or [origin.account]
    originators = [one and _checked(ascii_address(one)) for one in named]
    recipients = _each_once(people)
    if not recipients:
        raise ConversionError("The message has no recipients: To, Cc and Bcc are empty.")
    return Converted(
        content=content,
        originator=originators[0],
        recipients=recipients,
        smtputf8=not (header_is_ascii and all(map(str.isascii, (*originators, *recipients)))),
        eight_bit=is_eight_bit(content),
        message_id=message_id,
        subject=subject,
        notify_success=notify_success,
    )


def render(raw: bytes | Octets) -> Content:
    """Return a stored file as its owner reads it: MIME without the block, Bcc kept.

    Raises OSError where it cannot be read.
    """
    stored = MemoryOctets(raw) if isinstance(raw, bytes) else raw
    block, length = read_private(stored)
    if block is None or block.properties is None:
        return stored.read(length, stored.size - length)
    return from_properties(stored, block, length, keep_bcc=True)


def _origin_of_a_stranger(raw: bytes, now_us: int, hostname: str) -> DraftOrigin:
    content = with_crlf(raw)
    author = read_people(read_header(content[: header_end(content)]), "from")
    account = author[0].address if author else ""
    return DraftOrigin(account, "", f"<{now_us}@{hostname}>", now_us, now_us)


def _each_once(people: Iterable[Person]) -> tuple[str, ...]:
    """Addresses with domains in lower case and A-labels, each once, in their order."""
    found: dict[str, str] = {}
    for person in people:
        address = _checked(ascii_address(person.address))
        found.setdefault(address.lower(), address)
    return tuple(found.values())


def _checked(address: str) -> str:
    """Return the canonical address: what a mail client put into a draft may be anything.

    Raises ConversionError.
    """
    try:
        return parse_mailbox(address, smtputf8=True)
    except AddressError as error:
        raise ConversionError(f"The draft cannot be sent: {error}.") from None
