"""Tripwires in the spool's file: changes that no correct relay ever makes, reported when they are made.

They change nothing, and cannot be caught by what trips them. See docs/design.md 7, invariants 3,
7 and 9.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import apsw

from relay.base.message.lifecycle import FINAL
from relay.store.spool.shared.maintenance import SpoolMaintenance
from relay.store.spool.sqlite.writer import Batch
from tests.simulation.disk import Disk
from tests.simulation.rows import Message, read_finished

_FINAL = ", ".join(f"'{state}'" for state in sorted(FINAL))
_TRIGGERS = f"""
CREATE TRIGGER tripwire_epoch BEFORE UPDATE OF epoch ON entry WHEN NEW.epoch < OLD.epoch
BEGIN SELECT tripwire('3: an epoch fell: ' || OLD.message_id || ' ' || OLD.number); END;
CREATE TRIGGER tripwire_entry BEFORE UPDATE OF state ON entry
WHEN OLD.state = 'final' AND NEW.state <> 'final'
BEGIN SELECT tripwire('1: an entry came back: ' || OLD.message_id || ' ' || OLD.number); END;
CREATE TRIGGER tripwire_recipient BEFORE UPDATE OF state ON recipient
WHEN OLD.state IN ({_FINAL}) AND NEW.state <> OLD.state
BEGIN SELECT tripwire('1: ' || OLD.state || ' became ' || NEW.state || ': ' || OLD.message_id); END;
CREATE TRIGGER tripwire_event BEFORE UPDATE ON event
BEGIN SELECT tripwire('9: an event was changed: ' || OLD.message_id); END;
CREATE TRIGGER tripwire_claim BEFORE UPDATE OF claimed ON entry
WHEN NEW.claimed <> OLD.claimed AND NEW.state <> 'final' AND NEW.epoch <= OLD.epoch
BEGIN SELECT tripwire('3: a claim changed hands in its epoch: ' || OLD.message_id); END;
CREATE TRIGGER tripwire_change BEFORE UPDATE OF state ON entry
WHEN NEW.state <> OLD.state AND NEW.claimed = 0 AND OLD.claimed = 0 AND NEW.epoch <= OLD.epoch
BEGIN SELECT tripwire('3: an entry was changed in its epoch: ' || OLD.message_id); END;
CREATE TRIGGER tripwire_entry_gone BEFORE DELETE ON entry WHEN OLD.state <> 'final'
BEGIN SELECT tripwire('1: a live entry was removed: ' || OLD.message_id); END;
CREATE TRIGGER tripwire_recipient_gone BEFORE DELETE ON recipient WHEN OLD.state NOT IN ({_FINAL})
BEGIN SELECT tripwire('1: a live recipient was removed: ' || OLD.message_id); END;
CREATE TRIGGER tripwire_room AFTER INSERT ON message WHEN NEW.source <> 'report' AND reserve_released()
BEGIN SELECT tripwire('10: the reserve file was released for new mail: ' || NEW.id); END;
CREATE TRIGGER tripwire_key BEFORE UPDATE OF message_id ON submission
WHEN NEW.message_id <> OLD.message_id
BEGIN SELECT tripwire('7: a submission became another: ' || OLD.key); END;
"""


_UNACCOUNTED = f"""
SELECT coalesce((SELECT value FROM counter WHERE name = 'accepted'), 0)
    - coalesce((SELECT sum(value) FROM counter WHERE name IN ({_FINAL})), 0)
    - (SELECT count(*) FROM recipient WHERE state NOT IN ({_FINAL}))
"""


def lay(path: Path) -> None:
    """Put them into the spool at `path`, unless they are there."""
    connection = apsw.Connection(str(path))
    try:
        if not connection.execute("PRAGMA user_version").get:
            return
        there = "SELECT 1 FROM sqlite_schema WHERE name = 'tripwire_epoch'"
        if connection.execute(there).fetchone() is None:
            with connection:
                connection.execute(_TRIGGERS)
    finally:
        connection.close()


@contextmanager
def watched(
    tell: Callable[[str], None], disk: Disk, *, on_prune: Callable[[dict[str, Message]], None]
) -> Iterator[None]:
    """Give every connection that is opened the functions that tell and ask; look at every
    transaction before its commit. `on_prune` hears of what may be pruned before it is.
    """

    def register(connection: apsw.Connection) -> None:
        connection.create_scalar_function("tripwire", lambda words: tell(f"invariant {words}"), 1)
        connection.create_scalar_function("reserve_released", lambda: disk.is_just_given, 0)

    write_counts, prune = Batch.write_counts, SpoolMaintenance.prune_some

    def count(batch: Batch) -> None:
        write_counts(batch)
        disk.is_just_given = False
        if unaccounted := batch.cursor.execute(_UNACCOUNTED).fetchone()[0]:
            tell(f"invariant 1: {unaccounted} recipients are unaccounted for in a commit")

    def keep(
        maintenance: SpoolMaintenance, batch: Batch, before_us: int, *, after: str
    ) -> tuple[int, str]:
        on_prune(read_finished(batch.cursor, before_us))
        return prune(maintenance, batch, before_us, after=after)

    apsw.connection_hooks.append(register)
    try:
        with (
            patch.object(Batch, "write_counts", count),
            patch.object(SpoolMaintenance, "prune_some", keep),
        ):
            yield
    finally:
        apsw.connection_hooks.remove(register)
