"""Contents for tests: a small one in the form of a large one, and what is attached to one.

The octets are the same, the body in two pieces.
"""

from relay.base.message.content import Content, LargeContent, MemoryOctets
from relay.base.message.header import header_end
from relay.formats.read_mime import read_attachments
from relay.formats.transfer_encoding import decoded_blocks


def as_large(content: bytes) -> Content:
    """Return `content` as a large one; unchanged without a blank line where the header ends."""
    end = header_end(content).header
    body = content[end:]
    if not body.startswith(b"\r\n"):
        return content
    half = len(body) // 2
    pieces = (MemoryOctets(body[:half]), MemoryOctets(body[half:]))
    return LargeContent(content[:end], pieces, eight_bit=not body.isascii())


def attached_octets(content: bytes) -> list[bytes]:
    """Return the files that are attached to MIME, decoded."""
    found = read_attachments(MemoryOctets(content))
    return [b"".join(decoded_blocks(one.octets, one.encoding)) for one in found]
