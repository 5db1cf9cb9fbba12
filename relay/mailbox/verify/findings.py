"""The faults that verify finds, their repairs, and the counts of both.

The checks create a StoreFault, and the Repairer reports a StoreFinding. A finding is repaired if
nothing is lost and the operator has nothing to do. See docs/names.md (Commands).
"""

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from relay.base.clock import Clock
from relay.mailbox.maildir import make_directory, remove, rename, sync_directory

NAMES_LISTED_MAX = 1000  # in each list of SubmissionCounts


class StoreFindingKind(StrEnum):
    """The kinds of faults; docs/operation-repair.md describes them."""

    MISSING_DIRECTORY = "missing-directory"
    MISSING_MARKER = "missing-marker"
    SHARED_FOLDER_ID = "shared-folder-id"
    SUBSCRIPTIONS = "subscriptions"
    UNREADABLE = "unreadable"
    OWNER = "owner"
    BROKEN_DRAFT = "broken-draft"
    TRUNCATED = "truncated"
    WRONG_SIZE = "wrong-size"
    SHARED_ID = "shared-id"
    BROKEN_SUBMISSION = "broken-submission"
    NO_ACCOUNT = "no-account"
    UNMARKED_COPY = "unmarked-copy"
    LOST_SUBMISSION = "lost-submission"
    DAMAGED_PROPERTIES = "damaged-properties"
    DAMAGED_INDEX = "damaged-index"


class StoreFault(Struct, frozen=True):
    """A fault of the file or directory `where`."""

    kind: StoreFindingKind
    where: Path
    found: str
    expected: str


class StoreFinding(Struct, frozen=True):
    """A fault and the action that was taken, "" if there is none."""

    kind: StoreFindingKind
    where: str
    found: str
    expected: str
    repaired: bool
    action: str


@dataclass(slots=True)
class SubmissionCounts:
    """The number of submissions, and the ids of those that the operator may have to examine.

    `without_draft`: the draft was removed; the submission is sent and filed without it. `accepted`:
    step 4 is logged, and the next start removes the submission. `corrupt` has paths of files.
    """

    ready: int = 0
    scheduled: int = 0
    preparing: int = 0
    without_draft: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)


@dataclass(slots=True)
class StoreCounts:
    """The number of checked items, and of repaired and remaining faults."""

    mailboxes: int = 0
    messages: int = 0
    indexes: int = 0
    uploads: int = 0
    submissions: SubmissionCounts = field(default_factory=SubmissionCounts)
    repaired: int = 0
    remaining: int = 0

    def count(self, finding: StoreFinding) -> None:
        """Count a finding."""
        if finding.repaired:
            self.repaired += 1
        else:
            self.remaining += 1


def add_name(names: list[str], name: str) -> None:
    """Add a name to a list of at most NAMES_LISTED_MAX names."""
    if len(names) < NAMES_LISTED_MAX:
        names.append(name)


_NAMES_MAX = 1000


class Repair(Struct, frozen=True):
    """A repair. `text` completes "it was".

    With `is_complete` the operator has nothing to examine afterwards.
    """

    text: str
    act: Callable[[], None]
    is_complete: bool = True


class Repairer:
    """Applies repairs, and reports every fault, repaired or not."""

    def __init__(
        self, root: Path, *, dry_run: bool, report: Callable[[StoreFinding], None]
    ) -> None:  # fmt: skip
        """`root` is the directory of the mailboxes."""
        self.dry_run = dry_run
        self.corrupt = root / ".submissions" / "corrupt"
        self._root = root
        self._report = report

    def handle(self, fault: StoreFault, repair: Repair | None = None) -> bool:
        """Apply the repair, if any, and report the fault; return whether it was applied."""
        is_done, action = False, ""
        if repair is not None:
            try:
                if self.dry_run:
                    action = f"would be {repair.text}"
                else:
                    repair.act()
                    is_done, action = True, repair.text
            except FileNotFoundError:
                return False
            except OSError as error:
                action = f"could not be {repair.text}: {error.strerror or error}"
        self._report(
            StoreFinding(
                kind=fault.kind,
                where=shown(fault.where),
                found=shown(fault.found),
                expected=shown(fault.expected),
                repaired=is_done and repair is not None and repair.is_complete,
                action=shown(action),
            )
        )
        return is_done

    def report_unreadable(
        self, error: OSError, where: Path, *, expected: str = "readable files"
    ) -> None:
        """Report a file or directory that cannot be read: `where`, or what the error names."""
        found = error.strerror or str(error)
        path = Path(str(error.filename or where))
        self.handle(StoreFault(StoreFindingKind.UNREADABLE, path, found, expected))

    def move_to_corrupt(self, path: Path, *, is_complete: bool = False) -> Repair:
        """Return the repair that moves a file to `.submissions/corrupt/`, below its directories."""
        target = self._free(path)

        def act() -> None:
            for directory in reversed(target.parents):
                if directory.is_relative_to(self.corrupt.parent):
                    make_directory(directory)
            rename(path, target)
            sync_directory(target.parent)
            sync_directory(path.parent)

        return Repair(f"moved to {shown(target)}", act, is_complete)

    def _free(self, path: Path) -> Path:
        """Return an unused path in `corrupt/` for a file."""
        try:
            below = path.relative_to(self._root)
        except ValueError:  # the dead-letter mailbox is outside the root
            below = Path(*path.parts[-4:])
        if below.parts[0] == ".submissions":
            below = Path(path.name)
        target = self.corrupt / below
        for number in range(1, _NAMES_MAX):
            if not os.path.lexists(target):
                break
            target = target.with_name(f"{path.name}~{number}")
        return target


def rename_file(path: Path, target: Path, *, is_complete: bool = True) -> Repair:
    """Return the repair that renames a file; an existing target is not replaced."""

    def act() -> None:
        if target.exists() and not target.samefile(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        rename(path, target)
        for directory in {target.parent, path.parent}:
            sync_directory(directory)

    to = target.name if target.parent == path.parent else f"{target.parent.name}/{target.name}"
    return Repair(f"renamed to {shown(to)}", act, is_complete)


def remove_file(path: Path) -> Repair:
    """Return the repair that removes a file: no mail, or a second name of mail that stays."""

    def act() -> None:
        remove(path)
        sync_directory(path.parent)

    return Repair("removed", act)


def create_directory(path: Path) -> Repair:
    """Return the repair that creates a directory."""
    return Repair("created", lambda: make_directory(path))


def shown(path: Path | str) -> str:
    """Return a name as printable text, also if its octets are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


_UNCHANGED_S = 2.0


def wait(seconds: float) -> None:
    """Sleep for `seconds`."""
    threading.Event().wait(seconds)


class QuietPeriod:
    """Waits until a file has not changed for 2 s, since other processes use the store meanwhile.

    `pause` waits for a number of seconds.
    """

    def __init__(self, clock: Clock, pause: Callable[[float], None] = wait) -> None:
        self._clock = clock
        self._pause = pause

    def wait_until_unchanged(self, path: Path) -> bool:
        """Wait until a file has not changed for 2 s; return False if it was removed."""
        try:
            self.wait_since(path.lstat().st_ctime)
        except OSError:
            return False
        return os.path.lexists(path)

    def wait_since(self, at_s: float) -> None:
        """Wait until 2 s after a time."""
        left_s = at_s + _UNCHANGED_S - self._clock.file_time_us() / 1_000_000
        if left_s > 0:
            self._pause(min(left_s, _UNCHANGED_S))

    def age_s(self, at_s: float) -> float:
        """Return the seconds since a time."""
        return self._clock.file_time_us() / 1_000_000 - at_s
