"""Attachments of a stored file as they are to lie in the next one: taken over, not copied.

On the path: the store writes a changed draft anew with these, and adds what was uploaded.
Holds: a block is in memory at a time; what is decoded and coded anew reads as it did before.
Fails: OSError where the file cannot be read.
Standards: RFC 2045 6.4 (no encoding on messages), 6.8 (base64).
"""

from base64 import b64encode
from dataclasses import dataclass, replace

from relay.message.content import Octets, SpanOfOctets, octets_in_blocks
from relay.mime.draft import KeptAttachment, Part, base64_lines, read_private
from relay.mime.entities import Tally
from relay.mime.headread import unread_people
from relay.mime.mimebody import SealedError
from relay.mime.mimeread import (
    TEXT_OCTETS_MAX,
    AttachedOctets,
    AttachmentFacts,
    attached,
    sorted_leaves,
)
from relay.mime.recoding import (
    RewrappedBase64,
    base64_size,
    decoded_quoted_printable,
    recoded,
)
from relay.mime.structure import read_structure

__all__ = [
    "Base64Octets",
    "SealedError",
    "check_can_be_rewritten",
    "kept_attachments",
    "new_attachment",
]

_SEALED = frozenset(("application/pkcs7-mime", "application/x-pkcs7-mime"))
_LINE = 76
_LINE_SOURCE = 57  # what a line of base64 stands for
_MESSAGE = "message/rfc822"
_SHOWN_CHARACTERS = 100


def kept_attachments(stored: Octets) -> tuple[KeptAttachment, ...]:
    """Return the attachments of a file of a mailbox; each has its id from here on.

    Reading blocks; raises OSError.
    """
    block, length = read_private(stored)
    if block is not None and block.properties is not None:
        return tuple(
            KeptAttachment(
                replace(part, id=part.id or str(number)),
                stored.part(length + part.offset, part.length),
            )
            for number, part in enumerate(block.attachments)
        )
    return tuple(_from_mime(one, number) for number, one in enumerate(attached(stored)))


def check_can_be_rewritten(stored: Octets) -> None:
    """Raise SealedError for MIME that would lose something if it were written from properties.

    Reading blocks; raises OSError.
    """
    block, length = read_private(stored)
    if block is not None and block.properties is not None:
        return
    structure = read_structure(stored.part(length, stored.size - length))
    leaves = sorted_leaves(structure)
    if structure.message.content_type in _SEALED or any(one.sealed for one in structure.entities):
        raise SealedError("The attachments of a signed or encrypted message cannot be changed.")
    header = structure.message.fields()
    for name in ("To", "Cc", "Bcc"):
        if unread := unread_people(header, name):
            shown = unread[:_SHOWN_CHARACTERS]
            raise SealedError(f"The attachments cannot be changed while {name} has {shown!r}.")
    for leaf in (leaves.html, leaves.text):
        if leaf is not None and leaf.entity.body.size > TEXT_OCTETS_MAX:
            raise SealedError("The message's text is too large for its attachments to be changed.")


def new_attachment(facts: AttachmentFacts, octets: Octets) -> KeptAttachment:
    """Return a file that is to be attached; it is coded while it is read."""
    return KeptAttachment(_part(facts), Base64Octets(octets))


@dataclass(frozen=True, slots=True)
class Base64Octets:
    """Octets in base64, in lines of 76 (relay.message.content.Octets)."""

    source: Octets

    @property
    def size(self) -> int:
        """See Octets."""
        return base64_size(self.source.size)

    def read(self, start: int, length: int) -> bytes:
        """See Octets: whole lines are coded, and cut."""
        end = min(start + length, self.size)
        if start >= end:
            return b""
        first, behind = start // (_LINE + 2), -(-end // (_LINE + 2))
        octets = self.source.read(first * _LINE_SOURCE, (behind - first) * _LINE_SOURCE)
        coded = base64_lines(b64encode(octets)) + b"\r\n"
        skipped = start - first * (_LINE + 2)
        return coded[skipped : skipped + end - start]

    def part(self, start: int, length: int) -> Octets:
        """See Octets."""
        return SpanOfOctets(self, start, max(0, min(length, self.size - start)))


class _FromQuotedPrintable:
    """A relay.mime.recoding.Coding: quoted-printable decoded, line by line."""

    def cut(self, octets: bytes) -> int:
        """See Coding: at a line end; in a longer line, not in the middle of "=XX"."""
        escape = octets.rfind(b"=", -2)
        return octets.rfind(b"\n") + 1 or (len(octets) if escape < 0 else escape)

    def code(self, octets: bytes, *, last: bool) -> bytes:  # noqa: ARG002 - no difference here
        """See Coding."""
        return decoded_quoted_printable(octets)


def _from_mime(one: AttachedOctets, number: int) -> KeptAttachment:
    part = replace(_part(one.facts), id=str(number))
    if one.facts.item:
        text = Tally()
        for block in octets_in_blocks([one.octets]):
            text.add(block, b"")
        told = text.facts()
        if told.has_crlf_only and not told.nul and not told.long_line:
            part = replace(
                part, item=True, base64=False, content_type=_MESSAGE, eight_bit=told.eight_bit
            )
            return KeptAttachment(part, one.octets)
    if one.encoding == "base64":
        return KeptAttachment(part, recoded(one.octets, RewrappedBase64()))
    if one.encoding == "quoted-printable":
        decoded = recoded(one.octets, _FromQuotedPrintable())
        return KeptAttachment(part, Base64Octets(decoded))
    return KeptAttachment(part, Base64Octets(one.octets))


def _part(facts: AttachmentFacts) -> Part:
    """A part in base64; a message that cannot stand as it is is no message/rfc822 any more."""
    return Part(
        offset=0,
        length=0,
        base64=True,
        name=facts.name,
        content_type=facts.content_type,
        size=facts.size,
        inline=facts.inline,
        content_id=facts.content_id,
        id=facts.id,
    )
