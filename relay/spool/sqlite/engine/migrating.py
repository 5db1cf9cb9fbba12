"""Bring a spool's file to this Relay's schema: numbered texts, each one transaction.

On the path: whoever opens the spool for writing comes through here.
Holds: a file has one schema or the next, whatever is killed when; before the first change there is
    a copy beside it; what made the file is written in it.
Fails: SpoolFormatError for a file of a newer Relay, or one that is no spool; SpoolFullError where
    there is no room for the copy.
Standards: docs/operation.md (Going back).
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import apsw

from relay.observe.logs import get_logger
from relay.spool.sqlite.disk.copying import copy_database
from relay.spool.sqlite.disk.presence import check_presence, contents_of
from relay.spool.sqlite.disk.room import check_room
from relay.spool.sqlite.engine.last_commit import check_commits_unopened
from relay.spool.sqlite.engine.log_check import foresee
from relay.spool.types import SpoolDamagedError, SpoolFormatError, SpoolFullError
from relay.spool.waiting import sender_key

_log = get_logger("spool")

SCHEMA_VERSION = 4
COPIES_MAX = 2
_COPIES_ROOM = 2  # the copy, and as much again for what the migration itself writes
_TOLD_PARTS = 10
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_USER_VERSION = slice(60, 64)  # of a SQLite file
_NEWER = (
    "{path}: made by a newer Relay (schema {found}, expected {expected});"
    " no older one opens it: docs/operation.md, Going back"
)
_RECORDS = (
    "CREATE TABLE IF NOT EXISTS migration"
    " (version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL)"
)


@dataclass(frozen=True, slots=True)
class Text:
    """A text of SQL that leaves a file with schema `version`."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Of what it does: comments and white space may be changed."""
        lines = [line.partition("--")[0] for line in self.sql.splitlines()]
        return sha256(" ".join(" ".join(lines).split()).encode()).hexdigest()


def migrations() -> tuple[Text, ...]:
    """What brings a file from each schema to the next, in order."""
    folder = files("relay.spool.sqlite.engine").joinpath("migrations")
    names = sorted(one.name for one in folder.iterdir() if one.name.endswith(".sql"))
    return tuple(
        Text(int(name.partition("_")[0]), name, folder.joinpath(name).read_text()) for name in names
    )


def schema() -> Text:
    """What makes a new file."""
    text = files("relay.spool.sqlite.engine").joinpath("schema.sql").read_text()
    return Text(SCHEMA_VERSION, "schema.sql", text)


def check_files(path: Path, *, has_owner: bool) -> None:
    """Look at a spool without opening it as a database, which would leave files beside it; with an
    owner, who writes its log, not at that.

    Raises SpoolFormatError, SpoolDamagedError, OSError.
    """
    check_presence(path)
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    foreseen = foresee(path)
    if foreseen.fault and not has_owner:
        raise SpoolDamagedError(foreseen.fault)
    header = foreseen.first_page[:_HEADER_BYTES] or header
    if header and not header.startswith(_MAGIC):
        raise SpoolDamagedError(f"{path}: not a spool, nor any SQLite file")
    found = int.from_bytes(header[_USER_VERSION], "big")
    if found > SCHEMA_VERSION:
        raise SpoolFormatError(_NEWER.format(path=path, found=found, expected=SCHEMA_VERSION))
    if not has_owner:
        check_commits_unopened(path)


def check_version(connection: apsw.Connection, path: Path) -> None:
    """Raise SpoolFormatError unless the file has this Relay's schema."""
    found = connection.pragma("user_version")
    if found > SCHEMA_VERSION:
        raise SpoolFormatError(_NEWER.format(path=path, found=found, expected=SCHEMA_VERSION))
    if found == 0:
        raise SpoolFormatError(f"{path}: not a spool")
    if found != SCHEMA_VERSION:
        raise SpoolFormatError(
            f"{path}: made by an older Relay (schema {found}, expected {SCHEMA_VERSION});"
            " a start brings it forward"
        )


def bring_to_version(connection: apsw.Connection, path: Path, *, captured_keep_us: int) -> None:
    """Make a new file's tables, or migrate an older one's.

    Captured mail of a schema in which it stayed for ever ends `captured_keep_us` behind its
    arrival.
    """
    found = connection.pragma("user_version")
    if found == 0:
        if connection.execute("SELECT count(*) FROM sqlite_schema").get:
            raise SpoolFormatError(f"{path}: a SQLite file, but no spool")
        if contents_of(path).exists():
            _log.warning("a spool was here: the queue begins empty", file=path.name)
        _apply(connection, schema())
    elif found < SCHEMA_VERSION:
        _copy_before(connection, path, found=found)
        _add_functions(connection, captured_keep_us=captured_keep_us)
        for text in migrations():
            if text.version > found:
                _log.info("migrating spool", file=path.name, step=text.name)
                _apply(connection, text)
        _log.info("spool migrated", file=path.name, schema=SCHEMA_VERSION)
    check_version(connection, path)
    _check_records(connection, path)


def _add_functions(connection: apsw.Connection, *, captured_keep_us: int) -> None:
    """What the texts call and SQL has not."""

    def key_of(*values: Any) -> int:
        return sender_key(values[0])

    def captured_until(*values: Any) -> int:
        return int(values[0]) + captured_keep_us

    connection.create_scalar_function("sender_key", key_of, 1)
    connection.create_scalar_function("captured_until", captured_until, 1)


def _apply(connection: apsw.Connection, text: Text) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(text.sql)
        connection.execute(_RECORDS)
        record = (text.version, text.name, text.checksum)
        connection.execute("INSERT INTO migration VALUES (?,?,?)", record)
        connection.execute(f"PRAGMA user_version = {text.version}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check_records(connection: apsw.Connection, path: Path) -> None:
    """A text that is not the one that made the file leaves columns that nobody expects."""
    known = {text.name: text.checksum for text in (*migrations(), schema())}
    for name, version, checksum in connection.execute(
        "SELECT name, version, checksum FROM migration"
    ):
        if name == "schema.sql" and version != SCHEMA_VERSION:
            continue  # there is another by now
        if known.get(name) != checksum:
            raise SpoolFormatError(
                f"{path}: schema {version} by another {name} than this Relay's:"
                " made by one that was never released"
            )


def _copy_before(connection: apsw.Connection, path: Path, *, found: int) -> None:
    """Copy the file as it was, so that there is a way back."""
    copy = path.with_name(f"{path.name}.before-{SCHEMA_VERSION}")
    size = connection.pragma("page_count") * connection.pragma("page_size")
    try:
        check_room(path.parent, _COPIES_ROOM * size)
    except SpoolFullError:
        raise SpoolFullError(
            f"{path}: to bring it from schema {found} to {SCHEMA_VERSION},"
            f" {_COPIES_ROOM * size >> 20} MiB are needed beside it; the disk has less"
        ) from None
    _log.info("copying spool before its migration", file=copy.name, size_bytes=size, schema=found)
    copy_database(connection, copy, on_part=_progress(copy.name))
    for old in sorted(path.parent.glob(f"{path.name}.before-*"), key=_version_of)[:-COPIES_MAX]:
        with suppress(OSError):  # it stays: that costs room, and nothing else
            old.unlink()


def _version_of(copy: Path) -> int:
    number = copy.name.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def _progress(file: str) -> Callable[[int, int], None]:
    told = 0

    def on_part(done: int, of: int) -> None:
        nonlocal told
        if of and done * _TOLD_PARTS // of > told:
            told = done * _TOLD_PARTS // of
            _log.info("copying spool", file=file, percent=100 * done // of)

    return on_part
