"""A process of a world: its tasks, its sockets, and when it dies.

Which process is at work is in LIFE, None for what is none of ours.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar
from random import Random
from typing import Any

from async_solipsism.socket import Socket

_DEATHS = 0.05
_STEPS_MAX = 10


class Death(BaseException):
    """The process is gone; nothing may catch it."""


class Life:
    """A process: its tasks, its sockets, and the moment at which it dies."""

    def __init__(
        self,
        name: str,
        *,
        dies_at_step: int = 0,
        dies_at_write: int = 0,
        dies_at_commit: int = 0,
        steps_after_sync: int = 0,
    ) -> None:
        """0: not by itself. A step is what a task does between two awaits.

        `steps_after_sync` is how many it does after a sync that failed.
        """
        self.name = name
        self.dead = False
        self.lasts = False  # until all mail is gone
        self.steps = 0
        self.dies_at_step = dies_at_step
        self.dies_at_write = dies_at_write  # counted by the disk
        self.dies_at_commit = dies_at_commit
        self.steps_after_sync = steps_after_sync
        self.writes = 0
        self.commits = 0
        self.doing = ["starting"]  # the words of coverage
        self.tasks: list[asyncio.Task[Any]] = []
        self.calls: dict[str, list[Socket]] = {}  # sockets that it opened, by host
        self.sockets: list[Socket] = []
        self.context = Context()
        self.context.run(LIFE.set, self)
        self.died = asyncio.Event()
        self.on_death: Callable[[], None] = lambda: None

    def may_die(self, rng: Random) -> None:
        """Let some die within what they do now, but for the last one."""
        if rng.random() < _DEATHS and not self.lasts:
            self.dies_at_step = self.steps + rng.randint(1, _STEPS_MAX)

    def doomed_by_sync(self) -> None:
        """A sync has failed: some die soon after."""
        if self.steps_after_sync:
            self.dies_at_step = self.steps + self.steps_after_sync

    @property
    def tasks_open(self) -> int:
        self.tasks = [task for task in self.tasks if not task.done()]
        return len(self.tasks)


LIFE: ContextVar[Life | None] = ContextVar("LIFE", default=None)
