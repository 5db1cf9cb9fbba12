"""Scheduled sends: cancel them, change them, and make them ready at their time.

A scheduled send waits in `.submissions/deferred` between step 2 and step 3. PATCH, DELETE and move
of a draft check here first. They write a marker to preparing/; then a single step makes the change
effective: a start completes it after a crash, and an error before it undoes all. After the
submission is renamed to ready/, it cannot be changed. Until then the message to send is the one
that the mailbox shows, and a draft that was removed is not sent. Methods raise BeingSentError if
the submission is ready already, and OSError.

MS-OXOMSG 2.2.3.4 (deferred send); docs/design.md 1.
"""

import asyncio
import dataclasses
import heapq
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from relay.base.clock import Clock, rfc3339
from relay.base.crashpoints import CrashPoint
from relay.base.message.extended_properties import RequestedSendOptions, requested_send_options
from relay.base.message.properties import ExtendedProperty
from relay.base.observe.logs import get_logger
from relay.formats.draft import read_block
from relay.store.journeys.details import CreatedDetail, NotifiedDetail
from relay.store.journeys.events import Event
from relay.store.mailbox.draft_files import Before, submission_facts
from relay.store.mailbox.errors import BeingSentError, NoSuchItemError, StoreError
from relay.store.mailbox.folders import find_folder, well_known_path
from relay.store.mailbox.maildir import Undo, list_names, place, remove, undone_after_errors
from relay.store.mailbox.message_file import NEW_DRAFT, MessageFile, parse_name
from relay.store.mailbox.pending_submission import PendingSubmission
from relay.store.mailbox.stored_message import WellKnown
from relay.submission.outbox.on_disk import OutboxPart, draft_of

_TRASHED = "T"
_LOOKS = 2  # a listing may miss a file that is renamed during it
_BEING_SENT = "The message is being sent and cannot be changed until it is."

_REMOVED = "the draft was removed from Drafts"
IN_DRAFTS = CreatedDetail(folder=str(WellKnown.DRAFTS))  # of each event of step 1

_log = get_logger("outbox")


class DueSubmissions(Struct, frozen=True):
    """Submissions that are ready now, and the file names of those to retry."""

    submissions: tuple[PendingSubmission, ...]
    kept: tuple[str, ...]


@dataclass(kw_only=True, eq=False, repr=False)
class ScheduledSends(OutboxPart):
    """The scheduled sends on disk. Blocking; callers hold the lock of the message."""

    on_scheduled: Callable[[PendingSubmission], None]  # its send time was set or changed
    _failed_syncs: int = field(default=0, init=False)
    _synced_failures: int = field(default=0, init=False)

    def scheduled_submission(
        self, message_id: str, located: MessageFile
    ) -> PendingSubmission | None:
        """The scheduled send of a message. None if it durably has none.

        Raises BeingSentError if its submission is ready or unfinished.
        """
        if self.directory.has_unfinished(f"{message_id}."):
            raise BeingSentError(_BEING_SENT)
        path = self.directory.find(message_id, located.path)
        if path is None:
            if self._failed_syncs != self._synced_failures:
                self._sync_cancellations()
            return None
        submission = self.directory.read(path) if self.directory.may_change(path) else None
        if submission is None or not submission.base_name:
            raise BeingSentError(_BEING_SENT)
        return submission

    @contextmanager
    def cancelling(self, submission: PendingSubmission | None, *, reason: str) -> Iterator[Undo]:
        """Cancel the scheduled send of a draft. The block must durably move it out of Drafts.

        The move makes the cancellation effective: if a later operation fails, the next start
        completes it, or the timer, which never sends a draft that is not in Drafts. The functions
        in the list that the block gets are called after an error. Raises BeingSentError.
        """
        if submission is not None and not self._is_in_drafts(submission):
            self.cancel(submission, reason=_REMOVED)  # before the draft may be moved back
            submission = None
        with undone_after_errors() as undo:
            if submission is not None:
                undo.append(partial(self.finish_replace, submission))
                self._mark(submission, submission.path)
            yield undo
        if submission is not None:
            self.crash.reached(CrashPoint.DRAFT_TAKEN_AWAY)
            with suppress(OSError):
                self._take_out(submission)
            self.finish_cancel(submission, reason)

    def cancel(self, submission: PendingSubmission, *, reason: str) -> None:
        """Cancel a submission, durably; its draft stays. Raises BeingSentError."""
        with undone_after_errors() as undo:
            undo.append(partial(self.undo_cancel, submission))
            self.cancel_for(submission, submission.path)
        self.finish_cancel(submission, reason)

    def cancel_for(self, submission: PendingSubmission, file: Path) -> None:
        """Cancel a submission durably, because its draft is replaced by `file`.

        The caller then moves the file to its folder, and calls finish_cancel(). After a crash
        between these calls, the next start does both. Raises BeingSentError.
        """
        self._mark(submission, file)
        self._take_out(submission)

    def undo_cancel(self, submission: PendingSubmission) -> None:
        """Undo cancel_for()."""
        spare = self._spare(submission)
        if spare.exists() and not submission.path.exists():
            spare.rename(submission.path)
            self.on_scheduled(submission)
            self.directory.sync_scheduled()
        self.finish_replace(submission)

    def finish_cancel(self, submission: PendingSubmission, reason: str) -> None:
        """Record that a submission is cancelled. After a failure, the next start does it."""
        detail = NotifiedDetail(cancelled=rfc3339(self.clock.time_us()), reason=reason)
        with suppress(OSError):
            self.log.remark(submission.submission_id, detail, account=submission.account)
            self.finish_replace(submission)

    def _marker(self, submission: PendingSubmission) -> Path:
        return self.directory.preparing / f"{submission.submission_id}+"

    def _spare(self, submission: PendingSubmission) -> Path:
        return self.directory.preparing / f"{submission.submission_id}~"

    def _mark(self, submission: PendingSubmission, file: Path) -> None:
        """Write the marker of a change to `file`, for UnfinishedSubmissions of the next start."""
        self.finish_replace(submission)  # a marker left by a failure
        place(file, self._marker(submission))

    def _take_out(self, submission: PendingSubmission) -> None:
        remove(self.directory.preparing / submission.submission_id)  # left by a failed request
        try:
            submission.path.rename(self._spare(submission))
        except FileNotFoundError:
            raise BeingSentError(_BEING_SENT) from None
        self.crash.reached(CrashPoint.SUBMISSION_CANCELLED)
        self._sync_cancellations()

    def _sync_cancellations(self) -> None:
        """Make cancellations durable. A failure is remembered until a sync succeeds.

        A client that repeats a failed cancellation finds no submission; its response requires the
        sync too.
        """
        failures = self._failed_syncs
        try:
            self.directory.sync_preparing()  # a start would finish a file that reappears there
            self.directory.sync_scheduled()
        except OSError:
            self._failed_syncs += 1
            raise
        self._synced_failures = failures

    # -- a scheduled draft that is changed

    def rewrite(self, draft: Before, file: Path, head: bytes, *, undo: Undo) -> None:
        """Send `file` instead of the draft; cancel the send if the change removed its time.

        The caller then moves the file to its folder and calls rewritten(). After a crash between
        these calls, the next start does both. Functions that undo it are added to `undo`. Raises
        BeingSentError.
        """
        if draft.submission is not None:
            undo.append(partial(self.undo_replace, draft.submission, draft.located.path))
            self.replace(draft.submission, file, head)
        if draft.cancelled is not None:
            undo.append(partial(self.undo_cancel, draft.cancelled))
            self.cancel_for(draft.cancelled, file)

    def rewritten(self, draft: Before) -> None:
        """End rewrite(): the draft is the submission's file again, or its send is cancelled."""
        if draft.submission is not None:
            self.finish_replace(draft.submission)
        if draft.cancelled is not None:
            self.finish_cancel(draft.cancelled, "its send time was removed")

    def changed(
        self, draft: Before, before: Sequence[ExtendedProperty], after: Sequence[ExtendedProperty]
    ) -> Before:
        """Return a scheduled draft with the options that a change of it requests.

        If the change removes the send time, the result says that the submission is cancelled.
        """
        submission = draft.submission
        if submission is None or before == after:
            return draft
        now_us = self.clock.time_us()
        old, new = (requested_send_options(extended, now_us=now_us) for extended in (before, after))
        if not new.scheduled_us:
            return msgspec.structs.replace(draft, submission=None, cancelled=submission)
        options = dataclasses.replace(submission.options, scheduled_us=new.scheduled_us)
        if new.delete_after_submit != old.delete_after_submit:
            options = dataclasses.replace(options, save_to_sent_items=not new.delete_after_submit)
        if new.sent_folders != old.sent_folders:
            options = dataclasses.replace(
                options, sent_folder=self._folder_of(submission.account, new)
            )
        changed = dataclasses.replace(submission, options=options)
        return msgspec.structs.replace(draft, submission=changed)

    def replace(self, submission: PendingSubmission, file: Path, head: bytes) -> None:
        """Make `file` the message to send, at the time in the submission's options.

        `head` is the beginning of `file`, at least private block and header. The caller then moves
        the draft to its folder and calls finish_replace(). After a crash between these calls, the
        next start does both. Raises BeingSentError.
        """
        changed = dataclasses.replace(
            submission,
            path=self.directory.scheduled_path(
                submission.submission_id, submission.options.scheduled_us
            ),
            ready_us=submission.options.scheduled_us,
        )
        self._record(changed, head)
        self._mark(submission, file)
        spare = self._spare(submission)
        place(file, spare)
        self.crash.reached(CrashPoint.CHANGE_PREPARED)
        try:
            submission.path.rename(changed.path)  # the new time first: never two submissions
        except FileNotFoundError:
            self.finish_replace(submission)
            raise BeingSentError(_BEING_SENT) from None
        self.crash.reached(CrashPoint.SUBMISSION_RESCHEDULED)
        spare.rename(changed.path)
        self.crash.reached(CrashPoint.SUBMISSION_REPLACED)
        self.directory.sync_scheduled()
        self.on_scheduled(changed)

    def undo_replace(self, submission: PendingSubmission, file: Path) -> None:
        """Undo replace(): `file` is sent again, at the time in the submission's file name."""
        after = self.directory.scheduled_path(
            submission.submission_id, submission.options.scheduled_us
        )
        spare = self._spare(submission)
        remove(spare)
        if after.exists():
            if not after.samefile(file):
                place(file, spare)
                spare.rename(after)
            after.rename(submission.path)
            self.directory.sync_scheduled()
            if (before := self.directory.read(submission.path)) is not None:
                self.on_scheduled(before)
        self.finish_replace(submission)

    def finish_replace(self, submission: PendingSubmission) -> None:
        """End replace(): the draft in the mailbox is the submission's file again."""
        for path in (self._marker(submission), self._spare(submission)):
            remove(path)

    # -- at their time

    def make_due_ready(self, names: Sequence[str]) -> DueSubmissions:
        """Make scheduled sends ready whose drafts still exist; durable when this returns.

        A send that cannot be read, or whose mailbox is broken, does not block the others.
        """
        submissions: list[PendingSubmission] = []
        kept: list[str] = []
        for name in names:
            try:
                with self.stripes.of(draft_of(name)):
                    if (
                        submission := self._made_ready(self.directory.scheduled / name)
                    ) is not None:
                        submissions.append(submission)
            except (OSError, StoreError) as error:
                _log.error("scheduled send kept", submission=name, reason=str(error))
                kept.append(name)
        if submissions:
            self.directory.sync_ready()
            self.directory.sync_scheduled()  # before pickup gets them: they must not reappear here
            self.crash.reached(CrashPoint.DUE_SUBMISSIONS_SYNCED)
        return DueSubmissions(tuple(submissions), tuple(kept))

    def _made_ready(self, path: Path) -> PendingSubmission | None:
        submission = self.directory.read(path)
        if submission is None:
            return None
        if submission.base_name and not self._is_in_drafts(submission):
            with suppress(BeingSentError):  # by another process
                self.cancel(submission, reason=_REMOVED)
            return None
        now_us = self.clock.queue_us()
        ready = self.directory.ready_path(submission.submission_id, now_us)
        try:
            path.rename(ready)
        except FileNotFoundError:
            return None
        self.crash.reached(CrashPoint.SUBMISSION_DUE)
        return dataclasses.replace(
            submission,
            path=ready,
            ready_us=now_us,
            options=dataclasses.replace(submission.options, scheduled_us=0),
        )

    def _is_in_drafts(self, submission: PendingSubmission) -> bool:
        """Whether the draft is still in Drafts, by its base name.

        A mail client that changes a draft writes it under another name.
        """
        drafts = well_known_path(self.folders.mailbox(submission.account), WellKnown.DRAFTS)
        untouched = f"{submission.base_name},S={submission.path.stat().st_size}:2,{NEW_DRAFT}"
        if (drafts / "cur" / untouched).exists():
            return True
        return any(
            parsed.base_name == submission.base_name and _TRASHED not in parsed.flags
            for _ in range(_LOOKS)
            for directory in (drafts / "new", drafts / "cur")
            for name in list_names(directory)
            if name.startswith(submission.base_name) and (parsed := parse_name(name))
        )

    def _folder_of(self, account: str, wishes: RequestedSendOptions) -> str:
        mailbox = self.folders.mailbox(account)
        for folder in wishes.sent_folders:
            with suppress(NoSuchItemError):
                return find_folder(mailbox, folder).id
        return ""

    def _record(self, submission: PendingSubmission, head: bytes) -> None:
        """Record steps 1 and 2 again, with the original client. The last events are used."""
        facts = submission_facts(head, submission.submission_id)
        now_us = self.clock.time_us()
        block = read_block(head)
        created_us = block.origin.created_us if block else now_us
        client = self.log.client_of(submission.submission_id)
        detail = structs.replace(submission.options.notified_detail(), client=client)
        self.log.append(facts, Event(created_us, IN_DRAFTS), Event(now_us, detail))


NAMES_IN_MEMORY_MAX = 10_000
_WAIT_S_MAX = 60.0
_RETRY_S = 5.0
_BATCH_SUBMISSIONS = 256
_LISTINGS_OF_ONE_STATE = 2  # the second finds changes within one tick of the file system's clock


@dataclass(kw_only=True, eq=False)
class ScheduleTimer:
    """Makes scheduled sends ready at their time. Only add() may be called outside the loop.

    The queries of deferred/ run in threads.
    """

    changed_ns: Callable[[], Awaitable[int]]  # when it last changed
    listed: Callable[[], Awaitable[list[tuple[int, str]]]]  # due time in µs and name of each
    make_due_ready: Callable[[Sequence[str]], Awaitable[DueSubmissions]]  # those with these names
    clock: Clock
    on_ready: Callable[[PendingSubmission], None]  # called with each that became ready
    wait_s_max: float = _WAIT_S_MAX
    names_max: int = NAMES_IN_MEMORY_MAX

    def __post_init__(self) -> None:
        self._earliest: list[tuple[int, str]] = []
        self._beyond_us: int | None = None  # from this time on, deferred/ may have more entries
        self._listed_ns = -1
        self._listings = 0
        self._next_refresh_s = 0.0
        self._missed: list[tuple[int, str]] = []  # added during a listing
        self._listing = False
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_waiting = False
        self.count = 0  # approximate number; exact after each listing of deferred/

    @property
    def is_busy(self) -> bool:
        """Whether a scheduled send is due, or may be, before deferred/ was listed."""
        is_due = bool(self._earliest) and self._earliest[0][0] <= self.clock.time_us()
        return is_due or self._wake.is_set() or not self._is_waiting

    def add(self, submission: PendingSubmission) -> None:
        """Add a scheduled send, from any thread. Before run() it stays in the directory."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(
                self._add, submission.options.scheduled_us, submission.path.name
            )

    def clear(self) -> None:
        """Forget all sends: deferred/ was emptied."""
        self._earliest, self._beyond_us, self._listed_ns, self.count = [], None, -1, 0

    async def run(self) -> None:
        """Make each scheduled send ready when it is due, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                await self._refresh()
                wait_s = await self._release_due()
            except StoreError as error:
                _log.error("scheduled sends not listed", reason=str(error))
                wait_s = _RETRY_S
            if wait_s > 0:
                check_s = min(wait_s, self.wait_s_max)
                self._is_waiting = True
                await self.clock.wait(self._wake, check_s, slack_s=wait_s - check_s)
                self._is_waiting = False

    async def _refresh(self) -> None:
        """List deferred/ periodically if it changed, and when all known entries are done."""
        now_s = self.clock.monotonic()
        exhausted = self._beyond_us is not None and not self._earliest
        if now_s < self._next_refresh_s and not exhausted:
            return
        changed_ns = await self.changed_ns()
        if changed_ns != self._listed_ns:
            self._listed_ns, self._listings = changed_ns, 0
        if self._listings < _LISTINGS_OF_ONE_STATE or exhausted:
            await self._list()
        self._next_refresh_s = now_s + self.wait_s_max

    async def _list(self) -> None:
        self._missed, self._listing = [], True
        try:
            listed = {*await self.listed(), *self._missed}
        finally:
            self._listing = False
        self._listings += 1
        self.count = len(listed)
        self._know(listed, complete=len(listed) <= self.names_max)

    def _know(self, names: Iterable[tuple[int, str]], *, complete: bool) -> None:
        self._earliest = heapq.nsmallest(self.names_max, names)
        self._beyond_us = None if complete else self._earliest[-1][0]

    async def _release_due(self) -> float:
        """Make the first due sends ready. Return the time to the next, 0 when more may be due."""
        now_us = self.clock.time_us()
        due: list[tuple[int, str]] = []
        while self._earliest and self._earliest[0][0] <= now_us and len(due) < _BATCH_SUBMISSIONS:
            due.append(heapq.heappop(self._earliest))
        if not due:
            if self._earliest:
                return (self._earliest[0][0] - now_us) / 1_000_000
            return math.inf if self._beyond_us is None else self.wait_s_max
        try:
            result = await self.make_due_ready([name for _, name in due])
        except BaseException:
            for due_send in due:
                heapq.heappush(self._earliest, due_send)
            raise
        self.count = max(0, self.count - len(due) + len(result.kept))
        self._retry(result.kept)
        for submission in result.submissions:
            self.on_ready(submission)
        return 0.0

    def _retry(self, kept: Iterable[str]) -> None:
        """Retry failed sends after some seconds. Sends that are due earlier go first."""
        next_us = self.clock.time_us() + int(_RETRY_S * 1_000_000)
        for name in kept:
            heapq.heappush(self._earliest, (next_us, name))
            self._listings = 0  # list deferred/ again: only retried sends may be left in memory

    def _add(self, due_us: int, name: str) -> None:
        self.count += 1
        if self._beyond_us is not None and due_us >= self._beyond_us:
            return
        heapq.heappush(self._earliest, (due_us, name))
        if self._listing:
            self._missed.append((due_us, name))
        if len(self._earliest) > 2 * self.names_max:
            self._know(self._earliest, complete=False)
        self._wake.set()
