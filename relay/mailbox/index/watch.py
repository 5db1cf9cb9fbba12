"""What other programs do to a mailbox's directories, told by the kernel, one name at a time.

On the path: the index takes what happened since it last asked, and looks at those names only.
Holds: one inotify instance a process and no thread: it is read when somebody asks; watches and the
names kept are bounded. Names are hints: what is true is on the disk.
Fails: never: where the kernel cannot watch, `add()` says no; what got lost is told as lost.
Standards: inotify(7).
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from inotify_simple import INotify
from inotify_simple import flags as masks

_NAMES_MAX = 10_000  # of one mailbox: with more, its directories are listed
_WATCHES_MAX = 16_384
_WANTED = (
    masks.CREATE
    | masks.DELETE
    | masks.MOVED_FROM
    | masks.MOVED_TO
    | masks.CLOSE_WRITE  # a file that somebody writes where it lies
    | masks.DELETE_SELF
    | masks.MOVE_SELF
    | masks.ONLYDIR
    | masks.EXCL_UNLINK
)
_GONE = masks.DELETE_SELF | masks.MOVE_SELF | masks.IGNORED | masks.UNMOUNT


@dataclass(slots=True)
class News:
    """What happened: names by their directory; directories that are watched no more.

    `lost`: there was more than could be kept, anything may have happened.
    """

    names: dict[Path, set[bytes]] = field(default_factory=dict)
    gone: set[Path] = field(default_factory=set)
    lost: bool = False
    count: int = 0

    def __bool__(self) -> bool:
        return self.lost or bool(self.names) or bool(self.gone)

    def add(self, directory: Path, name: str) -> None:
        """Keep a name, as long as there are not too many."""
        self.count += 1
        if self.count > _NAMES_MAX:
            self.lost = True
            self.names.clear()
        else:
            self.names.setdefault(directory, set()).add(os.fsencode(name))


class Watches:
    """The process's inotify instance, made when it is first needed."""

    def __init__(
        self, make: Callable[[], INotify] = lambda: INotify(nonblocking=True),
        *, watches_max: int = _WATCHES_MAX,
    ) -> None:  # fmt: skip
        self._make = make
        self._watches_max = watches_max
        self._lock = threading.Lock()
        self._inotify: INotify | None = None
        self._is_impossible = False
        self._owners: dict[int, tuple[MailboxWatch, Path]] = {}

    def of_mailbox(self) -> "MailboxWatch":
        """The watch of one mailbox, which watches nothing yet."""
        return MailboxWatch(self)

    def close(self) -> None:
        """Watch nothing any more."""
        with self._lock:
            self._is_impossible = True
            self._owners.clear()
            if self._inotify is not None:
                self._inotify.close()
                self._inotify = None

    def add(self, owner: "MailboxWatch", directory: Path) -> int | None:
        """Begin to watch a directory; None where that is impossible."""
        with self._lock:
            if self._is_impossible or len(self._owners) >= self._watches_max:
                return None
            try:
                if self._inotify is None:
                    self._inotify = self._make()
            except (OSError, AttributeError, TypeError):  # no inotify in this system's library
                self._is_impossible = True
                return None
            try:
                number: int = self._inotify.add_watch(directory, _WANTED)
            except OSError:  # no such directory, or the user has no watch left
                return None
            if number in self._owners:  # one directory under two names: the other one is told
                return None
            self._owners[number] = (owner, directory)
            return number

    def remove(self, number: int) -> None:
        """Watch a directory no more."""
        with self._lock:
            if self._owners.pop(number, None) is not None and self._inotify is not None:
                try:
                    self._inotify.rm_watch(number)
                except OSError:
                    return  # it went with its directory

    def take(self, owner: "MailboxWatch") -> News:
        """Read what the kernel has, for everybody, and return what the owner has not seen."""
        with self._lock:
            self._read()
            news, owner.news = owner.news, News()
            return news

    def _read(self) -> None:
        if self._inotify is None:
            return
        try:
            events = self._inotify.read(timeout=0)
        except OSError:
            self._lose()
            return
        for event in events:
            if event.mask & masks.Q_OVERFLOW:
                self._lose()
                continue
            known = self._owners.get(event.wd)
            if known is None:
                continue
            owner, directory = known
            if event.mask & _GONE:
                del self._owners[event.wd]
                owner.news.gone.add(directory)
            else:
                owner.news.add(directory, event.name)

    def _lose(self) -> None:
        for owner, _ in self._owners.values():
            owner.news.lost = True


class MailboxWatch:
    """The directories of one mailbox that are watched. Its user's lock guards it."""

    def __init__(self, watches: Watches) -> None:
        self._watches = watches
        self._numbers: dict[Path, int] = {}
        self.news = News()  # of Watches, under its lock

    def watches(self, directory: Path) -> bool:
        """Whether a directory is watched."""
        return directory in self._numbers

    def add(self, directory: Path) -> bool:
        """Watch a directory; whether that is possible."""
        if directory not in self._numbers:
            number = self._watches.add(self, directory)
            if number is None:
                return False
            self._numbers[directory] = number
        return True

    def remove(self, directory: Path) -> None:
        """Watch a directory no more."""
        number = self._numbers.pop(directory, None)
        if number is not None:
            self._watches.remove(number)

    def take(self) -> News:
        """What happened since the last time."""
        news = self._watches.take(self)
        for directory in news.gone:
            self._numbers.pop(directory, None)
        return news

    def close(self) -> None:
        """Watch nothing any more."""
        for directory in list(self._numbers):
            self.remove(directory)
