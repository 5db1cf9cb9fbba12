"""Update the index of a mailbox: scan what has changed in its directories, and nothing else.

The update runs before each answer of a mailbox's index, under its lock. inotify events and the
modification times of directories only say what to scan. A file that vanished is looked for twice,
because it may be in the middle of a rename. The time of a directory counts only when it is older
than a tick of the file system's clock.

Raises OSError when a directory cannot be read, and apsw's exceptions; the transaction is then
rolled back. See Maildir, inotify(7) and POSIX on the modification time of a directory.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import apsw

from relay.base.clock import Clock
from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.folders import list_folders
from relay.store.mailbox.index.database import fetch
from relay.store.mailbox.index.identity import MessageMatcher
from relay.store.mailbox.index.rows import (
    INT64_MAX,
    FileLocation,
    FolderRow,
    FolderRows,
    IndexedMessage,
    MessageTable,
    ScannedFile,
    StatData,
)
from relay.store.mailbox.index.states import (
    copy_states,
    forget_position,
    known_position,
    record_position,
)
from relay.store.mailbox.index.watch import MailboxWatch
from relay.store.mailbox.maildir import is_old, list_names, remove
from relay.store.mailbox.message_file import is_relay_name, parse_name
from relay.store.mailbox.state_file import StateFile, UnmergedState
from relay.store.mailbox.stored_message import Folder


@dataclass(slots=True)
class ScanResult:
    """Rows whose file vanished or changed (`missing`), and files without a row (`found`)."""

    missing: list[IndexedMessage] = field(default_factory=list)
    found: list[ScannedFile] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.found)

    def has_unmatched(self) -> bool:
        """Return whether a file vanished and no file with its base name was found."""
        base_names = {file.base_name for file in self.found}
        return any(row.base_name not in base_names for row in self.missing)


def directory_path(folder: FolderRow, *, in_new: bool) -> Path:
    """Return a folder's new/ or cur/."""
    return folder.folder.path / ("new" if in_new else "cur")


def path_of(folders: FolderRows, location: FileLocation) -> str:
    """Return the path of a file, as a str: a large mailbox has 100,000 of them."""
    directory = folders[location.folder].folder.path
    return f"{directory}/{'new' if location.in_new else 'cur'}/{os.fsdecode(location.file_name)}"


def names_on_disk(directory: Path | str) -> Iterator[tuple[bytes, int]]:
    """Yield the files of a directory with their inodes; none if it does not exist."""
    try:
        with os.scandir(os.fsencode(directory)) as entries:
            for entry in entries:
                if not entry.name.startswith(b".") and entry.is_file(follow_symlinks=False):
                    yield entry.name, entry.inode() & INT64_MAX
    except (FileNotFoundError, NotADirectoryError):
        return


def differing_locations(
    table: MessageTable, folder: FolderRow, *, in_new: bool
) -> Iterator[FileLocation]:
    """Yield the locations at which a directory's listing differs from the rows."""
    path = directory_path(folder, in_new=in_new)
    on_disk = {} if folder.is_removed else dict(names_on_disk(path))
    known = table.names_in(folder.number, in_new=in_new)
    for name in on_disk.keys() | known.keys():
        if on_disk.get(name) != known.get(name):
            yield FileLocation(folder.number, in_new, name)


def scan(table: MessageTable, folders: FolderRows, locations: Iterable[FileLocation]) -> ScanResult:
    """Compare the files at these locations with the rows."""
    scanned = ScanResult()
    for location in locations:
        row = table.at(location)
        folder = folders[location.folder]
        file = None if folder.is_removed else _scan_file(path_of(folders, location), location)
        if row is not None and file is not None and row.stat_data == file.stat_data:
            continue
        if row is not None:
            scanned.missing.append(row)
        if file is not None:
            scanned.found.append(file)
    return scanned


def _scan_file(path: str, location: FileLocation) -> ScannedFile | None:
    """Return the message file at a location, None if there is none. Raises OSError."""
    name = parse_name(os.fsdecode(location.file_name))
    if name is None:
        return None
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return ScannedFile(location, name, os.fsencode(name.base_name), StatData.of(status))


_SCANS_MAX = 20  # a mail client may rename a file faster than the scan finds it
_CHECK_INTERVAL_S = 10.0
_FILES_AT_ONCE = 1000
_NO_TIME = -1
_BY_NAME = -2
_INCOMPLETE_MAX = 100
_UNMERGED_AT_ONCE = 100  # in one transaction, for which other writers wait
_T = TypeVar("_T")
Directory = tuple[int, bool]  # a FolderRow's number, and whether new/ or cur/


@dataclass(slots=True)
class _ScanScope:
    """What to scan: single files, and whole directories with their current modification times.

    `unannounced` are directories that changed without an event. `times` are stored afterwards: as
    of these times, the index is current with those directories.
    """

    locations: set[FileLocation] = field(default_factory=set)
    directories: dict[Directory, int] = field(default_factory=dict)
    unannounced: set[Directory] = field(default_factory=set)
    times: dict[Directory, int] = field(default_factory=dict)


@dataclass(eq=False, repr=False)
class IndexUpdater:
    """Updates the index of one mailbox while it is open. `transaction` begins a transaction."""

    mailbox: Path
    clock: Clock
    watch: MailboxWatch
    states: StateFile
    transaction: Callable[[], AbstractContextManager[apsw.Cursor]]

    def __post_init__(self) -> None:
        self.folders: dict[int, FolderRow] = {}
        self._root_ns = 0
        self._is_stale = True  # the list of folders may have changed
        self._checked_s = self.clock.real_s()
        self._is_reliable = True  # the watch; False once a change came without an event
        # Directories whose time is not stored yet, with the time up to which the index is current,
        # or _BY_NAME if there were events since.
        self._pending_times: dict[Directory, int] = {}
        self._superseded: list[FileLocation] = []
        self.has_unmerged = True  # there may be entries in unmerged_state
        self._incomplete: tuple[Path, ...] = ()  # directories that may become folders

    def build(self, cursor: apsw.Cursor, is_stopping: Callable[[], bool]) -> None:
        """Index all messages, in the transaction that creates the index.

        Raises StoreUnavailableError when `is_stopping` returns True.
        """

        def check() -> None:
            if is_stopping():
                raise StoreUnavailableError("The mailbox is not indexed yet: Relay is stopping.")

        self._update_folders(cursor)
        table = self._table(cursor, is_first=True)
        with suppress(StoreUnavailableError):
            record_position(cursor, self.states.position())
        foreign: list[FileLocation] = []
        times = {}
        for directory, path in self._directories():
            times[directory] = _changed_ns(path)
            for names in _batched(names_on_disk(path)):
                check()
                locations = {FileLocation(*directory, name) for name, _ in names}
                others = {
                    location
                    for location in locations
                    if not is_relay_name(os.fsdecode(location.file_name))
                }
                foreign += others
                self._match_files(table, scan(table, self.folders, locations - others))
        # these names begin with a time: oldest first
        foreign.sort(key=lambda location: location.file_name)
        for batch in _batched(foreign):
            check()
            self._match_files(table, scan(table, self.folders, batch))
        self._store_unmerged(cursor, table)
        self._store_times(cursor, _ScanScope(times=times))

    def run(self, cursor: apsw.Cursor) -> None:
        """Scan what has changed since the last run, and update the rows."""
        names = self._take_events()
        all_directories = self._have_folders_changed()
        if all_directories:
            self._update_folders(cursor)
        scope = self._find_scope(cursor, names, all_directories=all_directories)
        if self._is_check_due():
            self._check_times(cursor, scope)
        if scope.locations or scope.directories:
            self._update_rows(cursor, scope)
        self._remove_superseded()
        self._delete_removed_folders()
        self._store_times(cursor, scope)
        self._copy_states(cursor)

    def record_times(self, cursor: apsw.Cursor) -> None:
        """Store the directories' times, so that the next process need not list them."""
        scope = _ScanScope()
        self._check_times(cursor, scope)
        self._store_times(cursor, scope)

    def _copy_states(self, cursor: apsw.Cursor) -> None:
        """Copy the states that were written since the last run.

        If they cannot be read, the index keeps the states that it has.
        """
        with suppress(StoreUnavailableError):
            known, position = known_position(cursor), self.states.position()
            if position == known:
                return
            is_all = position.inode != known.inode or position.version < known.version
            at = (0 if is_all else known.version + 1, "")
            while rows := self.states.since(*at):
                self._record_states({message_id: state for _, message_id, state in rows})
                at = rows[-1][:2]
            if is_all:
                self._record_states(dict.fromkeys(self._without_state(cursor), b""))
            with self.transaction() as writing:
                if is_all:  # another file may give the article numbers to other messages
                    writing.execute("UPDATE message SET article = NULL WHERE article IS NOT NULL")
                record_position(writing, position)

    def _record_states(self, states: Mapping[str, bytes]) -> None:
        with self.transaction() as writing:
            copy_states(self._table(writing), states)

    def _without_state(self, cursor: apsw.Cursor) -> list[str]:
        """Return the messages that have a state in the index, and none in the file."""
        rows = fetch(cursor, "SELECT message_id FROM message WHERE state_bytes > 0")
        return [message_id for (message_id,) in rows if not self.states.find(message_id)]

    def unmerged(self, cursor: apsw.Cursor, merged: Sequence[UnmergedState]) -> list[UnmergedState]:
        """Forget the ids that are merged; return some of those whose states must be merged."""
        if merged:
            with self.transaction() as writing:
                sql = "DELETE FROM unmerged_state WHERE ids = ? AND state = ?"
                writing.executemany(sql, map(_unmerged_row, merged))
        rows = fetch(cursor, f"SELECT ids, state FROM unmerged_state LIMIT {_UNMERGED_AT_ONCE}")
        self.has_unmerged = bool(rows)
        return [(tuple(ids.split()), state) for ids, state in rows]

    def _store_unmerged(self, cursor: apsw.Cursor, table: MessageTable) -> None:
        self.has_unmerged |= bool(table.unmerged)
        sql = "INSERT OR REPLACE INTO unmerged_state VALUES (?, ?)"
        cursor.executemany(sql, map(_unmerged_row, table.unmerged))

    # -- what to scan

    def _take_events(self) -> dict[Path, set[bytes]]:
        """Take the events of the watch. Events about folders are noted for the next run."""
        events = self.watch.take()
        in_root = events.names.pop(self.mailbox, set())
        if any(name.startswith(b".") or name in (b"new", b"cur") for name in in_root):
            self._is_stale = True
        if events.overflowed or events.removed:
            self._is_stale = True
            paths = dict(self._directories())
            self._pending_times = {
                directory: known_ns
                for directory, known_ns in self._pending_times.items()
                if not events.overflowed
                and directory in paths
                and paths[directory] not in events.removed
            }
        return events.names

    def _have_folders_changed(self) -> bool:
        if any((path / "cur").is_dir() for path in self._incomplete):
            return True
        if self._is_stale or self.watch.is_watching(self.mailbox):
            return self._is_stale
        changed_ns = _changed_ns(self.mailbox)
        return changed_ns != self._root_ns or not self._is_old(changed_ns)

    def _find_scope(
        self, cursor: apsw.Cursor, names: Mapping[Path, set[bytes]], *, all_directories: bool
    ) -> _ScanScope:
        scope = _ScanScope()
        recorded: Mapping[Directory, int] = {}
        for directory, path in self._directories():
            if path in names:
                scope.locations |= {FileLocation(*directory, name) for name in names[path]}
                self._pending_times[directory] = _BY_NAME
            if self.watch.is_watching(path) and (
                not all_directories or directory in self._pending_times
            ):
                continue
            recorded = recorded or self._recorded(cursor)
            if _changed_ns(path) != recorded[directory] or self.folders[directory[0]].is_removed:
                self._watch_directory(path)
                scope.directories[directory] = _changed_ns(path)
        return scope

    def _is_check_due(self) -> bool:
        now_s = self.clock.real_s()
        if now_s - self._checked_s < _CHECK_INTERVAL_S or not self._is_reliable:
            return False
        self._checked_s = now_s
        return True

    def _check_times(self, cursor: apsw.Cursor, scope: _ScanScope) -> None:
        """Compare the times of watched directories with the events of the watch.

        A change by another host in a network file system causes no event.
        """
        watched = {
            directory: path
            for directory, path in self._directories()
            if self.watch.is_watching(path)
        }
        times = {directory: _changed_ns(path) for directory, path in watched.items()}
        # after the times: the events include the changes that caused them
        names = self._take_events()
        recorded = self._recorded(cursor)
        for directory, path in watched.items():
            if path in names:
                scope.locations |= {FileLocation(*directory, name) for name in names[path]}
                self._pending_times[directory] = _BY_NAME
            elif self._is_stale:
                continue  # the next run compares all times
            elif (known_ns := self._pending_times.get(directory, recorded[directory])) == _BY_NAME:
                scope.times[directory] = times[directory]
            elif times[directory] == known_ns:
                scope.times[directory] = known_ns
            else:
                scope.directories[directory] = times[directory]
                scope.unannounced.add(directory)

    def _directories(self) -> Iterator[tuple[Directory, Path]]:
        """Yield all directories, new/ before cur/: mail clients move files in that direction."""
        for number, folder in self.folders.items():
            for in_new in (True, False):
                yield (number, in_new), directory_path(folder, in_new=in_new)

    # -- scan

    def _update_rows(self, cursor: apsw.Cursor, scope: _ScanScope) -> None:
        """Scan, and write the differences if there are any."""
        self._add_listed(self._table(cursor), scope)
        is_large = len(scope.locations) > _FILES_AT_ONCE
        if is_large or scan(self._table(cursor), self.folders, scope.locations):
            with self.transaction() as writing:
                table = self._table(writing)
                self._match_files(table, self._scan_until_stable(writing, table, scope))
                self._store_unmerged(writing, table)
        scope.times |= scope.directories

    def _scan_until_stable(
        self, cursor: apsw.Cursor, table: MessageTable, scope: _ScanScope
    ) -> ScanResult:
        """Scan, and repeat while a file is missing and its directories still change."""
        for number in range(_SCANS_MAX):
            scanned = scan(table, self.folders, scope.locations)
            if not scanned.has_unmatched():
                break
            names = self._take_events()
            again = self._find_scope(cursor, names, all_directories=False)
            is_quiet = not names and again.directories.items() <= scope.directories.items()
            if number and is_quiet:
                break
            scope.directories |= again.directories
            scope.locations |= again.locations
            self._add_listed(table, scope)
        return scanned

    def _add_listed(self, table: MessageTable, scope: _ScanScope) -> None:
        """List the directories, and add to the scope what differs from the rows."""
        for number, in_new in scope.directories:
            listed = set(differing_locations(table, self.folders[number], in_new=in_new))
            scope.locations |= listed
            if listed and (number, in_new) in scope.unannounced:
                self._check_watch((number, in_new), listed)

    def _check_watch(self, directory: Directory, listed: set[FileLocation]) -> None:
        """Stop using the watch if it has no event for a difference that the listing has found."""
        reported = self._take_events().get(dict(self._directories())[directory], set())
        if any(location.file_name not in reported for location in listed):
            self._is_reliable = False
            self.watch.close()
            self._pending_times.clear()
            self._is_stale = True  # the next run compares all times

    def _match_files(self, table: MessageTable, scanned: ScanResult) -> None:
        matcher = MessageMatcher(table, scanned.missing, path_of=partial(path_of, self.folders))
        self._superseded += matcher.match(scanned.found)

    def _remove_superseded(self) -> None:
        """Remove lower generations that a crash left. The index has the higher ones now."""
        for location in self._superseded:
            with suppress(OSError):
                remove(Path(path_of(self.folders, location)))
        self._superseded.clear()

    def _table(self, cursor: apsw.Cursor, *, is_first: bool = False) -> MessageTable:
        def state_of(message_id: str) -> bytes:
            try:
                return self.states.find(message_id)
            except StoreUnavailableError:
                forget_position(cursor)  # it is copied when it can be read
                return b""

        return MessageTable(
            cursor, self.folders, is_first=is_first, now_us=self.clock.time_us(), state_of=state_of
        )

    # -- folders

    def _update_folders(self, cursor: apsw.Cursor) -> None:
        """Read the list of folders. A removed folder stays until its messages are removed."""
        self._is_stale = False
        self._watch_directory(self.mailbox)
        self._root_ns = _changed_ns(self.mailbox)
        stored = fetch(cursor, "SELECT id, number, directory FROM folder")
        known = {folder_id: (number, directory) for folder_id, number, directory in stored}
        before, self.folders = self.folders, {}
        self._incomplete = _incomplete(self.mailbox)
        for folder in list_folders(self.mailbox):
            number, was = known.pop(folder.id, (0, b""))
            directory = os.fsencode(folder.path)
            if was != directory:
                number = self._store_folder(number, folder.id, directory)
            self.folders[number] = FolderRow(number, folder)
        for folder_id, (number, directory) in known.items():
            removed = Folder(folder_id, "", Path(os.fsdecode(directory)))
            self.folders[number] = FolderRow(number, removed, is_removed=True)
        self._watch_all(before)

    def _store_folder(self, number: int, folder_id: str, directory: bytes) -> int:
        with self.transaction() as cursor:
            cursor.execute(
                "INSERT INTO folder (number, id, directory) VALUES (?, ?, ?) ON CONFLICT (number)"
                " DO UPDATE SET directory = excluded.directory, new_ns = 0, cur_ns = 0",
                (number or None, folder_id, directory),
            )
            return number or cursor.connection.last_insert_rowid()

    def _delete_removed_folders(self) -> None:
        removed = [number for number, folder in self.folders.items() if folder.is_removed]
        if removed:
            with self.transaction() as cursor:
                for number in removed:
                    cursor.execute("DELETE FROM folder WHERE number = ?", (number,))
                    del self.folders[number]

    def _watch_all(self, before: Mapping[int, FolderRow]) -> None:
        """Watch the current directories, and stop watching former ones."""
        paths = {
            directory: path
            for directory, path in self._directories()
            if not self.folders[directory[0]].is_removed
        }
        for number, folder in before.items():
            for in_new in (True, False):
                path = directory_path(folder, in_new=in_new)
                if paths.get((number, in_new)) != path:
                    self.watch.remove(path)
        for directory, path in paths.items():
            if not self.watch.is_watching(path):
                self._pending_times.pop(directory, None)
                self._watch_directory(path)

    def _watch_directory(self, path: Path) -> None:
        if self._is_reliable:
            self.watch.add(path)

    # -- times

    def _recorded(self, cursor: apsw.Cursor) -> dict[Directory, int]:
        recorded: dict[Directory, int] = {}
        for number, new_ns, cur_ns in fetch(cursor, "SELECT number, new_ns, cur_ns FROM folder"):
            recorded[number, True], recorded[number, False] = new_ns, cur_ns
        return recorded

    def _store_times(self, cursor: apsw.Cursor, scope: _ScanScope) -> None:
        """Store the times that are old enough; the others stay pending."""
        old = {directory: ns for directory, ns in scope.times.items() if self._is_old(ns)}
        for directory, changed_ns in scope.times.items():
            if directory in old:
                self._pending_times.pop(directory, None)
            else:
                self._pending_times[directory] = changed_ns
        recorded = self._recorded(cursor) if old else {}
        old = {directory: ns for directory, ns in old.items() if recorded.get(directory, ns) != ns}
        if old:
            with self.transaction() as writing:
                for (number, in_new), changed_ns in old.items():
                    sql = f"UPDATE folder SET {'new' if in_new else 'cur'}_ns = ? WHERE number = ?"
                    writing.execute(sql, (changed_ns, number))

    def _is_old(self, changed_ns: int) -> bool:
        """Return whether any later change gets another time."""
        return is_old(changed_ns, now_us=self.clock.file_time_us())


def _unmerged_row(unmerged: UnmergedState) -> tuple[str, bytes]:
    ids, state = unmerged
    return " ".join(ids), state


def _changed_ns(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return _NO_TIME


def _incomplete(mailbox: Path) -> tuple[Path, ...]:
    """Return directories that are no folders yet; another program may be creating them."""
    names = (name for name in list_names(mailbox) if name.startswith("."))
    paths = (mailbox / name for name in names)
    return tuple(islice((path for path in paths if not (path / "cur").is_dir()), _INCOMPLETE_MAX))


def _batched(items: Iterable[_T]) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _FILES_AT_ONCE)):
        yield batch
