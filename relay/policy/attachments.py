"""Find the attachments of a message with all their names and types, declared or found.

Of a part only as many octets are decoded as its type needs. Base64 is decoded as lenient programs
do: octets that are not base64 do not count, nor does padding before the end.
RFC 2045 6 (encodings); relay/mime/file_types.py has the types.
"""

from binascii import a2b_base64
from collections.abc import Iterator, Sequence

from msgspec import Struct

from relay.message.content import Octets, octets_in_blocks, octets_of
from relay.message.header import ParsedContent
from relay.mime.file_types import OTHER_NAMES, file_types
from relay.mime.transfer_encoding import decoded_blocks
from relay.policy.message_parts import MessagePart

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64 = bytes(set(range(256)) - set(_BASE64))
_BLOCK_OCTETS = 16 * 1024


class AttachedFile(Struct, frozen=True):
    """A file in a message: its normalised names, and its types in lower case."""

    names: tuple[str, ...]
    types: tuple[str, ...]


def attachments(content: ParsedContent, parts: Sequence[MessagePart]) -> tuple[AttachedFile, ...]:
    """Return the attachments among the parts of a content.

    Reading blocks; raises OSError for a large body that cannot be read.
    """
    octets = octets_of(content.joined())
    return tuple([_attachment(octets, each) for each in parts if each.is_attachment])


def _attachment(octets: Octets, part: MessagePart) -> AttachedFile:
    declared = part.content_type
    types = [declared, OTHER_NAMES.get(declared, declared)]
    for encoding in part.encodings if part.is_leaf else ():
        body = octets.part(part.start, part.end - part.start)
        types += file_types(_decoded(body, encoding))
    return AttachedFile(part.names, tuple(dict.fromkeys(types)))


def _decoded(octets: Octets, encoding: str) -> Iterator[bytes]:
    if encoding == "base64":
        return _from_base64(octets)
    return decoded_blocks(octets, encoding)


def _from_base64(octets: Octets) -> Iterator[bytes]:
    held = b""
    for block in octets_in_blocks([octets], _BLOCK_OCTETS):
        held += block.translate(None, _NOT_BASE64)
        end = len(held) // 4 * 4
        yield a2b_base64(held[:end])
        held = held[end:]
    if len(held) > 1:
        yield a2b_base64(held + b"=" * (4 - len(held)))
