"""A copy of the spool that can take its place: the file, and the contents that it names.

On the path: beside it; a process of its own reads while the relay goes on.
Holds: the copy is one moment of the file, with the contents of that moment; nothing of the spool is
    changed. What was in work then is an indeterminate attempt when the copy is started.
Fails: SpoolError and its children; OSError for the target.
Standards: SQLite's online backup; docs/operation.md (Back-up).
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import apsw

from relay.spool.sqlite.disk.copying import copy_database, sync
from relay.spool.sqlite.disk.presence import contents_of
from relay.spool.sqlite.disk.room import disk_of
from relay.spool.sqlite.engine.database import fetch, fetch_one, open_database
from relay.spool.sqlite.faults import disk_faults, page_faults, translated
from relay.spool.sqlite.transactions import is_file_needed
from relay.spool.sqlite.upkeep import counting
from relay.spool.types import SpoolDamagedError, SpoolFullError

_SNAPSHOTS_MAX = 10
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)
_BLOCK_BYTES = 1 << 20
_LIVE_ENTRIES = "SELECT state, count(*) FROM entry WHERE state <> 'final' GROUP BY state"
_FILES = "SELECT file FROM content INDEXED BY content_file WHERE file IS NOT NULL ORDER BY file"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much there is to copy."""

    database_bytes: int
    contents: int
    content_bytes: int


@dataclass(frozen=True, slots=True)
class Copied:
    """What is in the copy; `missing` are contents that were gone from the spool's directory."""

    database: Path
    contents: Path
    counts: dict[str, Any]
    missing: tuple[str, ...] = field(default=())


def extent(database: Path) -> Extent:
    """Look at what back_up() would copy."""
    folder = contents_of(database)
    with closing(open_database(database, read_only=True)) as connection, translated(database):
        pages = connection.pragma("page_count") * connection.pragma("page_size")
        sizes = [_size_of(folder / name) for (name,) in connection.execute(_FILES)]
    return Extent(pages, len(sizes), sum(sizes))


def back_up(
    database: Path, folder: Path, *, on_part: Callable[[int, int], None] = lambda *_: None
) -> Copied:
    """Copy the spool at `database` into `folder`, an empty directory."""
    with closing(open_database(database, read_only=True)) as connection:
        target = folder / database.name
        with translated(database):
            needed = connection.pragma("page_count") * connection.pragma("page_size")
        with disk_faults(folder):
            if disk_of(folder).free_bytes < needed:
                raise SpoolFullError(f"{folder}: {needed >> 20} MiB are needed, there is less")
            contents_of(target).mkdir(mode=0o700)
        missing = _with_contents(connection, contents_of(database), contents_of(target))
        copy_database(connection, target, on_part=on_part)
        with translated(database):
            _remove_others(connection, contents_of(target))
    with disk_faults(folder):
        sync(contents_of(target))
        sync(folder)
    return Copied(target, contents_of(target), _counts(target), missing)


def checksums(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file below `folder`, and its SHA-256."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            yield path, _checksum(path)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is never changed another name; a copy of it where that cannot be, synced.

    Raises OSError.
    """
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
    else:
        return
    part = target.with_name(target.name + ".part")
    with source.open("rb") as octets:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as copy:
            copyfileobj(octets, copy, _BLOCK_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
    part.rename(target)


def _with_contents(connection: apsw.Connection, source: Path, target: Path) -> tuple[str, ...]:
    """Begin a snapshot whose contents are all in `target`.

    A content that is gone was settled behind the snapshot's moment, so that another one is taken;
    what keeps being gone, was lost before.
    """
    missing: list[str] = []
    for _ in range(_SNAPSHOTS_MAX):
        with translated():
            connection.execute("BEGIN")
            names = connection.execute(_FILES)
            with disk_faults(target):
                still_missing = [name for (name,) in names if not _taken(source, target, name)]
            if not still_missing or still_missing == missing:
                break
            connection.execute("COMMIT")
        missing = still_missing
    else:
        with translated():
            connection.execute("BEGIN")
    return tuple(still_missing)


def _taken(source: Path, target: Path, name: str) -> bool:
    if (target / name).exists():
        return True
    try:
        link_or_copy(source / name, target / name)
    except FileNotFoundError:
        return False
    return True


def _remove_others(connection: apsw.Connection, folder: Path) -> None:
    """Remove what an earlier snapshot had."""
    cursor = connection.cursor()
    for path in list(folder.iterdir()):
        if not is_file_needed(cursor, path.name):
            path.unlink()


def _counts(database: Path) -> dict[str, Any]:
    """What is in the copy, as the manifest has it. Raises SpoolError where it is damaged."""
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    address = f"{database.absolute().as_uri()}?immutable=1"  # no log beside it, and nobody writes
    with translated(database), closing(apsw.Connection(address, flags=flags)) as connection:
        if faults := page_faults(connection, full=False):
            text = f"{database}: the spool is damaged, and so is its copy: {faults[0]}"
            raise SpoolDamagedError(text)
        cursor = connection.cursor()
        return {
            "schema": connection.pragma("user_version"),
            "messages": fetch_one(cursor, "SELECT count(*) FROM message")[0],
            "entries": dict(fetch(cursor, _LIVE_ENTRIES)),
            "recipients": counting.waiting_by(counting.read_counters(cursor)),
            "submissions": fetch_one(cursor, "SELECT count(*) FROM submission")[0],
        }


def _size_of(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _checksum(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as octets:
        while block := octets.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
