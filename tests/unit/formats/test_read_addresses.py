"""Address lists as mail programs read them, and what has only one reading.

The comments name what others show where it differs: "mp" is mailparser 3.14, "pm" is postal-mime
4.0, "py" is email.utils.getaddresses of Python 3.11, "pd" is its email.policy.default.
"""

import re
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from relay.base.message.content import MemoryOctets
from relay.base.message.header import Header
from relay.formats import read_header
from relay.formats.address_list import address_entries
from relay.formats.convert import convert
from relay.formats.read_mime import read_mime
from relay.front_door.graph.serializer import extent_of
from relay.store.mailbox.draft_files import submission_facts
from relay.store.mailbox.index.content_index import read_header_data
from tests.support.tables import each_row

# A value; what Relay shows, "name|address"; whether every reader sees these.
TABLE = [
    ("bob@x.test", ["|bob@x.test"], True),
    ("Bob <bob@x.test>", ["Bob|bob@x.test"], True),
    # py shows two addresses, pd the first: a reply would go to a person who did not write.
    ("Doe, <bob@x.test.>, al@x.test.", ["Doe|", "|bob@x.test", "|al@x.test"], False),
    ('<"bob@x.test">', ['<"bob@x.test">|'], False),
    ("info@s.test <real@c.test>", ["info@s.test|real@c.test"], False),
    # A comma is missing. pm, py, pd: the first; mp: both.
    ("Bob <bob@x.test> <al@x.test>", ["Bob|bob@x.test", "|al@x.test"], False),
    (
        "Bob <b@x.test> Al <a@x.test>(A), c@x.test",
        ["Bob|b@x.test", "Al|a@x.test", "|c@x.test"],
        False,
    ),
    ("bob@x.test <bob@X.test>", ["bob@x.test|bob@x.test"], True),
    ("'bob@x.test' <bob@x.test>", ["'bob@x.test'|bob@x.test"], False),  # py, pd: 'bob@x.test'
    ("[ERP] System <erp@x.test>", ["[ERP] System|erp@x.test"], False),  # py: also "ERP"; pd: "<>"
    # pm and Python as Relay; mp joins them to one name, which may be two recipients.
    ("Doe, John <j@x.test>", ["Doe|", "John|j@x.test"], False),
    ("root", ["root|"], False),  # py, pd: the address "root"
    ("To the list", ["To the list|"], False),  # py, pd: the address "To", one with blanks
    ("root (Cron Daemon)", ["root|"], False),  # pd keeps the comment
    ("root@x.test (Cron Daemon)", ["Cron Daemon|root@x.test"], True),  # pd has no name
    ("Bob (Boss) <bob@x.test>", ["Bob|bob@x.test"], True),  # as mp, pm, pd
    ("(a (b) c) bob@x.test", ["a (b) c|bob@x.test"], True),  # pm: "c)"
    ("bob@(x)x.test", ["x|bob@x.test"], True),
    ("bob(x)@x.test", ["x|bob@x.test"], True),
    ("bob@x . test", ["|bob@x.test"], False),  # pm: bob@x
    ("<@a.test,@b.test:c@d.test>", ["|c@d.test"], False),  # pm keeps the route; py has two
    ("Team: a@x.test, B <b@x.test>;, c@x.test", ["|a@x.test", "B|b@x.test", "|c@x.test"], True),
    ("a@x.test; b@x.test", ["|a@x.test", "|b@x.test"], True),  # pd stops at the first
    ("undisclosed-recipients:;", [], True),
    ("undisclosed-recipients:; (none)", [], True),
    ("Team: a@x.test;(b@x.test) , c@x.test", ["|a@x.test", "|c@x.test"], True),
    ("a: b: c@x.test;", ["|c@x.test"], True),
    ("ceo@x.test: al@x.test;", ["|ceo@x.test", "|al@x.test"], False),
    ('":al@x.test;', ['"|', "|al@x.test"], False),  # py: ":al@x.test;"
    ('<al@x.test>"Q" al@x.test', ["Q al@x.test|al@x.test"], False),  # py: two
    ("mailto:bob@x.test", ["|bob@x.test"], True),
    ("<mailto:bob@x.test>", ["|bob@x.test"], False),  # mp, pm: mailto:bob@x.test
    ("a@x.test, , b@x.test,", ["|a@x.test", "|b@x.test"], True),
    ("bob@[IPv6:2001:db8::1]", ["|bob@[ipv6:2001:db8::1]"], True),  # pm: the name "1]"
    ('"Bob \\"B\\" C" <bob@x.test>', ['Bob "B" C|bob@x.test'], True),
    ('"a@b"@c.test', ['|"a@b"@c.test'], True),  # pm: a@b@c.test
    ('"bob@x.test"', ["bob@x.test|"], False),  # mp, pm, py take the text for an address
    ("(bob@x.test)", ["bob@x.test|"], True),
    ('"Bob" bob@x.test', ["Bob|bob@x.test"], False),  # py, pd: one with a quoted local part
    ("a@x.test b@x.test", ["|a@x.test", "|b@x.test"], False),  # py: @x.test
    ('"pm@" <x.test pm@x.test>', ["pm@|pm@x.test"], False),  # words that are none beside it
    ("Bob [mailto:bob@x.test]", ["Bob|bob@x.test"], False),
    ("Bob [bob@x.test]", ["Bob|bob@x.test"], False),  # pd: "Bob"
    ("Bob <> <bob@x.test>", ["Bob|bob@x.test"], False),
    ("Bob <bob>", ["Bob <bob>|"], False),  # all others: the address "bob"
    ("Bob <bob@x.test", ["Bob|bob@x.test"], False),
    ("B <b@x.test, Al <a@x.test>", ["B|b@x.test", "Al|a@x.test"], False),  # mp, pm lose the first
    ('"Bob <bob@x.test>', ['"Bob|bob@x.test'], False),  # py: the address is all of it
    ("Bob (the <bob@x.test>", ["Bob (the|bob@x.test"], False),  # all others: no address
    ("a@x.test (b", ["b|a@x.test"], True),
    ("a@b@c.test", ["a@b@c.test|"], False),  # mp, pm: a@b@c.test; py: @c.test
    ("=?utf-8?q?w?=.bob@x.test", ["|=?utf-8?q?w?=.bob@x.test"], False),  # pd: w.bob@x.test
    ("Bob :) <bob@x.test>", [")|bob@x.test"], False),
    ("Bob\\, Al <bob@x.test>", ["Bob\\|", "Al|bob@x.test"], False),
    ("=?utf-8?q?ceo=40x=2Etest=2C?= <c@d.test>", ["ceo@x.test,|c@d.test"], True),
    ("=?utf-8?q?ceo=40x.test?=", ["ceo@x.test|"], False),
    # Others split at these before they decode, pd does not.
    ("=?iso-8859-1?Q?C;_R=EDo.?= <r@c.test>", ["C; Río.|r@c.test"], False),
    # mp and pm split it, and show an address that is none.
    ("=?utf-8?Q?info@s.test, Inc.?= <c@x.test>", ["info@s.test, Inc.|c@x.test"], False),
    ("Bob\x0b <bob@x.test>", ["Bob|bob@x.test"], False),
    ("Al, B. carl@x.test", ["Al|", "B.|carl@x.test"], False),  # py: B.carl@x.test
    ('=?utf-8?q?a"b<c?= <r@x.test>', ['a"b<c|r@x.test'], False),
    ('"=?utf-8?q?J=C3=B6rg?=" <r@x.test>', ["Jörg|r@x.test"], True),  # not RFC 2047, but common
]


@each_row("value, shown, is_plain", TABLE)
def test_an_address_list_is_read_as_mail_programs_do(value: str, shown: list[str], is_plain: bool):
    fields = read_header.parse_header(f"To: {value}\r\n".encode())
    assert [
        f"{one.name}|{one.address}" for one in read_header.read_addresses(fields, "To")
    ] == shown
    assert (read_header.unreadable_addresses(fields, "To") == "") is is_plain


@each_row(
    "value, author",
    [
        ("Bob, Dr. <bob@x.test>", "Bob, Dr.|bob@x.test"),
        ("a@, Dr. <bob@x.test>", "Dr.|bob@x.test"),
        ("=?utf-8?q?B=C3=B6b_=3Cbob=40x.test=3E?=", "Böb|bob@x.test"),
        ('"Bob <bob@x.test>"', "Bob <bob@x.test>|"),
        ("=?utf-8?q?B=C3=B6b?= S <MAILER-DAEMON>", "Böb S|MAILER-DAEMON"),
        ('"S, Bob" <"MAILER D">', 'S, Bob|"MAILER D"'),
        ("<root>", "|root"),
        ("S, Bob <root>", "S, Bob|root"),
        ('"Bob <root>"', "Bob <root>|"),
        ("Bob <a b>", "Bob <a b>|"),
        ("Bob <al> <bob>", "Bob <al> <bob>|"),
        ("Bob <al> <bob@x.test>", "Bob <al>|bob@x.test"),
        ("root <> bob@x.test", "root|bob@x.test"),
    ],
)
def test_the_author_that_is_shown_may_send_only_as_before(tmp_path: Path, value: str, author: str):
    header = f"From: {value}\r\n".encode()
    shown = read_mime(header + b"\r\n").properties.from_
    assert f"{shown.name}|{shown.address}" == author
    (tmp_path / "1.h").write_bytes(header + b"\r\n")
    assert read_header_data(tmp_path / "1.h", message_id="x").properties.from_ == shown
    [from_] = read_header.originators(Header.parse(header))
    assert from_.unread


USUAL = st.from_regex(
    r"\A(?:(?:[A-Za-z .'-]{0,9}|\"[a-z .]{0,3}\" ?)<[a-z.+]{1,5}@[a-z.-]{1,5}>|[a-z.+]{1,5}@x)\Z"
)


@given(st.lists(USUAL, min_size=1, max_size=3).map(", ".join))
def test_a_usual_list_is_read_as_any_other(value: str) -> None:
    assert [*address_entries(value)] == [*address_entries(f"{value},")]


# -- no address is invented

ADDRESSES = ("a@x.test", '"b, <c>"@x.test', "d.e@[192.0.2.1]", "f@(g)x.test", "<@r.test:h@x.test>")
READ = {"a@x.test", '"b, <c>"@x.test', "d.e@[192.0.2.1]", "f@x.test", "h@x.test"}
NOISE = (
    *"<>()\"\\,;: .[]'@=?",
    *("Name", '"x@y.test"', "(z@y.test)", "<>", "=?utf-8?q?w=40y.test?=", "\r\n ", "\t"),
)


@given(st.lists(st.sampled_from((*ADDRESSES, *NOISE)), max_size=12).map("".join))
@example('"a@x.test')
def test_no_address_is_absent_from_the_input(value: str) -> None:
    plain = re.sub(r"\s+|\([^@]*?\)", "", value)
    for one in address_entries(value.replace("\r\n", "")):
        assert re.sub(r"\s+", "", one.address) in plain


@given(st.lists(st.sampled_from(ADDRESSES)), st.lists(st.sampled_from(["Al", '"B, <c@d>"', ""])))
def test_all_addresses_of_a_list_are_read(addresses: list[str], names: list[str]) -> None:
    padded = [*names, *("" for _ in addresses)]
    entries = [
        f"{name} {one if one[0] == '<' else f'<{one}>'}"
        for name, one in zip(padded, addresses, strict=False)
    ]
    found = [one.address for one in address_entries(", ".join(entries))]
    assert len(found) == len(addresses)
    assert set(found) <= READ


@each_row(
    "value, count",
    [
        (f"{'x' * 100_000} <a@b.test>", 1),
        (", ".join(f"N{n} <u{n}@b.test>" for n in range(4_000)), 2000),
        ("(" * 1000 + ")" * 1000 + " a@b.test", 1),
        ('"' + "a@b.test, " * 4_000, 2000),
        ("a:" * 20_000, 1),
    ],
)
def test_large_lists_are_bounded(value: str, count: int) -> None:
    fields = read_header.parse_header(f"To: {value}\r\n".encode())
    assert len([*islice(read_header.read_addresses(fields, "To"), 3000)]) <= count


def test_of_a_stored_message_64_kib_of_address_fields_are_read_in_one_order() -> None:
    people = [f"a{n}@{'x' * 60}.test" for n in range(900)]
    fields = {"Bcc": people, "Cc": ["c@x.test"], "To": people, "Reply-To": ["r@x.test"]}
    fields |= {"From": ["f@x.test"], "Sender": ["s@x.test"], "Disposition-Notification-To": people}
    mime = "".join(f"{name}: {', '.join(some)}\r\n" for name, some in fields.items()).encode()
    message = read_mime(mime + b"\r\nx").properties
    assert (message.from_.address, message.sender.address) == ("f@x.test", "s@x.test")
    assert [person.address for person in message.reply_to] == ["r@x.test"]
    assert [person.address for person in message.to] == people
    assert [person.address for person in message.cc] == ["c@x.test"]
    shown = [person.address for person in message.bcc]
    assert shown == people[: len(shown)]
    assert len(", ".join(people)) + len(", ".join(shown)) < 64 * 1024
    assert not message.read_receipt


def folded(name: str, text: str, lines: int = 155) -> bytes:
    """A field of lines of some 900 octets with this text again and again."""
    value = "\r\n ".join([text * (900 // len(text))] * lines)
    return f"{name}: {value}\r\n".encode("latin-1")


FIELDS = ("From", "Sender", "Reply-To", "To", "Cc", "Bcc", "Disposition-Notification-To")
DEAR = ["x <", "<a@b> ", "a@b,", "=?utf-8?b?YWE=?= <a@b>,", "=?", "\xff,", "a,", "(", '"', "a@b "]
DEAREST = {text: b"".join(folded(name, text) for name in FIELDS) for text in DEAR} | {
    "fields": b"To: x <\r\n" * 9_990,
    "all fields": b"".join(f"{name}: {';a=b' * 20}\r\n".encode() for name in FIELDS) * 1_400,
    "folds": b"To: " + b"\r\n " * 330_000 + b"\r\n",
    "odd folds": b"odd\r\nX-A: " + b"\r\n\t" * 330_000 + b"\r\n",
    "values": b"X-A: \xff\r\n" * 9_990,
    "subject": b"Content-Type: x/y; charset=gb18030\r\n" + folded("Subject", "\xff\xfe ", 1100),
    "index": folded("Thread-Index", "a ", 1100),
}


@each_row("header", DEAREST.values())
def test_no_stored_header_takes_long(tmp_path: Path, header: bytes) -> None:
    """At most 100 ms where a header with 1,000 recipients as programs write them takes 2 ms."""
    people = ",\r\n ".join(f"Ann Bar <ann{n}.bar@example{n}.test>" for n in range(1000))

    def took_s(read: Callable[[], object]) -> float:
        started = time.process_time()
        read()
        return time.process_time() - started

    usual_s = min(took_s(lambda: read_mime(f"To: {people}\r\n\r\nx".encode())) for _ in range(5))
    file = tmp_path / "stored"
    file.write_bytes(header + b"\r\nx")
    for read in (
        lambda: read_mime(header + b"\r\nx"),
        lambda: read_header_data(file, message_id="x"),  # for a search
    ):
        assert any(took_s(read) < 64 * usual_s for _ in range(5))


def test_what_select_does_not_name_is_not_read() -> None:
    mime = b"To: a@b.test\r\nSubject: hi\r\n\r\nx"
    message = read_mime(mime, extent_of(["subject", "id"])).properties
    assert (message.subject, message.to, message.internet_message_headers) == ("hi", (), ())
    for name in ("toRecipients", "isReadReceiptRequested"):
        assert read_mime(mime, extent_of([name])).properties.to
    assert not read_mime(mime, extent_of([])).properties.internet_message_headers
    every = read_mime(mime, extent_of(["internetMessageHeaders"])).properties
    assert every.internet_message_headers == (("To", "a@b.test"), ("Subject", "hi"))


def test_of_a_stored_message_64_kib_of_a_field_are_read_and_of_a_submission_all() -> None:
    people = [f"a{n}@{'.'.join(['x' * 60] * 3)}.test" for n in range(500)]
    fields = ("To", people[:250]), ("To", people[250:]), ("Cc", people[:1])
    mime = "".join(f"{name}: {', '.join(some)}\r\n" for name, some in fields).encode() + b"\r\nx"
    assert 65_536 < len(mime) < read_header.HEADER_OCTETS_MAX
    stored = read_mime(mime).properties
    shown = len(", ".join(people)[: 64 * 1024].split(",")) - 1  # the last one is cut
    assert [one.address for one in stored.to] == people[:shown]
    assert stored.cc == ()  # To has used up what is read
    assert submission_facts(mime, "x").recipients == tuple(people)
    found = convert(MemoryOctets(mime), now_us=0, hostname="x.test")
    assert found.recipients == tuple(people)


def test_a_nul_in_a_field_of_originators_is_no_address() -> None:
    (found,) = read_header.originators(Header.parse(b"From: Al <a@x.test>\0, b@y.test\r\n"))
    assert found.unread
