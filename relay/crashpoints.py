"""The named points at which a crash test kills the process: one per fsync, link, rename, commit
and reply.

On the path: between a request and the removal of its note; each room calls reached() right behind
    the act it names.
Holds: without a point set, reached() does nothing.
Fails: by SIGKILL, which is its purpose.
Standards: none; docs/design.md 7.10.
"""

import os
import signal
from enum import StrEnum


class CrashPoint(StrEnum):
    """Every point, in the order in which a sendMail passes them, and then those beside its way."""

    DRAFT_WRITTEN = "draft-written"  # file in preparing/ complete, not synced
    DRAFT_WRITTEN_BACK = "draft-written-back"  # its octets are on the disk, so names may follow
    DRAFT_LINKED = "draft-linked"  # link into .Drafts/cur
    NOTE_READY = "note-ready"  # rename to ready/, or to deferred/
    DRAFT_SYNCED = "draft-synced"  # fsync of the file, if it was not the write-back already
    DRAFTS_DIRECTORY_SYNCED = "drafts-directory-synced"  # fsync of .Drafts/cur
    READY_DIRECTORY_SYNCED = "ready-directory-synced"  # fsync of ready/
    REQUEST_ANSWERED = "request-answered"  # the 202 was handed to the socket
    NOTE_CONVERTED = "note-converted"  # MIME made, not submitted
    SUBMISSION_SENT = "submission-sent"  # final dot written
    SPOOL_BODY_SYNCED = "spool-body-synced"  # fsync of a body file and its directory
    SPOOL_BEFORE_COMMIT = "spool-before-commit"
    SPOOL_COMMITTED = "spool-committed"
    SMTP_REPLIED = "smtp-replied"  # 250 was handed to the socket
    SUBMISSION_ACCEPTED = "submission-accepted"  # pickup has read the 250
    ORIGINAL_FILED = "original-filed"  # moved to Sent Items, or removed
    SENT_DIRECTORY_SYNCED = "sent-directory-synced"
    DRAFTS_DIRECTORY_SYNCED_AGAIN = "drafts-directory-synced-again"
    STEP_RECORDED = "step-recorded"  # step 4 is in the store's log
    NOTE_REMOVED = "note-removed"
    DELIVERED_LOCALLY = "delivered-locally"  # step 6: linked into new/ and synced, not settled
    REPORT_WRITTEN = "report-written"  # step 3 failed for good: the report is in the Inbox
    NOTE_REMOVAL_SYNCED = "note-removal-synced"  # behind such a report
    NOTE_PREPARED = "note-prepared"  # a draft that is sent as it is: link into preparing/
    # A draft that waits for its time:
    CHANGE_PREPARED = "change-prepared"  # its next generation linked into preparing/
    NOTE_POSTPONED = "note-postponed"  # renamed for another time
    NOTE_REPLACED = "note-replaced"  # the next generation renamed over it
    DRAFT_REPLACED = "draft-replaced"  # and linked into the draft's folder
    NOTE_CANCELLED = "note-cancelled"  # unlinked from deferred/
    NOTE_DUE = "note-due"  # renamed from deferred/ to ready/
    DUE_NOTES_SYNCED = "due-notes-synced"  # fsync of ready/ and deferred/
    # The start and the stop of the spool, and its checkpoints:
    SPOOL_OPENED = "spool-opened"  # its tables are there
    SPOOL_COMMIT_NOTED = "spool-commit-noted"  # fsync of the number of its last commit
    SPOOL_CHECKPOINT_BEGUN = "spool-checkpoint-begun"  # noted and synced
    SPOOL_CHECKPOINT_ENDED = "spool-checkpoint-ended"  # not noted
    SPOOL_LOG_EMPTIED = "spool-log-emptied"  # noted and synced; the log is still there
    SPOOL_CLOSED = "spool-closed"  # the log is removed
    SPOOL_COMMIT_FORGOTTEN = "spool-commit-forgotten"  # the number is removed


class CrashPoints:
    """Kills this process with SIGKILL at one point, the nth time it is reached."""

    def __init__(self, at: str = "") -> None:
        """`at` is "", "POINT" or "POINT:N".

        Raises ValueError for a point that does not exist.
        """
        name, _, count = at.partition(":")
        self._point = CrashPoint(name) if name else None
        self._left = int(count or 1)

    def reached(self, point: CrashPoint) -> None:
        """Say that the process is right behind the act that `point` names."""
        if point is not self._point:
            return
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
