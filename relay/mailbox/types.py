"""What the store's callers see of it: stored messages, folders, notes, and why it refused.

On the path: graph creates and lists, pickup takes notes and files originals, delivery and pickup
deliver.
Holds: `id` is the immutable Graph id: the same before and after step 4.
Fails: the exceptions below, each with a text fit for the user.
Standards: Graph's message, mailFolder; Maildir++.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from relay.message.properties import MessageProperties


class StoreError(Exception):
    """The store refused; nothing was changed."""


class MailboxFullError(StoreError):
    """The message does not fit under the quota."""


class StoreUnavailableError(StoreError):
    """The disk is full, read-only or failing."""


class NoSuchItemError(StoreError):
    """No message or folder with that id in this mailbox."""


class BeingSentError(StoreError):
    """The draft has a note in ready/: it cannot be changed until step 4 (409)."""


class NotADraftError(StoreError):
    """The action wants a draft."""


class WellKnown(StrEnum):
    """Graph's well-known folders that a mailbox has; the value is the name in a URL, lower case."""

    INBOX = "inbox"
    DRAFTS = "drafts"
    SENT_ITEMS = "sentitems"
    DELETED_ITEMS = "deleteditems"
    JUNK_EMAIL = "junkemail"
    ARCHIVE = "archive"


@dataclass(frozen=True, slots=True)
class Folder:
    """One Maildir++ folder; `id` is stable, `path` its directory."""

    id: str
    display_name: str
    path: Path
    well_known: WellKnown | None = None
    total: int = 0
    unread: int = 0


@dataclass(frozen=True, slots=True)
class StoredAttachment:
    """An attachment of a stored message, without its bytes."""

    id: str
    name: str
    content_type: str
    size: int
    inline: bool
    content_id: str = ""


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
class SendOptions:
    """What step 4 does with the original."""

    save_to_sent_items: bool = True


@dataclass(frozen=True, slots=True)
class Note:
    """A submitted draft as pickup sees it: the exact snapshot that is sent.

    `account` is the mailbox's address; `ready_us` when it was submitted; `path` the note's file.
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
    """Some messages of a listing, newest first, and how many there are in all.

    `next_skip` is where the next page begins, None when nothing is left.
    """

    messages: tuple[StoredMessage, ...]
    total: int
    next_skip: int | None = None


Detail = dict[str, Any]
