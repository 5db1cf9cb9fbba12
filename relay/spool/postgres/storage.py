"""The stored form of a spool on a PostgreSQL server, as far as it is Relay's and not the server's.

See relay.spool.engine.SpoolStorage. Checks, backups and repairs of a database are the business of
PostgreSQL's own tools. asyncpg is imported when the server is asked for something.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from relay.settings.postgres_url import parse_postgres_url
from relay.spool.postgres import require_driver
from relay.spool.types import SpoolError, SpoolUnsupportedError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import asyncpg

T = TypeVar("T")


class PostgresStorage:
    """A SpoolStorage."""

    def __init__(self, url: str) -> None:
        self._options = parse_postgres_url(url)

    def __str__(self) -> str:
        return str(self._options)

    def files(self) -> tuple[Path, ...]:
        """SpoolStorage.files."""
        return ()

    def exists(self) -> bool:
        """SpoolStorage.exists."""

        async def has_tables(connection: "asyncpg.Connection") -> bool:
            return bool(await connection.fetchval("SELECT to_regclass('message') IS NOT NULL"))

        return self._ask(has_tables)

    def is_marked_damaged(self) -> bool:
        """SpoolStorage.is_marked_damaged."""
        return False

    def faults(self) -> Sequence[str]:
        """SpoolStorage.faults."""

        async def found(connection: "asyncpg.Connection") -> Sequence[str]:
            from relay.spool.postgres.server import server_faults  # noqa: PLC0415 - see above

            return await server_faults(self._options, connection)

        try:
            return [f"{self}: {one}" for one in self._ask(found)]
        except SpoolError as error:
            return (str(error),)

    def check(self, *, has_owner: bool) -> None:
        """SpoolStorage.check."""

    def tools(self) -> NoReturn:
        """SpoolStorage.tools."""
        raise SpoolUnsupportedError(
            f"the spool is in PostgreSQL ({self}), whose own tools check, copy and repair it:"
            " pg_basebackup and an archive of its write-ahead log make a backup. Restore the latest"
            " state there is: after an older one, mail that was delivered since is sent again, and"
            " mail that was accepted since is lost"
        )

    def _ask(self, question: "Callable[[asyncpg.Connection], Awaitable[T]]") -> T:
        """Ask the server by a connection of its own."""
        require_driver()
        from relay.spool.postgres.server import (  # noqa: PLC0415 - see above
            connect,
            translate_postgres_errors,
        )

        async def answer() -> T:
            connection = await connect(self._options, purpose="command")
            try:
                with translate_postgres_errors(self._options):
                    return await question(connection)
            finally:
                connection.terminate()

        with ThreadPoolExecutor(1) as thread:  # an event loop may run in the caller's
            return thread.submit(asyncio.run, answer()).result()
