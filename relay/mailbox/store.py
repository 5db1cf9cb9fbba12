"""FileStore: the protocols of api.py over Maildir++ directories.

app creates one; graph, pickup, ingress and delivery use it. Each call runs its blocking work in one
thread of the store, and its results are durable when it returns. Calls raise only StoreError's
children; errors of the disk become StoreUnavailableError. Calls that have no other work are set in
_bind_calls(). docs/design.md 3.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from relay.accounts.account import DEAD_LETTER
from relay.clock import Clock, Ids
from relay.crashpoints import CrashPoints
from relay.journeys.submission_log import SubmissionLog
from relay.mailbox.arrivals import Arrivals
from relay.mailbox.dependencies import StoreDependencies
from relay.mailbox.folder_copy import FolderCopier
from relay.mailbox.folder_tree import FolderTree
from relay.mailbox.folders import ROOT_ID, Folders
from relay.mailbox.inbox import Inbox
from relay.mailbox.index import IndexBuilder, Indexes
from relay.mailbox.mail_root import SUBMISSIONS, MailRoot
from relay.mailbox.maildir import DirectorySync, Stripes, keeps_order, list_names
from relay.mailbox.message_file import mailbox_directory
from relay.mailbox.messages import Messages
from relay.mailbox.moving import MessageMover
from relay.mailbox.query import DeltaQuery, MessageQuery
from relay.mailbox.quota import Quota
from relay.mailbox.settings_file import SettingsFiles
from relay.mailbox.stale_files import StaleFiles
from relay.mailbox.stored_files import remove_files, stored_files
from relay.mailbox.submissions import SubmissionDirectory, content_of
from relay.mailbox.submissions.idempotency import KeyedSubmissions
from relay.mailbox.submissions.on_disk import ClockAnchorFile
from relay.mailbox.submissions.pending import PendingSubmissions, RushMeter
from relay.mailbox.submissions.scheduled import ScheduledDirectory, ScheduledSends, ScheduleTimer
from relay.mailbox.submit import SubmissionWriter
from relay.mailbox.threads import AccountQueues, QueryTimeLimit, ThreadPool
from relay.mailbox.types import (
    NO_PRECONDITION,
    ChangePage,
    DeliveryResult,
    DeltaPage,
    Folder,
    FolderDeltaPage,
    KeyedSubmission,
    NoSuchItemError,
    Page,
    PendingSubmission,
    Precondition,
    QuotaLimits,
    Room,
    StoreUnavailableError,
)
from relay.mailbox.upload_sessions import AttachmentStore
from relay.message.content import Content, Octets

_THREADS = 16  # they share fsyncs: more threads, fewer fsyncs per message
_QUERY_THREADS = 4
_FOLDER_THREADS = 4  # a folder of many messages takes long to copy or remove
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class FileStore:
    """A MailStore, a SubmissionStore and a DeliveryStore: api.py specifies the methods."""

    def __init__(
        self,
        root: MailRoot,
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
            return dead_letter if account == DEAD_LETTER else mailbox_directory(root.path, account)

        clock.resume(ClockAnchorFile(root.path / SUBMISSIONS).read())
        self._directory_of, self._root, self._log = directory_of, root, log
        folders, stripes, syncs = Folders(directory_of), Stripes(), DirectorySync()
        self._index = Indexes(clock)
        submissions = SubmissionDirectory(root.path / SUBMISSIONS, syncs)
        scheduled = ScheduledSends(
            submissions, folders=folders, stripes=stripes, clock=clock, crash=crash, log=log,
            on_scheduled=self._offer,
        )  # fmt: skip
        self._shared = StoreDependencies(
            clock=clock, ids=ids, crash=crash, hostname=hostname, root=root, folders=folders,
            index=self._index, quota=Quota(limits_of, self._index), submissions=submissions,
            syncs=syncs, stripes=stripes, scheduled=scheduled,
            keyed=KeyedSubmissions(root.path, clock),
        )  # fmt: skip
        self._stale_files = StaleFiles(self._shared, log)
        self._inbox = Inbox(self._shared, self._stale_files)
        self._messages = Messages(self._shared, self._stale_files)
        self._moving = MessageMover(self._shared, self._stale_files)
        self._tree = FolderTree(folders, ids)
        self._writer = SubmissionWriter(self._shared, self._inbox, self._stale_files, log=log)
        self._start_pools(root)
        in_thread = self._actions.in_thread
        self._pending = PendingSubmissions(
            in_thread(submissions.changed_ns), in_thread(submissions.list_ready), clock=clock
        )
        self._timer = ScheduleTimer(
            ScheduledDirectory(
                in_thread(submissions.scheduled_changed_ns),
                in_thread(submissions.list_scheduled),
                in_thread(scheduled.make_due_ready),
            ),
            clock=clock,
            on_ready=self._pending.offer,
        )
        self.arrivals = Arrivals(
            self._shared, self._stale_files, writer=self._writer,
            messages=self._messages, threads=self._actions, offer=self._offer,
        )  # fmt: skip
        self.attachments = AttachmentStore(self._shared, self._messages, threads=self._actions)
        self._bind_calls(root)

    def _start_pools(self, root: MailRoot) -> None:
        pool = partial(ThreadPool, check_root=root.check, on_failure=root.note_failure)
        self._actions = pool(_THREADS, "mailbox")
        self._queries = pool(_QUERY_THREADS, "mailbox-query")
        self._folder_changes = pool(_FOLDER_THREADS, "mailbox-folders")

    def _bind_calls(self, root: MailRoot) -> None:
        """Set the calls that only run in a thread, and those of other objects."""
        in_thread = self._actions.in_thread
        self._shares, self._rush = AccountQueues(), RushMeter(self._shared.clock)
        builder = IndexBuilder(root, self._index, clock=self._shared.clock, may_work=self._is_idle)
        self._builder, self.build_indexes = builder, builder.run
        self.remove_unfinished_submissions = in_thread(self._stale_files.remove_unfinished)
        self.keep_anchor = in_thread(self._write_anchor)
        self.settle_keys = in_thread(self._settle_keys)
        self.create_draft = in_thread(self._messages.create)
        self.submit_new = self._submitting(self._writer.submit_new)
        self.submit_draft = self._submitting(self._writer.submit_draft)
        self.stored_files = in_thread(partial(stored_files, root.path))
        self.remove_files = in_thread(remove_files)
        self.find_keyed = in_thread(self._find_keyed)
        self.get = in_thread(self._messages.get)
        self.read_flags = in_thread(self._read_flags)
        self.update = in_thread(self._messages.update)
        self.mime = in_thread(self._messages.mime)
        self.delete = in_thread(self._moving.delete)
        self.move_message = in_thread(self._moving.move)
        self.copy_message = in_thread(self._moving.copy)
        self.list_folders = in_thread(self._list_folders)
        self.get_folder = in_thread(self._get_folder)
        self._copier = FolderCopier(self._shared, self._tree, self._stale_files)
        self._folder_shares = AccountQueues()
        settings = SettingsFiles(self._shared.folders, self._shared.stripes)
        self.mailbox_settings = in_thread(settings.read)
        self.write_mailbox_settings = in_thread(settings.write)
        self.is_rush = self._rush.is_rush
        self.take_submission = self._pending.take
        self.retry_submission = self._pending.retry

    def close(self) -> None:
        """End the threads after their current work."""
        self._index.stop()
        for one in (self._builder, self._queries, self._folder_changes, self._actions):
            one.close()
        self._index.close()
        self._shared.keyed.close()

    # -- reading and changing

    async def query_messages(self, account: str, query: MessageQuery) -> Page:
        """A page of messages."""
        limit = QueryTimeLimit(self._shared.clock)
        try:
            return await self._shares.run(
                account, lambda: self._queries.run(self._messages.query, account, query, limit)
            )
        finally:
            limit.stop()

    async def message_delta(self, account: str, query: DeltaQuery) -> DeltaPage:
        """What changed in a folder."""
        limit = QueryTimeLimit(self._shared.clock)
        try:
            return await self._shares.run(
                account, lambda: self._queries.run(self._messages.delta, account, query, limit)
            )
        finally:
            limit.stop()

    async def changes(self, account: str, *, after: str = "", limit: int = 1000) -> ChangePage:
        """The changes after a position of the change feed."""
        return await self._shares.run(
            account, lambda: self._queries.run(self._changes, account, after, limit)
        )

    async def remove_message(
        self, account: str, message_id: str, *, condition: Precondition = NO_PRECONDITION
    ) -> None:
        """Remove a message for good."""
        await self.delete(account, message_id, condition=condition, permanently=True)

    async def folder_delta(self, account: str, *, after: str, limit: int) -> FolderDeltaPage:
        """The folders that changed after a position."""
        return await self._shares.run(
            account, lambda: self._queries.run(self._folder_delta, account, after, limit)
        )

    async def create_folder(self, account: str, name: str, *, parent_id: str = "") -> Folder:
        """Create a folder."""
        return await self._change_folders(
            account, lambda: self._tree.create(account, name, parent_id=parent_id)
        )

    async def rename_folder(self, account: str, folder_id: str, name: str) -> Folder:
        """Rename a folder."""
        folder = await self._change_folders(
            account, lambda: self._tree.rename(account, folder_id, name)
        )
        return await self.get_folder(account, folder.id)

    async def move_folder(self, account: str, folder_id: str, *, parent_id: str) -> Folder:
        """Move a folder into another one."""
        folder = await self._change_folders(
            account, lambda: self._tree.move(account, folder_id, parent_id)
        )
        return await self.get_folder(account, folder.id)

    async def copy_folder(self, account: str, folder_id: str, *, parent_id: str) -> Folder:
        """Copy a folder with its subfolders and messages."""
        folder = await self._change_folders(
            account, lambda: self._copier.copy(account, folder_id, parent_id=parent_id)
        )
        return await self.get_folder(account, folder.id)

    async def delete_folder(
        self, account: str, folder_id: str, *, permanently: bool = False
    ) -> None:
        """Move a folder to Deleted Items, or remove it."""
        await self._change_folders(
            account, lambda: self._tree.delete(account, folder_id, permanently=permanently)
        )

    async def _change_folders(self, account: str, change: Callable[[], _Result]) -> _Result:
        """Change folders, a few at a time, so that mail does not wait for it."""
        return await self._folder_shares.run(account, lambda: self._folder_changes.run(change))

    # -- pickup

    async def watch_submissions(self, on_ready: Callable[[], None]) -> None:
        """Find submissions in ready/, and make scheduled sends ready at their time."""
        timer = asyncio.create_task(self._timer.run(), name="scheduled-sends")
        try:
            await self._pending.watch(on_ready)
        finally:
            timer.cancel()

    @property
    def pending_count(self) -> int:
        """The number of submissions in pickup's memory."""
        return len(self._pending)

    @property
    def due_count(self) -> int:
        """The number of submissions that wait for no later time, scheduled sends included."""
        return self._pending.due_count + self._timer.is_busy

    @property
    def keys(self) -> KeyedSubmissions:
        """The records of keys."""
        return self._shared.keyed

    @property
    def scheduled_count(self) -> int:
        """The approximate number of scheduled sends."""
        return self._timer.count

    async def submission_content(self, submission: PendingSubmission) -> Octets:
        """The content of a submission."""
        try:
            return await self._actions.run(self._submission_content, submission)
        except NoSuchItemError:  # listed just before it was removed
            self._pending.done(submission)
            raise

    async def complete_submission(self, submission: PendingSubmission, *, queue_id: str) -> None:
        """Step 4: file the original."""
        await self._actions.run(self._writer.complete_submission, submission, queue_id=queue_id)
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
        await self._actions.run(
            self._writer.fail_submission,
            submission,
            report,
            report_to=report_to,
            to_corrupt=to_corrupt,
        )
        self._pending.done(submission)

    # -- step 6

    async def room(self, account: str, size: int) -> Room:
        """Whether `size` bytes fit under the quota. If that cannot be read now, mail is taken and
        waits: its delivery checks again.
        """
        if not self._shared.quota.is_limited(account):
            return Room.FITS
        quota, mailbox = self._shared.quota, self._directory_of(account)
        try:
            return await self._actions.run(quota.room, account, mailbox, size)
        except StoreUnavailableError:
            return Room.FITS

    async def deliver(
        self,
        account: str,
        *,
        unique: str,
        content: Content,
        over_quota: bool = False,
        is_repeat: bool = False,
    ) -> DeliveryResult:
        """Deliver a message to the Inbox."""
        result = await self._actions.run(
            self._inbox.deliver,
            account,
            unique=unique,
            content=content,
            over_quota=over_quota,
            is_repeat=is_repeat,
        )
        self._builder.note_delivery(self._directory_of(account))
        return result

    # -- the mail root

    async def attend_root(self) -> None:
        """Notice that the mail root is missing, or refuses all writes, and when it is back.

        Repeat the removal of unfinished submissions if it has failed. Called each second. Raises
        what taking its lock raises, and StoreUnavailableError.
        """
        if not await asyncio.to_thread(self._root.is_there):
            try:
                await self._actions.run_alone(self._reopen)
            finally:
                self._pending.list_again()
        elif self._stale_files.is_due:
            await self._actions.run_alone(self._remove_unfinished)
        await asyncio.to_thread(self._root.probe)

    async def clear(self, trash: Path) -> int:
        """Remove all mailboxes, submissions and upload sessions, and the submission log; return the
        number of submissions. The mailboxes are moved into `trash`, on the same file system.

        No other call runs meanwhile. For tests and development only.
        """
        removed = await self._actions.run_alone(lambda: self._clear(trash))
        self._pending.clear()
        self._timer.clear()
        return removed

    def _is_idle(self) -> bool:
        return all(one.is_idle for one in (self._actions, self._queries, self._folder_changes))

    def _submitting(
        self, submit: Callable[_Parameters, PendingSubmission]
    ) -> Callable[_Parameters, Coroutine[Any, Any, PendingSubmission]]:
        """Return a function that submits, then offers the submission to pickup.

        The offer does not delay the response. If the caller is cancelled, pickup finds the
        submission when it lists ready/.
        """

        async def submitted(
            *args: _Parameters.args, **kwargs: _Parameters.kwargs
        ) -> PendingSubmission:
            with self._rush.submission():
                submission = await self._actions.run(submit, *args, **kwargs)
            self._offer(submission)
            return submission

        return submitted

    def _offer(self, submission: PendingSubmission) -> None:
        if submission.options.scheduled_us:
            self._timer.add(submission)
        else:
            self._pending.offer(submission)

    # -- in a thread

    def _read_flags(self, account: str, message_ids: Sequence[str]) -> Mapping[str, bool]:
        mailbox = self._shared.folders.mailbox(account)
        return self._index.read_flags(mailbox, message_ids) if mailbox.is_dir() else {}

    def _clear(self, trash: Path) -> int:
        removed = self._shared.submissions.clear()
        self._shared.keyed.clear()
        self.attachments.clear()
        self._log.clear()
        self._index.forget()
        trash.mkdir(mode=0o700, exist_ok=True)
        domains = [
            self._root.path / name for name in list_names(self._root.path) if name[:1] != "."
        ]
        for number, directory in enumerate([*domains, self._directory_of(DEAD_LETTER)]):
            with suppress(FileNotFoundError):
                directory.rename(trash / str(number))
        return removed

    def _reopen(self) -> None:
        """Use the root again, without what is remembered of it: it may have been restored."""
        self._index.forget()
        self._shared.keyed.abandon()
        self._log.close()
        self._inbox.forget()
        self._shared.submissions.forget()
        keeps_order.cache_clear()
        if self._root.reopen():  # requests that were in progress got no 202
            self._stale_files.remove_unfinished()

    def _remove_unfinished(self) -> None:
        self._root.check()
        self._stale_files.remove_unfinished()

    def _find_keyed(self, account: str, slot: bytes) -> KeyedSubmission | None:
        if self._stale_files.is_due:
            raise StoreUnavailableError(
                "Interrupted submissions are not finished yet: repeat the request later."
            )
        return self._shared.keyed.find(account, slot)

    def _write_anchor(self) -> None:
        submissions = self._shared.submissions
        ClockAnchorFile(submissions.preparing.parent).write(self._shared.clock.anchor())

    def _submission_content(self, submission: PendingSubmission) -> Octets:
        with self._shared.stripes.of(submission.draft_id):  # submit may still fail and remove it
            self._shared.keyed.begin_pickup(submission.submission_id)
            try:
                return content_of(submission)
            except NoSuchItemError:
                self._shared.keyed.end_pickup(submission.submission_id)
                self._root.check()  # else it may only be out of sight
                raise

    def _settle_keys(self) -> None:
        self._stale_files.settle_keys(self._offer)

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

    def _folder_delta(self, account: str, after: str, limit: int) -> FolderDeltaPage:
        self._tree.every(account)  # stores the ids that are derived from names
        return self._index.folder_delta(self._directory_of(account), after, limit)

    def _changes(self, account: str, after: str, limit: int) -> ChangePage:
        return self._index.changes(self._shared.folders.mailbox(account), after, limit)
