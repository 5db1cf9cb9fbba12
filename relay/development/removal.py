"""Remove one message of a development relay, or all of them, while it runs: from the queue, the
history, and the mailboxes.

A service keeps its history; a person who tries programs out removes what is done with. Tests begin
with an empty relay. Mail in delivery is cut off before a reset, so that nothing of it appears
afterwards. What clients submit during a reset is deleted, or accepted after it.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from relay.api.message_source import MessageCopies
from relay.app.daemon import Daemon
from relay.journeys.document import Journey
from relay.journeys.submission_log import SubmissionFacts
from relay.mailbox.types import BeingSentError
from relay.spool.engine import DevelopmentSpool, SpoolEngine
from relay.spool.queue_commands import Operation, QueueCommand
from relay.spool.types import Selector

_WHO = "development"


def development_spool(spool: SpoolEngine) -> DevelopmentSpool:
    """Return what only a development relay does with its spool."""
    assert spool.development is not None  # its engine has it
    return spool.development


async def remove_message(daemon: Daemon, copies: MessageCopies, journey: Journey) -> bool:
    """See DevelopmentControls.remove_message()."""
    queue_id = journey.id
    try:
        if queue_id is None and not await _end_submission(daemon, copies, journey):
            return False
    except BeingSentError:
        return False
    if queue_id is not None:
        if not journey.is_final:  # delivery gives up what waits in its memory
            selector = Selector(ids=(queue_id,))
            await daemon.base.spool.queue_admin.execute(
                QueueCommand(Operation.CANCEL, selector, _WHO)
            )
        recipients = await development_spool(daemon.base.spool).remove(queue_id)
        if recipients is None:
            return False
        await copies.remove(queue_id, recipients)
        if journey.submission_id:
            await _remove_original(daemon, copies, journey)
    await _withdraw(daemon, journey)
    daemon.base.changes.notify()
    return True


async def _end_submission(daemon: Daemon, copies: MessageCopies, journey: Journey) -> bool:
    """Remove the draft of a submission, which cancels it; False while it is in step 3."""
    await _remove_original(daemon, copies, journey)
    found = await daemon.base.journeys.journey(journey.key, account=None)
    return found is not None and found.id is None and found.is_final


async def _remove_original(daemon: Daemon, copies: MessageCopies, journey: Journey) -> None:
    """Remove the sender's copy: a draft, or what is in Sent Items. Raises BeingSentError."""
    mailbox = await daemon.base.journeys.mailbox_of(journey.submission_id or "")
    if mailbox:
        await copies.remove_one(mailbox, journey.graph_id or "")


async def _withdraw(daemon: Daemon, journey: Journey) -> None:
    """Remove steps 1 to 4 from all answers."""
    if submission_id := journey.submission_id:
        account = await daemon.base.journeys.mailbox_of(submission_id)
        facts = SubmissionFacts(submission_id, journey.graph_id or "", account, journey.sender)
        await asyncio.to_thread(daemon.base.store_log.withdraw, facts)


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
                if daemon.subscriptions is not None:
                    await daemon.subscriptions.clear()
                self._trash.mkdir(mode=0o700, exist_ok=True)
                trash = Path(tempfile.mkdtemp(dir=self._trash))
                submissions = await daemon.base.store.clear(trash)
                messages = await development_spool(daemon.base.spool).clear()
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
