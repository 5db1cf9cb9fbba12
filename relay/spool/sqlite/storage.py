"""The stored form of a spool on SQLite: its database, log, markers and content files.

See relay.spool.engine.SpoolStorage; each method calls the module that does it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw

from relay.base.clock import Clock
from relay.spool.engine import (
    BackupResult,
    BackupSize,
    SpoolFinding,
    SpoolStorage,
)
from relay.spool.sqlite.backup import accepted_since, back_up, backup_size, restore
from relay.spool.sqlite.disk_space import RESERVE_FILE
from relay.spool.sqlite.migrate import check_files
from relay.spool.sqlite.spool_errors import translate_sqlite_errors
from relay.spool.sqlite.spool_files import (
    damage_mark_of,
    is_openable,
    log_of,
    put_aside_of,
    spool_has_traces,
)
from relay.spool.sqlite.verify import SpoolVerifier


class SqliteStorage(SpoolStorage):
    """A SpoolStorage."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def __str__(self) -> str:
        return str(self._database)

    def files(self) -> tuple[Path, ...]:
        """SpoolStorage.files."""
        return self._database, log_of(self._database)

    def exists(self) -> bool:
        """SpoolStorage.exists."""
        return spool_has_traces(self._database)

    def is_marked_damaged(self) -> bool:
        """SpoolStorage.is_marked_damaged."""
        return damage_mark_of(self._database).exists()

    def check(self, *, has_owner: bool) -> None:
        """SpoolStorage.check."""
        check_files(self._database, has_owner=has_owner)

    def verify(
        self,
        *,
        is_owner: bool,
        full: bool,
        recount: bool,
        clock: Clock,
        report: Callable[[SpoolFinding], None],
    ) -> dict[str, int]:
        """SpoolStorage.verify."""
        verifier = SpoolVerifier(
            self._database,
            is_owner=is_owner,
            full=full,
            recount=recount,
            clock=clock,
            report=report,
        )
        return verifier.run()

    def backup_size(self) -> BackupSize:
        """SpoolStorage.backup_size."""
        return backup_size(self._database)

    def back_up(
        self, folder: Path, *, on_part: Callable[[int, int], None] = lambda *_: None
    ) -> BackupResult:
        """SpoolStorage.back_up."""
        return back_up(self._database, folder, on_part=on_part)

    @contextmanager
    def restored(self, folder: Path) -> Iterator[None]:
        """SpoolStorage.restored."""
        restore(self._database, folder)
        yield

    def accepted_since(self, folder: Path | None, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
        """SpoolStorage.accepted_since."""
        return accepted_since(self._database, folder and folder / self._database.name, keys)

    def has_part(self, path: Path) -> bool:
        """SpoolStorage.has_part."""
        if path == put_aside_of(self._database):
            return False  # it may be all that is left of some mail
        names = (self._database.name, RESERVE_FILE)
        return path.parent == self._database.parent and path.name.startswith(names)


def count_waiting(database: Path) -> int:
    """Return how many entries of a spool are not final, whichever Relay made it."""
    if not is_openable(database):
        return 0
    with translate_sqlite_errors(database):
        connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
        with closing(connection):
            connection.set_busy_timeout(5000)
            if not connection.pragma("user_version"):
                return 0
            waiting = connection.execute("SELECT count(*) FROM entry WHERE state <> 'final'").get
    return int(waiting)
