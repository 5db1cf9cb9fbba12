"""What verify finds, and how it is counted.

On the path: the checks make Faults, the mender makes Findings of them; app and cli show those.
Holds: a finding is mended when nothing is lost by it and nobody has to look any more.
Fails: never.
Standards: docs/names.md (Commands).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

NAMED_MAX = 1000  # of anything that is listed by name


class Kind(StrEnum):
    """What is wrong; docs/operation.md says what each means."""

    MISSING_DIRECTORY = "missing-directory"
    MISSING_MARKER = "missing-marker"
    SHARED_FOLDER_ID = "shared-folder-id"
    SUBSCRIPTIONS = "subscriptions"
    NO_FILE = "no-file"
    EMPTY_FILE = "empty-file"
    UNREADABLE = "unreadable"
    OWNER = "owner"
    BROKEN_DRAFT = "broken-draft"
    TRUNCATED = "truncated"
    WRONG_SIZE = "wrong-size"
    WRONG_PLACE = "wrong-place"
    NO_NAME = "no-name"
    OLD_GENERATION = "old-generation"
    SHARED_ID = "shared-id"
    LEFTOVER = "leftover"
    ODD_NOTE = "odd-note"
    BROKEN_NOTE = "broken-note"
    NO_ACCOUNT = "no-account"
    UNTOLD_COPY = "untold-copy"
    LOST_NOTE = "lost-note"
    BROKEN_UPLOAD = "broken-upload"
    DAMAGED_INDEX = "damaged-index"
    DEVIATING_INDEX = "deviating-index"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with what is at `where`."""

    kind: Kind
    where: Path
    found: str
    expected: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault and what was done about it; `action` is "" where there is nothing to be done."""

    kind: Kind
    where: str
    found: str
    expected: str
    mended: bool
    action: str


@dataclass(slots=True)
class NoteTally:
    """Submissions: how many notes there are, and those that are worth a word.

    `without_draft`: somebody removed the draft, the note alone will be filed. `accepted`: step 4 is
    recorded, only the note is still to go; a start sees to it. `put_aside` are files.
    """

    ready: int = 0
    deferred: int = 0
    preparing: int = 0
    without_draft: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    put_aside: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """What was looked at, and how much was wrong."""

    mailboxes: int = 0
    messages: int = 0
    indexes: int = 0
    uploads: int = 0
    notes: NoteTally = field(default_factory=NoteTally)
    mended: int = 0
    remaining: int = 0

    def count(self, finding: Finding) -> None:
        """Take a finding into account."""
        if finding.mended:
            self.mended += 1
        else:
            self.remaining += 1


def named(names: list[str], name: str) -> None:
    """Add a name to a list that stays bounded."""
    if len(names) < NAMED_MAX:
        names.append(name)
