"""Unread messages by the names of files."""

from pathlib import Path

import pytest

from relay.store.mailbox.mailbox_list import unread_ids


def name_of(message_id: str, end: str = "") -> str:
    return f"1700000000.R{message_id:a<16}_1.host,S=5{end}"


def id_of(message_id: str) -> str:
    return f"{message_id:a<16}"


@pytest.fixture
def mailbox(tmp_path: Path) -> Path:
    for name in ("new", "cur", "tmp", ".Archive/cur"):
        (tmp_path / "x.test/ann" / name).mkdir(parents=True)
    return tmp_path / "x.test/ann"


@pytest.mark.parametrize(
    ("place", "end", "is_found"),
    [
        ("new", "", True),
        ("cur", ":2,", True),
        ("cur", ":2,F", True),
        ("cur", ":2,FS", False),
        (".Archive/cur", ":2,", True),
        ("tmp", "", False),
    ],
)
def test_a_file_without_the_flag_is_unread(mailbox, place, end, is_found) -> None:
    (mailbox / place / name_of("one", end)).touch()
    found = unread_ids(mailbox.parents[1])
    assert found == ({id_of("one")} if is_found else set())


def test_directories_of_all_mailboxes_are_read_each_time(mailbox, tmp_path) -> None:
    one = mailbox / "new" / name_of("one")
    one.touch()
    (tmp_path / "y.test/bob/new").mkdir(parents=True)
    (tmp_path / "y.test/bob/new" / name_of("two")).touch()
    assert unread_ids(tmp_path) == {id_of("one"), id_of("two")}
    one.rename(mailbox / "cur" / name_of("one", ":2,S"))
    assert unread_ids(tmp_path) == {id_of("two")}
