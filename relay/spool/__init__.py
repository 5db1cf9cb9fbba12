"""The durable queue: one small Protocol (types.Spool), and the embedded SQLite behind it.

On the path: between 250 and delivery; ingress accepts, delivery claims and settles.
Touches: its own file and content directory in state_dir. Promises: DESIGN's invariants 1, 3, 7, 9.
"""

from relay.spool.sqlite import SqliteSpool
from relay.spool.types import Spool

__all__ = ["Spool", "SqliteSpool"]
