"""The whole relay with its spool in PostgreSQL: tests of other folders, and what only a server can do."""

from collections.abc import Iterator

import pytest

from tests.integration.conftest import relay, remotes, shared  # noqa: F401 - fixtures
from tests.support.postgres import PostgresServer, database_of, running_server
from tests.support.relay_process import RelayProcess


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of the module's own, which its tests may stop."""
    with running_server() as started:
        yield started


@pytest.fixture(scope="module", autouse=True)
def every_relay(server: PostgresServer) -> Iterator[None]:
    """Each relay of the module has its spool in a new database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RelayProcess, "new_spool_url", staticmethod(server.create))
        yield


@pytest.fixture
def sql(server: PostgresServer):
    """Return a function that runs a statement in the database of a relay."""

    def sql(of: RelayProcess, statement: str) -> str:
        return server.sql(statement, database=database_of(of.config["spool"]["url"]))

    return sql
