"""Read a spool whose first page or whose log is damaged: in a copy where that is put right.

On the path: beside it; salvage asks where SQLite takes the file for none of its own.
Holds: the damaged file is only read; what is read has the tables of this schema, and no other.
Fails: OSError, where there is no room for the copy; None where it is more than the first page.
Standards: the SQLite file format, 1.3 (the database header).
"""

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import apsw

from relay.spool.sqlite.disk.presence import may_be_opened
from relay.spool.sqlite.engine.log_check import log_of, write_whole

_HEADER_BYTES = 100  # what follows in the first page is the schema's
_PAGE_SIZE = slice(16, 18)
_FORMATS = slice(18, 20)  # for writing and for reading
_WITH_LOG = b"\x02\x02"
_PAGES_AND_FREE = slice(28, 40)  # how many pages there are, and which are not in use: none of them
_SCHEMA = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema ORDER BY 1, 2"
_BESIDE = ("", "-wal", "-shm")


@contextmanager
def with_new_head(damaged: Path, new: Path) -> Iterator[apsw.Connection | None]:
    """Open a copy of `damaged` that has the header, or else the whole first page, of `new`.

    `new` is an empty spool without a log. The copy is removed behind it.
    """
    copy = _beside(new)
    connection = None
    try:
        connection = _opened(damaged, new, copy)
        yield connection
    finally:
        _remove(connection, copy)


@contextmanager
def with_whole_log(damaged: Path, new: Path) -> Iterator[apsw.Connection | None]:
    """Open a copy of `damaged` whose log has the frames that are good, and no end before the last.

    What a lost frame had changed is as it was before; the rows on its page may be lost.
    """
    copy = _beside(new)
    connection = None
    try:
        shutil.copyfile(damaged if may_be_opened(damaged) else new, copy)
        copy.chmod(0o600)  # there is mail in it
        write_whole(log_of(damaged), log_of(copy), size=_page_size(new))
        with suppress(apsw.Error):
            connection = apsw.Connection(str(copy))
            connection.execute("PRAGMA writable_schema = ON")  # else none with a fault is opened
        yield connection
    finally:
        _remove(connection, copy)


def _opened(damaged: Path, new: Path, copy: Path) -> apsw.Connection | None:
    size = _page_size(new)
    with new.open("rb") as file:
        page = file.read(size)
    if not damaged.exists() or damaged.stat().st_size < 2 * size:
        return None
    _copy(damaged, copy)
    with closing(apsw.Connection(str(new), flags=apsw.SQLITE_OPEN_READONLY)) as made:
        expected = made.execute(_SCHEMA).fetchall()
    with copy.open("rb") as file:
        own = file.read(size)
    for first in (page[:_HEADER_BYTES] + own[_HEADER_BYTES:], page):
        _write_first(copy, first, pages=damaged.stat().st_size // size)
        with suppress(apsw.Error):
            connection = apsw.Connection(str(copy))
            with suppress(apsw.Error):
                if connection.execute(_SCHEMA).fetchall() == expected:
                    return connection
            connection.close()
    return None


def _copy(damaged: Path, copy: Path) -> None:
    for ending in _BESIDE[:2]:
        source, target = (one.with_name(one.name + ending) for one in (damaged, copy))
        target.unlink(missing_ok=True)
        if source.exists():
            shutil.copyfile(source, target)
            target.chmod(0o600)  # there is mail in it


def _write_first(copy: Path, first: bytes, *, pages: int) -> None:
    """Put a first page into the copy, which is as long as the file is."""
    changed = bytearray(first)
    changed[_PAGES_AND_FREE] = pages.to_bytes(4, "big") + bytes(8)
    if copy.with_name(copy.name + "-wal").exists():
        changed[_FORMATS] = _WITH_LOG
    with copy.open("r+b") as file:
        file.write(changed)


def _page_size(new: Path) -> int:
    with new.open("rb") as file:
        return int.from_bytes(file.read(_HEADER_BYTES)[_PAGE_SIZE], "big")


def _beside(new: Path) -> Path:
    return new.with_name(new.name + ".headed")


def _remove(connection: apsw.Connection | None, copy: Path) -> None:
    if connection is not None:
        connection.close()
    for ending in _BESIDE:
        copy.with_name(copy.name + ending).unlink(missing_ok=True)
