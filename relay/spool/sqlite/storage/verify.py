"""Whether the spool holds together: pages, rows that need each other, files, counters.

On the path: beside it; `relay storage verify` asks, whether a relay runs or not.
Holds: a running relay's file is only read; without one, what loses nothing is repaired. No mail is
    deleted: what nobody needs is put aside.
Fails: SpoolError and its children.
Standards: docs/names.md (Commands), docs/operation.md (Are the files in order?).
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import apsw

from relay.clock import Clock
from relay.crashpoints import CrashPoints
from relay.files import FileOctets
from relay.journeys.events import Event, Step
from relay.message.content import octets_in_blocks
from relay.message.lifecycle import State
from relay.spool.sqlite.disk.contents import sum_of
from relay.spool.sqlite.disk.copying import sync
from relay.spool.sqlite.disk.presence import contents_of
from relay.spool.sqlite.engine.batch import Batch
from relay.spool.sqlite.engine.damage import mark_of
from relay.spool.sqlite.engine.database import (
    LIVE_STATES,
    fetch,
    fetch_one,
    open_database,
    read_anchor,
)
from relay.spool.sqlite.engine.last_commit import LastCommit, commits_of
from relay.spool.sqlite.engine.log_check import log_fault
from relay.spool.sqlite.engine.write_ahead import WriteAheadLog
from relay.spool.sqlite.faults import disk_faults, page_faults, translated
from relay.spool.sqlite.transactions import ACCEPTED_COUNTER, append_events, is_file_needed
from relay.spool.sqlite.upkeep import counting
from relay.spool.types import SpoolDamagedError

_RECOUNT = "once you know why, --recount counts anew"
_WHO_ENDS = {"who": "relay storage verify", "why": "its entry was lost"}
_SHOWN_MAX = 1000  # of one kind
_LIVE = "state <> 'final'"
_LIVE_PEOPLE = f"r.state IN {LIVE_STATES}"
# What each query finds is lost for delivery: where, and what is missing.
_LOST_ROWS = {
    "a message that it belongs to": f"""
        SELECT message_id || '-' || number FROM entry e WHERE {_LIVE}
        AND NOT EXISTS (SELECT 1 FROM message m WHERE m.id = e.message_id)""",
    "an entry that it belongs to": """
        SELECT message_id || ' recipient ' || number FROM recipient r WHERE entry <> 0
        AND NOT EXISTS (SELECT 1 FROM entry e
            WHERE e.message_id = r.message_id AND e.number = r.entry)""",
    "an entry that is still in the queue": f"""
        SELECT r.message_id || ' recipient ' || r.number FROM recipient r
        JOIN entry e ON e.message_id = r.message_id AND e.number = r.entry
        WHERE e.state = 'final' AND {_LIVE_PEOPLE}""",
    "a recipient that is not final": f"""
        SELECT e.message_id || '-' || e.number FROM entry e WHERE {_LIVE}
        AND NOT EXISTS (SELECT 1 FROM recipient r
            WHERE r.message_id = e.message_id AND r.entry = e.number AND {_LIVE_PEOPLE})""",
    "a content": f"""
        SELECT message_id || '-' || number FROM entry WHERE {_LIVE}
        AND content_id NOT IN (SELECT id FROM content)""",
}
_ENTRYLESS = f"""FROM recipient r WHERE {_LIVE_PEOPLE}
    AND EXISTS (SELECT 1 FROM message m WHERE m.id = r.message_id)
    AND NOT EXISTS (SELECT 1 FROM entry e
        WHERE e.message_id = r.message_id AND e.number = r.entry AND e.{_LIVE})"""
_NEVER_DUE = f"{_LIVE} AND claimed = 0 AND due_us IS NULL"
_UNNEEDED = (
    f"SELECT id FROM content EXCEPT SELECT content_id FROM entry WHERE {_LIVE} LIMIT {_SHOWN_MAX}"
)
_FILES = (
    "SELECT file, size - coalesce(length(header), 0), header, crc32"
    " FROM content INDEXED BY content_file WHERE file IS NOT NULL"
)
_INLINE = (
    "SELECT id, CAST(data AS BLOB), crc32 FROM content WHERE data IS NOT NULL AND crc32 IS NOT NULL"
)
_ENTRY_OF = f"SELECT message_id || '-' || number FROM entry WHERE content_id = ? AND {_LIVE}"
_COUNTS = {
    name: f"SELECT count(*) FROM {table}"
    for name, table in (
        ("messages", "message"),
        ("entries", f"entry WHERE {_LIVE}"),
        ("contents", "content"),
        ("submissions", "submission"),
    )
}
_ALL_COUNTS = (*_COUNTS, "unaccounted")


class Kind(StrEnum):
    """What is wrong; docs/operation.md says what each means."""

    DAMAGED_SPOOL = "damaged-spool"
    LOST_ROW = "lost-row"
    LOST_CONTENT = "lost-content"
    NEVER_DUE = "never-due"
    UNNEEDED_CONTENT = "unneeded-content"
    LEFTOVER_CONTENT = "leftover-content"
    COUNTERS = "counters"


class Mode(Enum):
    """What may be done about a fault; each is how its cure is told."""

    MEND = "{}"
    DRY_RUN = "would be {}"
    BESIDE = "can be {} while no relay runs"  # which owns the file


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault and what was done about it; `action` is "" where there is nothing to be done."""

    kind: Kind
    where: str
    found: str
    expected: str
    repaired: bool
    action: str


class SpoolVerifier:
    """Blocking. `report` is called as things are found."""

    def __init__(
        self,
        database: Path,
        *,
        mode: Mode,
        full: bool,
        clock: Clock,
        report: Callable[[Finding], None],
        recount: bool = False,
    ) -> None:
        """MEND takes the owner's lock, which is the caller's. Only with `recount` counters are
        repaired, and recipients without an entry end: until then both tell of what was lost.
        """
        self._database = database
        self._contents = contents_of(database)
        self._aside = database.with_name(database.name + "-put-aside")
        self._mode = mode
        self._full = full
        self._recount = recount
        self._clock = clock
        self._report = report

    def run(self) -> dict[str, int]:
        """Verify everything; return how much there is. A damaged file is not looked into further.

        Raises SpoolFormatError for one of another schema.
        """
        try:
            with closing(self._opened()) as connection, translated(self._database):
                if not self._pages_are_whole(connection):
                    return dict.fromkeys(_ALL_COUNTS, 0)
                counts = self._look_into(connection)
                last_commit = self._log_emptied(connection)
            if last_commit is not None:
                last_commit.forget()
        except SpoolDamagedError as error:
            self._tell_damage(str(error))
            return dict.fromkeys(_ALL_COUNTS, 0)
        return counts

    def _log_emptied(self, connection: apsw.Connection) -> LastCommit | None:
        """Bring the log into the database as a stop does, where this process owns the spool.

        Where the process before was killed in a checkpoint, its note says that the log is needed,
        and a log that SQLite removed on its own would count as lost.
        """
        if self._mode is not Mode.MEND:
            return None
        number = commits_of(connection) or 0
        last_commit = LastCommit(self._database, number, crash=CrashPoints())
        WriteAheadLog(connection, last_commit).empty()
        return last_commit

    def _opened(self) -> apsw.Connection:
        if self._mode is not Mode.BESIDE and (fault := log_fault(self._database)):
            raise SpoolDamagedError(fault)
        connection = open_database(self._database, read_only=True)
        if self._mode is not Mode.MEND:
            return connection
        connection.close()  # it has this Relay's schema: nothing is migrated in passing
        return open_database(self._database)

    def _pages_are_whole(self, connection: apsw.Connection) -> bool:
        mark = mark_of(self._database)
        is_marked = mark.exists()
        faults = page_faults(connection, full=self._full or is_marked)
        for fault in faults:
            self._tell_damage(fault)
        if is_marked and not faults:
            self._settle(
                Kind.DAMAGED_SPOOL, self._database, found=mark.read_text(errors="replace").strip(),
                expected="no such mark: every page can be read", cure="taken back", act=mark.unlink,
            )  # fmt: skip
        return not faults

    def _look_into(self, connection: apsw.Connection) -> dict[str, int]:
        cursor = connection.cursor()
        self._clock.resume(read_anchor(connection))
        for expected, query in _LOST_ROWS.items():
            for (where,) in fetch(cursor, f"{query} LIMIT {_SHOWN_MAX}"):
                self._settle(Kind.LOST_ROW, where, found="none", expected=expected)
        self._check_due(cursor)
        self._check_unneeded(cursor)
        for row in connection.execute(_FILES):
            self._check_file(cursor, *row)
        if self._full:
            for row in connection.execute(_INLINE):
                self._check_inline(cursor, *row)
        if self._mode is not Mode.BESIDE:  # a running relay is writing some, and sweeps others
            for path in self._leftovers(cursor):
                self._settle(
                    Kind.LEFTOVER_CONTENT, path, found="a file", expected="a content that has it",
                    cure=f"put aside as {self._aside / path.name}",
                    act=partial(self._put_aside, path),
                )  # fmt: skip
        if self._recount:
            self._check_entryless(cursor)
        unaccounted = self._check_counters(cursor)
        counts = {name: fetch_one(cursor, query)[0] for name, query in _COUNTS.items()}
        return counts | {"unaccounted": unaccounted}

    def _check_due(self, cursor: apsw.Cursor) -> None:
        for message_id, number, state in fetch(
            cursor,
            f"SELECT message_id, number, state FROM entry WHERE {_NEVER_DUE} LIMIT {_SHOWN_MAX}",
        ):
            is_tried = state in ("queued", "deferred")

            def mend(key: tuple[str, int] = (message_id, number), tried: bool = is_tried) -> None:
                cursor.execute(
                    "UPDATE entry SET retry_us = iif(?1, ?2, NULL), epoch = epoch + 1, due_us ="
                    " iif(?1, ?2, coalesce((SELECT expires_us FROM message WHERE id = ?3), ?2))"
                    " WHERE message_id = ?3 AND number = ?4",
                    (tried, self._clock.steady_us(), *key),
                )

            self._settle(
                Kind.NEVER_DUE, f"{message_id}-{number}", found="no time to look at it",
                expected=f"one, as it is {state}", cure="made due", act=mend,
            )  # fmt: skip

    def _check_unneeded(self, cursor: apsw.Cursor) -> None:
        """What may be all that is left of a message is kept, outside."""
        for (content_id,) in fetch(cursor, _UNNEEDED):
            target = self._aside / f"content-{content_id}.eml"
            self._settle(
                Kind.UNNEEDED_CONTENT, f"content {content_id}", found="no entry that needs it",
                expected="one", cure=f"put aside as {target}",
                act=partial(self._export, cursor, content_id, target),
            )  # fmt: skip

    def _check_file(self, cursor: apsw.Cursor, *row: Any) -> None:
        name, expected_bytes, header, checksum = row
        path = self._contents / name
        expected = f"{expected_bytes} bytes"
        try:
            found = f"{path.stat().st_size} bytes"
            if self._full and found == expected and checksum is not None:
                blocks = octets_in_blocks((FileOctets(path, 0, expected_bytes),))
                found, expected = _told(sum_of(blocks, header)), _told(checksum)
        except OSError as error:
            found = (error.strerror or str(error)).lower()
        if found != expected and is_file_needed(cursor, name):  # it may have been delivered since
            self._settle(Kind.LOST_CONTENT, path, found=found, expected=expected)

    def _check_inline(self, cursor: apsw.Cursor, *row: Any) -> None:
        content_id, data, checksum = row
        found = sum_of((data,))
        if found != checksum:
            entry = fetch_one(cursor, _ENTRY_OF, (content_id,))
            where = f"content {content_id}" + (f" of {entry[0]}" if entry else "")
            self._settle(Kind.LOST_CONTENT, where, found=_told(found), expected=_told(checksum))

    def _leftovers(self, cursor: apsw.Cursor) -> Iterator[Path]:
        if self._contents.is_dir():
            for path in sorted(self._contents.iterdir()):
                if not is_file_needed(cursor, path.name):
                    yield path

    def _check_entryless(self, cursor: apsw.Cursor) -> None:
        """Recipients whom nothing tries any more: somebody knows why, and they may end."""
        (number,) = fetch_one(cursor, f"SELECT count(*) {_ENTRYLESS}")
        if number:
            self._settle(
                Kind.LOST_ROW, self._database, found=f"{number} recipients without an entry",
                expected="0", cure="ended as cancelled", act=partial(self._end_entryless, cursor),
            )  # fmt: skip

    def _end_entryless(self, cursor: apsw.Cursor) -> None:
        with cursor.connection:
            lost: dict[str, list[tuple[int, int]]] = {}
            for message_id, *key in fetch(cursor, f"SELECT message_id, entry, number {_ENTRYLESS}"):
                lost.setdefault(message_id, []).append((key[0], key[1]))
            for message_id, people in lost.items():
                cursor.executemany(
                    "UPDATE recipient SET state = ? WHERE message_id = ? AND entry = ?"
                    " AND number = ?",
                    [(State.CANCELLED, message_id, *one) for one in people],
                )
                entries = sorted({entry for entry, _ in people})
                detail = {"operation": "cancel", "entries": entries, **_WHO_ENDS}
                append_events(
                    cursor, message_id, [Event(Step.DELIVERY, self._clock.time_us(), detail)]
                )
            count = Batch(cursor)
            count.counts[State.CANCELLED] += sum(map(len, lost.values()))
            count.write_counts()

    def _check_counters(self, cursor: apsw.Cursor) -> int:
        count = counting.Count()
        try:
            while count.step(cursor):
                pass
        finally:
            count.end(cursor)
        unaccounted = count.result().unaccounted

        def recount() -> None:
            cursor.execute(
                "UPDATE counter SET value = value - ? WHERE name = ?",
                (unaccounted, ACCEPTED_COUNTER),
            )

        if unaccounted:
            self._settle(
                Kind.COUNTERS, self._database, found=f"{unaccounted} recipients unaccounted for",
                expected="0", cure="counted anew" if self._recount else "",
                act=recount if self._recount else None,
                advice="" if self._recount else _RECOUNT,
            )  # fmt: skip
        return unaccounted

    def _put_aside(self, path: Path) -> None:
        self._aside.mkdir(mode=0o700, exist_ok=True)
        path.rename(self._aside / path.name)
        sync(self._aside)
        sync(self._contents)

    def _export(self, cursor: apsw.Cursor, content_id: int, target: Path) -> None:
        data, file, header = fetch_one(
            cursor, "SELECT data, file, header FROM content WHERE id = ?", (content_id,)
        )
        self._aside.mkdir(mode=0o700, exist_ok=True)
        with target.open("wb") as copy:
            target.chmod(0o600)
            copy.write((header or b"") + (data or b""))
            if file and (self._contents / file).exists():
                with (self._contents / file).open("rb") as body:
                    copyfileobj(body, copy)
        sync(target)
        sync(self._aside)
        cursor.execute("DELETE FROM content WHERE id = ?", (content_id,))
        if file and not is_file_needed(cursor, file):
            (self._contents / file).unlink(missing_ok=True)

    def _tell_damage(self, found: str) -> None:
        self._settle(
            Kind.DAMAGED_SPOOL, self._database, found=found, expected="pages that can be read"
        )

    def _settle(
        self,
        kind: Kind,
        where: Path | str,
        *,
        found: str,
        expected: str,
        cure: str = "",
        act: Callable[[], Any] | None = None,
        advice: str = "",
    ) -> None:
        """Do what can be done about a fault, and report it; `advice` is for what is left alone."""
        is_mended = act is not None and self._mode is Mode.MEND
        if act is not None and is_mended:
            with disk_faults(self._database.parent):
                act()
        action = self._mode.value.format(cure) if cure else advice
        self._report(Finding(kind, str(where), found, expected, is_mended, action))


def _told(checksum: int) -> str:
    return f"octets with CRC-32 {checksum:08x}"
