"""The copy for Microsoft Graph goes to exactly the recipients of its request, whatever its header says."""

import email
from email.utils import getaddresses

from hypothesis import example, given
from hypothesis import strategies as st

from relay.base.files import FileOctets
from relay.base.message.address import own_mailbox
from relay.base.message.content import LargeContent
from relay.base.message.header import ParsedContent
from relay.formats.graph_copy import graph_copy, sole_message_id
from relay.formats.read_header import parse_header, read_addresses
from tests.support.tables import each_row

ANN, BOB, CARL = "ann@a.test", "bob@b.test", "carl@c.test"
EVIL = "evil@e.test"
EAI = "jörg@xn--bcher-kva.test"
PIECES = [
    *(b"To: ", b"Cc: ", b"Bcc:", b"to :", b"To\r\n : ", b"Resent-To: ", b"Subject: x", b"\0"),
    *(b"ann@a.test", b"Bob <BOB@B.test>", b"carl@c.test", b"<evil@e.test.>", b"evil@e.test"),
    *("jörg@bücher.test".encode(), b"J\xf6rg <carl@c.test>", b"=?utf-8?q?=3Cevil=40e=2Etest=3E?="),
    *(b'"evil@e.test," <bob@b.test>', b"ann@a.test (evil@e.test)", b"(", b")", b'"', b"<", b">"),
    *(b", ", b";", b"Team: ", b"undisclosed-recipients:;", b"@", b"\\", b" ", b"\t", b"=?"),
    *(b"\r\n", b"\r\n ", b"\n", b"\r", b"\r\n \r\n", b"\r\n\r\n", b"From evil@e.test\r\n", b"\xff"),
]
HEADERS = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)
SETS = st.sets(st.sampled_from([ANN, BOB, CARL, EAI]), min_size=1).map(sorted)


def made(content, *recipients, message_id=""):
    copy = graph_copy(content, recipients, message_id=message_id)
    return copy.content.decode(), copy.left_out


@given(HEADERS, SETS)
@example(b"Subject: x\r\nno field\r\nTo: evil@e.test\r\n\r\nTo: evil@e.test", [ANN])
@example(b"To: undisclosed-recipients:;\r\n\r\n", [ANN])
def test_each_recipient_and_nobody_else_is_in_the_fields(header, recipients):
    content = graph_copy(header + b"\r\n\r\nbody", recipients).content
    section = content.partition(b"\r\n\r\n")[0] + b"\r\n"
    fields = parse_header(section)
    people = [one for name in ("To", "Cc", "Bcc") for one in read_addresses(fields, name)]
    assert sorted(own_mailbox(one.address) for one in people) == recipients
    seen = email.message_from_bytes(content)  # another reader
    lists = [seen.get_all(name, []) for name in ("To", "Cc", "Bcc")]
    assert [len(some) <= 1 for some in lists] == [True] * 3
    if EAI not in recipients:
        found = {address.lower() for _, address in getaddresses([str(x[0]) for x in lists if x])}
        assert found == set(recipients)
    assert not any(name.lower().startswith("resent-to") for name in seen)


@each_row(
    "fields, expected, left",
    [
        (
            "To: Bob <bob@b.test>,\r\n\tann@A.test\r\n",
            "To: Bob <bob@b.test>,\r\n\tann@A.test\r\n",
            (),
        ),
        (
            "To: =?utf-8?q?J=C3=B6rg?= <bob@b.test>, ann@a.test\r\n",
            "To: =?utf-8?q?J=C3=B6rg?= <bob@b.test>, ann@a.test\r\n",
            (),
        ),
        (
            'To: "B, ob" <bob@b.test>, Eve <evil@e.test>\r\nSubject: x\r\n',
            'To: "B, ob" <bob@b.test>\r\nSubject: x\r\nBcc: ann@a.test\r\n',
            (EVIL,),
        ),
        ("To: bob@b.test., ann@a.test\r\n", "To: bob@b.test,\r\n ann@a.test\r\n", ()),
        ("To: \vbob@b.test, ann@a.test\r\n", "To: bob@b.test,\r\n ann@a.test\r\n", ()),
        (
            "To: Team: Bob <bob@b.test>, ann@a.test;\r\n",
            "To: Bob <bob@b.test>,\r\n ann@a.test\r\n",
            (),
        ),
        (
            "To: bob@b.test\r\nCc: bob@B.test, ann@a.test\r\n",
            "To: bob@b.test\r\nCc: ann@a.test\r\n",
            (),
        ),
        (
            "To: undisclosed-recipients:;\r\nResent-To: evil@e.test\r\n",
            "Bcc: ann@a.test,\r\n bob@b.test\r\n",
            (EVIL,),
        ),
    ],
)
def test_what_becomes_of_the_fields(fields, expected, left):
    rest = "\r\nTo: body\xff\r\n\r\n"
    assert made(f"{fields}{rest}".encode(), ANN, BOB) == (f"{expected}{rest}", left)


def test_a_message_id_is_replaced_where_another_message_has_it():
    message = b"Message-ID: <a@a.test>\r\nMessage-Id: <b@a.test>\r\nTo: ann@a.test\r\n\r\n"
    expected = "To: ann@a.test\r\nMessage-ID: <c@r.test>\r\n\r\n"
    assert made(message, ANN, message_id="<c@r.test>") == (expected, ())
    same = b"Message-ID: <a@a.test>\r\nTo: ann@a.test\r\n\r\n"
    assert made(same, ANN, message_id="<a@a.test>") == (same.decode(), ())
    assert [sole_message_id(one) for one in (same, message, b"To: a\r\n\r\n")] == [
        *("<a@a.test>", "", "")
    ]


def test_a_large_body_stays_in_its_file(tmp_path):
    file = tmp_path / "body"
    file.write_bytes(b"\r\nbody")
    large = LargeContent(b"To: evil@e.test\r\n", (FileOctets(file, 0, 6),), eight_bit=False)
    copy = graph_copy(large, [ANN]).content
    assert copy.body is large.body
    assert ParsedContent.of(copy).header.octets == b"Bcc: ann@a.test\r\n"
