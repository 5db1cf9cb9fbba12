"""Copy what is readable in a damaged spool into a new one; the damaged files are kept.

`relay storage recover` calls it while no relay runs. The damaged file is only read, and nothing
is deleted. A recovery that was interrupted is continued by the next one; until then no process
opens the spool. Rows are copied as they are, so that entries being delivered are attempted again.

In this order: recover_spool() moves the damaged files aside (_move_damaged) and fills a new spool
(_fill): it opens the damaged database, copies each table from both ends and by the keys that other
tables have, takes the contents, and counts again. Where the first page or the log is damaged, a
copy of the file with a repaired header or log is read (SQLite file format 1.3 and 4).

See docs/operation-repair.md (Recover the spool).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from relay.base.files import fsync_path, link_or_copy
from relay.message.lifecycle import FINAL
from relay.spool.columns import ACCEPTED_COUNTER, LIVE_STATES
from relay.spool.engine import RecoveryResult
from relay.spool.queue.holds import recount
from relay.spool.sqlite.database import open_database, read_anchor, write_anchor
from relay.spool.sqlite.last_commit import check_commits_unopened
from relay.spool.sqlite.migrate import SCHEMA_VERSION
from relay.spool.sqlite.spool_errors import integrity_errors, translate_sqlite_errors
from relay.spool.sqlite.spool_files import (
    contents_of,
    copy_privately,
    damage_mark_of,
    is_openable,
    log_of,
    recovery_mark_of,
)
from relay.spool.sqlite.write_ahead_log import preview_log, write_repaired_log
from relay.spool.sqlite.writer import Batch
from relay.spool.types import SpoolDamagedError, SpoolError, translate_os_errors

_HEADER_BYTES = 100  # the schema follows in the first page
_PAGE_SIZE = slice(16, 18)
_FORMATS = slice(18, 20)  # for writing and for reading
_WITH_LOG = b"\x02\x02"
_PAGES_AND_FREE = slice(28, 40)  # the number of pages, and the free list: empty
_COLUMN_NAMES = "SELECT name FROM pragma_table_info(?)"
_TABLE_NAMES = "SELECT name FROM sqlite_schema WHERE type = 'table'"
_ACCEPT_ANY_SCHEMA = "PRAGMA writable_schema = ON"  # otherwise SQLite opens no damaged schema
_DATABASE_SUFFIXES = ("", "-wal", "-shm", "-journal")
_SPOOL_SUFFIXES = ("", "-wal", "-shm", "-content", ".damage", ".last-commit")
_TABLES = {  # and their primary keys
    "message": ("id",),
    "entry": ("message_id", "number"),
    "recipient": ("message_id", "entry", "number"),
    "event": ("message_id", "sequence"),
    "content": ("id",),
    "submission": ("key",),
    "counter": ("name",),
    "mail_root": ("store",),
    "owed_receipt": ("message_id", "number"),
}
_KNOWN_MESSAGES = (
    "SELECT id FROM message UNION SELECT message_id FROM entry"
    " UNION SELECT message_id FROM recipient ORDER BY 1"
)
_KNOWN = {
    "content": "SELECT DISTINCT content_id FROM entry WHERE state <> 'final' ORDER BY 1",
    "submission": "SELECT submission_id FROM message WHERE submission_id <> '' ORDER BY 1",
    "counter": "SELECT name FROM counter WHERE 0",
    "mail_root": "SELECT store FROM mail_root WHERE 0",
}
_HOLD_WITHOUT_RECIPIENTS = (
    "UPDATE entry AS e SET state = 'held', claimed = 0, retry_us = NULL, warn_us = NULL, due_us ="
    " coalesce((SELECT expires_us FROM message WHERE id = e.message_id), 0)"
    " WHERE state <> 'final' AND NOT EXISTS (SELECT 1 FROM recipient r WHERE"
    f" r.message_id = e.message_id AND r.entry = e.number AND r.state IN {LIVE_STATES})"
)
_COUNT_LIVE = (
    "SELECT count(*) FROM recipient r JOIN entry e ON e.message_id = r.message_id"
    " AND e.number = r.entry JOIN message m ON m.id = r.message_id"
    f" WHERE e.state <> 'final' AND r.state IN {LIVE_STATES}"
)


def recover_spool(database: Path, *, stamp: str) -> RecoveryResult:
    """Recover the spool at `database` if it is damaged; `stamp` names the damaged files."""
    mark = recovery_mark_of(database)
    with translate_os_errors(database.parent):
        if mark.exists():
            stamp = mark.read_text().strip() or stamp
            found = RecoveryResult(["a recovery was interrupted"])
        else:
            found = RecoveryResult(faults_of(database))
            if not found.faults:
                damage_mark_of(database).unlink(missing_ok=True)
                return found
            stamp = _unused_stamp(database, stamp)
            mark.write_text(stamp)
            fsync_path(mark)
        damaged = _damaged_name(database, stamp)
        found.aside = str(damaged)
        _move_damaged(database, damaged)
        _fill(database, damaged, found)
        mark.unlink()
        fsync_path(database.parent)
    return found


def faults_of(database: Path) -> list[str]:
    """Return what is wrong with the pages. Raises SpoolFormatError for another schema."""
    if fault := preview_log(database).fault:
        return [fault]
    try:
        with (
            closing(open_database(database, read_only=True)) as connection,
            translate_sqlite_errors(database),
        ):
            return integrity_errors(connection, full=True)
    except SpoolDamagedError as error:
        return [str(error)]


def _damaged_name(database: Path, stamp: str) -> Path:
    return database.with_name(f"{database.name}.damaged-{stamp}")


def _unused_stamp(database: Path, stamp: str) -> str:
    """Return the stamp, with a number if a recovery in the same second has moved files there."""
    names = (stamp, *(f"{stamp}-{number}" for number in range(2, 1000)))
    return next(one for one in names if not _damaged_name(database, one).exists())


def _move_damaged(database: Path, damaged: Path) -> None:
    """Rename the damaged database and its files; an interrupted recovery has renamed some."""
    fsync_path(database.parent)  # the marker must be durable first
    for ending in _SPOOL_SUFFIXES:
        old, new = (place.with_name(place.name + ending) for place in (database, damaged))
        if old.exists() and not new.exists():
            old.rename(new)
    fsync_path(database.parent)


def _fill(database: Path, damaged: Path, found: RecoveryResult) -> None:
    """Create the new spool under another name; rename it when it is complete and synced."""
    part = database.with_name(database.name + ".salvaged")
    for ending in _DATABASE_SUFFIXES:
        part.with_name(part.name + ending).unlink(missing_ok=True)
    contents = contents_of(database)
    contents.mkdir(mode=0o700, exist_ok=True)
    with closing(open_database(part)) as target, translate_sqlite_errors(part):
        target.execute("PRAGMA synchronous = OFF")  # it is synced once, as a whole
        target.execute("PRAGMA journal_mode = DELETE")
        with _readable(damaged, part, found) as source:
            if source is not None:
                _copy_all(source, target, found)
            else:
                found.holes += [{"table": one, "after": None, "before": None} for one in _TABLES]
        _take_contents(target, contents_of(damaged), contents, found=found)
        _recount(target, found)
    fsync_path(contents)
    fsync_path(part)
    part.rename(database)
    fsync_path(database.parent)


@contextmanager
def _readable(damaged: Path, new: Path, found: RecoveryResult) -> Iterator[apsw.Connection | None]:
    """Open the damaged database, else a repaired copy of it; None where nothing can be read.

    `new` is an empty spool without a log. The copy is removed afterwards.
    """
    is_log_alone = not is_openable(damaged) and log_of(damaged).exists()
    needs_log = is_log_alone or bool(preview_log(damaged).fault)
    found.log_damaged = needs_log or _is_commit_lost(damaged)
    copy = new.with_name(new.name + ".repaired")
    source = None
    try:
        if needs_log:
            source = _open_with_good_frames(damaged, new, copy)
        else:
            source = _open_as_it_is(damaged)
            if source is None or not _has_tables(source):
                repaired = _open_with_new_header(damaged, new, copy)
                if source is not None and repaired is not None:
                    source.close()
                source = repaired or source
        yield source
    finally:
        if source is not None:
            source.close()
        for ending in _DATABASE_SUFFIXES:
            copy.with_name(copy.name + ending).unlink(missing_ok=True)


def _is_commit_lost(damaged: Path) -> bool:
    with suppress(SpoolError):
        try:
            check_commits_unopened(damaged)
        except SpoolDamagedError:
            return True
    return False


def _open_as_it_is(path: Path) -> apsw.Connection | None:
    with suppress(apsw.Error):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        with suppress(apsw.Error):
            connection.execute(_ACCEPT_ANY_SCHEMA)
            if 0 < connection.pragma("user_version") <= SCHEMA_VERSION:
                return connection
        connection.close()
    return None


def _open_with_good_frames(damaged: Path, new: Path, copy: Path) -> apsw.Connection | None:
    """Open a copy whose log has only the good frames of the damaged one.

    SQLite ends a log at its first bad frame. What a lost frame had changed is as it was before; the
    rows on its page may be lost. A database that is missing is replaced by `new`.
    """
    copy_privately(damaged if is_openable(damaged) else new, copy)
    write_repaired_log(log_of(damaged), log_of(copy), size=_page_size(new))
    with suppress(apsw.Error):
        connection = apsw.Connection(str(copy))
        connection.execute(_ACCEPT_ANY_SCHEMA)
        return connection
    return None


def _open_with_new_header(damaged: Path, new: Path, copy: Path) -> apsw.Connection | None:
    """Open a copy that has the header of `new`, or else its whole first page.

    The first page leads to the pages of the schema, which lead to the tables. That of `new` is
    right only if the schema of the database is at the same pages: they must then have the tables.
    """
    size = _page_size(new)
    if not damaged.exists() or damaged.stat().st_size < 2 * size:
        return None
    copy_privately(damaged, copy)
    if log_of(damaged).exists():
        copy_privately(log_of(damaged), log_of(copy))
    with new.open("rb") as one, damaged.open("rb") as other:
        first, own = one.read(size), other.read(size)
    for page in (first[:_HEADER_BYTES] + own[_HEADER_BYTES:], first):
        _write_first_page(copy, page)
        with suppress(apsw.Error):
            connection = apsw.Connection(str(copy))
            if _has_tables(connection):
                return connection
            connection.close()
    return None


def _has_tables(connection: apsw.Connection) -> bool:
    """Whether the schema can be read, and has the tables."""
    with suppress(apsw.Error):
        names = {row[0] for row in connection.execute(_TABLE_NAMES)}
        return _TABLES.keys() <= names
    return False


def _write_first_page(copy: Path, page: bytes) -> None:
    """Write the first page with the number of pages of the file, and without a free list."""
    changed = bytearray(page)
    pages = copy.stat().st_size // len(page)
    changed[_PAGES_AND_FREE] = pages.to_bytes(4, "big") + bytes(8)
    if log_of(copy).exists():
        changed[_FORMATS] = _WITH_LOG
    with copy.open("r+b") as file:
        file.write(changed)


def _page_size(new: Path) -> int:
    with new.open("rb") as file:
        return int.from_bytes(file.read(_HEADER_BYTES)[_PAGE_SIZE], "big")


def _copy_all(source: apsw.Connection, target: apsw.Connection, found: RecoveryResult) -> None:
    for table in _TABLES:
        _copy_ends(source, target, table, found=found)
    for hole in found.holes:
        _copy_between(source, target, hole, found=found)
    with suppress(apsw.Error):  # without it a start uses the wall clock
        if (anchor := read_anchor(source)) is not None:
            write_anchor(target.cursor(), anchor)


def _copy_ends(
    source: apsw.Connection, target: apsw.Connection, table: str, *, found: RecoveryResult
) -> None:
    """Copy what is readable of a table from its first row forwards, and from its last backwards."""
    key = _TABLES[table]
    rows = _Rows(source, target, table)
    first = rows.copy(f"ORDER BY {', '.join(key)}")
    if not rows.is_ended:
        last = rows.copy(f"ORDER BY {', '.join(f'{one} DESC' for one in key)}", until=first)
        found.holes.append({"table": table, "after": first, "before": last})
    found.rows[table] += rows.copied


def _copy_between(
    source: apsw.Connection,
    target: apsw.Connection,
    hole: Mapping[str, Any],
    *,
    found: RecoveryResult,
) -> None:
    """Copy the rows in a gap whose keys other tables have."""
    table, after, before = hole["table"], hole["after"], hole["before"]
    rows = _Rows(source, target, table)
    column = _TABLES[table][0]
    for (name,) in target.execute(_KNOWN.get(table, _KNOWN_MESSAGES)).fetchall():
        if (after is None or name >= after[0]) and (before is None or name <= before[0]):
            rows.copy(f"WHERE {column} = ?", (name,))
    found.rows[table] += rows.copied


class _Rows:
    """Copies rows of one table; `is_ended` says whether the last query was read to its end."""

    def __init__(self, source: apsw.Connection, target: apsw.Connection, table: str) -> None:
        names = target.execute(_COLUMN_NAMES, (table,)).fetchall()
        self._columns = [str(name) for (name,) in names]
        self._key = [self._columns.index(name) for name in _TABLES[table]]
        self._old_names: Mapping[str, str] = {}
        with suppress(apsw.Error):
            if ("owed",) in source.execute(_COLUMN_NAMES, (table,)).fetchall():
                self._old_names = {"owed_report": "owed"}  # of 0.2.0
        self._source = source
        self._target = target
        self._table = table
        self.copied = 0
        self.is_ended = False

    def copy(
        self, which: str, values: Sequence[Any] = (), *, until: tuple[Any, ...] | None = None
    ) -> tuple[Any, ...] | None:
        """Copy until a page cannot be read, or the key `until` is reached; return the last key."""
        columns, marks = ", ".join(self._columns), ", ".join("?" * len(self._columns))
        shown = ", ".join(self._old_names.get(one, one) for one in self._columns)
        insert = f"INSERT OR IGNORE INTO {self._table} ({columns}) VALUES ({marks})"
        reached = None
        before = self._target.total_changes()
        with self._target:
            for row in self._read(f"SELECT {shown} FROM {self._table} {which}", values):
                at = tuple(row[place] for place in self._key)
                if at == until:
                    break
                with suppress(apsw.ConstraintError):  # not a valid row
                    self._target.execute(insert, row)
                reached = at
        self.copied += self._target.total_changes() - before
        return reached

    def _read(self, query: str, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        self.is_ended = False
        with suppress(apsw.CorruptError, apsw.IOError, apsw.NotADBError, apsw.SQLError):
            yield from self._source.execute(query, values)
            self.is_ended = True


def _take_contents(
    target: apsw.Connection, source: Path, contents: Path, *, found: RecoveryResult
) -> None:
    """Link the files of live entries into the new spool, and count the missing contents."""
    batch = Batch(target.cursor())
    with target:
        batch.execute(
            "DELETE FROM content WHERE id NOT IN"
            " (SELECT content_id FROM entry WHERE state <> 'final')"
        )
    for (name,) in batch.fetch("SELECT file FROM content WHERE file IS NOT NULL"):
        if not (contents / name).exists():
            with suppress(FileNotFoundError):
                link_or_copy(source / name, contents / name)
        if not (contents / name).exists():
            found.without_content += 1
    (lost,) = batch.fetch_one(
        "SELECT count(*) FROM entry WHERE state <> 'final'"
        " AND content_id NOT IN (SELECT id FROM content)"
    )
    found.without_content += lost


def _recount(target: apsw.Connection, found: RecoveryResult) -> None:
    """Hold entries without recipients, and recount."""
    batch = Batch(target.cursor())
    with target:
        found.without_recipients = batch.execute(_HOLD_WITHOUT_RECIPIENTS)
        (live,) = batch.fetch_one(_COUNT_LIVE)
        counters: dict[str, int] = dict(batch.fetch("SELECT name, value FROM counter"))
        final = sum(counters.get(state, 0) for state in FINAL)
        accepted = counters.get(ACCEPTED_COUNTER)
        found.recipients_lost = None if accepted is None else max(0, accepted - final - live)
        batch.execute(
            "INSERT INTO counter VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2",
            (ACCEPTED_COUNTER, final + live),
        )
        recount(batch)
        sql = "SELECT count(*) FROM entry WHERE state <> 'final'"
        (found.entries_waiting,) = batch.fetch_one(sql)
