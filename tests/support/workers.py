"""A pytest plugin: the tests run in processes that are forked after one collection.

With `-n PROCESSES` each process takes whole files, as their tests share relays; with 0, the default, all
run in this one. A process with a collection of its own would take 12 s of CPU and 600 MB before its
first test, and so would each further one; a forked one shares the memory. So there are enough of them
that some wait while others compute: half of them take only files of _WAITING as long as there are any.

A test that does not end within `--limit` seconds shows the stacks of all threads and ends its process.
"""

import atexit
import faulthandler
import os
import signal
import traceback
from collections import deque
from collections.abc import Generator, Iterator
from itertools import chain, pairwise
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

WORKER = "RELAY_TEST_WORKER"  # the number of a process, from 0
# Their tests wait for other processes, or for a time.
_WAITING = ("tests/clients/", "tests/host/", "tests/integration/", "tests/interop/", "tests/pages/")
# Suites that make test leaves out: their tests may take longer.
_LONG = (
    "tests/bench/",
    "tests/crash/",
    "tests/host/",
    "tests/interop/",
    "tests/pages/",
    "tests/postgres/",
    "tests/security/test_hostile_text.py",
    "tests/simulation/",
    "tests/unit/testing/",
)
_LONGER = 8
Group = list[int]  # of one file: indexes of session.items


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("workers")
    # pytest keeps short options for itself: as pytest-xdist
    group._addoption("-n", type=int, default=0, dest="workers", help="processes; 0: this one")
    group.addoption("--limit", type=float, default=120, help="seconds of a test; 0: no limit")


def pytest_sessionstart(session: pytest.Session) -> None:
    stderr = session.config.stash[fault_handler_stderr_fd_key]
    faulthandler.register(signal.SIGALRM, file=stderr, chain=True)  # also while C code waits


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    limit_s = item.config.option.limit
    if item.nodeid.startswith(_LONG):
        limit_s *= _LONGER
    signal.setitimer(signal.ITIMER_REAL, 0 if item.get_closest_marker("long") else limit_s)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def pytest_enter_pdb() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    option = session.config.option
    if not option.workers or option.collectonly or option.usepdb or session.testsfailed:
        return None
    _Loop(session).run(option.workers)
    return True


def group_of(nodeid: str) -> str:
    """Return the name of the tests that run in one process, one after the other."""
    path = nodeid.partition("::")[0]
    if "/pages/" in path:  # two processes start a browser, and not each
        return f"tests/pages/ {len(path) % 2}"
    return nodeid if "/simulation/" in path else path  # its tests share nothing


class _Worker:
    """A process, as its parent sees it."""

    def __init__(self, session: pytest.Session, number: int) -> None:
        self.number = number
        self.todo: deque[int] = deque()  # of its groups; the first one may run
        self.connection, theirs = Pipe()
        self.pid = os.fork()
        if not self.pid:
            self.connection.close()
            _work(session, theirs, number)
        theirs.close()


class _Loop:
    """Gives groups to processes, and passes their reports on."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        groups: dict[str, Group] = {}
        for index, item in enumerate(session.items):
            groups.setdefault(group_of(item.nodeid), []).append(index)
        self._waiting = deque(g for name, g in groups.items() if name.startswith(_WAITING))
        self._computing = deque(g for name, g in groups.items() if not name.startswith(_WAITING))
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.showfspath = False  # files overlap

    def run(self, count: int) -> None:
        session = self._session
        session.config._tmp_path_factory.getbasetemp()  # the processes make theirs in it
        workers = {w.connection: w for w in (_Worker(session, n) for n in range(count))}
        try:
            while workers:
                for connection in wait([*workers]):
                    worker = workers[connection]
                    try:
                        self._hear(worker, connection.recv())
                    except (EOFError, ConnectionResetError):
                        del workers[connection]
                        if follower := self._ended(worker):
                            workers[follower.connection] = follower
        finally:
            for worker in workers.values():
                os.kill(worker.pid, signal.SIGTERM)
                os.waitpid(worker.pid, 0)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)

    def _hear(self, worker: _Worker, message: Any) -> None:
        if message is None:
            group = [] if self._session.shouldfail else self._next_group(worker)
            worker.todo += group
            worker.connection.send(group)
            return
        if isinstance(message, int):
            worker.todo.popleft()
            return
        hook = self._session.config.hook
        report = hook.pytest_report_from_serializable(config=self._session.config, data=message)
        hook.pytest_runtest_logreport(report=report)

    def _next_group(self, worker: _Worker) -> Group:
        """Even processes compute as long as there is anything to compute, odd ones wait."""
        first, second = self._computing, self._waiting
        if worker.number % 2:
            first, second = second, first
        return first.popleft() if first else second.popleft() if second else []

    def _ended(self, worker: _Worker) -> _Worker | None:
        """If a process ended during a test, report the test, and return a process for the others."""
        status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        if not worker.todo or self._session.shouldfail:
            return None
        item = self._session.items[worker.todo.popleft()]
        why = "took too long, see above" if status == -signal.SIGALRM else f"ended: {status}"
        text = f"the process of this test {why}"
        report = pytest.TestReport(
            item.nodeid, item.location, {}, outcome="failed", longrepr=text, when="call"
        )
        self._session.config.hook.pytest_runtest_logreport(report=report)
        self._computing.appendleft([*worker.todo])
        return _Worker(self._session, worker.number)


def _work(session: pytest.Session, connection: Connection, number: int) -> None:
    """Be a process, to its end."""
    status = 1
    try:
        os.environ[WORKER] = str(number)
        _separate(session.config, number)
        session.config.pluginmanager.register(_Reporter(session.config, connection))
        indexes = chain(_given(connection), [None])
        for index, following in pairwise(indexes):
            item, next_item = (None if i is None else session.items[i] for i in (index, following))
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=next_item)
            connection.send(index)
            if session.shouldfail or session.shouldstop:
                session._setupstate.teardown_exact(None)
                break
        atexit._run_exitfuncs()
        status = 0
    except BaseException:  # noqa: BLE001 - also what ends a process, to its end
        traceback.print_exc()
    finally:
        os._exit(status)


def _given(connection: Connection) -> Iterator[int]:
    """Yield the indexes of the groups that the parent gives, until there are no more."""
    while True:
        connection.send(None)
        group = connection.recv()
        if not group:
            return
        yield from group


def _separate(config: pytest.Config, number: int) -> None:
    """Give this process its own temporary folder and captured output, and no terminal."""
    factory = config._tmp_path_factory
    factory._basetemp = factory.getbasetemp() / str(number)
    factory._basetemp.mkdir(mode=0o700, exist_ok=True)
    manager = config.pluginmanager
    capture = manager.get_plugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    reporter = manager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter._tw._file = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends


class _Reporter:
    """Sends the reports of a process."""

    def __init__(self, config: pytest.Config, connection: Connection) -> None:
        self._config, self._connection = config, connection

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._connection.send(data)
