"""A relay with parts in memory, and its listeners."""

import pytest

from relay.base.settings.tree import TlsSettings
from tests.support.ingress import Client, Relay, inside, make_certificate


@pytest.fixture
def relay() -> Relay:
    return Relay()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> TlsSettings:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def listening(relay):
    """Start a listener with these settings; it is stopped at the end, and nothing is left."""
    servers = []

    async def start(**changes):
        servers.append(relay.server(**changes))
        await servers[-1].start()
        return servers[-1]

    yield start
    while Client.opened:
        Client.opened.pop().writer.close()
    for server in servers:
        await server.drain(0.2)
        assert (server.sessions, inside(server).shared.listener.budget.taken) == (0, 0)
    assert all(arrival.discarded == 1 for arrival in relay.spool.arrivals)
