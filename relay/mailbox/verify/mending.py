"""Mend a fault, or say how it would be: each cure is one durable change of names.

On the path: the checks say what is wrong and which cure there is.
Holds: nothing is replaced and no mail is deleted; with `dry_run` nothing is changed at all. What
vanished before it could be mended was somebody's work and no fault.
Fails: never; a cure that the disk refuses is told.
Standards: none.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from relay.mailbox.maildir import make_directory, remove, rename, sync_directory
from relay.mailbox.verify.findings import Fault, Finding

_NAMES_TRIED = 1000


@dataclass(frozen=True, slots=True)
class Cure:
    """What to do, and in words that complete "it was". `is_whole`: nobody has to look then."""

    text: str
    act: Callable[[], None]
    is_whole: bool = True


class Mender:
    """Reports every fault, mended or not."""

    def __init__(
        self, root: Path, *, dry_run: bool, report: Callable[[Finding], None]
    ) -> None:  # fmt: skip
        """`root` is where the mailboxes are."""
        self.dry_run = dry_run
        self.corrupt = root / ".submissions" / "corrupt"
        self._root = root
        self._report = report

    def settle(self, fault: Fault, cure: Cure | None = None) -> bool:
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
            Finding(
                kind=fault.kind,
                where=shown(fault.where),
                found=shown(fault.found),
                expected=shown(fault.expected),
                mended=is_done and cure is not None and cure.is_whole,
                action=shown(action),
            )
        )
        return is_done

    def put_aside(self, path: Path, *, is_whole: bool = False) -> Cure:
        """Move a file to .submissions/corrupt, under the directories that it is in here."""
        target = self._free(path)

        def act() -> None:
            make_directory(target.parent)
            rename(path, target)
            sync_directory(target.parent)
            sync_directory(path.parent)

        return Cure(f"put aside as {shown(target)}", act, is_whole)

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


def renamed(path: Path, target: Path, *, is_whole: bool = True) -> Cure:
    """Give a file another name, which nothing may have."""

    def act() -> None:
        if target.exists() and not target.samefile(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        rename(path, target)
        for directory in {target.parent, path.parent}:
            sync_directory(directory)

    to = target.name if target.parent == path.parent else f"{target.parent.name}/{target.name}"
    return Cure(f"renamed to {shown(to)}", act, is_whole)


def removed(path: Path) -> Cure:
    """Remove what is no mail, or another name of mail that stays."""

    def act() -> None:
        remove(path)
        sync_directory(path.parent)

    return Cure("removed", act)


def made(path: Path) -> Cure:
    """Make a directory."""
    return Cure("made", lambda: make_directory(path))


def shown(path: Path | str) -> str:
    """Return a name as text that can be printed and be JSON, whatever its octets are."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
