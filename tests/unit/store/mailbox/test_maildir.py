"""Durable files: shared fsyncs, links and their copies, errors of the disk."""

import errno
import os
import threading

import pytest

from relay.store.mailbox import maildir
from relay.store.mailbox.maildir import (
    DirectorySync,
    make_directories,
    make_directory,
    place,
    rename,
    write_synced,
)


def test_nothing_is_replaced(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        place(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "b", b"x")
    assert (tmp_path / "b").read_text() == "b"


class SlowDisk:
    """Stands for fsync of a directory: each waits until it is let go, and tells what it covers."""

    def __init__(self, monkeypatch):
        self.changes = 0
        self.covered: list[int] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.error: OSError | None = None
        monkeypatch.setattr(maildir, "sync_directory", self.sync)

    def sync(self, path):
        seen = self.changes
        self.entered.release()
        assert self.go.acquire(timeout=30)
        if self.error:
            raise self.error
        self.covered.append(seen)


def waiting(syncs: DirectorySync, path, count: int):
    """Start callers, and return when all of them wait in sync()."""
    threads = [threading.Thread(target=syncs.sync, args=(path,)) for _ in range(count)]
    before = syncs._rounds[path].waiting if path in syncs._rounds else 0
    for thread in threads:
        thread.start()
    while path not in syncs._rounds or syncs._rounds[path].waiting < before + count:
        threading.Event().wait(0.001)
    return threads


def test_callers_share_an_fsync_that_started_after_their_change(tmp_path, monkeypatch):
    disk, syncs = SlowDisk(monkeypatch), DirectorySync()
    disk.changes = 1
    threads = waiting(syncs, str(tmp_path), 1)
    assert disk.entered.acquire(timeout=30)
    disk.changes = 9  # these come while the first runs: it does not count for them
    threads += waiting(syncs, str(tmp_path), 8)
    disk.go.release(9)
    for thread in threads:
        thread.join(10)
    assert disk.covered == [1, 9]
    assert syncs._rounds == {}


def test_a_failed_fsync_fails_for_all_who_waited_for_it(tmp_path, monkeypatch):
    disk, syncs = SlowDisk(monkeypatch), DirectorySync()
    disk.error = OSError(errno.EIO, "broken")
    disk.go.release(1)
    with pytest.raises(OSError, match="broken"):
        syncs.sync(tmp_path)
    disk.error = None
    disk.go.release(1)
    syncs.sync(tmp_path)
    assert len(disk.covered) == 1


def test_a_directory_that_could_not_be_made_durable_is_made_again(tmp_path, monkeypatch):
    synced = []

    def sync(path):
        synced.append(path)
        if len(synced) in {2, 4}:
            raise OSError(errno.EIO, "bad")

    monkeypatch.setattr(maildir, "sync_directory", sync)
    make_directory(tmp_path / "a")
    for make in (make_directory, lambda path: make_directories(path.parent, ("b", "c", "d"))):
        with pytest.raises(OSError, match="bad"):
            make(tmp_path / "a" / "b")
        assert list((tmp_path / "a").iterdir()) == []
        make(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()
        (tmp_path / "a" / "b").rmdir()
    assert synced == [tmp_path, *[tmp_path / "a"] * 4]


def test_a_rename_replaces_nothing(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"one")
    target.write_bytes(b"other")
    with pytest.raises(FileExistsError):
        rename(source, target)
    assert (source.read_bytes(), target.read_bytes()) == (b"one", b"other")
    target.unlink()
    os.link(source, target)
    rename(source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    rename(target, source)
    assert source.read_bytes() == b"one"
