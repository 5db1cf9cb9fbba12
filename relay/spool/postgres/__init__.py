"""The spool in PostgreSQL. Only this package imports asyncpg, which is an extra of Relay's."""

from importlib.util import find_spec

from relay.spool.types import SpoolFormatError


def require_driver() -> None:
    """Raise SpoolFormatError if asyncpg is not installed."""
    if find_spec("asyncpg") is None:
        raise SpoolFormatError(
            "spool.url names a PostgreSQL server, but Relay was installed without its extra"
            " postgres: expected asyncpg (pip install 'graph-relay[postgres]')"
        )
