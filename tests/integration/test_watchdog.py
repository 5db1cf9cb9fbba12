"""WatchdogSec of systemd: a process that is stuck gives no sign of life; one with a bad disk does."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from relay.operation.app.daemon import Daemon, serve
from tests.support.disks import filled, small_disk
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes
from tests.support.service_manager import ServiceManager
from tests.support.vfs import FaultyDisk
from tests.unit.operation.app.conftest import composed, settings_with  # noqa: F401 - fixtures
from tests.unit.operation.app.test_failing_disk import Running

WATCHDOG_S = 1.5
KIB = 1024


@pytest.fixture
def manager() -> Iterator[ServiceManager]:
    with ServiceManager(watchdog_s=WATCHDOG_S) as manager:
        yield manager


@pytest.fixture
def relay(manager: ServiceManager, serve) -> RelayProcess:
    return serve(environment=manager.environment)


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


@pytest.mark.parametrize("for_another", [True, False])
def test_without_a_watchdog_for_this_process_there_are_no_signs(
    manager, for_another, serve
) -> None:
    watchdog = {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"} if for_another else {}
    environment = {"NOTIFY_SOCKET": manager.address} | watchdog
    relay = serve(environment=environment)
    manager.until("READY=1")
    assert manager.hears_no_life()
    assert relay.stop() == 0
    assert "WATCHDOG=1" not in manager.heard


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


def test_a_drain_is_alive_until_its_end(manager) -> None:
    with Remotes() as remotes:
        gate = remotes.gate()
        remote = remotes.start("a.test", gates={"DOT": gate})
        config = {"delivery": {"shutdown_grace": "20s"}}
        with remotes.relay(config=config, environment=manager.environment) as relay:
            relay.send_mail(to=["x@a.test"], subject="in delivery")
            remotes.run(remote.reached("DOT"))
            manager.until("READY=1")
            relay.process.terminate()
            manager.until("STOPPING=1")
            assert manager.hears_life(signs=6)
            remotes.open_gate(gate)
            assert relay.wait_end() == 0


class Served:
    """A daemon that is served in this process, with its manager."""

    def __init__(self, daemon: Daemon, manager: ServiceManager) -> None:
        self.daemon, self._manager = daemon, manager
        self._task = asyncio.create_task(
            serve(daemon, notify_socket=manager.address, watchdog_s=WATCHDOG_S)
        )

    async def until(self, line: str) -> None:
        await asyncio.to_thread(self._manager.until, line)

    async def hears_life(self, signs: int = 6) -> bool:
        return await asyncio.to_thread(self._manager.hears_life, signs)

    async def hears_no_life(self) -> bool:
        return await asyncio.to_thread(self._manager.hears_no_life)

    async def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await self._task


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with FaultyDisk() as disk:
        yield disk


@pytest.fixture
async def served(disk, settings_with, composed, manager):  # noqa: F811
    served = Served(composed(settings_with()), manager)
    await served.until("READY=1")
    yield served
    disk.is_well()
    await served.stop()


async def test_a_writer_that_is_blocked_gives_no_sign_of_life(served, disk, tmp_path) -> None:
    assert await served.hears_life()
    may_end = threading.Event()
    disk.on_sync = lambda _suffix: may_end.wait()  # as a disk that does not answer
    running = Running(served.daemon, tmp_path)
    try:
        submitted = asyncio.create_task(running.submit("waits"))
        assert await served.hears_no_life()
    finally:
        may_end.set()
    assert (await submitted)[0] == 250
    await served.until("WATCHDOG=1")
    assert await served.hears_life()
