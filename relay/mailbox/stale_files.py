"""What a crash left: submissions that nobody got a 202 for, and old files in tmp/.

On the path: the front door, before it takes requests; whoever writes to a mailbox, the first time
and then once a day.
Holds: a draft whose note was ready, or that was there before its submission, is never touched.
Only one process is the front door of a root: what is in the way at its start is nobody's work.
Fails: OSError when the disk refuses; at a start that is logged, and tried again at the next.
Standards: Maildir (a file in tmp/ that was not touched for 36 hours may go); docs/design.md 1.
"""

import os
import shutil
import stat
import threading
from contextlib import suppress
from pathlib import Path

from relay.clock import now_at_least_us
from relay.journeys.submission_log import SubmissionLog
from relay.mailbox.dependencies import StoreDependencies
from relay.mailbox.folders import DELETED_PREFIX, list_folders, well_known_path
from relay.mailbox.maildir import (
    SYNC_FAILURES,
    list_names,
    open_message,
    place_again,
    remove,
)
from relay.mailbox.message_file import is_relay_name
from relay.mailbox.messages import is_draft, submission_facts
from relay.mailbox.submissions import PreparedFile, draft_of, read_block_of
from relay.mailbox.types import StoreError, WellKnown
from relay.message.content import LARGE_BYTES
from relay.mime.draft import DraftOrigin
from relay.observe.logs import get_logger

STALE_S = 36 * 3600
_EVERY_S = 24 * 3600

_log = get_logger("mailbox")


class StaleFiles:
    """Blocking; the store calls it in its threads."""

    def __init__(self, dependencies: StoreDependencies, log: SubmissionLog) -> None:
        self._shared = dependencies
        self._log = log
        self._lock = threading.Lock()
        # One path an account: whatever is forgotten would be cleaned under its writers' hands.
        self._cleaned_s: dict[Path, float] = {}

    def remove_unfinished(self) -> int:
        """Remove what is in preparing/, with the drafts that came with it; return how many.

        What cannot be removed now stays for the next start: one broken mailbox stops no other.
        """
        submissions = self._shared.submissions
        removed = 0
        for prepared in submissions.prepared():
            SYNC_FAILURES.begin()
            try:
                self._remove_one(prepared)
            except (OSError, StoreError) as error:
                _log.error("stale file kept", file=str(prepared.path), reason=str(error))
            else:
                removed += 1
        return removed  # not synced: what comes back with the power, the next start removes

    def _remove_one(self, prepared: PreparedFile) -> None:
        submissions = self._shared.submissions
        block = read_block_of(prepared.path)
        if prepared.is_change and block is not None:
            self._finish_change(prepared, block.origin)
        is_cut_off = (
            prepared.submission_id != ""
            and not prepared.is_change
            and submissions.find_submission(prepared.submission_id) is None
        )
        if prepared.is_new and block is not None and is_cut_off:
            mailbox = self._shared.folders.mailbox(block.origin.account)
            located = self._shared.index.find_by_base_name(mailbox, block.origin.base_name)
            if located is not None and is_draft(located):
                remove(located.path)
                self._shared.syncs.sync(located.directory)
        if is_cut_off:  # its steps 1 and 2 may be recorded already
            with open_message(prepared.path) as file:
                head = file.read(LARGE_BYTES)
            self._log.withdraw(submission_facts(head, prepared.submission_id))
        remove(prepared.path)

    def _finish_change(self, prepared: PreparedFile, origin: DraftOrigin) -> None:
        """Put a waiting draft's next generation in its place if its note says it already."""
        submissions = self._shared.submissions
        submission = submissions.find_submission(prepared.submission_id)
        said = read_block_of(submission) if submission else None
        if said is None or said.origin.base_name != origin.base_name:
            return
        mailbox = self._shared.folders.mailbox(origin.account)
        draft_id = draft_of(prepared.submission_id)
        before = self._shared.index.find(mailbox, draft_id)
        if before is None or before.name.base_name == origin.base_name:
            return
        base = f"{origin.base_name},S={prepared.path.stat().st_size}"
        placed = before.folder.path / "cur" / f"{base}:2,{before.name.flags}"
        place_again(prepared.path, placed)
        self._shared.syncs.sync(before.folder.path / "cur")
        remove(before.path)

    def clean(self, mailbox: Path) -> None:
        """Remove what is left in the mailbox, before this process writes there: once a day.

        The first time that is half-written drafts and half-removed folders, whatever their age;
        always what anybody left in any tmp/ for longer than 36 hours.
        """
        now_s = self._shared.clock.monotonic()
        if now_s - self._cleaned_s.get(mailbox, -_EVERY_S) < _EVERY_S:
            return
        with self._lock:  # who comes second waits until the first time is over
            cleaned_s = self._cleaned_s.get(mailbox)
            if cleaned_s is not None and now_s - cleaned_s < _EVERY_S:
                return
            if cleaned_s is None:
                _remove_half_done(mailbox)
            self._cleaned_s[mailbox] = now_s
        old_s = now_at_least_us(self._shared.clock) / 1_000_000 - STALE_S
        for folder in list_folders(mailbox):
            _remove_old(folder.path / "tmp", old_s)


def _remove_half_done(mailbox: Path) -> None:
    temporary = well_known_path(mailbox, WellKnown.DRAFTS) / "tmp"
    for name in list_names(temporary):
        if is_relay_name(name):
            remove(temporary / name)
    for name in list_names(mailbox):
        if name.startswith(DELETED_PREFIX):
            shutil.rmtree(mailbox / name, ignore_errors=True)


def _remove_old(directory: Path, old_s: float) -> None:
    """Remove files that nobody wrote, linked or renamed since `old_s`."""
    for name in list_names(directory):
        path = directory / name
        with suppress(OSError):  # gone, or not ours to remove
            status = os.lstat(path)
            if status.st_ctime < old_s and not stat.S_ISDIR(status.st_mode):
                path.unlink()
