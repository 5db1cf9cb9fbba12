"""The store as its callers know it, a Protocol for each; store.py is the Maildir++ behind them.

MailStore is for graph (steps 1, 2), SubmissionStore for pickup (2 to 4), DeliveryStore for
ingress and delivery (6). `account` is a mailbox's canonical address in all of them, lower case.
Holds: every coroutine returns only when what it promises is on disk, directories fsynced.
Fails: StoreError's children (types.py); after one, nothing is half-written.
Standards: Maildir++; Graph's message and mailFolder.
"""

from collections.abc import AsyncGenerator, Sequence
from enum import Enum
from typing import Protocol, TypeVar

from relay.mailbox.query import MessageQuery
from relay.mailbox.types import (
    NO_PRECONDITION,
    ChangePage,
    Folder,
    MessageChange,
    NewUpload,
    OpenedMessage,
    Page,
    PendingSubmission,
    Precondition,
    Room,
    SendOptions,
    StoredMessage,
    Upload,
)
from relay.message.content import Content, Octets
from relay.message.properties import Attachment, MessageProperties
from relay.mime.read_mime import AttachmentFacts


class DeliveryResult(Enum):
    """What came of a local delivery."""

    DELIVERED = "delivered"
    ALREADY_THERE = "already there"


_Finished_co = TypeVar("_Finished_co", covariant=True)


class Arrival(Protocol[_Finished_co]):
    """MIME on its way into a draft's file, block by block; one call at a time."""

    async def write(self, octets: bytes) -> None:
        """Append octets. Raises StoreUnavailableError."""
        ...

    async def finish(self) -> _Finished_co:
        """Say that this was all: it is durable, and what it is meant for, when this returns.

        Raises what create_draft(), submit_new() and update() raise; then nothing is left.
        """
        ...

    def discard(self) -> None:
        """Remove what came, unless it was finished. Returns at once."""
        ...


class Arrivals(Protocol):
    """Drafts of MIME that is not in memory. What is expected is what Content-Length lets expect;
    a mailbox that it does not fit into is refused at once.

    Each raises NoSuchItemError, MailboxFullError, StoreUnavailableError.
    """

    async def submission(
        self, account: str, options: SendOptions, *, expected_bytes: int
    ) -> Arrival[PendingSubmission]:
        """A submit_new()."""
        ...

    async def draft(
        self, account: str, folder_id: str, *, expected_bytes: int
    ) -> Arrival[StoredMessage]:
        """A create_draft()."""
        ...

    async def replacement(
        self,
        account: str,
        message_id: str,
        *,
        expected_bytes: int,
        condition: Precondition = NO_PRECONDITION,
    ) -> Arrival[StoredMessage]:
        """New MIME for a draft. Raises NotADraftError, BeingSentError, MessageChangedError as well.

        The condition is checked when it begins and when it ends.
        """
        ...


class UploadRange(Protocol):
    """A range of an upload on its way; one call at a time."""

    async def write(self, octets: bytes) -> None:
        """Append octets. Raises StoreUnavailableError."""
        ...

    async def finish(self) -> Upload:
        """Say that this was all: it is durable when this returns. Raises StoreUnavailableError."""
        ...

    def abort(self) -> None:
        """Forget the range, unless it is finished. Returns at once."""
        ...


class AttachmentStore(Protocol):
    """The attachments of messages, and what is uploaded to become one. `limit_bytes` is for all
    attachments of a draft together.

    What adds or removes one raises NoSuchItemError, NotADraftError, BeingSentError,
    AttachmentsTooLargeError, MailboxFullError, StoreUnavailableError.
    """

    async def opened(self, account: str, message_id: str, *, folder_id: str = "") -> OpenedMessage:
        """A message and its attachments, which can be read while they are held.

        Raises NoSuchItemError, StoreUnavailableError.
        """
        ...

    async def add(
        self, account: str, message_id: str, attachment: Attachment, *, limit_bytes: int
    ) -> str:
        """Add one to a draft; return its id."""
        ...

    async def remove(self, account: str, message_id: str, attachment_id: str) -> None:
        """Remove one from a draft."""
        ...

    async def create_upload(
        self, account: str, message_id: str, wanted: AttachmentFacts, *, limit_bytes: int
    ) -> NewUpload:
        """Begin an upload for a draft, with a token. Raises TooManyUploadsError as well."""
        ...

    async def find_upload(self, token: str) -> Upload:
        """An upload that has not expired. Raises NoSuchItemError."""
        ...

    async def upload_range(self, token: str, start: int) -> UploadRange:
        """Take a range that begins where the upload stands.

        Raises NoSuchItemError, UploadBusyError, StoreUnavailableError.
        """
        ...

    async def attach_upload(self, token: str, *, limit_bytes: int) -> Upload:
        """Attach what was uploaded to its draft, once. Raises UploadBusyError as well."""
        ...

    async def remove_upload(self, token: str) -> None:
        """Remove an upload. Raises NoSuchItemError, UploadBusyError."""
        ...


class MailStore(Protocol):
    """All mailboxes under one root, as the front door has them.

    What takes a `condition` checks it and acts in one step, under the message's lock, and raises
    NoSuchItemError or MessageChangedError if it is not true.
    """

    @property
    def arrivals(self) -> Arrivals:
        """For what is too large for memory."""
        ...

    @property
    def attachments(self) -> AttachmentStore:
        """Attachments one by one."""
        ...

    # -- steps 1 and 2

    async def create_draft(
        self, account: str, content: MessageProperties | bytes, *, folder_id: str = "drafts"
    ) -> StoredMessage:
        """Write a draft (properties, or MIME kept byte for byte).

        Raises MailboxFullError, StoreUnavailableError, NoSuchItemError.
        """
        ...

    async def submit_new(
        self, account: str, content: MessageProperties | bytes, options: SendOptions
    ) -> PendingSubmission:
        """Write a draft and its note: sendMail's steps 1 and 2.

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

        Raises NoSuchItemError, NotADraftError, BeingSentError and the above.
        """
        ...

    # -- reading and changing

    async def get(self, account: str, message_id: str, *, folder_id: str = "") -> StoredMessage:
        """One message, wherever it is (or only in `folder_id`). Raises NoSuchItemError."""
        ...

    async def query_messages(self, account: str, query: MessageQuery) -> Page:
        """A page of the messages that were asked for; it may end before `top` when they are large.

        A caller that is cancelled stops the query. Raises NoSuchItemError for the folder,
        StalePositionError for `after`, QueryTooLongError, TooManyQueriesError,
        StoreUnavailableError.
        """
        ...

    async def changes(self, account: str, *, after: str = "", limit: int = 1000) -> ChangePage:
        """What happened to the mailbox's messages behind the position `after`, whoever did it.

        Of "" nothing: its answer tells where the feed is now. Raises StalePositionError for a
        position that is known no more: the caller lists everything and begins anew.
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
        """PATCH; properties without attachments keep those that are there.

        Raises NoSuchItemError, NotADraftError, BeingSentError, MailboxFullError,
        StoreUnavailableError.
        """
        ...

    async def delete(
        self, account: str, message_id: str, *, condition: Precondition = NO_PRECONDITION
    ) -> None:
        """Move to Deleted Items; from there, or a folder within it, remove.

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
        """Put a message into another folder; its id stays.

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
        """Put a copy of a message, with an id of its own, into a folder.

        Raises NoSuchItemError, MailboxFullError, StoreUnavailableError.
        """
        ...

    async def remove_message(
        self, account: str, message_id: str, *, condition: Precondition = NO_PRECONDITION
    ) -> None:
        """Remove a message for good, wherever it is. Raises NoSuchItemError, BeingSentError."""
        ...

    async def mime(self, account: str, message_id: str) -> Content:
        """`$value`: MIME without the private block (a JSON draft is converted), Bcc kept.

        A large one is in a file that stays open while the content is held.

        Raises NoSuchItemError.
        """
        ...

    # -- folders

    async def list_folders(self, account: str) -> Sequence[Folder]:
        """Every folder, well-known ones first. Makes the mailbox on first use."""
        ...

    async def get_folder(self, account: str, folder_id: str) -> Folder:
        """By id or well-known name, case-insensitively; "msgfolderroot" is above all of them.

        Raises NoSuchItemError.
        """
        ...

    async def create_folder(self, account: str, name: str, *, parent_id: str = "") -> Folder:
        """Make a folder; `parent_id` "" is the mailbox's root.

        Raises NoSuchItemError, FolderExistsError, FolderError, StoreUnavailableError.
        """
        ...

    async def rename_folder(self, account: str, folder_id: str, name: str) -> Folder:
        """Give a folder another name; its id, and all within it, stay.

        Raises ProtectedFolderError for a well-known one, and the above.
        """
        ...

    async def move_folder(self, account: str, folder_id: str, *, parent_id: str) -> Folder:
        """Put a folder with all within it into another one. Raises what rename_folder() does."""
        ...

    async def delete_folder(
        self, account: str, folder_id: str, *, permanently: bool = False
    ) -> None:
        """Move a folder to Deleted Items; from there, or `permanently`, remove it with all in it.

        Raises NoSuchItemError, ProtectedFolderError, FolderError, StoreUnavailableError.
        """
        ...


class SubmissionStore(Protocol):
    """The notes of what was submitted, as pickup has them: steps 2 to 4."""

    def submissions(self) -> AsyncGenerator[PendingSubmission, None]:
        """Notes in ready/, those there at start first, then each as it comes; never ends.

        While somebody reads them, deferred ones are made ready at their time.
        """
        ...

    async def turn(self, submission: PendingSubmission) -> None:
        """Return when the note may be taken up: at once but in a rush of submissions, soon then."""
        ...

    async def submission_content(self, submission: PendingSubmission) -> Octets:
        """The note's file, private block and all: what convert() wants.

        Raises NoSuchItemError, StoreUnavailableError.
        """
        ...

    def retry_submission(self, submission: PendingSubmission, delay_s: float) -> None:
        """Put a note back: notes() yields it again after `delay_s` seconds."""
        ...

    async def complete_submission(self, submission: PendingSubmission, *, queue_id: str) -> None:
        """Step 4: move to Sent Items (or remove), record it, remove the note. Idempotent."""
        ...

    async def fail_submission(
        self,
        submission: PendingSubmission,
        report: bytes | None,
        *,
        report_to: str = "",
        to_corrupt: bool = False,
    ) -> None:
        """Step 3 failed for good: the report goes into the Inbox, then the note goes.

        `report_to` is the mailbox for the report, the sender's where none is named. With
        `to_corrupt` the note's file is kept in corrupt/, for people to look at. The draft stays in
        Drafts, a plain draft again. Idempotent.

        Raises MailboxFullError when the report does not fit even into the room for reports; the
        note is then as it was.
        """
        ...


class DeliveryStore(Protocol):
    """Mailboxes that mail is delivered to: step 6, and before it RCPT."""

    async def room(self, account: str, size: int) -> Room:
        """Whether a message of `size` bytes fits under the quota: asked at RCPT."""
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
        """Put a message into the Inbox under a name made of `unique`.

        The same again changes nothing. `unique` begins with a clock id (a queue id), whose time the
        file's name tells. `over_quota` lets reports pass, within a bound. `is_repeat`: it may have
        been delivered before, and renamed by a mail client; finding it by its content takes longer.
        Raises MailboxFullError, ContentUnreadableError, StoreUnavailableError.
        """
        ...
