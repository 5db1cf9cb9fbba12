"""Names of message files and mailbox directories: no path leaves the root, ids are stable; line ends."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.clock import id_time_us
from relay.store.mailbox.errors import NoSuchItemError
from relay.store.mailbox.message_file import (
    delivered_base_name,
    delivered_id,
    foreign_id,
    mailbox_directory,
    make_base_name,
    open_octets,
    parse_name,
    with_flags,
)
from tests.support.tables import each_row

ROOT = Path("/mail")


@each_row(
    "account, directory",
    [
        ("alice@example.test", "example.test/alice"),
        ("a.b+c@example.test", "example.test/a.b+c"),
        ("../../etc@example.test", "example.test/%2E.%2F..%2Fetc"),
        (".hidden@.submissions", "%2Esubmissions/%2Ehidden"),
        ("a\0b@x", "x/a%00b"),
        ("..@..", "%2E./%2E."),
        ("a%2fb@x", "x/a%252fb"),
        ('"a b"@x', "x/%22a%20b%22"),
    ],
)
def test_an_account_has_a_directory_inside_the_root(account, directory):
    assert mailbox_directory(ROOT, account) == ROOT / directory


@given(st.text(max_size=60))
def test_no_account_leaves_the_root(account):
    try:
        path = mailbox_directory(ROOT, account)
    except NoSuchItemError:
        return
    assert path.parts[:2] == ("/", "mail")
    assert len(path.parts) == 4
    assert not any(part.startswith(".") or "\0" in part for part in path.parts)


@each_row("account", ["", "alice", "@x", "a@", "x" * 300 + "@y"])
def test_what_can_be_no_mailbox_is_refused(account):
    with pytest.raises(NoSuchItemError, match="mailbox"):
        mailbox_directory(ROOT, account)


def test_a_name_of_ours_tells_everything():
    base_name = make_base_name("0123456789abcdef", 2, time_us=5_000_000, hostname="a:b/c")
    assert base_name == r"5.R0123456789abcdef_2.a\072b\057c"
    name = parse_name(f"{base_name},S=42:2,DSa")
    assert (name.base_name, name.message_id, name.generation) == (base_name, "0123456789abcdef", 2)
    assert (name.name_with_size, name.seconds, name.size, name.flags) == (
        f"{base_name},S=42",
        5,
        42,
        "DSa",
    )


@pytest.mark.parametrize(
    ("file_name", "flags", "size"),
    [
        ("1700.M1P2.host", "", None),
        ("1700.M1P2.host,S=9,W=10:2,FS", "FS", 9),
        ("odd:1,x", "", None),
    ],
)
def test_a_foreign_name_gets_an_id_that_its_flags_do_not_change(file_name, flags, size):
    name = parse_name(file_name)
    assert (name.flags, name.size) == (flags, size)
    assert name.message_id == foreign_id(name.base_name)
    assert parse_name(file_name.partition(":")[0] + ":2,RST").message_id == name.message_id


def test_derived_ids_are_no_clock_ids():
    ids = {foreign_id("x"), delivered_id("x"), delivered_id("y"), "0123456789abcdef"}
    assert len(ids) == 4
    assert {len(one) for one in ids} == {16}
    assert id_time_us(foreign_id("x")) is id_time_us(delivered_id("x")) is None


def test_a_delivery_has_the_same_name_again():
    first, again = (delivered_base_name("0123456789abcdef.7", hostname="h") for _ in range(2))
    assert first == again
    assert delivered_base_name("0123456789abcdef.8", hostname="h") != first
    assert parse_name(first).seconds == id_time_us("0123456789abcdef") // 1_000_000


def test_deliveries_of_a_second_have_names_in_the_order_of_their_arrival():
    ids = [f"06h29fkw{letter}00z6q78" for letter in "0123456789abcdef"]
    assert len({id_time_us(one) // 1_000_000 for one in ids}) == 1
    names = [delivered_base_name(f"{one}-1", hostname="h") for one in ids]
    assert names == sorted(names)


def test_hidden_files_are_no_messages():
    assert parse_name(".nfs0001") is None


def test_flags_stand_in_order_and_once():
    assert with_flags("SD", add="FS", remove="D") == "FS"


@each_row("unit", [b"x\n", b"x\r\n", b"\n", b"\r\n", b"\r", b"\r\r\n", b"a\rb\n", b"x\r\n\ny"])
def test_each_lf_alone_is_read_as_crlf(tmp_path, unit):
    """At each distance from the ends of the blocks in which the file is read."""
    for size in (1, 200, 1_200_000):  # the last is not held in memory
        for lead in (b"", b"\n", b"x"):
            path = tmp_path / "message"
            path.write_bytes(octets := lead + unit * (size // len(unit) + 1))
            expected, read = re.sub(rb"(?<!\r)\n", b"\r\n", octets), open_octets(path)
            assert (read.size, read.read(0, read.size)) == (len(expected), expected)
            for start in {0, 1, 65535 % len(expected), len(expected) - 1}:
                part = read.part(start, 131_073)
                assert part.read(1, 70_000) == expected[start + 1 : start + 131_073][:70_000]
            assert path.read_bytes() == octets
