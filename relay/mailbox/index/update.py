"""Bring the index to what is on the disk: look where something happened, and nowhere else.

On the path: before each answer of a mailbox's index, under its lock.
Holds: whoever tells that something happened only says where to look. A file that vanished is looked
for twice: it may be on its way to another name. A directory's time counts only when it is older
than a tick of the file system's clock.
Fails: OSError when a directory cannot be read; with apsw's exceptions, and the transaction with it.
Standards: Maildir; inotify(7); the modification time of a directory (POSIX).
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import apsw

from relay.clock import Clock
from relay.mailbox.folders import list_folders
from relay.mailbox.index.database import fetch
from relay.mailbox.index.identity import Claim, Resolver, claim_of
from relay.mailbox.index.rows import INODE_MASK, Body, FolderRow, Place, Row, Rows, Sighting
from relay.mailbox.index.watch import MailboxWatch
from relay.mailbox.maildir import list_names, remove
from relay.mailbox.message_file import is_our_name, parse_name
from relay.mailbox.types import Folder


@dataclass(slots=True)
class Seen:
    """What a look has found: rows whose file is not as it was, files that no row is about."""

    lost: list[Row] = field(default_factory=list)
    found: list[Sighting] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lost or self.found)

    def is_open(self) -> bool:
        """Whether a file vanished and none of its base name came: it may be on its way."""
        stems = {one.stem for one in self.found}
        return any(row.stem not in stems for row in self.lost)


def directory_path(folder: FolderRow, *, in_new: bool) -> Path:
    """A folder's new/ or cur/."""
    return folder.folder.path / ("new" if in_new else "cur")


def path_of(folders: dict[int, FolderRow], place: Place) -> str:
    """The file at a place; no Path, as it is asked for by the hundred thousand."""
    directory = folders[place.folder].folder.path
    return f"{directory}/{'new' if place.in_new else 'cur'}/{os.fsdecode(place.file_name)}"


def names_on_disk(directory: Path) -> Iterator[tuple[bytes, int]]:
    """The files of a directory with their inodes; none if it is not there."""
    try:
        with os.scandir(os.fsencode(directory)) as entries:
            for entry in entries:
                if not entry.name.startswith(b".") and entry.is_file(follow_symlinks=False):
                    yield entry.name, entry.inode() & INODE_MASK
    except (FileNotFoundError, NotADirectoryError):
        return


def differing(rows: Rows, folder: FolderRow, *, in_new: bool) -> Iterator[Place]:
    """Where a directory's listing and the rows do not agree."""
    path = directory_path(folder, in_new=in_new)
    on_disk = {} if folder.is_gone else dict(names_on_disk(path))
    known = rows.names_in(folder.number, in_new=in_new)
    for name in on_disk.keys() | known.keys():
        if on_disk.get(name) != known.get(name):
            yield Place(folder.number, in_new, name)


def look(rows: Rows, folders: dict[int, FolderRow], places: Iterable[Place]) -> Seen:
    """Ask the disk what is at these places, and compare it with the rows."""
    seen = Seen()
    for place in places:
        row = rows.at(place)
        folder = folders[place.folder]
        sighting = None if folder.is_gone else _sight(path_of(folders, place), place)
        if row is not None and sighting is not None and row.body == sighting.body:
            continue
        if row is not None:
            seen.lost.append(row)
        if sighting is not None:
            seen.found.append(sighting)
    return seen


def _sight(path: str, place: Place) -> Sighting | None:
    """Return the message's file at a place, None if there is none."""
    name = parse_name(os.fsdecode(place.file_name))
    if name is None:
        return None
    try:
        status = os.lstat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Sighting(place, name, os.fsencode(name.stem), Body.of(status))


_LOOKS_MAX = 20  # a mail client may rename a file faster than it is looked for
_TICK_NS = 100_000_000
_COARSE_TICK_NS = 2_100_000_000  # where times are whole seconds
_SECOND_NS = 1_000_000_000
_CHECK_INTERVAL_S = 10.0
_FILES_AT_ONCE = 1000
_MISSING = -1
_BY_NAME = -2
_UNFINISHED_MAX = 100
_T = TypeVar("_T")
Directory = tuple[int, bool]  # a FolderRow's number, and whether new/ or cur/


@dataclass(slots=True)
class _Where:
    """Where to look: names, and directories as a whole with the time that they have now.

    `unannounced` are those of them that the watch said nothing about; `times` are to be written
    down: all that is known of those directories is that old.
    """

    places: set[Place] = field(default_factory=set)
    directories: dict[Directory, int] = field(default_factory=dict)
    unannounced: set[Directory] = field(default_factory=set)
    times: dict[Directory, int] = field(default_factory=dict)


class CatchUp:
    """Of one mailbox, as long as its index is open. `writing` begins a transaction."""

    def __init__(
        self,
        mailbox: Path,
        *,
        clock: Clock,
        watch: MailboxWatch,
        writing: Callable[[], AbstractContextManager[apsw.Cursor]],
    ) -> None:
        self.folders: dict[int, FolderRow] = {}
        self._mailbox = mailbox
        self._clock = clock
        self._watch = watch
        self._writing = writing
        self._root_ns = 0
        self._is_stale = True  # the folders: one came or went, or may have
        self._checked_s = clock.monotonic()
        self._is_reliable = True  # the watch; no more where a change came without a word of it
        # Directories whose time is not written down yet, with the time up to which they are known,
        # or _BY_NAME where names were told since.
        self._touched: dict[Directory, int] = {}
        self._superseded: list[Place] = []
        self._unfinished: tuple[Path, ...] = ()  # directories that may become folders

    def fill(self, cursor: apsw.Cursor) -> None:
        """Take in everything, in the transaction of an index that is new."""
        self._sync_folders(cursor)
        rows = self._rows(cursor, is_first=True)
        foreign: list[Place] = []
        times = {}
        for directory, path in self._directories():
            times[directory] = _changed_ns(path)
            for names in _batched(names_on_disk(path)):
                places = {Place(*directory, name) for name, _ in names}
                others = {one for one in places if not is_our_name(os.fsdecode(one.file_name))}
                foreign += others
                self._resolve(rows, look(rows, self.folders, places - others))
        foreign.sort(key=lambda one: one.file_name)  # such names begin with a time: oldest first
        for some in _batched(foreign):
            self._resolve(rows, look(rows, self.folders, some))
        self._note_times(cursor, _Where(times=times))

    def run(self, cursor: apsw.Cursor) -> None:
        """Look where something happened, and bring the rows to it."""
        names = self._take()
        everywhere = self._has_other_folders()
        if everywhere:
            self._sync_folders(cursor)
        where = self._where(cursor, names, everywhere=everywhere)
        if self._is_time_to_check():
            self._check(cursor, where)
        if where.places or where.directories:
            self._bring_up(cursor, where)
        self._remove_superseded()
        self._forget_folders()
        self._note_times(cursor, where)

    def settle(self, cursor: apsw.Cursor) -> None:
        """Write down how old what is known is: who opens the index next lists nothing of it."""
        where = _Where()
        self._check(cursor, where)
        self._note_times(cursor, where)

    # -- where to look

    def _take(self) -> dict[Path, set[bytes]]:
        """Ask the watch; what it says of the folders is kept for the next run."""
        news = self._watch.take()
        in_root = news.names.pop(self._mailbox, set())
        if any(name.startswith(b".") or name in (b"new", b"cur") for name in in_root):
            self._is_stale = True
        if news.lost or news.gone:
            self._is_stale = True
            paths = dict(self._directories())
            self._touched = {
                one: known_ns
                for one, known_ns in self._touched.items()
                if not news.lost and one in paths and paths[one] not in news.gone
            }
        return news.names

    def _has_other_folders(self) -> bool:
        if any((path / "cur").is_dir() for path in self._unfinished):
            return True
        if self._is_stale or self._watch.watches(self._mailbox):
            return self._is_stale
        changed_ns = _changed_ns(self._mailbox)
        return changed_ns != self._root_ns or not self._is_old(changed_ns)

    def _where(
        self, cursor: apsw.Cursor, names: Mapping[Path, set[bytes]], *, everywhere: bool
    ) -> _Where:
        where = _Where()
        recorded: Mapping[Directory, int] = {}
        for directory, path in self._directories():
            if path in names:
                where.places |= {Place(*directory, name) for name in names[path]}
                self._touched[directory] = _BY_NAME
            if self._watch.watches(path) and (not everywhere or directory in self._touched):
                continue
            recorded = recorded or self._recorded(cursor)
            if _changed_ns(path) != recorded[directory] or self.folders[directory[0]].is_gone:
                self._begin_to_watch(path)
                where.directories[directory] = _changed_ns(path)
        return where

    def _is_time_to_check(self) -> bool:
        now_s = self._clock.monotonic()
        if now_s - self._checked_s < _CHECK_INTERVAL_S or not self._is_reliable:
            return False
        self._checked_s = now_s
        return True

    def _check(self, cursor: apsw.Cursor, where: _Where) -> None:
        """Compare the times of watched directories with what the watch has told.

        A change by another host, in a file system of the network, comes without a word.
        """
        watched = {one: path for one, path in self._directories() if self._watch.watches(path)}
        times = {one: _changed_ns(path) for one, path in watched.items()}
        names = self._take()  # behind the times: what made them is in it
        if self._is_stale:
            return
        recorded = self._recorded(cursor)
        for directory, path in watched.items():
            if path in names:
                where.places |= {Place(*directory, name) for name in names[path]}
                self._touched[directory] = _BY_NAME
            elif (known_ns := self._touched.get(directory, recorded[directory])) == _BY_NAME:
                where.times[directory] = times[directory]
            elif times[directory] == known_ns:
                where.times[directory] = known_ns
            else:
                where.directories[directory] = times[directory]
                where.unannounced.add(directory)

    def _directories(self) -> Iterator[tuple[Directory, Path]]:
        """All of them; new/ before cur/: mail clients move files that way, so none is missed."""
        for number, folder in self.folders.items():
            for in_new in (True, False):
                yield (number, in_new), directory_path(folder, in_new=in_new)

    # -- looking

    def _bring_up(self, cursor: apsw.Cursor, where: _Where) -> None:
        """Look, and write what is different; nothing is written where nothing is."""
        self._add_listed(self._rows(cursor), where)
        is_much = len(where.places) > _FILES_AT_ONCE
        if is_much or look(self._rows(cursor), self.folders, where.places):
            with self._writing() as writing:
                rows = self._rows(writing)
                self._resolve(rows, self._look_twice(writing, rows, where))
        where.times |= where.directories

    def _look_twice(self, cursor: apsw.Cursor, rows: Rows, where: _Where) -> Seen:
        """Look, and again while a file is missed and something goes on where it was."""
        for number in range(_LOOKS_MAX):
            seen = look(rows, self.folders, where.places)
            if not seen.is_open():
                break
            names = self._take()
            again = self._where(cursor, names, everywhere=False)
            is_quiet = not names and again.directories.items() <= where.directories.items()
            if number and is_quiet:
                break
            where.directories |= again.directories
            where.places |= again.places
            self._add_listed(rows, where)
        return seen

    def _add_listed(self, rows: Rows, where: _Where) -> None:
        """List directories: where they differ from the rows is to be looked at."""
        for number, in_new in where.directories:
            listed = set(differing(rows, self.folders[number], in_new=in_new))
            where.places |= listed
            if listed and (number, in_new) in where.unannounced:
                self._doubt((number, in_new), listed)

    def _doubt(self, directory: Directory, listed: set[Place]) -> None:
        """Trust the watch no more, if it does not tell by now of what the listing has found."""
        told = self._take().get(dict(self._directories())[directory], set())
        if any(place.file_name not in told for place in listed):
            self._is_reliable = False
            self._watch.close()
            self._touched.clear()
            self._is_stale = True  # the next run compares all the times

    def _resolve(self, rows: Rows, seen: Seen) -> None:
        resolver = Resolver(rows, seen.lost, claim_of=self._claim_of, is_there=self._is_there)
        self._superseded += resolver.resolve(seen.found)

    def _remove_superseded(self) -> None:
        """Remove the lower generations that a crash has left, now that it is written which is."""
        for place in self._superseded:
            with suppress(OSError):
                remove(Path(path_of(self.folders, place)))
        self._superseded.clear()

    def _claim_of(self, sighting: Sighting) -> Claim | None:
        return claim_of(path_of(self.folders, sighting.place), sighting.name)

    def _is_there(self, place: Place) -> bool:
        return Path(path_of(self.folders, place)).exists()

    def _rows(self, cursor: apsw.Cursor, *, is_first: bool = False) -> Rows:
        now_us = self._clock.time_us()
        return Rows(cursor, self.folders.values(), is_first=is_first, now_us=now_us)

    # -- folders

    def _sync_folders(self, cursor: apsw.Cursor) -> None:
        """Know the folders that there are; one that went stays until its messages are known."""
        self._is_stale = False
        self._begin_to_watch(self._mailbox)
        self._root_ns = _changed_ns(self._mailbox)
        stored = fetch(cursor, "SELECT id, number, directory FROM folder")
        known = {folder_id: (number, directory) for folder_id, number, directory in stored}
        before, self.folders = self.folders, {}
        self._unfinished = _unfinished(self._mailbox)
        for folder in list_folders(self._mailbox):
            number, was = known.pop(folder.id, (0, b""))
            directory = os.fsencode(folder.path)
            if was != directory:
                number = self._store_folder(number, folder.id, directory)
            self.folders[number] = FolderRow(number, folder)
        for folder_id, (number, directory) in known.items():
            gone = Folder(folder_id, "", Path(os.fsdecode(directory)))
            self.folders[number] = FolderRow(number, gone, is_gone=True)
        self._watch_all(before)

    def _store_folder(self, number: int, folder_id: str, directory: bytes) -> int:
        with self._writing() as cursor:
            cursor.execute(
                "INSERT INTO folder (number, id, directory) VALUES (?, ?, ?) ON CONFLICT (number)"
                " DO UPDATE SET directory = excluded.directory, new_ns = 0, cur_ns = 0",
                (number or None, folder_id, directory),
            )
            return number or cursor.connection.last_insert_rowid()

    def _forget_folders(self) -> None:
        gone = [number for number, folder in self.folders.items() if folder.is_gone]
        if gone:
            with self._writing() as cursor:
                for number in gone:
                    cursor.execute("DELETE FROM folder WHERE number = ?", (number,))
                    del self.folders[number]

    def _watch_all(self, before: Mapping[int, FolderRow]) -> None:
        """Watch what is there now, and not what was there before."""
        paths = {one: path for one, path in self._directories() if not self.folders[one[0]].is_gone}
        for number, folder in before.items():
            for in_new in (True, False):
                path = directory_path(folder, in_new=in_new)
                if paths.get((number, in_new)) != path:
                    self._watch.remove(path)
        for directory, path in paths.items():
            if not self._watch.watches(path):
                self._touched.pop(directory, None)
                self._begin_to_watch(path)

    def _begin_to_watch(self, path: Path) -> None:
        if self._is_reliable:
            self._watch.add(path)

    # -- times

    def _recorded(self, cursor: apsw.Cursor) -> dict[Directory, int]:
        recorded: dict[Directory, int] = {}
        for number, new_ns, cur_ns in fetch(cursor, "SELECT number, new_ns, cur_ns FROM folder"):
            recorded[number, True], recorded[number, False] = new_ns, cur_ns
        return recorded

    def _note_times(self, cursor: apsw.Cursor, where: _Where) -> None:
        """Write times down that are old enough; of the others the watch tells until they are."""
        old = {one: ns for one, ns in where.times.items() if self._is_old(ns)}
        for one, changed_ns in where.times.items():
            if one in old:
                self._touched.pop(one, None)
            else:
                self._touched[one] = changed_ns
        recorded = self._recorded(cursor) if old else {}
        old = {one: ns for one, ns in old.items() if recorded.get(one, ns) != ns}
        if old:
            with self._writing() as writing:
                self._write_times(writing, old)

    def _write_times(self, cursor: apsw.Cursor, times: Mapping[Directory, int]) -> None:
        for (number, in_new), changed_ns in times.items():
            column = "new_ns" if in_new else "cur_ns"
            written_ns = changed_ns if self._is_old(changed_ns) else 0
            cursor.execute(f"UPDATE folder SET {column} = ? WHERE number = ?", (written_ns, number))

    def _is_old(self, changed_ns: int) -> bool:
        """Whether a change after this one has another time for certain."""
        tick_ns = _TICK_NS if changed_ns % _SECOND_NS else _COARSE_TICK_NS
        return self._clock.time_us() * 1000 - changed_ns > tick_ns


def _changed_ns(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING


def _unfinished(mailbox: Path) -> tuple[Path, ...]:
    """Directories that are no folder yet: another program is making them, or never will."""
    names = (name for name in list_names(mailbox) if name.startswith("."))
    paths = (mailbox / name for name in names)
    return tuple(islice((path for path in paths if not (path / "cur").is_dir()), _UNFINISHED_MAX))


def _batched(items: Iterable[_T]) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _FILES_AT_ONCE)):
        yield batch
