"""The anchor in the spool's file, from which a start continues the queue's time.

On the path: read when the file is opened, written with commits.
Holds: it is as durable as the times that it governs, but for at most a second.
Fails: with apsw's exceptions, and the transaction with it.
Standards: docs/design.md 6 (Time).
"""

from dataclasses import astuple

import apsw

from relay.clock import Anchor
from relay.spool.sqlite.engine.database import fetch_one

_COLUMNS = "steady_us, wall_us, elapsed_us, boot_id, doubtful_us, doubt_ends_us"
_WRITE = f"INSERT OR REPLACE INTO clock (id, {_COLUMNS}) VALUES (1, ?, ?, ?, ?, ?, ?)"


def read_anchor(connection: apsw.Connection) -> Anchor | None:
    """Return what the last commits left; None in a new file."""
    row = fetch_one(connection.cursor(), f"SELECT {_COLUMNS} FROM clock")
    return Anchor(*row) if row is not None else None


def write_anchor(cursor: apsw.Cursor, anchor: Anchor) -> None:
    """Replace it, in the transaction of `cursor`."""
    cursor.execute(_WRITE, astuple(anchor))
