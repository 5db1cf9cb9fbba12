"""Starts that fail, rooms that fail while running, and stops in which something fails."""

import asyncio
import os
import signal
import socket
import threading

import pytest

from relay.operation.app.daemon import BrokenRelayError, serve
from relay.operation.app.state_dir import OwnerLock

SOON_S = 120.0


def threads() -> set[str]:
    """The names of this process's threads, but for those that the event loop keeps for itself."""
    names = {thread.name for thread in threading.enumerate()}
    own = (
        "uvloop_",
        "ThreadPoolExecutor-",
        "MainThread",
    )  # of the loop: before uvloop 0.23 the second
    return {name for name in names if not name.startswith(own)}


@pytest.mark.parametrize("listener", ["http", "smtp"])
async def test_a_failed_start_releases_everything(
    settings_with, composed, open_files, listener: str
) -> None:
    before = threads()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        change = {"http": {"listen": [listen]}, "smtp": [{"listen": listen}]}[listener]
        settings = settings_with(**{listener: change})
        with pytest.raises(OSError, match="in use"):
            await serve(composed(settings))
    assert open_files() == []
    assert threads() <= before
    assert not settings.pickup_socket.exists()
    assert not settings.control_socket.exists()
    lock = OwnerLock(settings.run_dir)
    lock.take()
    lock.give_back()


async def test_a_room_that_fails_ends_the_relay(
    settings_with, composed, open_files, monkeypatch
) -> None:
    daemon = composed(settings_with())

    async def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(daemon.transport.pickup, "run", broken)
    async with asyncio.timeout(SOON_S):
        with pytest.raises(BrokenRelayError, match="pickup ended unexpectedly"):
            await serve(daemon)
    assert open_files() == []


async def test_two_signals_at_once_stop_it_once(settings_with, composed, tmp_path) -> None:
    daemon = composed(settings_with())
    ready = tmp_path / "ready.json"
    serving = asyncio.create_task(serve(daemon, ready_file=ready))
    async with asyncio.timeout(SOON_S):
        while not ready.exists():
            assert not serving.done()
            await asyncio.sleep(0)
        assert daemon.base.readiness() == ""
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        await serving
    assert daemon.base.readiness() == "stopping"


async def test_a_signal_during_the_start_stops_the_relay_after_it(
    settings_with, composed, monkeypatch
) -> None:
    daemon = composed(settings_with())
    start = daemon.base.spool.start

    async def slow_start(**options) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        return await start(**options)

    monkeypatch.setattr(daemon.base.spool, "start", slow_start)
    async with asyncio.timeout(SOON_S):
        await serve(daemon)
