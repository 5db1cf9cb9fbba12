"""Open the spool's SQLite file: pragmas, schema version, and what its errors mean.

On the path: under every transaction of the spool.
Holds: WAL with synchronous=FULL, so that a commit that returned survives a loss of power.
Fails: SpoolError with the file's name; never with an apsw exception.
Standards: SQLite file format 3, WAL; SQLite >= 3.51.3 (no WAL-reset fault).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import apsw

from relay.spool.types import SpoolError, SpoolFormatError, SpoolFullError, SpoolUnavailableError

SCHEMA_VERSION = 2
SQLITE_VERSION_MIN = 3_051_003
# What brings a file from each older version to the next.
_MIGRATIONS = {
    1: "ALTER TABLE content ADD COLUMN header BLOB;"
    "ALTER TABLE content ADD COLUMN eight_bit INTEGER NOT NULL DEFAULT 0;",
}
_CHECKPOINT_PAGES = 4000
_CACHE_KIB = 16 * 1024


def open_database(path: Path, *, read_only: bool = False) -> apsw.Connection:
    """Open (and with write access create) the spool at `path`.

    Raises SpoolFormatError for a file that is no spool, or one from a newer Relay.
    """
    if _library_version() < SQLITE_VERSION_MIN:
        raise SpoolError(
            f"SQLite {apsw.sqlite_lib_version()} has a fault in its WAL: 3.51.3 is needed"
        )
    flags = apsw.SQLITE_OPEN_READONLY if read_only else _READ_WRITE
    if not read_only:
        with suppress(OSError):  # SQLite says better what is wrong with the place
            path.touch(0o600)  # there is mail in it; its WAL gets the same mode
    with translated(path):
        connection = apsw.Connection(str(path), flags=flags)
        connection.set_busy_timeout(5000)
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        _bring_to_version(connection, path, read_only=read_only)
    return connection


@contextmanager
def translated(path: Path | str = "the spool") -> Iterator[None]:
    """Turn apsw's exceptions into the spool's."""
    try:
        yield
    except apsw.NotADBError as error:
        raise SpoolFormatError(f"{path}: not a spool, nor any SQLite file") from error
    except apsw.FullError as error:
        raise SpoolFullError(f"{path}: the disk is full") from error
    except (apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError, apsw.BusyError) as error:
        raise SpoolUnavailableError(f"{path}: {error}") from error
    except apsw.Error as error:
        raise SpoolError(f"{path}: {error}") from error


def fetch(cursor: apsw.Cursor, sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """All rows of a query, each a tuple whose columns the caller knows."""
    return cursor.execute(sql, values).fetchall()


def fetch_one(cursor: apsw.Cursor, sql: str, values: Sequence[Any] = ()) -> Any:
    """The first row of a query, or None."""
    return cursor.execute(sql, values).fetchone()


def _library_version() -> int:
    major, minor, patch = (*apsw.sqlite_lib_version().split("."), "0")[:3]
    return int(major) * 1_000_000 + int(minor) * 1000 + int(patch)


def _bring_to_version(connection: apsw.Connection, path: Path, *, read_only: bool) -> None:
    found = connection.execute("PRAGMA user_version").get
    if found == SCHEMA_VERSION:
        return
    if found > SCHEMA_VERSION:
        raise SpoolFormatError(
            f"{path}: made by a newer Relay (schema {found}, expected {SCHEMA_VERSION})"
        )
    if read_only:
        raise SpoolFormatError(f"{path}: not a spool (schema {found}, expected {SCHEMA_VERSION})")
    with connection:
        if found == 0:
            schema = files("relay.spool.sqlite").joinpath("schema.sql").read_text()
            connection.execute(schema)
        else:
            for version in range(found, SCHEMA_VERSION):
                connection.execute(_MIGRATIONS[version])
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


_READ_WRITE = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
