"""What the store's callers see of it: stored messages, folders, notes, and why it refused.

On the path: graph creates and lists, pickup takes notes and files originals, delivery and pickup
deliver.
Holds: `id` is the immutable Graph id: the same before and after step 4.
Fails: the exceptions below, each with a text fit for the user.
Standards: Graph's message, mailFolder; Maildir++.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path

from relay.message.content import Octets
from relay.message.envelope import Client
from relay.message.properties import MessageProperties


class StoreError(Exception):
    """The store refused; nothing was changed, unless the error is an OutcomeUnknownError."""


class MailboxFullError(StoreError):
    """The message does not fit under the quota."""


class MailboxTooSmallError(MailboxFullError):
    """The message would not fit into the mailbox if that were empty."""


class StoreUnavailableError(StoreError):
    """The disk is full, read-only or failing."""


class OutcomeUnknownError(StoreError):
    """The disk failed, and whether the message will be sent cannot be known: no answer is right."""


class ContentUnreadableError(StoreUnavailableError):
    """What was to be stored is a file that cannot be read; the mailbox is well."""


class NoSuchItemError(StoreError):
    """No message or folder with that id in this mailbox."""


class BeingSentError(StoreError):
    """The draft has a note in ready/: it cannot be changed until step 4 (409)."""


class NotADraftError(StoreError):
    """The action wants a draft."""


class MessageChangedError(StoreError):
    """The message is not in the version that the caller named (412)."""


class AttachmentsTooLargeError(StoreError):
    """The draft's attachments would be too many, or too large together (413)."""


class TooManyUploadsError(StoreError):
    """The account has as many uploads that are not complete as it may have (503)."""


class UploadBusyError(StoreError):
    """A range of the upload is being taken: one comes behind the other (409)."""


class FolderError(StoreError):
    """The folder cannot be made, renamed, moved or removed; the text says why."""


class FolderExistsError(FolderError):
    """There is a folder of that name already (409)."""


class ProtectedFolderError(FolderError):
    """A well-known folder keeps its name and its place, and stays (403)."""


class StalePositionError(StoreError):
    """A position of the change feed, or of a page, that the index knows no more: begin anew."""


class QueryTooLongError(StoreError):
    """The query would run longer than a query may (400); a repeat would take as long."""


class TooManyQueriesError(StoreError):
    """The account has as many queries running and waiting as it may have (503)."""


class WellKnown(StrEnum):
    """Graph's well-known folders that a mailbox has; the value is the name in a URL, lower case."""

    INBOX = "inbox"
    DRAFTS = "drafts"
    SENT_ITEMS = "sentitems"
    DELETED_ITEMS = "deleteditems"
    JUNK_EMAIL = "junkemail"
    ARCHIVE = "archive"
    OUTBOX = "outbox"


@dataclass(frozen=True, slots=True)
class Folder:
    """One Maildir++ folder; `id` is stable, `path` its directory.

    `parent_id` is "" for those directly under the mailbox's root; `size_bytes` counts its messages.
    """

    id: str
    display_name: str
    path: Path
    well_known: WellKnown | None = None
    total: int = 0
    unread: int = 0
    parent_id: str = ""
    children: int = 0
    size_bytes: int = 0

    @property
    def may_keep_sent(self) -> bool:
        """Whether step 4 may file an original here: in some it would be a draft again."""
        return self.well_known not in (WellKnown.DRAFTS, WellKnown.OUTBOX)


@dataclass(frozen=True, slots=True)
class StoredAttachment:
    """An attachment of a stored message, without its bytes; an `item` is a message itself."""

    id: str
    name: str
    content_type: str
    size: int
    inline: bool
    content_id: str = ""
    item: bool = False


@dataclass(frozen=True, slots=True)
class OpenAttachment:
    """An attachment that can be read: `octets` as they lie in the message's file, which is open,
    in the transfer encoding `encoding`, "" where that changes nothing.
    """

    attachment: StoredAttachment
    octets: Octets
    encoding: str


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload session: how many bytes of how many there are, and what they become."""

    account: str
    message_id: str
    attachment_id: str
    size: int
    received: int
    expires_us: int
    is_attached: bool


@dataclass(frozen=True, slots=True)
class NewUpload:
    """An upload session and its token: who has that may go on with it."""

    token: str
    upload: Upload


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message in a mailbox. `properties.attachments` is empty here; see `attachments`."""

    id: str
    folder: Folder
    path: Path
    properties: MessageProperties
    attachments: tuple[StoredAttachment, ...]
    is_draft: bool
    is_read: bool
    flagged: bool
    size: int
    created_us: int
    modified_us: int
    sent_us: int
    received_us: int
    change_key: str
    is_mime: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be true of a message when an action changes it, checked under the message's lock.

    The message must be in `folder_id`, unless that is "", and its change key must be one of
    `change_keys`, unless there are none.
    """

    folder_id: str = ""
    change_keys: frozenset[str] = frozenset()

    def check_version(self, change_key: str) -> None:
        """Raise MessageChangedError if the message has another change key."""
        if self.change_keys and change_key not in self.change_keys:
            raise MessageChangedError(
                f"If-Match: the message has the changeKey {change_key} now. It was changed, moved "
                "or sent after it was read; read it again, isDraft says whether it was sent."
            )


UNCONDITIONAL = Condition()


@dataclass(frozen=True, slots=True)
class Opened:
    """A message, and its attachments, which can be read while this is held."""

    message: StoredMessage
    attachments: tuple[OpenAttachment, ...]


@dataclass(frozen=True, slots=True)
class SendOptions:
    """When and for whom a draft is sent, and what step 4 does with the original.

    `sent_folder` is the id of the folder that it is filed in, "" for Sent Items; `deferred_us` the
    time before which it is not sent, 0 for at once; `on_behalf_of` an address that is not the
    account's, from which a message is that names no sender. `client` is who asked for it: step 2
    records it, a note does not keep it.
    """

    save_to_sent_items: bool = True
    sent_folder: str = ""
    deferred_us: int = 0
    on_behalf_of: str = ""
    client: Client | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PendingSubmission:
    """A submitted draft as pickup sees it: the exact snapshot that is sent.

    `account` is the mailbox's address; `ready_us` when it was submitted, in steady time, or until
    when it waits, in the wall's; `path` the note's file.
    """

    submission_id: str
    draft_id: str
    account: str
    base_name: str
    path: Path
    ready_us: int
    options: SendOptions = field(default_factory=SendOptions)


@dataclass(frozen=True, slots=True)
class MessageChange:
    """A PATCH: only the fields that are not None change. The first group only on drafts."""

    properties: MessageProperties | None = None
    is_read: bool | None = None
    flagged: bool | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some messages in the order that was asked for.

    `total` is how many there are in all, None unless that was asked for; `next_after` where the
    next page begins (MessageQuery.after), "" when nothing is left.
    """

    messages: tuple[StoredMessage, ...]
    total: int | None = None
    next_after: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a mailbox holds in all its folders."""

    size_bytes: int
    messages: int


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """What a mailbox may hold; None is no limit."""

    size_bytes: int | None = None
    messages: int | None = None


class Room(Enum):
    """Whether a message fits under a mailbox's quota."""

    FITS = "fits"
    FULL = "full"  # now
    NEVER = "never"  # it is larger than all that the mailbox may hold


class ChangeKind(StrEnum):
    """What happened to a message."""

    CREATED = "created"
    UPDATED = "updated"  # its content, its flags, or both
    MOVED = "moved"  # from one folder to another; its flags may have changed as well
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a mailbox's change feed; `sequence` grows by one from each to the next.

    `folder_id` is where the message is now, or was last; `previous_folder_id` where it was moved
    from, else "".
    """

    sequence: int
    kind: ChangeKind
    message_id: str
    folder_id: str
    previous_folder_id: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """Some of the feed, oldest first. `position` is where to go on from; `more`: at once."""

    changes: tuple[Change, ...]
    position: str
    more: bool
