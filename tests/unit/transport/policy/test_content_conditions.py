"""Conditions on attachments and on the body, and the types of attachments in any encoding."""

import base64
import quopri
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.content import BLOCK_BYTES, LargeContent
from relay.base.message.envelope import Source
from relay.base.message.header import ParsedContent
from relay.transport.policy.content_conditions import (
    AttachmentCondition,
    AttachmentNameCondition,
    BodyCondition,
)
from relay.transport.policy.message_parts import (
    attachments,
    may_have_attachments,
    message_parts,
    with_files_in_texts,
)
from relay.transport.policy.message_view import MessageView
from relay.transport.policy.patterns import PatternSet
from relay.transport.policy.rule_tests import examined_message
from tests.support.contents import Counted, as_large
from tests.support.tables import each_row

PE_TYPE = "application/vnd.microsoft.portable-executable"
PE = (b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)).ljust(0x80, b"\0") + b"PE\0\0\x64\x86"
PNG = b"\x89PNG\r\n\x1a\n"


def part(octets, kind="application/octet-stream", name="", encoding="base64", more=""):
    coded = {"base64": base64.encodebytes, "quoted-printable": quopri.encodestring}.get(
        encoding, bytes
    )
    disposition = f"Content-Disposition: attachment; filename={name}\r\n" if name else ""
    head = (
        f"Content-Type: {kind}\r\n{disposition}Content-Transfer-Encoding: {encoding}\r\n{more}\r\n"
    )
    return head.encode() + coded(octets)


def mixed(*parts, kind=b"mixed", boundary=b"b"):
    head = b"Content-Type: multipart/%s; boundary=%s\r\n\r\n" % (kind, boundary)
    inner = b"".join(b"\r\n--" + boundary + b"\r\n" + each for each in parts)
    return head + inner + b"\r\n--" + boundary + b"--\r\n"


TEXT = b"Content-Type: text/plain\r\n\r\nMZ\r\n"


def view_of(content, *conditions):
    patterns = [one for condition in conditions for one in condition.patterns()]
    sets = {
        field: PatternSet([each for where, each in patterns if where == field])
        for field, _ in patterns
    }
    message = examined_message(
        "a@in.test", ["b@out.test"], content, source=Source.SMTP, local_domains=()
    )
    return MessageView(message, message.content, sets)


def found_in(content):
    parsed = ParsedContent.of(content)
    return [(each.names, each.types) for each in attachments(parsed, message_parts(parsed))]


OCTETS, PDF = "application/octet-stream", "application/pdf"
NESTED = b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n" + mixed(part(PE), boundary=b"i")


@pytest.mark.parametrize("form", [bytes, as_large], ids=["small", "large"])
@each_row(
    "content, found",
    [
        (mixed(TEXT, part(PE, name="a.exe")), [(("a.exe",), (OCTETS, PE_TYPE))]),
        (mixed(part(PE, PDF, "a.pdf")), [(("a.pdf",), (PDF, PE_TYPE))]),
        (mixed(part(PE, encoding="quoted-printable")), [((), (OCTETS, PE_TYPE))]),
        (mixed(part(PE, encoding="binary")), [((), (OCTETS, PE_TYPE))]),
        (mixed(part(PE, encoding="x-unknown")), [((), (OCTETS, PE_TYPE))]),
        (part(PE), [((), (OCTETS, PE_TYPE))]),
        (part(PNG, "image/png"), [((), ("image/png",))]),
        (mixed(NESTED), [((), (OCTETS, PE_TYPE))]),
        (
            mixed(b"Content-Type: message/rfc822; name=a.eml\r\n\r\n" + TEXT),
            [(("a.eml",), ("message/rfc822",))],
        ),
        (mixed(part(PE, "text/plain")), []),
        (mixed(part(PE, "text/plain", "a.txt")), [(("a.txt",), ("text/plain", PE_TYPE))]),
        (
            part(PE, "text/plain", more="Content-Disposition: attachment\r\n"),
            [((), ("text/plain", PE_TYPE))],
        ),
        (mixed(part(b"x", "application/x-dosexec")), [((), ("application/x-dosexec", PE_TYPE))]),
        (mixed(part(PE, 'Application/X; a="b"')), [((), ("application/x", PE_TYPE))]),
        (mixed(part(PE, more="Content-Transfer-Encoding: 7bit\r\n")), [((), (OCTETS, PE_TYPE))]),
        (
            mixed(
                part(PE, encoding="7bit\r\nContent-Transfer-Encoding: base64").replace(
                    PE, base64.b64encode(PE)
                )
            ),
            [((), (OCTETS, PE_TYPE))],
        ),
        (mixed(part(PE).replace(b"TV", b"=*T\r\n\r\n V=\0")), [((), (OCTETS, PE_TYPE))]),
        (mixed(part(PE)[:-3]), [((), (OCTETS, PE_TYPE))]),
        (mixed(part(b"MZ is a text" * 20)), [((), (OCTETS,))]),
        (mixed(part(b"", "", "a")), [(("a",), ("text/plain",))]),
        (
            b"Content-Type: application/x-zip\r\nContent-Type: text/plain\r\n\r\nPK\3\4",
            [((), ("application/x-zip", "application/zip"))],
        ),
        (TEXT, []),
        (b"", []),
    ],
)
def test_attachments_have_all_names_and_types(content, found, form):
    assert found_in(form(content)) == found
    assert may_have_attachments(ParsedContent.of(content)) or not found


LINES = [
    b"Content-Type: text/plain",
    b"Content-Type: text/x; name=a",
    b"content-type : TEXT/HTML",
    b"Content-Type:",
    b"Content-Type: (text)multipart/mixed; boundary=b",
    b"Content-Type: te(x)xt; boundary=b",
    b"\0Content-Type: text/plain",
    b"Content-Type: text/plain; a=\r\n multipart/x",
    b"Content-Type: multi(x)part/mixed; boundary=b",
    b"Subject: name",
    b"Content-Disposition: inline",
    b"odd line",
    b"\xef\xbb\xbfContent-Type: a/b",
    b"",
    b" filename=a",
    b"Content-Location: a",
]
PART_LINES = [
    *LINES,
    *3 * [b"--b", b""],
    b"Content-Type: text/html; charset=x",
    b"Content-Transfer-Encoding: 8bit",
    b"begin 600 a",
    b" Content-Type: a/b",
    b"\xa0Content-Type: a/b",
    b"Content-Type\xa0: a/b",
    b"x Content-Type: a/b",
    b"x\rContent-Type: a/b",
    b"name=a",
    b"Con\0tent-Type: a/b",
]


@given(
    st.sampled_from([b"text/plain", b"multipart/digest; boundary=b"]),
    st.lists(st.sampled_from(LINES), max_size=2),
    st.lists(st.sampled_from(PART_LINES), max_size=9),
)
def test_what_has_no_room_for_attachments_has_none(kind, lines, body):
    parsed = ParsedContent.of(b"\r\n".join([*lines, b"Content-Type: " + kind, b"", *body, b""]))
    files = with_files_in_texts(parsed, message_parts(parsed))
    assert may_have_attachments(parsed) or not attachments(parsed, files)


def test_of_a_large_attachment_only_the_beginning_is_decoded():
    body = Counted(b"\r\n" + base64.encodebytes(PE + b"\0" * 20_000_000))
    header = b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n"
    started = time.process_time()
    assert found_in(LargeContent(header, (body,), eight_bit=False)) == [((), ("a/b", PE_TYPE))]
    assert time.process_time() - started < 1  # to decode all of it takes more
    assert body.most_bytes <= BLOCK_BYTES


@each_row(
    "value, content, matches, shown",
    [
        ({"name": "*.exe"}, mixed(part(PE, name="A.EXE")), True, f"a.exe ({OCTETS}, {PE_TYPE})"),
        (
            {"name": ["*.com", "*.exe"]},
            mixed(part(PNG, name="a.exe")),
            True,
            f"a.exe ({OCTETS}, image/png)",
        ),
        (
            {"name": "\uff0a.\uff45\uff58\uff45"},
            mixed(part(PNG, name="a.exe")),
            True,
            f"a.exe ({OCTETS}, image/png)",
        ),
        (
            {"type": "executable"},
            mixed(part(PNG, name="a"), part(PE, name="b.txt")),
            True,
            f"b.txt ({OCTETS}, {PE_TYPE})",
        ),
        (
            {"type": "executable"},
            mixed(part(PNG, name="a"), part(b"MZ", name="b")),
            False,
            f"a ({OCTETS}, image/png), b ({OCTETS})",
        ),
        ({"type": "archive"}, mixed(part(b"PK\3\4")), True, f"({OCTETS}, application/zip)"),
        ({"type": "archive"}, mixed(part(PE)), False, f"({OCTETS}, {PE_TYPE})"),
        ({"type": ["IMAGE/*", "a/b"]}, mixed(part(PNG)), True, f"({OCTETS}, image/png)"),
        (
            {"type": "application/pdf"},
            mixed(part(b"x", "application/PDF")),
            True,
            "(application/pdf)",
        ),
        ({"type": "*"}, mixed(part(b"x", "a/b")), True, "(a/b)"),
        ({"type": "*"}, TEXT, False, ""),
        (
            {"name": "*.pdf", "type": "executable"},
            mixed(part(PE, name="a.pdf")),
            True,
            f"a.pdf ({OCTETS}, {PE_TYPE})",
        ),
        (
            {"name": "*.pdf", "type": "executable"},
            mixed(part(PE, name="a"), part(PNG, name="b.pdf")),
            False,
            f"a ({OCTETS}, {PE_TYPE}), b.pdf ({OCTETS}, image/png)",
        ),
    ],
)
def test_one_attachment_has_the_name_and_the_type(value, content, matches, shown):
    condition = AttachmentCondition.parse(value, {})
    assert condition == AttachmentCondition.parse(value, {})
    assert {condition: 1}[AttachmentCondition.parse(value, {})]
    view = view_of(content)
    assert (condition.matches(view), condition.value_in(view)) == (matches, shown)


LETTER = mixed(
    b"\r\nSee https://pay.test/a",
    b"Content-Type: text/html\r\n\r\n<p>Your in<b>voi</b>ce &mdash; please <i>pay</i>&nbsp;now!",
    kind=b"alternative",
)


@each_row(
    "value, matches, shown",
    [
        ({"words": "Invoice"}, True, "invoice"),
        ({"words": ["now", "see", "no"]}, True, "now, see"),
        ({"words": "please pay"}, True, "please pay"),
        ({"words": ["no", "INVOICE, please"]}, True, "invoice please"),
        ({"words": "\uff50\uff41\uff59"}, True, "pay"),
        ({"words": "voi"}, False, "See https://pay.test/a Your invoice — please pay now!"),
        ({"words": "pay please"}, False, "See https://pay.test/a Your invoice — please pay now!"),
        ({"matches": "*INVOICE*pay*"}, True, "invoice — please pay"),
        (
            {"matches": ["*no*such*", "See*now?"]},
            True,
            "see https://pay.test/a your invoice — please pay now!",
        ),
        ({"matches": "*pl?ase*"}, True, "please"),
        ({"matches": "*\uff50\uff41\uff59 n*"}, True, "pay n"),
        ({"matches": "*.*[a-z]*"}, False, "See https://pay.test/a Your invoice — please pay now!"),
        ({"matches": "invoice*"}, False, "See https://pay.test/a Your invoice — please pay now!"),
        ({"matches": "*invoice"}, False, "See https://pay.test/a Your invoice — please pay now!"),
        ({"matches": "*"}, True, "See https://pay.test/a Your invoice — please pay now!"),
        ({"pattern": r"https?://\S+"}, True, "https://pay.test/a"),
        ({"pattern": ["no", r"\bYOUR\s+\w+"]}, True, "no"),
        (
            {"pattern": "(?-i:invoicE)"},
            False,
            "See https://pay.test/a Your invoice — please pay now!",
        ),
    ],
)
def test_a_body_is_compared_as_a_reader_sees_it(value, matches, shown):
    condition = BodyCondition.parse(value, {})
    assert {condition: 1}[BodyCondition.parse(value, {})]
    view = view_of(LETTER, condition)
    assert (condition.matches(view), condition.value_in(view)) == (matches, shown)


BODY, ATTACHMENT, NAME = BodyCondition, AttachmentCondition, AttachmentNameCondition


BIG = mixed(TEXT, part(PE * 1000, name="a.exe"))


@each_row(
    "condition, content, needs",
    [
        (NAME.parse("*.exe", {}), BIG, True),
        (NAME.parse("*.exe", {}), mixed(part(PE)), False),
        (NAME.parse("*.exe", {}), TEXT + b"x" * 100_000, False),
        (NAME.parse("*.exe", {}), mixed(*[part(PE)] * 200), True),
        (NAME.parse("*.exe", {}), mixed(part(PE, more="X: ;;\r\n" * 60)), True),
        (NAME.parse("*.exe", {}), mixed(part(PE, more="X: =?\r\n" * 110)), True),
        (ATTACHMENT.parse({"name": "*.exe"}, {}), BIG, True),
        (ATTACHMENT.parse({"name": "*.exe"}, {}), mixed(part(PE, name="a.exe")), False),
        (ATTACHMENT.parse({"type": "*"}, {}), mixed(part(PE)), True),
        (ATTACHMENT.parse({"type": "*"}, {}), TEXT + b"x" * 100_000, False),
        (ATTACHMENT.parse({"name": "*.exe", "type": "*"}, {}), mixed(part(PE, name="a")), False),
        (ATTACHMENT.parse({"name": "*.exe", "type": "*"}, {}), mixed(part(PE, name="a.exe")), True),
        (BODY.parse({"words": "a"}, {}), TEXT, True),
    ],
)
def test_a_thread_is_needed_only_where_there_is_much_to_read(condition, content, needs):
    view = view_of(content)
    assert condition.is_deep
    assert condition.needs_thread(view) == needs
    if not needs and isinstance(condition, AttachmentCondition) and condition.types:
        assert not condition.matches(view)
