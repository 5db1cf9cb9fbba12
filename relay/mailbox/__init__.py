"""The store: mailboxes as Maildir++ directories, drafts, and the notes of those submitted.

On the path: steps 1 and 2 (draft and note), 4 (the original to Sent Items), 6 (local delivery).
Touches: the mail root, `.submissions/` beside the mailboxes, the dead-letter Maildir; no network.
Promises: what a call says it did is on disk, directories fsynced; a crash between any two acts
loses nothing and doubles nothing; mail clients may use the Maildirs at the same time.
"""

from relay.mailbox.api import DeliveryResult, DeliveryStore, MailStore, NoteStore
from relay.mailbox.store import FileStore
from relay.mailbox.types import (
    BeingSentError,
    Folder,
    FolderError,
    FolderExistsError,
    MailboxFullError,
    MessageChange,
    NoSuchItemError,
    NotADraftError,
    Note,
    Page,
    ProtectedFolderError,
    SendOptions,
    StoredAttachment,
    StoredMessage,
    StoreError,
    StoreUnavailableError,
    WellKnown,
)

__all__ = [
    "BeingSentError",
    "DeliveryResult",
    "DeliveryStore",
    "FileStore",
    "Folder",
    "FolderError",
    "FolderExistsError",
    "MailStore",
    "MailboxFullError",
    "MessageChange",
    "NoSuchItemError",
    "NotADraftError",
    "Note",
    "NoteStore",
    "Page",
    "ProtectedFolderError",
    "SendOptions",
    "StoreError",
    "StoreUnavailableError",
    "StoredAttachment",
    "StoredMessage",
    "WellKnown",
]
