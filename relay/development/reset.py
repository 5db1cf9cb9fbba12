"""Delete everything that a development relay has stored, while it runs.

Tests begin with an empty relay that way. Mail in delivery is cut off first, so that nothing of it
appears afterwards. What clients submit during a reset is deleted, or accepted after it.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from relay.app.daemon import Daemon
from relay.development.removal import development_spool


class Reset:
    """Deletes the messages of a daemon, one reset at a time."""

    def __init__(
        self,
        daemon: Daemon,
        trash: Path,
        *,
        quiet: Callable[[], Awaitable[None]],
        forget: Callable[[], None],
    ) -> None:
        """`trash` is a directory on the file system of the mailboxes; it is created. When delivery
        has ended, `quiet` ends what others do with its mail, and `forget` forgets what they know.
        """
        self._daemon = daemon
        self._trash = trash
        self._quiet = quiet
        self._forget = forget
        self._lock = asyncio.Lock()
        self._removing: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        """Remove the trash that a killed process has left."""
        await asyncio.to_thread(remove_trash, self._trash)

    async def run(self) -> int:
        """Delete everything; return the number of messages. Raises SpoolError, StoreError."""
        daemon = self._daemon
        async with self._lock:
            async with daemon.transport.pickup.emptied(), daemon.transport.scheduler.emptied():
                await self._quiet()
                self._trash.mkdir(mode=0o700, exist_ok=True)
                trash = Path(tempfile.mkdtemp(dir=self._trash))
                submissions = await daemon.base.store.clear(trash)
                messages = await development_spool(daemon).clear()
                await daemon.base.refusals.clear()
                self._forget()
            task = asyncio.create_task(asyncio.to_thread(remove_trash, trash))
            self._removing.add(task)
            task.add_done_callback(self._removing.discard)
        daemon.base.changes.notify()
        return submissions + messages

    async def end(self) -> None:
        """Wait until the trash is removed."""
        async with self._lock:
            await asyncio.gather(*self._removing)


def remove_trash(trash: Path) -> None:
    """Remove the trash. Blocks."""
    shutil.rmtree(trash, ignore_errors=True)
