"""The scheduling order of a world: the seed chooses which of the ready handles runs next.

Tasks and threads may overtake each other; callbacks keep their order. A dead process does not run.
Sets of tasks and futures iterate in the same order in every run. Raises EndlessError when time does not go on. See
asyncio's private parts.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.simulation.life import LIFE, Life

_TURNS_MAX = 3_000_000  # ten times the number of any world


class EndlessError(Exception):
    """Handles become ready endlessly, and time does not advance."""


class Numbered:
    """Sets of these have the same order in every run: their hash is not a memory address."""

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class Task(Numbered, asyncio.Task):  # type: ignore[type-arg]
    def __init__(self, coroutine: Any, *, loop: Any, **more: Any) -> None:
        self._number = loop.number()
        super().__init__(coroutine, loop=loop, **more)


class Future(Numbered, asyncio.Future):  # type: ignore[type-arg]
    def __init__(self, *, loop: Any) -> None:
        self._number = loop.number()
        super().__init__(loop=loop)


@dataclass
class Job:
    """Work for a thread."""

    work: Callable[..., Any]
    args: tuple[Any, ...]
    done: asyncio.Future[Any] = field(repr=False)

    def run(self) -> None:
        if self.done.cancelled():
            return
        try:
            result = self.work(*self.args)
        except Exception as error:  # noqa: BLE001 - passed to the waiting caller
            self.done.set_exception(error)
        else:
            self.done.set_result(result)


@dataclass
class Thread:
    """Runs its oldest job at each call."""

    jobs: deque[Job] = field(default_factory=deque)
    keep: Any = None  # so that no other executor gets its id

    def run(self) -> None:
        self.jobs.popleft().run()


class Ready(deque[Any]):
    """The ready handles: any task or thread may be next; other handles keep their order."""

    def __init__(self, rng: Random, *, kill: Callable[[Life], None]) -> None:
        super().__init__()
        self._rng = rng
        self._kill = kill
        self._turns = 0

    def popleft(self) -> Any:
        self._turns += 1
        if self._turns > _TURNS_MAX:
            raise EndlessError
        index = self._choose()
        handle = self[index]
        del self[index]
        life = handle._context.get(LIFE)
        if life is None or handle._cancelled:
            return handle
        if not life.dead:
            life.steps += 1
            if life.steps == life.dies_at_step:
                self._kill(life)
        if life.dead:
            handle.cancel()
        return handle

    def _choose(self) -> int:
        if len(self) == 1:
            return 0
        index = self._rng.randrange(len(self))
        if self._may_overtake(self[index]):
            return index
        for first, handle in enumerate(self):
            if not self._may_overtake(handle):
                return first
        return index

    def _may_overtake(self, handle: Any) -> bool:
        return isinstance(getattr(handle._callback, "__self__", None), asyncio.Task | Thread)
