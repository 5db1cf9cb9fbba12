"""The embedded spool on SQLite."""

from relay.spool.sqlite.spool import SqliteSpool

__all__ = ["SqliteSpool"]
