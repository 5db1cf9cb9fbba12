"""The id in a delivered message's file: behind Return-Path, and found nowhere else."""

import pytest

from relay.mime.delivered import ID_WITHIN_BYTES, id_in, with_id

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
def test_the_id_goes_in_and_is_found(content, marked):
    assert with_id(content, ID) == marked
    assert id_in(marked[:ID_WITHIN_BYTES]) == ID


def test_the_id_is_found_behind_the_longest_return_path():
    address = b"a" * 64 + b"@" + b"b" * 255
    assert id_in(with_id(b"Return-Path: <%b>\r\n" % address, ID)[:ID_WITHIN_BYTES]) == ID


@pytest.mark.parametrize(
    "beginning",
    [FIELD.upper(), FIELD.replace(b"\r\n", b"\n"), b"Subject: s\r\n" + FIELD],
)
def test_the_id_is_found_as_another_program_may_have_written_it(beginning):
    assert id_in(beginning) == ID


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
def test_anything_else_is_no_id(beginning):
    assert id_in(beginning) == ""
