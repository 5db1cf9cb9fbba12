"""The durable queue: one small Protocol (types.Spool), and the embedded SQLite behind it.

On the path: between 250 and delivery; ingress accepts, delivery claims and settles.
Touches: its own file and content directory in state_dir.
Promises: the invariants 1, 3, 7 and 9 of docs/design.md.

SQLite's half is imported when it is asked for: who only needs the values need not load it.
"""

from typing import TYPE_CHECKING

from relay.spool.types import Spool

if TYPE_CHECKING:
    from relay.spool.sqlite import Ballast, Keep, SqliteSpool, disk_of

__all__ = ["Ballast", "Keep", "Spool", "SqliteSpool", "disk_of"]


def __getattr__(name: str) -> object:
    """See PEP 562."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from relay.spool import sqlite  # noqa: PLC0415

    return getattr(sqlite, name)
