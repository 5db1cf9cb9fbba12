"""The file of a draft: it is read as it was written, and a forged block has no effect."""

import email
import email.policy
import re
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from relay.base.message.properties import Attachment, EmailAddress, MessageProperties
from relay.formats import draft
from tests.support.drafts import read_attachments, split_private, write_draft, write_mime_draft
from tests.support.tables import each_row

ORIGIN = draft.DraftOrigin(
    account="alice@example.test",
    base_name="1700000000.R0123456789abcdef_1.relay.example.test",
    message_id="<0123456789abcdef@relay.example.test>",
    created_us=1_700_000_000_000_000,
    modified_us=1_700_000_000_000_001,
)
ALICE = EmailAddress("alice@example.test", "Alice")


def attached(name: str, content: bytes, **more) -> Attachment:
    return Attachment(name, "application/octet-stream", b64encode(content), len(content), **more)


FULL = MessageProperties(
    subject="Größe  and a\ttab",
    body_type="html",
    body="<p>Maß</p>\n.\r\nFrom x",
    from_=ALICE,
    sender=ALICE,
    to=(EmailAddress("b@b.test", "Bob, Jr."),),
    cc=(EmailAddress("c@c.test"),),
    bcc=(EmailAddress("d@d.test"),),
    reply_to=(EmailAddress("r@r.test"),),
    importance="high",
    internet_message_headers=(("X-A", "é"), ("x-b", "2")),
    attachments=(attached("Übersicht.txt", b"\0\xff" * 100), attached("", b"", inline=True)),
    categories=("red",),
)


def test_properties_are_read_as_they_were_written():
    raw = write_draft(FULL, ORIGIN)
    assert structs.replace(draft.read_properties(raw), attachments=read_attachments(raw)) == FULL
    block, length = split_private(raw)
    assert block.origin == ORIGIN
    part = block.attachments[0]
    stored = raw[length:][part.offset : part.offset + part.length]
    assert draft.part_octets(stored, part) == b"\0\xff" * 100
    assert draft.read_block(raw[: draft.private_block_length(raw)]) == block


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400), st.booleans())
def test_any_body_is_read_as_it_was_written(body, with_attachment):
    files = (attached("a", b"b"),) if with_attachment else ()
    wanted = MessageProperties(body=body, from_=ALICE, attachments=files)
    raw = write_draft(wanted, ORIGIN)
    assert draft.read_properties(raw).body == body
    assert not email.message_from_bytes(raw).defects


@pytest.mark.parametrize(
    "body",
    ["x" * 5000, "a\rb", "a\0b", "--=_1700000000_R0123456789abcdef_1_relay_example_test--\r\n"],
)
def test_a_body_is_encoded_if_necessary(body):
    raw = write_draft(
        MessageProperties(body=body, from_=ALICE, attachments=FULL.attachments), ORIGIN
    )
    assert draft.read_properties(raw).body == body
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert next(message.iter_parts()).get_content_type() == "text/plain"
    assert len(list(message.iter_parts())) == 3
    assert max(map(len, raw.split(b"\n"))) <= 998


@pytest.mark.parametrize("content", [b"Subject: x\n\ny", b"\r\n\r\n", b"X-Relay-Draft: 1 ", b""])
def test_mime_is_kept_byte_for_byte(content):
    raw = write_mime_draft(content, ORIGIN)
    block, length = split_private(raw)
    assert block.is_mime
    assert block.origin == ORIGIN
    assert raw[length:] == content


GOOD = write_draft(FULL, ORIGIN)


@each_row(
    "raw",
    [
        b"",
        b"Subject: x\r\n\r\n",
        b"\r\n" + GOOD,
        b"Received: x\r\n" + GOOD,
        b"X-Relay-Draft: 1 9999999999\r\nX-Relay-Data: {}\r\n",
        b"X-Relay-Draft: 1 0000000000\r\n",
        b"X-Relay-Draft: 1 0000000048\r\nX-Relay-Data: {\xff\r\n\r\nbody",
        b"X-Relay-Draft: 1 0000000049\r\nX-Relay-Data: []\r\n\r\nbody....",
        re.sub(rb'"offset":\d', b'"offset":-', GOOD),
        re.sub(rb'"length":\d\d', b'"length":99', GOOD),
        GOOD[:-900],
        GOOD.replace(b'"account":"a', b'"account":"b'),
        GOOD.replace(b"X-Relay-Check: ", b"X-Relay-Check; "),
        re.sub(rb"X-Relay-Check: .", b"X-Relay-Check: x", GOOD),
    ],
)
def test_a_damaged_block_is_not_a_block(raw):
    assert split_private(raw) == (None, 0)
    with pytest.raises(ValueError, match="draft"):
        draft.read_properties(raw)


def test_a_block_of_relay_0_2_has_no_checksum():
    length = draft.private_block_length(GOOD)
    data, _, rest = GOOD[draft.FIRST_FIELD_BYTES :].partition(b"X-Relay-Check: ")
    old = b"X-Relay-Draft: 1 %010d\r\n" % (draft.FIRST_FIELD_BYTES + len(data)) + data + rest[10:]
    assert split_private(old) == (split_private(GOOD)[0], length - 25)


_LONG_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml.pivotCacheDefinition+xml"


@each_row(
    "given_type, written",
    [
        ("text/plain", "text/plain"),
        ("Text/HTML; charset=ISO-8859-1; Name=y", "text/html;\r\n charset=ISO-8859-1"),
        (
            'text/calendar; method=REQUEST;charset="utf-8"',
            'text/calendar;\r\n method=REQUEST;\r\n charset="utf-8"',
        ),
        ('a/b; x="c;d\r\nBcc: e"; y=\xe9; z=1', "a/b;\r\n z=1"),
        ("", "application/octet-stream"),
        ("garbage", "application/octet-stream"),
        ("message/rfc822", "application/octet-stream"),
        ("Multipart/Mixed; boundary=x", "application/octet-stream"),
        ("a/" + "b" * 500, "application/octet-stream"),
        (_LONG_TYPE, _LONG_TYPE.lower()),
    ],
)
def test_content_types_are_made_safe(given_type, written):
    assert draft.safe_content_type(given_type) == written
