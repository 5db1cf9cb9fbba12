"""A PATCH of fields of a MIME draft changes them alone; for more it becomes a draft of properties."""

from base64 import b64decode, b64encode
from contextlib import suppress

import pytest
from hypothesis import given
from msgspec import structs

from relay.base.message.content import BLOCK_BYTES, MemoryOctets, as_bytes, as_octets
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.formats.convert import convert
from relay.formats.draft import DraftOrigin, draft_content
from relay.formats.edit_draft import (
    NotEditableError,
    carried_attachments,
    parts_of_draft,
    with_change,
    with_changed_fields,
)
from relay.formats.read_mime import TEXT_OCTETS_MAX, read_attachments, read_message, read_mime
from relay.formats.structure import ENTITIES_MAX
from relay.formats.transfer_encoding import decoded_blocks
from tests.support.contents import Counted
from tests.support.tables import each_row
from tests.unit.formats.test_structure import entities

FROM = b"From: a@a.test\r\n"
TEXT = b"Content-Type: text/plain\r\n\r\nold text"
HTML = b"Content-Type: text/html; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n<p>\xfc</p>"
IMAGE = (
    b"Content-Type: image/png\r\nContent-ID: <i>\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC"
)
FILE = b'Content-Type: application/pdf; name="f.pdf"\r\nContent-Transfer-Encoding: base64\r\n\r\nAAECAw=='
ITEM = b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\nTo: x@x.test\r\n\r\ninner text"
SIGNATURE = b"Content-Type: application/pgp-signature\r\n\r\nsignature"


def multipart(kind, *parts, preamble=b""):
    mark = kind[:3]
    body = b"".join(b"--%b\r\n%b\r\n" % (mark, part) for part in parts)
    return b"Content-Type: multipart/%b; boundary=%b\r\n\r\n%b%b--%b--\r\n" % (
        kind,
        mark,
        preamble,
        body,
        mark,
    )


@each_row(
    "new, had, has",
    [
        ({"subject": "néu"}, b"Subject: old\r\n", b"Subject: =?utf-8?B?bsOpdQ==?=\r\n"),
        ({"subject": ""}, b"Subject: old\r\n", b""),
        (
            {"to": (EmailAddress("n@n.test", "N, N"),)},
            b"To: b@b.test,\r\n c@c.test\r\n",
            b'To: "N, N" <n@n.test>\r\n',
        ),
        ({"bcc": ()}, b"bcc: d@d.test\r\n", b""),
        (
            {"importance": "high"},
            b"Importance: low\r\nX-Priority: 5\r\n",
            b"Importance: high\r\nX-Priority: 1 (Highest)\r\n",
        ),
        ({"read_receipt": False}, b"Disposition-Notification-To: a@a.test\r\n", b""),
        ({"categories": ("x", "y z")}, b"Keywords: w\r\n", b"Keywords: x,\r\n y z\r\n"),
    ],
)
def test_only_the_fields_of_a_changed_property_change(new, had, has):
    header = (
        FROM
        + b"X-Odd:\t odd  \r\n more\r\nSubject: old\r\nTo: b@b.test,\r\n c@c.test\r\nbcc: d@d.test\r\nImportance: low\r\nX-Priority: 5\r\n"
        b"Disposition-Notification-To: a@a.test\r\nKeywords: w\r\nMIME-Version: 1.0 (odd)\r\nmessage-id: <m@m>\r\n"
    )
    content = header + multipart(b"mixed", TEXT, ITEM, FILE, preamble=b"odd \r\n") + b"epilogue\n"
    assert changed_octets(content, **new) == content.replace(had, has)


def test_a_new_field_is_added_before_a_line_that_is_not_a_field():
    """There the header ends for others."""
    content = FROM + b"junk line\r\nX-A: b\r\n\r\nx"
    assert (
        changed_octets(content, to=(EmailAddress("b@b.test"),))
        == FROM + b"To: b@b.test\r\njunk line\r\nX-A: b\r\n\r\nx"
    )


@pytest.mark.parametrize("line", [b" white space\r\n", b"From a Mon\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_no_field_is_added_before_the_first_line(mark, line):
    made = changed_octets(mark + line + FROM + b"\r\nx", subject="s")
    assert made == line + FROM + b"Subject: s\r\n\r\nx"


def changed_octets(content, **new):
    before = read_mime(content).properties
    made = with_changed_fields(MemoryOctets(content), before, structs.replace(before, **new))
    return made.read(0, made.size)


ALTERNATIVE = multipart(b"alternative", TEXT, HTML)
RELATED = multipart(b"related", HTML.replace(b"\xfc", b"<img src=cid:i>"), IMAGE)


def as_properties(content):
    """Return the file of the draft of properties that a MIME draft becomes."""
    parts = parts_of_draft(MemoryOctets(content))
    origin = DraftOrigin("a@a.test", "base", "<made@a.test>", 0, 0)
    return as_octets(draft_content(parts.properties, origin, parts.attachments))


def files_of(octets):
    """Return facts and octets; a message that SMTP cannot carry becomes a file."""
    files = [
        (one.facts, b"".join(decoded_blocks(one.octets, one.encoding)).removesuffix(b"\r\n"))
        for one in read_attachments(octets)
    ]
    return [(structs.replace(facts, item=False), content) for facts, content in files]


def check_parts(content):
    """Check that a draft of properties reads as the MIME; return it."""
    made = as_properties(content)
    was, now = read_mime(content), read_message(made)
    fields = {"internet_message_headers": (), "from_": None, "internet_message_id": ""}
    now_properties = structs.replace(now.properties, **fields)
    assert now_properties == structs.replace(was.properties, **fields)
    files = files_of(MemoryOctets(content))
    assert [(structs.replace(facts, id=""), octets) for facts, octets in files_of(made)] == files
    assert [facts.id for facts, _ in files_of(made)] == [*map(str, range(len(files)))]
    return made


@each_row(
    "content",
    [
        TEXT,
        HTML,
        b"\r\nno type",
        ALTERNATIVE,
        RELATED,
        multipart(b"mixed", TEXT, FILE),
        multipart(b"mixed", ALTERNATIVE, FILE, ITEM),
        multipart(b"alternative", TEXT, RELATED),
        multipart(b"related", ALTERNATIVE, IMAGE),
        FILE,
        multipart(b"mixed", FILE, multipart(b"mixed", ITEM, ITEM)),
        ITEM.replace(
            b"\r\ninner", b"Content-Type: multipart/signed; boundary=s\r\n\r\n--s\r\n\r\ninner"
        ),
    ],
)
def test_a_draft_of_properties_has_the_texts_and_files_of_the_mime(content):
    content = FROM + b"X-Odd: a\r\nX-Odd: \xc3\xbc\r\nKeywords: w\r\nDate: x\r\n" + content
    headers = read_message(check_parts(content)).properties.internet_message_headers
    assert headers == (("X-Odd", "a"), ("X-Odd", "ü"))


@given(entities())
def test_any_mime_becomes_a_draft_of_properties_or_stays(lines):
    content = b"\r\n".join([FROM.strip(), b"Subject: old", *lines, b""])
    with suppress(NotEditableError):
        check_parts(content)


@each_row(
    "content, reason",
    [
        (multipart(b"signed", TEXT, SIGNATURE), "signed or encrypted"),
        (multipart(b"mixed", multipart(b"encrypted", TEXT, SIGNATURE), FILE), "signed"),
        (b"Content-Type: application/pkcs7-mime\r\n\r\nx", "signed"),
        (multipart(b"mixed", *[b"\r\n"] * ENTITIES_MAX), "more parts"),
        (multipart(b"mixed", HTML, TEXT), "a text beside its HTML"),
        (TEXT + b"x" * TEXT_OCTETS_MAX, "octets"),
    ],
)
def test_mime_that_properties_cannot_hold_stays(content, reason):
    with pytest.raises(NotEditableError, match=reason):
        parts_of_draft(MemoryOctets(FROM + content))
    assert changed_octets(FROM + content, subject="new").endswith(content.partition(b"\r\n\r\n")[2])


def test_recipients_beyond_those_that_are_shown_stay():
    everybody = b",\r\n ".join(b"a%d@a.test" % number for number in range(1500))
    content = FROM + b"To: " + everybody + b"\r\nSubject: old\r\n\r\nx"
    before = read_mime(content).properties
    assert len(before.to) < 1500
    parts = parts_of_draft(MemoryOctets(content))
    after = with_change(parts.properties, before, structs.replace(before, body="new", subject="s"))
    assert (len(after.to), after.body, after.subject) == (1500, "new", "s")


def test_the_files_of_a_large_draft_are_not_in_memory():
    large = b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n%b" % b64encode(
        bytes(3_000_000)
    )
    octets = Counted(FROM + multipart(b"mixed", TEXT, large))
    [attachment] = parts_of_draft(octets).attachments
    assert octets.most_bytes <= BLOCK_BYTES
    assert attachment.octets.size > 4_000_000


def test_without_changes_the_octets_are_the_same():
    content = b"\nodd\n" + multipart(b"mixed", TEXT)
    assert changed_octets(content) == content


def test_a_message_is_carried_as_it_is_where_the_blocks_of_its_octets_divide_a_line_end():
    header = b"Subject: %b\r\n\r\n" % (b"s" * 52)
    inner = header + (b"x" * 62 + b"\r\n") * (BLOCK_BYTES // 64 + 1)
    assert inner[BLOCK_BYTES - 1 : BLOCK_BYTES + 1] == b"\r\n"
    content = multipart(b"mixed", b"Content-Type: message/rfc822\r\n\r\n" + inner)
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
    converted = as_bytes(as_octets(convert(draft, now_us=0, hostname="h").content))
    for octets in (draft, converted):
        assert b"\r\nContent-Transfer-Encoding: 8bit" in octets.partition(b"\r\n--")[0]
