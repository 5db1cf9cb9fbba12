"""Remove old files from a mailbox: before the first write of a process to it, then once a day.
Remove an empty mailbox.

Methods raise OSError. Maildir allows removing a file in tmp/ that was not accessed for 36 hours.
docs/design.md 1.
"""

import os
import shutil
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from relay.base.clock import Clock, now_at_least_us
from relay.store.mailbox.errors import StoreError
from relay.store.mailbox.folders import (
    COPY_PREFIX,
    DELETED_PREFIX,
    DIRECTORIES,
    MARKER,
    list_folders,
    well_known_path,
)
from relay.store.mailbox.index.database import FILE_NAME
from relay.store.mailbox.index.indexes import Indexes
from relay.store.mailbox.maildir import list_names, remove
from relay.store.mailbox.message_file import is_relay_name
from relay.store.mailbox.state_file import FILE_NAME as STATES
from relay.store.mailbox.stored_message import WellKnown

STALE_S = 36 * 3600
# Files that only say something of messages: of Dovecot, of Relay, and of Maildir++.
_ABOUT_MESSAGES = ("dovecot", "subscriptions", FILE_NAME, STATES, MARKER)
_EVERY_S = 24 * 3600


@dataclass(kw_only=True, eq=False, repr=False)
class OldFiles:
    """Removes old files. Blocking: the store calls it in its threads."""

    clock: Clock  # for the age of files
    index: Indexes  # has states that expire
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    # By the hash of a path, as there may be many. Only a removed mailbox is forgotten: the first
    # cleaning must not meet active writers.
    _cleaned_s: dict[int, float] = field(default_factory=dict, init=False)

    def clean(self, mailbox: Path, *, is_fresh: bool = False) -> None:
        """Remove stale files of a mailbox, at most once a day; called before each write to it.

        The first time, remove half-written drafts and half-removed folders of any age. A mailbox
        that `is_fresh` (see Folders) has none of these. Each time, remove files of any program in
        any tmp/ that are older than 36 hours, copies of folders that a crash interrupted so long
        ago, and the states of messages that vanished 30 days ago.
        """
        now_s, key = self.clock.real_s(), hash(os.fspath(mailbox))
        if is_fresh:
            self._cleaned_s.setdefault(key, now_s)
        if now_s - self._cleaned_s.get(key, -_EVERY_S) < _EVERY_S:
            return
        with self._lock:  # a second caller waits until the first cleaning is complete
            cleaned_s = self._cleaned_s.get(key)
            if cleaned_s is not None and now_s - cleaned_s < _EVERY_S:
                return
            if cleaned_s is None:
                _remove_half_done(mailbox)
            self._cleaned_s[key] = now_s
        with suppress(StoreError):  # tried again tomorrow
            self.index.expire_states(mailbox)
        clock = self.clock
        old_s = min(clock.file_time_us(), now_at_least_us(clock)) / 1_000_000 - STALE_S
        for folder in list_folders(mailbox):
            _remove_old(folder.path / "tmp", old_s)
        for name in list_names(mailbox):
            if name.startswith(COPY_PREFIX) and _is_old(mailbox / name, old_s):
                shutil.rmtree(mailbox / name, ignore_errors=True)

    def remove_empty(self, mailbox: Path) -> bool:
        """Remove a mailbox without messages, own folders and settings; return whether it is gone.

        No change of it may run meanwhile. It stays while a thread uses its index. Directories of
        messages go first: if another program has just written a message, they are made again.
        """
        folders = [well_known_path(mailbox, folder) for folder in WellKnown]
        directories = [folder / name for folder in folders for name in DIRECTORIES]
        files = {folder / name for folder in folders for name in list_names(folder)}
        files -= {*directories, *folders}
        is_bare = all(file.name.startswith(_ABOUT_MESSAGES) for file in files)
        if not is_bare or any(map(list_names, directories)) or not self.index.close_unused(mailbox):
            return False
        removed: list[Path] = []
        try:
            for directory in filter(Path.exists, directories):
                directory.rmdir()
                removed.append(directory)
        except OSError:
            for directory in reversed(removed):
                directory.mkdir(0o700)
            return False
        for file in files:
            remove(file)
        with suppress(OSError):  # a program writes there, or the domain has other mailboxes
            for directory in (*filter(Path.exists, reversed(folders)), mailbox.parent):
                directory.rmdir()
        self._cleaned_s.pop(hash(os.fspath(mailbox)), None)
        return True


def _remove_half_done(mailbox: Path) -> None:
    temporary = well_known_path(mailbox, WellKnown.DRAFTS) / "tmp"
    for name in list_names(temporary):
        if is_relay_name(name):
            remove(temporary / name)
    for name in list_names(mailbox):
        if name.startswith(DELETED_PREFIX):
            shutil.rmtree(mailbox / name, ignore_errors=True)


def _remove_old(directory: Path, old_s: float) -> None:
    """Remove files that were not written, linked or renamed since `old_s`."""
    for name in list_names(directory):
        path = directory / name
        with suppress(OSError):  # already removed, or not permitted
            status = os.lstat(path)
            if status.st_ctime < old_s and not stat.S_ISDIR(status.st_mode):
                path.unlink()


def _is_old(directory: Path, old_s: float) -> bool:
    with suppress(FileNotFoundError):
        return directory.lstat().st_ctime < old_s
    return False
