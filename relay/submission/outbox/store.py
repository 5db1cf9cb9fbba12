"""FileStore: all mailboxes under one root, over Maildir++ directories.

The app creates one. Graph uses its parts `messages`, `lists`, `folders`, `attachments`, `uploads`,
`arrivals`, `settings` and `submissions`; pickup uses `ready`; ingress and delivery use the store
itself. Each coroutine runs its blocking work in a thread of the store, and its results are durable
when it returns. It raises only StoreError's children; errors of the disk become
StoreUnavailableError. docs/design.md 3.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from relay.base.accounts.account import DEAD_LETTER
from relay.base.clock import Clock, Ids
from relay.base.crashpoints import CrashPoints
from relay.store.journeys.submission_log import SubmissionLog
from relay.store.mailbox.attachments import Attachments
from relay.store.mailbox.draft_files import NewNames
from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.folder_tree import FolderTree
from relay.store.mailbox.folders import Folders
from relay.store.mailbox.inbox import Inbox
from relay.store.mailbox.index.indexes import Indexes
from relay.store.mailbox.mail_root import SUBMISSIONS, MailRoot
from relay.store.mailbox.mailbox_list import remove_files, stored_files, without_messages
from relay.store.mailbox.maildir import DirectorySync, Stripes, keeps_order, list_names
from relay.store.mailbox.message_file import mailbox_directory
from relay.store.mailbox.message_lists import MessageLists
from relay.store.mailbox.messages import Messages
from relay.store.mailbox.old_files import OldFiles
from relay.store.mailbox.owed_copies import OwedCopies
from relay.store.mailbox.quota import Quota
from relay.store.mailbox.settings_file import SettingsFiles
from relay.store.mailbox.threads import AccountQueues, ThreadPool
from relay.store.mailbox.usage import QuotaLimits, Room
from relay.submission.outbox.arrivals import Arrivals
from relay.submission.outbox.idempotency import KeyedSubmissions
from relay.submission.outbox.on_disk import ClockAnchorFile, SubmissionDirectory
from relay.submission.outbox.ready_submissions import ReadySubmissions
from relay.submission.outbox.restored import RestoredSubmissions
from relay.submission.outbox.scheduled import ScheduledSends
from relay.submission.outbox.submit import Submissions
from relay.submission.outbox.unfinished import UnfinishedSubmissions
from relay.submission.outbox.upload_sessions import Uploads

_THREADS = 16  # they share fsyncs: more threads, fewer fsyncs per message
_QUERY_THREADS = 4
_FOLDER_THREADS = 4  # copying or removing a folder of many messages takes long


class FileStore:
    """The mail store, with a part for each kind of work. A DeliveryStore."""

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
        self._root, self._clock, self._log = root, clock, log
        pool = partial(ThreadPool, check_root=root.check, on_failure=root.note_failure)
        self._threads = pool(_THREADS, "mailbox")
        self._query_threads = pool(_QUERY_THREADS, "mailbox-query")
        self._folder_threads = pool(_FOLDER_THREADS, "mailbox-folders")
        self._syncs = syncs = DirectorySync()
        self._folders = Folders(directory_of, syncs)
        self._index = Indexes(clock)
        self._quota = Quota(limits_of, self._index)
        self._old_files = OldFiles(clock=clock, index=self._index)
        self._directory = SubmissionDirectory(root.path / SUBMISSIONS, syncs)
        self.keys = KeyedSubmissions(root.path / SUBMISSIONS, clock, syncs)
        part: dict[str, Any] = {
            "threads": self._threads,
            "clock": clock,
            "crash": crash,
            "root": root,
            "folders": self._folders,
            "index": self._index,
            "quota": self._quota,
            "names": NewNames(clock, ids, hostname),
            "stripes": Stripes(),
            "syncs": syncs,
            "old_files": self._old_files,
        }
        outbox_part = {**part, "directory": self._directory, "log": log}
        self._scheduled = ScheduledSends(
            **outbox_part,
            on_scheduled=lambda submission: self.ready.offer(submission),  # noqa: PLW0108 - it is made later
        )
        # the message files, for the retention of the development relay
        self.stored_files = self._threads.in_thread(partial(stored_files, root.path))
        self.remove_files = self._threads.in_thread(remove_files)
        # the Maildir of an address, which is made: for programs that a development relay starts
        self.open_mailbox = self._threads.in_thread(self._folders.mailbox)
        self._open_mailboxes(part)
        self._open_submissions(outbox_part)

    def _open_mailboxes(self, part: dict[str, Any]) -> None:
        queries = AccountQueues(self._query_threads)
        self._inbox = Inbox(**part)
        self.deliver = self._threads.in_thread(self._inbox.deliver)  # step 6
        self.settings = SettingsFiles(**part)
        self.messages = Messages(**part, scheduled=self._scheduled)
        self.lists = MessageLists(**part, queries=queries)
        self.folders = FolderTree(**part, changes=AccountQueues(self._folder_threads))
        self.attachments = Attachments(**part, messages=self.messages)
        self.owed_copies = OwedCopies(**part)

    def _open_submissions(self, part: dict[str, Any]) -> None:
        self._unfinished = UnfinishedSubmissions(**part, keyed=self.keys, scheduled=self._scheduled)
        self.uploads = Uploads(**part, attachments=self.attachments)
        self.ready = ReadySubmissions(**part, scheduled=self._scheduled, inbox=self._inbox)
        self.submissions = Submissions(
            **part,
            ready=self.ready,
            scheduled=self._scheduled,
            keyed=self.keys,
            unfinished=self._unfinished,
        )
        self.restored = RestoredSubmissions(
            directory=self._directory, clock=self._clock, log=self._log
        )
        self.arrivals = Arrivals(**part, submissions=self.submissions, messages=self.messages)

    def close(self) -> None:
        """End the threads after their current work."""
        self._index.stop()
        for pool in (self._query_threads, self._folder_threads, self._threads):
            pool.close()
        self._index.close()

    async def room(self, account: str, size: int) -> Room:
        """Whether `size` bytes fit under the quota.

        If the quota cannot be read now, mail is accepted and waits: delivery checks again.
        """
        if not self._quota.is_limited(account):
            return Room.FITS
        try:
            mailbox = self._folders.directory(account)
            return await self._threads.run(self._quota.room, account, mailbox, size)
        except StoreUnavailableError:
            return Room.FITS

    # -- the mail root

    async def keep_anchor(self) -> None:
        """Write the anchor of the clock, for the next start."""
        anchor_file = ClockAnchorFile(self._root.path / SUBMISSIONS)
        await self._threads.run(lambda: anchor_file.write(self._clock.anchor()))

    async def attend_root(self) -> None:
        """Detect that the mail root is missing or refuses writes, and that it is back.

        Finish or remove submissions that a failing disk has interrupted; if there are none, remove
        expired records of keys. Called each second. Raises StoreUnavailableError, and the errors of
        taking the lock of the root.
        """
        if not await asyncio.to_thread(self._root.attend):
            try:
                await self._threads.run_alone(self._reopen)
            finally:
                self.ready.pending.list_again()
        elif self._directory.is_unfinished:
            await self._threads.run_alone(self._remove_unfinished)
        elif self.keys.has_expired:
            await self._threads.run(self.keys.remove_expired)

    async def clear(self, trash: Path) -> int:
        """Remove all mailboxes, submissions, upload sessions and the submission log.

        Return the number of submissions. The mailboxes are moved into `trash`, which must be on the
        same file system. No other call may run meanwhile. For tests and development only.
        """
        removed = await self._threads.run_alone(lambda: self._clear(trash))
        self.ready.clear()
        return removed

    async def remove_empty_mailboxes(self, is_kept: Callable[[str], bool]) -> None:
        """Remove mailboxes without messages, own folders and settings, and what is remembered of
        them.

        `is_kept` says of an address, in a thread, whether its mailbox stays. No delivery or other
        change runs during a removal: it finds the mailbox, or makes it. A mailbox stays for the
        next time if queries or changes of folders run.
        """
        root, others = self._root.path, (self._folder_threads, self._query_threads)
        for address, mailbox in await self._threads.run(lambda: list(without_messages(root))):
            if not is_kept(address) and all(pool.is_empty for pool in others):
                remove = partial(self._remove_empty, address, mailbox, is_kept)
                async with others[0].emptied(), others[1].emptied():
                    await self._threads.run_alone(remove)

    # -- in a thread

    def _remove_empty(self, address: str, mailbox: Path, is_kept: Callable[[str], bool]) -> None:
        if not is_kept(address) and self._old_files.remove_empty(mailbox):
            self._folders.known.pop(address, None)

    def _clear(self, trash: Path) -> int:
        removed = self._directory.clear()
        self.keys.clear()
        self.uploads.clear()
        self._log.clear()
        self._index.forget()
        trash.mkdir(mode=0o700, exist_ok=True)
        domains = [
            self._root.path / name for name in list_names(self._root.path) if name[:1] != "."
        ]
        for number, directory in enumerate([*domains, self._folders.directory(DEAD_LETTER)]):
            with suppress(FileNotFoundError):
                directory.rename(trash / str(number))
        return removed

    def _reopen(self) -> None:
        """Use the root again without cached state, because it may have been restored."""
        self._index.forget()
        self._folders.known.clear()
        self.keys.forget()
        self._log.close()
        self._directory.forget()
        keeps_order.cache_clear()
        if self._root.reopen():  # requests that were in progress got no 202
            self._unfinished.remove_unfinished()

    def _remove_unfinished(self) -> None:
        self._root.check()
        self._unfinished.remove_unfinished()
