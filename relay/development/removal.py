"""Remove one message of a development relay, or all of them, while it runs: from the queue, the
history, and the mailboxes.

A service keeps its history. A person who tries programs out removes mail, and tests begin with an
empty relay. Mail in delivery is cut off before a reset, so that it does not appear afterwards. What
clients submit during a reset is deleted, or accepted after it.

The oldest mail is removed: a development relay runs for weeks and gets the mail of every test.
Mail that is still to be delivered stays, and so does a submission that is pending.
"""

import asyncio
import heapq
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from relay.base.clock import Clock
from relay.base.observe.logs import get_logger
from relay.base.settings.values import parse_duration, parse_size
from relay.base.task_set import TaskSet
from relay.development.option_fields import option, over_zero
from relay.front_door.api.message_source import MessageCopies
from relay.operation.app.daemon import Daemon
from relay.store.journeys.document import Journey
from relay.store.journeys.submission_log import SubmissionFacts
from relay.store.mailbox.errors import BeingSentError, StoreError
from relay.store.spool.engine import DevelopmentSpool, SpoolEngine
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.types import Selector, SpoolError
from relay.submission.outbox.store import FileStore

_log = get_logger("development")
_WHO = "development"
_INTERVAL_S = 60.0
_AHEAD_US = 1_000_000  # longer than between two readings of a clock


def development_spool(spool: SpoolEngine) -> DevelopmentSpool:
    """Return the operations on its spool that only a development relay has."""
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
        if not journey.is_final:  # delivery then drops the message from its memory
            selector = Selector(ids=(queue_id,))
            await daemon.base.spool.queue_admin.execute(
                QueueCommand(Operation.CANCEL, selector, _WHO)
            )
        recipients = await development_spool(daemon.base.spool).remove(queue_id)
        if recipients is None:
            return False
        for mailbox, copy_id in copies.places(queue_id, recipients):
            await copies.remove_one(mailbox, copy_id)
        if journey.submission_id:
            await _remove_original(daemon, copies, journey)
    await _withdraw(daemon, journey)
    daemon.base.changes.notify()
    return True


async def _end_submission(daemon: Daemon, copies: MessageCopies, journey: Journey) -> bool:
    """Remove the draft of a submission, which cancels it. Return False while it is in step 3."""
    await _remove_original(daemon, copies, journey)
    found_journey = await daemon.base.journeys.journey(journey.key, account=None)
    return found_journey is not None and found_journey.id is None and found_journey.is_final


async def _remove_original(daemon: Daemon, copies: MessageCopies, journey: Journey) -> None:
    """Remove the sender's copy: a draft, or a message in Sent Items. Raises BeingSentError."""
    mailbox = await daemon.base.journeys.mailbox_of(journey.submission_id or "")
    if mailbox:
        await copies.remove_one(mailbox, journey.graph_id or "")


async def _withdraw(daemon: Daemon, journey: Journey) -> None:
    """Remove steps 1 to 4 of the message from the log's answers."""
    if submission_id := journey.submission_id:
        account = await daemon.base.journeys.mailbox_of(submission_id)
        facts = SubmissionFacts(submission_id, journey.graph_id or "", account, journey.sender)
        await asyncio.to_thread(daemon.base.store_log.withdraw, facts)


@dataclass(eq=False, repr=False)
class Reset:
    """Deletes the messages of a daemon, one reset at a time.

    When delivery has ended, `quiet` ends what remote hosts still do with its mail. `forget` then
    clears what they remember.
    """

    daemon: Daemon
    trash: Path  # a directory on the file system of the mailboxes; it is created
    quiet: Callable[[], Awaitable[None]]
    forget: Callable[[], None]

    def __post_init__(self) -> None:
        self._lock = asyncio.Lock()
        self._removing = TaskSet()

    async def begin(self) -> None:
        """Remove the trash of a process that was killed."""
        await asyncio.to_thread(remove_trash, self.trash)

    async def run(self) -> int:
        """Delete everything; return the number of messages. Raises SpoolError, StoreError."""
        daemon = self.daemon
        async with self._lock:
            async with daemon.transport.pickup.emptied(), daemon.transport.scheduler.emptied():
                await self.quiet()
                if daemon.subscriptions is not None:
                    await daemon.subscriptions.clear()
                self.trash.mkdir(mode=0o700, exist_ok=True)
                trash = Path(tempfile.mkdtemp(dir=self.trash))
                submissions = await daemon.base.store.clear(trash)
                messages = await development_spool(daemon.base.spool).clear()
                await daemon.base.refusals.clear()
                self.forget()
            self._removing.start(asyncio.to_thread(remove_trash, trash))
        daemon.base.changes.notify()
        return submissions + messages

    async def end(self) -> None:
        """Wait until the trash is removed."""
        async with self._lock:
            await asyncio.gather(*self._removing)


def remove_trash(trash: Path) -> None:
    """Remove the trash. Blocks."""
    shutil.rmtree(trash, ignore_errors=True)


@dataclass(frozen=True)
class KeepLimits:
    """Which mail stays, in mailboxes and in queue and history."""

    messages: int = option(
        "The newest N messages stay in all mailboxes together, and N in the queue.",
        "--keep-messages",
        default=10_000,
        type=click.IntRange(min=1),
        metavar="N",
        show_default="10000",
    )
    age_s: float = option(
        "Older messages are removed.",
        "--keep-age",
        default=7 * 86400.0,
        type=over_zero("DURATION", parse_duration),
        show_default="7d",
    )
    size_bytes: int = option(
        "The newest messages of this size together stay.",
        "--keep-size",
        default=1 << 30,
        type=over_zero("SIZE", parse_size),
        show_default="1 GiB",
    )


KeptItem = tuple[int, int]  # time in microseconds, size in bytes


def cut_us(*stores: Sequence[KeptItem], keep: KeepLimits, now_us: int) -> int:
    """Return the latest time up to which mail must be removed, so that the limits hold.

    The newest mail of all stays, however large it is.
    """
    cut = now_us - int(keep.age_s * 1_000_000)
    ordered = [sorted(items, reverse=True) for items in stores]
    for items in ordered:
        if len(items) > keep.messages:
            cut = max(cut, items[keep.messages][0])
    total = 0
    for number, (at_us, size_bytes) in enumerate(heapq.merge(*ordered, reverse=True)):
        total += size_bytes
        if number and total > keep.size_bytes:
            return max(cut, at_us)
    return cut


@dataclass(eq=False, repr=False)
class MailRetention:
    """Removes the mail above the limits, each minute."""

    store: FileStore
    spool: DevelopmentSpool
    keep: KeepLimits
    keeps_mailbox: Callable[[str], bool]  # of an address, in any thread: also without messages
    clock: Clock
    removing: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]  # calls and awaits it

    async def run(self) -> None:
        """Remove until cancelled."""
        while True:
            try:
                await self.removing(self.remove)
            except (StoreError, SpoolError) as error:
                _log.warning("old messages not removed", error=str(error))
            except Exception:  # noqa: BLE001 - the task must go on
                _log.exception("old messages not removed")
            await asyncio.sleep(_INTERVAL_S)  # real time: an advance makes no mail old

    async def remove(self) -> None:
        """Remove the mail that is above the limits now. Raises StoreError, SpoolError.

        Ages are in real time, as the times of files. The queue has times of the relay's clock. When
        that clock was advanced, mailboxes and queue are limited separately.
        """
        files = await self.store.stored_files()
        kept = await self.spool.sizes(self.keep.messages + 1)
        real_us = self.clock.file_time_us()
        sizes = [(file.at_us, file.size_bytes) for file in files]
        is_ahead = self.clock.time_us() - real_us > _AHEAD_US
        groups: list[list[Sequence[KeptItem]]] = [[sizes], [kept]] if is_ahead else [[sizes, kept]]
        cuts = [cut_us(*group, keep=self.keep, now_us=real_us) for group in groups]
        old = [file for file in files if file.at_us <= cuts[0]]
        if old:
            await self.store.remove_files(old)
        await self.store.remove_empty_mailboxes(self.keeps_mailbox)
        messages = 0
        if any(at_us <= cuts[-1] for at_us, _ in kept):  # otherwise nothing is written
            while number := await self.spool.discard(cuts[-1]):
                messages += number
        if old or messages:  # relay dev shows warnings only
            _log.warning("old messages removed", in_mailboxes=len(old), in_the_queue=messages)
