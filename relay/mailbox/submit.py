"""Submit drafts (steps 1 and 2) and file the originals afterwards (step 4).

The order of every fsync, link and rename is that of docs/design.md 1, and each has a crash point.
Everything can be repeated after a crash at any of them.

Submitting raises StoreError's children and OSError. After an error neither the draft nor the
pending submission is left, and no power loss brings the submission back. If the disk cannot
guarantee that, OutcomeUnknownError is raised.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from relay.crashpoints import CrashPoint
from relay.files import fsync_path
from relay.journeys.events import Event, Step
from relay.journeys.submission_log import NOT_ANSWERED, SubmissionFacts, SubmissionLog
from relay.mailbox.dependencies import StoreDependencies
from relay.mailbox.draft_files import (
    ComposedDraft,
    DraftIdentity,
    compose,
    facts_of,
    next_generation,
    submission_facts,
)
from relay.mailbox.folders import find_folder, well_known_path
from relay.mailbox.inbox import Inbox
from relay.mailbox.maildir import (
    SYNC_FAILURES,
    named_in_order,
    open_written,
    place_again,
    remove,
    retry_if_renamed,
    write_file,
)
from relay.mailbox.message_file import (
    DRAFT,
    NEW_DRAFT,
    SEEN,
    MessageFile,
    open_octets,
    parse_name,
    with_flags,
)
from relay.mailbox.stale_files import StaleFiles
from relay.mailbox.submissions import FIRST_SUBMISSION, draft_of
from relay.mailbox.types import (
    NO_PRECONDITION,
    BeingSentError,
    NoSuchItemError,
    NotADraftError,
    OutcomeUnknownError,
    PendingSubmission,
    Precondition,
    SendOptions,
    StoreError,
    StoreUnavailableError,
    WellKnown,
)
from relay.message.content import LARGE_BYTES, Octets, memory_part
from relay.message.properties import MessageProperties
from relay.mime.draft import DraftAttachment, read_private_block

_REMOVALS = 3
_MAILBOXES_REMEMBERED = 1000
_DATE_US = 60_000_000  # an older draft is rewritten, so that its Date is the time of sending
_IN_DRAFTS = {"folder": str(WellKnown.DRAFTS)}


class SubmissionWriter:
    """Writes and ends submissions. Blocking: the store calls it in its threads."""

    def __init__(
        self,
        dependencies: StoreDependencies,
        inbox: Inbox,
        stale_files: StaleFiles,
        *,
        log: SubmissionLog,
    ) -> None:
        self._shared = dependencies
        self._stale_files = stale_files
        self._inbox = inbox
        self._log = log

    # -- steps 1 and 2

    def submit_new(
        self,
        account: str,
        content: MessageProperties | bytes,
        options: SendOptions,
        *,
        kept: Sequence[DraftAttachment] = (),
    ) -> PendingSubmission:
        """See MailStore.submit_new()."""
        identity = self._shared.identity(account, options)
        return self.submit_composed(compose(content, identity, kept), identity, options)

    def submit_composed(
        self, draft: ComposedDraft, identity: DraftIdentity, options: SendOptions
    ) -> PendingSubmission:
        """Submit a new draft. If its file is already written, it is in preparing/ under the
        submission's id.
        """
        account = identity.account
        mailbox = self._shared.folders.mailbox(account)
        submission_id = first_submission(identity)
        with (
            self._shared.quota.room_for(account, mailbox, draft.size, base_name=draft.base_name),
            self._shared.stripes.of(identity.message_id),  # no PATCH before the submission is ready
        ):
            submission = self._new_submission(
                draft.base_name, submission_id, account=account, options=options
            )
            return self._write_and_submit(mailbox, draft, submission)

    @retry_if_renamed
    def submit_draft(
        self,
        account: str,
        message_id: str,
        options: SendOptions,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> PendingSubmission:
        """See MailStore.submit_draft()."""
        mailbox = self._shared.folders.mailbox(account)
        with self._shared.stripes.of(message_id):
            located = self._shared.found(mailbox, message_id, condition)
            if not located.is_draft:
                raise NotADraftError("Only a draft can be sent.")
            if (
                waiting := self._shared.scheduled.scheduled_submission(message_id, located)
            ) is not None:
                return self._as_before(waiting, options, open_octets(located))
            stored = open_octets(located)
            # The queue time makes the ids of later sends of the same draft greater.
            submission_id = f"{message_id}.{self._shared.clock.queue_us()}"
            identity = self._shared.identity(account, options)
            block, _ = read_private_block(stored)
            if (
                block is not None
                and block.origin.account == account
                and block.origin.base_name == located.name.base_name
                and block.origin.save_to_sent_items == options.save_to_sent_items
                and block.origin.sent_folder == options.sent_folder
                and block.origin.on_behalf_of == options.on_behalf_of
                and located.folder.well_known is WellKnown.DRAFTS
                and (block.is_mime or identity.created_us - block.origin.modified_us < _DATE_US)
            ):
                submission = self._new_submission(
                    located.name.base_name, submission_id, account=account, options=options
                )
                created_us, head = block.origin.created_us, stored.read(0, LARGE_BYTES)
                return self._submit_as_it_is(located, head, submission, created_us=created_us)
            draft = next_generation(located, stored, identity, change=None)
            submission = self._new_submission(
                draft.base_name, submission_id, account=account, options=options
            )
            submission = self._write_and_submit(mailbox, draft, submission)
            with suppress(OSError):  # it is being sent; the index removes the old file later
                remove(located.path)
            return submission

    def _as_before(
        self, submission: PendingSubmission, options: SendOptions, draft: Octets
    ) -> PendingSubmission:
        """Accept a second send of a scheduled draft if its options are the same."""
        if submission.options != options:
            raise BeingSentError(
                "The message is scheduled to be sent. Remove its send time before you send it with "
                "other options."
            )
        if options.key is None:
            return submission
        facts = submission_facts(draft.read(0, LARGE_BYTES), submission.submission_id)
        submission = self._ready_for_key(replace(submission, options=options), facts)
        try:
            self._record_key(submission)
        except StoreUnavailableError:
            self._shared.keyed.forget(submission)  # the submission was accepted before
            raise
        return submission

    def _write_and_submit(
        self, mailbox: Path, draft: ComposedDraft, submission: PendingSubmission
    ) -> PendingSubmission:
        """Write a draft and make its submission ready. After an error neither is left.

        Raises OutcomeUnknownError if the submission may be left.

        The file is written in preparing/ and linked into Drafts from there. A start therefore finds
        unfinished submissions without reading any mailbox, and there is no third name to remove.
        """
        self._stale_files.clean(mailbox)
        self._shared.submissions.make()
        drafts = _drafts_of(mailbox)
        placed = drafts / f"{draft.name_with_size}:2,{NEW_DRAFT}"
        prepared = self._shared.submissions.preparing / submission.submission_id
        reached = self._shared.crash.reached
        is_recorded = is_named = False
        try:
            if draft.written:
                descriptor = open_written(prepared)
            else:
                descriptor = write_file(prepared, draft.content)
            reached(CrashPoint.DRAFT_WRITTEN)
            has_key = submission.options.key is not None
            with named_in_order(descriptor, synced_before=has_key):
                reached(CrashPoint.DRAFT_WRITTEN_BACK)
                self._place(prepared, placed)
                reached(CrashPoint.DRAFT_LINKED)
                created_us = self._shared.clock.time_us()
                facts = facts_of(draft, submission.submission_id)
                self._record_submission(submission, facts, created_us=created_us)
                if has_key:
                    submission, is_recorded = self._ready_for_key(submission, facts), True
                    self._record_key(submission)
                is_named = True
                self._make_ready(prepared, submission)
            reached(CrashPoint.DRAFT_SYNCED)
            self._shared.syncs.sync(drafts)
            reached(CrashPoint.DRAFTS_DIRECTORY_SYNCED)
            self._shared.submissions.sync(submission)
            reached(CrashPoint.READY_DIRECTORY_SYNCED)
        except BaseException as error:
            if is_recorded and not isinstance(error, BeingSentError):
                self._remove_keyed(submission)
            elif is_named:
                self._remove_submission(prepared, submission, placed)
            _remove_all(prepared, placed)
            self._withdraw(memory_part(draft.content), submission)
            raise
        return submission

    def _ready_for_key(
        self, submission: PendingSubmission, facts: SubmissionFacts
    ) -> PendingSubmission:
        """Make what a start finishes durable, before the key of a submission is recorded."""
        self._shared.submissions.sync_preparing()
        self._shared.crash.reached(CrashPoint.PREPARING_DIRECTORY_SYNCED)
        return replace(submission, internet_message_id=facts.message_id)

    def _record_key(self, submission: PendingSubmission) -> None:
        """Record a submission with a key, when only its name in ready/ is not durable yet.

        It exists from then on: StaleFiles.remove_unfinished() finishes it after a crash.
        """
        self._shared.keyed.record(submission)
        self._shared.crash.reached(CrashPoint.KEY_RECORDED)

    def _remove_keyed(self, submission: PendingSubmission) -> None:
        """Remove a submission with a key that failed, its draft and then its record.

        Raises OutcomeUnknownError if that could not begin: then it is sent. What fails later is
        repeated by StaleFiles.settle_keys(); until then neither pickup nor a repeat begins it.
        """
        self._shared.keyed.begin_removal(submission)
        self._shared.crash.reached(CrashPoint.KEY_REMOVAL_BEGUN)
        with suppress(OSError, StoreError):
            self._stale_files.finish_removal(submission.submission_id)

    def _place(self, prepared: Path, placed: Path) -> None:
        """Link a prepared draft into the mailbox; without hard links, copy it through tmp/."""
        if not place_again(prepared, placed):
            self._shared.submissions.mark_copied()

    def _submit_as_it_is(
        self, located: MessageFile, head: bytes, submission: PendingSubmission, *, created_us: int
    ) -> PendingSubmission:
        """Submit a draft whose file needs no change. `head` is the beginning of the file."""
        self._shared.submissions.make()
        prepared = self._shared.submissions.preparing / submission.submission_id
        is_recorded = is_named = False
        try:
            self._shared.submissions.prepare(located.path, prepared.name)
            self._shared.crash.reached(CrashPoint.SUBMISSION_PREPARED)
            facts = submission_facts(head, submission.submission_id)
            self._record_submission(submission, facts, created_us=created_us)
            if submission.options.key is not None:
                submission, is_recorded = self._ready_for_key(submission, facts), True
                self._record_key(submission)
            is_named = True
            self._make_ready(prepared, submission)
            self._shared.submissions.sync(submission)
            self._shared.crash.reached(CrashPoint.READY_DIRECTORY_SYNCED)
        except BaseException as error:
            if is_recorded and not isinstance(error, BeingSentError):
                self._remove_keyed(submission)
            elif is_named:
                self._remove_submission(prepared, submission)
            _remove_all(prepared)
            self._withdraw(head, submission)
            raise
        return submission

    def _record_submission(
        self, submission: PendingSubmission, facts: SubmissionFacts, *, created_us: int
    ) -> None:
        """Record steps 1 and 2 before pickup can see the submission.

        Every ready submission has these events, and their times precede those of pickup.
        """
        created = Event(Step.CREATED, created_us, _IN_DRAFTS)
        notified = Event(
            Step.NOTIFIED, self._shared.clock.time_us(), submission.options.notified_detail()
        )
        self._log.append(facts, created, notified)

    def _make_ready(self, prepared: Path, submission: PendingSubmission) -> None:
        """Rename the submission to ready/ or deferred/, where pickup or the timer finds it."""
        if submission.options.key is not None:
            self._shared.submissions.make_ready(prepared, submission.path)
        else:
            os.rename(prepared, submission.path)  # noqa: PTH104 - a Path parses it again
        self._shared.crash.reached(CrashPoint.SUBMISSION_READY)

    def _remove_submission(
        self, prepared: Path, submission: PendingSubmission, *drafts: Path
    ) -> None:
        """Remove a submission that failed and its draft, and make the removal durable.

        Does nothing while the file still has its name in preparing/.

        A journal commit of the file system may already have made the name durable. A successful
        sync counts even after an earlier one failed, because the removal is a new change that it
        has to write. Raises OutcomeUnknownError. A submission that cannot be removed is left with
        its draft, and pickup sends it.
        """
        if prepared.exists() and not submission.path.exists():
            return
        SYNC_FAILURES.begin()
        places = self._shared.root.places
        try:
            for path in places(submission.path):
                remove(path)
            for draft in drafts:
                _remove_all(*places(draft))
            if len(places(submission.path)) == 1:
                self._shared.submissions.sync(submission)
            else:  # in the root, which is open; where the path leads now, nothing is sent
                fsync_path(places(submission.path)[-1].parent)
        except OSError as error:
            with suppress(OSError):  # it may be sent, no client got an answer: it cannot be lost
                detail = {NOT_ANSWERED: True}
                self._log.remark(submission.submission_id, detail, account=submission.account)
            raise OutcomeUnknownError(
                f"The mail store's disk failed while {submission.submission_id} was submitted, and "
                f"again when the submission was removed: {error.strerror or error}. Whether it "
                "will be sent is not known."
            ) from error

    def _withdraw(self, head: bytes, submission: PendingSubmission) -> None:
        """Withdraw the events of steps 1 and 2, as far as the disk allows."""
        with suppress(OSError):
            self._log.withdraw(submission_facts(head, submission.submission_id))

    def _new_submission(
        self, base_name: str, submission_id: str, *, account: str, options: SendOptions
    ) -> PendingSubmission:
        """A submission that is ready now, or scheduled if its send time is in the future."""
        submissions = self._shared.submissions
        if options.scheduled_us > self._shared.clock.time_us():
            at_us = options.scheduled_us
            path = submissions.scheduled_path(submission_id, at_us)
        else:
            at_us = self._shared.clock.queue_us()
            if options.scheduled_us:
                options = replace(options, scheduled_us=0)
            path = submissions.ready_path(submission_id, at_us)
        return PendingSubmission(
            submission_id=submission_id,
            draft_id=draft_of(submission_id),
            account=account,
            base_name=base_name,
            path=path,
            ready_us=at_us,
            options=options,
        )

    # -- step 4

    def complete_submission(self, submission: PendingSubmission, *, queue_id: str) -> None:
        """See SubmissionStore.complete_submission()."""
        with self._shared.stripes.of(submission.draft_id):
            if self._is_removed(submission):
                return
            mailbox = self._shared.folders.mailbox(submission.account)
            if not submission.submission_id.endswith(f".{FIRST_SUBMISSION}") or _is_rewritten(
                submission
            ):
                # A crash may have left the previous generation of a rewritten draft. The index
                # removes it while both files are in the same folder.
                self._shared.index.find(mailbox, submission.draft_id)
            detail: dict[str, Any] = {"folder": None, "queue_id": queue_id}
            if submission.options.save_to_sent_items:
                detail["folder"], path = self._sent_folder(mailbox, submission)
                if submission.options.sent_folder not in ("", detail["folder"]):
                    detail["folder_gone"] = submission.options.sent_folder
                self._save(mailbox, submission, path)
            else:
                self._discard(mailbox, submission)
            accepted = Event(Step.ACCEPTED, self._shared.clock.time_us(), detail)
            self._log.append(_facts_of(submission), accepted, queue_id=queue_id)
            self._shared.crash.reached(CrashPoint.STEP_RECORDED)
            self._shared.keyed.end_pickup(submission.submission_id)
            # Not synced: for a submission that reappears after a power loss, pickup asks for the
            # result again with the same key.
            self._shared.submissions.remove_ready(submission)
            self._shared.crash.reached(CrashPoint.SUBMISSION_REMOVED)

    def fail_submission(
        self,
        submission: PendingSubmission,
        report: bytes | None,
        *,
        report_to: str = "",
        to_corrupt: bool = False,
    ) -> None:
        """See SubmissionStore.fail_submission()."""
        with self._shared.stripes.of(submission.draft_id):
            if self._is_removed(submission):
                return
            if report is not None:
                unique = f"{submission.submission_id}.report"
                mailbox = report_to or submission.account
                self._inbox.deliver(
                    mailbox, unique=unique, content=report, over_quota=True, is_repeat=True
                )  # it may be a repeat: a crash may have come before the submission was removed
            self._shared.crash.reached(CrashPoint.REPORT_WRITTEN)
            self._shared.keyed.end_pickup(submission.submission_id)
            if to_corrupt:
                self._shared.submissions.move_to_corrupt(submission.path)
            self._shared.submissions.remove_ready(submission)
            # A rejection that was reported must not be requested again, nor a start finish it.
            self._shared.submissions.sync_preparing()
            self._shared.submissions.sync_ready()
            self._shared.crash.reached(CrashPoint.SUBMISSION_REMOVAL_SYNCED)

    def _is_removed(self, submission: PendingSubmission) -> bool:
        """Whether a submission was removed; one that the mail root took along was not."""
        if submission.path.exists():
            return False
        self._shared.root.check()
        self._shared.keyed.end_pickup(submission.submission_id)
        return True

    def _sent_folder(self, mailbox: Path, submission: PendingSubmission) -> tuple[str, Path]:
        """Id and path of the folder for the original: Sent Items if the other is missing."""
        if submission.options.sent_folder:
            with suppress(NoSuchItemError):
                folder = find_folder(mailbox, submission.options.sent_folder)
                if folder.may_keep_sent and (folder.path / "cur").is_dir():
                    return folder.id, folder.path
        self._shared.folders.recreate(mailbox, WellKnown.SENT_ITEMS)
        return str(WellKnown.SENT_ITEMS), well_known_path(mailbox, WellKnown.SENT_ITEMS)

    def _save(self, mailbox: Path, submission: PendingSubmission, folder: Path) -> None:
        """Move the original to a folder, or the submission's file if the draft was removed."""
        sent = folder / "cur"
        drafts = well_known_path(mailbox, WellKnown.DRAFTS) / "cur"
        base = f"{submission.base_name},S={submission.path.stat().st_size}"
        try:  # its usual place, found without listing a directory
            (drafts / f"{base}:2,{NEW_DRAFT}").rename(sent / f"{base}:2,{SEEN}")
        except FileNotFoundError:
            drafts = self._find_and_save(mailbox, submission, sent / f"{base}:2,{SEEN}") or drafts
        self._synced_after_filing(sent, drafts)

    @retry_if_renamed
    def _find_and_save(
        self, mailbox: Path, submission: PendingSubmission, target: Path
    ) -> Path | None:
        """Find the original, move it to `target`, and return the directory it was in."""
        located = self._shared.index.find_by_base_name(mailbox, submission.base_name)
        if located is None:
            with suppress(FileExistsError):
                place_again(submission.path, target)
            return None
        if not located.is_draft:  # filed before a crash, or moved by a mail client
            return None
        flags = with_flags(located.name.flags, add=SEEN, remove=DRAFT)
        located.path.rename(target.parent / f"{located.name.name_with_size}:2,{flags}")
        return located.directory

    def _discard(self, mailbox: Path, submission: PendingSubmission) -> None:
        drafts = well_known_path(mailbox, WellKnown.DRAFTS) / "cur"
        for _ in range(_REMOVALS):
            located = self._shared.index.find_by_base_name(mailbox, submission.base_name)
            if located is None or not located.is_draft:
                break
            drafts = located.directory
            remove(located.path)
        self._synced_after_filing(None, drafts)

    def _synced_after_filing(self, sent: Path | None, drafts: Path) -> None:
        reached = self._shared.crash.reached
        reached(CrashPoint.ORIGINAL_FILED)
        if sent is not None:
            self._shared.syncs.sync(sent)
            reached(CrashPoint.SENT_DIRECTORY_SYNCED)
        self._shared.syncs.sync(drafts)
        reached(CrashPoint.DRAFTS_DIRECTORY_SYNCED_AGAIN)


@lru_cache(maxsize=_MAILBOXES_REMEMBERED)
def _drafts_of(mailbox: Path) -> Path:
    """The directory with a mailbox's drafts."""
    return well_known_path(mailbox, WellKnown.DRAFTS) / "cur"


def _is_rewritten(submission: PendingSubmission) -> bool:
    """Whether the draft was changed between its submission and its time."""
    name = parse_name(submission.base_name)
    return name is not None and name.generation > 1


def first_submission(identity: DraftIdentity) -> str:
    """Return the id of the submission of a draft created by the same request."""
    return f"{identity.message_id}.{FIRST_SUBMISSION}"


def _facts_of(submission: PendingSubmission) -> SubmissionFacts:
    """The facts a later step needs: the log joins them to the line of step 1."""
    return SubmissionFacts(
        submission.submission_id, submission.draft_id, submission.account, submission.account
    )


def _remove_all(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):
            remove(path)
