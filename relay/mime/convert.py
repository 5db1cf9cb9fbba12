"""Turn a draft into the MIME that is submitted: once per message, the Graph process's step 3.

On the path: pickup hands the note's bytes in and submits what comes out.
Holds: no private block, no Bcc; Date and Message-ID are there; lines end in CRLF. MIME content goes
out as it came otherwise. The same note gives the same bytes, so that a repeat after a crash is the
same message.
Fails: ConversionError, with a text for the report to the sender.
Standards: RFC 5321 2.3.1 (envelope and content).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from email.message import Message

from relay.message.address import AddressError, parse_mailbox
from relay.message.content import (
    LARGE_BYTES,
    Content,
    LargeContent,
    MemoryOctets,
    Octets,
    in_sight,
    is_eight_bit,
)
from relay.message.properties import Person
from relay.mime.converted import ConversionError, Converted
from relay.mime.draft import (
    FIRST_FIELD_BYTES,
    DraftOrigin,
    PrivateBlock,
    private_length,
    read_private,
)
from relay.mime.fields import ascii_address
from relay.mime.from_mime import SentMime, from_mime
from relay.mime.from_properties import from_properties
from relay.mime.headread import (
    check_header,
    header_of,
    read_people,
    read_text,
    read_token,
    unread_people,
)
from relay.mime.propertyfields import sender_beside
from relay.mime.structure import read_structure

__all__ = ["ConversionError", "Converted", "convert", "render"]

_RECIPIENT_FIELDS = ("To", "Cc", "Bcc")


def convert(note: bytes | Octets, *, now_us: int, hostname: str) -> Converted:
    """Return the MIME, the recipients (To, Cc, Bcc; each once) and what the transport must know.

    What is longer than relay.message.content.LARGE_BYTES stays where it lies. `now_us` and
    `hostname` serve only a message without Date or Message-ID that has no block.
    Reading blocks. Raises ConversionError, and OSError where the note cannot be read.
    """
    note = MemoryOctets(note) if isinstance(note, bytes) else note
    block, length = read_private(note)
    if block is not None and block.properties is not None:
        return _of_properties(note, block, length)
    if block is None and private_length(note.read(0, FIRST_FIELD_BYTES)):
        raise ConversionError("The draft's file is damaged: it ends before its content does.")
    content = note.part(length, note.size - length)
    structure = read_structure(content)
    if reason := check_header(structure.message.header, structure.message.blank):
        raise ConversionError(f"The draft cannot be sent: {reason}.")
    header = structure.message.fields()
    origin = block.origin if block else _origin_of_a_stranger(header, now_us, hostname)
    made = _of_mime(header, from_mime(content, structure, origin), origin)
    wants_receipt = block is not None and block.beside is not None and block.beside.delivery_receipt
    return replace(made, notify_success=True) if wants_receipt else made


def render(raw: bytes | Octets) -> Content:
    """Return a stored file as its owner reads it: MIME without the block, Bcc kept.

    Raises OSError where it cannot be read.
    """
    stored = MemoryOctets(raw) if isinstance(raw, bytes) else raw
    block, length = read_private(stored)
    if block is not None and block.properties is not None:
        return from_properties(stored, block, length, keep_bcc=True)
    content = stored.part(length, stored.size - length)
    if content.size <= LARGE_BYTES:
        return content.read(0, content.size)
    # nobody edits this header, and its line ends may be any
    return LargeContent(b"", (content,), eight_bit=True)


def _of_properties(note: Octets, block: PrivateBlock, length: int) -> Converted:
    properties, origin = block.properties, block.origin
    assert properties is not None
    author = properties.from_ or Person(origin.account)
    _checked(ascii_address(author.address))
    sender = sender_beside(properties) or author
    envelope = _envelope(sender, (*properties.to, *properties.cc, *properties.bcc))
    content = from_properties(note, block, length, keep_bcc=False)
    return Converted(
        content=content,
        originator=envelope.originator,
        recipients=envelope.recipients,
        # an address of Reply-To, say, may need it as well
        smtputf8=envelope.smtputf8 or not header_of(in_sight(content)).isascii(),
        eight_bit=is_eight_bit(content),
        message_id=origin.message_id,
        subject=properties.subject,
        notify_success=properties.delivery_receipt,
    )


def _of_mime(header: "Message[str, str]", sent: SentMime, origin: DraftOrigin) -> Converted:
    for name in _RECIPIENT_FIELDS:
        if unread := unread_people(header, name):
            raise ConversionError(f"The draft cannot be sent: {name} has {unread[:100]!r}.")
    added = filter(None, [sent.sender])
    authors = (*added, *read_people(header, "sender"), *read_people(header, "from"))
    people = [one for name in _RECIPIENT_FIELDS for one in read_people(header, name)]
    envelope = _envelope(next(iter(authors), Person(origin.account)), people)
    return Converted(
        content=sent.content,
        originator=envelope.originator,
        recipients=envelope.recipients,
        smtputf8=envelope.smtputf8,
        eight_bit=is_eight_bit(sent.content),
        message_id=read_token(header, "message-id") or origin.message_id,
        subject=read_text(header, "subject"),
        defects=sent.defects,
    )


def _origin_of_a_stranger(header: "Message[str, str]", now_us: int, hostname: str) -> DraftOrigin:
    author = read_people(header, "from")
    account = author[0].address if author else ""
    return DraftOrigin(account, "", f"<{now_us}@{hostname}>", now_us, now_us)


@dataclass(frozen=True, slots=True)
class _Envelope:
    originator: str
    recipients: tuple[str, ...]
    smtputf8: bool


def _envelope(author: Person, people: Iterable[Person]) -> _Envelope:
    """Return the envelope, addresses in canonical form. Raises ConversionError."""
    originator = author.address and _checked(ascii_address(author.address))
    recipients = _each_once(people)
    if not recipients:
        raise ConversionError("The message has no recipients: To, Cc and Bcc are empty.")
    smtputf8 = not all(map(str.isascii, (originator, *recipients)))
    return _Envelope(originator, recipients, smtputf8)


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
