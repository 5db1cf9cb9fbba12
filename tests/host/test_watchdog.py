"""WatchdogSec of systemd: a process that is stuck gives no sign of life; one with a bad disk does."""

import asyncio
import os
import shutil
import signal
import smtplib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from relay.operation.app.daemon import Daemon, serve
from tests.support.disks import filled, small_disk
from tests.support.relay_process import RelayProcess, until
from tests.support.service_manager import ServiceManager
from tests.support.vfs import FaultyDisk
from tests.unit.operation.app.conftest import composed, settings_with  # noqa: F401 - fixtures

GATE = True
WATCHDOG_S = 1.5
KIB = 1024


@pytest.fixture
def manager() -> Iterator[ServiceManager]:
    with ServiceManager(watchdog_s=WATCHDOG_S) as manager:
        yield manager


@pytest.fixture
def relay(manager: ServiceManager, serve) -> RelayProcess:
    return serve(environment=manager.environment)


def submit(daemon: Daemon, subject: str) -> tuple[int, bytes]:
    """Send a message; return the reply to its final dot."""
    address = daemon.transport.smtp_servers[0].address
    with smtplib.SMTP(address.host, address.port, "client.test", 120) as session:
        session.ehlo()
        session.mail("x@remote.test")
        session.rcpt("alice@example.test")
        return session.data(f"Subject: {subject}\r\n\r\nHello.\r\n")


def test_a_stopped_process_gives_no_sign_of_life(relay, manager) -> None:
    manager.until("READY=1")
    assert manager.hears_life()
    os.kill(relay.process.pid, signal.SIGSTOP)
    try:
        assert manager.hears_no_life()
    finally:
        os.kill(relay.process.pid, signal.SIGCONT)
    manager.until("WATCHDOG=1")
    assert manager.hears_life()


def test_without_a_watchdog_for_this_process_there_are_no_signs(manager, serve) -> None:
    for_another = {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    for watchdog in ({}, for_another):
        relay = serve(environment={"NOTIFY_SOCKET": manager.address} | watchdog)
        manager.until("READY=1")
        assert manager.hears_no_life()
        assert relay.stop() == 0
    assert "WATCHDOG=1" not in manager.heard


def test_a_port_in_use_is_waited_for_before_anything_is_opened(manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        listens = {"observe": {"metrics": address}}
        relay = RelayProcess(config=listens, environment=manager.environment)
        try:
            relay.start(wait=False)
            program = f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
            in_use = f"{address} is in use by {program}"
            assert manager.listen() == [f"STATUS=waiting: {in_use}"]
            relay.process.send_signal(signal.SIGHUP)
            assert manager.listen() == [f"STATUS=waiting: {in_use}"]
            assert list((relay.folder / "state").iterdir()) == []
            other.close()
            manager.until("READY=1")
            assert relay.stop() == 0
            assert (relay.folder / "relay.log").read_text().count(in_use) == 1
        finally:
            relay.close()


def test_sigterm_before_it_listens_ends_the_first_process_of_a_container(manager) -> None:
    """The kernel ignores it there unless the process has a handler."""
    container = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*container, "true"], check=False).returncode:
        pytest.skip("this user makes no namespace")
    with socket.create_server(("127.0.0.1", 0)) as other:
        listens = {"observe": {"metrics": f"127.0.0.1:{other.getsockname()[1]}"}}
        with closing(RelayProcess(config=listens, environment=manager.environment)) as relay:
            process = subprocess.Popen([*container, *relay.start_command()], env=relay.environment)
            try:
                assert "is in use" in manager.listen()[0]
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
                os.kill(int(children.read_text()), signal.SIGTERM)
                assert process.wait(30) == 143
            finally:
                process.kill()
                process.wait()


def test_a_full_disk_is_no_reason_for_a_restart(manager) -> None:
    relay = RelayProcess(environment=manager.environment)
    state = relay.folder / "state"
    with small_disk(state, size_bytes=16 * 1024 * KIB):
        try:
            relay.start()
            manager.until("READY=1")
            with filled(state):
                until("the relay knows", lambda: relay.metric("relay_pressure_level") == 2)
                answer = relay.graph("POST", "/me/sendMail", {"message": {"subject": "x"}})
                assert answer.status >= 400
                manager.until("WATCHDOG=1")
                assert manager.hears_life(signs=8)
        finally:
            relay.close()


def test_a_drain_is_alive_until_its_end(remotes, serve, manager) -> None:
    gate = remotes.gate()
    remote = remotes.start("a.test", gates={"DOT": gate})
    config = {"delivery": {"shutdown_grace": "20s"}}
    relay = serve(remotes, config=config, environment=manager.environment)
    relay.send_mail(to=["x@a.test"], subject="in delivery")
    remotes.run(remote.reached("DOT"))
    manager.until("READY=1")
    relay.process.terminate()
    manager.until("STOPPING=1")
    assert manager.hears_life(signs=6)
    remotes.open_gate(gate)
    assert relay.wait_end() == 0


async def test_a_blocked_writer_gives_no_sign(settings_with, composed, manager):  # noqa: F811
    async def heard(wait: Callable[..., Any], *words: str) -> Any:
        return await asyncio.to_thread(wait, *words)

    may_end = threading.Event()
    with FaultyDisk() as disk:
        daemon = composed(settings_with())
        serving = asyncio.create_task(
            serve(daemon, notify_socket=manager.address, watchdog_s=WATCHDOG_S)
        )
        await heard(manager.until, "READY=1")
        assert await heard(manager.hears_life)
        disk.on_sync = lambda _suffix: may_end.wait()  # as a disk that does not answer
        try:
            submitted = asyncio.create_task(asyncio.to_thread(submit, daemon, "waits"))
            assert await heard(manager.hears_no_life)
        finally:
            may_end.set()
        assert (await submitted)[0] == 250
        await heard(manager.until, "WATCHDOG=1")
        assert await heard(manager.hears_life)
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
