"""What a mailbox holds is counted right, and not anew when nothing changed."""

import os

import pytest

from relay.clock import ManualClock, SystemClock
from relay.mailbox import MailboxFullError, quota
from relay.mailbox.quota import Quota


@pytest.fixture
def box(tmp_path):
    for name in ("new", "cur", ".Sent/cur"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "new" / "1.R0123456789abcdef_1.h,S=100").touch()
    (tmp_path / "cur" / "2.foreign:2,S").write_bytes(b"x" * 10)
    (tmp_path / ".Sent/cur" / "3.M1.h,S=1000,W=1100:2,S").touch()
    (tmp_path / "cur" / ".hidden").write_bytes(b"x" * 999)
    return tmp_path


def test_all_folders_count_by_the_size_in_the_name_or_on_disk(box):
    assert Quota({}.get, SystemClock()).used_bytes(box) == 1110


@pytest.mark.parametrize(("limit", "fits"), [(None, True), (1120, True), (1119, False)])
def test_what_does_not_fit_is_refused(box, limit, fits):
    asked = Quota(lambda account: limit, SystemClock())
    assert asked.has_room("a@b", box, 10) is fits
    if not fits:
        with pytest.raises(MailboxFullError, match="1119 bytes"):
            asked.check("a@b", box, 10)


def test_a_directory_is_counted_again_when_it_changed(box, monkeypatch):
    listed = []
    real = quota.list_names
    monkeypatch.setattr(quota, "list_names", lambda path: listed.append(path) or real(path))
    # a clock far ahead: no directory is so young that its count cannot be trusted
    asked = Quota({}.get, ManualClock(now_us=SystemClock().time_us() + 10**9))
    asked.used_bytes(box)
    listed.clear()
    assert asked.used_bytes(box) == 1110
    assert listed == []
    (box / "cur" / "4.x,S=5:2,").touch()
    assert asked.used_bytes(box) == 1115
    assert listed == [box / "cur"]


def test_a_count_as_young_as_its_directory_is_not_trusted(box, monkeypatch):
    asked = Quota({}.get, ManualClock(now_us=SystemClock().time_us()))
    asked.used_bytes(box)
    changed_ns = (box / "cur").stat().st_mtime_ns
    (box / "cur" / "4.x,S=5:2,").touch()
    os.utime(box / "cur", ns=(changed_ns, changed_ns))  # both changes within one tick
    assert asked.used_bytes(box) == 1115
