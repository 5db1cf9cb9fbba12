"""Pending submissions: hard links to submitted drafts, in `.submissions/` under the mail root.

`submit` writes them (step 2) and files the original (step 4), `scheduled` holds the scheduled sends
until their time, `pending` hands the ready ones to pickup (step 3), `on_disk` is the directory.
The directory is the queue; memory holds only its beginning.
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
