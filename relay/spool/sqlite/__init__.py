"""The embedded spool on SQLite: one file, one writer thread, readers beside it.

The way of a message is here: accepted and settled (transactions), found when it is due and claimed.
Under it are `engine` and `disk`, beside it `upkeep`, `operating` and `storage`.
Touches: the spool's file and its content directory. Promises: spool.types.Spool.
"""

from relay.spool.sqlite.disk.ballast import Ballast
from relay.spool.sqlite.disk.room import disk_of
from relay.spool.sqlite.spool import SqliteSpool
from relay.spool.sqlite.upkeep.history import Keep

__all__ = ["Ballast", "Keep", "SqliteSpool", "disk_of"]
