"""What all mailboxes below a mail root have, by the names of directories and files alone.

No index is opened: a file that another mail server has renamed is not found by its message's id.
A file that is removed here is noticed as the removal by any other program. Raises OSError.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from msgspec import Struct

from relay.store.mailbox.folders import list_folders
from relay.store.mailbox.maildir import list_names, remove
from relay.store.mailbox.message_file import SEEN, mailbox_directory, parse_name
from relay.store.mailbox.types import NoSuchItemError


def mailbox_directories(root: Path) -> Iterator[Path]:
    """Yield the paths where a mailbox may be, by domain, in order."""
    for domain in _names(root):
        for local_part in _names(root / domain):
            yield root / domain / local_part


def _names(directory: Path) -> list[str]:
    """Return the names that a domain or a local part may have: none begins with a dot."""
    return sorted(name for name in list_names(directory) if not name.startswith("."))


class MailboxList:
    """The mailboxes of a root. Blocks for a few system calls; nothing is kept in memory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, address: str) -> bool:
        """Whether there is a mailbox of this address."""
        try:
            return (mailbox_directory(self._root, address) / "cur").is_dir()
        except (NoSuchItemError, ValueError):  # ValueError: a NUL
            return False

    def some(self, limit: int) -> Sequence[str]:
        """Return the addresses of at most `limit` mailboxes, by domain, in order."""
        found = (one for one in mailbox_directories(self._root) if (one / "cur").is_dir())
        return [f"{unquote(one.name)}@{unquote(one.parent.name)}" for one in islice(found, limit)]


def unread_ids(root: Path) -> set[str]:
    """Return the ids of messages without the flag Seen below a mail root. Blocks."""
    found: set[str] = set()
    for _, directories, files in os.walk(root):
        directories[:] = [one for one in directories if one != "tmp"]
        names = filter(None, map(parse_name, files))
        found.update(one.message_id for one in names if SEEN not in one.flags)
    return found


class MailFile(Struct, frozen=True):
    """A message's file; `at_us` is when it was written."""

    path: Path
    at_us: int
    size_bytes: int


def stored_files(root: Path) -> list[MailFile]:
    """Return the files of all folders of all mailboxes; no drafts that are being sent."""
    found: list[MailFile] = []
    for mailbox in mailbox_directories(root):
        for folder in list_folders(mailbox):
            for directory in (folder.path / "new", folder.path / "cur"):
                found += _in_directory(directory)
    return found


def remove_files(files: Iterable[MailFile]) -> int:
    """Remove them; return how many."""
    number = 0
    for one in files:
        remove(one.path)
        number += 1
    return number


def _in_directory(directory: Path) -> Iterator[MailFile]:
    for name in list_names(directory):
        with suppress(FileNotFoundError):
            found = (directory / name).stat()
            if found.st_nlink == 1:  # otherwise it has a submission
                yield MailFile(directory / name, found.st_mtime_ns // 1000, found.st_size)
