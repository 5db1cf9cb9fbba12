"""A connection for reading, with the one thread that uses it.

On the path: beside the writer; delivery, queries and counting have one each, so that none waits for
    another.
Holds: what one caller begins in it (a snapshot) the next call still has.
Fails: SpoolError and its children.
Standards: SQLite WAL: readers and the writer do not wait for each other.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import apsw

from relay.spool.sqlite.engine.database import open_database
from relay.spool.sqlite.faults import translated
from relay.spool.types import SpoolDamagedError

T = TypeVar("T")


class Reader:
    """Runs queries in order. `on_damage` hears, in its thread, of pages that cannot be read."""

    def __init__(
        self, path: Path, *, on_damage: Callable[[SpoolDamagedError], None] = lambda _: None
    ) -> None:
        self._path = path
        self._on_damage = on_damage
        self._connection = open_database(path, read_only=True)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="spool-reader")

    async def run(self, query: Callable[[apsw.Cursor], T]) -> T:
        """Run `query` in the reader's thread."""

        def ask() -> T:
            try:
                with translated(self._path):
                    return query(self._connection.cursor())
            except SpoolDamagedError as error:
                self._on_damage(error)
                raise

        return await asyncio.get_running_loop().run_in_executor(self._executor, ask)

    def later(self, task: Callable[[], None]) -> None:
        """Run `task` in the reader's thread some time."""
        asyncio.get_running_loop().run_in_executor(self._executor, task)

    def close(self) -> None:
        """Break off what is being read, then close."""
        self._connection.interrupt()
        self._executor.shutdown()
        self._connection.close()
