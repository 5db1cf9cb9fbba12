"""Submit drafts: steps 1 and 2.

The order of fsyncs, links and renames is that of docs/flow.md, and each has a crash point. All
of it can be repeated after a crash at any of them.

Submitting raises StoreError's children and OSError. After an error neither the draft nor the
pending submission is left, and the submission cannot reappear after a power loss. If the disk
cannot guarantee this, OutcomeUnknownError is raised; a submission with a key is then sent if its
record is on the disk.
"""

import dataclasses
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from relay.base.crashpoints import CrashPoint
from relay.base.message.content import LARGE_BYTES, Octets
from relay.base.message.properties import MessageProperties
from relay.formats.draft import DraftAttachment, read_private_block
from relay.store.journeys.details import NotifiedDetail
from relay.store.journeys.events import Event
from relay.store.journeys.submission_log import SubmissionFacts
from relay.store.mailbox import draft_files, errors, maildir
from relay.store.mailbox.folders import drafts_directory
from relay.store.mailbox.message_file import NEW_DRAFT, MessageFile, open_octets
from relay.store.mailbox.pending_submission import PendingSubmission, SendOptions
from relay.store.mailbox.store_part import in_thread
from relay.store.mailbox.stored_message import NO_PRECONDITION, Precondition, WellKnown
from relay.submission.outbox.idempotency import KeyedSubmission, KeyedSubmissions
from relay.submission.outbox.on_disk import FIRST_SUBMISSION, OutboxPart
from relay.submission.outbox.ready_submissions import ReadySubmissions
from relay.submission.outbox.scheduled import IN_DRAFTS, ScheduledSends
from relay.submission.outbox.unfinished import UnfinishedSubmissions

_DATE_US = 60_000_000  # an older draft is rewritten, so that its Date is the time of sending


_Parameters = ParamSpec("_Parameters")


def _requested(
    method: Callable[Concatenate["Submissions", _Parameters], PendingSubmission],
) -> Callable[Concatenate["Submissions", _Parameters], Coroutine[Any, Any, PendingSubmission]]:
    """Turn a blocking method into a coroutine that submits, then offers the submission to pickup.

    The offer does not delay the response. If the caller is cancelled, pickup finds the submission
    when it lists ready/.
    """

    @wraps(method)
    async def submitted(
        submissions: "Submissions", /, *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> PendingSubmission:
        with submissions.ready.rush.submission():
            submission = await submissions.threads.run(method, submissions, *args, **kwargs)
        submissions.ready.offer(submission)
        return submission

    return submitted


@dataclass(kw_only=True, eq=False, repr=False)
class Submissions(OutboxPart):
    """Makes submissions, and finds those with a key. submit_composed() blocks."""

    scheduled: ScheduledSends  # a change of a draft cancels or changes them
    keyed: KeyedSubmissions  # the records of keys
    unfinished: UnfinishedSubmissions  # finishes those that were interrupted
    ready: ReadySubmissions  # hands new submissions to pickup

    @_requested
    def submit_new(
        self,
        account: str,
        content: MessageProperties | bytes,
        options: SendOptions,
        *,
        kept: Sequence[DraftAttachment] = (),
    ) -> PendingSubmission:
        """Write a draft and its pending submission: sendMail and reply, steps 1 and 2.

        Raises MailboxFullError, StoreUnavailableError.
        """
        identity = self.names.identity(account, options)
        return self.submit_composed(draft_files.compose(content, identity, kept))

    def submit_composed(self, draft: draft_files.ComposedDraft) -> PendingSubmission:
        """Submit a new draft.

        A file that is already written must be in preparing/, named by the submission id.
        """
        account = draft.identity.account
        mailbox = self.folders.mailbox(account)
        submission_id = first_submission(draft.identity)
        with (
            self.quota.room_for(account, mailbox, draft.size, base_name=draft.identity.base_name),
            self.stripes.of(draft.identity.message_id),  # PATCH waits until the submission is ready
        ):
            return self._write_and_submit(mailbox, draft, submission_id)

    @_requested
    @maildir.retry_if_renamed
    def submit_draft(
        self,
        account: str,
        message_id: str,
        options: SendOptions,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> PendingSubmission:
        """Submit an existing draft: /send.

        Also raises NoSuchItemError, NotADraftError, BeingSentError, MessageChangedError.
        """
        mailbox = self.folders.mailbox(account)
        with self.stripes.of(message_id):
            located = self.index.get_if(mailbox, message_id, condition)
            if not located.is_draft:
                raise errors.NotADraftError("Only a draft can be sent.")
            if (waiting := self.scheduled.scheduled_submission(message_id, located)) is not None:
                return self._as_before(waiting, options, open_octets(located.path))
            stored = open_octets(located.path)
            # With the queue time, later sends of the same draft have greater ids.
            submission_id = f"{message_id}.{self.clock.queue_us()}"
            block, _ = read_private_block(stored)
            if (
                block is not None
                and block.origin.account == account
                and block.origin.base_name == located.name.base_name
                and block.origin.save_to_sent_items == options.save_to_sent_items
                and block.origin.sent_folder == options.sent_folder
                and block.origin.on_behalf_of == options.on_behalf_of
                and options.scheduled_us in (0, block.origin.scheduled_us)
                and located.folder.well_known is WellKnown.DRAFTS
                and (block.is_mime or self.clock.time_us() - block.origin.modified_us < _DATE_US)
            ):
                submission = self._new_submission(
                    located.name.base_name, submission_id, account=account, options=options
                )
                facts = draft_files.submission_facts(stored.read(0, LARGE_BYTES), submission_id)
                prepare = partial(self._link_prepared, located=located)
                created_us = block.origin.created_us
                return self._submit(submission, facts, prepare, created_us=created_us)
            identity = self.names.next_identity(account, located, stored, options=options)
            draft = draft_files.next_generation(stored, identity, change=None)
            submission = self._write_and_submit(mailbox, draft, submission_id)
            with suppress(OSError):  # it is being sent; the index removes the old file later
                maildir.remove(located.path)
            return submission

    @in_thread
    def find_keyed(self, account: str, slot: str) -> KeyedSubmission | None:
        """See KeyedSubmissions.find()."""
        if self.directory.is_unfinished:
            raise errors.StoreUnavailableError(
                "Interrupted submissions are not finished yet: repeat the request later."
            )
        return self.keyed.find(account, slot)

    @in_thread
    def remove_unfinished(self) -> int:
        """See UnfinishedSubmissions.remove_unfinished()."""
        return self.unfinished.remove_unfinished()

    def _as_before(
        self, submission: PendingSubmission, options: SendOptions, draft: Octets
    ) -> PendingSubmission:
        """Accept a second send of a scheduled draft if its options are the same."""
        if submission.options != options:
            raise errors.BeingSentError(
                "The message is scheduled to be sent. Remove its send time before you send it with "
                "other options."
            )
        submission = dataclasses.replace(submission, was_scheduled=True)
        if options.key is None:
            return submission
        facts = draft_files.submission_facts(draft.read(0, LARGE_BYTES), submission.submission_id)
        return self._recorded(dataclasses.replace(submission, options=options), facts)

    def _write_and_submit(
        self, mailbox: Path, draft: draft_files.ComposedDraft, submission_id: str
    ) -> PendingSubmission:
        """Write a draft and submit it.

        The file is written in preparing/ and linked into Drafts from there. A start therefore finds
        unfinished submissions without reading any mailbox, and there is no third name to remove.
        """
        self.old_files.clean(mailbox)
        placed = f"{drafts_directory(mailbox)}/{draft.name_with_size}:2,{NEW_DRAFT}"
        account, options = draft.identity.account, draft.identity.options
        submission = self._new_submission(
            draft.identity.base_name, submission_id, account=account, options=options
        )
        prepare = partial(self._write_prepared, draft=draft, placed=placed)
        submission = self._submit(
            submission, draft_files.facts_of(draft, submission_id), prepare, placed=placed
        )
        content = draft.content if isinstance(draft.content, bytes) else b""
        return dataclasses.replace(submission, content=content)

    def _write_prepared(
        self, prepared: str, *, draft: draft_files.ComposedDraft, placed: str
    ) -> bool:
        """Write a draft in preparing/, and link it into the mailbox.

        Return whether the next sync covers its names.
        """
        descriptor = draft.write(prepared)
        self.crash.reached(CrashPoint.DRAFT_WRITTEN)
        in_order = maildir.finish_content(descriptor)
        self.crash.reached(CrashPoint.DRAFT_WRITTEN_BACK)
        maildir.place(prepared, placed)
        self.crash.reached(CrashPoint.DRAFT_LINKED)
        return in_order

    def _link_prepared(self, prepared: str, *, located: MessageFile) -> bool:
        """Link a draft whose file needs no change into preparing/.

        Return whether the next sync covers the link.
        """
        maildir.place(located.path, prepared)
        self.crash.reached(CrashPoint.SUBMISSION_PREPARED)
        return maildir.in_order_with(Path(prepared).stat(), located.directory)

    def _submit(
        self,
        submission: PendingSubmission,
        facts: SubmissionFacts,
        prepare: Callable[[str], bool],
        *,
        placed: str = "",
        created_us: int | None = None,
    ) -> PendingSubmission:
        """Make a submission ready. After an error neither it nor its new draft `placed` is left.

        `prepare` creates its file in preparing/, and returns whether the next sync covers its
        names. `created_us` is the time at which the draft was created; None is now. Raises
        OutcomeUnknownError if the submission may be left.
        """
        self.directory.make()
        prepared = self.directory.prepared_path(submission.submission_id, submission.options.key)
        drafts = [placed] if placed else []
        has_key = submission.options.key is not None
        is_named = False
        try:
            is_covered = prepare(prepared)
            self._record_submission(submission, facts, created_us=created_us)
            if not has_key:
                is_named = True
                os.rename(prepared, submission.path)  # noqa: PTH104 - a Path parses it again
                self.crash.reached(CrashPoint.SUBMISSION_READY)
            if placed:
                if not is_covered:
                    self.syncs.sync(os.path.dirname(placed))  # noqa: PTH120 - for each message
                self.crash.reached(CrashPoint.DRAFTS_DIRECTORY_SYNCED)
            if has_key:
                submission = self._recorded(submission, facts, is_covered=is_covered)
            else:
                self.directory.sync(submission)
                self.crash.reached(CrashPoint.READY_DIRECTORY_SYNCED)
        except errors.OutcomeUnknownError:  # it is recorded and sent when the disk works again
            raise
        except BaseException:
            if is_named:
                self._remove_submission(prepared, submission, *drafts)
            _remove_all(prepared, *drafts)
            with suppress(OSError):  # as far as the disk allows
                self.log.withdraw(facts)
            raise
        if has_key:
            self._make_ready(prepared, submission)
        return submission

    def _recorded(
        self, submission: PendingSubmission, facts: SubmissionFacts, *, is_covered: bool = False
    ) -> PendingSubmission:
        """Record a submission with a key.

        All its names except that in ready/ must be durable, or covered by the next sync. From then
        on the submission exists: UnfinishedSubmissions makes it ready. Raises BeingSentError if the
        key was used meanwhile. Raises OutcomeUnknownError if the disk fails: UnfinishedSubmissions
        then makes the submission ready if the record exists, and removes it if not.
        """
        if not is_covered:
            self.directory.sync_preparing()
        self.crash.reached(CrashPoint.PREPARING_DIRECTORY_SYNCED)
        submission = dataclasses.replace(submission, internet_message_id=facts.message_id)
        try:
            self.keyed.record(submission)
        except errors.StoreUnavailableError as error:
            self.directory.is_unfinished = True
            raise errors.OutcomeUnknownError(
                f"The record of {submission.submission_id} could not be written: {error} Whether "
                "it will be sent is not known: repeat the request with its key."
            ) from error
        self.crash.reached(CrashPoint.KEY_RECORDED)
        return submission

    def _make_ready(self, prepared: str, submission: PendingSubmission) -> None:
        """Move a recorded submission to the directory of pickup or of the timer.

        If the disk fails, UnfinishedSubmissions does it.
        """
        try:
            self.directory.make_ready(Path(prepared), submission.path)
            self.crash.reached(CrashPoint.SUBMISSION_READY)
            self.crash.reached(CrashPoint.READY_DIRECTORY_SYNCED)
        except OSError:
            self.directory.is_unfinished = True

    def _record_submission(
        self, submission: PendingSubmission, facts: SubmissionFacts, *, created_us: int | None
    ) -> None:
        """Record steps 1 and 2 before pickup can see the submission.

        Every ready submission has these events, and their times precede those of pickup.
        """
        now_us = self.clock.time_us()
        created = Event(now_us if created_us is None else created_us, IN_DRAFTS)
        notified = Event(self.clock.time_us(), submission.options.notified_detail())
        self.log.append(facts, created, notified)

    def _remove_submission(
        self, prepared: str, submission: PendingSubmission, *drafts: str
    ) -> None:
        """Remove a submission that failed and its draft, and make the removal durable.

        Does nothing while the file still has its name in preparing/.

        The file system may already have made the name durable with a journal commit. A successful
        sync is sufficient even if an earlier sync failed, because the removal is a new change that
        this sync must write. Raises OutcomeUnknownError. If the submission cannot be removed, its
        draft is left too, and pickup sends it.
        """
        maildir.SYNC_FAILURES.begin()
        try:
            self.root.check()  # raises if the mail root, and so the file, is missing
            if maildir.exists(prepared):
                return
            maildir.remove(submission.path)
            _remove_all(*drafts)
            self.directory.sync(submission)
        except OSError as error:
            with suppress(OSError):  # no client got a 202, so that nothing promised is lost
                detail = NotifiedDetail(not_answered=True)
                self.log.remark(submission.submission_id, detail, account=submission.account)
            raise errors.OutcomeUnknownError(
                f"The mail store's disk failed while {submission.submission_id} was submitted, and "
                f"again when the submission was removed: {error.strerror or error}. Whether it "
                "will be sent is not known."
            ) from error

    def _new_submission(
        self, base_name: str, submission_id: str, *, account: str, options: SendOptions
    ) -> PendingSubmission:
        """A submission that is ready now, or scheduled if its send time is in the future."""
        directory = self.directory
        if options.scheduled_us > self.clock.time_us():
            at_us = options.scheduled_us
            path = directory.scheduled_path(submission_id, at_us)
        else:
            at_us = self.clock.queue_us()
            if options.scheduled_us:
                options = dataclasses.replace(options, scheduled_us=0)
            path = directory.ready_path(submission_id, at_us)
        return PendingSubmission(
            submission_id=submission_id,
            account=account,
            base_name=base_name,
            path=path,
            ready_us=at_us,
            options=options,
        )


def first_submission(identity: draft_files.DraftIdentity) -> str:
    """Return the id of the submission of a draft created by the same request."""
    return f"{identity.message_id}.{FIRST_SUBMISSION}"


def _remove_all(*paths: str) -> None:
    for path in paths:
        with suppress(OSError):
            maildir.remove(path)
