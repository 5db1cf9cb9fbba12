"""Scheduled sends: cancel them, change them, and make them ready at their time.

A scheduled send waits in `.submissions/deferred` between step 2 and step 3: a link to the draft,
with its time in the name. The draft is what is sent, and says when. PATCH, DELETE and move of a
draft prepare() the send, change the draft durably, and let the send follow(). In between, and after
a crash or an error, the send may differ: a marker says so, and the draft decides at a start, at the
next change, and at the send's time. After the rename to ready/, nothing can be changed.

Methods raise BeingSentError if the submission is ready already, and OSError.

MS-OXOMSG 2.2.3.4 (deferred send); docs/design.md 1.
"""

import asyncio
import dataclasses
import heapq
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec import Struct, structs

from relay.base.clock import Clock, rfc3339
from relay.base.crashpoints import CrashPoint
from relay.base.message.content import LARGE_BYTES
from relay.base.message.extended_properties import RequestedSendOptions, requested_send_options
from relay.base.message.properties import ExtendedProperty
from relay.base.observe.logs import get_logger
from relay.formats.draft import read_block
from relay.store.journeys.details import CreatedDetail, NotifiedDetail
from relay.store.journeys.events import Event
from relay.store.mailbox import maildir
from relay.store.mailbox.draft_files import Before, submission_facts
from relay.store.mailbox.errors import BeingSentError, NoSuchItemError, StoreError
from relay.store.mailbox.folders import drafts_directory, find_folder
from relay.store.mailbox.message_file import NEW_DRAFT, MessageFile, parse_name
from relay.store.mailbox.pending_submission import PendingSubmission, SendOptions
from relay.store.mailbox.stored_message import WellKnown
from relay.submission.outbox.on_disk import HELD_US, OutboxPart, draft_of, held_since

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

    def scheduled_submission(
        self, message_id: str, located: MessageFile
    ) -> PendingSubmission | None:
        """The scheduled send of a message, as its draft is. None if it durably has none.

        Raises BeingSentError if its submission is ready or unfinished.
        """
        if self.directory.has_unfinished(f"{message_id}."):
            raise BeingSentError(_BEING_SENT)
        path, submission = self.directory.find(message_id, located.path), None
        if path is not None:
            submission = self.directory.read(path) if self.directory.may_change(path) else None
            if submission is None or not submission.base_name:
                raise BeingSentError(_BEING_SENT)
        in_drafts = located.folder.well_known is WellKnown.DRAFTS
        is_ours = located.name.message_id == message_id
        return self._followed(
            message_id, submission, located.path if in_drafts and is_ours else None
        )

    def cancel(self, submission: PendingSubmission, *, reason: str) -> None:
        """Cancel a submission that waits, durably; its draft stays as it is."""
        self.prepare(submission)
        sync = partial(self.syncs.sync, submission.path.parent)
        spare = self.directory.cancelled(submission.submission_id)
        with maildir.undone_after_errors() as undo:
            submission.path.rename(spare)
            undo += [sync, partial(spare.rename, submission.path)]
            sync()
        with suppress(OSError):  # a start records it
            self.record_cancelled(submission.submission_id, submission.account, reason)
            maildir.remove(spare)
            maildir.remove(self.directory.marker(submission.draft_id))

    def hold(self, submission: PendingSubmission, reason: str, *, kind_us: int = HELD_US) -> None:
        """Hold a submission until release() or cancel(), durably. `kind_us` is that of its name."""
        now_us = self.clock.time_us()
        held = self.directory.scheduled_path(submission.submission_id, kind_us + now_us)
        # first: a trace that says too early that it is held is right again when it is sent
        self._remark(submission, NotifiedDetail(held=rfc3339(now_us), reason=reason))
        submission.path.rename(held)
        self.crash.reached(CrashPoint.SUBMISSION_HELD)
        self.directory.sync_scheduled()
        if submission.path.parent == self.directory.ready:
            self.directory.sync_ready()  # it must not reappear there after a cancellation

    def release(self, held: PendingSubmission, *, who: str) -> PendingSubmission | None:
        """Release a held submission, durably.

        What a restore held has its place again. Any other is sent at its time if that is ahead, now
        if it is not. None if it is still held, for its account, or has ended.
        """
        directory, source, due_us = self.directory, held.path.parent, held.options.scheduled_us
        now_us, is_ours = self.clock.queue_us(), source == directory.scheduled
        is_ahead = self.clock.time_us() < due_us < HELD_US
        path = directory.ready_path(held.submission_id, now_us, released=is_ours)
        if source == directory.restored_scheduled:
            path = directory.scheduled / held.path.name
        elif is_ahead and is_ours:
            path = directory.scheduled_path(held.submission_id, due_us)
        held.path.rename(path)
        self.crash.reached(CrashPoint.SUBMISSION_RELEASED)
        for changed in dict.fromkeys((path.parent, source)):
            self.syncs.sync(changed)
        if held_since(path.name):
            return None
        until, now = rfc3339(due_us) if is_ahead else "", rfc3339(self.clock.time_us())
        self._remark(held, NotifiedDetail(deferred_until=until, released=now, who=who))
        submission = directory.read(path)
        with suppress(OSError, StoreError):  # else at its time: the draft may be a later copy
            if submission is not None and submission.options.scheduled_us:
                return self.as_draft_is(submission)
        return submission

    def _remark(self, submission: PendingSubmission, detail: NotifiedDetail) -> None:
        with suppress(OSError):
            self.log.remark(submission.submission_id, detail, account=submission.account)

    def record_cancelled(self, submission_id: str, account: str, reason: str) -> None:
        """Record that a send is cancelled. Raises OSError."""
        detail = NotifiedDetail(cancelled=rfc3339(self.clock.time_us()), reason=reason)
        self.log.remark(submission_id, detail, account=account)

    # -- a draft that is changed

    def changed(
        self, draft: Before, before: Sequence[ExtendedProperty], after: Sequence[ExtendedProperty]
    ) -> Before:
        """Return a scheduled draft with the options that a change of it requests."""
        submission = draft.submission
        if submission is None or before == after:
            return draft
        now_us = self.clock.time_us()
        old, new = (requested_send_options(extended, now_us=now_us) for extended in (before, after))
        options = SendOptions()
        if new.scheduled_us:
            options = dataclasses.replace(submission.options, scheduled_us=new.scheduled_us)
            if new.delete_after_submit != old.delete_after_submit:
                options = dataclasses.replace(
                    options, save_to_sent_items=not new.delete_after_submit
                )
            if new.sent_folders != old.sent_folders:
                options = dataclasses.replace(
                    options, sent_folder=self._folder_of(submission.account, new)
                )
        return structs.replace(draft, options=options)

    def prepare(self, submission: PendingSubmission | None, *, due_us: int = 0) -> None:
        """Note, durably, that a draft may differ from its send.

        A send gets an earlier time, `due_us`, before its draft has it: if it could not follow, it
        would be late. If the draft then does not change, its own time counts.
        """
        if submission is None:
            return
        maildir.remove(
            self.directory.preparing / submission.submission_id
        )  # left by a failed request
        self.directory.marker(submission.draft_id).touch(0o600)
        self.directory.sync_preparing()
        self.crash.reached(CrashPoint.CHANGE_PREPARED)
        if 0 < due_us < submission.ready_us:
            self._rescheduled(submission, due_us)
        self.crash.reached(CrashPoint.SUBMISSION_RESCHEDULED)

    def follow(
        self, submission: PendingSubmission | None, file: Path | None, *, reason: str = ""
    ) -> None:
        """The draft of a send is `file` now, durably, or it was taken out of Drafts, for `reason`.

        If the send cannot follow, it does so at its time, at a start, or at the next change.
        """
        if submission is None:
            return
        self.crash.reached(CrashPoint.DRAFT_TAKEN_AWAY)
        with suppress(OSError, StoreError):
            waiting = self.directory.waiting(submission.draft_id)
            self._followed(submission.draft_id, waiting, file, reason=reason)

    # -- at a start, and at their time

    def finish_change(self, draft_id: str) -> None:
        """Finish a change of a draft that a crash has cut off. Raises OSError, StoreError."""
        with self.stripes.of(draft_id):
            if (submission := self.directory.waiting(draft_id)) is None:
                self._followed(draft_id, None, None)
            else:
                self.as_draft_is(submission)

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
        due = self.directory.read(path)
        submission = self.as_draft_is(due) if due is not None else None
        # The draft may have a later time; an operator has a send made ready before its time.
        if (
            due is None
            or submission is None
            or due.ready_us <= self.clock.time_us() < submission.ready_us
        ):
            return None
        now_us = self.clock.queue_us()
        ready = self.directory.ready_path(submission.submission_id, now_us)
        try:
            submission.path.rename(ready)
        except FileNotFoundError:
            return None
        self.crash.reached(CrashPoint.SUBMISSION_DUE)
        return dataclasses.replace(
            submission,
            path=ready,
            ready_us=now_us,
            options=dataclasses.replace(submission.options, scheduled_us=0),
        )

    # -- the draft is the send

    def as_draft_is(self, submission: PendingSubmission) -> PendingSubmission | None:
        """Return a send as its draft in Drafts is, durably; None if it has ended."""
        if not submission.base_name:  # its record is damaged: pickup reports it
            return submission
        return self._followed(submission.draft_id, submission, self._in_drafts(submission))

    def _in_drafts(self, submission: PendingSubmission) -> Path | None:
        """Return the draft's newest file in Drafts, None if there is none.

        A mail client that changes a draft writes it under another name. Raises OSError if Drafts
        cannot be read. A mailbox that was removed has no drafts, if others of its domain are there.
        """
        draft_id = submission.draft_id
        mailbox = self.folders.directory(submission.account)
        cur = Path(drafts_directory(mailbox))
        usual = f"{submission.base_name},S={submission.path.stat().st_size}:2,{NEW_DRAFT}"
        if maildir.exists(cur / usual) and not maildir.exists(self.directory.marker(draft_id)):
            return cur / usual
        # alone, it may be on a disk that is not mounted
        mailboxes = maildir.list_names(mailbox.parent)
        if mailboxes and mailbox.name not in mailboxes:
            return None
        cur.stat()  # one that is missing was not read
        files = [
            (name.generation, folder / file_name)
            for folder in (cur.with_name("new"), cur) * _LOOKS
            for file_name in maildir.list_names(folder)
            if draft_id in file_name and (name := parse_name(file_name))
            if name.message_id == draft_id and "T" not in name.flags
        ]
        return max(files)[1] if files else None

    def _followed(
        self,
        draft_id: str,
        submission: PendingSubmission | None,
        file: Path | None,
        *,
        reason: str = _REMOVED,
    ) -> PendingSubmission | None:
        """Return a send as its draft is, durably; None if it has ended, or had.

        `file` is the draft in Drafts, None if it is not there. Raises OSError.
        """
        marker = self.directory.marker(draft_id)
        is_same = submission is None or _is_file_of(submission, file)
        if is_same and not maildir.exists(marker):
            return submission
        marker.touch(0o600)  # after an error, the next look must not take it for done
        if submission is not None:
            submission = self._as_draft(submission, file, reason)
        self.directory.sync_scheduled()  # a start looks only at a send with a marker
        maildir.remove(marker)
        return submission

    def _as_draft(
        self, submission: PendingSubmission, file: Path | None, reason: str
    ) -> PendingSubmission | None:
        if file is not None and not _is_file_of(submission, file):
            spare = self.directory.preparing / f"{submission.draft_id}.new"
            maildir.remove(spare)
            maildir.place(file, spare)
            spare.rename(submission.path)
            self.crash.reached(CrashPoint.SUBMISSION_REPLACED)
            submission = self.directory.read(submission.path) or submission
        due_us = submission.options.scheduled_us
        if file is None or not due_us:
            reason = reason if file is None else "its send time was removed"
            self.record_cancelled(submission.submission_id, submission.account, reason)
            maildir.remove(submission.path)
            self.crash.reached(CrashPoint.SUBMISSION_CANCELLED)
            return None
        if due_us != submission.ready_us:
            submission = self._rescheduled(submission, due_us)
        self._record(submission)
        return submission

    def _rescheduled(self, submission: PendingSubmission, due_us: int) -> PendingSubmission:
        path = self.directory.scheduled_path(submission.submission_id, due_us)
        submission.path.rename(path)
        after = dataclasses.replace(submission, path=path, ready_us=due_us)
        self.on_scheduled(after)
        return after

    def _folder_of(self, account: str, wishes: RequestedSendOptions) -> str:
        mailbox = self.folders.mailbox(account)
        for folder in wishes.sent_folders:
            with suppress(NoSuchItemError):
                return find_folder(mailbox, folder).id
        return ""

    def _record(self, submission: PendingSubmission) -> None:
        """Record steps 1 and 2 again, with the original client. The last events are used."""
        with maildir.open_message(submission.path) as file:
            head = file.read(LARGE_BYTES)
        now_us, block = self.clock.time_us(), read_block(head)
        created_us = block.origin.created_us if block else now_us
        client = self.log.client_of(submission.submission_id)
        detail = structs.replace(submission.options.notified_detail(), client=client)
        facts = submission_facts(head, submission.submission_id)
        self.log.append(facts, Event(created_us, IN_DRAFTS), Event(now_us, detail))


def _is_file_of(submission: PendingSubmission, file: Path | None) -> bool:
    """Whether a submission has the content of a draft's file: another content has another name."""
    name = parse_name(file.name) if file is not None else None
    return name is not None and name.base_name == submission.base_name


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
            self._loop.call_soon_threadsafe(self._add, submission.ready_us, submission.path.name)

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
