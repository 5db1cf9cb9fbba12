"""Folders and messages as values, what a PATCH changes, and the condition of a change (If-Match).

The ids of messages are immutable Graph ids: they are the same before and after step 4. See Graph's
message and mailFolder, and Maildir++.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from sys import getsizeof
from typing import Any

from msgspec import Struct

from relay.base.message.content import Octets
from relay.base.message.properties import MessageProperties
from relay.formats.draft import AttachmentFacts
from relay.formats.read_mime import AttachedOctets
from relay.store.mailbox.errors import MessageChangedError
from relay.store.mailbox.message_state import FollowUpFlag

_PART_BYTES = 256  # a recipient, an attachment, or the rest of a message in memory


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
    article: int = 0  # the article number in its folder (IMAP's UID); 0 until it is requested

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


class OpenedMessage(Struct, frozen=True):
    """A message and its attachments, which stay readable as long as this object exists.

    `stored` is the message's file.
    """

    message: StoredMessage
    attachments: tuple[AttachedOctets, ...]
    stored: Octets


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
