"""The structure of a message: as `email` reads well-formed ones, and no exception for others."""

import email
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.content import MemoryOctets
from relay.base.message.header import header_end
from relay.formats.structure import ENTITIES_MAX, LooseReading, read_structure, structure_of
from tests.support.long_tests import sampled
from tests.support.tables import each_row

LINES = st.lists(
    st.sampled_from(
        [
            b"",
            b"text",
            b"--",
            b"--b",
            b"-- ",
            b"--b1x",
            b"From x",
            b"\xfc\xe4",
            b".",
            b"a: b",
            b"x" * 80,
            b"\0",
        ]
    ),
    max_size=6,
)
LEAF_TYPES = ["text/plain", "text/html; charset=utf-8", 'image/png; name="--b.png"', "TEXT/X-Odd"]


@st.composite
def entities(draw, depth=0):
    """A well-formed entity: its lines, header included, without the last line end."""
    kind = draw(st.sampled_from(["leaf", "leaf", "multipart", "message"])) if depth < 4 else "leaf"
    extra = draw(st.sampled_from([[], [b"X-A: b", b"\tc"], [b"Content-ID: <a@b>"]]))
    if kind == "leaf":
        fields = draw(
            st.sampled_from([[], *([b"Content-Type: " + one.encode()] for one in LEAF_TYPES)])
        )
        return [*fields, *extra, b"", *draw(LINES)]
    if kind == "message":
        return [b"Content-Type: message/rfc822", *extra, b"", *draw(entities(depth=depth + 1))]
    boundary = b"=_%d_%d" % (depth, draw(st.integers(0, 10**9)))
    subtype = draw(st.sampled_from([b"mixed", b"Alternative", b"related"]))
    padding = draw(st.sampled_from([b"", b" ", b"\t "]))
    lines = [
        b'content-type: multipart/%b; boundary="%b"' % (subtype, boundary),
        *extra,
        b"",
        *draw(LINES),
    ]
    for part in draw(st.lists(entities(depth=depth + 1), min_size=1, max_size=3)):
        lines += [b"--" + boundary + padding, *part]
    return [*lines, b"--" + boundary + b"--" + padding, *draw(LINES)]


def leaves_of(content):
    """What this reader finds: type and body of everything that has no parts."""
    return [
        (one.content_type, content[one.body_start : one.end])
        for one in read_structure(content).entities
        if one.is_leaf
    ]


def leaves_by_email(content):
    return [
        (part.get_content_type(), part._payload.encode("ascii", "surrogateescape"))
        for part in email.message_from_bytes(content).walk()
        if not part.is_multipart()
    ]


@given(entities(), st.sampled_from([b"\r\n", b"\n", b"\r"]))
def test_well_formed_mail_has_the_parts_that_the_standard_library_finds(lines, line_end):
    content = line_end.join([b"Subject: x", *lines, b""])
    assert leaves_of(content) == leaves_by_email(content)


def checked(content):
    """Everything that holds of any structure."""
    structure = read_structure(content)
    assert structure.size == len(content)
    first = structure.message
    end = header_end(content)  # who looks at headers alone sees the same one
    assert (first.header, first.body_start) == (content[: end.header], end.body)
    assert (first.start, first.end, first.parent) == (0, len(content), -1)
    places = []
    for number, one in enumerate(structure.entities):
        assert one.lead <= one.start <= one.start + len(one.header) <= one.body_start <= one.end
        assert content[one.start :].startswith(one.header)
        if number:
            over = structure.entities[one.parent]
            assert over.body_start <= one.lead <= one.end <= over.end
            assert one.depth == over.depth + 1 <= 51
            assert places[-1] <= one.start
        if one.is_leaf:
            text = content[one.body_start : one.end]
            facts = one.body
            assert facts.size == len(text)
            assert (facts.eight_bit, facts.nul) == (not text.isascii(), b"\0" in text)
            ends = (text.count(b"\r"), text.count(b"\n"), text.count(b"\r\n"))
            assert (facts.carriage_returns, facts.line_feeds, facts.pairs) == ends
        places.append(one.start)
    return structure


@given(entities(), st.data())
def test_damage_never_raises_and_blocks_make_no_difference(lines, data):
    content = b"\r\n".join([*lines, b""])
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(content)))
        end = place + data.draw(st.integers(0, 30))
        new = data.draw(
            st.sampled_from([b"", b"\r", b"\n", b"\0", b"\r\n\r\n", b"--", b"\xff", b"\r\n--=_0"])
        )
        content = content[:place] + new + content[end:]
    whole = checked(content)
    size = data.draw(st.integers(1, 40))
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    assert structure_of(pieces) == whole
    assert read_structure(MemoryOctets(content)) == whole


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
@each_row("blank", [b"\n", b"\r", b"\r\n", b"\0\r\n", b"\0\0\n"])
def test_any_blank_line_ends_a_header(line_end, blank):
    if line_end + blank == b"\r\n":
        return  # that is one line end
    structure = checked(b"A: b" + line_end + blank + b"Bcc: body")
    assert structure.message.fields.keys() == ["A"]


@given(st.binary(max_size=200))
def test_no_bytes_raise(octets):
    checked(octets)
    checked(b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n" + octets)


MIXED = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"


@each_row(
    "content, defect",
    [
        (MIXED + b"--b\r\n\r\nx\r\n", "multipart/mixed without its closing boundary"),
        (MIXED + b"x\r\n", "multipart/mixed without any of its parts"),
        (b"Content-Type: multipart/mixed\r\n\r\n--b", "multipart/mixed without a boundary"),
        (MIXED + b"--b\r\nA: b\r\n--b--\r\n", "no blank line between header and body"),
        (b"A: b\r\nhello\r\n", "no blank line between header and body"),
        (b"From x Mon\r\nA: b\r\n\r\n", "a line in a header that is not a field: 'From x Mon'"),
        (b"A: b\r\nju\0nk\r\nC: d\r\n\r\n", "a line in a header that is not a field: 'junk'"),
        (b"A: \0b\r\n\r\n", "a NUL in a header"),
        (b"A: b\r\n\r\n\0", "a NUL in a body"),
        (b"A: b\r\n\r\n\xff", "octets of 8 bits where the encoding is 7bit"),
        (b"Content-Transfer-Encoding: x-odd\r\n\r\n", "an unknown transfer encoding: 'x-odd'"),
        (
            b"Content-Transfer-Encoding: base64\r\nContent-Type: message/rfc822\r\n\r\nx",
            "message/rfc822 with a transfer encoding of its own",
        ),
        (b"Content-Type: message/rfc822\r\n\r\n" * 60, "parts more than 50 deep"),
        (MIXED + b"--b\r\n\r\n" * 2000, "more than 1000 parts: the rest is not read"),
        (MIXED + b"--b\r\nA: " + b"b" * 300_000, "a header that is too long"),
    ],
)
def test_defects_are_reported(content, defect):
    structure = checked(content)
    assert defect in structure.defects
    assert len(structure.entities) <= ENTITIES_MAX


@each_row(
    "line, is_long",
    [
        (b"x" * 998 + b"\r\n", False),
        (b"x" * 999 + b"\r\n", True),
        (b"x" * 998 + b"\n", False),
        (b"x" * 999 + b"\n", True),
        (b"x" * 998, False),
        (b"x" * 999, True),
        (b"x\r\n" * 500 + b"y" * 998 + b"\r\n", False),
        (b"x\r\n" * 500 + b"y" * 999 + b"\r\nz", True),
    ],
)
def test_a_long_line_has_more_than_998_octets(line, is_long):
    content = MIXED + b"--b\r\n\r\n" + line + b"\r\n--b--\r\n"
    for size in (1, 7, 1000, len(content)):
        pieces = [content[start : start + size] for start in range(0, len(content), size)]
        assert structure_of(pieces).entities[1].body.long_line == is_long


@each_row(
    "boundary", ['"b (c)"', "(comment) b", '"b" (comment)', "b ;charset=x", '"' + "b" * 300 + '"']
)
def test_boundaries_in_any_notation(boundary):
    wanted = b"b" * 300 if "bb" in boundary else b"b (c)" if "(c)" in boundary else b"b"
    content = b"Content-Type: multipart/mixed; boundary=%b\r\n\r\n--%b\r\n\r\nx\r\n--%b--\r\n"
    structure = checked(content % (boundary.encode(), wanted, wanted))
    assert [one.is_leaf for one in structure.entities] == [False, True]


def test_all_entities_inside_a_signed_one_are_protected():
    inner = MIXED + b"--b\r\n\r\nx\r\n--b--"
    head = b"Content-Type: multipart/signed; boundary=s\r\n\r\n--s\r\n"
    content = head + inner + b"\r\n--s--\r\n"
    assert [one.protected for one in checked(content).entities] == [False, True, True]


def test_parts_of_a_digest_are_messages():
    content = b"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\nSubject: x\r\n\r\ny\r\n--b--\r\n"
    kinds = [one.content_type for one in checked(content).entities]
    assert kinds == ["multipart/digest", "message/rfc822", "text/plain"]


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (b"--b\r\n\r\nx\r\n--b--\r\n--b\r\n\r\ny\r\n--b--\r\n", [b"x", b"y"]),
        (b"--b--\r\n--b\r\n\r\nx\r\n--b--\r\n--b\r\n\r\ny\r\n", [b"x", b"y\r\n"]),
        (b"--b\r\n\r\nx\r\n--b--\r\n--b--\r\n--b\r\n\r\ny\r\n", [b"x"]),
    ],
    ids=["the innermost has the delimiters", "an end line before a part", "after both ends"],
)
def test_of_two_multiparts_with_one_boundary_all_parts_are_found(body, texts):
    """As postal-mime and mailparser read them; `email` takes the first end for that of both."""
    structure = checked(MIXED + b"--b\r\n" + MIXED + body)
    assert [one.parent for one in structure.entities][:3] == [-1, 0, 1]
    assert [text for _, text in leaves_of(MIXED + b"--b\r\n" + MIXED + body)] == texts


def test_a_boundary_that_is_another_with_words_after_it_is_ambiguous():
    inner = MIXED.replace(b"=b", b'="b x"') + b"--b x\r\n\r\ny\r\n--b--\r\n"
    assert structure_of([MIXED + b"--b\r\n" + inner], LooseReading()).is_ambiguous


@pytest.mark.parametrize("size", [200_000, 1_100_000])
def test_the_header_of_an_attached_message_may_have_1_mib(size):
    field = b"To: " + b"bob@b.test,\r\n " * (size // 14)
    content = b"Content-Type: message/rfc822\r\n\r\n" + field + b"\r\nSubject: s\r\n\r\nx"
    structure = checked(content)
    assert structure.is_complete == ("subject" in structure.entities[1].fields) == (size < 1 << 20)


@pytest.mark.parametrize(
    "unit",
    [
        b"\r\n--b",
        b"--",
        b"\r\n--b \t",
        b"\r\n",
        b"\n--bx\n",
        b"\r--b",
        b"\r\n--b" + b" " * 300,
        b"A: b\r\n",
        b"\0",
        b"x" * 70 + b"\r\n",
    ],
)
@each_row("nested", sampled([40, 1]))
def test_time_is_linear_in_the_message(unit, nested):
    head = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
        for n in range(nested)
    )
    content = head + MIXED + unit * (500_000 // len(unit))
    started = time.process_time()
    read_structure(content)
    assert time.process_time() - started < 0.4


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_a_content_field_may_be_folded_anywhere(line_end):
    lines = [b'Content-Type: multipart/mixed; boundary="a', b'  b"', b"", b"--a  b"]
    lines += [b"Content-Type: a/b", b'\tname="x', b' y.z"', b"", b"text", b"--a  b--"]
    structure = read_structure(line_end.join(lines))
    assert [one.content_type for one in structure.entities] == ["multipart/mixed", "a/b"]
    assert structure.entities[1].fields["content-type"] == 'a/b\tname="x y.z"'
    assert structure.defects == ()


@pytest.mark.parametrize(
    "kind", [b"te\xfct/plain", b"text/\x1b[31m", b"\xc3\xbc/x", b"multip\x85rt/mixed"]
)
def test_an_invalid_type_is_application_octet_stream(kind):
    structure = read_structure(b"Content-Type: %b; boundary=b\r\n\r\n--b\r\n\r\n--b--\r\n" % kind)
    assert [one.content_type for one in structure.entities] == ["application/octet-stream"]
    assert all(map(str.isascii, structure.defects))
