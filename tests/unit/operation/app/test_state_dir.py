"""The owner lock of the state_dir, and notifications to systemd."""

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.operation.app import daemon
from relay.operation.app.daemon import notify_manager
from relay.operation.app.state_dir import AlreadyRunningError, OwnerLock


@contextmanager
def no_file_may_grow() -> Iterator[None]:
    """As on a full disk: a write that would make a file longer fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_second_owner_gets_the_pid_of_the_first(tmp_path: Path) -> None:
    first, second = OwnerLock(tmp_path / "state" / "run"), OwnerLock(tmp_path / "state" / "run")
    first.take()
    with pytest.raises(AlreadyRunningError, match=f"state is in use by process {os.getpid()}$"):
        second.take()
    first.give_back()
    second.take()
    second.give_back()


def test_a_mail_store_has_one_owner_whatever_their_state_dirs_are(tmp_path: Path) -> None:
    submissions = tmp_path / "mail" / ".submissions"
    submissions.parent.mkdir()
    first = OwnerLock(tmp_path / "state" / "run", submissions=submissions)
    second = OwnerLock(tmp_path / "other" / "run", submissions=submissions)
    first.take()
    with pytest.raises(AlreadyRunningError, match=f"mail is in use by process {os.getpid()}$"):
        second.take()
    OwnerLock(tmp_path / "other" / "run").take()  # nothing of it was kept
    first.give_back()
    third = OwnerLock(tmp_path / "third" / "run", submissions=submissions)
    third.take()
    third.give_back()


def test_a_mail_store_that_cannot_be_written_needs_no_lock(tmp_path: Path) -> None:
    (tmp_path / "mail").write_bytes(b"")
    lock = OwnerLock(tmp_path / "run", submissions=tmp_path / "mail" / ".submissions")
    lock.take()
    lock.give_back()


def test_a_full_disk_does_not_prevent_locking(tmp_path: Path) -> None:
    lock = OwnerLock(tmp_path)
    lock.take()
    lock.give_back()
    with no_file_may_grow():
        lock.take()
    with pytest.raises(AlreadyRunningError, match="unknown"):
        OwnerLock(tmp_path).take()
    lock.give_back()


def test_a_service_manager_that_does_not_listen_stops_nothing(tmp_path: Path, monkeypatch) -> None:
    """The system keeps a few states for it, and lets who sends another one wait."""
    monkeypatch.setattr(daemon, "_MANAGER_S", 0.001)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        kept = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        for _ in range(kept + 20):
            notify_manager(str(tmp_path / "notify"), "WATCHDOG=1")
