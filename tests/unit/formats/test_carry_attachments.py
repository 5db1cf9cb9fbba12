"""Attachments of a stored message that a forward or reply carries."""

from base64 import b64decode

from relay.base.message.content import BLOCK_BYTES, MemoryOctets, as_bytes, as_octets
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.formats.convert import convert
from relay.formats.draft import DraftOrigin, draft_content
from relay.formats.edit_attachments import add_part, carried_attachments


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


def test_base64_that_lacks_its_padding_is_encoded_anew():
    content = (
        b"Content-Type: application/octet-stream; name=a.bin\r\n"
        b"Content-Disposition: attachment\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        b"YWJjZGVmZ2hpamtsbW5v\r\nYWJj756\r\n"
    )
    [carried] = carried_attachments(MemoryOctets(content), lambda _facts: True)
    octets = b64decode(carried.octets.read(0, carried.octets.size), validate=True)
    assert octets == b"abcdefghijklmnoabc\xef\x9e"


def test_the_multiparts_over_a_message_of_8_bits_say_so():
    """RFC 2045 6.4: a multipart names the widest encoding in it."""
    content = (
        b"Content-Type: multipart/mixed; boundary=b\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        b"Subject: inner\r\n\r\n\xc3\xa9\r\n--b--\r\n"
    )
    carried = carried_attachments(MemoryOctets(content), lambda _facts: True)
    author = EmailAddress("a@b.test")
    properties = MessageProperties(from_=author, to=(author,), body="c")
    draft = as_bytes(
        draft_content(properties, DraftOrigin("a@b.test", "1", "<m@b>", 1, 1), carried)
    )
    converted = convert(draft, now_us=0, hostname="h")
    text = MemoryOctets(b"Content-Type: text/plain\r\n\r\nx\r\n")
    added = add_part(text, carried[0]).content
    for octets in (draft, as_bytes(as_octets(converted.content)), added.read(0, added.size)):
        assert b"\r\nContent-Transfer-Encoding: 8bit" in octets.partition(b"\r\n--")[0]
