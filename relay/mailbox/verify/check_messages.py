"""The files of one directory of a folder: whether each is a message, and named as it should be.

On the path: mailboxes.py goes through the folders with it.
Holds: what is wrong with a file is decided by pure functions of what was seen of it; what is seen
once is looked at again before it counts.
Fails: OSError when the directory cannot be read.
Standards: Maildir (new/ has no flags); Maildir++ (`,S=`); docs/design.md 3.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from relay.files import OpenOctets
from relay.mailbox.maildir import open_message
from relay.mailbox.message_file import MessageName, is_relay_name, parse_name
from relay.mailbox.stale_files import STALE_S
from relay.mailbox.verify.findings import (
    QuietPeriod,
    Repair,
    Repairer,
    StoreFault,
    StoreFindingKind,
    removed,
    renamed,
)
from relay.mime.draft import (
    FIRST_FIELD_BYTES,
    PRIVATE_BYTES_MAX,
    private_block_length,
    read_private_block,
)

_SIZE = re.compile(r",S=\d+")
_SIZE_OF_LINES = re.compile(r",W=\d+")  # Dovecot's, of the size with CRLF: wrong where S is
_BLOCK_BYTES_READ = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What there is under a message's name. `trouble`: why it cannot be read; `is_broken_draft`:
    it begins with a private block that does not hold together.
    """

    mode: int
    owner: int
    size_bytes: int
    trouble: str = ""
    is_broken_draft: bool = False


@dataclass(frozen=True, slots=True)
class FileFault:
    """What is wrong with a file. `name` is the one that it should have, in cur/ if `to_cur`."""

    kind: StoreFindingKind
    found: str
    expected: str
    name: str = ""
    to_cur: bool = False
    is_to_go: bool = False  # out of the mailbox
    is_lost: bool = False  # something of it, whatever is done


def file_faults(
    name: MessageName, seen: FileStatus, *, in_new: bool, owner: int
) -> Iterator[FileFault]:
    """Say what is wrong with a file; `owner` is whose it should be."""
    if not stat.S_ISREG(seen.mode):
        found = _KINDS.get(stat.S_IFMT(seen.mode), "something else")
        yield FileFault(StoreFindingKind.NOT_A_FILE, found, "a message's file", is_to_go=True)
        return
    if seen.trouble:
        yield FileFault(StoreFindingKind.UNREADABLE, seen.trouble, "a file that can be read")
    elif seen.is_broken_draft:
        found = f"{seen.size_bytes} bytes, and a private block that does not fit them"
        yield FileFault(
            StoreFindingKind.BROKEN_DRAFT, found, "a whole draft", is_to_go=True, is_lost=True
        )
        return
    elif not seen.size_bytes:
        yield FileFault(
            StoreFindingKind.EMPTY_FILE, "no octets", "a message", is_to_go=True, is_lost=True
        )
        return
    yield from _owner_wrongs(seen, owner)
    yield from _name_wrongs(name, seen, in_new=in_new)


def _owner_wrongs(seen: FileStatus, owner: int) -> Iterator[FileFault]:
    permissions = stat.S_IMODE(seen.mode)
    if seen.owner != owner:
        yield FileFault(StoreFindingKind.OWNER, f"the user {seen.owner}", f"{owner}, as the root's")
    elif not permissions & 0o400 or permissions & 0o002:
        expected = "a file that its owner reads and not everybody writes"
        yield FileFault(StoreFindingKind.OWNER, f"mode {permissions:04o}", expected)


def _name_wrongs(name: MessageName, seen: FileStatus, *, in_new: bool) -> Iterator[FileFault]:
    is_misplaced = in_new and bool(name.flags)
    has_size = name.size is None or name.size == seen.size_bytes
    right = name.file_name if has_size else _sized(name, seen.size_bytes)
    if not has_size:
        assert name.size is not None
        is_short = seen.size_bytes < name.size and is_relay_name(name.file_name)
        yield FileFault(
            StoreFindingKind.TRUNCATED if is_short else StoreFindingKind.WRONG_SIZE,
            f"{seen.size_bytes} bytes",
            f"{name.size}, as its name says",
            name=right,
            to_cur=is_misplaced,
            is_lost=is_short,
        )
    elif is_misplaced:
        found = f"flags {name.flags} in new/"
        yield FileFault(
            StoreFindingKind.WRONG_PLACE, found, "flags in cur/ only", name=right, to_cur=True
        )


def _sized(name: MessageName, size_bytes: int) -> str:
    base, separator, info = name.file_name.partition(":")
    base = _SIZE_OF_LINES.sub("", _SIZE.sub(f",S={size_bytes}", base))
    return f"{base}{separator}{info}"


class MessageCheck:
    """Checks directories of messages; `full` reads every octet."""

    def __init__(self, mender: Repairer, flight: QuietPeriod, *, owner: int, full: bool) -> None:
        self._mender = mender
        self._flight = flight
        self._owner = owner
        self._full = full

    def check(self, directory: Path, take: Callable[[MessageName], None]) -> int:
        """Check new/ or cur/; `take` gets every name. Return how many there are."""
        suspects = []
        count = 0
        with os.scandir(directory) as entries:
            for entry in entries:
                name = parse_name(entry.name)
                if name is None:
                    continue
                count += 1
                take(name)
                if not name.base_name or self._wrongs(directory, name):
                    suspects.append(name)
        for name in suspects:
            if self._flight.land(directory / name.file_name):
                self._settle(directory, name)
        return count

    def check_leftovers(self, directory: Path) -> None:
        """Remove what lies in a tmp/ since long: nobody will finish it."""
        with os.scandir(directory) as entries:
            for entry in entries:
                path = directory / entry.name
                status = path.lstat()
                age_s = self._flight.age_s(status.st_ctime)
                if age_s < STALE_S:
                    continue
                fault = StoreFault(
                    StoreFindingKind.STALE_FILE,
                    path,
                    f"untouched for {age_s / 3600:.0f} hours",
                    "at most 36",
                )
                is_directory = stat.S_ISDIR(status.st_mode)
                cure = (
                    self._mender.move_to_corrupt(path, is_whole=True)
                    if is_directory
                    else removed(path)
                )
                self._mender.settle(fault, cure)

    def _settle(self, directory: Path, name: MessageName) -> None:
        path = directory / name.file_name
        if not name.base_name:
            fault = StoreFault(
                StoreFindingKind.NO_BASE_NAME, path, "a name without a base", "a name of its own"
            )
            self._mender.settle(fault, self._mender.move_to_corrupt(path))
            return
        for wrong in self._wrongs(directory, name):
            fault = StoreFault(wrong.kind, path, wrong.found, wrong.expected)
            self._mender.settle(fault, self._cure(path, wrong))

    def _cure(self, path: Path, wrong: FileFault) -> Repair | None:
        if wrong.is_to_go:
            return self._mender.move_to_corrupt(path, is_whole=not wrong.is_lost)
        if not wrong.name:
            return None
        directory = path.parent.parent / "cur" if wrong.to_cur else path.parent
        return renamed(path, directory / wrong.name, is_whole=not wrong.is_lost)

    def _wrongs(self, directory: Path, name: MessageName) -> list[FileFault]:
        in_new = directory.name == "new"
        try:
            seen = self._see(directory / name.file_name)
        except FileNotFoundError:
            return []
        return list(file_faults(name, seen, in_new=in_new, owner=self._owner))

    def _see(self, path: Path) -> FileStatus:
        status = path.lstat()
        seen = FileStatus(status.st_mode, status.st_uid, status.st_size)
        if not stat.S_ISREG(status.st_mode):
            return seen
        try:
            is_broken = _is_broken(path, full=self._full)
        except FileNotFoundError:
            raise
        except OSError as error:
            trouble = error.strerror or str(error)
            return FileStatus(seen.mode, seen.owner, seen.size_bytes, trouble=trouble)
        return FileStatus(seen.mode, seen.owner, seen.size_bytes, is_broken_draft=is_broken)


def _is_broken(path: Path, *, full: bool) -> bool:
    """Read a file, or its beginning; return whether it is a draft of ours that is not whole.

    A foreign file may begin as it likes. Raises OSError.
    """
    with open_message(path) as file:
        head = file.read(FIRST_FIELD_BYTES)
        while full and file.read(_BLOCK_BYTES_READ):
            pass
        if not is_relay_name(path.name) or not private_block_length(head):
            return False
        if private_block_length(head) > PRIVATE_BYTES_MAX:
            return True
        return read_private_block(OpenOctets.of(file))[0] is None
