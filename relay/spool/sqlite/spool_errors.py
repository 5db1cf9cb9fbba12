"""Translate errors of SQLite and the operating system into the spool's exceptions.

Neither an apsw exception nor an OSError leaves the spool. The text of each error names the file.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import apsw

from relay.spool.types import SpoolDamagedError, SpoolError, SpoolFullError, SpoolUnavailableError

_FAULTS_MAX = 100


@contextlib.contextmanager
def translate_sqlite_errors(path: Path | str = "the spool") -> Iterator[None]:
    """Turn apsw's exceptions into the spool's."""
    try:
        yield
    except apsw.NotADBError as error:
        raise SpoolDamagedError(f"{path}: not a spool, nor any SQLite file") from error
    except apsw.CorruptError as error:
        raise SpoolDamagedError(f"{path} is damaged: {error}") from error
    except apsw.FullError as error:
        raise SpoolFullError(f"{path}: the disk is full") from error
    except apsw.ConnectionClosedError as error:
        raise SpoolUnavailableError(f"{path} is closed") from error
    except (apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError, apsw.BusyError) as error:
        raise SpoolUnavailableError(f"{path}: {error}") from error
    except apsw.Error as error:
        raise SpoolError(f"{path}: {error}") from error


def integrity_errors(connection: apsw.Connection, *, full: bool) -> list[str]:
    """Return what SQLite finds wrong with the pages; with `full` in indexes as well."""
    check = "integrity_check" if full else "quick_check"
    try:
        found = [str(row[0]) for row in connection.execute(f"PRAGMA {check}({_FAULTS_MAX})")]
    except (apsw.CorruptError, apsw.NotADBError) as error:
        return [str(error)]
    return [text for text in found if text != "ok"]
