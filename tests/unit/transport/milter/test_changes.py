"""Changes of header and body, with the places and numbers that Postfix counts."""

from time import process_time

import pytest

from relay.base.message.header import Header
from relay.transport.milter.changes import BodyLines, ShownHeader
from relay.transport.milter.codec import FieldChange, MilterFaultError
from tests.support.tables import each_row

HEADER = b"X-A: 1\r\nFrom: a@x.test\r\nx-a:\t2\r\n 2\r\nSubject:s\r\n"


def changed(*changes, header=HEADER, leading_blank=False, shown=None):
    shown = shown or ShownHeader(Header.parse(header))
    made = [FieldChange(kind.encode(), place, name, value) for kind, place, name, value in changes]
    return shown.changed(made, leading_blank=leading_blank)


@each_row(
    "changes, top, header",
    [
        ([], b"", HEADER),
        ([("h", 0, b"X-B", b"b\n\tc")], b"", HEADER + b"X-B: b\r\n\tc\r\n"),
        ([("h", 0, b"X-B", b"")], b"", HEADER + b"X-B: \r\n"),
        ([("i", 0, b"X-B", b"b")], b"X-B: b\r\n", HEADER),
        ([("i", 1, b"X-B", b"b")], b"", b"X-B: b\r\n" + HEADER),
        ([("i", 2, b"X-B", b"b")], b"", HEADER.replace(b"From", b"X-B: b\r\nFrom")),
        ([("i", 9, b"X-B", b"b")], b"", HEADER + b"X-B: b\r\n"),
        ([("i", 0, b"X-B", b"b"), ("i", 0, b"X-C", b"c")], b"X-C: c\r\nX-B: b\r\n", HEADER),
        ([("i", 0, b"X-B", b"b"), ("i", 2, b"X-C", b"c")], b"X-B: b\r\n", b"X-C: c\r\n" + HEADER),
        (
            [("i", 0, b"X-A", b"0"), ("m", 2, b"X-A", b"9")],
            b"X-A: 0\r\n",
            HEADER.replace(b"1", b"9"),
        ),
        ([("m", 0, b"x-A", b"9")], b"", HEADER.replace(b"X-A: 1", b"x-A: 9")),
        ([("m", 2, b"X-A", b"9")], b"", HEADER.replace(b"x-a:\t2\r\n 2", b"X-A: 9")),
        ([("m", 3, b"X-A", b"9")], b"", HEADER + b"X-A: 9\r\n"),
        ([("m", 1, b"X-None", b"9")], b"", HEADER + b"X-None: 9\r\n"),
        ([("m", 1, b"X-None", b"")], b"", HEADER),
        ([("m", 1, b"X-A", b"")], b"", HEADER.removeprefix(b"X-A: 1\r\n")),
        ([("m", 2, b"X-A", b""), ("m", 1, b"X-A", b"")], b"", b"From: a@x.test\r\nSubject:s\r\n"),
        # the first is gone, so that the second is the first
        (
            [("m", 1, b"X-A", b""), ("m", 1, b"X-A", b"9"), ("i", 2, b"X-B", b"b")],
            b"",
            b"From: a@x.test\r\nX-B: b\r\nX-A: 9\r\nSubject:s\r\n",
        ),
        (
            [("h", 0, b"X-A", b"3"), ("i", 1, b"X-A", b"0"), ("m", 4, b"X-A", b"9")],
            b"",
            b"X-A: 0\r\n" + HEADER + b"X-A: 9\r\n",
        ),
    ],
)
def test_changes_of_fields(changes, top, header):
    shown = changed(*changes)
    assert b"".join(octets for _, octets in shown.top) == top
    assert shown.header.octets == header
    assert shown.header == Header.parse(header)


def test_the_next_milter_sees_and_counts_what_the_first_has_put_on_top():
    shown = changed(("i", 0, b"X-B", b"b"))
    names = [name for name, _ in shown.fields(leading_blank=False)]
    assert names == [b"X-B", b"X-A", b"From", b"x-a", b"Subject"]
    assert changed(("m", 1, b"X-B", b""), shown=shown).top == ()
    assert changed(("i", 2, b"X-C", b"c"), shown=shown).header.octets == b"X-C: c\r\n" + HEADER


def test_values_as_postfix_shows_and_writes_them():
    shown = ShownHeader(Header.parse(b"A:  two\r\nB:\ttab\r\nC :none\r\nD:\r\n e\r\n"))
    values = dict(shown.fields(leading_blank=False))
    assert values == {b"A": b" two", b"B": b"\ttab", b"C": b"none", b"D": b"\n e"}
    assert dict(shown.fields(leading_blank=True))[b"A"] == b"  two"
    made = changed(("h", 0, b"E", b"none"), ("h", 0, b"F", b" one"), leading_blank=True)
    assert made.header.octets == HEADER + b"E:none\r\nF: one\r\n"


def test_a_line_that_is_no_field_ends_the_header_for_what_is_added():
    header = b"From: a@x.test\r\nno field\r\nX-A: 1\r\n"
    shown = changed(("h", 0, b"X-B", b"b"), ("m", 1, b"X-A", b"2"), header=header)
    assert shown.header.octets == b"From: a@x.test\r\nX-B: b\r\nno field\r\nX-A: 2\r\n"
    assert len(list(shown.fields(leading_blank=False))) == 3


def test_a_header_has_at_most_10000_fields():
    header = b"X-A: 1\r\n" * 9_999
    changed(("h", 0, b"X-B", b"b"), header=header)
    with pytest.raises(MilterFaultError, match="more than 10000 fields"):
        changed(("h", 0, b"X-B", b"b"), ("i", 0, b"X-B", b"b"), header=header)
    header = b"X-A: 1\r\n" * 999
    removed = changed(*[("m", one, b"X-A", b"") for one in range(999, 0, -1)], header=header)
    assert removed.header.octets == b""


def test_the_time_for_very_many_changes_is_bounded():
    """20,000 fields that are inserted at the end, of a header with 9,000."""
    header, began_s = b"X-A: 1\r\n" * 9_000, process_time()
    with pytest.raises(MilterFaultError, match="more than 10000 fields"):
        changed(*[("i", 2**32 - 1, b"X-A", b"b")] * 20_000, header=header)
    changed(*[("i", 9_000, b"X-A", b"b")] * 900, header=header)
    assert process_time() - began_s < 0.5


@each_row(
    "pieces, body",
    [
        ([], b""),
        ([b"a\r\nb\r\n"], b"a\r\nb\r\n"),
        ([b"a\r", b"\nb"], b"a\r\nb\r\n"),
        ([b"a\nb\n"], b"a\r\nb\r\n"),
        ([b"\n", b"\r\n"], b"\r\n\r\n"),
        ([b"x" * 1_048_000, b"x" * 576 + b"\n"], b"x" * 1_048_576 + b"\r\n"),
    ],
)
def test_lines_of_a_new_body(pieces, body):
    lines = BodyLines()
    assert b"".join([*map(lines.add, pieces), lines.end()]) == body


@each_row(
    "pieces", [[b"a\rb"], [b"a\r", b"b"], [b"a\r"], [b"\r\r\n"], [b"a\0"], [b"x" * 65_000] * 17]
)
def test_a_body_that_is_a_fault(pieces):
    lines = BodyLines()
    with pytest.raises(MilterFaultError, match="a body with a"):
        b"".join([*map(lines.add, pieces), lines.end()])
