"""Run a development relay in a thread with a separate event loop.

The thread has a separate log, a file in the relay's directory. The process is not changed: no
signal handlers, limits, environment or working directory. stop() removes all files; if the process
ends without it, they are removed too. In a forked process the relay does nothing.

Its directory is in /dev/shm (tmpfs(5)) if that exists. There each sync is free, so that the relay
of a test can have the same durability as a service. Each relay locks its directory. Directories of
processes that were killed are removed when the next relay starts.
"""

import asyncio
import atexit
import contextlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from relay.base.files import locked_directory
from relay.base.observe import logs
from relay.development.relay import DevelopmentRelay
from relay.operation.app.daemon import BrokenRelayError
from relay.operation.app.development_folder import DevelopmentFolder, memory_place, short_place
from relay.operation.app.state_dir import AlreadyRunningError, OwnerLock

_FREE_BYTES_MIN = 128 * 1024 * 1024  # a container often has 64 MiB: too little for large mail


def new_state_folder() -> DevelopmentFolder:
    """Create and lock the directory of one relay. Raises OSError."""
    parent = _parent()
    with locked_directory(parent):  # others create and remove directories too
        _remove_abandoned(parent)
        path = Path(tempfile.mkdtemp(dir=parent, prefix=""))
        lock = OwnerLock(path / "run")
        lock.take()
    return DevelopmentFolder(path, temporary=True, lock=lock)


def _parent() -> Path:
    """Return this user's directory, which has the directories of all relays."""
    on_disk = short_place(Path(tempfile.gettempdir()))
    for place in filter(None, (memory_place(_FREE_BYTES_MIN), on_disk)):
        own = place / f"relay-tests-{os.getuid()}"
        with contextlib.suppress(OSError):
            own.mkdir(mode=0o700, exist_ok=True)
            status = own.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                return own
    return Path(tempfile.mkdtemp(prefix="relay-tests-", dir=on_disk))


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories that no relay has locked."""
    for path in parent.iterdir():
        if not path.is_dir():
            continue
        lock = OwnerLock(path / "run")
        try:
            lock.take()
        except (AlreadyRunningError, OSError):
            continue
        shutil.rmtree(path, ignore_errors=True)
        lock.give_back()


Result = TypeVar("Result")
LOG_NAME = "relay.log"


class RelayThread:
    """A development relay in its thread. Call start() once, then stop()."""

    relay: DevelopmentRelay
    _context: Context

    def __init__(
        self, folder: DevelopmentFolder, build: Callable[[DevelopmentFolder], DevelopmentRelay]
    ) -> None:
        """`build` composes the relay, in the thread. The folder is removed at the end."""
        self.folder = folder
        self._build = build
        self._started: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._error: BaseException | None = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._work, name="relay", daemon=True)

    def start(self) -> None:
        """Return when the relay is ready. Raises the errors of the start; then nothing is left."""
        atexit.register(self._abandon)
        try:
            self._thread.start()
            self._started.result()
        except BaseException:  # Ctrl-C as well
            with suppress(Exception):
                self.stop()
            raise

    def stop(self) -> None:
        """Stop the relay and remove its files. Raises BrokenRelayError and errors of the stop."""
        if os.getpid() != self._pid:
            return
        atexit.unregister(self._abandon)
        if self._loop is not None and self._stopping is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread.ident is not None:
            self._thread.join()
        self.folder.remove()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error

    def submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Run a coroutine in the relay's loop. Raises RuntimeError if the relay does not run."""
        fault = self._fault()
        if fault is not None or self._loop is None:
            work.close()
            raise fault or RuntimeError("the relay does not run: use it within `with Relay()`")
        context = self._context.copy()  # for the log
        return context.run(asyncio.run_coroutine_threadsafe, work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the relay's loop and return its result."""
        __tracebackhide__ = True  # pytest shows the line of the test
        future = self.submit(work)
        try:
            return future.result()
        except AssertionError as error:
            raise error.with_traceback(None) from None
        finally:
            future.cancel()  # after Ctrl-C

    def _abandon(self) -> None:
        """Remove the files at the end of the process, which ends the threads."""
        if os.getpid() == self._pid:
            self.folder.remove()

    def _fault(self) -> Exception | None:
        if os.getpid() != self._pid:
            return RuntimeError(
                f"the relay runs in the process {self._pid}, not in this fork of it"
            )
        if not self._thread.is_alive():
            return RuntimeError("the relay has stopped")
        if self.relay.daemon.fault:
            return BrokenRelayError(self.relay.daemon.fault)
        return None

    def _work(self) -> None:
        try:
            with (self.folder.path / LOG_NAME).open("ab") as file:
                sink = logs.LogSink()
                sink.point_at(file.fileno())
                logs.use(sink)
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(self._serve())
                sink.drain(0)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            if not self._started.done():
                self._started.set_exception(error)
            else:
                self._error = error

    async def _serve(self) -> None:
        self._context = copy_context()
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self.relay = self._build(self.folder)
        try:
            await self.relay.start()
            self._started.set_result(None)
            await self._stopping.wait()
        finally:
            await self.relay.stop()
        if self.relay.daemon.fault:
            raise BrokenRelayError(self.relay.daemon.fault)
