"""What all mailboxes below a mail root have, by the names of directories and files alone.

No index is opened: a file that another mail server has renamed is not found by its message's id.
A file that is removed here is noticed as the removal by any other program. Raises OSError.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from msgspec import Struct

from relay.base.clock import Clock
from relay.store.mailbox.errors import NoSuchItemError
from relay.store.mailbox.folders import message_directories
from relay.store.mailbox.maildir import is_old, list_names, remove
from relay.store.mailbox.message_file import SEEN, id_of_name, mailbox_directory, parse_name

_ASKED_MAX = 50  # mailboxes, each of which opens its index
_NOTED_MAX = 1000
_FREE_S, _COST_FACTOR = 0.005, 20  # of looking at all directories


def mailbox_directories(root: Path) -> Iterator[Path]:
    """Yield the paths where a mailbox may be, by domain, in order."""
    for domain in _names(root):
        for local_part in _names(root / domain):
            yield root / domain / local_part


def _names(directory: Path) -> list[str]:
    """Return the names that a domain or a local part may have: none begins with a dot."""
    return sorted(name for name in list_names(directory) if not name.startswith("."))


def _address_of(mailbox: Path) -> str:
    """Return the address of a mailbox by its path."""
    return f"{unquote(mailbox.name)}@{unquote(mailbox.parent.name)}"


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

    def first(self, limit: int) -> Sequence[str]:
        """Return the addresses of the first `limit` mailboxes, by domain, in order."""
        mailboxes = (path for path in mailbox_directories(self._root) if (path / "cur").is_dir())
        return list(map(_address_of, islice(mailboxes, limit)))


class _Directory(Struct, frozen=True):
    """The content of a directory at a modification time.

    `changed_ns` is 0 if the directory changed so recently that another change may get the same
    time.
    """

    changed_ns: int
    directories: list[str]
    flags: dict[str, bool]  # whether messages are read, by id
    asked: set[Path]  # the mailbox, if another program has named a file here


class ReadFlags:
    """Which messages below a mail root are read, by the names of their files.

    A directory is listed again when its time has changed. The index of a mailbox is asked if
    another program has named a file there. Blocks; any thread may call it.
    """

    def __init__(self, root: Path, clock: Clock, unread_in: Callable[[Path], set[str]]) -> None:
        """`unread_in` returns the ids of the unread messages of a mailbox by its index."""
        self._root = root
        self._clock = clock
        self._unread_in = unread_in
        self._lock = threading.Lock()
        self._known: dict[str, _Directory] = {}
        self._noted = set[str]()  # directories that this process has changed
        self._look_at_s = -math.inf  # when all directories are looked at again

    def note(self, directory: str) -> None:
        """Note that this process has changed a directory. With too many, all are looked at."""
        if len(self._noted) < _NOTED_MAX:
            self._noted.add(directory)

    def unread(self) -> set[str]:
        """Return the ids of the messages without the flag Seen. Raises StoreError too.

        With some hundred mailboxes, changes by other programs are seen at once. With more, all
        directories are examined again after twenty times as long as that takes: two seconds for
        10,000 mailboxes.
        """
        with self._lock:
            noted = [self._noted.pop() for _ in range(len(self._noted))]
            if len(noted) >= _NOTED_MAX or self._clock.real_s() >= self._look_at_s:
                began_s = time.thread_time()
                self._known = self._look([str(self._root)])
                cost_s = time.thread_time() - began_s
                self._look_at_s = self._clock.real_s() + _COST_FACTOR * (cost_s - _FREE_S)
            self._known |= self._look([path for path in noted if path.endswith(("/new", "/cur"))])
            now = [directory for directory in self._known.values() if directory.flags]
        asked = sorted(
            set[Path]().union(*(directory.asked for directory in now if directory.asked))
        )[:_ASKED_MAX]
        unread = {
            message_id
            for directory in now
            for message_id, is_read in directory.flags.items()
            if not is_read
        }
        return unread.union(*map(self._unread_in, asked))

    def of(self, ids_by_address: Mapping[str, Collection[str]]) -> dict[str, bool]:
        """Return by id whether messages are read. `ids_by_address` has the ids of each mailbox.

        Messages after which no file is named are left out. Raises NoSuchItemError.
        """
        flags: dict[str, bool] = {}
        with self._lock:
            for address, ids in ids_by_address.items():
                now = self._look([str(mailbox_directory(self._root, address))])
                self._known |= now
                for directory in now.values():
                    flags |= {
                        message_id: directory.flags[message_id]
                        for message_id in ids
                        if message_id in directory.flags
                    }
        return flags

    def _look(self, waiting: list[str]) -> dict[str, _Directory]:
        """Return these directories and those below them, by path."""
        directories: dict[str, _Directory] = {}
        now_us = self._clock.file_time_us()
        while waiting:
            path = waiting.pop()
            directory = self._known.pop(path, None)
            with suppress(FileNotFoundError, NotADirectoryError):
                changed_ns = os.stat(path).st_mtime_ns  # noqa: PTH116 - thousands of them
                if directory is None or directory.changed_ns != changed_ns:
                    is_known = is_old(changed_ns, now_us=now_us)
                    directory = _listed(path, changed_ns if is_known else 0)
                waiting += directory.directories
                directories[path] = directory
        return directories


def _listed(path: str, changed_ns: int) -> _Directory:
    directory = _Directory(changed_ns, [], {}, set())
    folder = Path(path).parent
    mailbox = folder.parent if folder.name.startswith(".") else folder
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != "tmp":
                    directory.directories.append(entry.path)
            elif (name := parse_name(entry.name)) is not None:
                directory.flags[name.message_id] = SEEN in name.flags
                if path.endswith(("/new", "/cur")) and id_of_name(name):
                    directory.asked.add(mailbox)
    return directory


class MailFile(Struct, frozen=True):
    """A message's file; `at_us` is when it was written."""

    path: Path
    at_us: int
    size_bytes: int


def stored_files(root: Path) -> list[MailFile]:
    """Return the message files of all mailboxes, without those of drafts that are being sent."""
    files: list[MailFile] = []
    for mailbox in mailbox_directories(root):
        for directory in message_directories(mailbox):
            files += _in_directory(directory)
    return files


def remove_files(files: Iterable[MailFile]) -> None:
    """Remove the files that still exist."""
    for file in files:
        remove(file.path)


def without_messages(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield address and path of the mailboxes without a message in any folder."""
    for mailbox in mailbox_directories(root):
        if not any(map(list_names, message_directories(mailbox))):
            yield _address_of(mailbox), mailbox


def _in_directory(directory: str) -> Iterator[MailFile]:
    for name in list_names(directory):
        with suppress(FileNotFoundError):
            path = f"{directory}/{name}"
            status = os.stat(path)  # noqa: PTH116 - thousands of them
            if status.st_nlink == 1:  # otherwise it has a submission
                yield MailFile(Path(path), status.st_mtime_ns // 1000, status.st_size)
