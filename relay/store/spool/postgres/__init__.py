"""The spool in PostgreSQL. Only this package imports asyncpg, which is an extra of Relay's.

- `spool`: the engine that other rooms use; up to which number events are complete
- `transactions`: what an operation of the writer sees; what accepting a message and the result of
  an attempt add to a commit, as arrays of commit.sql; what runs alone
- `claims`: finds due entries, and claims and releases them; claims of dead nodes
- `bodies`: bodies over 1 MiB, in parts; when they are durable and go

Commits:

- `writer`: group commit: which operations go into one commit; a commit whose reply was lost
- `tables`: a connection in its thread; SQL in PostgreSQL's dialect
- `server`: connects; whether the server is safe for mail; which of its errors is which SpoolError
- `schema`: the tables and their version; rights of the role

Nodes:

- `nodes`: which nodes there are; the lease of a node and its claims: when it counts as dead;
  whether all nodes have the same rules, routes and keys
- `keeper`: beats, takes over from dead nodes, wakes others

Care:

- `maintenance`: sweeps and counts; mail for a mail root that no node has
- `storage`: the stored form for `relay check`, `relay storage`, `relay backup` and `relay restore`
- `backup`: a copy by pg_dump, its restoration by pg_restore; what they get of the URL

Elsewhere: what is decided alike for both engines: `relay/store/spool/shared`.
"""

from importlib.util import find_spec

from relay.store.spool.types import SpoolFormatError


def require_driver() -> None:
    """Raise SpoolFormatError if asyncpg is not installed."""
    if find_spec("asyncpg") is None:
        raise SpoolFormatError(
            "spool.url names a PostgreSQL server, but Relay was installed without its extra"
            " postgres: expected asyncpg (in a checkout: pip install '.[postgres]')"
        )
