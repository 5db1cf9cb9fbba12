"""Check the message files of a folder's directory: content, owner and name.

file_faults() is a pure function of a file's name and status. A file with a fault is checked again
when it has not changed for 2 s; only then the fault counts. Raises OSError if the directory cannot
be read. See Maildir (new/ has no flags), Maildir++ (`,S=`) and docs/design.md 3.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
    remove_file,
    rename_file,
)
from relay.mime.draft import (
    FIRST_FIELD_BYTES,
    PRIVATE_BYTES_MAX,
    private_block_length,
    read_private_block,
)

_SIZE = re.compile(r",S=\d+")
_SIZE_OF_LINES = re.compile(r",W=\d+")  # Dovecot's size with CRLF: wrong if S is wrong
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
    """The status of a file. `read_error` is "" if the file can be read.

    With `is_broken_draft` it begins with an invalid private block.
    """

    mode: int
    owner: int
    size_bytes: int
    read_error: str = ""
    is_broken_draft: bool = False


@dataclass(frozen=True, slots=True)
class FileFault:
    """A fault of a file. `name` is the correct name, in cur/ if `to_cur`; "" is no change."""

    kind: StoreFindingKind
    found: str
    expected: str
    name: str = ""
    to_cur: bool = False
    is_unusable: bool = False  # move it out of the mailbox
    loses_data: bool = False  # also if it is repaired


def file_faults(
    name: MessageName, status: FileStatus, *, in_new: bool, owner: int
) -> Iterator[FileFault]:
    """Yield the faults of a file; `owner` is the expected owner."""
    if not stat.S_ISREG(status.mode):
        found = _KINDS.get(stat.S_IFMT(status.mode), "something else")
        yield FileFault(StoreFindingKind.NOT_A_FILE, found, "a message's file", is_unusable=True)
        return
    if status.read_error:
        yield FileFault(StoreFindingKind.UNREADABLE, status.read_error, "a file that can be read")
    elif status.is_broken_draft:
        found = f"{status.size_bytes} bytes, and a private block that does not match them"
        yield FileFault(
            StoreFindingKind.BROKEN_DRAFT, found, "a whole draft", is_unusable=True, loses_data=True
        )
        return
    elif not status.size_bytes:
        yield FileFault(
            StoreFindingKind.EMPTY_FILE, "no octets", "a message", is_unusable=True, loses_data=True
        )
        return
    yield from _owner_faults(status, owner)
    yield from _name_faults(name, status, in_new=in_new)


def _owner_faults(status: FileStatus, owner: int) -> Iterator[FileFault]:
    permissions = stat.S_IMODE(status.mode)
    if status.owner != owner:
        yield FileFault(
            StoreFindingKind.OWNER, f"the user {status.owner}", f"{owner}, as the root's"
        )
    elif not permissions & 0o400 or permissions & 0o002:
        expected = "readable by its owner, not writable by everybody"
        yield FileFault(StoreFindingKind.OWNER, f"mode {permissions:04o}", expected)


def _name_faults(name: MessageName, status: FileStatus, *, in_new: bool) -> Iterator[FileFault]:
    is_misplaced = in_new and bool(name.flags)
    has_size = name.size is None or name.size == status.size_bytes
    right = name.file_name if has_size else _sized(name, status.size_bytes)
    if not has_size:
        assert name.size is not None
        is_short = status.size_bytes < name.size and is_relay_name(name.file_name)
        yield FileFault(
            StoreFindingKind.TRUNCATED if is_short else StoreFindingKind.WRONG_SIZE,
            f"{status.size_bytes} bytes",
            f"{name.size}, as its name says",
            name=right,
            to_cur=is_misplaced,
            loses_data=is_short,
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
    """Checks directories of messages; with `full` it reads every octet."""

    def __init__(
        self, repairer: Repairer, quiet_period: QuietPeriod, *, owner: int, full: bool
    ) -> None:
        self._repairer = repairer
        self._quiet_period = quiet_period
        self._owner = owner
        self._full = full

    def check(self, directory: Path, on_name: Callable[[MessageName], None]) -> int:
        """Check new/ or cur/, and call `on_name` with every name. Return the number of files."""
        suspects = []
        count = 0
        with os.scandir(directory) as entries:
            for entry in entries:
                name = parse_name(entry.name)
                if name is None:
                    continue
                count += 1
                on_name(name)
                if not name.base_name or self._faults(directory, name):
                    suspects.append(name)
        for name in suspects:
            if self._quiet_period.wait_until_unchanged(directory / name.file_name):
                self._repair(directory, name)
        return count

    def check_stale_files(self, directory: Path) -> None:
        """Remove files that have been in tmp/ for 36 hours."""
        with os.scandir(directory) as entries:
            for entry in entries:
                path = directory / entry.name
                status = path.lstat()
                age_s = self._quiet_period.age_s(status.st_ctime)
                if age_s < STALE_S:
                    continue
                fault = StoreFault(
                    StoreFindingKind.STALE_FILE,
                    path,
                    f"untouched for {age_s / 3600:.0f} hours",
                    "at most 36",
                )
                is_directory = stat.S_ISDIR(status.st_mode)
                repair = (
                    self._repairer.move_to_corrupt(path, is_complete=True)
                    if is_directory
                    else remove_file(path)
                )
                self._repairer.handle(fault, repair)

    def _repair(self, directory: Path, name: MessageName) -> None:
        path = directory / name.file_name
        if not name.base_name:
            fault = StoreFault(
                StoreFindingKind.NO_BASE_NAME, path, "a name without a base", "a name of its own"
            )
            self._repairer.handle(fault, self._repairer.move_to_corrupt(path))
            return
        for file_fault in self._faults(directory, name):
            fault = StoreFault(file_fault.kind, path, file_fault.found, file_fault.expected)
            self._repairer.handle(fault, self._repair_of(path, file_fault))

    def _repair_of(self, path: Path, file_fault: FileFault) -> Repair | None:
        if file_fault.is_unusable:
            return self._repairer.move_to_corrupt(path, is_complete=not file_fault.loses_data)
        if not file_fault.name:
            return None
        directory = path.parent.parent / "cur" if file_fault.to_cur else path.parent
        return rename_file(path, directory / file_fault.name, is_complete=not file_fault.loses_data)

    def _faults(self, directory: Path, name: MessageName) -> list[FileFault]:
        in_new = directory.name == "new"
        try:
            status = self._status(directory / name.file_name)
        except FileNotFoundError:
            return []
        return list(file_faults(name, status, in_new=in_new, owner=self._owner))

    def _status(self, path: Path) -> FileStatus:
        found = path.lstat()
        status = FileStatus(found.st_mode, found.st_uid, found.st_size)
        if not stat.S_ISREG(found.st_mode):
            return status
        try:
            return replace(status, is_broken_draft=_is_broken(path, full=self._full))
        except FileNotFoundError:
            raise
        except OSError as error:
            return replace(status, read_error=error.strerror or str(error))


def _is_broken(path: Path, *, full: bool) -> bool:
    """Read a file, or its beginning; return whether it is an incomplete draft of the store.

    A file of another program may begin in any way. Raises OSError.
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
