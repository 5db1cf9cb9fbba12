"""The composition root: alone knows all rooms, builds them from the settings, starts and stops
them.

On the path: before it and after it.
Touches: everything, once. Promises: ready means that every listener listens; a stop within the
    grace
time loses nothing and exits 0.
"""

from relay.app.compose import Sources, compose
from relay.app.daemon import Daemon
from relay.app.lock import AlreadyRunningError, OwnerLock
from relay.app.serve import serve

__all__ = ["AlreadyRunningError", "Daemon", "OwnerLock", "Sources", "compose", "serve"]
