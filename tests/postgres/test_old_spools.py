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
    """Return a function that loads the tables of an archive."""
    return lambda url, script: server.load(script, database=database_of(url), user=OWNER)
