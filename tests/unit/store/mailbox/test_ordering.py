"""Which file systems never show a name without its content, and what is done on either kind."""

import errno
import os

import pytest

from relay.store.mailbox import maildir
from relay.store.mailbox.maildir import finish_content, is_ordered

ROOT = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard"
DATA = "42 21 8:17 / /var/mail rw,noatime shared:7 master:2 - ext4 /dev/sdb1 rw,errors=remount-ro"
BOUND = "43 21 8:17 /a\\040b /srv/mail rw - ext4 /dev/sdb1 rw,errors=remount-ro"
MAPPED = "44 21 253:1 / /m rw - ext4 /dev/mapper/vg-mail rw"
XFS = "45 21 8:17 / /var/mail rw - xfs /dev/sdb1 rw,attr2,inode64,logbufs=8,noquota"


@pytest.mark.parametrize(
    ("mounts", "device_name", "journals", "expected"),
    [
        ([ROOT, DATA], "sdb1", ["vda-8", "sdb1-8"], True),
        ([ROOT, BOUND, DATA], "sdb1", ["sdb1-8"], True),
        ([ROOT, DATA], "sdb1", ["vda-8"], False),
        ([ROOT, DATA], "sdb1", [], False),
        ([ROOT, DATA], "sdb1", ["sdc1"], False),
        ([ROOT, DATA], "sdb1", ["sdb11-8", "xsdb1-8", "sdb1-", "sdb1-8-8"], False),
        ([DATA.replace("errors=remount-ro", "data=writeback")], "sdb1", ["sdb1-8"], True),
        ([DATA + ",data=journal"], "sdb1", ["sdb1-8"], False),
        ([DATA + ",journal_async_commit"], "sdb1", ["sdb1-8"], False),
        ([DATA.replace("ext4", "ext3")], "sdb1", ["sdb1-8"], False),
        ([XFS], "sdb1", [], True),
        ([XFS + ",logdev=/dev/sdc1"], "sdb1", [], True),
        ([XFS + ",rtdev=/dev/sdc1"], "sdb1", [], False),
        ([XFS.replace("xfs", "btrfs")], "sdb1", ["sdb1-8"], False),
        ([XFS.replace("xfs", "overlay")], "sdb1", ["sdb1-8"], False),
        ([XFS.replace("xfs", "nfs4")], "sdb1", [], False),
        ([ROOT, MAPPED], "dm-1", ["dm-1-8", "dm-10-8"], True),
        ([ROOT, MAPPED], "dm-1", ["dm-10-8"], False),
        ([ROOT], "sdb1", ["vda-8", "sdb1-8"], False),
        ([], "sdb1", ["sdb1-8"], False),
    ],
    ids=[
        "ext4", "bound twice", "another's journal", "no journal", "a journal on its own disk",
        "names alike", "writeback", "data=journal", "async commit", "ext3", "xfs",
        "xfs with a log of its own", "xfs, real time", "btrfs", "overlay", "nfs", "mapped",
        "mapped, another's journal", "not mounted here", "nothing mounted",
    ],
)  # fmt: skip
def test_the_order_is_kept_where_it_is_known_to_be(mounts, device_name, journals, expected):
    numbers = "253:1" if device_name == "dm-1" else "8:17"
    text = "".join(line + "\n" for line in mounts)
    assert is_ordered(text, numbers, device_name=device_name, journals=journals) is expected


def test_a_system_that_tells_nothing_keeps_no_order(tmp_path, monkeypatch):
    monkeypatch.setattr(maildir, "_MOUNTS", tmp_path / "none")
    assert maildir.keeps_order.__wrapped__(tmp_path.stat().st_dev) is False


@pytest.fixture(params=[True, False], ids=["in order", "out of order"])
def acts(request, tmp_path, monkeypatch):
    """What is done to a new file and its name, in order."""
    done: list[str] = []
    really, sync = maildir._write_back, os.fsync
    monkeypatch.setattr(maildir, "keeps_order", lambda _: request.param)
    monkeypatch.setattr(
        maildir, "_write_back", lambda file: (really(file), done.append("write back"))
    )
    monkeypatch.setattr(os, "fsync", lambda file: (sync(file), done.append("sync")))
    return done


def test_octets_come_before_names(acts, tmp_path):
    in_order = maildir.keeps_order(0)
    file = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"x")
    assert finish_content(file) is in_order
    assert acts == (["write back"] if in_order else ["sync"])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_a_file_that_cannot_be_finished_is_closed(acts, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "error")

    monkeypatch.setattr(maildir, "_write_back", fail)
    monkeypatch.setattr(os, "fsync", fail)
    file = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="error"):
        finish_content(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_where_a_sandbox_forbids_the_call_a_sync_does(tmp_path, monkeypatch, number):
    synced = []
    monkeypatch.setattr(maildir, "_sync_file_range", lambda *_: -1)
    monkeypatch.setattr(maildir.ctypes, "get_errno", lambda: number)
    monkeypatch.setattr(os, "fsync", synced.append)
    maildir._write_back(5)
    assert synced == [5]


def test_an_error_of_the_disk_is_one(tmp_path):
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="Illegal seek"):  # as a disk would say EIO
            maildir._write_back(writing)
    finally:
        os.close(reading)
        os.close(writing)
