"""Unread messages by the names of files: what is found, and that no change is missed."""

import os
from pathlib import Path

import pytest

from relay.base.clock import SystemClock
from relay.mailbox.unread_files import UnreadFiles

HOUR_NS = 3_600_000_000_000


def name_of(message_id: str, end: str = "") -> str:
    return f"1700000000.R{message_id:a<16}_1.host,S=5{end}"


def id_of(message_id: str) -> str:
    return f"{message_id:a<16}"


@pytest.fixture
def mailbox(tmp_path: Path) -> Path:
    for name in ("new", "cur", "tmp", ".Archive/cur"):
        (tmp_path / "x.test/ann" / name).mkdir(parents=True)
    return tmp_path / "x.test/ann"


def age(root: Path) -> None:
    """Make all directories look as if they had not changed for an hour."""
    for path in (root, *root.rglob("*/")):
        old_ns = path.stat().st_mtime_ns - HOUR_NS
        os.utime(path, ns=(old_ns, old_ns))


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
    found = UnreadFiles(mailbox.parents[1], SystemClock()).ids()
    assert found == ({id_of("one")} if is_found else set())


def test_a_change_of_a_known_directory_is_seen(mailbox, tmp_path) -> None:
    one = mailbox / "new" / name_of("one")
    one.touch()
    age(tmp_path)
    unread = UnreadFiles(tmp_path, SystemClock())
    assert unread.ids() == unread.ids() == {id_of("one")}
    one = one.rename(mailbox / "cur" / name_of("one", ":2,S"))
    assert unread.ids() == set()
    now_ns = SystemClock().file_time_us() * 1000
    for end, found in ((":2,", {id_of("one")}), (":2,S", set())):  # within one tick of the clock
        one = one.rename(one.with_name(name_of("one", end)))
        os.utime(mailbox / "cur", ns=(now_ns, now_ns))
        assert unread.ids() == found
    (mailbox / "cur" / name_of("two", ":2,")).touch()
    (tmp_path / "y.test/bob/new").mkdir(parents=True)
    (tmp_path / "y.test/bob/new" / name_of("three")).touch()
    assert unread.ids() == {id_of("two"), id_of("three")}
    (mailbox / "cur").rename(tmp_path / "gone")
    assert id_of("two") in unread.ids()  # it is still below the root
    (tmp_path / "gone").rename(tmp_path.parent / "gone")
    assert unread.ids() == {id_of("three")}


def test_a_directory_that_is_known_is_not_read_again(mailbox, tmp_path, monkeypatch) -> None:
    (mailbox / "new" / name_of("one")).touch()
    age(tmp_path)
    unread = UnreadFiles(tmp_path, SystemClock())
    first = unread.ids()
    monkeypatch.setattr(os, "scandir", None)
    assert unread.ids() == first
