"""What a mailbox holds, counted as du does, and whether more fits.

On the path: asked before a draft is written (1), at RCPT, and before a local delivery (6).
Holds: a count is used again only while the directory is as it was; notes do not count.
Fails: MailboxFullError; OSError when a directory cannot be read.
Standards: Maildir's `,S=`.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from relay.clock import Clock
from relay.mailbox.folders import list_folders
from relay.mailbox.maildir import list_names
from relay.mailbox.names import parse_name
from relay.mailbox.types import MailboxFullError

_DIRECTORIES_REMEMBERED = 10_000
# Within a tick of the file system's clock two changes leave one mtime: a count that young is
# not trusted again.
_TICK_NS = 100_000_000


@dataclass(frozen=True, slots=True)
class _Count:
    changed_ns: int
    size_bytes: int


class Quota:
    """Counts mailboxes whose accounts have a quota; the others cost nothing."""

    def __init__(self, quota_of: Callable[[str], int | None], clock: Clock) -> None:
        self._quota_of = quota_of
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[Path, _Count] = {}

    def has_room(self, account: str, mailbox: Path, size_bytes: int) -> bool:
        """Whether a message of `size_bytes` fits."""
        quota = self._quota_of(account)
        return quota is None or self.used_bytes(mailbox) + size_bytes <= quota

    def check(self, account: str, mailbox: Path, size_bytes: int) -> None:
        """Raise MailboxFullError unless a message of `size_bytes` fits."""
        if not self.has_room(account, mailbox, size_bytes):
            raise MailboxFullError(
                f"The mailbox {account} is full: {size_bytes} bytes more do not fit"
                f" under its quota of {self._quota_of(account)} bytes."
            )

    def used_bytes(self, mailbox: Path) -> int:
        """The size of all messages in all folders."""
        directories = [
            folder.path / name for folder in list_folders(mailbox) for name in ("new", "cur")
        ]
        return sum(self._size(directory) for directory in directories)

    def _size(self, directory: Path) -> int:
        try:
            changed_ns = directory.stat().st_mtime_ns
        except FileNotFoundError:
            return 0
        with self._lock:
            count = self._counts.get(directory)
        if count is not None and count.changed_ns == changed_ns:
            return count.size_bytes
        size_bytes = sum(_file_size(directory, name) for name in list_names(directory))
        if self._clock.time_us() * 1000 - changed_ns > _TICK_NS:
            with self._lock:
                if len(self._counts) >= _DIRECTORIES_REMEMBERED:
                    self._counts.clear()
                self._counts[directory] = _Count(changed_ns, size_bytes)
        return size_bytes


def _file_size(directory: Path, file_name: str) -> int:
    name = parse_name(file_name)
    if name is None:
        return 0
    if name.size is not None:
        return name.size
    with contextlib.suppress(FileNotFoundError):
        return (directory / file_name).stat().st_size
    return 0
