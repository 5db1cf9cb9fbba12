"""All files of messages below a mail root, and their removal, for a development relay's retention.

A removed file is noticed as the removal by any other program. Raises OSError.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from relay.mailbox.folders import list_folders
from relay.mailbox.mailbox_list import mailbox_directories
from relay.mailbox.maildir import list_names, remove


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
