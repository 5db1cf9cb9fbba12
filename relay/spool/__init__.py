"""The durable queue: the Spool protocol (types.Spool) and its implementation on SQLite.

The SMTP server commits a message to the spool before it replies 250 (step 5). Delivery claims due
entries, attempts them and settles the result (step 6). It touches only its database and content
files. The spool keeps the invariants 1, 3, 7 and 9 of docs/design.md.

The SQLite implementation is imported on first use, so that a process that needs only the values
does not load it.
"""

from typing import TYPE_CHECKING

from relay.spool.types import Spool

if TYPE_CHECKING:
    from relay.spool.sqlite import ReserveFile, Retention, SqliteSpool, disk_of

__all__ = ["ReserveFile", "Retention", "Spool", "SqliteSpool", "disk_of"]


def __getattr__(name: str) -> object:
    """See PEP 562."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from relay.spool import sqlite  # noqa: PLC0415

    return getattr(sqlite, name)
