"""The whole relay with its spool in PostgreSQL: tests of other folders, and what only a server can do."""

from collections.abc import Iterator

import pytest

from tests.integration.conftest import relay, remotes, shared  # noqa: F401 - fixtures
from tests.support.postgres import PostgresServer, running_server
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
