"""FileStore: the protocols of api.py over Maildir++ directories.

app creates one; graph, pickup, ingress and delivery use it. Each call runs its blocking work in one
thread of the store, and its results are durable when it returns. Calls raise only StoreError's
children; errors of the disk become StoreUnavailableError. docs/design.md 3.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from relay.accounts.account import DEAD_LETTER
from relay.clock import Clock, Ids
from relay.crashpoints import CrashPoints
from relay.journeys.submission_log import SubmissionLog
from relay.mailbox.api import DeliveryResult
from relay.mailbox.arrivals import FileArrivals
from relay.mailbox.dependencies import StoreDependencies
from relay.mailbox.drafts import Drafts
from relay.mailbox.folder_tree import FolderTree
from relay.mailbox.folders import ROOT_ID, Folders
from relay.mailbox.inbox import Inbox
from relay.mailbox.index import Indexes
from relay.mailbox.maildir import SYNC_FAILURES, DirectorySync, Stripes, storage_errors
from relay.mailbox.message_file import mailbox_directory
from relay.mailbox.moving import MessageMover
from relay.mailbox.query import MessageQuery
from relay.mailbox.quota import Quota
from relay.mailbox.stale_files import StaleFiles
from relay.mailbox.submissions import SubmissionDirectory, content_of
from relay.mailbox.submissions.on_disk import ClockAnchorFile
from relay.mailbox.submissions.pending import PendingSubmissions, SubmissionThrottle
from relay.mailbox.submissions.scheduled import (
    DueSubmissions,
    ScheduledDirectory,
    ScheduledSends,
    ScheduleTimer,
)
from relay.mailbox.submissions.submit import SubmissionWriter
from relay.mailbox.threads import AccountQueues, QueryTimeLimit, ThreadPool
from relay.mailbox.types import (
    NO_PRECONDITION,
    ChangePage,
    Folder,
    MessageChange,
    NoSuchItemError,
    Page,
    PendingSubmission,
    Precondition,
    QuotaLimits,
    Room,
    SendOptions,
    StoredMessage,
)
from relay.mailbox.upload_sessions import FileAttachments
from relay.message.content import Content, Octets
from relay.message.properties import MessageProperties

_THREADS = 16  # they share fsyncs: more threads, fewer fsyncs per message
_QUERY_THREADS = 4
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class FileStore:
    """A MailStore, a SubmissionStore and a DeliveryStore: api.py specifies the methods."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock,
        ids: Ids,
        crash: CrashPoints,
        log: SubmissionLog,
        hostname: str,
        limits_of: Callable[[str], QuotaLimits],
        dead_letter: Path,
    ) -> None:
        """`dead_letter` is the Maildir of the account DEAD_LETTER."""

        def directory_of(account: str) -> Path:
            return dead_letter if account == DEAD_LETTER else mailbox_directory(root, account)

        clock.resume(ClockAnchorFile(root / ".submissions").read())
        self._directory_of = directory_of
        folders, stripes, syncs = Folders(directory_of), Stripes(), DirectorySync()
        self._index = Indexes(clock)
        submissions = SubmissionDirectory(root / ".submissions", syncs)
        self._actions = ThreadPool(_THREADS, "mailbox")
        self._queries = ThreadPool(_QUERY_THREADS, "mailbox-query")
        self._shares = AccountQueues()
        self._throttle = SubmissionThrottle(clock)
        self._pending = PendingSubmissions(self._changed_ns, self._list_ready, clock=clock)
        self._timer = ScheduleTimer(
            ScheduledDirectory(
                self._scheduled_changed_ns, self._list_scheduled, self._make_due_ready),
            clock=clock, on_ready=self._pending.offer,
        )  # fmt: skip
        scheduled = ScheduledSends(
            submissions, folders=folders, stripes=stripes, clock=clock, crash=crash, log=log,
            on_scheduled=self._timer.add,
        )  # fmt: skip
        self._shared = StoreDependencies(
            clock=clock,
            ids=ids,
            crash=crash,
            hostname=hostname,
            folders=folders,
            index=self._index,
            quota=Quota(limits_of, self._index),
            submissions=submissions,
            syncs=syncs,
            stripes=stripes,
            scheduled=scheduled,
        )
        self._stale_files = StaleFiles(self._shared, log)
        self._inbox = Inbox(self._shared, self._stale_files)
        self._drafts = Drafts(self._shared, self._stale_files)
        self._moving = MessageMover(self._shared, self._stale_files)
        self._tree = FolderTree(folders, ids)
        self._writer = SubmissionWriter(self._shared, self._inbox, self._stale_files, log=log)
        self.arrivals = FileArrivals(
            self._shared, self._stale_files, writer=self._writer,
            drafts=self._drafts, run=self._run, offer=self._offer,
        )  # fmt: skip
        self.attachments = FileAttachments(self._shared, self._drafts, run=self._run)

    async def remove_unfinished_submissions(self) -> int:
        """Remove submissions that a crash interrupted before their 202. Return their number.

        Only the API role calls it, at its start.
        """
        return await self._run(self._stale_files.remove_unfinished)

    async def keep_anchor(self) -> None:
        """Write the clock anchor, from which the next start continues. Raises StoreError."""
        await self._run(self._write_anchor)

    def _write_anchor(self) -> None:
        submissions = self._shared.submissions
        ClockAnchorFile(submissions.preparing.parent).write(self._shared.clock.anchor())

    def close(self) -> None:
        """End the threads after their current work."""
        for pool in (self._queries, self._actions):
            pool.close()
        self._index.close()

    # -- steps 1 and 2

    async def create_draft(
        self, account: str, content: MessageProperties | bytes, *, folder_id: str = "drafts"
    ) -> StoredMessage:
        """Write a draft."""
        return await self._run(self._drafts.create, account, content, folder_id)

    async def submit_new(
        self, account: str, content: MessageProperties | bytes, options: SendOptions
    ) -> PendingSubmission:
        """Write a draft and submit it."""
        return await self._submitted(self._writer.submit_new, account, content, options)

    async def submit_draft(
        self,
        account: str,
        message_id: str,
        options: SendOptions,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> PendingSubmission:
        """Submit an existing draft."""
        submit = self._writer.submit_draft
        return await self._submitted(submit, account, message_id, options, condition=condition)

    # -- reading and changing

    async def get(self, account: str, message_id: str, *, folder_id: str = "") -> StoredMessage:
        """One message."""
        return await self._run(self._drafts.get, account, message_id, folder_id)

    async def query_messages(self, account: str, query: MessageQuery) -> Page:
        """A page of messages."""
        limit = QueryTimeLimit(self._shared.clock)
        try:
            return await self._run_query(account, self._drafts.query, account, query, limit)
        finally:
            limit.stop()

    async def changes(self, account: str, *, after: str = "", limit: int = 1000) -> ChangePage:
        """The changes after a position of the change feed."""
        return await self._run_query(account, self._changes, account, after=after, limit=limit)

    async def update(
        self,
        account: str,
        message_id: str,
        change: MessageChange,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Change a message."""
        return await self._run(
            self._drafts.update, account, message_id, change, condition=condition
        )

    async def delete(
        self, account: str, message_id: str, *, condition: Precondition = NO_PRECONDITION
    ) -> None:
        """Move to Deleted Items, or remove from there."""
        await self._run(self._moving.delete, account, message_id, condition=condition)

    async def move_message(
        self,
        account: str,
        message_id: str,
        destination_id: str,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Move a message to another folder."""
        return await self._run(
            self._moving.move, account, message_id, destination_id, condition=condition
        )

    async def copy_message(
        self,
        account: str,
        message_id: str,
        destination_id: str,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Copy a message to a folder."""
        return await self._run(
            self._moving.copy, account, message_id, destination_id, condition=condition
        )

    async def remove_message(
        self, account: str, message_id: str, *, condition: Precondition = NO_PRECONDITION
    ) -> None:
        """Remove a message for good."""
        await self._run(
            self._moving.delete, account, message_id, condition=condition, permanently=True
        )

    async def mime(self, account: str, message_id: str) -> Content:
        """A message as MIME."""
        return await self._run(self._drafts.mime, account, message_id)

    # -- folders

    async def list_folders(self, account: str) -> Sequence[Folder]:
        """Every folder with its counts."""
        return await self._run(self._list_folders, account)

    async def get_folder(self, account: str, folder_id: str) -> Folder:
        """One folder with its counts."""
        return await self._run(self._get_folder, account, folder_id)

    async def create_folder(self, account: str, name: str, *, parent_id: str = "") -> Folder:
        """Create a folder."""
        return await self._run(self._tree.create, account, name, parent_id)

    async def rename_folder(self, account: str, folder_id: str, name: str) -> Folder:
        """Rename a folder."""
        folder = await self._run(self._tree.rename, account, folder_id, name)
        return await self.get_folder(account, folder.id)

    async def move_folder(self, account: str, folder_id: str, *, parent_id: str) -> Folder:
        """Move a folder into another one."""
        folder = await self._run(self._tree.move, account, folder_id, parent_id)
        return await self.get_folder(account, folder.id)

    async def delete_folder(
        self, account: str, folder_id: str, *, permanently: bool = False
    ) -> None:
        """Move a folder to Deleted Items, or remove it."""
        await self._run(self._tree.delete, account, folder_id, permanently=permanently)

    # -- pickup

    async def submissions(self) -> AsyncGenerator[PendingSubmission, None]:
        """Submissions in ready/, without end; scheduled sends at their time."""
        timer = asyncio.create_task(self._timer.run(), name="scheduled-sends")
        try:
            async for submission in self._pending.submissions():
                yield submission
        finally:
            timer.cancel()

    @property
    def scheduled_count(self) -> int:
        """The approximate number of scheduled sends."""
        return self._timer.count

    async def turn(self, submission: PendingSubmission) -> None:
        """Wait until the throttle lets pickup start a submission."""
        await self._throttle.turn((self._shared.clock.queue_us() - submission.ready_us) / 1_000_000)

    async def submission_content(self, submission: PendingSubmission) -> Octets:
        """The content of a submission."""
        try:
            return await self._run(self._submission_content, submission)
        except NoSuchItemError:  # listed just before it was removed
            self._pending.done(submission)
            raise

    def retry_submission(self, submission: PendingSubmission, delay_s: float) -> None:
        """Hand a submission out again later."""
        self._pending.retry(submission, delay_s)

    async def complete_submission(self, submission: PendingSubmission, *, queue_id: str) -> None:
        """Step 4: file the original."""
        await self._run(self._writer.complete_submission, submission, queue_id=queue_id)
        self._pending.done(submission)

    async def fail_submission(
        self,
        submission: PendingSubmission,
        report: bytes | None,
        *,
        report_to: str = "",
        to_corrupt: bool = False,
    ) -> None:
        """Deliver a report and remove the submission."""
        await self._run(
            self._writer.fail_submission,
            submission,
            report,
            report_to=report_to,
            to_corrupt=to_corrupt,
        )
        self._pending.done(submission)

    # -- step 6

    async def room(self, account: str, size: int) -> Room:
        """Whether `size` bytes fit under the quota."""
        if not self._shared.quota.is_limited(account):
            return Room.FITS
        return await self._run(self._room, account, size)

    async def deliver(
        self, account: str, *, unique: str, content: Content,
        over_quota: bool = False, is_repeat: bool = False,
    ) -> DeliveryResult:  # fmt: skip
        """Put a message into the Inbox, once."""
        return await self._run(
            self._inbox.deliver, account, unique=unique, content=content, over_quota=over_quota,
            is_repeat=is_repeat,
        )  # fmt: skip

    # -- in a thread

    async def _submitted(
        self,
        submit: Callable[_Parameters, PendingSubmission],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> PendingSubmission:
        """Submit, then offer the submission to pickup without delaying the response.

        If the caller is cancelled, pickup finds the submission when it lists ready/.
        """
        with self._throttle.submission():
            submission = await self._run(submit, *args, **kwargs)
        self._offer(submission)
        return submission

    def _offer(self, submission: PendingSubmission) -> None:
        if submission.options.scheduled_us:
            self._timer.add(submission)
        else:
            self._pending.offer(submission)

    def _submission_content(self, submission: PendingSubmission) -> Octets:
        with self._shared.stripes.of(submission.draft_id):  # submit may still fail and remove it
            return content_of(submission)

    def _list_folders(self, account: str) -> list[Folder]:
        return self._counted(account, self._tree.every(account))

    def _get_folder(self, account: str, folder_id: str) -> Folder:
        folder = self._tree.find(account, folder_id)
        return folder if folder.id == ROOT_ID else self._counted(account, [folder])[0]

    def _counted(self, account: str, folders: Sequence[Folder]) -> list[Folder]:
        counts = {one.id: one for one in self._index.folders(self._directory_of(account))}
        pairs = ((folder, counts.get(folder.id, folder)) for folder in folders)
        return [
            replace(folder, total=one.total, unread=one.unread, size_bytes=one.size_bytes)
            for folder, one in pairs
        ]

    def _changes(self, account: str, *, after: str, limit: int) -> ChangePage:
        return self._index.changes(self._shared.folders.mailbox(account), after, limit)

    def _room(self, account: str, size_bytes: int) -> Room:
        return self._shared.quota.room(account, self._directory_of(account), size_bytes)

    async def _changed_ns(self) -> int:
        return await self._run(self._shared.submissions.changed_ns)

    async def _scheduled_changed_ns(self) -> int:
        return await self._run(self._shared.submissions.scheduled_changed_ns)

    async def _list_scheduled(self) -> list[tuple[int, str]]:
        return await self._run(self._shared.submissions.list_scheduled)

    async def _make_due_ready(self, names: Sequence[str]) -> DueSubmissions:
        return await self._run(self._shared.scheduled.make_due_ready, names)

    async def _list_ready(self, known: frozenset[str], limit: int) -> list[PendingSubmission]:
        return await self._run(self._shared.submissions.list_ready, known, limit)

    async def _run(
        self,
        function: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Call in a thread of the store. OSError becomes StoreUnavailableError."""
        return await self._run_in(self._actions, function, *args, **kwargs)

    async def _run_query(
        self,
        account: str,
        function: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Do the same for slow queries, in threads of their own so that no change waits for them.

        Each account has a share of the threads.
        """
        return await self._shares.run(
            account, lambda: self._run_in(self._queries, function, *args, **kwargs)
        )

    async def _run_in(
        self,
        pool: ThreadPool,
        function: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        def call() -> _Result:
            SYNC_FAILURES.begin()
            with storage_errors():
                return function(*args, **kwargs)

        return await pool.run(call)
