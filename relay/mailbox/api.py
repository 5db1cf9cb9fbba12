"""The protocols of the mail store, one for each kind of caller. store.py implements them.

graph uses MailStore (steps 1 and 2), pickup SubmissionStore (2 to 4), ingress and delivery
DeliveryStore (6). `account` is the canonical address of a mailbox, in lower case. A coroutine
returns when its result is durable, directories included. Errors are StoreError's children
(types.py); after one, nothing is half-written.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from relay.mailbox.arrivals import Arrivals
from relay.mailbox.query import DeltaQuery, MessageQuery
from relay.mailbox.settings_file import UserSettings
from relay.mailbox.types import (
    NO_PRECONDITION,
    ChangePage,
    DeliveryResult,
    DeltaPage,
    Folder,
    FolderDeltaPage,
    KeyedSubmission,
    MessageChange,
    Page,
    PendingSubmission,
    Precondition,
    Room,
    SendOptions,
    StoredMessage,
)
from relay.mailbox.upload_sessions import AttachmentStore
from relay.message.content import Content, Octets
from relay.message.properties import MessageProperties
from relay.mime.draft import DraftAttachment


class MailStore(Protocol):
    """All mailboxes under one root, for the HTTP API.

    Methods with a `condition` check it and act under the message's lock. They raise NoSuchItemError
    or MessageChangedError if it is not true.
    """

    @property
    def arrivals(self) -> Arrivals:
        """Drafts from MIME that is too large for memory."""
        ...

    @property
    def attachments(self) -> AttachmentStore:
        """Single attachments and upload sessions."""
        ...

    # -- steps 1 and 2

    async def create_draft(
        self,
        account: str,
        content: MessageProperties | bytes,
        *,
        folder_id: str = "drafts",
        kept: Sequence[DraftAttachment] = (),
    ) -> StoredMessage:
        """Write a draft (properties, or MIME kept byte for byte).

        `kept` are attachments of another message that follow those of the properties.

        Raises MailboxFullError, StoreUnavailableError, NoSuchItemError.
        """
        ...

    async def submit_new(
        self,
        account: str,
        content: MessageProperties | bytes,
        options: SendOptions,
        *,
        kept: Sequence[DraftAttachment] = (),
    ) -> PendingSubmission:
        """Write a draft and its pending submission: sendMail and reply, steps 1 and 2.

        Raises MailboxFullError, StoreUnavailableError.
        """
        ...

    async def submit_draft(
        self,
        account: str,
        message_id: str,
        options: SendOptions,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> PendingSubmission:
        """Submit an existing draft: /send.

        Also raises NoSuchItemError, NotADraftError, BeingSentError.
        """
        ...

    async def find_keyed(self, account: str, slot: bytes) -> KeyedSubmission | None:
        """The submission that was made with this SubmissionKey within 24 hours.

        Raises TooManyKeysError if there is none and the account cannot have another one.
        """
        ...

    # -- reading and changing

    async def get(self, account: str, message_id: str, *, folder_id: str = "") -> StoredMessage:
        """One message, in any folder or only in `folder_id`. Raises NoSuchItemError."""
        ...

    async def read_flags(self, account: str, message_ids: Sequence[str]) -> Mapping[str, bool]:
        """Whether messages are read, by id; those that are not in the mailbox are left out."""
        ...

    async def query_messages(self, account: str, query: MessageQuery) -> Page:
        """A page of the requested messages. It ends before `top` when it has `bytes_max` of them,
        or when the time of a query is over.

        Cancelling the caller stops the query. Raises NoSuchItemError for the folder,
        StalePositionError for `after`, QueryTooLongError, TooManyQueriesError,
        StoreUnavailableError.
        """
        ...

    async def changes(self, account: str, *, after: str = "", limit: int = 1000) -> ChangePage:
        """The changes of the mailbox's messages after the position `after`, by any program.

        "" returns no changes, only the current position. Raises StalePositionError for a position
        that is no longer known; the caller then lists all messages and starts again.
        """
        ...

    async def message_delta(self, account: str, query: DeltaQuery) -> DeltaPage:
        """What became of a folder's messages since a position, each message once.

        It reads the changes and the changed messages, whatever the size of the mailbox. A page may
        end early, as in query_messages(). Raises what that raises, with StalePositionError for
        `after`.
        """
        ...

    async def update(
        self,
        account: str,
        message_id: str,
        change: MessageChange,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """PATCH. Properties without attachments keep the existing attachments.

        Raises NoSuchItemError, NotADraftError, BeingSentError, MailboxFullError,
        StoreUnavailableError.
        """
        ...

    async def delete(
        self, account: str, message_id: str, *, condition: Precondition = NO_PRECONDITION
    ) -> None:
        """Move a message to Deleted Items; remove it if it is already there or in a subfolder.

        Raises NoSuchItemError, BeingSentError.
        """
        ...

    async def move_message(
        self,
        account: str,
        message_id: str,
        destination_id: str,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Move a message to another folder. Its id does not change.

        Raises NoSuchItemError, BeingSentError, StoreUnavailableError.
        """
        ...

    async def copy_message(
        self,
        account: str,
        message_id: str,
        destination_id: str,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """Copy a message to a folder. The copy has a new id.

        Raises NoSuchItemError, MailboxFullError, StoreUnavailableError.
        """
        ...

    async def remove_message(
        self, account: str, message_id: str, *, condition: Precondition = NO_PRECONDITION
    ) -> None:
        """Remove a message permanently. Raises NoSuchItemError, BeingSentError."""
        ...

    async def mime(self, account: str, message_id: str) -> Content:
        """`$value`: MIME without the private block (a JSON draft is converted), Bcc kept.

        A large message is read from a file that stays open while the content is referenced.

        Raises NoSuchItemError.
        """
        ...

    # -- folders

    async def list_folders(self, account: str) -> Sequence[Folder]:
        """Every folder, well-known ones first. Creates the mailbox on first use."""
        ...

    async def folder_delta(self, account: str, *, after: str, limit: int) -> FolderDeltaPage:
        """The folders that changed after the position `after`, each as it is now; for "" all.

        With a `limit` of 0 only the current position. Raises StalePositionError.
        """
        ...

    async def get_folder(self, account: str, folder_id: str) -> Folder:
        """By id or well-known name, case-insensitively; "msgfolderroot" is the root.

        Raises NoSuchItemError.
        """
        ...

    async def create_folder(self, account: str, name: str, *, parent_id: str = "") -> Folder:
        """Create a folder; `parent_id` "" is the mailbox's root.

        Raises NoSuchItemError, FolderExistsError, FolderError, StoreUnavailableError.
        """
        ...

    async def rename_folder(self, account: str, folder_id: str, name: str) -> Folder:
        """Rename a folder. Its id and content do not change.

        Raises ProtectedFolderError for a well-known folder, and what create_folder() raises.
        """
        ...

    async def move_folder(self, account: str, folder_id: str, *, parent_id: str) -> Folder:
        """Move a folder and its content into another one. Raises what rename_folder() does."""
        ...

    async def copy_folder(self, account: str, folder_id: str, *, parent_id: str) -> Folder:
        """Copy a folder, also a well-known one, with its subfolders and messages to another folder.

        Raises NoSuchItemError, FolderExistsError, FolderError, MailboxFullError,
        StoreUnavailableError.
        """
        ...

    async def delete_folder(
        self, account: str, folder_id: str, *, permanently: bool = False
    ) -> None:
        """Move a folder to Deleted Items. If it is there, or `permanently`, remove it.

        Raises NoSuchItemError, ProtectedFolderError, FolderError, StoreUnavailableError.
        """
        ...

    # -- settings

    async def mailbox_settings(self, account: str) -> UserSettings:
        """What the user has set, or the defaults. Raises StoreUnavailableError."""
        ...

    async def write_mailbox_settings(self, account: str, settings: UserSettings) -> None:
        """Replace all settings. Raises StoreUnavailableError."""
        ...


class SubmissionStore(Protocol):
    """The pending submissions, for pickup: steps 2 to 4."""

    @property
    def pending_count(self) -> int:
        """The number of submissions in memory: those that wait and those in progress."""
        ...

    @property
    def due_count(self) -> int:
        """The number of submissions that wait for no later time, those in progress included."""
        ...

    async def watch_submissions(self, on_ready: Callable[[], None]) -> None:
        """Find submissions in ready/, and make scheduled sends ready at their time, without end.

        `on_ready` is called on the event loop when take_submission() may return another one.
        """
        ...

    def take_submission(self, may_start: Callable[[str], bool]) -> PendingSubmission | None:
        """The next submission of an account for which `may_start` is true; None if there is none.

        Round robin among accounts. Each submission is returned once, and again after
        retry_submission().
        """
        ...

    def is_rush(self) -> bool:
        """Whether submit requests were in progress for most of the recent time."""
        ...

    async def submission_content(self, submission: PendingSubmission) -> Octets:
        """The submission's file with its private block, for convert().

        Raises NoSuchItemError, StoreUnavailableError.
        """
        ...

    def retry_submission(self, submission: PendingSubmission, delay_s: float) -> None:
        """Make take_submission() return a submission again after `delay_s` seconds."""
        ...

    async def complete_submission(self, submission: PendingSubmission, *, queue_id: str) -> None:
        """Step 4: move to Sent Items (or remove), record it, end the submission. Idempotent."""
        ...

    async def fail_submission(
        self,
        submission: PendingSubmission,
        report: bytes | None,
        *,
        report_to: str = "",
        to_corrupt: bool = False,
    ) -> None:
        """Step 3 failed permanently: deliver the report to the Inbox, remove the submission.

        `report_to` is the mailbox for the report, by default the sender's. With `to_corrupt` the
        submission's file is kept in corrupt/ for the operator. The draft stays in Drafts as a plain
        draft. Idempotent.

        Raises MailboxFullError when the report does not fit even into the space reserved for
        reports; the submission then does not change.
        """
        ...


class DeliveryStore(Protocol):
    """Local delivery (step 6), and the quota check at RCPT."""

    async def room(self, account: str, size: int) -> Room:
        """Whether a message of `size` bytes fits the quota: for RCPT."""
        ...

    async def deliver(
        self,
        account: str,
        *,
        unique: str,
        content: Content,
        over_quota: bool = False,
        is_repeat: bool = False,
    ) -> DeliveryResult:
        """Deliver a message to the Inbox under a name made from `unique`.

        Repeating a delivery changes nothing. `unique` begins with a clock id (a queue id), whose
        time is part of the file name. `over_quota` allows reports to exceed the quota, within a
        bound. `is_repeat`: the message may have been delivered and then renamed by a mail client,
        so it is also searched by its content, which takes longer.
        Raises MailboxFullError, ContentUnreadableError, StoreUnavailableError.
        """
        ...
