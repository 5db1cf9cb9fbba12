"""The stored form of a spool on SQLite: its database, log, markers and content files.

A copy is one snapshot of the database, with its contents. The spool is only read. A claim that was
open in the snapshot becomes an indeterminate attempt when the copy is started.

See relay.store.spool.engine.SpoolStorage, and docs/operation-backup.md (Back up).
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import apsw

from relay.base.files import disk_of, fsync_path, link_or_copy
from relay.store.spool.engine import BackupResult, SpoolStorage, VerifyRequest
from relay.store.spool.shared import stats
from relay.store.spool.shared.accepted import RECIPIENTS_OF_KEYS, RECIPIENTS_OF_MESSAGES
from relay.store.spool.sqlite import spool_files
from relay.store.spool.sqlite.database import SqliteTables, open_database
from relay.store.spool.sqlite.disk_space import RESERVE_FILE
from relay.store.spool.sqlite.migrate import check_files
from relay.store.spool.sqlite.transactions import is_file_needed
from relay.store.spool.sqlite.verify import SpoolVerifier
from relay.store.spool.types import SpoolDamagedError, SpoolFullError, translate_os_errors

_SNAPSHOTS_MAX = 10
_KNOWN_KEY = "SELECT 1 FROM submission WHERE key = ?"
_FILES = "SELECT file FROM content INDEXED BY content_file WHERE file IS NOT NULL ORDER BY file"


class SqliteStorage(SpoolStorage):
    """A SpoolStorage."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def __str__(self) -> str:
        return str(self._database)

    def files(self) -> tuple[Path, ...]:
        """SpoolStorage.files."""
        return self._database, spool_files.log_of(self._database)

    def exists(self) -> bool:
        """SpoolStorage.exists."""
        return spool_files.spool_has_traces(self._database)

    def is_marked_damaged(self) -> bool:
        """SpoolStorage.is_marked_damaged."""
        return spool_files.damage_mark_of(self._database).exists()

    def check(self, *, has_owner: bool) -> None:
        """SpoolStorage.check."""
        check_files(self._database, has_owner=has_owner)

    def verify(self, request: VerifyRequest) -> dict[str, int]:
        """SpoolStorage.verify."""
        return SpoolVerifier(self._database, request).run()

    def back_up(self, folder: Path) -> BackupResult:
        """SpoolStorage.back_up."""
        database, target = self._database, folder / self._database.name
        with closing(open_database(database, read_only=True)) as connection:
            with spool_files.translate_sqlite_errors(database):
                needed = connection.pragma("page_count") * connection.pragma("page_size")
            with translate_os_errors(folder):
                if disk_of(folder).free_bytes < needed:
                    raise SpoolFullError(f"{folder}: {needed >> 20} MiB are needed, less is free")
                spool_files.contents_of(target).mkdir(mode=0o700)
            missing = _with_contents(
                connection, spool_files.contents_of(database), spool_files.contents_of(target)
            )
            spool_files.copy_database(connection, target)
            with spool_files.translate_sqlite_errors(database):
                _remove_others(connection, spool_files.contents_of(target))
        with translate_os_errors(folder):
            fsync_path(spool_files.contents_of(target))
            fsync_path(folder)
        return BackupResult(target, spool_files.contents_of(target), _counts(target), missing)

    @contextmanager
    def restored(self, folder: Path) -> Iterator[None]:
        """SpoolStorage.restored. The restored files are not synced."""
        databases = [path for path in folder.iterdir() if spool_files.contents_of(path).is_dir()]
        if len(databases) != 1:
            raise FileNotFoundError(f"{folder} has no copy of a spool")
        database = self._database
        with translate_os_errors(database.parent):
            spool_files.contents_of(database).mkdir(mode=0o700, parents=True)
            spool_files.copy_privately(databases[0], database)
            for file in spool_files.contents_of(databases[0]).iterdir():
                spool_files.copy_privately(file, spool_files.contents_of(database) / file.name)
        yield

    def accepted_since(self, folder: Path | None, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
        """SpoolStorage.accepted_since."""
        copy = folder and folder / self._database.name
        with (
            spool_files.translate_sqlite_errors(self._database),
            closing(open_database(self._database, read_only=True)) as now,
            closing(spool_files.open_copy(copy)) if copy else nullcontext() as before,
        ):
            for key in keys:
                if before and before.execute(_KNOWN_KEY, (key,)).fetchone():
                    continue
                yield from now.execute(RECIPIENTS_OF_KEYS.format("s.key = ?"), (key,))

    def recipients(self, queue_ids: Collection[str]) -> Iterator[tuple[str, str, str]]:
        """SpoolStorage.recipients."""
        sql = RECIPIENTS_OF_MESSAGES.format("= ?")
        with (
            spool_files.translate_sqlite_errors(self._database),
            closing(open_database(self._database, read_only=True)) as now,
        ):
            for queue_id in queue_ids:
                yield from now.execute(sql, (queue_id,))

    def has_part(self, path: Path) -> bool:
        """SpoolStorage.has_part."""
        names = (self._database.name, RESERVE_FILE)
        return path.parent == self._database.parent and path.name.startswith(names)


def count_waiting(database: Path) -> int:
    """Return how many entries of a spool are not final. It may be of an older or newer Relay."""
    if not spool_files.is_openable(database):
        return 0
    with spool_files.translate_sqlite_errors(database):
        connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
        with closing(connection):
            connection.set_busy_timeout(5000)
            if not connection.pragma("user_version"):
                return 0
            waiting = connection.execute("SELECT count(*) FROM entry WHERE state <> 'final'").get
    return int(waiting)


def _with_contents(connection: apsw.Connection, source: Path, target: Path) -> tuple[str, ...]:
    """Begin a snapshot whose contents are all in `target`; return the names of lost contents.

    If a content is missing, its message was probably delivered since the snapshot began: another
    snapshot is taken. A content that is missing twice was lost before.
    """
    missing: list[str] = []
    for _ in range(_SNAPSHOTS_MAX):
        with spool_files.translate_sqlite_errors():
            connection.execute("BEGIN")
            names = connection.execute(_FILES)
            with translate_os_errors(target):
                still_missing = [name for (name,) in names if not _taken(source, target, name)]
            if not still_missing or still_missing == missing:
                break
            connection.execute("COMMIT")
        missing = still_missing
    else:
        with spool_files.translate_sqlite_errors():
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
    with (
        spool_files.translate_sqlite_errors(database),
        closing(spool_files.open_copy(database)) as connection,
    ):
        if faults := spool_files.integrity_errors(connection, full=False):
            text = f"{database}: the spool is damaged, and its copy too: {faults[0]}"
            raise SpoolDamagedError(text)
        tables = SqliteTables(connection.cursor())
        return {"schema": connection.pragma("user_version")} | stats.copied(tables)
