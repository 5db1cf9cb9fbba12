"""Headers: where one ends, its fields, edits that keep every other octet, priority, relay's id."""

import email
import email.policy
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.header import Header, ParsedContent, cleaned, header_end
from relay.formats import headers
from relay.formats.headers import (
    ID_WITHIN_BYTES,
    Priority,
    priority_of,
    read_relay_id,
    with_relay_id,
)
from tests.support.tables import each_row

MESSAGE = (
    b"Received: from a\r\n\tby b; now\r\n"
    b"Subject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?= from\r\n =?utf-8?B?w6Q=?= =?utf-8?B?w7Y=?=\r\n"
    b"X-Relay-Draft: 1\r\n  folded\r\n"
    b"TO : bob@example.net\r\n"
    b"received: from c by d; then\r\n"
    b"\r\n"
    b"Subject: not a field\r\nX-Relay-Body: stays\r\n.\r\n"
)
# Content that is no proper message: none of these may make anything raise.
ODD = [
    b"",
    b"\r\n",
    b"\r\nbody",
    b"body only",
    b"body only\r\n\r\nmore",
    b" folded first\r\nA: b\r\n\r\n",
    b"A: b",
    b"A: b\r\n",
    b"A: b\r\nno field\r\nC: d\r\n\r\nx",
    b"A:\r\n\r\n",
    b": empty\r\n\r\n",
    b"A\0B: c\r\n\r\n",
    b"\xff\xfe: x\r\n\r\n",
    b"A: b\r\n \r\n\t\r\n\r\nx",
    b"A: b\n\nbody\n",
    b"\x00" * 50,
]


def edited(content, edit):
    """Return a content after an edit of its header."""
    parsed = ParsedContent.of(content)
    return replace(parsed, header=edit(parsed.header)).joined()


def test_reading():
    header = Header.of(MESSAGE)
    assert header.first("Received") == b"from a\tby b; now"
    assert header.first("to") == b"bob@example.net"
    assert header.first_octets("TO") == b"TO : bob@example.net\r\n"
    assert header.first("cc") is header.first_octets("cc") is None
    assert header.first("relay-draft") is None
    assert headers.decoded(header, "subject") == "Grüße from äö"
    assert headers.decoded(header, "cc") == ""
    assert header.count("received") == 2
    assert header.values("received") == [b"from a\tby b; now", b"from c by d; then"]
    assert header.count("x-relay-body") == 0
    assert header.size == len(header.octets) == header_end(MESSAGE).header


def prepended(content, octets=b"A: b\r\n"):
    return edited(content, lambda header: header.prepend(octets))


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (b" , eve@example.org\r\n more\r\n", b"X-Mailbox-Line:  , eve@example.org\r\n more\r\n"),
        (b"From alice Mon\r\n", b"X-Mailbox-Line: From alice Mon\r\n"),
        (b"no field\r\n", b"no field\r\n"),
        (b"\xef\xbb\xbf", b""),
    ],
)
def test_a_new_field_is_neither_continued_nor_hidden_by_the_first_line(first, named):
    content = first + b"Subject: x\r\nBcc: c@d.test\r\n\r\nbody"
    assert prepended(content) == b"A: b\r\n" + named + b"Subject: x\r\nBcc: c@d.test\r\n\r\nbody"
    assert Header.of(prepended(content)).first("bcc") == b"c@d.test"
    removed = edited(content, lambda header: header.remove(["Bcc"]))
    assert removed == first + b"Subject: x\r\n\r\nbody"


def test_remove_keeps_all_other_octets():
    removed = edited(MESSAGE, lambda header: header.remove(["Received", "to"]))
    assert removed == MESSAGE.replace(b"Received: from a\r\n\tby b; now\r\n", b"").replace(
        b"TO : bob@example.net\r\n", b""
    ).replace(b"received: from c by d; then\r\n", b"")
    header = Header.of(MESSAGE)
    assert header.remove(["cc", "rom"]) is header


def with_field(content, name, value):
    return edited(content, lambda header: headers.set_field(header, name, value))


def test_set_field_replaces_the_first_and_removes_the_others():
    changed = with_field(MESSAGE, "Received", "new")
    assert changed == MESSAGE.replace(
        b"Received: from a\r\n\tby b; now\r\n", b"Received: new\r\n"
    ).replace(b"received: from c by d; then\r\n", b"")


def test_set_field_removes_many_others_in_linear_time():
    many = b"A: b\r\nrubbish\r\n" * 12_500 + b"C: d\r\n\r\ntext"
    began = time.process_time()
    changed = with_field(many, "A", "c")
    assert time.process_time() - began < 0.25  # joined one by one, 50,000 took seconds
    assert changed == b"A: c\r\n" + b"rubbish\r\n" * 12_500 + b"C: d\r\n\r\ntext"


@pytest.mark.parametrize("value", ["a\r\nBcc: x", "a\nb", "a\rb", "a\0b"])
def test_no_value_injects_a_field(value):
    for act in (headers.set_field, lambda header, _, value: headers.prefix_subject(header, value)):
        with pytest.raises(ValueError, match="CR, LF or NUL"):
            act(Header.of(MESSAGE), "X-A", value)


@each_row("name", ["", "A B", "A:", "Ä", "A\r\nB", "A" * 127])
def test_bad_names(name):
    with pytest.raises(ValueError, match="field name"):
        headers.set_field(Header.of(MESSAGE), name, "x")


texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=400)


@given(texts)
def test_any_value_reads_as_it_was_written_and_fits_in_lines(value):
    line = headers.field("Subject", value)
    assert line.isascii()
    assert max(map(len, line.split(b"\r\n"))) <= 998
    assert all(part[:1] in (b" ", b"S", b"") for part in line.split(b"\r\n"))
    if "=?" not in value:
        content = line + b"\r\n"
        assert headers.decoded(Header.parse(line), "subject") == value.strip()
        parsed = email.message_from_bytes(content, policy=email.policy.default)
        assert str(parsed["subject"]).split() == value.split()


def with_tag(content, tag):
    return edited(content, lambda header: headers.prefix_subject(header, tag))


@each_row(
    "before, after",
    [
        (b"hello", b"Subject: [EXT] hello\r\n"),
        (b"Re: hello", b"Subject: [EXT] Re: hello\r\n"),
        (b"[EXT] hello", None),
        (b"Re: [EXT] hello", None),
        (b"AW: Re[2]: Fwd: [EXT] hello", None),
        (b"=?utf-8?Q?[EXT]_?= hello", None),
        (b"about [EXT] things", b"Subject: [EXT] about [EXT] things\r\n"),
        (b"", b"Subject: [EXT]\r\n"),
        (b"=?utf-8?B?w6Q=?=\r\n x", b"Subject: [EXT] =?utf-8?B?w6Q=?=\r\n x\r\n"),
        (b"x" * 70, b"Subject: [EXT]\r\n " + b"x" * 70 + b"\r\n"),
    ],
)
def test_prefix_subject(before, after):
    content = b"A: b\r\nSubject: " + before + b"\r\nC: d\r\n\r\nbody"
    expected = content if after is None else b"A: b\r\n" + after + b"C: d\r\n\r\nbody"
    tagged = with_tag(content, "[EXT] ")
    assert tagged == expected
    assert with_tag(tagged, "[EXT] ") == tagged


LINES = st.sampled_from(
    [
        b"A: b",
        b"bcc : c@d.test",
        b"From: a@b.test",
        b"From a Mon",
        b" folded",
        b"odd",
        b"bcc x",
        b"\xef\xbb\xbfBcc: x",
        b"B\0cc: x",
        b"\0",
        b"",
        b"\xff: x",
        b"A:",
    ]
)
ENDS = st.sampled_from([b"\r\n"] * 4 + [b"\n", b"\r", b""])
CONTENTS = st.one_of(
    st.sampled_from(ODD),
    st.binary(max_size=300),
    st.lists(st.tuples(LINES, ENDS).map(b"".join), max_size=8).map(b"".join),
)


@given(CONTENTS)
def test_any_octets_are_handled(content):
    parsed = ParsedContent.of(content)
    end = header_end(content)
    assert parsed.size == len(parsed.joined())
    headers.decoded(parsed.header, "a")
    assert prepended(content, b"X: y\r\n").startswith(b"X: y\r\n")
    body = content[end.body :]
    assert parsed.joined().endswith(content[end.header :])
    assert parsed.header.octets.rstrip(b"\r\n") == content[: end.header].rstrip(b"\r\n")
    for changed in (with_field(content, "X-New", "y"), with_tag(content, "[EXT]")):
        again = header_end(changed)
        assert changed[again.body :] == body
    assert Header.of(with_field(content, "X-New", "y")).first("x-new") == b"y"


@given(CONTENTS)
def test_no_edit_makes_a_recipient_or_an_author_appear(content):
    """What is removed is in no header that another reader finds, also with fields before it."""
    removed = edited(content, lambda header: header.remove(["Bcc", "From"]))
    for result in (removed, prepended(removed, b"Received: x\r\n")):
        header = Header.of(result)
        assert "bcc" not in header
        assert "from" not in header
        email.message_from_bytes(cleaned(result))  # reads no more fields than Header
        assert email.message_from_bytes(cleaned(result)).get_all("bcc") is None


@given(CONTENTS)
def test_plain_and_damaged_headers_are_split_alike(content):
    """A long header takes the other path than a short one."""
    section = content[: header_end(content).header]
    filling = b"X-Filling: " + b"x" * 900 + b"\r\n"
    long = Header.parse(
        section + (b"" if section.endswith((b"\r", b"\n")) else b"\r\n") + filling * 80
    )
    if section:
        assert long.fields[:-80] == Header.parse(section).fields


@each_row(
    "extended, tls, authenticated, smtputf8, word",
    [
        (False, False, False, False, "SMTP"),
        (True, False, False, False, "ESMTP"),
        (True, True, False, False, "ESMTPS"),
        (True, False, True, False, "ESMTPA"),
        (True, True, True, False, "ESMTPSA"),
        (True, False, False, True, "UTF8SMTP"),
        (True, True, True, True, "UTF8SMTPSA"),
    ],
)
def test_protocol_words(extended, tls, authenticated, smtputf8, word):
    assert word == headers.protocol(
        extended=extended, tls=tls, authenticated=authenticated, smtputf8=smtputf8
    )


def test_received_shows_no_recipient_by_default_and_allows_no_injection():
    line = headers.received(
        helo="evil)\r\nBcc: x",
        ip="fe80::1%eth0",
        hostname="r",
        protocol="SMTP",
        queue_id="1",
        time_us=0,
    )
    assert b" for " not in line
    assert line.startswith(b"Received: from evil???Bcc:?x ([IPv6:fe80::1])\r\n\tby r ")
    assert "bcc" not in Header.parse(line)


@each_row(
    "fields, expected",
    [
        ("Subject: the importance of priority", Priority.NORMAL),
        ("Importance: high", Priority.HIGH),
        ("IMPORTANCE : High", Priority.HIGH),
        ("Importance: normal", Priority.NORMAL),
        ("Importance: low", Priority.LOW),
        ("Importance:", Priority.NORMAL),
        ("Importance: highest", Priority.NORMAL),
        ("Priority: urgent", Priority.HIGH),
        ("Priority: non-urgent", Priority.LOW),
        ("Priority: normal", Priority.NORMAL),
        ("X-Priority: 1 (Highest)", Priority.HIGH),
        ("X-Priority:\r\n 2", Priority.HIGH),
        ("X-Priority: 3", Priority.NORMAL),
        ("X-Priority: 5", Priority.NORMAL),
        ("X-MSMail-Priority: High", Priority.NORMAL),
        ("Precedence: bulk", Priority.LOW),
        ("Precedence: List", Priority.LOW),
        ("Precedence: junk", Priority.LOW),
        ("Precedence: first-class", Priority.NORMAL),
        ("List-Unsubscribe: <https://a.test/>", Priority.LOW),
        # what goes to many is not urgent because it says so
        ("Importance: high\r\nPrecedence: bulk", Priority.LOW),
        ("X-Priority: 1\r\nList-Unsubscribe: <https://a.test/>", Priority.LOW),
        # the clearer word wins over the older field
        ("X-Priority: 1\r\nImportance: low", Priority.LOW),
        ("X-Priority: " + "1" * 100_000, Priority.NORMAL),
    ],
)
def test_priority_of_a_header(fields: str, expected: Priority) -> None:
    content = f"From: a@a.test\r\n{fields}\r\n\r\nbody".encode()
    assert priority_of(Header.of(content)) is expected


ID = "l123456789abcdef"
FIELD = b"X-Relay-Id: l123456789abcdef\r\n"


@each_row(
    "content, marked",
    [
        (b"Subject: s\r\n\r\n", FIELD + b"Subject: s\r\n\r\n"),
        (b"Return-Path: <>\r\nA: b\r\n\r\n", b"Return-Path: <>\r\n" + FIELD + b"A: b\r\n\r\n"),
        (b"Return-Path: <>", FIELD + b"Return-Path: <>"),
        (b"\r\nno header", FIELD + b"\r\nno header"),
        (b"", FIELD),
    ],
)
def test_the_relay_id_is_written_and_read(content, marked):
    assert with_relay_id(content, ID) == marked
    assert read_relay_id(marked[:ID_WITHIN_BYTES]) == ID
