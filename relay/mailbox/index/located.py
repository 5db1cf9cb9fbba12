"""A message's file, as everybody in the store gets to know it.

On the path: the index finds it; drafts, sending and messages read and rename it.
Holds: `message_id` may differ from what the name says: another program may have named the file.
Fails: never.
Standards: Maildir.
"""

from dataclasses import dataclass
from pathlib import Path

from relay.clock import id_time_us
from relay.mailbox.names import DRAFT, MessageName
from relay.mailbox.types import Folder, WellKnown

TIME_US_MAX = (1 << 52) - 1  # in the year 2112


@dataclass(frozen=True, slots=True)
class Located:
    """`directory` is the folder's new/ or cur/; `received_us` 0 if the file has to tell it."""

    folder: Folder
    directory: Path
    name: MessageName
    message_id: str
    generation: int = 1
    received_us: int = 0

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / self.name.file_name


def is_draft_file(flags: str, folder: Folder) -> bool:
    """Whether a file is a draft: by its flag, or because a mail client keeps it in Drafts."""
    return DRAFT in flags or folder.well_known is WellKnown.DRAFTS


def received_at_us(message_id: str, written_us: int) -> int:
    """Return when a message came: what its id tells, if that is a time; else when it was written.

    It is the same for all generations of a draft, and after its file has been moved.
    """
    return min(max(id_time_us(message_id) or written_us, 0), TIME_US_MAX)
