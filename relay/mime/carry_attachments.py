"""Carry attachments of a stored message to a new draft, as a forward or reply does.

They stay in the message's file and are read in blocks while the draft is written. Attachments of
MIME are encoded again where a draft needs it; what is damaged is carried as far as it can be read.
All functions block, and raise OSError where the file cannot be read.
RFC 2045 6.8 (base64); RFC 2046 5.2.1 (message/rfc822 is not encoded).
"""

from collections.abc import Callable

from msgspec.structs import replace

from relay.message.content import Octets
from relay.mime.draft import (
    AttachmentFacts,
    DraftAttachment,
    as_message,
    new_attachment,
    read_private_block,
    stored_attachments,
)
from relay.mime.read_mime import AttachedOctets, read_attachments
from relay.mime.structure import BodyStatistics
from relay.mime.transfer_encoding import (
    RewrappedBase64,
    decoding_of,
    recode,
    whole_base64_size,
)


def carried_attachments(
    stored: Octets, wanted: Callable[[AttachmentFacts], bool]
) -> tuple[DraftAttachment, ...]:
    """Return the attachments of a file of a mailbox for which `wanted` is true."""
    found = read_attachments(stored)
    chosen = [number for number, one in enumerate(found) if wanted(one.facts)]
    block, _ = read_private_block(stored)
    if block is not None and block.properties is not None:
        whole = stored_attachments(stored)
        return tuple(whole[number] for number in chosen)
    return tuple(_from_mime(found[number]) for number in chosen)


def _from_mime(one: AttachedOctets) -> DraftAttachment:
    new = new_attachment(one.facts, one.octets)
    if one.facts.item and (part := _as_message(one, new)):
        return part
    if one.encoding == "base64" and whole_base64_size(one.octets) is not None:
        return replace(new, octets=recode(one.octets, RewrappedBase64()))
    if coding := decoding_of(one.encoding):
        return new_attachment(one.facts, recode(one.octets, coding))
    return new


def _as_message(one: AttachedOctets, new: DraftAttachment) -> DraftAttachment | None:
    """Return an attached message without encoding; None if it can only be carried in base64."""
    counted = BodyStatistics.of(one.octets)
    if not counted.fits_smtp:
        return None
    return DraftAttachment(as_message(new.part, eight_bit=counted.eight_bit), one.octets)
