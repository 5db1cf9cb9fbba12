"""A set that keeps background tasks alive: the event loop keeps only weak references to tasks.
shielded() waits for work that goes on without its caller.
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class TaskSet(dict[asyncio.Task[Any], None]):
    """The tasks that have not ended, in the order of their start."""

    def start(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run `work` in a task, which leaves the set when it has ended."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.keep(task)
        return task

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Add a task, which leaves the set when it has ended."""
        self[task] = None
        task.add_done_callback(self.pop)

    def cancel(self) -> None:
        """Cancel all."""
        for task in self:
            task.cancel()

    async def end(self) -> None:
        """Cancel all, and wait until they have ended."""
        await end_all(self)


async def end_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel these tasks, and wait until they have ended."""
    ending = [*tasks]
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


async def shielded(work: Awaitable[T]) -> T:
    """Return what `work` returns, or raise what it raises. It goes on when the caller is cancelled,
    and what it raises then is dropped: asyncio.shield() logs that as an error.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    await asyncio.wait([task])
    return task.result()
