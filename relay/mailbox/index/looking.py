"""Files of a mailbox that came, went or changed: asked of the disk, compared with the rows.

On the path: catchup says where to look.
Holds: only files are messages; what a name stands for is asked of the file itself.
Fails: OSError when a directory cannot be read; with apsw's exceptions.
Standards: Maildir.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from relay.mailbox.index.rows import INODE_MASK, Body, FolderRow, Place, Row, Rows, Sighting
from relay.mailbox.names import parse_name


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
