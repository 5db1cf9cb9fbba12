"""Contents for tests: a small one in the form of a large one, what is attached to one, and octets
that count how much of them is read.

The octets are the same, the body in two pieces.
"""

from relay.base.message.content import Content, LargeContent, MemoryOctets, SpanOfOctets
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


class Counted:
    """Octets that count how much of them is read, in total and at most at once."""

    def __init__(self, octets: bytes) -> None:
        self.octets, self.size = octets, len(octets)
        self.read_bytes = self.most_bytes = 0

    def read(self, start: int, length: int) -> bytes:
        self.read_bytes += length
        self.most_bytes = max(self.most_bytes, length)
        return self.octets[start : start + length]

    def part(self, start: int, length: int) -> SpanOfOctets:
        return SpanOfOctets(self, start, min(length, self.size - start))
