"""The stored form of a spool on a PostgreSQL server, as far as it is Relay's and not the server's.

See relay.spool.engine.SpoolStorage. Checks, backups and repairs of a database are the business of
PostgreSQL's own tools. asyncpg is imported when the server is asked for something.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, NoReturn, TypeVar

from relay.settings.postgres_url import parse_postgres_url
from relay.spool.engine import SpoolStorage, unheld_text
from relay.spool.postgres import require_driver
from relay.spool.types import SpoolError, SpoolUnsupportedError

if TYPE_CHECKING:
    from relay.spool.postgres.tables import ConnectionTables

T = TypeVar("T")


class PostgresStorage(SpoolStorage):
    """A SpoolStorage."""

    def __init__(self, url: str, *, store: str, domains: Collection[str]) -> None:
        """`store` is that of this node's mailboxes, `domains` are its local ones."""
        self._options = parse_postgres_url(url)
        self._store = store
        self._domains = domains

    def __str__(self) -> str:
        return str(self._options)

    def exists(self) -> bool:
        """SpoolStorage.exists."""

        def is_there(tables: "ConnectionTables") -> bool:
            from relay.spool.postgres.schema import tables_there  # noqa: PLC0415 - see above

            return bool(tables_there(tables))

        return self._ask(is_there)

    def faults(self) -> Sequence[str]:
        """SpoolStorage.faults."""

        def found(tables: "ConnectionTables") -> Sequence[str]:
            from relay.spool.postgres import schema, server  # noqa: PLC0415 - see above

            faults = tables.wait(server.server_faults(self._options, tables.connection))
            return [*faults, *schema.missing_rights(tables)]

        try:
            return [f"{self}: {one}" for one in self._ask(found)]
        except SpoolError as error:
            return (str(error),)

    def warnings(self) -> Sequence[str]:
        """SpoolStorage.warnings."""

        def found(tables: "ConnectionTables") -> Sequence[str]:
            from relay.spool.postgres import agreement, nodes, schema  # noqa: PLC0415 - see above
            from relay.spool.postgres.unheld_stores import unheld_stores  # noqa: PLC0415

            if not schema.tables_there(tables):
                return ()
            unheld = map(unheld_text, unheld_stores(tables).values())
            split = agreement.split_domains(tables, self._store, self._domains)
            return [*unheld, *split, *agreement.node_warnings(nodes.read_nodes(tables))]

        return self._ask(found)

    def living_nodes(self) -> Sequence[str]:
        """SpoolStorage.living_nodes."""

        def found(tables: "ConnectionTables") -> Sequence[str]:
            from relay.spool.postgres.nodes import read_nodes  # noqa: PLC0415 - see above

            return sorted(one.identity.name for one in read_nodes(tables) if one.is_alive)

        return self._ask(found)

    def check(self, *, has_owner: bool) -> None:  # noqa: ARG002 - the server knows it
        """SpoolStorage.check: whether the tables are of this schema, or an older one."""

        def look(tables: "ConnectionTables") -> None:
            from relay.spool.postgres.schema import schema_version  # noqa: PLC0415 - see above

            schema_version(tables)

        self._ask(look)

    def tools(self) -> NoReturn:
        """SpoolStorage.tools."""
        raise SpoolUnsupportedError(
            f"the spool is in PostgreSQL ({self}), whose own tools check, copy and repair it:"
            " pg_basebackup and an archive of its write-ahead log make a backup. Restore the latest"
            " state there is: after an older one, mail that was delivered since is sent again, and"
            " mail that was accepted since is lost"
        )

    def _ask(self, question: "Callable[[ConnectionTables], T]") -> T:
        """Ask the server by a connection of its own. Raises SpoolError."""
        require_driver()
        with ThreadPoolExecutor(1) as thread:  # an event loop may run in the caller's
            return thread.submit(self._answer, question).result()

    def _answer(self, question: "Callable[[ConnectionTables], T]") -> T:
        from relay.spool.postgres import server  # noqa: PLC0415 - see above
        from relay.spool.postgres.tables import ConnectionTables  # noqa: PLC0415

        with closing(asyncio.new_event_loop()) as loop:
            connection = loop.run_until_complete(server.connect(self._options, purpose="command"))
            try:
                with server.translate_postgres_errors(self._options):
                    return question(ConnectionTables(loop, connection))
            finally:
                connection.terminate()
                loop.run_until_complete(loop.shutdown_asyncgens())
