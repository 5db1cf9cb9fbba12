"""Salvage the spool of a configuration, where no relay runs.

On the path: beside it; the command line comes here.
Holds: the owner's lock is taken, so that no relay starts in the middle of it.
Fails: AlreadyRunningError, NothingToSalvageError; SpoolError, OSError.
Standards: docs/operation.md (A damaged spool).
"""

from dataclasses import asdict
from typing import Any

from relay.app.commands.storage import as_owner
from relay.app.lock import OwnerLock
from relay.clock import Clock, rfc3339
from relay.settings import Settings
from relay.spool.sqlite.disk.presence import is_or_was_there
from relay.spool.sqlite.storage.salvage import salvage as salvage_file
from relay.spool.types import SpoolError


class NothingToSalvageError(SpoolError):
    """There is no spool."""


def salvage(settings: Settings, clock: Clock) -> dict[str, Any]:
    """Salvage; the document says what came of it. Raises what the module says."""
    database = settings.spool_file
    with as_owner(settings.state_dir):
        if not is_or_was_there(database):
            raise NothingToSalvageError(f"there is no {database}")
        lock = OwnerLock(settings.run_dir)
        lock.take()
        try:
            stamp = rfc3339(clock.time_us())[:19].replace(":", "").replace("-", "")
            found = salvage_file(database, stamp=stamp)
        finally:
            lock.give_back()
    return asdict(found) | {"rows": dict(found.rows), "whole": found.is_whole}
