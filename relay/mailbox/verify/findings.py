"""What verify finds, and how it is counted.

On the path: the checks make Faults, the mender makes Findings of them; app and cli show those.
Holds: a finding is repaired when nothing is lost by it and nobody has to look any more.
Fails: never.
Standards: docs/names.md (Commands).
"""

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from relay.clock import Clock
from relay.mailbox.maildir import make_directory, remove, rename, sync_directory

NAMED_MAX = 1000  # of anything that is listed by name


class StoreFindingKind(StrEnum):
    """What is wrong; docs/operation.md says what each means."""

    MISSING_DIRECTORY = "missing-directory"
    MISSING_MARKER = "missing-marker"
    SHARED_FOLDER_ID = "shared-folder-id"
    SUBSCRIPTIONS = "subscriptions"
    NOT_A_FILE = "not-a-file"
    EMPTY_FILE = "empty-file"
    UNREADABLE = "unreadable"
    OWNER = "owner"
    BROKEN_DRAFT = "broken-draft"
    TRUNCATED = "truncated"
    WRONG_SIZE = "wrong-size"
    WRONG_PLACE = "wrong-place"
    NO_BASE_NAME = "no-base-name"
    SUPERSEDED_DRAFT = "superseded-draft"
    SHARED_ID = "shared-id"
    STALE_FILE = "stale-file"
    SUBMISSION_NAME = "submission-name"
    BROKEN_SUBMISSION = "broken-submission"
    NO_ACCOUNT = "no-account"
    UNMARKED_COPY = "unmarked-copy"
    LOST_SUBMISSION = "lost-submission"
    BROKEN_UPLOAD = "broken-upload"
    DAMAGED_INDEX = "damaged-index"
    INDEX_MISMATCH = "index-mismatch"


@dataclass(frozen=True, slots=True)
class StoreFault:
    """What is wrong with what is at `where`."""

    kind: StoreFindingKind
    where: Path
    found: str
    expected: str


@dataclass(frozen=True, slots=True)
class StoreFinding:
    """A fault and what was done about it; `action` is "" where there is nothing to be done."""

    kind: StoreFindingKind
    where: str
    found: str
    expected: str
    repaired: bool
    action: str


@dataclass(slots=True)
class SubmissionCounts:
    """Submissions: how many notes there are, and those that are worth a word.

    `without_draft`: somebody removed the draft, the note alone will be filed. `accepted`: step 4 is
    recorded, only the note is still to go; a start sees to it. `corrupt` are files.
    """

    ready: int = 0
    scheduled: int = 0
    preparing: int = 0
    without_draft: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)


@dataclass(slots=True)
class StoreCounts:
    """What was looked at, and how much was wrong."""

    mailboxes: int = 0
    messages: int = 0
    indexes: int = 0
    uploads: int = 0
    submissions: SubmissionCounts = field(default_factory=SubmissionCounts)
    repaired: int = 0
    remaining: int = 0

    def count(self, finding: StoreFinding) -> None:
        """Take a finding into account."""
        if finding.repaired:
            self.repaired += 1
        else:
            self.remaining += 1


def named(names: list[str], name: str) -> None:
    """Add a name to a list that stays bounded."""
    if len(names) < NAMED_MAX:
        names.append(name)


_NAMES_TRIED = 1000


@dataclass(frozen=True, slots=True)
class Repair:
    """What to do, and in words that complete "it was". `is_whole`: nobody has to look then."""

    text: str
    act: Callable[[], None]
    is_whole: bool = True


class Repairer:
    """Reports every fault, repaired or not."""

    def __init__(
        self, root: Path, *, dry_run: bool, report: Callable[[StoreFinding], None]
    ) -> None:  # fmt: skip
        """`root` is where the mailboxes are."""
        self.dry_run = dry_run
        self.corrupt = root / ".submissions" / "corrupt"
        self._root = root
        self._report = report

    def settle(self, fault: StoreFault, cure: Repair | None = None) -> bool:
        """Do what can be done about a fault, and report it; return whether the cure was done."""
        is_done, action = False, ""
        if cure is not None:
            try:
                if self.dry_run:
                    action = f"would be {cure.text}"
                else:
                    cure.act()
                    is_done, action = True, cure.text
            except FileNotFoundError:
                return False
            except OSError as error:
                action = f"could not be {cure.text}: {error.strerror or error}"
        self._report(
            StoreFinding(
                kind=fault.kind,
                where=shown(fault.where),
                found=shown(fault.found),
                expected=shown(fault.expected),
                repaired=is_done and cure is not None and cure.is_whole,
                action=shown(action),
            )
        )
        return is_done

    def move_to_corrupt(self, path: Path, *, is_whole: bool = False) -> Repair:
        """Move a file to .submissions/corrupt, under the directories that it is in here."""
        target = self._free(path)

        def act() -> None:
            make_directory(target.parent)
            rename(path, target)
            sync_directory(target.parent)
            sync_directory(path.parent)

        return Repair(f"moved to {shown(target)}", act, is_whole)

    def _free(self, path: Path) -> Path:
        """Return where to put a file aside: a name that nothing has."""
        try:
            below = path.relative_to(self._root)
        except ValueError:  # the dead-letter mailbox lies elsewhere
            below = Path(*path.parts[-4:])
        if below.parts[0] == ".submissions":
            below = Path(path.name)
        target = self.corrupt / below
        for number in range(1, _NAMES_TRIED):
            if not os.path.lexists(target):
                break
            target = target.with_name(f"{path.name}~{number}")
        return target


def renamed(path: Path, target: Path, *, is_whole: bool = True) -> Repair:
    """Give a file another name, which nothing may have."""

    def act() -> None:
        if target.exists() and not target.samefile(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        rename(path, target)
        for directory in {target.parent, path.parent}:
            sync_directory(directory)

    to = target.name if target.parent == path.parent else f"{target.parent.name}/{target.name}"
    return Repair(f"renamed to {shown(to)}", act, is_whole)


def removed(path: Path) -> Repair:
    """Remove what is no mail, or another name of mail that stays."""

    def act() -> None:
        remove(path)
        sync_directory(path.parent)

    return Repair("removed", act)


def made(path: Path) -> Repair:
    """Make a directory."""
    return Repair("made", lambda: make_directory(path))


def shown(path: Path | str) -> str:
    """Return a name as text that can be printed and be JSON, whatever its octets are."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


_STILL_S = 2.0


def wait(seconds: float) -> None:
    """Let time go by."""
    threading.Event().wait(seconds)


class QuietPeriod:
    """`pause` lets so many seconds go by."""

    def __init__(self, clock: Clock, pause: Callable[[float], None] = wait) -> None:
        self._clock = clock
        self._pause = pause

    def land(self, path: Path) -> bool:
        """Wait until a file has kept its content and name for a while; False if it is gone."""
        try:
            self.pass_by(path.lstat().st_ctime)
        except OSError:
            return False
        return os.path.lexists(path)

    def pass_by(self, at_s: float) -> None:
        """Wait until a time is a while ago."""
        left_s = at_s + _STILL_S - self._clock.time_us() / 1_000_000
        if left_s > 0:
            self._pause(min(left_s, _STILL_S))

    def age_s(self, at_s: float) -> float:
        """How long ago a time is."""
        return self._clock.time_us() / 1_000_000 - at_s
