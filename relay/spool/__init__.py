"""The durable queue: one small Protocol (types.Spool), and the embedded SQLite behind it.

On the path: between 250 and delivery; ingress accepts, delivery claims and settles.
Touches: its own file and content directory in state_dir.
Promises: the invariants 1, 3, 7 and 9 of docs/design.md.
"""

from relay.spool.sqlite import SqliteSpool
from relay.spool.types import Spool

__all__ = ["Spool", "SqliteSpool"]
