"""The values and errors of the store: messages, folders, submissions, quotas, changes.

The ids of messages are immutable Graph ids: they are the same before and after step 4. The texts
of the errors can be shown to users. See Graph's message and mailFolder, and Maildir++.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from sys import getsizeof
from typing import Any, Protocol

from msgspec import Struct

from relay.base.clock import rfc3339
from relay.base.message.content import Content, Octets
from relay.base.message.envelope import Client
from relay.base.message.properties import MessageProperties
from relay.formats.draft import AttachmentFacts
from relay.formats.read_mime import AttachedOctets
from relay.store.journeys.details import NotifiedDetail
from relay.store.mailbox.message_state import FollowUpFlag

_PART_BYTES = 256  # a recipient, an attachment, or the rest of a message in memory


class StoreError(Exception):
    """The store failed. Nothing was changed, unless the error is an OutcomeUnknownError."""


class MailboxFullError(StoreError):
    """The message does not fit under the quota."""


class MailboxTooSmallError(MailboxFullError):
    """The message is larger than the quota of the mailbox."""


class StoreUnavailableError(StoreError):
    """The disk is full, read-only or failing."""


class OutcomeUnknownError(StoreError):
    """The disk failed; it is unknown whether the message will be sent."""


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
    """The account has the maximum number of incomplete uploads (429)."""


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


class TooManyQueriesError(StoreError):
    """The account has the maximum number of queries running and waiting (429)."""


class WellKnown(StrEnum):
    """The well-known folders of a mailbox; the value is Graph's name in lower case."""

    INBOX = "inbox"
    DRAFTS = "drafts"
    SENT_ITEMS = "sentitems"
    DELETED_ITEMS = "deleteditems"
    JUNK_EMAIL = "junkemail"
    ARCHIVE = "archive"
    OUTBOX = "outbox"


class Folder(Struct, frozen=True):
    """One Maildir++ folder."""

    id: str  # stable, also when it is renamed
    display_name: str  # as clients see it
    path: Path  # its directory
    well_known: WellKnown | None = None  # its name in Graph, if it has one
    total: int = 0  # messages
    unread: int = 0  # messages that are not read
    parent_id: str = ""  # "" for a folder in the mailbox's root
    children: int = 0  # folders in it
    size_bytes: int = 0  # of its messages

    @property
    def may_keep_sent(self) -> bool:
        """Whether step 4 may file an original here; in Drafts and Outbox it would be a draft."""
        return self.well_known not in (WellKnown.DRAFTS, WellKnown.OUTBOX)


class Upload(Struct, frozen=True):
    """An upload session of an attachment: its size, and how many bytes were received. `caller` is
    the address of the account that created it.
    """

    account: str
    caller: str
    message_id: str
    attachment_id: str
    size: int
    received: int
    expires_us: int


class NewUpload(Struct, frozen=True):
    """An upload session and the token that authorizes its continuation."""

    token: str
    upload: Upload


class StoredMessage(Struct, frozen=True):
    """A message in a mailbox; times in µs of the wall clock."""

    id: str  # the Graph id
    folder: Folder  # where it is
    path: Path  # its file
    properties: MessageProperties  # without attachments: see `attachments`
    attachments: tuple[AttachmentFacts, ...]  # each with its id
    is_draft: bool  # it can be changed and sent
    is_read: bool  # flag S
    size: int  # in octets
    created_us: int  # of the draft, or when it arrived
    modified_us: int  # of the file or its flags
    sent_us: int  # the Date field
    received_us: int  # when it arrived or was made
    change_key: str  # changes with every change; the ETag
    flag: FollowUpFlag = FollowUpFlag()  # by the flag F, and the message's state
    is_mime: bool = False  # a draft whose content is MIME that the client gave
    is_other: bool = False  # inferenceClassification is other, not focused
    message_class: str = "IPM.Note"  # Exchange's: that of a report names its kind
    page_id: str = ""  # by which its journey is found; "": it has none
    header: bytes = b""  # of a message that is no draft: as it is stored
    article: int = 0  # its article number in its folder, the IMAP UID, 0 until it is asked for

    @property
    def memory_bytes(self) -> int:
        """About how much memory the message takes: its text, header fields and attachments."""
        properties = self.properties
        fields = sum(len(name) + len(value) for name, value in properties.internet_message_headers)
        parts = (
            len(properties.to)
            + len(properties.cc)
            + len(properties.bcc)
            + len(properties.reply_to)
            + len(self.attachments)
        )
        return getsizeof(properties.body) + len(self.header) + fields + (parts + 1) * _PART_BYTES


class Precondition(Struct, frozen=True):
    """A condition for the change of a message, checked under the message's lock (If-Match).

    The message must be in `folder_id`, unless that is "", and its change key must be one of
    `change_keys`, unless that is empty.
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


NO_PRECONDITION = Precondition()


class OpenedMessage(Struct, frozen=True):
    """A message and its attachments, which stay readable as long as this object exists.

    `stored` is the message's file.
    """

    message: StoredMessage
    attachments: tuple[AttachedOctets, ...]
    stored: Octets


class SubmissionKey(Struct, frozen=True):
    """A client's key for a submission: with the same key there is no second one for a day.

    `slot` is the name of its record, a hash of the key, the mailbox and the account that used it.
    `fingerprint` returns a hash of the request when its body has been read, `preference_applied` a
    part of the answer.
    """

    slot: str
    fingerprint: Callable[[], bytes]
    preference_applied: Callable[[], str]


@dataclass(frozen=True, slots=True)
class SendOptions:
    """When and for whom a draft is sent, and what step 4 does with the original.

    The original is filed in the folder `sent_folder`, "" is Sent Items. The draft is not sent
    before `scheduled_us`; 0 is at once. `on_behalf_of` is the From address of a message
    without a sender, if it is not the account's. `client` is recorded in step 2 and not stored.
    With a `key` the submission is recorded under it.
    """

    save_to_sent_items: bool = True
    sent_folder: str = ""
    scheduled_us: int = 0
    on_behalf_of: str = ""
    client: Client | None = field(default=None, compare=False)
    key: SubmissionKey | None = field(default=None, compare=False)

    def notified_detail(self) -> NotifiedDetail:
        """Return the detail of step 2: the time of a scheduled send, and the client."""
        until = rfc3339(self.scheduled_us) if self.scheduled_us else ""
        return NotifiedDetail(deferred_until=until, client=self.client)


@dataclass(frozen=True, slots=True)
class PendingSubmission:
    """A submitted draft as pickup sees it: the exact snapshot that is sent."""

    submission_id: str  # `<draft id>.<n>`: the submission key of the spool
    account: str  # the address of the mailbox
    base_name: str  # of the draft's file; "": the record with both is damaged
    path: Path  # the file of the submission
    # queue time of the submission, or the wall clock time until which a scheduled one waits
    ready_us: int
    options: SendOptions = field(default_factory=SendOptions)  # those of the request
    internet_message_id: str = ""  # known when a submission with a key is submitted, else ""
    # a repeated /send has found it
    was_scheduled: bool = field(default=False, compare=False)

    @property
    def draft_id(self) -> str:
        """The Graph id of the draft."""
        return self.submission_id.partition(".")[0]


class MessageChange(Struct, frozen=True):
    """A PATCH: fields that are not None change. `properties` change only on drafts. `state` are new
    values of a MessageState.
    """

    properties: MessageProperties | None = None
    is_read: bool | None = None
    flagged: bool | None = None
    state: Mapping[str, Any] = {}


class Page(Struct, frozen=True):
    """A page of messages.

    `total` is the number of all messages that match, None unless requested. `next_after` is the
    token of the next page (MessageQuery.after), "" on the last page. `positions` has for each
    message the token of a page that begins after it.
    """

    messages: tuple[StoredMessage, ...]
    total: int | None = None
    next_after: str = ""
    positions: tuple[str, ...] = ()


class Usage(Struct, frozen=True):
    """A number of messages, and their size: of all of a mailbox, or for which room is reserved."""

    size_bytes: int
    messages: int


class CountedUsage(Struct, frozen=True):
    """The usage of a mailbox; `counted` are those of the requested base names that it includes."""

    usage: Usage
    counted: frozenset[str]


class QuotaLimits(Struct, frozen=True):
    """The quota of a mailbox; None is no limit."""

    size_bytes: int | None = None
    messages: int | None = None


class Room(Enum):
    """The result of a quota check for a message."""

    FITS = "fits"
    FULL = "full"  # not now
    NEVER = "never"  # the message is larger than the quota


class DeliveryResult(Enum):
    """The result of a local delivery."""

    DELIVERED = "delivered"
    ALREADY_THERE = "already there"


class ChangeKind(StrEnum):
    """What happened to a message."""

    CREATED = "created"
    UPDATED = "updated"  # its content, its flags, or both
    MOVED = "moved"  # to another folder; its flags may have changed as well
    DELETED = "deleted"


class Change(Struct, frozen=True):
    """One event of a mailbox's change feed; `sequence` increases by one with each event.

    `folder_id` is the current or last folder of the message, `previous_folder_id` the folder that
    it was moved from, else "".
    """

    sequence: int
    kind: ChangeKind
    message_id: str
    folder_id: str
    previous_folder_id: str = ""


class MessageDelta(Struct, frozen=True):
    """What became of a message of a folder: the sum of its changes since a position.

    CREATED: it came into the folder. UPDATED: it was and is there. MOVED: it is in another folder.
    DELETED: it is in no folder. `message` is None for the last two. A page that begins with this
    change has the position `position`. `folder_id` is where the message was before these changes.
    """

    message_id: str
    kind: ChangeKind
    position: str
    message: StoredMessage | None = None
    folder_id: str = ""


class DeltaPage(Struct, frozen=True):
    """Changed messages. Continue from `position`, at once if `more`."""

    changed: tuple[MessageDelta, ...]
    position: str
    more: bool


class FolderDelta(Struct, frozen=True):
    """A folder that was created or changed, or was removed: then `folder` is None."""

    folder_id: str
    folder: Folder | None


class FolderDeltaPage(Struct, frozen=True):
    """Changed folders. Continue from `position`, at once if `more`."""

    changed: tuple[FolderDelta, ...]
    position: str
    more: bool


class ChangePage(Struct, frozen=True):
    """Events of the feed, oldest first. Continue from `position`, at once if `more`."""

    changes: tuple[Change, ...]
    position: str
    more: bool


class ReadListener(Protocol):
    """Sends the read receipts that senders asked for: see relay/delivery/reports."""

    async def __call__(
        self, account: str, message_ids: Sequence[str], *, is_wanted: bool = False
    ) -> bool:
        """Messages were marked as read; `is_wanted`: the client said that a receipt is to be sent.

        Return whether one was sent. Raises SpoolError if one is wanted and cannot be sent.
        """


async def ignore_read(
    account: str,  # noqa: ARG001 -- a ReadListener
    message_ids: Sequence[str],  # noqa: ARG001
    *,
    is_wanted: bool = False,  # noqa: ARG001
) -> bool:
    """Send no receipt."""
    return False


class DeliveryStore(Protocol):
    """Mailboxes that take mail. `account` is the canonical address of one, in lower case.

    The simulated worlds of the tests have one of their own.
    """

    async def room(self, account: str, size: int) -> Room:
        """Whether a message of `size` bytes fits the quota: for RCPT."""

    async def deliver(
        self,
        account: str,
        *,
        unique: str,
        content: Content,
        folder: WellKnown = WellKnown.INBOX,
        over_quota: bool = False,
        is_repeat: bool = False,
    ) -> DeliveryResult:
        """Deliver a message to a folder under a name made from `unique`.

        Repeating a delivery changes nothing. `unique` begins with a clock id (a queue id), whose
        time is part of the file name. `over_quota` allows reports to exceed the quota, within a
        bound. `is_repeat`: the message may have been delivered and then renamed by a mail client,
        so it is looked for in all folders, which takes longer.
        Raises MailboxFullError, ContentUnreadableError, StoreUnavailableError.
        """
