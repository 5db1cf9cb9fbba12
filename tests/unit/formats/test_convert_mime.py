"""MIME drafts are sent unchanged; what SMTP cannot carry is repaired, reported, and reads the same."""

import email
import email.policy
import re
import time
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.content import BLOCK_BYTES, LargeContent, read_all, size_of
from relay.formats.convert import ConversionError, convert, render
from relay.formats.draft import DraftOrigin
from relay.formats.read_header import check_mime
from relay.formats.structure import read_structure
from tests.support.contents import Counted
from tests.support.drafts import write_mime_draft
from tests.support.long_tests import sampled
from tests.support.tables import each_row
from tests.unit.formats.test_structure import entities

ORIGIN = DraftOrigin(
    "alice@example.test", "1.R0123456789abcdef_1.h", "<id@h>", 5, 1_700_000_000_000_000
)
ADDED = (
    b"From: alice@example.test\r\nDate: Tue, 14 Nov 2023 22:13:20 +0000\r\nMessage-ID: <id@h>\r\n"
)
TO = b"To: b@b.test\r\n"
SIGNED = b"Content-Type: multipart/signed; boundary=s\r\n\r\n--s\r\n\r\n%b\r\n--s\r\n\r\nsignature\r\n--s--\r\n"
MIXED = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n%b\r\n--b--\r\n"

SAME = object()  # as it was


def converted(content):
    return convert(write_mime_draft(content, ORIGIN), now_us=0, hostname="h")


def sent(content):
    """Return the sent content, without the fields that every message has, and its defects."""
    made = converted(content)
    octets = read_all(made.content)
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\0", octets)
    assert octets.endswith(b"\r\n")
    assert made.eight_bit == (not octets.isascii())
    assert octets.count(ADDED) == 1
    return octets.replace(ADDED, b""), made.defects


def leaves(content):
    """What a reader finds in the leaves of a message: type and decoded text."""
    message = email.message_from_bytes(content)
    return [
        (part.get_content_type(), part.get_payload(decode=True))
        for part in message.walk()
        if not part.is_multipart()
    ]


def crlf(content):
    return re.sub(rb"\r\n|\r|\n", b"\r\n", content)


@each_row(
    "content, wanted, defect",
    [
        (
            b"\r\nx\0y\0\r\n",
            b"MIME-Version: 1.0\r\n\r\neAB5AA0K\r\n",
            "a NUL in text/plain, encoded again",
        ),
        (
            b"some junk\r\nX: y\r\n\r\nx\r\n",
            SAME,
            "a line in a header that is not a field: 'some junk'",
        ),
        (b"hello\r\nworld\r\n", b"\r\nhello\r\nworld\r\n", "no blank line between header and body"),
        (
            SIGNED % (b"x" * 999),
            SAME,
            "a line of more than 998 octets in text/plain, left as it is",
        ),
        (SIGNED % b"x\0y", SIGNED % b"xy", "a NUL in a body"),
        (
            b"X-A: " + b"a" * 600 + b" " + b"b" * 600 + b"\r\n\r\n",
            b"X-A: " + b"a" * 600 + b"\r\n " + b"b" * 600 + b"\r\n\r\n",
            "a line of more than 998 octets in a header",
        ),
        (
            b"X-A: " + b"a" * 2000 + b"\r\n\r\n",
            b"X-A:\r\n " + (b"a" * 997 + b"\r\n ") * 2 + b"a" * 6 + b"\r\n\r\n",
            "a line of more than 998 octets in a header",
        ),
        (
            MIXED % (b"X-A: " + b"a b" * 600 + b"\r\n\r\n"),
            None,
            "a line of more than 998 octets in a header",
        ),
        (MIXED % b"A: b", SAME, "no blank line between header and body"),
        (
            MIXED % (b"Content-Type: message/partial\r\n\r\n" + b"x" * 999),
            None,
            "a line of more than 998 octets in message/partial, left as it is",
        ),
        (
            MIXED % b"A: b\r\n\nx\xfc",
            MIXED % b"A: b\r\n\r\nx\xfc",
            "octets of 8 bits where the encoding is 7bit",
        ),
    ],
)
def test_damage_is_repaired_only_if_necessary_and_reported(content, wanted, defect):
    octets, defects = sent(TO + content)
    header = b"Content-Transfer-Encoding: base64\r\n"
    if wanted is not None:
        assert octets.replace(header, b"") == TO + (content if wanted is SAME else wanted)
    assert defect in defects
    assert max(map(len, octets.split(b"\r\n"))) <= 998 or "left" in defect


@each_row(
    "before, defect",
    [
        (b"From a@b Mon\r\n", "the line before the header was removed"),
        (b"\xef\xbb\xbfBcc: c@d.test\r\n", "a byte order mark before a header"),
        (b"\xef\xbb\xbf", "a byte order mark before a header"),
    ],
)
def test_what_is_before_the_header_is_removed_and_reported(before, defect):
    octets, defects = sent(before + TO + b"\r\nx\r\n")
    assert (octets, defect in defects) == (TO + b"\r\nx\r\n", True)


@pytest.mark.parametrize("where", ["alone", "in a part", "in an attached message"])
@each_row(
    "fields, text, encoding",
    [
        ("", "x" * 999, "quoted-printable"),
        ("", "x " * 2000 + "\r\nend", "quoted-printable"),
        ("", "ü" * 999, "base64"),
        (
            "Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n",
            "<p>ü</p>" + "x" * 5000,
            "quoted-printable",
        ),
        ("content-transfer-encoding:\r\n 7bit\r\nX-B: c\r\n", "=" * 3000, "base64"),
        ("", "x\n" * 3 + "y" * 999 + "\rz", "quoted-printable"),
        ("Content-Transfer-Encoding: base64\r\n", b64encode(b"text" * 3000).decode(), "base64"),
        (
            "Content-Transfer-Encoding: Quoted-Printable\r\n",
            "=C3=BC" * 999 + "\r\n.=\r\nx=3Dy ",
            "quoted-printable",
        ),
    ],
)
def test_lines_that_are_too_long_are_encoded_again(fields, text, encoding, where):
    content = (fields + "\r\n" + text).encode()
    if where == "in an attached message":
        content = b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n" + content
    if where != "alone":
        content = MIXED % (b"Content-Type: text/plain\r\n\r\nfirst\r\n--b\r\n" + content)
    content = TO + content
    octets, defects = sent(content)
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    assert [one for one in defects if one.endswith("encoded again")]
    encodings = {one.encoding for one in read_structure(octets).entities if one.is_leaf}
    assert encodings <= {encoding, "7bit"}
    if where == "alone":
        assert octets.count(b"MIME-Version: 1.0\r\n") == 1
    had = [(kind, crlf(payload)) for kind, payload in leaves(content)]
    # after the last line of a message that is not a part comes a line end
    assert [(kind, text.removesuffix(b"\r\n")) for kind, text in leaves(octets)] == had


def test_binary_attachments_keep_every_octet():
    binary = bytes(range(256)) * 50 + b"\r\n\n\r\0"
    content = TO + MIXED % (
        b"Content-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n\r\n" + binary
    )
    octets, defects = sent(content)
    assert leaves(octets) == [("image/png", binary)]
    assert "a NUL in image/png, encoded again" in defects


def test_a_break_in_a_long_line_produces_no_delimiter():
    text = b"y" * 1000 + b"".join(b"x" * n + b"--b\r\n" for n in range(900, 1100))
    octets, _ = sent(TO + MIXED % (b"\r\n" + text))
    assert leaves(octets) == leaves(TO + MIXED % (b"\r\n" + text))


@given(entities(), st.sampled_from([b"\r\n", b"\n", b"\r"]))
def test_well_formed_mime_is_sent_octet_for_octet(lines, line_end):
    content = line_end.join([b"To: b@b.test", b"Bcc: c@c.test", *lines, b""])
    octets, _ = sent(content)
    wanted = crlf(content).replace(b"Bcc: c@c.test\r\n", b"", 1)
    if b"\0" not in content:
        assert octets == wanted
    assert [one for one, _ in leaves(octets)] == [one for one, _ in leaves(wanted)]


@given(entities(), st.data())
def test_damaged_mime_is_sent_and_hides_no_recipient(lines, data):
    content = b"\r\n".join([*lines, b""])
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(content)))
        new = data.draw(
            st.sampled_from(
                [b"", b"\r", b"\n", b"\0", b"\r\n\r\n", b"--", b"\xff", b"x" * 1500, b" " * 1500]
            )
        )
        content = content[:place] + new + content[place + data.draw(st.integers(0, 30)) :]
    content = TO + b"junk\r\nB\0cc: hidden@b.test\r\nX-A: b\r\n" + content
    if refused := check_mime(content):  # half of the blank line is missing
        assert re.search("its header ends in (CR CR LF|LF CR), expected", refused)
        with pytest.raises(ConversionError, match=re.escape(refused)):
            converted(content)
        return
    made = converted(content)
    assert made.recipients[:2] == ("b@b.test", "hidden@b.test")
    octets = read_all(made.content)
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\0", octets)
    assert b"hidden@" not in octets
    again = converted(octets)
    assert read_all(again.content) == octets


def large(part):
    text = b"".join(b64encode(bytes([number % 256]) * 57) + b"\r\n" for number in range(20_000))
    head = b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    return TO + b"Bcc: c@c.test\r\n" + MIXED % (part + b"\r\n--b\r\n" + head + text)


@pytest.mark.parametrize(
    "part", [b"\r\nhello", b"\r\n" + b"x" * 2000, b"\r\n\0", b"\r\nline\nfeeds"]
)
def test_only_the_headers_of_a_large_message_are_in_memory(part):
    content = large(part)
    draft = Counted(write_mime_draft(content, ORIGIN))
    made = convert(draft, now_us=0, hostname="h")
    assert isinstance(made.content, LargeContent)
    assert made.content.header == TO + MIXED[: MIXED.index(b"\r\n") + 2] + ADDED
    assert b"Bcc" not in made.content.header
    octets = read_all(made.content)
    assert draft.most_bytes <= BLOCK_BYTES
    assert size_of(made.content) == len(octets)
    assert leaves(octets)[1] == leaves(content)[1]
    assert leaves(octets)[0][1].replace(b"\r\n", b"\n") == leaves(content)[0][1].replace(
        b"\r\n", b"\n"
    )


def test_a_large_draft_is_shown_unchanged():
    content = large(b"\r\nx")
    shown = render(Counted(write_mime_draft(content, ORIGIN)))
    assert read_all(shown) == content


@each_row(
    "fields",
    [
        b"To: a@b.test, nobody\r\n",
        b"junk\r\nTo: b@b.test\r\nCc: x\0@\r\n",
        TO + b" \r\nBcc\xa0: c@d.test\r\n",
        TO + b"A: b\r",
        b"",
        b"Subject: x\r\n",
        b"x" * 200_000,
    ],
)
def test_unreadable_recipients_are_an_error(fields):
    with pytest.raises(ConversionError):
        converted(fields + b"\r\nx\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b"x" * 375_000,
        b"\r" * 75_000,
        b"\0\n" * 40_000,
        b"a\xff\n" * 50_000,
        b"--b\r\n" * 30_000,
        b"=" * 250_000,
        b" " * 250_000,
    ],
)
@each_row("encoding", sampled([b"7bit", b"base64", b"quoted-printable", b"binary"], one_of=2))
def test_repairs_take_linear_time(line, encoding):
    part = b"Content-Transfer-Encoding: " + encoding + b"\r\n\r\n" + line
    started = time.process_time()
    size_of(converted(TO + MIXED % part).content)
    assert time.process_time() - started < 0.3
