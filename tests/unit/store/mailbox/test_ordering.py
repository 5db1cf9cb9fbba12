"""Which file systems never show a name without its content, and what is done on either kind."""

import errno
import os

import pytest

from relay.store.mailbox import maildir
from relay.store.mailbox.maildir import is_ordered
from tests.support.tables import each_row

ROOT = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard"
DATA = "42 21 8:17 / /var/mail rw,noatime shared:7 master:2 - ext4 /dev/sdb1 rw,errors=remount-ro"
BOUND = "43 21 8:17 /a\\040b /srv/mail rw - ext4 /dev/sdb1 rw,errors=remount-ro"
MAPPED = "44 21 253:1 / /m rw - ext4 /dev/mapper/vg-mail rw"
XFS = "45 21 8:17 / /var/mail rw - xfs /dev/sdb1 rw,attr2,inode64,logbufs=8,noquota"


@each_row(
    "mounts, device_name, journals, expected",
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
)
def test_the_order_is_kept_where_it_is_known_to_be(mounts, device_name, journals, expected):
    numbers = "253:1" if device_name == "dm-1" else "8:17"
    text = "".join(line + "\n" for line in mounts)
    assert is_ordered(text, numbers, device_name=device_name, journals=journals) is expected


def test_a_system_that_tells_nothing_keeps_no_order(tmp_path, monkeypatch):
    monkeypatch.setattr(maildir, "_MOUNTS", tmp_path / "none")
    assert maildir.keeps_order.__wrapped__(tmp_path.stat().st_dev) is False


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
