"""The nodes that share the queue, as operators see them.

What is shown here ends no lease: how long ago a beat was is by the clock of the server.
"""

from typing import Any

from relay.clock import rfc3339
from relay.spool.postgres.nodes import WALL
from relay.spool.postgres.tables import ConnectionTables

NODES_MAX = 100
_NODES = f"""
SELECT name, state, version, store, since_us, greatest(0, {WALL} - beat_us), incarnation,
    (SELECT count(*) FROM entry WHERE claimed = 1 AND owner = incarnation)
FROM node ORDER BY state <> 'alive', incarnation DESC LIMIT {NODES_MAX}"""


def node_list(tables: ConnectionTables, own: int) -> list[dict[str, Any]]:
    """Return the nodes of `queue stats`, by name: of those that do not live only the newest."""
    found = [
        {
            "name": name,
            "state": state,
            "version": version,
            "store": store,
            "since": rfc3339(since_us),
            "beat_age_s": age_us // 1_000_000,
            "claims": claims,
            "is_this": incarnation == own,
        }
        for name, state, version, store, since_us, age_us, incarnation, claims in map(
            tuple, tables.fetch(_NODES)
        )
    ]
    return sorted(found, key=lambda one: (one["name"], one["since"]))
