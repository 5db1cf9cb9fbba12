"""Change a draft of MIME.

A PATCH of header fields changes these fields only. A new body, and an attachment that is added or
removed, make it a draft of properties, whose MIME is made anew when it is sent, as Exchange does.
Of a large draft only the header and the texts are in memory.

Raises NotEditableError for a draft whose content properties cannot hold, and OSError if the file
cannot be read.
RFC 5322 3.6; RFC 1847.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.content import Octets, Splice, spliced
from relay.base.message.extended_properties import extended_header_fields
from relay.base.message.header import BYTE_ORDER_MARK, Header, HeaderField, cleaned
from relay.base.message.properties import MessageProperties
from relay.formats.draft import (
    AttachmentFacts,
    DraftAttachment,
    as_message,
    new_attachment,
    read_private_block,
    stored_attachments,
    with_defaults,
)
from relay.formats.read_header import read_properties_of_header
from relay.formats.read_mime import (
    TEXT_OCTETS_MAX,
    AttachedOctets,
    read_attachments,
    read_message,
    sorted_leaves,
)
from relay.formats.structure import BodyStatistics, Structure, read_structure
from relay.formats.transfer_encoding import RewrappedBase64, decoding_of, recode, whole_base64_size
from relay.formats.write_header import address_list_field, header_fields

CRLF = b"\r\n"
# The fields of a property: when it changes, all of them are removed and one may be written again.
_FIELDS_OF: Mapping[str, Sequence[str]] = {
    "subject": ("Subject", "Thread-Topic"),
    "from_": ("From", "Sender"),
    "sender": ("Sender",),
    "to": ("To",),
    "cc": ("Cc",),
    "bcc": ("Bcc",),
    "reply_to": ("Reply-To",),
    "internet_message_id": ("Message-ID",),
    "importance": ("Importance", "X-Priority", "X-MSMail-Priority", "Priority"),
    "sensitivity": ("Sensitivity",),
    "categories": ("Keywords",),
    "read_receipt": ("Disposition-Notification-To",),
    "in_reply_to": ("In-Reply-To",),
    "references": ("References",),
    "conversation_index": ("Thread-Index",),
}
_WRITTEN = frozenset(
    (
        *(name.lower() for names in _FIELDS_OF.values() for name in names),
        *("date", "mime-version"),
    )
)
_ENCRYPTED = ("application/pkcs7-mime", "application/x-pkcs7-mime")


class NotEditableError(ValueError):
    """The draft cannot be changed, for example because it is signed or encrypted."""


class DraftParts(Struct, frozen=True):
    """A draft as one of properties: the properties, and the attachments with their ids."""

    properties: MessageProperties
    attachments: tuple[DraftAttachment, ...]


def parts_of_draft(stored: Octets) -> DraftParts:
    """Return the properties and attachments of a draft's file. Reading blocks.

    Raises NotEditableError if it is MIME with content that properties cannot hold, and OSError.
    """
    block, length = read_private_block(stored)
    message = read_message(stored).properties
    if block is not None and block.properties is not None:
        return DraftParts(message, stored_attachments(stored))
    structure = read_structure(stored.part(length, stored.size - length))
    if reason := _obstacle(structure):
        raise NotEditableError(f"The body and the attachments cannot be changed: {reason}.")
    of_extended = [name.lower() for name, _ in extended_header_fields(message.extended)]
    fields = read_properties_of_header(structure.message.fields, is_stored=False)
    others = tuple(
        (name, value)
        for name, value in fields.internet_message_headers
        if name.lower() not in (*_WRITTEN, *of_extended) and not name.lower().startswith("content-")
    )
    properties = replace(
        fields,
        body=message.body,
        body_type=message.body_type,
        delivery_receipt=message.delivery_receipt,
        extended=message.extended,
        internet_message_headers=others,
    )
    numbered = enumerate(carried_attachments(stored, lambda _: True))
    attachments = tuple(
        replace(carried, part=replace(carried.part, id=carried.part.id or str(number)))
        for number, carried in numbered
    )
    return DraftParts(with_defaults(properties, block), attachments)


def _obstacle(structure: Structure) -> str:
    """Return why a message cannot become a draft of properties, "" if it can."""
    own = [entity for entity in structure.entities if not entity.is_forwarded]
    if structure.message.content_type in _ENCRYPTED or any(entity.protected for entity in own):
        return "the message is signed or encrypted"
    if not structure.is_complete:
        return "the message has more parts, or more parts inside each other, than are read"
    leaves = sorted_leaves(structure)
    if leaves.html and leaves.text and leaves.text.above != "multipart/alternative":
        return "the message has a text beside its HTML"
    body = leaves.html or leaves.text
    if body and body.entity.end - body.entity.body_start > TEXT_OCTETS_MAX:
        return f"its text has more than {TEXT_OCTETS_MAX} octets"
    return ""


def with_change(
    properties: MessageProperties, before: MessageProperties, after: MessageProperties
) -> MessageProperties:
    """Return properties in which those are of `after` that differ from `before`.

    `before` may have fewer recipients than a field has.
    """
    names = (*_FIELDS_OF, "body", "body_type", "delivery_receipt", "extended")
    differing = [name for name in names if getattr(before, name) != getattr(after, name)]
    return replace(properties, **{name: getattr(after, name) for name in differing})


def with_changed_fields(
    content: Octets, before: MessageProperties, after: MessageProperties
) -> Octets:
    """Return MIME content with the fields of the properties that differ from `before`.

    `before` are the properties that were read of the content. Reading blocks; raises OSError.
    """
    structure = read_structure(content)
    message = structure.message
    # a NUL in a name, or a byte order mark, would hide a field
    is_odd = b"\0" in message.header or message.header.startswith(BYTE_ORDER_MARK)
    header = Header.parse(cleaned(message.header) if is_odd else message.header)
    changed = [name for name in _FIELDS_OF if getattr(before, name) != getattr(after, name)]
    names = [name for attribute in changed for name in _FIELDS_OF[attribute]]
    if before.extended != after.extended:
        names += [name for name, _ in extended_header_fields((*before.extended, *after.extended))]
    octets = _with_fields(header, names, _written(after)).octets
    octets += message.blank or CRLF * (structure.size > message.body_start)
    return spliced(content, [Splice(0, message.body_start, [octets])])


def _with_fields(header: Header, names: Iterable[str], written: Sequence[HeaderField]) -> Header:
    """Return a header in which the fields called `names` are the `written` fields of these names.

    They are put where the first old field of the same name was, else at the end.
    """
    lower_names = {name.lower().encode() for name in names}
    new = [field for field in written if field[0] in lower_names]
    kept = []
    for name, octets in header.fields:
        if name not in lower_names:
            kept.append((name, octets))
            continue
        kept += [field for field in new if field[0] == name]
        new = [field for field in new if field[0] != name]
    return Header(tuple(kept)).append(b"".join(line for _, line in new))


def _written(properties: MessageProperties) -> Sequence[HeaderField]:
    """Return all header fields of the properties, with their names in lower case."""
    typed = replace(properties, internet_message_headers=())  # they repeat all fields
    fields = header_fields(typed, message_id=properties.internet_message_id)
    header = address_list_field("Bcc", properties.bcc) + fields
    return Header.parse(header.encode()).fields


def carried_attachments(
    stored: Octets, is_wanted: Callable[[AttachmentFacts], bool]
) -> tuple[DraftAttachment, ...]:
    """Return the attachments of a file of a mailbox for which `is_wanted` is true."""
    attachments = read_attachments(stored)
    chosen = [number for number, part in enumerate(attachments) if is_wanted(part.facts)]
    block, _ = read_private_block(stored)
    if block is not None and block.properties is not None:
        whole = stored_attachments(stored)
        return tuple(whole[number] for number in chosen)
    return tuple(_from_mime(attachments[number]) for number in chosen)


def _from_mime(attached: AttachedOctets) -> DraftAttachment:
    new = new_attachment(attached.facts, attached.octets)
    if attached.facts.item and (part := _as_message(attached, new)):
        return part
    if attached.encoding == "base64" and whole_base64_size(attached.octets) is not None:
        return replace(new, octets=recode(attached.octets, RewrappedBase64()))
    if coding := decoding_of(attached.encoding):
        return new_attachment(attached.facts, recode(attached.octets, coding))
    return new


def _as_message(attached: AttachedOctets, new: DraftAttachment) -> DraftAttachment | None:
    """Return an attached message without encoding; None if it can only be stored in base64."""
    counted = BodyStatistics.of(attached.octets)
    if not counted.fits_smtp:
        return None
    return DraftAttachment(as_message(new.part, eight_bit=counted.eight_bit), attached.octets)
