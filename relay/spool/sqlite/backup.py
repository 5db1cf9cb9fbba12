"""Copy a running spool: the database, and the content files that it names.

The copy is one snapshot of the database together with the contents of that moment. The spool is
only read. A claim that was open at that moment becomes an indeterminate attempt when the copy is
started.

See docs/operation-backup.md (Back up).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import apsw

from relay.base.files import disk_of, fsync_path, link_or_copy
from relay.spool.engine import BackupResult, BackupSize
from relay.spool.shared.queue import stats
from relay.spool.shared.rows.accepted import RECIPIENTS_OF_KEYS
from relay.spool.sqlite.database import SqliteTables, open_database
from relay.spool.sqlite.spool_errors import integrity_errors, translate_sqlite_errors
from relay.spool.sqlite.spool_files import (
    contents_of,
    copy_database,
    copy_privately,
    open_copy,
)
from relay.spool.sqlite.transactions import is_file_needed
from relay.spool.types import SpoolDamagedError, SpoolFullError, translate_os_errors

_SNAPSHOTS_MAX = 10
_KNOWN_KEY = "SELECT 1 FROM submission WHERE key = ?"
_FILES = "SELECT file FROM content INDEXED BY content_file WHERE file IS NOT NULL ORDER BY file"


def backup_size(database: Path) -> BackupSize:
    """Return what back_up() would copy."""
    folder = contents_of(database)
    with (
        closing(open_database(database, read_only=True)) as connection,
        translate_sqlite_errors(database),
    ):
        pages = connection.pragma("page_count") * connection.pragma("page_size")
        sizes = [_size_of(folder / name) for (name,) in connection.execute(_FILES)]
    return BackupSize(pages, len(sizes), sum(sizes))


def back_up(
    database: Path, folder: Path, *, on_part: Callable[[int, int], None] = lambda *_: None
) -> BackupResult:
    """Copy the spool at `database` into `folder`, an empty directory."""
    with closing(open_database(database, read_only=True)) as connection:
        target = folder / database.name
        with translate_sqlite_errors(database):
            needed = connection.pragma("page_count") * connection.pragma("page_size")
        with translate_os_errors(folder):
            if disk_of(folder).free_bytes < needed:
                raise SpoolFullError(f"{folder}: {needed >> 20} MiB are needed, less is free")
            contents_of(target).mkdir(mode=0o700)
        missing = _with_contents(connection, contents_of(database), contents_of(target))
        copy_database(connection, target, on_part=on_part)
        with translate_sqlite_errors(database):
            _remove_others(connection, contents_of(target))
    with translate_os_errors(folder):
        fsync_path(contents_of(target))
        fsync_path(folder)
    return BackupResult(target, contents_of(target), _counts(target), missing)


def restore(database: Path, folder: Path) -> None:
    """Copy the backup in `folder` to `database`, where there is nothing. It is not synced.

    Raises FileNotFoundError for the copy of another kind of spool.
    """
    found = [one for one in folder.iterdir() if contents_of(one).is_dir()]
    if len(found) != 1:
        raise FileNotFoundError(f"{folder} has no copy of a spool")
    with translate_os_errors(database.parent):
        contents_of(database).mkdir(mode=0o700, parents=True)
        copy_privately(found[0], database)
        for one in contents_of(found[0]).iterdir():
            copy_privately(one, contents_of(database) / one.name)


def _with_contents(connection: apsw.Connection, source: Path, target: Path) -> tuple[str, ...]:
    """Begin a snapshot whose contents are all in `target`.

    If a content is missing, it was probably settled after the snapshot began, and another snapshot
    is taken. A content that is missing twice was lost before.
    """
    missing: list[str] = []
    for _ in range(_SNAPSHOTS_MAX):
        with translate_sqlite_errors():
            connection.execute("BEGIN")
            names = connection.execute(_FILES)
            with translate_os_errors(target):
                still_missing = [name for (name,) in names if not _taken(source, target, name)]
            if not still_missing or still_missing == missing:
                break
            connection.execute("COMMIT")
        missing = still_missing
    else:
        with translate_sqlite_errors():
            connection.execute("BEGIN")
    return tuple(still_missing)


def _taken(source: Path, target: Path, name: str) -> bool:
    if (target / name).exists():
        return True
    if (source / name).is_symlink():
        return False
    try:
        link_or_copy(source / name, target / name)
    except FileNotFoundError:
        return False
    return True


def _remove_others(connection: apsw.Connection, folder: Path) -> None:
    """Remove the files that only an earlier snapshot had."""
    tables = SqliteTables(connection.cursor())
    for path in list(folder.iterdir()):
        if not is_file_needed(tables, path.name):
            path.unlink()


def _counts(database: Path) -> dict[str, Any]:
    """Return the counts for the manifest. Raises SpoolDamagedError where the copy is damaged."""
    with translate_sqlite_errors(database), closing(open_copy(database)) as connection:
        if faults := integrity_errors(connection, full=False):
            text = f"{database}: the spool is damaged, and its copy too: {faults[0]}"
            raise SpoolDamagedError(text)
        tables = SqliteTables(connection.cursor())
        return {"schema": connection.pragma("user_version")} | stats.copied(tables)


def accepted_since(
    database: Path, copy: Path | None, keys: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Yield the submission keys that the spool has, and its copy has not: see SpoolStorage."""
    with (
        translate_sqlite_errors(database),
        closing(open_database(database, read_only=True)) as now,
        closing(open_copy(copy)) if copy else nullcontext() as before,
    ):
        for key in keys:
            if before and before.execute(_KNOWN_KEY, (key,)).fetchone():
                continue
            yield from now.execute(RECIPIENTS_OF_KEYS.format("s.key = ?"), (key,))


def _size_of(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
