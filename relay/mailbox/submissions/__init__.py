"""Notes: the second names of drafts that were submitted, beside the mailboxes.

On the path: step 2 makes one, deferred ones wait for their time, pickup takes them up (3), and
step 4 removes them.
Holds: `.submissions/` is the queue, memory only knows the first of it; a note is in work once.
Fails: BeingSentError; OSError when the disk refuses.
Standards: none; docs/design.md 1.
"""

from relay.mailbox.submissions.on_disk import (
    FIRST_SUBMISSION,
    SUBMISSION_FILE_NAME,
    PreparedFile,
    SubmissionDirectory,
    content_of,
    draft_of,
    read_block_of,
)

__all__ = [
    "FIRST_SUBMISSION",
    "SUBMISSION_FILE_NAME",
    "PreparedFile",
    "SubmissionDirectory",
    "content_of",
    "draft_of",
    "read_block_of",
]
