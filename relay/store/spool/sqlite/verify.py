"""Check a spool for consistency: pages, references between rows, content files, counters.

`relay storage verify` calls it. It repairs nothing. While no relay runs, a check without a fault
ends the mark of a spool that was found damaged. With `recount` counters are corrected then, and
contents of no entry removed.

See docs/names.md (Commands) and docs/operation-backup.md (Verify the spool).
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import apsw

from relay.base.files import FileOctets
from relay.base.message.content import octets_in_blocks
from relay.store.spool.engine import SpoolFinding, VerifyRequest
from relay.store.spool.shared import stats
from relay.store.spool.shared.columns import ACCEPTED_COUNTER, LIVE_STATES
from relay.store.spool.shared.hold_counters import counted
from relay.store.spool.shared.hold_counters import recount as recount_holds
from relay.store.spool.sqlite.content_files import checksum_of
from relay.store.spool.sqlite.database import open_database
from relay.store.spool.sqlite.spool_files import (
    contents_of,
    damage_mark_of,
    integrity_errors,
    translate_sqlite_errors,
)
from relay.store.spool.sqlite.transactions import is_file_needed
from relay.store.spool.sqlite.writer import Batch
from relay.store.spool.types import SpoolDamagedError, translate_os_errors

_RECOUNT = "once the cause is known, --recount corrects it while no relay runs"
_STOP_FIRST = "a relay may run: stop it first"
_SHOWN_MAX = 1000  # of one kind
_LIVE = "state <> 'final'"
_LIVE_RECIPIENTS = f"r.state IN {LIVE_STATES}"
# Rows that cannot be delivered: what is missing, and a query for them.
_LOST_ROWS = {
    "a message that it belongs to": f"""
        SELECT message_id || '-' || number FROM entry e WHERE {_LIVE}
        AND NOT EXISTS (SELECT 1 FROM message m WHERE m.id = e.message_id)""",
    "an entry that it belongs to": f"""
        SELECT message_id || ' recipient ' || number FROM recipient r
        WHERE entry <> 0 AND {_LIVE_RECIPIENTS} AND NOT EXISTS (SELECT 1 FROM entry e
            WHERE e.message_id = r.message_id AND e.number = r.entry)""",
    "an entry that is still in the queue": f"""
        SELECT r.message_id || ' recipient ' || r.number FROM recipient r
        JOIN entry e ON e.message_id = r.message_id AND e.number = r.entry
        WHERE e.state = 'final' AND {_LIVE_RECIPIENTS}""",
    "a recipient that is not final": f"""
        SELECT e.message_id || '-' || e.number FROM entry e WHERE {_LIVE}
        AND NOT EXISTS (SELECT 1 FROM recipient r
            WHERE r.message_id = e.message_id AND r.entry = e.number AND {_LIVE_RECIPIENTS})""",
    "a content": f"""
        SELECT message_id || '-' || number FROM entry WHERE {_LIVE}
        AND content_id NOT IN (SELECT id FROM content)""",
    "a readable text of its other fields": f"""
        SELECT e.message_id || '-' || e.number FROM entry e JOIN message m ON m.id = e.message_id
        WHERE {_LIVE} AND (e.extra <> '' AND NOT json_valid(e.extra)
            OR m.extra <> '' AND NOT json_valid(m.extra))""",
}
_NEVER_DUE = f"""SELECT message_id || '-' || number FROM entry
    WHERE {_LIVE} AND claimed = 0 AND due_us IS NULL LIMIT {_SHOWN_MAX}"""
# Such a content may be all that is left of a message.
_UNNEEDED = f"""SELECT id FROM content
    WHERE id NOT IN (SELECT content_id FROM entry WHERE {_LIVE}) LIMIT {_SHOWN_MAX}"""
_FILES = (
    "SELECT file, size - coalesce(length(header), 0), header, crc32"
    " FROM content INDEXED BY content_file WHERE file IS NOT NULL"
)
_INLINE = "SELECT id, CAST(data AS BLOB), crc32 FROM content WHERE data IS NOT NULL"
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


@dataclass(eq=False, repr=False)
class SpoolVerifier:
    """Verifies one spool. It blocks."""

    database: Path
    request: VerifyRequest

    def __post_init__(self) -> None:
        self._contents = contents_of(self.database)
        self._may_write = self.request.is_owner and self.request.recount

    def run(self) -> dict[str, int]:
        """Verify everything; return the counts. A file with damaged pages is not verified further.

        Raises SpoolFormatError for another schema.
        """
        try:
            with closing(self._opened()) as connection, translate_sqlite_errors(self.database):
                if not self._pages_are_whole(connection):
                    return dict.fromkeys(_ALL_COUNTS, 0)
                counts = self._look_into(connection)
        except SpoolDamagedError as error:
            self._report_damage(str(error))
            return dict.fromkeys(_ALL_COUNTS, 0)
        return counts

    def _opened(self) -> apsw.Connection:
        connection = open_database(self.database, read_only=True)
        if not self._may_write:
            return connection
        connection.close()  # the schema is current: nothing is migrated here
        connection = open_database(self.database)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        return connection

    def _pages_are_whole(self, connection: apsw.Connection) -> bool:
        mark = damage_mark_of(self.database)
        is_marked = mark.exists()
        faults = integrity_errors(connection, full=self.request.full or is_marked)
        for fault in faults:
            self._report_damage(fault)
        if is_marked and not faults and self.request.is_owner:
            with translate_os_errors(self.database.parent):
                mark.unlink()
        return not faults

    def _look_into(self, connection: apsw.Connection) -> dict[str, int]:
        rows = self._rows = Batch(connection.cursor())
        for expected, query in _LOST_ROWS.items():
            for (where,) in rows.fetch(f"{query} LIMIT {_SHOWN_MAX}"):
                self._report_fault("lost-row", where, "none", expected=expected)
        for (where,) in rows.fetch(_NEVER_DUE):
            self._report_fault("never-due", where, "no time to look at it", expected="one")
        for (content,) in list(rows.fetch(_UNNEEDED)):
            remove = partial(rows.execute, "DELETE FROM content WHERE id = ?", (content,))
            self._correct(
                "no entry that needs it",
                "one",
                remove,
                kind="unneeded-content",
                where=f"content {content}",
            )
        for row in connection.execute(_FILES):
            self._check_file(*row)
        if self.request.full:
            for row in connection.execute(_INLINE):
                self._check_inline(*row)
        unaccounted = self._check_counters()
        counts = {name: rows.fetch_one(query)[0] for name, query in _COUNTS.items()}
        return counts | {"unaccounted": unaccounted}

    def _check_file(self, *row: Any) -> None:
        name, expected_bytes, header, checksum = row
        path = self._contents / name
        expected = f"{expected_bytes} bytes"
        try:
            actual = f"{path.stat().st_size} bytes"
            if self.request.full and actual == expected:
                blocks = octets_in_blocks((FileOctets(path, 0, expected_bytes),))
                actual = _checksum_text(checksum_of(blocks, header))
                expected = _checksum_text(checksum)
        except OSError as error:
            actual = (error.strerror or str(error)).lower()
        # If the file is not needed any more, its message was delivered meanwhile.
        if actual != expected and is_file_needed(self._rows, name):
            self._report_fault("lost-content", path, actual, expected=expected)

    def _check_inline(self, *row: Any) -> None:
        content_id, data, checksum = row
        actual = checksum_of((data,))
        if actual != checksum:
            entry = self._rows.fetch_one(_ENTRY_OF, (content_id,))
            where = f"content {content_id}" + (f" of {entry[0]}" if entry else "")
            expected = _checksum_text(checksum)
            self._report_fault("lost-content", where, _checksum_text(actual), expected=expected)

    def _check_counters(self) -> int:
        count = stats.QueueCounter()
        try:
            while count.step(self._rows):
                pass
        finally:
            count.end(self._rows)
        unaccounted = count.result().unaccounted
        sql = "UPDATE counter SET value = value - ? WHERE name = ?"
        correct = partial(self._rows.execute, sql, (unaccounted, ACCEPTED_COUNTER))
        if unaccounted:
            actual = f"{unaccounted} recipients unaccounted for"
            self._correct(actual, 0, correct)
        for name, (held, expected) in counted(self._rows).items():
            if held != expected:
                _, _, tenant = name.partition("/")
                by = f"rules of {tenant}" if tenant else "rules"
                recount = partial(recount_holds, self._rows)
                actual = f"{held} entries held by {by}"
                self._correct(actual, expected, recount)
        return unaccounted

    def _correct(
        self,
        actual: str,
        expected: object,
        act: Callable[[], object],
        *,
        kind: str = "counters",
        where: str = "",
    ) -> None:
        """Report what --recount corrects, and do it if it may be done."""
        action = _STOP_FIRST if self.request.recount else _RECOUNT
        if self._may_write:
            action = "corrected"
            with translate_os_errors(self.database.parent):
                act()
        self.request.report(
            SpoolFinding(
                kind,
                where or str(self.database),
                actual,
                str(expected),
                repaired=self._may_write,
                action=action,
            )
        )

    def _report_damage(self, fault: str) -> None:
        expected = "pages that can be read"
        self._report_fault("damaged-spool", self.database, fault, expected=expected)

    def _report_fault(self, kind: str, where: Path | str, actual: str, *, expected: str) -> None:
        self.request.report(SpoolFinding(kind, str(where), actual, expected))


def _checksum_text(checksum: int) -> str:
    return f"octets with CRC-32 {checksum:08x}"
