"""Header fields, written and read again by the standard library's parser."""

import email
import email.policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.properties import EmailAddress
from relay.formats.read_header import parse_header, read_addresses, read_text
from relay.formats.read_mime import read_mime
from relay.formats.write_header import address_list_field, ascii_address, parameter, text_field
from tests.support.tables import each_row

HARD_SUBJECTS = [
    "plain",
    "Bericht ✓ seven steps ✓ " + "that has to be folded over more than one line " * 3,
    "ascii that has to be folded " * 8,
    "two  spaces   and a\ttab " * 6 + "end",
    "x" * 1200,
    "=?utf-8?q?not_an_encoded_word?=",
    " leading and trailing ",
    "日本語の件名" * 30,
    "🙂" * 40,
    'a: b; c, <d@e> (f) "g" \\h',
    "",
]


def physical_lines(field: str) -> list[str]:
    assert field.endswith("\r\n")
    lines = field[:-2].split("\r\n")
    assert not any("\r" in line or "\n" in line for line in lines)
    assert all(line[0] in " \t" for line in lines[1:])
    assert all(line.strip() for line in lines)
    return lines


@each_row("subject", HARD_SUBJECTS)
def test_a_subject_reads_as_it_was_written(subject):
    field = text_field("Subject", subject)
    assert field.isascii()
    assert max(map(len, physical_lines(field))) <= 998
    assert read_text(parse_header(field.encode()), "subject") == subject.strip()


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=300))
def test_any_text_reads_as_it_was_written(subject):
    field = text_field("Subject", subject)
    assert max(map(len, physical_lines(field))) <= 998
    message = email.message_from_string(field, policy=email.policy.default)
    assert message.keys() == ["Subject"]
    assert read_text(parse_header(field.encode()), "subject") == subject.strip()


@pytest.mark.parametrize("attack", ["a\r\nBcc: x@y", "a\nB: c", "a\0b", "a\rX: y"])
def test_no_value_starts_another_field(attack):
    for field in (
        text_field("Subject", attack),
        address_list_field("To", [EmailAddress("a@b.test", attack)]),
        address_list_field("To", [EmailAddress(attack)]),
        f"Content-Type: text/plain{parameter('name', attack)}\r\n",
    ):
        assert email.message_from_string(field).keys() == [field.partition(":")[0]]


@each_row("name", ["", "X:", "X\r\nBcc", "X y", "Ü", "X" * 1000])
def test_an_invalid_name_gives_no_field(name):
    assert text_field(name, "value") == ""


@each_row(
    "name",
    [
        "",
        "Bob",
        "Bob Smith",
        "Smith, Bob",
        'Bob "the" \\ Smith',
        "Jürgen Müller",
        "a@b",
        "(x)",
        "=?utf-8?q?x?=",
        "名前" * 40,
        "long name " * 30,
    ],
)
def test_addresses_read_as_they_were_written(name):
    people = (EmailAddress("bob@example.test", name), EmailAddress("x@y.test"))
    field = address_list_field("To", people)
    assert field.isascii()
    assert max(map(len, physical_lines(field))) <= 998
    wanted = (EmailAddress("bob@example.test", name.strip()), EmailAddress("x@y.test"))
    assert read_addresses(parse_header(field.encode()), "to") == wanted


@each_row(
    "name",
    [
        "data.bin",
        "a b.txt",
        'quo"te\\.txt',
        "Übersicht.txt",
        "日本語" * 30 + ".pdf",
        "x" * 300,
        "it's 100%.txt",
        "a;b=c.txt",
        "🙂.png",
        "=?utf-8?q?x?=",
    ],
)
def test_a_file_name_reads_as_it_was_written(name):
    field = f"Content-Disposition: attachment{parameter('filename', name)}\r\n"
    assert field.isascii()
    assert max(map(len, physical_lines(field))) <= 100
    for policy in (email.policy.default, email.policy.compat32):
        message = email.message_from_string(field + "\r\n", policy=policy)
        assert message.get_filename() == name
        assert not message.defects
    assert read_mime(field.encode() + b"\r\n").attachments[0].name == name


@pytest.mark.parametrize(
    ("address", "wanted"),
    [("a@b.test", "a@b.test"), ("a@bücher.test", "a@xn--bcher-kva.test"), ("ä@b.test", "ä@b.test")],
)
def test_domains_are_written_in_a_labels(address, wanted):
    assert ascii_address(address) == wanted
