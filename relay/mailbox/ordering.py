"""A new file and its names in one commit of the journal, where no name can outlive its content.

On the path: steps 1 and 2 write a draft through here, local delivery (6) a message.
Holds: whatever a loss of power leaves, a name that was given here has all of its file's octets.
Fails: OSError when the disk refuses.
Standards: sync_file_range(2), proc(5); docs/design.md 1.
"""

import ctypes
import errno
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from relay.mailbox.maildir import SYNC_FAILURES, sync_descriptor

_MOUNTS = Path("/proc/self/mountinfo")
_JOURNALS = Path(
    "/proc/fs/jbd2"
)  # of ext4's, by device and inode: one on a disk of its own has none
_BLOCK_DEVICES = Path("/sys/dev/block")
# With these the journal's commit does not flush what was written before it.
_LOOSE = re.compile(r"journal_async_commit|data=journal|rtdev=.*")
_WAIT_WRITE_WAIT = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER

_NOT_ALLOWED = (errno.ENOSYS, errno.EPERM)  # by a sandbox: a full sync does as well

_WriteBack = Callable[[int, int, int, int], int]


@contextmanager
def named_in_order(descriptor: int) -> Iterator[None]:
    """Inside the block a new file may be given names; behind it the file is durable, and a name
    when its directory is synced. Closes the descriptor.

    Raises OSError, for the block's end as well: the names are the caller's to remove.
    """
    try:
        is_durable = not keeps_order(os.fstat(descriptor).st_dev)
        if is_durable:
            sync_descriptor(descriptor)
        else:
            _write_back(descriptor)
        yield
        if not is_durable:
            sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=64)
def keeps_order(device: int) -> bool:
    """Whether names that are given behind a write-back cannot be durable before what was written.

    `device` is a file's st_dev. True is certain; False is all that is not known.
    """
    numbers = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = os.fsdecode(_MOUNTS.read_bytes())
        name = (_BLOCK_DEVICES / numbers).resolve().name
        journals = os.listdir(_JOURNALS) if _JOURNALS.is_dir() else []  # noqa: PTH208 - names
    except OSError:
        return False
    return _sync_file_range is not None and is_ordered(
        mounts, numbers, device_name=name, journals=journals
    )


def is_ordered(mounts: str, numbers: str, *, device_name: str, journals: Collection[str]) -> bool:
    """Decide keeps_order() by what the system tells.

    `mounts` is mountinfo, `numbers` the device's, `device_name` the kernel's name for it, and
    `journals` those of ext4. On ext4 and XFS a write-back ends when block map and size are in the
    journal's running transaction; names that come later are in no earlier one, and its commit
    flushes the disk, which has the octets.
    """
    for line in mounts.splitlines():
        mount, _, of_system = line.partition(" - ")
        fields, (kind, _, options) = mount.split(" "), of_system.split(" ", 2)
        if fields[2] != numbers:
            continue
        if any(_LOOSE.fullmatch(option) for option in options.split(",")):
            return False
        journal = re.compile(re.escape(device_name) + r"-\d+")
        return kind == "xfs" or (kind == "ext4" and any(map(journal.fullmatch, journals)))
    return False


def _write_back(descriptor: int) -> None:
    """Write all of a file's octets to the disk and wait for it; nothing is flushed."""
    assert _sync_file_range is not None
    if _sync_file_range(descriptor, 0, 0, _WAIT_WRITE_WAIT) == 0:
        return
    number = ctypes.get_errno()
    if number not in _NOT_ALLOWED:
        SYNC_FAILURES.add()
        raise OSError(number, os.strerror(number))
    sync_descriptor(descriptor)


def _found() -> _WriteBack | None:
    """The C library's sync_file_range(), None where it has none; it lets other threads work."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_sync_file_range = _found()
