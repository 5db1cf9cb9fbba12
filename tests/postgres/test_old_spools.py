"""What a release left in a database."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.test_old_spools import *  # noqa: F403
from tests.support.postgres import OWNER, PostgresServer, database_of


@pytest.fixture(scope="module")
def engine() -> str:
    return "postgresql"


@pytest.fixture(scope="module")
def load_tables(server: PostgresServer) -> Callable[[str, Path], None]:
    """Return a function that loads the tables of an archive. Its node is known to be dead, as one is
    after half a minute.
    """

    def load(url: str, script: Path) -> None:
        database = database_of(url)
        server.load(script, database=database, user=OWNER)
        server.sql("UPDATE node SET state = 'dead'", database=database)

    return load
