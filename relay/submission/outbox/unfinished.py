"""Remove the files of interrupted submissions, or finish these submissions.

The API role does this before it accepts requests, and after a disk failure each second until it
succeeds. Only one process has that role for a mail root: no other process uses these files. A draft
whose submission was ready, or that existed before its submission, is never removed.

Methods raise OSError. At a start, errors are logged and the next start tries again.
"""

from dataclasses import dataclass
from pathlib import Path

from relay.base.message.content import LARGE_BYTES
from relay.base.observe.logs import get_logger
from relay.store.mailbox.draft_files import submission_facts
from relay.store.mailbox.errors import StoreError, StoreUnavailableError
from relay.store.mailbox.maildir import SYNC_FAILURES, open_message, remove
from relay.submission.outbox import on_disk
from relay.submission.outbox.idempotency import KeyedSubmissions
from relay.submission.outbox.scheduled import ScheduledSends

_log = get_logger("outbox")


@dataclass(kw_only=True, eq=False, repr=False)
class UnfinishedSubmissions(on_disk.OutboxPart):
    """Removes or finishes interrupted submissions. Blocking: the store calls it in its threads."""

    keyed: KeyedSubmissions  # the records of keys
    scheduled: ScheduledSends

    def remove_unfinished(self) -> int:
        """Remove the files in preparing/ and the drafts of the same requests; return their number.

        A submission whose key is recorded exists already: it is made ready instead.
        A file that cannot be removed stays for the next start and does not block the others.

        Raises OSError. Raises StoreUnavailableError if an existing submission may be left: then
        this must be called again while no other call of the store runs.
        """
        submissions = self.directory
        submissions.look_for_copies()
        submissions.is_unfinished = True
        files = submissions.prepared()
        removed, unfinished = 0, ""
        for prepared in files:
            SYNC_FAILURES.begin()
            try:
                try:
                    place = self.keyed.place_of(prepared)
                    if place:
                        submissions.finish(prepared.path, place)
                        continue
                except OSError as error:
                    unfinished = f"{prepared.submission_id} cannot be made ready: {error}"
                    continue
                self._remove_prepared(prepared)
            except (OSError, StoreError) as error:
                _log.error("stale file kept", file=str(prepared.path), reason=str(error))
            else:
                removed += 1
        if unfinished:
            raise StoreUnavailableError(unfinished)
        submissions.is_unfinished = False
        return removed  # not synced: the next start removes files that reappear after a power loss

    def _remove_prepared(self, prepared: on_disk.PreparedFile) -> None:
        path, submission_id = prepared.path, prepared.submission_id
        if path.name.endswith("+"):
            self.scheduled.finish_change(on_disk.draft_of(path.name))
        if submission_id and self.directory.find_submission(submission_id) is None:
            if not prepared.is_cancelled:
                self._remove_draft(path, submission_id)  # steps 1 and 2 may be recorded already
            elif (block := on_disk.read_block_of(path)) is not None:
                self.scheduled.record_cancelled(submission_id, block.origin.account, "")
        remove(path)

    def _remove_draft(self, submission: Path, submission_id: str) -> None:
        """Withdraw the events of a submission; remove its draft if the same request made it."""
        block = on_disk.read_block_of(submission)
        if submission_id.endswith(f".{on_disk.FIRST_SUBMISSION}") and block is not None:
            mailbox = self.folders.mailbox(block.origin.account)
            located = self.index.find_by_base_name(mailbox, block.origin.base_name)
            if located is not None and located.is_draft:
                remove(located.path)
                self.syncs.sync(located.directory)
        with open_message(submission) as file:
            head = file.read(LARGE_BYTES)
        self.log.withdraw(submission_facts(head, submission_id))
