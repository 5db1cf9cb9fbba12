"""Migrate a spool to the current schema with numbered SQL texts, in one transaction.

Schema 1 is the schema of Relay 0.2.0. Whenever the process is killed, the file has its old schema
or the current one. Before the first change the database is copied next to the original. A file of a
newer Relay, of a Relay before 0.2.0, or with other tables and columns than its schema raises
SpoolFormatError. A disk without room for the copy raises SpoolFullError.

See docs/operation-backup.md (Going back).
"""

from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from re import fullmatch

import apsw

from relay.base.observe.logs import get_logger
from relay.store.spool.shared import suppression
from relay.store.spool.shared.columns import schema_difference
from relay.store.spool.sqlite import spool_files
from relay.store.spool.sqlite.disk_space import check_free_space
from relay.store.spool.sqlite.write_ahead_log import check_commits, open_at_rest, read_recorded
from relay.store.spool.types import SpoolDamagedError, SpoolFormatError, SpoolFullError

_log = get_logger("spool")

SCHEMA_VERSION = 4
COPIES_MAX = 2
_COPIES_ROOM = 2  # the copy, and as much for what the migration writes
_MIGRATION = r"\d{4}_\w+\.sql"
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_USER_VERSION = slice(60, 64)  # of a SQLite file
_APPLICATION_ID = slice(68, 72)
_RELAY = 0x52656C79  # see schema.sql
_NEWER = (
    "{path}: made by a newer Relay (schema {found}, expected {expected});"
    " no older one opens it: docs/operation-backup.md, Going back"
)
_EARLIER = (
    "{path}: made by a Relay before 0.2.0, whose spools no released version opens: empty the queue"
    " with the version that made it, then put the spool aside: docs/operation-backup.md, Upgrade"
)
_COLUMNS = (
    "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c WHERE t.type = 'table'"
)


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """Return, in order, the number of each schema, and the SQL text that migrates a file to it from
    the schema before.
    """
    folder = files("relay.store.spool.sqlite")
    names = sorted(file.name for file in folder.iterdir() if fullmatch(_MIGRATION, file.name))
    return tuple((int(name[:4]), folder.joinpath(name).read_text()) for name in names)


@cache
def schema() -> str:
    """Return the SQL text that creates a new file."""
    return files("relay.store.spool.sqlite").joinpath("schema.sql").read_text()


def check_files(path: Path, *, has_owner: bool) -> None:
    """Check a spool without opening it as an owner does, which would create files next to it. The
    log is skipped while an owner writes it.

    Raises SpoolFormatError, SpoolDamagedError, OSError.
    """
    spool_files.check_presence(path)
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if header and not header.startswith(_MAGIC):
        raise SpoolDamagedError(f"{path}: not a spool, nor any SQLite file")
    _check_made_by(
        path,
        made_by=int.from_bytes(header[_APPLICATION_ID], "big"),
        version=int.from_bytes(header[_USER_VERSION], "big"),
    )
    if has_owner or not header:
        return
    noted = read_recorded(path)
    with spool_files.translate_sqlite_errors(path), open_at_rest(path) as connection:
        version = _schema_version(connection, path)
        check_commits(connection, path, noted)
        if version == SCHEMA_VERSION:
            check_version(connection, path)


def check_version(connection: apsw.Connection, path: Path) -> None:
    """Raise SpoolFormatError unless the file has this Relay's schema, and its tables."""
    version = _schema_version(connection, path)
    if version == 0:
        raise SpoolFormatError(f"{path}: not a spool")
    if version != SCHEMA_VERSION:
        raise SpoolFormatError(
            f"{path}: made by an older Relay (schema {version}, expected {SCHEMA_VERSION});"
            " a start brings it forward"
        )
    if text := schema_difference(schema(), connection.execute(_COLUMNS)):
        raise SpoolFormatError(
            f"{path}: it says schema {version}, and has other tables. {text}."
            " See docs/operation-backup.md, Upgrade"
        )


def bring_to_version(connection: apsw.Connection, path: Path) -> None:
    """Create a new file's tables, or migrate an older file."""
    version = _schema_version(connection, path)
    if version == 0:
        if connection.execute("SELECT count(*) FROM sqlite_schema").get:
            raise SpoolFormatError(f"{path}: a SQLite file, but no spool")
        if spool_files.contents_of(path).exists():
            _log.warning("a spool existed here: the queue starts empty", file=path.name)
        _apply(connection, (SCHEMA_VERSION, schema()))
    elif version < SCHEMA_VERSION:
        _copy_before(connection, path, version=version)
        _apply(connection, *(migration for migration in migrations() if migration[0] > version))
        _log.info("spool migrated", file=path.name, schema=SCHEMA_VERSION)
    connection.execute(suppression.TABLE)
    check_version(connection, path)


def _schema_version(connection: apsw.Connection, path: Path) -> int:
    """Return the schema of a file, 0 for a new file. Raises SpoolFormatError for a file of a newer
    Relay, or of a Relay before 0.2.0.
    """
    version = int(connection.pragma("user_version"))
    _check_made_by(path, made_by=connection.pragma("application_id"), version=version)
    return version


def _check_made_by(path: Path, *, made_by: int, version: int) -> None:
    if version and made_by != _RELAY:
        raise SpoolFormatError(_EARLIER.format(path=path))
    if version > SCHEMA_VERSION:
        raise SpoolFormatError(_NEWER.format(path=path, found=version, expected=SCHEMA_VERSION))


def _apply(connection: apsw.Connection, *texts: tuple[int, str]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for version, text in texts:
            connection.execute(text)
            connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _copy_before(connection: apsw.Connection, path: Path, *, version: int) -> None:
    """Copy the file before its migration, so that it can be restored."""
    copy = path.with_name(f"{path.name}.before-{SCHEMA_VERSION}")
    size = connection.pragma("page_count") * connection.pragma("page_size")
    try:
        check_free_space(path.parent, _COPIES_ROOM * size)
    except SpoolFullError:
        raise SpoolFullError(
            f"{path}: to bring it from schema {version} to {SCHEMA_VERSION},"
            f" {_COPIES_ROOM * size >> 20} MiB are needed next to it; less is free"
        ) from None
    _log.info("copying spool before its migration", file=copy.name, size_bytes=size, schema=version)
    spool_files.copy_database(connection, copy)
    others = (file for file in path.parent.glob(f"{path.name}.before-*") if file != copy)
    for old in sorted(others, key=_version_of)[: 1 - COPIES_MAX]:
        with suppress(OSError):  # it stays and only uses room
            old.unlink()


def _version_of(copy: Path) -> int:
    number = copy.name.rpartition(".before-")[2]
    return int(number) if number.isdigit() else 0
