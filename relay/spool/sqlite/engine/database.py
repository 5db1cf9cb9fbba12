"""Open the spool's SQLite file: pragmas, and the schema that this Relay knows.

On the path: under every transaction of the spool.
Holds: WAL with synchronous=FULL, so that a commit that returned survives a loss of power.
Fails: SpoolError with the file's name; never with an apsw exception.
Standards: SQLite file format 3, WAL; SQLite >= 3.51.3 (no WAL-reset fault).
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import apsw

from relay.clock import Anchor
from relay.message.lifecycle import FINAL, State
from relay.spool.sqlite.disk.presence import check_presence
from relay.spool.sqlite.engine.last_commit import check_commits, has_log, read_noted
from relay.spool.sqlite.engine.log_check import check_log
from relay.spool.sqlite.engine.migrating import bring_to_version, check_version
from relay.spool.sqlite.faults import disk_faults, translated
from relay.spool.types import SpoolError

LIVE_STATES = "({})".format(", ".join(f"'{one}'" for one in State if one not in FINAL))
SQLITE_VERSION_MIN = 3_051_003
CAPTURED_KEEP_S = 14 * 86400.0  # as spool.keep has it, unless somebody says otherwise
_CHECKPOINT_PAGES = 4000  # where nobody takes care of the log, as the writer does
_LOG_BYTES_MAX = 64 * 1024 * 1024  # what is left of it on the disk after it was larger
_CACHE_KIB = 16 * 1024
_ANCHOR = "steady_us, wall_us, elapsed_us, boot_id, doubtful_us, doubt_ends_us"
_READ_WRITE = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE


def open_database(
    path: Path, *, read_only: bool = False, captured_keep_us: int = int(CAPTURED_KEEP_S * 1_000_000)
) -> apsw.Connection:
    """Open the spool at `path`; with write access create it, or bring it to this Relay's schema.

    Raises SpoolDamagedError for a file that SQLite cannot read, SpoolFormatError for one of a newer
    Relay.
    """
    if _library_version() < SQLITE_VERSION_MIN:
        raise SpoolError(
            f"SQLite {apsw.sqlite_lib_version()} has a fault in its WAL: 3.51.3 is needed"
        )
    flags = apsw.SQLITE_OPEN_READONLY if read_only else _READ_WRITE
    check_presence(path)
    with_log = read_only or has_log(path)  # only its owner knows that no checkpoint runs
    noted = read_noted(path)
    if not read_only:
        with suppress(OSError):  # SQLite says better what is wrong with the place
            path.touch(0o600)  # there is mail in it; its WAL gets the same mode
    with translated(path):
        connection = apsw.Connection(str(path), flags=flags)
        try:
            connection.set_busy_timeout(5000)
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            if read_only:
                check_commits(connection, path, noted, with_log=with_log)
                check_version(connection, path)
            else:
                # A close leaves the log as it is: WriteAheadLog.empty() notes that it goes.
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                connection.execute("PRAGMA journal_mode = WAL")
                with disk_faults(path):
                    check_log(connection, path)
                check_commits(connection, path, noted, with_log=with_log)
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
                connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES_MAX}")
                bring_to_version(connection, path, captured_keep_us=captured_keep_us)
        except BaseException:
            connection.close()
            raise
    return connection


def fetch(cursor: apsw.Cursor, sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """All rows of a query, each a tuple whose columns the caller knows."""
    return cursor.execute(sql, values).fetchall()


def fetch_one(cursor: apsw.Cursor, sql: str, values: Sequence[Any] = ()) -> Any:
    """The first row of a query, or None."""
    return cursor.execute(sql, values).fetchone()


def _library_version() -> int:
    major, minor, patch = (*apsw.sqlite_lib_version().split("."), "0")[:3]
    return int(major) * 1_000_000 + int(minor) * 1000 + int(patch)


def read_anchor(connection: apsw.Connection) -> Anchor | None:
    """Return the anchor that the last commits left, from which a start continues the queue's time;
    None in a new file. Raises apsw's exceptions.
    """
    row = fetch_one(connection.cursor(), f"SELECT {_ANCHOR} FROM clock")
    return Anchor(*row) if row is not None else None


def write_anchor(cursor: apsw.Cursor, anchor: Anchor) -> None:
    """Replace the anchor, in the transaction of `cursor`. Raises apsw's exceptions."""
    cursor.execute(
        f"INSERT OR REPLACE INTO clock (id, {_ANCHOR}) VALUES (1, ?, ?, ?, ?, ?, ?)",
        astuple(anchor),
    )
