"""Named points at which a crash test kills the process: each fsync, link, rename, commit and reply.

A room calls reached() directly after the operation that the point names. Without a configured
point, reached() does nothing. See docs/design.md 7, invariant 10.
"""

import os
import signal
from contextlib import suppress
from enum import StrEnum


class CrashPoint(StrEnum):
    """All points: those of a sendMail in the order in which it passes them, then other paths."""

    DRAFT_WRITTEN = "draft-written"  # file in preparing/ complete, not synced
    DRAFT_WRITTEN_BACK = "draft-written-back"  # its octets are on the disk
    DRAFT_LINKED = "draft-linked"  # link into .Drafts/cur
    SUBMISSION_READY = "submission-ready"  # rename to ready/, or to deferred/
    DRAFTS_DIRECTORY_SYNCED = "drafts-directory-synced"  # fsync of .Drafts/cur, if it is needed
    READY_DIRECTORY_SYNCED = "ready-directory-synced"  # fsync of ready/
    REQUEST_ANSWERED = "request-answered"  # the 202 was written to the socket
    SUBMISSION_CONVERTED = "submission-converted"  # MIME made, not submitted
    SUBMISSION_SENT = "submission-sent"  # final dot written
    SPOOL_BODY_SYNCED = "spool-body-synced"  # fsync of a body file and its directory
    SPOOL_BEFORE_COMMIT = "spool-before-commit"
    SPOOL_COMMITTED = "spool-committed"
    SMTP_REPLIED = "smtp-replied"  # the 250 was written to the socket
    SUBMISSION_ACCEPTED = "submission-accepted"  # pickup has read the 250
    ORIGINAL_FILED = "original-filed"  # moved to Sent Items, or removed
    SENT_DIRECTORY_SYNCED = "sent-directory-synced"  # if it is needed
    DRAFTS_DIRECTORY_SYNCED_AGAIN = "drafts-directory-synced-again"  # if it is needed
    STEP_RECORDED = "step-recorded"  # step 4 is in the store's log
    SUBMISSION_REMOVED = "submission-removed"
    DELIVERED_LOCALLY = "delivered-locally"  # step 6: linked into new/ and synced, not recorded
    REPORT_WRITTEN = "report-written"  # step 3 failed for good: the report is in the Inbox
    SUBMISSION_REMOVAL_SYNCED = "submission-removal-synced"  # after such a report
    SUBMISSION_HELD = "submission-held"  # renamed in deferred/, or from ready/ to it
    SUBMISSION_RELEASED = "submission-released"  # renamed from there
    SUBMISSION_PREPARED = (
        "submission-prepared"  # a draft that is sent unchanged: link into preparing/
    )
    # A read receipt, of a message that a client has marked as read:
    COPY_READ = "copy-read"  # the flag is synced; the receipt is not sent
    RECEIPT_ACCEPTED = "receipt-accepted"  # it is in the spool; its copy has no $MDNSent
    RECEIPT_MARKED = "receipt-marked"  # the copy has $MDNSent; the receipt is recorded as owed
    TENANT_SET_KEPT = "tenant-set-kept"  # a reload: synced, and the older ones are still there
    DROP_ACCEPTED = "drop-accepted"  # a file of the drop directory: committed, not removed
    # A submission with an Idempotency-Key, before submission-ready:
    PREPARING_DIRECTORY_SYNCED = "preparing-directory-synced"  # fsync of preparing/
    KEY_RECORDED = "key-recorded"  # its record is committed; the next start makes it ready
    # A scheduled send:
    CHANGE_PREPARED = "change-prepared"  # its marker is in preparing/ and synced
    SUBMISSION_RESCHEDULED = "submission-rescheduled"  # an earlier time is in its name
    DRAFT_REPLACED = "draft-replaced"  # the next generation linked into the draft's folder
    DRAFT_TAKEN_AWAY = "draft-taken-away"  # the draft was changed, moved or deleted, and synced
    SUBMISSION_REPLACED = "submission-replaced"  # the next generation renamed over it
    SUBMISSION_CANCELLED = "submission-cancelled"  # recorded, and removed from deferred/
    SUBMISSION_DUE = "submission-due"  # renamed from deferred/ to ready/
    DUE_SUBMISSIONS_SYNCED = "due-submissions-synced"  # fsync of ready/ and deferred/
    # The start and the stop of the spool, and its checkpoints:
    SPOOL_OPENED = "spool-opened"  # its tables are there
    SPOOL_COMMIT_NOTED = "spool-commit-noted"  # fsync of the number of its last commit
    SPOOL_CLOSED = "spool-closed"  # the log is removed
    SPOOL_COMMIT_FORGOTTEN = "spool-commit-forgotten"  # the number is removed


class CrashPoints:
    """Kills this process with SIGKILL at one point, the nth time it is reached."""

    def __init__(self, at: str = "") -> None:
        """`at` is "", "POINT" or "POINT:N".

        Raises ValueError for an unknown point.
        """
        name, _, count = at.partition(":")
        self._point = CrashPoint(name) if name else None
        self._left = int(count or 1)

    def is_at(self, point: CrashPoint) -> bool:
        """Return whether the process dies at this point."""
        return point is self._point

    def reached(self, point: CrashPoint) -> None:
        """Report that the operation that `point` names is done."""
        if point is not self._point:
            return
        self._left -= 1
        if self._left <= 0:
            with suppress(PermissionError):  # in a sandbox
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(1)
