"""The embedded spool on SQLite: one file, one writer thread, readers beside it.

Touches: the spool's file and its content directory. Promises: spool.types.Spool.
"""

from relay.spool.sqlite.spool import SqliteSpool

__all__ = ["SqliteSpool"]
