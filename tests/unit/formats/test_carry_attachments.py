"""Attachments of a stored message that a forward or reply carries."""

from relay.base.message.content import BLOCK_BYTES, MemoryOctets
from relay.formats.edit_attachments import carried_attachments


def test_a_message_is_carried_as_it_is_where_the_blocks_of_its_octets_divide_a_line_end():
    header = b"Subject: %b\r\n\r\n" % (b"s" * 52)
    inner = header + (b"x" * 62 + b"\r\n") * (BLOCK_BYTES // 64 + 1)
    assert inner[BLOCK_BYTES - 1 : BLOCK_BYTES + 1] == b"\r\n"
    content = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\n\r\n%b\r\n--b--\r\n"
    ) % inner
    [carried] = carried_attachments(MemoryOctets(content), lambda _facts: True)
    assert (carried.part.content_type, carried.part.item) == ("message/rfc822", True)
    assert carried.octets.read(0, carried.octets.size) == inner
