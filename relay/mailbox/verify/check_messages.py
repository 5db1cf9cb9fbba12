"""Check the message files of a folder's directory: content, owner and name.

A file with a fault is checked again when it has not changed for 2 s; only then the fault counts.
Raises OSError if the directory cannot be read. What is no file, an empty file, a name without a
base and flags in new/ are no faults: the store skips the first and shows the others. See Maildir++
(`,S=`) and docs/design.md 3.
"""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from relay.base.files import OpenOctets
from relay.mailbox.maildir import open_message
from relay.mailbox.message_file import MessageName, is_relay_name, parse_name
from relay.mailbox.verify.findings import (
    QuietPeriod,
    Repair,
    Repairer,
    StoreFault,
    StoreFindingKind,
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


def owner_fault(
    path: Path, status: os.stat_result, *, owner: int, needed: int, expected: str
) -> StoreFault | None:
    """Return the fault of a file that another user has, whose owner lacks the permissions `needed`,
    or that everybody may write; None if there is none.
    """
    permissions = stat.S_IMODE(status.st_mode)
    if status.st_uid != owner:
        found, expected = f"the user {status.st_uid}", f"{owner}, as the root's"
    elif permissions & needed == needed and not permissions & 0o002:
        return None
    else:
        found = f"mode {permissions:04o}"
    return StoreFault(StoreFindingKind.OWNER, path, found, expected)


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
                if self._faults(path := directory / name.file_name, name):
                    suspects.append((path, name))
        for path, name in suspects:
            if self._quiet_period.wait_until_unchanged(path):
                for fault, repair in self._faults(path, name):
                    self._repairer.handle(fault, repair)
        return count

    def _faults(self, path: Path, name: MessageName) -> list[tuple[StoreFault, Repair | None]]:
        """Return the faults of a file, with their repairs."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return []
        if not stat.S_ISREG(status.st_mode):
            return []
        found: list[tuple[StoreFault, Repair | None]] = []
        try:
            if _is_broken(path, full=self._full):
                text = f"{status.st_size} bytes, and a private block that does not match them"
                broken = StoreFault(StoreFindingKind.BROKEN_DRAFT, path, text, "a whole draft")
                return [(broken, self._repairer.move_to_corrupt(path))]
        except FileNotFoundError:
            return []
        except OSError as error:
            text, expected = error.strerror or str(error), "a file that can be read"
            found.append((StoreFault(StoreFindingKind.UNREADABLE, path, text, expected), None))
        expected = "readable by its owner, not writable by everybody"
        if fault := owner_fault(path, status, owner=self._owner, needed=0o400, expected=expected):
            found.append((fault, None))
        if name.size is not None and name.size != status.st_size:
            found.append(_size_fault(path, name, status.st_size))
        return found


def _size_fault(path: Path, name: MessageName, size_bytes: int) -> tuple[StoreFault, Repair]:
    assert name.size is not None
    is_short = size_bytes < name.size and is_relay_name(name.file_name)
    kind = StoreFindingKind.TRUNCATED if is_short else StoreFindingKind.WRONG_SIZE
    fault = StoreFault(kind, path, f"{size_bytes} bytes", f"{name.size}, as its name says")
    target = path.with_name(_sized(name, size_bytes))
    return fault, rename_file(path, target, is_complete=not is_short)


def _sized(name: MessageName, size_bytes: int) -> str:
    base, separator, info = name.file_name.partition(":")
    base = _SIZE_OF_LINES.sub("", _SIZE.sub(f",S={size_bytes}", base))
    return f"{base}{separator}{info}"


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
