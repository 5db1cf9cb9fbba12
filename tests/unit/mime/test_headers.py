"""Header edits on bytes, the priority and the relay's id: every other octet stays."""

import email
import email.policy
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.mime import headers
from relay.mime.headers import ID_WITHIN_BYTES, Priority, priority_of, read_relay_id, with_relay_id

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
    b"", b"\r\n", b"\r\nbody", b"body only", b"body only\r\n\r\nmore", b" folded first\r\nA: b\r\n\r\n",
    b"A: b", b"A: b\r\n", b"A: b\r\nno field\r\nC: d\r\n\r\nx", b"A:\r\n\r\n", b": empty\r\n\r\n",
    b"A\0B: c\r\n\r\n", b"\xff\xfe: x\r\n\r\n", b"A: b\r\n \r\n\t\r\n\r\nx", b"A: b\n\nbody\n", b"\x00" * 50,
]  # fmt: skip


def test_where_the_header_ends():
    assert MESSAGE[headers.header_size(MESSAGE) :].startswith(b"\r\nSubject: not a field")
    assert headers.header_size(b"\r\nbody") == 0
    assert headers.header_size(b" folded first\r\nA: b\r\n\r\n") == 0
    assert headers.header_size(b"A: b\r\n") == 6


def test_fields_with_their_places():
    found = [(field.name, MESSAGE[field.start : field.end]) for field in headers.fields(MESSAGE)]
    assert [name for name, _ in found] == [
        b"received",
        b"subject",
        b"x-relay-draft",
        b"to",
        b"received",
    ]
    assert b"".join(octets for _, octets in found) == MESSAGE[: headers.header_size(MESSAGE)]


def test_reading():
    assert headers.first(MESSAGE, "Received") == b"from a\tby b; now"
    assert headers.first(MESSAGE, "to") == b"bob@example.net"
    assert headers.first(MESSAGE, "cc") is None
    assert headers.first(MESSAGE, "relay-draft") is None
    assert headers.decoded(MESSAGE, "subject") == "Grüße from äö"
    assert headers.decoded(MESSAGE, "cc") == ""
    assert headers.count(MESSAGE, "received") == 2
    assert headers.count(MESSAGE, "x-relay-body") == 0


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        ("grüße".encode(), "grüße"),
        ("grüße".encode("latin-1"), "grüße"),
        (b"=?iso-8859-1?q?a=E4_b?=", "aä b"),
        (b"=?utf-8*en?B?w6Q=?=", "ä"),
        (b"=?utf-8?B?4pg=?= =?utf-8?B?ug==?=", "☺"),  # one character in two words
        (b"=?nonsense?Q?a=E4?=", "aä"),
        (b"=?punycode?Q?abc?=", "abc"),
        (b"=?utf-8?B?not base64!?=", "not base64!"),
        (b"=?utf-8?Q?a=0D=0AX:_b?=", "a X: b"),
        (b"a =?utf-8?Q?b?= c =?utf-8?Q?d?=", "a b c d"),
        (b"=?utf-8?Q?unfinished", "=?utf-8?Q?unfinished"),
    ],
)
def test_decoded_text(raw, shown):
    decoded = headers.decoded(b"Subject: " + raw + b"\r\n\r\n", "subject")
    assert decoded == shown


def test_prepend():
    assert headers.prepend(MESSAGE, b"A: b\r\n") == b"A: b\r\n" + MESSAGE
    assert headers.prepend(b"\r\nbody", b"A: b\r\n") == b"A: b\r\n\r\nbody"
    assert headers.prepend(b"body", b"A: b\r\n") == b"A: b\r\n\r\nbody"
    assert headers.prepend(b" folds\r\n", b"A: b\r\n") == b"A: b\r\n\r\n folds\r\n"


def test_remove_keeps_all_other_octets():
    removed = headers.remove(MESSAGE, ["Received", "to"])
    assert removed == MESSAGE.replace(b"Received: from a\r\n\tby b; now\r\n", b"").replace(
        b"TO : bob@example.net\r\n", b""
    ).replace(b"received: from c by d; then\r\n", b"")
    assert headers.remove(MESSAGE, ["cc", "rom"]) == MESSAGE


def test_arriving_x_relay_fields_are_removed():
    assert headers.strip_private(MESSAGE) == MESSAGE.replace(
        b"X-Relay-Draft: 1\r\n  folded\r\n", b""
    )
    for forged in (b"X-RELAY-A: 1", b"x-relay-a : 1", b"X-Relay-:\r\n 1"):
        assert headers.strip_private(forged + b"\r\nA: b\r\n\r\n") == b"A: b\r\n\r\n"
        assert headers.strip_private(b"A: b\r\nrubbish\r\n" + forged + b"\r\n\r\n") == (
            b"A: b\r\nrubbish\r\n\r\n"
        )


def test_set_field_replaces_the_first_and_removes_the_others():
    changed = headers.set_field(MESSAGE, "Received", "new")
    assert changed == MESSAGE.replace(
        b"Received: from a\r\n\tby b; now\r\n", b"Received: new\r\n"
    ).replace(b"received: from c by d; then\r\n", b"")


def test_set_field_removes_a_megabyte_of_others_in_linear_time():
    many = b"A: b\r\nrubbish\r\n" * 50_000 + b"\r\ntext"
    began = time.process_time()
    changed = headers.set_field(many, "A", "c")
    assert time.process_time() - began < 1  # joined one by one it took seconds
    assert changed == b"A: c\r\n" + b"rubbish\r\n" * 50_000 + b"\r\ntext"


def test_set_field_appends_at_the_end_of_the_header():
    assert headers.set_field(b"A: b\r\n\r\nx", "C", "d") == b"A: b\r\nC: d\r\n\r\nx"
    assert headers.set_field(b"A: b", "C", "d") == b"A: b\r\nC: d\r\n"
    assert headers.set_field(b"body", "C", "d") == b"C: d\r\n\r\nbody"


@pytest.mark.parametrize("value", ["a\r\nBcc: x", "a\nb", "a\rb", "a\0b"])
def test_no_value_injects_a_field(value):
    for act in (
        headers.set_field,
        lambda content, _, value: headers.prefix_subject(content, value),
    ):
        with pytest.raises(ValueError, match="CR, LF or NUL"):
            act(MESSAGE, "X-A", value)


@pytest.mark.parametrize("name", ["", "A B", "A:", "Ä", "A\r\nB", "A" * 127])
def test_bad_names(name):
    with pytest.raises(ValueError, match="field name"):
        headers.set_field(MESSAGE, name, "x")


texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=400)


@given(texts)
def test_any_value_reads_as_it_was_written_and_fits_in_lines(value):
    line = headers.field("Subject", value)
    assert line.isascii()
    assert max(map(len, line.split(b"\r\n"))) <= 998
    assert all(part[:1] in (b" ", b"S", b"") for part in line.split(b"\r\n"))
    if "=?" not in value:
        content = line + b"\r\n"
        assert headers.decoded(content, "subject") == value.strip()
        parsed = email.message_from_bytes(content, policy=email.policy.default)
        assert str(parsed["subject"]).split() == value.split()


def test_long_lines_are_folded_at_78_where_possible():
    line = headers.field("X-Long", " ".join(["word"] * 100))
    assert max(map(len, line.split(b"\r\n"))) <= 78
    assert b"=?" not in line
    assert max(map(len, headers.field("X-Long", "x" * 2000).split(b"\r\n"))) <= 78
    assert max(map(len, headers.field("X-Long", "ö" * 2000).split(b"\r\n"))) <= 76


@pytest.mark.parametrize(
    ("before", "after"),
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
    tagged = headers.prefix_subject(content, "[EXT] ")
    assert tagged == expected
    assert headers.prefix_subject(tagged, "[EXT] ") == tagged


def test_prefix_subject_in_other_scripts_and_without_a_subject():
    tagged = headers.prefix_subject(b"Subject: =?utf-8?B?w6Q=?=\r\n\r\n", "[Größe]")
    assert headers.decoded(tagged, "subject") == "[Größe] ä"
    assert headers.prefix_subject(tagged, "[Größe]") == tagged
    assert headers.prefix_subject(b"A: b\r\n\r\nx", "[EXT]") == b"A: b\r\nSubject: [EXT]\r\n\r\nx"
    apples = headers.prefix_subject(b"Subject: Apples\r\n\r\n", "A")
    assert apples == b"Subject: A Apples\r\n\r\n"
    assert headers.prefix_subject(apples, "") == apples


@pytest.mark.parametrize("content", ODD)
def test_damaged_content_never_raises_and_keeps_its_octets(content):
    list(headers.fields(content))
    assert 0 <= headers.header_size(content) <= len(content)
    assert headers.count(content, "a") <= 1
    headers.decoded(content, "a")
    assert headers.strip_private(content) == content
    assert headers.prepend(content, b"X: y\r\n").endswith(content)
    changed = headers.set_field(content, "X-New", "y")
    assert headers.first(changed, "x-new") == b"y"
    assert len(changed) - len(content) in range(len(b"X-New: y\r\n"), len(b"X-New: y\r\n") + 3)


@given(st.binary(max_size=300))
def test_any_octets_are_handled(content):
    list(headers.fields(content))
    assert headers.first(headers.set_field(content, "X-New", "y"), "x-new") == b"y"
    headers.prefix_subject(content, "[EXT]")


@pytest.mark.parametrize(
    ("extended", "tls", "authenticated", "smtputf8", "word"),
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


def test_received():
    line = headers.received(
        helo="client.example.com", ip="192.0.2.7", hostname="relay.example.com", protocol="ESMTPS",
        queue_id="01abc", time_us=1_795_169_038_000_000, recipient="bob@example.net",
    )  # fmt: skip
    assert line == (
        b"Received: from client.example.com ([192.0.2.7])\r\n"
        b"\tby relay.example.com with ESMTPS id 01abc\r\n"
        b"\tfor <bob@example.net>;\r\n"
        b"\tFri, 20 Nov 2026 10:03:58 +0000\r\n"
    )


def test_received_shows_no_recipient_by_default_and_allows_no_injection():
    line = headers.received(
        helo="evil)\r\nBcc: x", ip="fe80::1%eth0", hostname="r", protocol="SMTP", queue_id="1", time_us=0
    )  # fmt: skip
    assert b" for " not in line
    assert line.startswith(b"Received: from evil???Bcc:?x ([IPv6:fe80::1])\r\n\tby r ")
    assert headers.count(line + b"\r\n", "bcc") == 0


def test_dates():
    assert headers.date_field(1_795_169_038_999_999) == "Fri, 20 Nov 2026 10:03:58 +0000"
    assert headers.date_field(0) == "Thu, 01 Jan 1970 00:00:00 +0000"


@pytest.mark.parametrize(
    ("fields", "expected"),
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
    assert priority_of(f"From: a@a.test\r\n{fields}\r\n\r\nbody".encode()) is expected


@pytest.mark.parametrize(
    "content",
    [b"", b"\r\nImportance: high\r\n", b"From: a\r\n\r\nImportance: high\r\n", b"\xff: \0"],
)
def test_the_body_does_not_set_the_priority(content: bytes) -> None:
    assert priority_of(content) is Priority.NORMAL


ID = "l123456789abcdef"
FIELD = b"X-Relay-Id: l123456789abcdef\r\n"


@pytest.mark.parametrize(
    ("content", "marked"),
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


def test_the_relay_id_is_found_after_the_longest_return_path():
    address = b"a" * 64 + b"@" + b"b" * 255
    assert (
        read_relay_id(with_relay_id(b"Return-Path: <%b>\r\n" % address, ID)[:ID_WITHIN_BYTES]) == ID
    )


@pytest.mark.parametrize(
    "beginning",
    [FIELD.upper(), FIELD.replace(b"\r\n", b"\n"), b"Subject: s\r\n" + FIELD],
)
def test_the_relay_id_is_found_if_another_program_rewrote_it(beginning):
    assert read_relay_id(beginning) == ID


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"Return-Path: <>\r\nDelivered-To: a\r\n" + FIELD,
        FIELD.replace(b"l1", b"l"),
        b" " + FIELD,
        FIELD[:-2],
    ],
)
def test_other_lines_are_not_a_relay_id(beginning):
    assert read_relay_id(beginning) == ""
