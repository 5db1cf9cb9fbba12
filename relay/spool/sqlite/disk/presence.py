"""Whether there is a spool, or was one: a file that is gone or empty beside its contents is damage.

On the path: before a spool is opened, and before a command says that there is none.
Holds: nobody begins with an empty queue where mail was, nor removes its contents as left over.
Fails: SpoolDamagedError; SpoolFormatError.
Standards: docs/operation.md (A damaged spool).
"""

import os
from contextlib import suppress
from pathlib import Path

from relay.spool.types import SpoolDamagedError, SpoolFormatError

ARRIVING = "arriving-"  # what came in and never got a message begins so


def contents_of(database: Path) -> Path:
    """The directory that has the larger contents of a spool."""
    return database.with_name(database.name + "-content")


def salvage_mark_of(database: Path) -> Path:
    """The file that is there while a spool is salvaged."""
    return database.with_name(database.name + ".salvage")


def last_commit_of(database: Path) -> Path:
    """The file that has the number of the last commit, from a start to the clean stop."""
    return database.with_name(database.name + ".last-commit")


def log_bytes(database: Path) -> int:
    """The size of the write-ahead log, 0 without one."""
    return _size(database.with_name(database.name + "-wal"))


def may_be_opened(database: Path) -> bool:
    """Whether SQLite can open the file; it removes the log of one that is empty or gone."""
    return _size(database) > 0


def is_or_was_there(database: Path) -> bool:
    """Whether there is anything of a spool."""
    return (
        database.exists()
        or salvage_mark_of(database).exists()
        or last_commit_of(database).exists()
        or _has_contents(database)
        or log_bytes(database) > 0
    )


def check_presence(database: Path) -> None:
    """Raise SpoolDamagedError for a file that is not what it was, SpoolFormatError for no file."""
    if salvage_mark_of(database).exists():
        raise SpoolDamagedError(f"{database}: its salvage was cut off")
    if not database.exists():
        if _has_contents(database):
            raise SpoolDamagedError(
                f"{database} is gone, and {contents_of(database)} has contents of its messages"
            )
        if log_bytes(database):  # SQLite would remove it
            raise SpoolDamagedError(f"{database} is gone, and its write-ahead log is not")
        if last_commit_of(database).exists():
            raise SpoolDamagedError(f"{database} is gone, and it was not closed")
    elif not database.is_file():
        found = "a directory" if database.is_dir() else "no regular file"
        raise SpoolFormatError(f"{database}: found {found}, expected the spool's file")
    elif not may_be_opened(database) and (
        contents_of(database).exists() or last_commit_of(database).exists() or log_bytes(database)
    ):
        # All three are made after the file's first commit.
        raise SpoolDamagedError(f"{database} is damaged: it is empty")


def _size(path: Path) -> int:
    with suppress(FileNotFoundError, NotADirectoryError):
        return path.stat().st_size
    return 0


def _has_contents(database: Path) -> bool:
    with (
        suppress(FileNotFoundError, NotADirectoryError),
        os.scandir(contents_of(database)) as entries,
    ):
        return any(not entry.name.startswith(ARRIVING) for entry in entries)
    return False
