"""Drafts become MIME that other readers read correctly; MIME drafts are sent unchanged."""

import email
import email.policy
import random
import re
import time
import tracemalloc
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from relay.base.message.content import as_octets, size_of
from relay.base.message.properties import Attachment, EmailAddress, MessageProperties
from relay.formats.convert import ConversionError, convert, render
from relay.formats.draft import DraftOrigin, block_bytes, read_private_block
from tests.support.drafts import write_draft, write_mime_draft
from tests.support.tables import each_row

ORIGIN = DraftOrigin(
    "alice@example.test",
    "1.R0123456789abcdef_1.h",
    "<id@h>",
    1_600_000_000_000_000,
    1_700_000_000_000_000,
)
ALICE, BOB = EmailAddress("alice@example.test", "Alice"), EmailAddress("bob@b.test", "Bob")
BINARY = random.Random(7).randbytes(30_000)
TEXT = "first\nsecond\r\n\r\n.\r\nFrom here\r\n=3D ümlaut\r\nno end of line".encode()


def converted(properties: MessageProperties):
    return convert(write_draft(properties, ORIGIN), now_us=0, hostname="h")


def draft(**more) -> MessageProperties:
    return MessageProperties(**({"from_": ALICE, "sender": ALICE, "to": (BOB,)} | more))


def from_mime(content: bytes):
    return convert(write_mime_draft(content, ORIGIN), now_us=0, hostname="h")


def parsed(content: bytes):
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert not [part.defects for part in message.walk() if part.defects]
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", content)
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert content.endswith(b"\r\n")
    assert content.partition(b"\r\n\r\n")[0].isascii()
    assert b"x-relay-" not in content.partition(b"\r\n\r\n")[0].lower()
    assert message["date"]
    return message


def attached(name: str, content: bytes, content_type="application/octet-stream", **more):
    return Attachment(name, content_type, b64encode(content), len(content), **more)


def test_a_whole_message():
    subject = "Bericht ✓ seven steps ✓ " + "with a subject that has to be folded somewhere " * 3
    files = (attached("data.bin", BINARY), attached("Übersicht.txt", TEXT, "text/plain"))
    html = "<html><p>Größe ✓ — <b>done</b></p>\n.\n<p>.dot</p></html>"
    made = converted(
        draft(
            subject=subject,
            body_type="html",
            body=html,
            cc=(EmailAddress("c@c.test", "Müller, Çé"),),
            bcc=(EmailAddress("hidden@d.test"),),
            reply_to=(EmailAddress("r@r.test"),),
            importance="low",
            internet_message_headers=(("X-Mine", "é and more"),),
            attachments=files,
        )
    )
    message = parsed(made.content)
    assert message["subject"].strip() == subject.strip()
    assert message.get_body(("html",)).get_content().replace("\r\n", "\n").strip() == html
    got = {one.get_filename(): one.get_payload(decode=True) for one in message.iter_attachments()}
    assert got == {"data.bin": BINARY, "Übersicht.txt": TEXT}
    assert message["bcc"] is None
    assert b"hidden@" not in made.content
    assert message["cc"].addresses[0].display_name == "Müller, Çé"
    assert (message["importance"], message["x-priority"][0]) == ("low", "5")
    assert (message["message-id"], message["reply-to"]) == ("<id@h>", "r@r.test")
    assert message["x-mine"] == "é and more"
    assert made.recipients == ("bob@b.test", "c@c.test", "hidden@d.test")
    assert (made.originator, made.message_id, made.smtputf8, made.eight_bit) == (
        "alice@example.test",
        "<id@h>",
        False,
        False,
    )


@each_row(
    "body_type, inline, files, structure",
    [
        ("text", 0, 0, "plain"),
        ("html", 0, 0, "alternative plain html"),
        ("text", 0, 1, "mixed plain png"),
        ("html", 1, 0, "alternative plain related html png"),
        ("html", 1, 1, "mixed alternative plain related html png png"),
        ("html", 2, 0, "mixed alternative plain related html png png"),
        ("text", 1, 0, "mixed plain png"),
    ],
)
def test_the_structure_follows_the_properties(body_type, inline, files, structure):
    images = [
        attached(f"{n}.png", b"i", "image/png", inline=True, content_id=f"c{n}")
        for n in range(inline)
    ]
    images += [attached(f"f{n}.png", b"f", "image/png") for n in range(files)]
    made = converted(draft(body_type=body_type, body="<img src=cid:c0>", attachments=tuple(images)))
    message = parsed(made.content)
    assert " ".join(part.get_content_subtype() for part in message.walk()) == structure
    ids = [part["content-id"] for part in message.walk() if part["content-id"]]
    assert ids == [f"<c{n}>" for n in range(inline)]


@each_row(
    "body, shown",
    [
        ('<img srcset="cid:a, cid:b">', "a b"),
        ('<img srcset="cid:a 1x,cid:b 2x" src="cid:c,d">', "a b c,d"),
        ("<p style='background: url(cid:a)'>cid:b,, c", "a b"),
        ("<img src=cid:a%2C><img src='CID:%62'>", "b"),
        (f"<img src=cid:&#{'9' * 5000};&#98;><img src=cid:&#98;>", "b"),
    ],
)
def test_images_of_html_are_in_multipart_related(body, shown):
    images = tuple(
        attached(f"{one}.png", b"i", "image/png", inline=True, content_id=one)
        for one in ("a", "b", "c,d")
    )
    message = parsed(converted(draft(body_type="html", body=body, attachments=images)).content)
    inline = [
        one["content-id"] for one in message.walk() if one.get_content_disposition() == "inline"
    ]
    assert inline == [f"<{one}>" for one in shown.split()]


@pytest.mark.parametrize("files", [(), (attached("f", b"x"),)], ids=["alone", "mixed"])
@each_row(
    "body",
    [
        "",
        ".",
        ".\r\n..\r\nFrom x",
        "no end",
        "x" * 5000,
        "ü" * 3000,
        "a\tb \r\n c  ",
        "=3D =_ x\r\n",
        "--=_1_R0123456789abcdef_1_h_mixed--\r\nend",
        "a\rb\nc",
        "nul\0nul",
    ],
)
def test_a_text_body_is_equal_after_decoding(body, files):
    message = parsed(converted(draft(body=body, attachments=files)).content)
    got = message.get_body(("plain",)).get_payload(decode=True).decode()
    wanted = re.sub("\r\n|\r|\n", "\r\n", body)
    assert got == wanted if files else got.removesuffix("\r\n") == wanted.removesuffix("\r\n")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_text_body_is_equal_after_decoding(body):
    message = parsed(converted(draft(body=body, attachments=(attached("f", b"x"),))).content)
    got = message.get_body(("plain",)).get_payload(decode=True).decode()
    assert got == re.sub("\r\n|\r|\n", "\r\n", body)


def test_each_recipient_is_listed_once_with_a_labels():
    people = (EmailAddress("B@x.test"), EmailAddress("b@X.TEST"), EmailAddress("c@bücher.test"))
    assert converted(draft(to=people, bcc=people)).recipients == (
        "B@x.test",
        "c@xn--bcher-kva.test",
    )


def test_a_local_part_that_needs_smtputf8_is_written_unchanged():
    made = converted(draft(to=(EmailAddress("jörg@b.test", "Jörg"),), subject="é"))
    assert made.smtputf8
    header = made.content.partition(b"\r\n\r\n")[0]
    assert "<jörg@b.test>".encode() in header
    assert b"Subject: =?utf-8?" in header


MIME = (
    b'from:  Alice\r\n\t<alice@example.test>\r\nTo: carol@a.test (a comment),\r\n  "Dave, Jr." <dave@a.test>\r\n'
    b"BCC: hidden@a.test,\r\n more@a.test\r\nX-Odd:\r\n \r\n\tstill odd\r\nsubject: =?utf-8?q?Sch=C3=B6n?=\r\n"
    b'Date: Mon, 2 Jan 2006 15:04:05 -0700 (MST)\r\nMessage-ID: <odd."quoted"@a.test>\r\n'
    b'Content-type: Multipart/Mixed; (what) Boundary="=_ b(o)und\'ary?"\r\n\r\npreamble \t\r\n\r\n'
    b"--=_ b(o)und'ary?\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\nBcc: inner@kept.test\r\n\r\nFrom me\r\n"
    b"--=_ b(o)und'ary?--\r\nepilogue\r\n\r\n\r\n"
)


def test_mime_gets_missing_fields():
    made = from_mime(b"To: b@b.test\r\nSubject: x\r\n\r\nbody")
    message = parsed(made.content)
    assert made.content.startswith(b"To: b@b.test\r\nSubject: x\r\n")
    assert (message["from"], message["message-id"]) == ("alice@example.test", "<id@h>")
    assert message["date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    assert made.content.endswith(b"\r\n\r\nbody\r\n")


@pytest.mark.parametrize(
    "content", [b"To: b@b.test", b"To: b@b.test\r\n", b"To: b@b.test\n\n", b"To: b@b.test\r\n\r\n"]
)
def test_a_header_without_a_body_is_a_message(content):
    made = from_mime(content)
    assert made.recipients == ("b@b.test",)
    assert parsed(made.content).get_payload().strip() == ""


@each_row(
    "raw",
    [
        write_draft(MessageProperties(from_=ALICE), ORIGIN),
        write_mime_draft(b"Subject: nobody\r\n\r\n", ORIGIN),
        write_mime_draft(b"To: undisclosed-recipients:;\r\n\r\n", ORIGIN),
        write_mime_draft(b"To: b@b.test\r\nCc: nobody\r\n\r\n", ORIGIN),
        write_mime_draft(b"\x00\xff", ORIGIN),
        b"",
    ],
)
def test_drafts_that_cannot_be_sent_are_rejected_with_a_reason(raw):
    with pytest.raises(ConversionError, match=r"recipients|MIME message|Cc has 'nobody'"):
        convert(raw, now_us=0, hostname="h")


def test_the_owner_sees_bcc_but_not_the_private_block():
    raw = write_draft(draft(bcc=(EmailAddress("d@d.test"),)), ORIGIN)
    message = parsed(render(raw))
    assert message["bcc"] == "d@d.test"
    assert render(write_mime_draft(MIME, ORIGIN)) == MIME
    assert render(MIME) == MIME


def test_the_date_is_when_the_message_was_finished():
    for content in (converted(draft()).content, from_mime(b"To: b@b.test\r\n\r\n").content):
        assert parsed(content)["date"].datetime.timestamp() == ORIGIN.modified_us / 1_000_000


@pytest.mark.parametrize("line", ["é\n", "\n", "x" * 990 + "\n", "=_\r\n"])
def test_a_large_text_costs_a_few_copies_and_little_time(line):
    body = line * (600_000 // len(line))
    tracemalloc.start()
    started = time.process_time()
    made = converted(draft(body=body))
    taken_s, (_, peak_bytes) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken_s < 1
    assert peak_bytes < 12 * size_of(made.content)


@pytest.mark.parametrize("field", ["to", "cc", "bcc", "from_"])
@each_row("address", ["a@b>\r\nRCPT TO:<c@d", "a b@c.test", "a", "a@b\0c", "<a@b.test>"])
def test_an_invalid_address_never_reaches_an_smtp_command(field, address):
    people = EmailAddress(address) if field == "from_" else (EmailAddress(address),)
    with pytest.raises(ConversionError, match="cannot be sent"):
        converted(draft(**{field: people}))


# -- drafts that a mail client wrote, with a private block of its own

EVE = "eve@other.test"


@each_row(
    "properties, origin",
    [
        ({"internet_message_headers": (("From", EVE),)}, {}),
        ({"internet_message_headers": (("SENDER", EVE),)}, {}),
        ({"internet_message_headers": (("Resent-From", EVE),)}, {}),
        ({"internet_message_headers": (("From", EVE),), "from_": None, "sender": None}, {}),
        ({"conversation_index": f"AA\r\nFrom: {EVE}"}, {}),
        ({"conversation_index": f"AA\r\n\ufeffFrom: {EVE}"}, {}),
        ({}, {"message_id": f"<a@b.test>\r\nFrom: {EVE}"}),
        ({}, {"message_id": f"<a@b.test>\rFr\0om : {EVE}"}),
        ({"from_": None, "sender": None}, {"account": EVE}),
        ({"from_": EmailAddress(EVE)}, {}),
        ({"sender": EmailAddress(EVE)}, {}),
    ],
)
def test_a_forged_block_of_properties_hides_no_author(properties, origin) -> None:
    written = write_draft(draft(), ORIGIN)
    block, length = read_private_block(as_octets(written))
    assert block is not None
    forged = replace(
        block, properties=replace(block.properties, **properties), origin=replace(ORIGIN, **origin)
    )
    sent = convert(block_bytes(forged) + written[length:], now_us=0, hostname="h")
    assert EVE in sent.authors


@pytest.mark.parametrize(
    ("header", "origin"),
    [
        (b"", {"account": EVE}),
        (b"From: alice@example.test\r\n", {"account": EVE, "on_behalf_of": "alice@example.test"}),
    ],
)
def test_a_forged_block_of_mime_hides_no_author(header: bytes, origin: dict[str, str]) -> None:
    content = header + b"To: bob@b.test\r\n\r\nhello\r\n"
    sent = convert(write_mime_draft(content, replace(ORIGIN, **origin)), now_us=0, hostname="h")
    assert EVE in sent.authors
    assert sent.originator in sent.authors
