"""A world: one event loop with virtual time, a network, a disk, and processes that live and die in it.

Whatever happens is decided by the seed: which ready task is next, how long things take, when a
process dies. A process that is dead does nothing more: no step, no octet, no write. What is raised
where nobody catches it is in `faults`. See async-solipsism's mock sockets and clock; asyncio's
private parts, here and in what it is made of.
"""

import asyncio
import hashlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from random import Random
from typing import Any

import apsw
from async_solipsism.socket import Socket

from tests.simulation.clock import Time
from tests.simulation.life import LIFE, Death, Life
from tests.simulation.network import Network
from tests.simulation.order import Future, Job, Ready, Task, Thread

_BURIALS_MAX = 50  # how often a coroutine may refuse to end
_TASKS_KEPT = 500  # before those that are done are let go


class World(Network):
    """An event loop that is a world of its own. Close it when it is over."""

    def __init__(self, seed: int, folder: str, *, keep_trace: bool = False) -> None:
        """`folder`, where its disk is, has another name in each run: no trace tells it."""
        super().__init__()
        self.folder = folder
        self.rng = Random(seed)
        self._ready = Ready(self.rng, kill=self.kill)
        self._numbers = 0
        self.set_task_factory(self._new_task)
        self.set_exception_handler(self._unhandled)
        self.outside = copy_context()  # of all that is no process of ours
        self._threads: dict[int, Thread] = {}
        self.lives: list[Life] = []
        self._outsiders: list[asyncio.Task[Any]] = []
        self.clocks = Time(self)
        self.faults: list[str] = []
        self.reached: Counter[str] = Counter()  # what came to pass, by tests.simulation.coverage
        self.trace: list[str] | None = [] if keep_trace else None
        self._hash = hashlib.blake2b(digest_size=8)

    # -- what happened

    def note(self, *words: object) -> None:
        """Put a line into the trace."""
        said = " ".join(map(str, words)).replace(self.folder, "")
        line = f"{self.time():.6f} {said}"
        self._hash.update(line.encode())
        if self.trace is not None:
            self.trace.append(line)

    @property
    def trace_hash(self) -> str:
        return self._hash.hexdigest()

    def fault(self, words: str) -> None:
        """Say that something is wrong; it is a violation in every world."""
        self.note("FAULT", words)
        self.faults.append(words)

    def _unhandled(self, _loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Death | asyncio.CancelledError) or LIFE.get() is None:
            return
        if not LIFE.get().dead:
            self.fault(f"unhandled: {context['message']}: {error!r}")

    # -- life and death

    def new_life(self, name: str, **doom: int) -> Life:
        life = Life(name, **doom)
        self.lives.append(life)
        return life

    def kill(self, life: Life) -> None:
        """End a process as SIGKILL does: its peers see its sockets close, it sees nothing more."""
        if life.dead:
            return
        life.dead = True
        self.note("DEATH of", life.name, "step", life.steps, "write", life.writes)
        for doing in life.doing:
            self.reached[f"death: {doing}"] += 1
        life.on_death()
        for address in [one for one, host in self.hosts.items() if host.context is life.context]:
            del self.hosts[address]
        for socket in life.sockets:
            self._sever(socket)
        life.died.set()

    def _sever(self, socket: Socket) -> None:
        if socket._read_queue is None:
            return
        if self.rng.random() < 0.3:  # a reset: what was under way is lost
            socket._write_queue._buffer.clear()
        descriptor = socket.fileno()
        transport = self._transports.get(descriptor)
        self._remove_reader(descriptor)
        self._remove_writer(descriptor)
        if transport is not None:
            transport._closing = True
            transport._sock = None
        socket.close()

    def bury(self) -> None:
        """Let go of what the dead left: their coroutines end now, with nothing to write to.

        What they start on their way out is of this world, and is buried as well: else asyncio would
        make them a loop of their own, which nobody closes, with tasks that nobody ends.
        """
        asyncio._set_running_loop(self)
        try:
            for tasks in (*(life.tasks for life in self.lives), self._outsiders):
                for task in tasks:  # also those that come meanwhile
                    task._log_destroy_pending = False
                    if not task.done():
                        _end(task.get_coro())
                tasks.clear()
        finally:
            asyncio._set_running_loop(None)
        for transport in list(self._transports.values()):
            transport._sock = None  # nobody is there who could close it

    @contextmanager
    def deaths_untold(self) -> Iterator[None]:
        """Where SQLite cannot hand an exception on, it is shown; a death needs no telling, nor that
        what the dead of an earlier world had open is collected in this one.
        """
        shown, unraisable = sys.excepthook, sys.unraisablehook

        def show(_kind: object, error: BaseException, _trace: object) -> None:
            if not isinstance(error, Death | apsw.Error | ResourceWarning):
                self.fault(f"unraisable: {error!r}")

        sys.excepthook = show
        sys.unraisablehook = lambda found: show(None, found.exc_value or Death(), None)
        try:
            yield
        finally:
            sys.excepthook, sys.unraisablehook = shown, unraisable

    # -- scheduling order

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _new_task(self, loop: "World", coroutine: Any, **more: Any) -> asyncio.Task[Any]:
        context = more.get("context")
        life = LIFE.get() if context is None else context.get(LIFE)
        tasks = self._outsiders if life is None else life.tasks
        if len(tasks) > _TASKS_KEPT:
            tasks[:] = [one for one in tasks if not one.done()]
        task = Task(coroutine, loop=loop, **more)
        tasks.append(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        return Future(loop=self)

    def run_in_executor(self, executor: Any, work: Callable[..., Any], *args: Any) -> Any:
        """What would be done in a thread is done here, at some moment of the seed's choice.

        An executor of somebody's own does one thing after the other.
        """
        job = Job(work, args, self.create_future())
        thread = Thread() if executor is None else self._threads.setdefault(id(executor), Thread())
        thread.jobs.append(job)
        thread.keep = executor
        self.call_soon(thread.run)
        return job.done


def _end(coroutine: Any) -> None:
    unbegun = list(_unbegun(coroutine))
    for _ in range(_BURIALS_MAX):
        try:
            coroutine.close()
        except BaseException:  # noqa: BLE001 - it awaits on its way out
            continue
        break
    for one in unbegun:
        _end(one)


def _unbegun(coroutine: Any) -> Iterator[Any]:
    """The coroutines that it has at hand and has not come to: its end alone would not be theirs."""
    while inspect.iscoroutine(coroutine) and coroutine.cr_frame is not None:
        for one in coroutine.cr_frame.f_locals.values():
            if inspect.iscoroutine(one) and inspect.getcoroutinestate(one) == inspect.CORO_CREATED:
                yield one
        coroutine = coroutine.cr_await
