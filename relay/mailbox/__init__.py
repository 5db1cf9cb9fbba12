"""The mail store: mailboxes as Maildir++ directories, drafts, and their pending submissions.

It implements steps 1, 2 and 4 on disk (draft, pending submission, the original to Sent Items) and
local delivery in step 6. It touches the mail root, `.submissions/` in it, and the dead-letter
Maildir. When a call returns, its changes are durable, directories included. A crash between any two
operations loses nothing and duplicates nothing. Other mail programs may use the Maildirs at the
same time.

`api` has a Protocol for each caller, `store` implements them. `messages` creates, reads and changes
messages, `draft_files` has the format of drafts; `submit` has steps 2 and 4, `inbox` local
delivery. `moving`, `folders`, `attachments` and `upload_sessions` have the other operations of
Graph. The package `submissions` has the pending submissions and
scheduled sends, `index` finds messages, `quota` limits mailboxes, `verify` is `relay storage
verify`.
"""

from relay.mailbox.api import DeliveryStore, MailStore, SubmissionStore
from relay.mailbox.store import FileStore
from relay.mailbox.types import (
    AttachmentsTooLargeError,
    BeingSentError,
    ContentUnreadableError,
    DeliveryResult,
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
