"""The errors of the store. Their texts can be shown to users.

Which HTTP status and Graph code a client gets: `relay/front_door/graph/graph_request.py`.
"""


class StoreError(Exception):
    """The store failed. Nothing was changed, unless the error is an OutcomeUnknownError."""


class MailboxFullError(StoreError):
    """The message does not fit under the quota."""


class MailboxTooSmallError(MailboxFullError):
    """The message is larger than the quota of the mailbox."""


class StoreUnavailableError(StoreError):
    """The disk is full, read-only or failing."""


class OutcomeUnknownError(StoreError):
    """The disk failed; it is unknown whether the message will be sent, or the change was made."""


class ContentUnreadableError(StoreUnavailableError):
    """The source file of the content cannot be read; the mailbox works."""


class NoSuchItemError(StoreError):
    """The mailbox has no message or folder with that id."""


class BeingSentError(StoreError):
    """The draft has been submitted: it cannot be changed until step 4 (409)."""


class NotADraftError(StoreError):
    """The action requires a draft."""


class MessageChangedError(StoreError):
    """The message does not have the change key that the client requires (412)."""


class AttachmentsTooLargeError(StoreError):
    """The number or the total size of the draft's attachments exceeds the limit (413)."""


class StateTooLargeError(StoreError):
    """The state of a message would exceed its maximum size (413)."""


class TooManyUploadsError(StoreError):
    """The account has the maximum number of incomplete uploads (429), until one ends in
    `retry_after_s`.
    """

    def __init__(self, text: str, retry_after_s: int) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class UploadBusyError(StoreError):
    """Another range of the upload is being received; ranges are sent in order (409)."""


class FolderError(StoreError):
    """The folder cannot be created, renamed, moved or removed; the text says why."""


class FolderExistsError(FolderError):
    """A folder with that name exists (409)."""


class ProtectedFolderError(FolderError):
    """A well-known folder cannot be renamed, moved or removed (403)."""


class StalePositionError(StoreError):
    """A position of the change feed, or a page token, is not valid any more: start again."""


class QueryTooLongError(StoreError):
    """The query exceeds the time limit of a query (400); a repeat would exceed it too."""
