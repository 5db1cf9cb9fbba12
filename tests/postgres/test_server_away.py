"""The server is stopped, started, set to read only, or away at a start."""

import asyncio
import socket
import time
from contextlib import closing
from smtplib import SMTPRecipientsRefused, SMTPResponseException

import pytest

from tests.support.long_tests import long
from tests.support.postgres import PostgresServer
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes
from tests.support.service_manager import ServiceManager


def ready_status(relay: RelayProcess) -> int:
    return relay.request("GET", "/readyz").status


def submit_code(relay: RelayProcess, number: int) -> int:
    """Submit a message over SMTP; return the code of the refusal, 250 for none."""
    with relay.smtp() as session:
        try:
            session.sendmail(
                "alice@example.test", ["bob@example.test"], f"Subject: smtp {number}\r\n\r\nHi.\r\n"
            )
        except SMTPRecipientsRefused as error:
            return error.recipients["bob@example.test"][0]
        except SMTPResponseException as error:
            return error.smtp_code
    return 250


@pytest.mark.parametrize("away_s", [3, pytest.param(40, marks=long)])
def test_nothing_is_lost_while_the_server_is_away(
    server: PostgresServer, away_s: int, serve
) -> None:
    relay = serve()
    assert submit_code(relay, 0) == 250
    until("delivered", lambda: len(relay.maildir("bob")) == 1)
    server.stop(immediate=True)
    codes = []
    try:
        identities = [relay.send_mail(to=["bob@example.test"], subject="graph")]
        until_s = time.monotonic() + away_s
        while time.monotonic() < until_s:
            codes.append(submit_code(relay, len(codes) + 1))
        until("not ready", lambda: ready_status(relay) == 503)
        assert set(codes) == {451}
        operator = {"Authorization": "Bearer operator"}
        assert relay.request("GET", "/relay/v1/queue", headers=operator).status == 503
        identities.append(relay.send_mail(to=["bob@example.test"], subject="graph"))
    finally:
        server.start()
    until("ready again", lambda: ready_status(relay) == 200)
    for identity in identities:
        relay.until_final(identity)
    assert sorted(relay.subjects("bob")) == ["graph", "graph", "smtp 0"]
    assert submit_code(relay, 99) == 250
    until("delivered", lambda: len(relay.maildir("bob")) == 4)
    assert relay.metric("relay_queue_unaccounted") == 0
    assert "Traceback" not in relay.log


@pytest.mark.parametrize("is_first", [False, True])
def test_a_start_without_the_server_waits_for_it(server: PostgresServer, is_first: bool) -> None:
    """It takes mail from programs, but makes no mail root before the spool can say that it knows none."""
    relay = RelayProcess()
    if not is_first:
        relay.start()
        relay.stop()
    server.stop()
    try:
        relay.start()
        assert (ready_status(relay), submit_code(relay, 1)) == (503, 451)
        sent = [] if is_first else [relay.send_mail(to=["bob@example.test"], subject="before")]
        server.start()
        until("ready", lambda: ready_status(relay) == 200)
        sent.append(relay.send_mail(to=["bob@example.test"], subject="then"))
        for one in sent:
            relay.until_final(one)
        assert sorted(relay.subjects("bob")) == ["before", "then"][is_first:]
        assert submit_code(relay, 2) == 250
    finally:
        relay.close()
        if not server.is_running:
            server.start()


def test_results_that_cannot_be_recorded_wait(server: PostgresServer) -> None:
    """What a host has accepted while the server was away is recorded afterwards, and not sent again."""
    with Remotes() as remotes:
        gate = asyncio.Event()
        remote = remotes.start("a.test", gates={"DOT": gate})
        with remotes.relay() as relay:
            identity = relay.send_mail(to=["x@a.test"], subject="once")
            until("it is being delivered", lambda: any(one["claimed"] for one in relay.queue()))
            server.stop(immediate=True)
            try:
                remotes.open_gate(gate)
                until("the host has it", lambda: len(remote.envelopes) == 1)
            finally:
                server.start()
            until("ready", lambda: ready_status(relay) == 200)
            relay.until_final(identity)
            assert len(remote.envelopes) == 1


def test_a_server_that_is_away_is_no_slow_disk(server: PostgresServer, serve) -> None:
    """A commit that waits for it takes as long as it is away."""
    away_s = 4
    relay = serve(config={"pressure": {"commit_latency": "1s"}})
    assert submit_code(relay, 0) == 250
    until("delivered", lambda: len(relay.maildir("bob")) == 1)
    until("counted", lambda: relay.metric("relay_queue_entries_age_seconds") < away_s)
    server.stop(immediate=True)
    try:
        assert submit_code(relay, 1) == 451
        sent, until_s = 0, time.monotonic() + away_s
        while time.monotonic() < until_s:
            relay.send_mail(to=["bob@example.test"], subject="graph")
            sent += 1
        reason = relay.request("GET", "/readyz").body.decode()
        assert "the database does not answer" in reason
        assert relay.metric("relay_queue_entries_age_seconds") > away_s / 2
        assert relay.metric("relay_pressure_level") == 0
        assert '"event":"pressure"' not in relay.log
    finally:
        server.start()
    until("delivered", lambda: len(relay.maildir("bob")) == 1 + sent)
    until("counted", lambda: relay.metric("relay_queue_entries_age_seconds") < away_s / 2)


def test_a_relay_without_its_server_is_alive(server: PostgresServer) -> None:
    """No restart brings a server back; systemd would give up after some."""
    with (
        ServiceManager(watchdog_s=1.5) as manager,
        RelayProcess(environment=manager.environment) as relay,
    ):
        manager.until("READY=1")
        assert manager.hears_life()
        server.stop(immediate=True)
        try:
            until("not ready", lambda: ready_status(relay) == 503)
            manager.until("WATCHDOG=1")
            assert manager.hears_life(signs=10)
            relay.restart()
            manager.until("READY=1")
            assert manager.hears_life(signs=6)
        finally:
            server.start()


@pytest.mark.parametrize(("timeout_s", "code"), [(2, 0), (600, 69)])
def test_a_stop_ends_whatever_hangs(timeout_s: int, code: int) -> None:
    """A server that accepts connections, and says nothing. The start waits for it; what waits for too long is cut off."""
    with socket.create_server(("127.0.0.1", 0)) as silent, closing(RelayProcess()) as relay:
        place = f"127.0.0.1:{silent.getsockname()[1]}/r"
        relay.config["spool"]["url"] = f"postgresql://relay@{place}?connect_timeout={timeout_s}"
        relay.config["delivery"]["shutdown_grace"] = "1s" if code else "60s"
        relay.write_config(relay.config)
        relay.start(wait=not code)
        with silent.accept()[0]:
            assert relay.stop() == code
        assert ("the stop takes too long" in relay.log) == bool(code)
