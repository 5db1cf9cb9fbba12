"""The whole relay with its spool in PostgreSQL: tests of other folders, and what only a server can do."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.crash.queue_storm import PATIENT
from tests.integration.conftest import relay, sessions, shared  # noqa: F401 - fixtures
from tests.support.postgres import OWNER, PASSWORD, PostgresServer, database_of, running_server
from tests.support.relay_process import RelayProcess
from tests.support.remotes import Remotes

StartNode = Callable[..., RelayProcess]
PortsUrl = Callable[..., str]


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
        patch.setattr(RelayProcess, "empty_spool", staticmethod(server.empty))
        yield


@pytest.fixture
def sql(server: PostgresServer):
    """Return a function that runs a statement in the database of a relay."""

    def sql(of: RelayProcess, statement: str) -> str:
        return server.sql(statement, database=database_of(of.config["spool"]["url"]))

    return sql


@pytest.fixture
def node(server: PostgresServer, remotes: Remotes) -> Iterator[StartNode]:
    """Return a function that starts a relay on the spool of the test, or that of a URL."""
    usual_url = server.create()
    with ExitStack() as stack:

        def node(
            name: str, *, wait: bool = True, url: str = "", limits: Any = (), **mailboxes: Any
        ) -> RelayProcess:
            config = PATIENT | {"spool": {"node": name}, "mailboxes": {"store": name} | mailboxes}
            config["limits"] = dict(limits)
            relay = remotes.relay(config=config)
            stack.callback(relay.close)
            relay.config["spool"]["url"] = url or usual_url
            relay.write_config(relay.config)
            return relay.start(wait=wait)

        yield node


@pytest.fixture
def url_by_ports(tmp_path: Path) -> PortsUrl:
    """Return a function that returns a URL of a database at these ports, with its password."""
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    password.chmod(0o600)

    def url(database: str, *ports: int) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"postgresql://{OWNER}:${{file:{password}}}@{hosts}/{database}"

    return url
