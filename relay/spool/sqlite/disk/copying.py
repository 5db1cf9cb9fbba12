"""Copy the spool's file while others read and write it: one snapshot, a few pages at a time.

On the path: beside it; before a migration, and for a backup.
Holds: the copy has its name only when it is whole and on the disk; the original is only read.
Fails: SpoolFullError, SpoolUnavailableError, SpoolDamagedError; nothing is left of the copy then.
Standards: SQLite's online backup.
"""

import os
from collections.abc import Callable
from pathlib import Path

import apsw

from relay.spool.sqlite.faults import disk_faults, translated

_PAGES_AT_ONCE = 1000


def copy_database(
    source: apsw.Connection, target: Path, *, on_part: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Copy what `source` sees to `target`, replacing it; `on_part` hears how many pages are done,
    and of how many.

    A source in a transaction is copied as that sees it, whatever is committed meanwhile; any other
    is begun anew after each commit.
    """
    part = target.with_name(target.name + ".part")
    try:
        with disk_faults(target.parent):
            part.unlink(missing_ok=True)
            part.touch(0o600)
        with translated(target):
            copy = apsw.Connection(str(part))
            try:
                _copy(source, copy, on_part)
            finally:
                copy.close()
        with disk_faults(target.parent):
            sync(part)
            part.rename(target)
            sync(target.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Sync a file or a directory. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(
    source: apsw.Connection, copy: apsw.Connection, on_part: Callable[[int, int], None]
) -> None:
    copy.execute("PRAGMA journal_mode = OFF")
    copy.execute("PRAGMA synchronous = OFF")  # it is synced once, as a whole
    with copy.backup("main", source, "main") as backup:
        while not backup.done:
            backup.step(_PAGES_AT_ONCE)
            on_part(backup.page_count - backup.remaining, backup.page_count)
