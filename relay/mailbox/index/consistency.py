"""Whether a mailbox's index is sound and has its files, for `relay storage verify`.

It runs in its own process while the relay runs. No index is created where none exists, and no
directory is watched. Raises IndexDamagedError, IndexUnusableError, StoreError's children, and
OSError when a directory cannot be read. See docs/design.md 3.
"""

import os
from contextlib import closing, suppress
from pathlib import Path

import apsw

from relay.base.clock import Clock
from relay.mailbox.index.database import (
    FILE_NAME,
    IndexDamagedError,
    IndexUnusableError,
    fetch,
    open_database,
    translate_errors,
)
from relay.mailbox.index.mailbox_index import MailboxIndex
from relay.mailbox.index.rows import FileLocation, FolderRows, MessageTable
from relay.mailbox.index.update import directory_path, names_on_disk, path_of, scan
from relay.mailbox.index.watch import InotifyWatcher

_MISCOUNTED = (
    "SELECT id FROM folder WHERE (total, unread, size_bytes, state_bytes) IS NOT"
    " (SELECT count(*), count(*) FILTER (WHERE NOT is_read), coalesce(sum(size_bytes), 0),"
    " coalesce(sum(state_bytes), 0) FROM message WHERE folder = number)"
)


def index_path(mailbox: Path) -> Path:
    """Return the path of a mailbox's index."""
    return mailbox / FILE_NAME


def check_file(mailbox: Path, *, full: bool) -> None:
    """Raise IndexDamagedError if SQLite's integrity check fails."""
    with closing(open_database(index_path(mailbox))) as connection, translate_errors():
        how = "integrity_check" if full else "quick_check"
        fault = connection.execute(f"PRAGMA {how}(1)").get
    if fault != "ok":
        raise IndexDamagedError(str(fault))


def compare(mailbox: Path, clock: Clock) -> set[str]:
    """Update the index; return the files that it still has otherwise, and the ids of the folders
    whose counts do not match its rows.
    """
    watcher = InotifyWatcher(watches_max=0)
    with closing(MailboxIndex(mailbox, clock=clock, watcher=watcher)) as index:
        return index.run(_differences)


def _differences(cursor: apsw.Cursor, folders: FolderRows) -> set[str]:
    found = {folder_id for (folder_id,) in fetch(cursor, _MISCOUNTED)}
    table = MessageTable(cursor, (), is_first=False, now_us=0, state_of=lambda _: b"")
    for number, folder in folders.items():
        for in_new in (True, False):
            on_disk = dict(names_on_disk(directory_path(folder, in_new=in_new)))
            names = on_disk.keys() | table.names_in(number, in_new=in_new).keys()
            scanned = scan(table, folders, (FileLocation(number, in_new, one) for one in names))
            locations = {one.location for one in scanned.missing}
            locations |= {one.location for one in scanned.found}
            found |= {path_of(folders, one) for one in locations}
    return found


def find_file(mailbox: Path, message_id: str) -> Path | None:
    """Return the file of a message as of the index's last update; None without a usable index."""
    sql = (
        "SELECT directory, in_new, file_name FROM message JOIN folder ON folder = number"
        " WHERE message_id = ?"
    )
    if index_path(mailbox).exists():
        with (
            suppress(IndexDamagedError, IndexUnusableError),
            closing(open_database(index_path(mailbox))) as connection,
            translate_errors(),
        ):
            for directory, in_new, file_name in connection.execute(sql, (message_id,)):
                name = "new" if in_new else "cur"
                return Path(os.fsdecode(directory)) / name / os.fsdecode(file_name)
    return None
