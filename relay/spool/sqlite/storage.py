"""The stored form of a spool on SQLite: its database, log, markers and content files.

See relay.spool.engine.SpoolStorage; each method calls the module that does it.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from relay.clock import Clock
from relay.last_commit import log_of
from relay.spool.engine import (
    BackupResult,
    BackupSize,
    RecoveryResult,
    SpoolFinding,
    VerifyMode,
)
from relay.spool.sqlite.backup import back_up, backup_size, deliveries_since, restore
from relay.spool.sqlite.disk_space import RESERVE_FILE
from relay.spool.sqlite.migrate import check_files
from relay.spool.sqlite.recover import recover_spool
from relay.spool.sqlite.spool_files import damage_mark_of, put_aside_of, spool_has_traces
from relay.spool.sqlite.verify import SpoolVerifier


class SqliteStorage:
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
        mode: VerifyMode,
        full: bool,
        recount: bool,
        clock: Clock,
        report: Callable[[SpoolFinding], None],
    ) -> dict[str, int]:
        """SpoolStorage.verify."""
        verifier = SpoolVerifier(
            self._database, mode=mode, full=full, recount=recount, clock=clock, report=report
        )
        return verifier.run()

    def recover(self, *, stamp: str) -> RecoveryResult:
        """SpoolStorage.recover."""
        return recover_spool(self._database, stamp=stamp)

    def backup_size(self) -> BackupSize:
        """SpoolStorage.backup_size."""
        return backup_size(self._database)

    def back_up(
        self, folder: Path, *, on_part: Callable[[int, int], None] = lambda *_: None
    ) -> BackupResult:
        """SpoolStorage.back_up."""
        return back_up(self._database, folder, on_part=on_part)

    def restore(self, folder: Path) -> None:
        """SpoolStorage.restore."""
        restore(self._database, folder)

    def deliveries_since(self, folder: Path, keys: Iterable[str]) -> Iterator[str]:
        """SpoolStorage.deliveries_since."""
        return deliveries_since(self._database, folder / self._database.name, keys)

    def has_part(self, path: Path) -> bool:
        """SpoolStorage.has_part."""
        if path == put_aside_of(self._database):
            return False  # it may be all that is left of some mail
        names = (self._database.name, RESERVE_FILE)
        return path.parent == self._database.parent and path.name.startswith(names)
