"""Notice changes of mailboxes, by any program: inotify(7) at once, modification times within 5 s.

Only mailboxes that are watched cost anything. A change is a hint: the index of the mailbox decides
what has changed. Where inotify does not work (NFS, too many watches), the times are enough.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from inotify_simple import Event, INotify
from inotify_simple import flags as masks

from relay.base.clock import Clock
from relay.store.mailbox.folders import list_folders
from relay.store.mailbox.index.database import FILE_NAME as INDEX
from relay.store.mailbox.state_file import FILE_NAME as STATES

POLL_S = 4.0
_RECENT_NS = 10_000_000_000  # a file system's clock may stand still for this time
_MESSAGES = masks.CREATE | masks.DELETE | masks.MOVED_FROM | masks.MOVED_TO | masks.ONLYDIR
_MAILBOX = masks.MODIFY | masks.CREATE | masks.MOVED_TO | masks.ONLYDIR  # folders, properties
_STATES_LOG = f"{STATES}-wal"
Times = Mapping[Path, int]  # of files and directories, in nanoseconds


class MailboxChanges:
    """The mailboxes that are watched, by address. One event loop."""

    def __init__(self, on_change: Callable[[str], None], clock: Clock) -> None:
        self._on_change = on_change
        self._clock = clock
        self._inotify: INotify | None = None
        self._watches: dict[int, tuple[str, Path]] = {}
        self._times: dict[str, Times] = {}

    def close(self) -> None:
        """End all watches, and forget the mailboxes."""
        self._times.clear()
        self._watches.clear()
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    async def look(self, mailboxes: Mapping[str, Path]) -> None:
        """Compare the times in these mailboxes with the previous times. Only these are watched
        afterwards.
        """
        self._open()
        before_us = self._clock.file_time_us()
        current = await asyncio.to_thread(
            lambda: {address: _times_of(path) for address, path in mailboxes.items()}
        )
        for number, (address, path) in list(self._watches.items()):
            if path not in current.get(address, ()):
                self._unwatch(number)
        watched = {path for _, path in self._watches.values()}
        before, self._times = self._times, current
        for address, times in current.items():
            for path in times.keys() - watched:
                self._watch(address, path, is_mailbox=path == mailboxes[address])
            is_recent = max(times.values(), default=0) > before_us * 1000 - _RECENT_NS
            if is_recent or times != before.get(address):
                self._on_change(address)

    def _open(self) -> None:
        """Begin to read events, unless already begun."""
        with suppress(OSError, AttributeError, TypeError):  # the system has no inotify
            if self._inotify is None:
                self._inotify = INotify(nonblocking=True)
                asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._read)

    def _watch(self, address: str, path: Path, *, is_mailbox: bool) -> None:
        with suppress(OSError):  # a file, or too many watches: its time is compared
            if self._inotify is not None:
                number = self._inotify.add_watch(path, _MAILBOX if is_mailbox else _MESSAGES)
                self._watches[number] = (address, path)

    def _unwatch(self, number: int) -> None:
        del self._watches[number]
        with suppress(OSError):  # the kernel removed it together with its directory
            if self._inotify is not None:
                self._inotify.rm_watch(number)

    def _read(self) -> None:
        """Report the mailboxes whose events have arrived."""
        assert self._inotify is not None
        changed: dict[str, None] = {}
        try:
            events = self._inotify.read(timeout=0)
        except OSError:
            return  # the times are enough
        for event in events:
            if event.mask & masks.Q_OVERFLOW:
                changed |= dict.fromkeys(self._times)
            elif event.mask & masks.IGNORED:
                self._watches.pop(event.wd, None)
            elif (watch := self._watches.get(event.wd)) and not _is_of_readers(event):
                changed[watch[0]] = None
        for address in changed:
            self._on_change(address)


def _is_of_readers(event: Event) -> bool:
    """Return whether reading a mailbox may have caused an event: reading opens and closes
    databases.

    If such events counted, many mailboxes would be read repeatedly.
    """
    is_new_log = event.name == _STATES_LOG and event.mask & masks.CREATE  # the log is still empty
    return bool(event.name.startswith((INDEX, f"{STATES}-shm")) or is_new_log)


def _times_of(mailbox: Path) -> Times:
    """Return the times of files and folders that change with a mailbox's messages; {} without a
    mailbox.

    The time of the mailbox directory is 0: opening a database changes it, and new folders are new
    keys.
    """
    paths = [mailbox, mailbox / STATES, mailbox / _STATES_LOG]
    with suppress(OSError):
        paths += [folder.path / name for folder in list_folders(mailbox) for name in ("new", "cur")]
    times = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        if path.name != _STATES_LOG or status.st_size:
            times[path] = 0 if path == mailbox else status.st_mtime_ns
    return times
