"""The store: mailboxes as Maildir++ directories, drafts, and the notes of those submitted.

On the path: steps 1 and 2 (draft and note), 4 (the original to Sent Items), 6 (local delivery).
Touches: the mail root, `.submissions/` beside the mailboxes, the dead-letter Maildir; no network.
Inside: api says what callers get, store puts it together; drafts, sending, moving, inbox and
arrivals change mailboxes; folders/, notes/, attachments/ and index/ are one thing each; verify/
looks at all of them.
Promises: what a call says it did is on disk, directories fsynced; a crash between any two acts
loses nothing and doubles nothing; mail clients may use the Maildirs at the same time.
"""

from relay.mailbox.api import DeliveryResult, DeliveryStore, MailStore, SubmissionStore
from relay.mailbox.store import FileStore
from relay.mailbox.types import (
    AttachmentsTooLargeError,
    BeingSentError,
    ContentUnreadableError,
    Folder,
    FolderError,
    FolderExistsError,
    MailboxFullError,
    MailboxTooSmallError,
    MessageChange,
    NoSuchItemError,
    NotADraftError,
    Page,
    PendingSubmission,
    ProtectedFolderError,
    QuotaLimits,
    Room,
    SendOptions,
    StalePositionError,
    StoredAttachment,
    StoredMessage,
    StoreError,
    StoreUnavailableError,
    TooManyUploadsError,
    UploadBusyError,
    WellKnown,
)

__all__ = [
    "AttachmentsTooLargeError",
    "BeingSentError",
    "ContentUnreadableError",
    "DeliveryResult",
    "DeliveryStore",
    "FileStore",
    "Folder",
    "FolderError",
    "FolderExistsError",
    "MailStore",
    "MailboxFullError",
    "MailboxTooSmallError",
    "MessageChange",
    "NoSuchItemError",
    "NotADraftError",
    "Page",
    "PendingSubmission",
    "ProtectedFolderError",
    "QuotaLimits",
    "Room",
    "SendOptions",
    "StalePositionError",
    "StoreError",
    "StoreUnavailableError",
    "StoredAttachment",
    "StoredMessage",
    "SubmissionStore",
    "TooManyUploadsError",
    "UploadBusyError",
    "WellKnown",
]
