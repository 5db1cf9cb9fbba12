"""The names of the spool's files, and whether there is a spool.

A database that is missing or empty while its content files, its log or its markers exist is
damaged (SpoolDamagedError). No process then starts with an empty queue, or removes the contents
as stale files. copy_database() copies the database while others use it.

Neither an apsw exception nor an OSError leaves the spool. The text of each error names the file.

See docs/operation-backup.md (The spool is damaged).
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from shutil import copyfile

import apsw

from relay.base.files import fsync_path
from relay.store.spool import types

ARRIVING = "arriving-"  # the prefix of files that no message names
_PAGES_AT_ONCE = 1000
_FAULTS_MAX = 100


@contextmanager
def translate_sqlite_errors(path: Path | str = "the spool") -> Iterator[None]:
    """Turn apsw's exceptions into the spool's."""
    try:
        yield
    except apsw.NotADBError as error:
        raise types.SpoolDamagedError(f"{path}: not a spool, nor any SQLite file") from error
    except apsw.CorruptError as error:
        raise types.SpoolDamagedError(f"{path} is damaged: {error}") from error
    except apsw.FullError as error:
        raise types.SpoolFullError(f"{path}: the disk is full") from error
    except apsw.ConnectionClosedError as error:
        raise types.SpoolUnavailableError(f"{path} is closed") from error
    except (apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError, apsw.BusyError) as error:
        raise types.SpoolUnavailableError(f"{path}: {error}") from error
    except apsw.Error as error:
        raise types.SpoolError(f"{path}: {error}") from error


def integrity_errors(connection: apsw.Connection, *, full: bool) -> list[str]:
    """Return what SQLite finds wrong with the pages; with `full` in indexes as well."""
    check = "integrity_check" if full else "quick_check"
    try:
        faults = [str(row[0]) for row in connection.execute(f"PRAGMA {check}({_FAULTS_MAX})")]
    except (apsw.CorruptError, apsw.NotADBError) as error:
        return [str(error)]
    return [text for text in faults if text != "ok"]


def contents_of(database: Path) -> Path:
    """Return the directory of the content files."""
    return database.with_name(database.name + "-content")


def log_of(database: Path) -> Path:
    """Return the write-ahead log of a database."""
    return database.with_name(database.name + "-wal")


def log_bytes(database: Path) -> int:
    """Return the size of the write-ahead log, 0 without one."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return log_of(database).stat().st_size
    return 0


def last_commit_of(database: Path) -> Path:
    """Return the file with the number of the last commit; it exists while a database is open."""
    return database.with_name(database.name + ".last-commit")


def is_openable(database: Path) -> bool:
    """Whether SQLite can open the file; it removes the log of a missing or empty one."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return database.stat().st_size > 0
    return False


def spool_has_traces(database: Path) -> bool:
    """Whether any file of a spool exists."""
    return (
        database.exists()
        or last_commit_of(database).exists()
        or _has_contents(database)
        or log_bytes(database) > 0
    )


def check_presence(database: Path) -> None:
    """Raise SpoolDamagedError for a file that was lost, SpoolFormatError for no file."""
    if not database.exists():
        if _has_contents(database):
            raise types.SpoolDamagedError(
                f"{database} is missing, but {contents_of(database)} has contents of its messages"
            )
        if log_bytes(database):  # SQLite would remove it
            raise types.SpoolDamagedError(f"{database} is missing, but its write-ahead log is not")
        if last_commit_of(database).exists():
            raise types.SpoolDamagedError(f"{database} is missing, but it was not closed")
    elif not database.is_file():
        kind = "a directory" if database.is_dir() else "no regular file"
        raise types.SpoolFormatError(f"{database}: found {kind}, expected the spool's file")
    elif not is_openable(database) and (
        contents_of(database).exists() or last_commit_of(database).exists() or log_bytes(database)
    ):
        # All three are created after the file's first commit.
        raise types.SpoolDamagedError(f"{database} is damaged: it is empty")


def _has_contents(database: Path) -> bool:
    with (
        suppress(FileNotFoundError, NotADirectoryError),
        os.scandir(contents_of(database)) as entries,
    ):
        return any(not entry.name.startswith(ARRIVING) for entry in entries)
    return False


def copy_privately(source: Path, target: Path) -> None:
    """Copy a file of the spool. It has mail in it: only its owner may read the copy."""
    copyfile(source, target)
    target.chmod(0o600)


def open_copy(database: Path) -> apsw.Connection:
    """Open a copy, which has no log, and which no process writes. No file is created next to it."""
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    return apsw.Connection(f"{database.absolute().as_uri()}?immutable=1", flags=flags)


def copy_database(source: apsw.Connection, target: Path) -> None:
    """Copy what `source` sees to `target`, replacing it.

    A source in a transaction is copied as that sees it. Without a transaction, the copy restarts
    after each commit. The copy gets its name when it is complete and synced; it is removed after an
    error.
    """
    part = target.with_name(target.name + ".part")
    try:
        with types.translate_os_errors(target.parent):
            part.unlink(missing_ok=True)
            part.touch(0o600)
        with translate_sqlite_errors(target), closing(apsw.Connection(str(part))) as copy:
            copy.execute("PRAGMA journal_mode = OFF")
            copy.execute("PRAGMA synchronous = OFF")  # it is synced once, at the end
            with copy.backup("main", source, "main") as backup:
                while not backup.done:
                    backup.step(_PAGES_AT_ONCE)
        with types.translate_os_errors(target.parent):
            fsync_path(part)
            part.rename(target)
            fsync_path(target.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def damage_mark_of(database: Path) -> Path:
    """Return the file that records that a spool is damaged."""
    return database.with_name(database.name + ".damage")
