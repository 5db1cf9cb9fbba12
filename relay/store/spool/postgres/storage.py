"""The stored form of a spool on a PostgreSQL server, as far as it is Relay's and not the server's.

See relay.store.spool.engine.SpoolStorage. Checks and repairs of a database are the business of
PostgreSQL's own tools.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn, TypeVar

import uvloop

from relay.base.settings.postgres_url import parse_postgres_url
from relay.store.spool.engine import BackupResult, SpoolStorage, VerifyRequest, without_node_text
from relay.store.spool.postgres import backup, nodes, schema, server
from relay.store.spool.postgres.maintenance import stores_without_node
from relay.store.spool.postgres.tables import ConnectionTables
from relay.store.spool.shared.accepted import RECIPIENTS_OF_KEYS, RECIPIENTS_OF_MESSAGES
from relay.store.spool.types import SpoolError, SpoolUnsupportedError

AsOwner = Callable[[], AbstractContextManager[None]]
_DUMP = "spool.dump"
T = TypeVar("T")


class PostgresStorage(SpoolStorage):
    """A SpoolStorage."""

    def __init__(
        self, url: str, *, store: str, domains: Collection[str], as_owner: AsOwner = nullcontext
    ) -> None:
        """`store` is the store of this node's mailboxes, `domains` are its local domains. The
        server is asked in a block of `as_owner`.
        """
        self._hosts = server.DatabaseHosts(parse_postgres_url(url))
        self._store = store
        self._domains = domains
        self._as_owner = as_owner

    def __str__(self) -> str:
        return str(self._hosts)

    def exists(self) -> bool:
        """SpoolStorage.exists."""
        return bool(self._ask(schema.tables_there))

    def faults(self) -> Sequence[str]:
        """SpoolStorage.faults."""

        def query(tables: ConnectionTables) -> Sequence[str]:
            faults = tables.wait(server.server_faults(tables.connection))
            return [*faults, *schema.missing_rights(tables)]

        try:
            return [f"{self}: {fault}" for fault in self._ask(query)]
        except SpoolError as error:
            return (str(error),)

    def warnings(self) -> Sequence[str]:
        """SpoolStorage.warnings."""

        def query(tables: ConnectionTables) -> Sequence[str]:
            if not schema.tables_there(tables):
                return ()
            without_node = map(without_node_text, stores_without_node(tables).values())
            split = nodes.split_domains(tables, self._store, self._domains)
            found = [*without_node, *split, *nodes.node_warnings(nodes.read_nodes(tables))]
            return found + tables.wait(self._hosts.faults_of_others(tables.connection))

        return self._ask(query)

    def other_domains(self) -> Sequence[str]:
        """SpoolStorage.other_domains."""
        return self._ask(lambda tables: sorted(nodes.other_domains(tables, self._store)))

    def check(self, *, has_owner: bool) -> None:  # noqa: ARG002 - the server knows it
        """SpoolStorage.check: whether the tables are of this schema, or an older one."""
        self._ask(schema.check_schema)

    def require_tools(self) -> NoReturn:
        """SpoolStorage.require_tools."""
        raise SpoolUnsupportedError(
            f"the spool is in PostgreSQL ({self}), whose own tools check and repair it;"
            " relay backup copies it"
        )

    def verify(self, request: VerifyRequest) -> NoReturn:  # noqa: ARG002 - for any
        """SpoolStorage.verify."""
        self.require_tools()

    def back_up(self, folder: Path) -> BackupResult:
        """SpoolStorage.back_up, by one run of pg_dump."""
        with (folder / _DUMP).open("xb") as file:
            counts = self._ask(lambda tables: backup.dump(tables, file))
        return BackupResult(folder / _DUMP, folder, counts)

    @contextmanager
    def restored(self, folder: Path) -> Iterator[None]:
        """SpoolStorage.restored."""
        with ExitStack() as until_end:
            with (folder / _DUMP).open("rb") as file, self._as_owner():
                tables = until_end.enter_context(self._connected())
                with server.translate_postgres_errors(self._hosts):
                    nodes.lock_alone(tables)
                    backup.load(tables, file)
                    nodes.end_all(tables)
            try:
                yield
            except BaseException:
                with server.translate_postgres_errors(self._hosts):
                    backup.unload(tables)
                raise
            finally:
                with server.translate_postgres_errors(self._hosts):
                    nodes.unlock(tables)  # the server notices the end of a connection later

    def accepted_since(self, folder: Path | None, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
        """SpoolStorage.accepted_since."""
        missing = set(keys)
        if folder is not None and missing:
            with (folder / _DUMP).open("rb") as file:
                missing -= backup.keys_in(self._hosts.options, file, missing)
        sql = RECIPIENTS_OF_KEYS.format("s.key = ANY(?)")
        return map(tuple, self._ask(lambda tables: tables.fetch(sql, (list(missing),))))

    def recipients(self, queue_ids: Collection[str]) -> Iterator[tuple[str, str, str]]:
        """SpoolStorage.recipients."""
        sql = RECIPIENTS_OF_MESSAGES.format("= ANY(?)")
        return map(tuple, self._ask(lambda tables: tables.fetch(sql, (list(queue_ids),))))

    def _ask(self, question: Callable[[ConnectionTables], T]) -> T:
        """Run a query on a separate connection. Raises SpoolError."""
        # An event loop may run in the caller's thread.
        with self._as_owner(), ThreadPoolExecutor(1) as thread:
            return thread.submit(self._answer, question).result()

    def _answer(self, question: Callable[[ConnectionTables], T]) -> T:
        with self._connected() as tables, server.translate_postgres_errors(self._hosts):
            return question(tables)

    @contextmanager
    def _connected(self) -> Iterator[ConnectionTables]:
        with closing(uvloop.new_event_loop()) as loop:
            connection = loop.run_until_complete(self._hosts.connect(purpose="command"))
            try:
                yield ConnectionTables(loop, connection)
            finally:
                connection.terminate()
                loop.run_until_complete(loop.shutdown_asyncgens())
