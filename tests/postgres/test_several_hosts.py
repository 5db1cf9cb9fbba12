"""Of several hosts of the URL one is dead without refusing, or must not take writes."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.postgres.conftest import PortsUrl, StartNode
from tests.postgres.test_server_away import ready_status
from tests.support.postgres import PostgresServer, StandbyServer, database_of
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until

LOSE_WRITER = """\
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'relay % writer'
"""
CLIENTS = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'relay'"
TIMES = "?connect_timeout=6"  # 3 s for each of two hosts


@contextmanager
def dead_host(*, closes: bool) -> Iterator[int]:
    """Listen on a port; never answer, or close each connection."""

    def close_each(listener: socket.socket) -> None:
        with suppress(OSError):  # the listener is shut down
            while True:
                listener.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        if closes:
            threading.Thread(target=close_each, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def deliver(relay: RelayProcess) -> None:
    """Submit a message, and wait until it is delivered."""
    relay.until_state(relay.submit("alice@example.test", ["bob@example.test"]), "delivered")


CLOSED = " (connection was closed in the middle of operation)"


@pytest.mark.parametrize(("closes", "said"), [(False, " in time"), (True, CLOSED)])
def test_a_dead_host_is_left(
    server: PostgresServer, node: StartNode, url_by_ports: PortsUrl, closes: bool, said: str
) -> None:
    """By a start, a reconnection, `relay check` and `relay backup`."""
    database = database_of(server.create())
    with dead_host(closes=closes) as dead:
        relay = node("one", url=url_by_ports(database, dead, server.port) + TIMES)
        deliver(relay)
        server.stop(immediate=True)
        until("lost", lambda: ready_status(relay) == 503)
        no_answer = "the database does not answer"
        unanswered = f"127.0.0.1:{dead}: {no_answer}{said}"
        refused = f"127.0.0.1:{server.port}: {no_answer}: Connection refused"
        assert f"{unanswered}; {refused}" in relay.cli("check").stderr
        reason = relay.request("GET", "/readyz").body.decode()
        assert f"{refused}; {unanswered}" in reason  # first the one that was used
        server.start()
        until("found again", lambda: ready_status(relay) == 200)
        deliver(relay)
        text = relay.cli("check").stderr
        assert f"//127.0.0.1:{dead}/{database}: {no_answer}{said}" in text
        assert refused not in text
        assert relay.cli("backup", str(relay.folder / "copy")).returncode == 0


def test_a_newer_primary_ends_the_connections_to_the_older(
    server: PostgresServer, node: StartNode, url_by_ports: PortsUrl
) -> None:
    database = database_of(server.create())
    with StandbyServer(server) as standby:
        relay = node("one", url=url_by_ports(database, server.port, standby.port) + TIMES)
        deliver(relay)
        standby.catch_up()
        standby.promote()
        server.sql(LOSE_WRITER)

        def has_left() -> bool:  # what is idle ends with the next query
            relay.graph("GET", "/relay/v1/queue", token=OPERATOR)
            return server.sql(CLIENTS) == "0"

        until("it has left", has_left)
        deliver(relay)
        assert int(standby.sql("SELECT count(*) FROM message", database=database)) == 2
        assert "an old primary still takes writes" in relay.cli("check").stderr


@pytest.mark.parametrize("is_older", [True, False])
def test_an_old_primary_and_another_cluster_are_refused_until_a_restart(
    server: PostgresServer, node: StartNode, url_by_ports: PortsUrl, is_older: bool
) -> None:
    database = database_of(server.create())
    with StandbyServer(server) if is_older else PostgresServer() as used:
        if is_older:
            until("it takes writes", lambda: used.sql("SELECT pg_promote()") == "t")
        else:
            used.sql(f"CREATE DATABASE {database} OWNER relay")
        relay = node("one", url=url_by_ports(database, used.port, server.port) + TIMES)
        deliver(relay)
        used.stop(immediate=True)
        until("refused", lambda: b"restart Relay" in relay.request("GET", "/readyz").body)
        assert server.sql("SELECT to_regclass('message')", database=database) == ""
        relay.restart()
        deliver(relay)
