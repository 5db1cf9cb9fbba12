"""Convert a draft to the message that is submitted: MIME, envelope, and what SMTP must know.

Pickup passes the stored file of a draft and submits the result. relay.formats.mime_of_properties
writes the content of a draft with Graph's properties; relay.formats.repair_mime repairs the content
of a MIME draft. Bcc and the private block are removed. The same file gives the same bytes: a repeat
after a crash submits the same message. ConversionError has a text for the DSN to the sender.
OSError is raised if the content cannot be read.

RFC 5321 2.3.1 (envelope and content); RFC 6531 (SMTPUTF8); RFC 6152 (8BITMIME); RFC 3461 4.1
(NOTIFY).
"""

from collections.abc import Iterable, Sequence
from email.message import Message

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message import content as contents
from relay.base.message.address import AddressError, own_mailbox, parse_odd_mailbox
from relay.base.message.conversation import own_message_id
from relay.base.message.header import Header
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.formats import draft
from relay.formats.mime_of_properties import mime_of_properties
from relay.formats.read_header import (
    check_header,
    first_person,
    originators,
    read_addresses,
    read_text,
    read_token,
    unreadable_addresses,
)
from relay.formats.repair_mime import RepairedMime, repair_mime
from relay.formats.structure import read_structure
from relay.formats.write_header import explicit_sender


class ConversionError(Exception):
    """The draft cannot be converted to a message that can be sent. The text says why."""


class ConvertedMessage(Struct, frozen=True):
    """The message to submit."""

    content: contents.Content  # as it is sent
    originator: str  # the reverse-path: the address in Sender, else From
    # the addresses in From, Sender and their Resent fields; "" for a field without an address
    authors: tuple[str, ...]
    recipients: tuple[str, ...]  # of To, Cc and Bcc
    smtputf8: bool  # it needs SMTPUTF8 (RFC 6531)
    eight_bit: bool  # it needs 8BITMIME (RFC 6152)
    message_id: str  # with its angle brackets
    subject: str  # decoded, for the journey
    defects: tuple[str, ...] = ()  # damage in MIME and repairs, each as a short text
    notify_success: bool = False  # the sender requested a DSN on delivery too
    changes: tuple[str, ...] = ()  # parts and fields made, added or removed, for the journey
    from_mime: bool = False  # the draft was MIME


_ORIGINATORS = ("From", "Sender", "Resent-From", "Resent-Sender")
_RECIPIENT_FIELDS = ("To", "Cc", "Bcc")


def convert(stored: bytes | contents.Octets, *, now_us: int, hostname: str) -> ConvertedMessage:
    """Return the message to submit, with the recipients in To, Cc and Bcc, each once.

    A content larger than relay.base.message.content.LARGE_BYTES is not copied into memory. `now_us`
    and `hostname` are used only for a message without a block that lacks Date or Message-ID.
    Reading blocks. Raises ConversionError, and OSError where the file cannot be read.
    """
    octets = contents.as_octets(stored)
    block, length = draft.read_private_block(octets)
    if block is not None and block.properties is not None:
        return _of_properties(octets, block, length)
    if block is None and draft.private_block_length(octets.read(0, draft.FIRST_FIELD_BYTES)):
        raise ConversionError("The draft's file is damaged.")
    content = octets.part(length, octets.size - length)
    structure = read_structure(content)
    if reason := check_header(structure.message.header, structure.message.blank):
        raise ConversionError(f"The draft cannot be sent: {reason}.")
    header = structure.message.fields
    origin = block.origin if block else _origin_without_block(header, now_us, hostname)
    made = _of_mime(header, repair_mime(content, structure, origin), origin)
    wants_receipt = block is not None and block.beside is not None and block.beside.delivery_receipt
    return replace(made, notify_success=True) if wants_receipt else made


def render(raw: bytes | contents.Octets) -> contents.Content:
    """Return a stored file as MIME for its owner: without the block, with Bcc. Raises OSError."""
    stored = contents.as_octets(raw)
    block, length = draft.read_private_block(stored)
    if block is not None and block.properties is not None:
        return mime_of_properties(stored, block, length, keep_bcc=True)[0]
    content = stored.part(length, stored.size - length)
    if content.size <= contents.LARGE_BYTES:
        return content.read(0, content.size)
    # this header is not edited, and its line ends may be of any kind
    return contents.LargeContent(b"", (content,), eight_bit=True)


def _of_properties(
    stored: contents.Octets, block: draft.PrivateBlock, length: int
) -> ConvertedMessage:
    properties, origin = block.properties, block.origin
    assert properties is not None
    author = properties.from_ or EmailAddress(origin.account)
    _checked(author.address)
    sender = explicit_sender(properties) or author
    envelope = _envelope(sender, (*properties.to, *properties.cc, *properties.bcc))
    content, texts = mime_of_properties(stored, block, length, keep_bcc=False)
    header = Header.of(content)
    return ConvertedMessage(
        content=content,
        originator=envelope.originator,
        authors=_authors_made(header, properties) or (author.address, sender.address),
        recipients=envelope.recipients,
        # an address in another field, such as Reply-To, may need it
        smtputf8=envelope.smtputf8 or not header.octets.isascii(),
        eight_bit=contents.is_eight_bit(content),
        message_id=origin.message_id,
        subject=properties.subject,
        notify_success=properties.delivery_receipt,
        changes=_changes(block, texts),
    )


def _changes(block: draft.PrivateBlock, texts: Sequence[str]) -> tuple[str, ...]:
    """Return the parts that were made of properties, and the fields that were removed."""
    changes = [f"{field} made" for field in texts]
    if len(texts) > 1:
        changes[0] += " from the HTML"
    if block.attachments:
        changes.append(f"attachments: {len(block.attachments)}")
    if block.properties is not None and block.properties.bcc:
        changes.append("Bcc removed")
    return tuple(changes)


def _of_mime(
    header: "Message[str, str]", sent: RepairedMime, origin: draft.DraftOrigin
) -> ConvertedMessage:
    for name in _RECIPIENT_FIELDS:
        if unread := unreadable_addresses(header, name):
            raise ConversionError(f"The draft cannot be sent: {name} has {unread[:100]!r}.")
    added = filter(None, [sent.sender])
    people = (*added, *read_addresses(header, "sender"), *read_addresses(header, "from"))
    senders = (person for person in people if person.address)
    addressees = [person for name in _RECIPIENT_FIELDS for person in read_addresses(header, name)]
    envelope = _envelope(next(iter(senders), EmailAddress(origin.account)), addressees)
    return ConvertedMessage(
        content=sent.content,
        originator=envelope.originator,
        authors=_authors(Header.of(sent.content)),
        recipients=envelope.recipients,
        smtputf8=envelope.smtputf8,
        eight_bit=contents.is_eight_bit(sent.content),
        message_id=own_message_id(read_token(header, "message-id")) or origin.message_id,
        subject=read_text(header, "subject"),
        defects=sent.defects,
        changes=sent.changes,
        from_mime=True,
    )


def _authors_made(header: Header, properties: MessageProperties) -> tuple[str, ...]:
    """Return the authors in the header of a message that was made from properties.

    () means that `from_` and `sender` are the only ones. Others occur where a mail client wrote the
    draft, because its private block may then contain anything.
    """
    expected = sum(map(bool, (properties.from_, explicit_sender(properties))))
    count = sum(map(header.count, _ORIGINATORS))
    return () if count == expected else _authors(header)


def _authors(header: Header) -> tuple[str, ...]:
    authors: list[str] = []
    for field in originators(header):
        authors += [author.address for author in field.addresses]
        if field.unread or not field.addresses:
            authors.append("")
    return tuple(authors)


def _origin_without_block(
    header: "Message[str, str]", now_us: int, hostname: str
) -> draft.DraftOrigin:
    author = first_person(read_addresses(header, "from"))
    account = author.address if author else ""
    return draft.DraftOrigin(account, "", f"<{now_us}@{hostname}>", now_us, now_us)


class _Envelope(Struct, frozen=True):
    originator: str
    recipients: tuple[str, ...]
    smtputf8: bool


def _envelope(author: EmailAddress, addressees: Iterable[EmailAddress]) -> _Envelope:
    """Return the envelope, addresses in canonical form. Raises ConversionError."""
    originator = author.address and _checked(author.address)
    recipients = _canonical_addresses(addressees)
    if not recipients:
        raise ConversionError("The message has no recipients: To, Cc and Bcc are empty.")
    smtputf8 = not all(map(str.isascii, (originator, *recipients)))
    return _Envelope(originator, recipients, smtputf8)


def _canonical_addresses(addressees: Iterable[EmailAddress]) -> tuple[str, ...]:
    """Return the addresses in canonical form, each once, in their order."""
    unique: dict[str, str] = {}
    for addressee in addressees:
        address = _checked(addressee.address)
        unique.setdefault(own_mailbox(address), address)
    return tuple(unique.values())


def _checked(address: str) -> str:
    """Return the canonical address. Raises ConversionError."""
    try:
        return parse_odd_mailbox(address, smtputf8=True)
    except AddressError as error:
        raise ConversionError(f"The draft cannot be sent: {error}.") from None
