"""Bring what can be read of a damaged spool into a new one; the damaged one is put aside, whole.

On the path: beside it; an operator asks, while no relay runs.
Holds: nothing is deleted and the damaged file is only read; a salvage that is cut off is gone on
    with by the next, and until then nobody opens the spool. Rows are as they were found, so that
    what was in work is tried again.
Fails: SpoolError and its children.
Standards: docs/operation.md (A damaged spool).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from relay.message.lifecycle import FINAL
from relay.spool.sqlite.disk.copying import sync
from relay.spool.sqlite.disk.presence import contents_of, may_be_opened, salvage_mark_of
from relay.spool.sqlite.engine.damage import mark_of
from relay.spool.sqlite.engine.database import (
    LIVE_STATES,
    fetch,
    fetch_one,
    open_database,
    read_anchor,
    write_anchor,
)
from relay.spool.sqlite.engine.last_commit import check_commits_unopened
from relay.spool.sqlite.engine.log_check import log_fault, log_of
from relay.spool.sqlite.engine.migrating import SCHEMA_VERSION
from relay.spool.sqlite.faults import disk_faults, page_faults, translated
from relay.spool.sqlite.storage.backup import link_or_copy
from relay.spool.sqlite.storage.heading import with_new_head, with_whole_log
from relay.spool.sqlite.transactions import ACCEPTED_COUNTER
from relay.spool.types import SpoolDamagedError, SpoolError

_BESIDE = ("", "-wal", "-shm", "-content", ".damage", ".last-commit")
_TABLES = {  # and their keys
    "message": ("id",),
    "entry": ("message_id", "number"),
    "recipient": ("message_id", "entry", "number"),
    "event": ("message_id", "sequence"),
    "content": ("id",),
    "submission": ("key",),
    "counter": ("name",),
}
_KNOWN_MESSAGES = (
    "SELECT id FROM message UNION SELECT message_id FROM entry"
    " UNION SELECT message_id FROM recipient ORDER BY 1"
)
_KNOWN = {
    "content": "SELECT DISTINCT content_id FROM entry WHERE state <> 'final' ORDER BY 1",
    "submission": "SELECT submission_id FROM message WHERE submission_id <> '' ORDER BY 1",
    "counter": "SELECT name FROM counter WHERE 0",
}
_HOLD_NAMELESS = (
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


@dataclass
class Salvaged:
    """What came of it: rows by table, and between which keys some could not be read.

    `aside` is "" where nothing was wrong and nothing was done. An entry without recipients is held.
    `recipients_lost` is by the counters, None where these are lost too.
    """

    faults: list[str]
    aside: str = ""
    rows: Counter[str] = field(default_factory=Counter)
    holes: list[dict[str, Any]] = field(default_factory=list)
    entries_waiting: int = 0
    without_content: int = 0
    without_recipients: int = 0
    recipients_lost: int | None = 0
    log_damaged: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether everything could be read."""
        lost = self.holes or self.without_content or self.without_recipients
        return not (lost or self.log_damaged)


def salvage(database: Path, *, stamp: str) -> Salvaged:
    """Salvage the spool at `database` if it is damaged; `stamp` names what is put aside."""
    mark = salvage_mark_of(database)
    with disk_faults(database.parent):
        if mark.exists():
            stamp = mark.read_text().strip() or stamp
            found = Salvaged(["a salvage was cut off"])
        else:
            found = Salvaged(faults_of(database))
            if not found.faults:
                mark_of(database).unlink(missing_ok=True)
                return found
            mark.write_text(stamp)
            sync(mark)
        aside = database.with_name(f"{database.name}.damaged-{stamp}")
        found.aside = str(aside)
        _put_aside(database, aside)
        _fill(database, aside, found)
        mark.unlink()
        sync(database.parent)
    return found


def faults_of(database: Path) -> list[str]:
    """What is wrong with the file's pages. Raises SpoolFormatError for one of another schema."""
    if fault := log_fault(database):
        return [fault]
    try:
        with closing(open_database(database, read_only=True)) as connection, translated(database):
            return page_faults(connection, full=True)
    except SpoolDamagedError as error:
        return [str(error)]


def _put_aside(database: Path, aside: Path) -> None:
    """Rename the file and all that belongs to it; what is there already was renamed before."""
    sync(database.parent)  # the mark is there first
    for ending in _BESIDE:
        old, new = (place.with_name(place.name + ending) for place in (database, aside))
        if old.exists() and not new.exists():
            old.rename(new)
    sync(database.parent)


def _fill(database: Path, aside: Path, found: Salvaged) -> None:
    """Make the new spool under another name; give it its own when it is whole and on the disk."""
    part = database.with_name(database.name + ".salvaged")
    for ending in ("", "-wal", "-shm", "-journal"):
        part.with_name(part.name + ending).unlink(missing_ok=True)
    contents = contents_of(database)
    contents.mkdir(mode=0o700, exist_ok=True)
    with closing(open_database(part)) as target, translated(part):
        target.execute("PRAGMA synchronous = OFF")  # it is synced once, as a whole
        target.execute("PRAGMA journal_mode = DELETE")
        with _readable(aside, part, found) as source:
            if source is not None:
                _copy_all(source, target, found)
            else:
                found.holes += [_all_of(table) for table in _TABLES]
        _take_contents(target, contents_of(aside), contents, found=found)
        _mend(target, found)
    sync(contents)
    sync(part)
    part.rename(database)
    sync(database.parent)


@contextmanager
def _readable(aside: Path, part: Path, found: Salvaged) -> Iterator[apsw.Connection | None]:
    """The damaged file, or a copy where that is put right without which it cannot be read."""
    found.log_damaged = _is_commit_lost(aside)
    is_log_alone = not may_be_opened(aside) and log_of(aside).exists()
    if is_log_alone or log_fault(aside):
        found.log_damaged = True
        with with_whole_log(aside, part) as copy:
            yield copy
    elif (source := _opened(aside)) is not None:
        with closing(source):
            yield source
    else:
        with with_new_head(aside, part) as copy:
            yield copy


def _is_commit_lost(aside: Path) -> bool:
    with suppress(SpoolError):
        try:
            check_commits_unopened(aside)
        except SpoolDamagedError:
            return True
    return False


def _all_of(table: str) -> dict[str, Any]:
    return {"table": table, "behind": None, "before": None}


def _opened(path: Path) -> apsw.Connection | None:
    """The damaged file; None where SQLite does not take it for one of its own."""
    with suppress(apsw.Error):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        with suppress(apsw.Error):
            connection.execute("PRAGMA writable_schema = ON")  # else none that was cut is opened
            if connection.pragma("user_version") == SCHEMA_VERSION:
                return connection
        connection.close()
    return None


def _copy_all(source: apsw.Connection, target: apsw.Connection, found: Salvaged) -> None:
    for table in _TABLES:
        _copy_ends(source, target, table, found=found)
    for hole in found.holes:
        _copy_between(source, target, hole, found=found)
    with suppress(apsw.Error):  # without it a start takes the wall clock
        if (anchor := read_anchor(source)) is not None:
            write_anchor(target.cursor(), anchor)


def _copy_ends(
    source: apsw.Connection, target: apsw.Connection, table: str, *, found: Salvaged
) -> None:
    """Copy what can be read of a table from its first row on, and from its last."""
    key = _TABLES[table]
    rows = _Rows(source, target, table)
    first = rows.copy(f"ORDER BY {', '.join(key)}")
    if not rows.is_ended:
        last = rows.copy(f"ORDER BY {', '.join(f'{one} DESC' for one in key)}", until=first)
        found.holes.append({"table": table, "behind": first, "before": last})
    found.rows[table] += rows.copied


def _copy_between(
    source: apsw.Connection,
    target: apsw.Connection,
    hole: Mapping[str, Any],
    *,
    found: Salvaged,
) -> None:
    """Ask for the rows between that other tables know of."""
    table, behind, before = hole["table"], hole["behind"], hole["before"]
    rows = _Rows(source, target, table)
    column = _TABLES[table][0]
    for (name,) in fetch(target.cursor(), _KNOWN.get(table, _KNOWN_MESSAGES)):
        if (behind is None or name >= behind[0]) and (before is None or name <= before[0]):
            rows.copy(f"WHERE {column} = ?", (name,))
    found.rows[table] += rows.copied


class _Rows:
    """Copies rows of one table; `is_ended` says whether the last query could be read to its end."""

    def __init__(self, source: apsw.Connection, target: apsw.Connection, table: str) -> None:
        names = target.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall()
        self._columns = [str(row[0]) for row in names]
        self._key = [self._columns.index(name) for name in _TABLES[table]]
        self._source = source
        self._target = target
        self._table = table
        self.copied = 0
        self.is_ended = False

    def copy(
        self, which: str, values: Sequence[Any] = (), *, until: tuple[Any, ...] | None = None
    ) -> tuple[Any, ...] | None:
        """Copy until a page cannot be read, or the key `until` is met; return the last key."""
        columns, marks = ", ".join(self._columns), ", ".join("?" * len(self._columns))
        insert = f"INSERT OR IGNORE INTO {self._table} ({columns}) VALUES ({marks})"
        reached = None
        before = self._target.total_changes()
        with self._target:
            for row in self._read(f"SELECT {columns} FROM {self._table} {which}", values):
                at = tuple(row[place] for place in self._key)
                if at == until:
                    break
                with suppress(apsw.ConstraintError):  # octets that were no row of ours
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
    target: apsw.Connection, source: Path, contents: Path, *, found: Salvaged
) -> None:
    """Give what still waits its files, and count what has lost its content."""
    cursor = target.cursor()
    with target:
        cursor.execute(
            "DELETE FROM content WHERE id NOT IN"
            " (SELECT content_id FROM entry WHERE state <> 'final')"
        )
    for (name,) in fetch(cursor, "SELECT file FROM content WHERE file IS NOT NULL"):
        if not (contents / name).exists():
            with suppress(FileNotFoundError):
                link_or_copy(source / name, contents / name)
        if not (contents / name).exists():
            found.without_content += 1
    (lost,) = fetch_one(
        cursor,
        "SELECT count(*) FROM entry WHERE state <> 'final'"
        " AND content_id NOT IN (SELECT id FROM content)",
    )
    found.without_content += lost


def _mend(target: apsw.Connection, found: Salvaged) -> None:
    """Hold what nobody knows the recipients of, and count anew: what was lost is put aside."""
    cursor = target.cursor()
    with target:
        cursor.execute(_HOLD_NAMELESS)
        found.without_recipients = target.changes()
        (live,) = fetch_one(cursor, _COUNT_LIVE)
        counters: dict[str, int] = dict(fetch(cursor, "SELECT name, value FROM counter"))
        final = sum(counters.get(state, 0) for state in FINAL)
        accepted = counters.get(ACCEPTED_COUNTER)
        found.recipients_lost = None if accepted is None else max(0, accepted - final - live)
        cursor.execute(
            "INSERT INTO counter VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2",
            (ACCEPTED_COUNTER, final + live),
        )
        (found.entries_waiting,) = fetch_one(
            cursor, "SELECT count(*) FROM entry WHERE state <> 'final'"
        )
