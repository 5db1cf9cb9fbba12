"""Watch the directories of mailboxes with inotify(7) for changes by other programs.

The index update takes the events since its last run and checks only the named files. There is one
inotify instance in a process and no thread: events are read on request. The number of watches and
of kept names is bounded. An event is only a hint, the files decide. If the kernel cannot watch a
directory, add() returns False; lost events set `overflowed`.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from inotify_simple import INotify
from inotify_simple import flags as masks

_NAMES_MAX = 10_000  # per mailbox; with more events its directories are listed
_WATCHES_MAX = 16_384
_EVENTS = (
    masks.CREATE
    | masks.DELETE
    | masks.MOVED_FROM
    | masks.MOVED_TO
    | masks.CLOSE_WRITE  # a file that is written in place
    | masks.DELETE_SELF
    | masks.MOVE_SELF
    | masks.ONLYDIR
    | masks.EXCL_UNLINK
)
_REMOVED = masks.DELETE_SELF | masks.MOVE_SELF | masks.IGNORED | masks.UNMOUNT


@dataclass(slots=True)
class WatchEvents:
    """The names of changed files by directory, and the directories that are no longer watched.

    `overflowed` means that events were lost: any file may have changed.
    """

    names: dict[Path, set[bytes]] = field(default_factory=dict)
    removed: set[Path] = field(default_factory=set)
    overflowed: bool = False
    count: int = 0

    def add(self, directory: Path, name: str) -> None:
        """Add a name; with too many names, set `overflowed` instead."""
        self.count += 1
        if self.count > _NAMES_MAX:
            self.overflowed = True
            self.names.clear()
        else:
            self.names.setdefault(directory, set()).add(os.fsencode(name))


@dataclass(eq=False, repr=False)
class InotifyWatcher:
    """The process's inotify instance, opened on first use."""

    make: Callable[[], INotify] = lambda: INotify(nonblocking=True)
    watches_max: int = _WATCHES_MAX

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._inotify: INotify | None = None
        self._is_unavailable = False
        self._owners: dict[int, tuple[MailboxWatch, Path]] = {}

    def for_mailbox(self) -> "MailboxWatch":
        """Return the watch of one mailbox, without directories."""
        return MailboxWatch(self)

    def close(self) -> None:
        """Stop watching."""
        with self._lock:
            self._is_unavailable = True
            self._owners.clear()
            if self._inotify is not None:
                self._inotify.close()
                self._inotify = None

    def add(self, owner: "MailboxWatch", directory: Path) -> int | None:
        """Start to watch a directory; return None if that is impossible."""
        with self._lock:
            if self._is_unavailable or len(self._owners) >= self.watches_max:
                return None
            try:
                if self._inotify is None:
                    self._inotify = self.make()
            except (OSError, AttributeError, TypeError):  # the system has no inotify
                self._is_unavailable = True
                return None
            try:
                number: int = self._inotify.add_watch(directory, _EVENTS)
            except OSError:  # no such directory, or the user's limit of watches is reached
                return None
            if number in self._owners:  # a directory with two paths: events go to the first
                return None
            self._owners[number] = (owner, directory)
            return number

    def remove(self, number: int) -> None:
        """Stop watching a directory."""
        with self._lock:
            if self._owners.pop(number, None) is not None and self._inotify is not None:
                try:
                    self._inotify.rm_watch(number)
                except OSError:
                    return  # the kernel removed it together with its directory

    def take(self, owner: "MailboxWatch") -> WatchEvents:
        """Read the kernel's events for all owners, and return those of `owner`."""
        with self._lock:
            self._read()
            events, owner.events = owner.events, WatchEvents()
            return events

    def _read(self) -> None:
        if self._inotify is None:
            return
        try:
            events = self._inotify.read(timeout=0)
        except OSError:
            self._set_overflowed()
            return
        for event in events:
            if event.mask & masks.Q_OVERFLOW:
                self._set_overflowed()
                continue
            known = self._owners.get(event.wd)
            if known is None:
                continue
            owner, directory = known
            if event.mask & _REMOVED:
                del self._owners[event.wd]
                owner.events.removed.add(directory)
            else:
                owner.events.add(directory, event.name)

    def _set_overflowed(self) -> None:
        for owner, _ in self._owners.values():
            owner.events.overflowed = True


class MailboxWatch:
    """The watched directories of one mailbox. The caller's lock guards it."""

    def __init__(self, watcher: InotifyWatcher) -> None:
        self._watcher = watcher
        self._numbers: dict[Path, int] = {}
        self.events = WatchEvents()  # of InotifyWatcher, under its lock

    def is_watching(self, directory: Path) -> bool:
        """Return whether a directory is watched."""
        return directory in self._numbers

    def add(self, directory: Path) -> bool:
        """Watch a directory; return whether that is possible."""
        if directory not in self._numbers:
            number = self._watcher.add(self, directory)
            if number is None:
                return False
            self._numbers[directory] = number
        return True

    def remove(self, directory: Path) -> None:
        """Stop watching a directory."""
        number = self._numbers.pop(directory, None)
        if number is not None:
            self._watcher.remove(number)

    def take(self) -> WatchEvents:
        """Return the events since the last call."""
        events = self._watcher.take(self)
        for directory in events.removed:
            self._numbers.pop(directory, None)
        return events

    def close(self) -> None:
        """Stop watching."""
        for directory in list(self._numbers):
            self.remove(directory)
