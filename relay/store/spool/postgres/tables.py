"""A connection in a separate thread, and the Tables that functions in this thread use.

The thread has an event loop that runs only while a function waits for the server. So the code that
all engines share needs no coroutines, and a long query does not delay mail or the daemon's loop.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from itertools import count
from typing import Any, TypeVar

import asyncpg
import uvloop

from relay.base.observe.logs import get_logger, inherit
from relay.store.spool.postgres.server import DatabaseHosts, translate_postgres_errors
from relay.store.spool.shared.tables import Tables
from relay.store.spool.types import SpoolError

T = TypeVar("T")
_log = get_logger("spool")
_PLACE = re.compile(r" INDEXED BY \w+|\?")
_CHANGED = re.compile(r"(\d+)$")
_PAGE = 200  # rows of a cursor at once
_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"


@lru_cache
def statement(name: str) -> str:
    """Return the SQL of a file of this package."""
    return files(__package__).joinpath(name).read_text()


@lru_cache(maxsize=1024)
def numbered(sql: str) -> str:
    """Return a statement of relay.store.spool.shared.tables in PostgreSQL's dialect."""
    numbers = count(1)
    return _PLACE.sub(lambda match: f"${next(numbers)}" if match[0] == "?" else "", sql)


class ConnectionTables(Tables):
    """The Tables of a connection, in its thread. Raises asyncpg's exceptions.

    Texts in values are passed with U+FFFD in place of U+0000, also in conditions.
    """

    next_hop = "coalesce(e.next_hop, nullif(r.next_hop, ''))"
    entry_columns = ", store"

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Any) -> None:
        self._loop = loop
        self.connection = connection

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop of the thread."""
        return self._loop.run_until_complete(work)

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Tables.fetch."""
        return self.wait(self.connection.fetch(numbered(sql), *without_nul(values)))

    def fetch_one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Tables.fetch_one."""
        return self.wait(self.connection.fetchrow(numbered(sql), *without_nul(values)))

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Tables.each, by a cursor of the server, which needs a transaction."""
        is_own = not self.connection.is_in_transaction()
        if is_own:
            self.begin_snapshot()
        try:
            cursor = self.wait(self._cursor(numbered(sql), without_nul(values)))
            while rows := self.wait(cursor.fetch(_PAGE)):
                yield from rows
        finally:
            if is_own:
                self.end_snapshot()

    async def _cursor(self, sql: str, values: Sequence[Any]) -> Any:
        return await self.connection.cursor(sql, *values)

    def fetch_each(self, sql: str, values: Iterable[Sequence[Any]]) -> list[Any]:
        """Tables.fetch_each."""
        rows = [without_nul(row) for row in values]
        return self.wait(self.connection.fetchmany(numbered(sql), rows)) if rows else []

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        """OpenTransaction.execute."""
        status = self.wait(self.connection.execute(numbered(sql), *without_nul(values)))
        match = _CHANGED.search(status)
        return int(match[1]) if match else 0

    def execute_each(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        """OpenTransaction.execute_each."""
        if rows := [without_nul(row) for row in values]:
            self.wait(self.connection.executemany(numbered(sql), rows))

    def among(self, column: str, values: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
        """Tables.among."""
        return f"{column} = ANY(?)", (list(values),)

    def begin_snapshot(self) -> None:
        """Tables.begin_snapshot."""
        self.wait(self.connection.execute(_SNAPSHOT))

    def end_snapshot(self) -> None:
        """Tables.end_snapshot."""
        if not self.connection.is_closed():
            self.wait(self.connection.execute("COMMIT"))

    @property
    def is_in_snapshot(self) -> bool:
        """Tables.is_in_snapshot."""
        return bool(self.connection.is_in_transaction())


class ReadConnection:
    """A connection that reads, in a separate thread. Queries run in order. A lost connection is
    opened again for the next query.
    """

    def __init__(self, hosts: DatabaseHosts, *, purpose: str) -> None:
        self._hosts = hosts
        self._purpose = purpose
        self._executor = ThreadPoolExecutor(
            1, thread_name_prefix=f"spool-{purpose}", initializer=inherit()
        )
        self._loop: asyncio.AbstractEventLoop | None = None  # of the thread
        self._tables: ConnectionTables | None = None

    async def read(self, query: Callable[[ConnectionTables], T]) -> T:
        """Run `query` in the reader's thread. Raises SpoolUnavailableError, SpoolError."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._ask, query)

    def later(self, query: Callable[[ConnectionTables], object]) -> None:
        """Run `query` in the reader's thread, without waiting for it."""
        self._executor.submit(self._try, query)

    def _try(self, query: Callable[[ConnectionTables], object]) -> None:
        try:
            self._ask(query)
        except SpoolError as error:  # it is repeated by maintenance
            _log.warning("a removal in the database of the spool failed", error=str(error))

    def _ask(self, query: Callable[[ConnectionTables], T]) -> T:
        with translate_postgres_errors(self._hosts):
            is_old = self._tables is not None and not self._tables.connection.is_closed()
            tables = self._opened()
            try:
                return self._run(query, tables)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                if not (is_old and tables.connection.is_closed()):
                    raise
            return self._run(query, self._opened())  # the server has been away since

    def _opened(self) -> ConnectionTables:
        """Return the connection, a new one if it is closed."""
        tables = self._tables
        if tables is None or tables.connection.is_closed():
            loop = self._loop = self._loop or uvloop.new_event_loop()
            opened = self._hosts.connect(purpose=self._purpose, lost=tables and tables.connection)
            tables = self._tables = ConnectionTables(loop, loop.run_until_complete(opened))
        return tables

    def _run(self, query: Callable[[ConnectionTables], T], tables: ConnectionTables) -> T:
        try:
            return query(tables)
        except BaseException:
            if not tables.connection.is_closed() and tables.connection.is_in_transaction():
                with suppress(Exception):
                    tables.wait(tables.connection.execute("ROLLBACK"))
            raise

    async def close(self) -> None:
        """Close the connection once the running query has ended."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._close)
        self._executor.shutdown()

    def _close(self) -> None:
        if self._loop is None:
            return
        if self._tables is not None:
            with suppress(Exception):  # the server may be gone
                self._loop.run_until_complete(self._tables.connection.close(timeout=2))
        self._loop.run_until_complete(asyncio.sleep(0))  # ends what was terminated
        self._loop.close()


def without_nul(values: Iterable[Any]) -> list[Any]:
    """Return the parameters with U+FFFD in place of U+0000, which PostgreSQL's text cannot have."""
    return [_clean(value) for value in values]


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd") if "\0" in value else value
    if isinstance(value, (list, tuple)):
        return [_clean(part) for part in value]
    return value
