"""The submissions that are ready: hand them out to pickup, and end them (steps 2 to 4).

The order of renames and fsyncs is that of docs/flow.md, and each has a crash point. After a
crash at any of them the step is repeated.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from relay.base.clock import rfc3339
from relay.base.crashpoints import CrashPoint
from relay.base.message.content import MemoryOctets, Octets
from relay.store.journeys.details import AcceptedDetail, NotifiedDetail
from relay.store.journeys.events import Event
from relay.store.journeys.submission_log import SubmissionFacts
from relay.store.mailbox.errors import NoSuchItemError, StoreUnavailableError
from relay.store.mailbox.folders import drafts_directory, find_folder, well_known_path
from relay.store.mailbox.inbox import Inbox
from relay.store.mailbox.maildir import in_order_with, place, remove, retry_if_renamed
from relay.store.mailbox.message_file import DRAFT, NEW_DRAFT, SEEN, parse_name, with_flags
from relay.store.mailbox.pending_submission import PendingSubmission
from relay.store.mailbox.store_part import in_thread
from relay.store.mailbox.stored_message import WellKnown
from relay.store.spool.queue_commands import Operation
from relay.submission.outbox import on_disk
from relay.submission.outbox.pending import PendingSubmissions, RushMeter
from relay.submission.outbox.scheduled import ScheduledSends, ScheduleTimer

_REMOVALS = 3


@dataclass(kw_only=True, eq=False, repr=False)
class ReadySubmissions(on_disk.OutboxPart):
    """`pending` hands submissions out, `timer` makes the scheduled ones ready at their time."""

    scheduled: ScheduledSends  # a change of a draft cancels or changes them
    inbox: Inbox  # takes the reports of step 3

    def __post_init__(self) -> None:
        in_threads = self.threads.in_thread
        self.rush = RushMeter(self.clock)
        self.pending = PendingSubmissions(
            in_threads(self.directory.changed_ns),
            in_threads(self.directory.list_ready),
            clock=self.clock,
        )
        self.timer = ScheduleTimer(
            changed_ns=in_threads(self.directory.scheduled_changed_ns),
            listed=in_threads(self.directory.list_scheduled),
            make_due_ready=in_threads(self.scheduled.make_due_ready),
            clock=self.clock,
            on_ready=self.pending.offer,
        )

    @property
    def due_count(self) -> int:
        """The number of submissions in progress or that may start now."""
        return self.pending.due_count + self.timer.is_busy

    async def watch(self, on_ready: Callable[[], None]) -> None:
        """Find submissions in ready/, and make scheduled sends ready when due, until cancelled.

        `on_ready` is called on the event loop when `pending` may hand out another submission.
        """
        timer = asyncio.create_task(self.timer.run(), name="scheduled-sends")
        try:
            await self.pending.watch(on_ready)
        finally:
            timer.cancel()

    def offer(self, submission: PendingSubmission) -> None:
        """Add a new submission, from any thread."""
        if submission.options.scheduled_us:
            self.timer.add(submission)
        else:
            self.pending.offer(submission)

    def clear(self) -> None:
        """Forget all submissions: the directory was emptied."""
        self.pending.clear()
        self.timer.clear()

    @in_thread
    def send_scheduled_now(self, submission_id: str, *, who: str) -> bool:
        """Make a scheduled send ready now, durably; False if it is not waiting for its time.

        Raises StoreUnavailableError.
        """
        path = self._scheduled_path(submission_id)
        if path is None:
            return False
        due = self.scheduled.make_due_ready([path.name])
        if due.kept:
            raise StoreUnavailableError("The scheduled send cannot be read; it stays as it is.")
        for submission in due.submissions:
            sent_now = NotifiedDetail(sent_now=rfc3339(self.clock.time_us()), who=who)
            self.log.remark(submission_id, sent_now, account=submission.account)
            self.pending.offer(submission)
        return bool(due.submissions)

    async def hold(self, submission: PendingSubmission, reason: str) -> None:
        """Hold a submission that pickup has taken, durably. Raises StoreUnavailableError."""
        await self.threads.run(self._hold, submission, reason)
        self.pending.done(submission)

    def _hold(self, submission: PendingSubmission, reason: str) -> None:
        with self.stripes.of(submission.draft_id):
            if self._status(submission) is not None:
                self.scheduled.hold(submission, reason)

    @in_thread
    def change_waiting(
        self, submission_id: str, operation: Operation, *, who: str, path: Path | None = None
    ) -> bool:
        """Hold or cancel a scheduled send, release or cancel a held submission, durably.

        False if it does not wait so any more. `who` may end with a reason; `path` is its file, if
        that is known. The draft of a cancelled one stays. Raises StoreUnavailableError.
        """
        self.directory.make()
        with self.stripes.of(on_disk.draft_of(submission_id)):
            path = path or self.directory.find_submission(submission_id)
            submission = self.directory.read(path) if path is not None else None
            if submission is None or submission.path.parent == self.directory.ready:
                return False
            may_change = self.directory.may_change(submission.path)
            if operation is Operation.CANCEL:
                self.scheduled.cancel(submission, reason=f"by {who}")
            elif may_change != (operation is Operation.HOLD):
                return False
            elif not may_change:
                if released := self.scheduled.release(submission, who=who):
                    self.offer(released)
            elif current := self.scheduled.as_draft_is(submission):
                self.scheduled.hold(current, who, kind_us=on_disk.HELD_BY_OPERATOR_US)
        return True

    def _scheduled_path(self, submission_id: str) -> Path | None:
        path = self.directory.find_submission(submission_id)
        return path if path is not None and self.directory.may_change(path) else None

    async def content(self, submission: PendingSubmission) -> Octets:
        """Return the submission's file with its private block, for convert().

        Raises NoSuchItemError, StoreUnavailableError.
        """
        if submission.content and not self.directory.is_unfinished:
            return MemoryOctets(submission.content)
        try:
            return await self.threads.run(self._content, submission)
        except NoSuchItemError:  # listed just before it was removed
            self.pending.done(submission)
            raise

    def _content(self, submission: PendingSubmission) -> Octets:
        with self.stripes.of(submission.draft_id):  # submit may still fail and remove it
            if self.directory.has_unfinished(f"{submission.submission_id}@"):
                raise StoreUnavailableError(f"{submission.submission_id} is not ready yet.")
            try:
                return on_disk.content_of(submission)
            except NoSuchItemError:
                self.root.check()  # the file may only be missing with the mail root
                raise

    async def complete(self, submission: PendingSubmission, *, queue_id: str) -> None:
        """Step 4: move to Sent Items (or remove), record it, end the submission. Idempotent."""
        await self.threads.run(self._complete, submission, queue_id)
        self.pending.done(submission)

    def _complete(self, submission: PendingSubmission, queue_id: str) -> None:
        with self.stripes.of(submission.draft_id):
            status = self._status(submission)
            if status is None:
                return
            mailbox = self.folders.mailbox(submission.account)
            if not submission.submission_id.endswith(
                f".{on_disk.FIRST_SUBMISSION}"
            ) or _is_rewritten(submission):
                # A crash may have left the previous generation of a rewritten draft. The index
                # removes it while both files are in the same folder.
                self.index.find(mailbox, submission.draft_id)
            detail = AcceptedDetail(folder=None, queue_id=queue_id)
            if submission.options.save_to_sent_items:
                folder, path = self._sent_folder(mailbox, submission)
                asked = submission.options.sent_folder
                gone = "" if asked == folder else asked
                detail = AcceptedDetail(folder=folder, queue_id=queue_id, folder_gone=gone)
                self._save(mailbox, submission, path, status=status)
            else:
                self._discard(mailbox, submission)
            accepted = Event(self.clock.time_us(), detail)
            self.log.append(_facts_of(submission), accepted, queue_id=queue_id)
            self.crash.reached(CrashPoint.STEP_RECORDED)
            # Not synced: if the submission reappears after a power loss, pickup submits it again
            # with the same key and gets the same result.
            remove(submission.path)
            self.crash.reached(CrashPoint.SUBMISSION_REMOVED)

    async def fail(
        self,
        submission: PendingSubmission,
        report: bytes | None,
        *,
        report_to: str = "",
        to_corrupt: bool = False,
    ) -> None:
        """Step 3 failed permanently: deliver the report to the Inbox, remove the submission.

        `report_to` is the mailbox for the report, by default the sender's. With `to_corrupt` the
        submission's file is kept in corrupt/ for the operator. The draft stays in Drafts as a plain
        draft. Idempotent.

        Raises MailboxFullError when the report does not fit even into the space reserved for
        reports; the submission then does not change.
        """
        to = report_to or submission.account
        await self.threads.run(self._fail, submission, report, to, to_corrupt=to_corrupt)
        self.pending.done(submission)

    def _fail(
        self, submission: PendingSubmission, report: bytes | None, to: str, *, to_corrupt: bool
    ) -> None:
        with self.stripes.of(submission.draft_id):
            if self._status(submission) is None:
                return
            if report is not None:
                unique = f"{submission.submission_id}.report"
                self.inbox.deliver(
                    to, unique=unique, content=report, over_quota=True, is_repeat=True
                )  # it may be a repeat after a crash that came before the removal
            self.crash.reached(CrashPoint.REPORT_WRITTEN)
            if to_corrupt:
                self.directory.move_to_corrupt(submission.path)
            remove(submission.path)
            # After the report, neither pickup nor a start may submit it again.
            self.directory.sync_preparing()
            self.directory.sync_ready()
            self.crash.reached(CrashPoint.SUBMISSION_REMOVAL_SYNCED)

    def _status(self, submission: PendingSubmission) -> os.stat_result | None:
        """The status of a submission's file; None if only this file was removed."""
        try:
            return submission.path.stat()
        except FileNotFoundError:
            self.root.check()
            return None

    def _sent_folder(self, mailbox: Path, submission: PendingSubmission) -> tuple[str, Path]:
        """Id and path of the folder for the original: Sent Items if the chosen one is missing."""
        if submission.options.sent_folder:
            with suppress(NoSuchItemError):
                folder = find_folder(mailbox, submission.options.sent_folder)
                if folder.may_keep_sent and (folder.path / "cur").is_dir():
                    return folder.id, folder.path
        return str(WellKnown.SENT_ITEMS), well_known_path(mailbox, WellKnown.SENT_ITEMS)

    def _save(
        self, mailbox: Path, submission: PendingSubmission, folder: Path, *, status: os.stat_result
    ) -> None:
        """Move the original to a folder, or the submission's file if the draft was removed.

        Afterwards the submission may be removed: its removal becomes durable after the move.
        """
        sent, drafts = f"{folder}/cur", drafts_directory(mailbox)
        base = f"{submission.base_name},S={status.st_size}"
        filed = f"{sent}/{base}:2,{SEEN}"
        try:  # its usual path: no directory has to be listed
            os.rename(f"{drafts}/{base}:2,{NEW_DRAFT}", filed)  # noqa: PTH104 - for each message
            in_order = in_order_with(status, drafts)
        except FileNotFoundError:
            self.folders.recreate(mailbox, WellKnown.SENT_ITEMS)
            drafts = self._find_and_save(mailbox, submission, Path(filed)) or drafts
            in_order = False
        self._synced_after_filing(sent, drafts, in_order=in_order)

    @retry_if_renamed
    def _find_and_save(
        self, mailbox: Path, submission: PendingSubmission, target: Path
    ) -> str | None:
        """Find the original, move it to `target`, and return the directory it was in."""
        located = self.index.find_by_base_name(mailbox, submission.base_name)
        if located is None:
            with suppress(FileExistsError):
                place(submission.path, target)
            return None
        if not located.is_draft:  # filed before a crash, or moved by a mail client
            return None
        flags = with_flags(located.name.flags, add=SEEN, remove=DRAFT)
        located.path.rename(target.parent / f"{located.name.name_elsewhere}:2,{flags}")
        return str(located.directory)

    def _discard(self, mailbox: Path, submission: PendingSubmission) -> None:
        drafts = drafts_directory(mailbox)
        for _ in range(_REMOVALS):
            located = self.index.find_by_base_name(mailbox, submission.base_name)
            if located is None or not located.is_draft:
                break
            drafts = str(located.directory)
            remove(located.path)
        self._synced_after_filing("", drafts)

    def _synced_after_filing(self, sent: str, drafts: str, *, in_order: bool = False) -> None:
        """Sync changed directories, unless all changes become durable `in_order`, removal last."""
        reached = self.crash.reached
        reached(CrashPoint.ORIGINAL_FILED)
        if sent:
            if not in_order:
                self.syncs.sync(sent)
            reached(CrashPoint.SENT_DIRECTORY_SYNCED)
        if not in_order:
            self.syncs.sync(drafts)
        reached(CrashPoint.DRAFTS_DIRECTORY_SYNCED_AGAIN)


def _is_rewritten(submission: PendingSubmission) -> bool:
    """Whether the draft was changed between its submission and its time."""
    name = parse_name(submission.base_name)
    return name is not None and name.generation > 1


def _facts_of(submission: PendingSubmission) -> SubmissionFacts:
    """The facts a later step needs: the log joins them to the line of step 1."""
    return SubmissionFacts(
        submission.submission_id, submission.draft_id, submission.account, submission.account
    )
