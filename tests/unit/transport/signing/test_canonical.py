"""The canonical forms of fields and bodies: RFC 6376 3.4, with its example (3.4.5)."""

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.header import Header
from relay.transport.signing.signature import SimpleBodyHash, relaxed_body, relaxed_field

EXAMPLE = Header.parse(b"A: X\r\nB : Y\t\r\n\tZ  \r\n")
BODY = b" C \r\nD \t E\r\n\r\n\r\n"


def test_fields_of_the_example() -> None:
    fields = [relaxed_field(name.encode(), EXAMPLE.values(name)[0]) for name in ("a", "b")]
    assert fields == [b"a:X", b"b:Y Z"]


def test_the_relaxed_body_of_the_example() -> None:
    assert relaxed_body(BODY) == b" C\r\nD E\r\n"


def test_the_simple_body_of_the_example() -> None:
    expected = hashlib.sha256(b" C \r\nD \t E\r\n").digest()
    for cut in range(len(BODY) + 1):
        simple = SimpleBodyHash()
        simple.update(BODY[:cut])
        simple.update(BODY[cut:])
        assert simple.digest() == expected, cut


@given(st.text(" \ta", max_size=200).map(str.encode))
def test_a_run_of_white_space_is_one_space(value: bytes) -> None:
    assert relaxed_field(b"x", value) == b"x:" + re.sub(rb"[ \t]+", b" ", value)
