"""Folder names: any script is encoded and decoded; a name that Maildir++ cannot hold is rejected."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relay.store.mailbox import folders
from relay.store.mailbox.errors import FolderError
from tests.support.tables import each_row


@each_row(
    "display_name, on_disk",
    [
        ("Projects", "Projects"),
        ("R&D", "R&-D"),
        ("Entwürfe", "Entw&APw-rfe"),
        ("Entwu\u0308rfe", "Entw&APw-rfe"),
        ("日本語", "&ZeVnLIqe-"),
        ("Отчёты 2026", "&BB4EQgRHBFEEQgRL- 2026"),
        ("😀", "&2D3eAA-"),
        ("example.com", "example&ICQ-com"),
        ("a/b", "a&IhU-b"),
        (' "odd" \\ *%', ' "odd" \\ *%'),
        ("a~", "a~"),
    ],
)
def test_a_name_is_written_as_imap_servers_do_and_read_back(display_name, on_disk):
    assert folders.encode_folder_name(display_name) == on_disk
    assert folders.same_name(folders.decode_folder_name(on_disk), display_name)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1))
def test_every_name_that_is_taken_comes_back(text):
    assume(text.strip() and not text.startswith("~"))
    name = folders.encode_folder_name(text)
    assert name.isascii()
    assert "." not in name
    assert "/" not in name
    assert folders.same_name(folders.decode_folder_name(name), text)
    assert folders.encode_folder_name(folders.decode_folder_name(name)) == name


@each_row(
    "display_name, reason",
    [
        ("", "visible character"),
        (" \u3000", "visible character"),
        ("a\0b", r"U\+0000 \(found at position 1\)"),
        ("a\n", r"U\+000A"),
        ("\ud800", r"U\+D800"),
        ("~home", "cannot begin with '~'"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_the_reason(display_name, reason):
    with pytest.raises(FolderError, match=reason):
        folders.encode_folder_name(display_name)


@each_row("name", ["&AC4", "&2AA-", "a&b", "\udcfcber", "&-x&", ".."])
def test_what_others_wrote_differently_is_shown_as_it_is(name):
    assert isinstance(folders.decode_folder_name(name), str)
    assert folders.decode_folder_name(name).encode()


def test_a_name_of_several_folders_becomes_one():
    assert folders.decode_folder_name("A.&AMQ-") == "A.Ä"
    assert folders.as_single_name("A.&AMQ-") == "A&ICQ-&AMQ-"
    assert folders.decode_folder_name(folders.as_single_name("A.&AMQ-")) == "A.Ä"


def test_names_are_the_same_for_people_whatever_their_case_and_form():
    assert folders.same_name("STRASSE", "straße")
    assert folders.same_name("u\u0308", "Ü")
    assert not folders.same_name("a", "ä")


def test_a_directory_has_at_most_255_bytes():
    assert folders.checked_directory("." + "x" * 254)
    with pytest.raises(FolderError, match="it has 256 bytes, expected at most 255"):
        folders.checked_directory("." + "x" * 255)
