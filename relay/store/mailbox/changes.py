"""Changes of messages as values: events of the change feed, and Graph's delta."""

from enum import StrEnum

from msgspec import Struct

from relay.store.mailbox.stored_message import StoredMessage


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


class ChangePage(Struct, frozen=True):
    """Events of the feed, oldest first. Continue from `position`, at once if `more`."""

    changes: tuple[Change, ...]
    position: str
    more: bool


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
