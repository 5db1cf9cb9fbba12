"""What SQLite and the disk say, as the spool's exceptions.

On the path: around everything that touches the spool's files.
Holds: neither an apsw exception nor an OSError leaves the spool.
Fails: SpoolError and its children, with the place.
Standards: SQLite result codes; errno(3).
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import apsw

from relay.spool.types import (
    SpoolDamagedError,
    SpoolError,
    SpoolFullError,
    SpoolUnavailableError,
)

_FAULTS_MAX = 100
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def translated(path: Path | str = "the spool") -> Iterator[None]:
    """Turn apsw's exceptions into the spool's."""
    try:
        yield
    except apsw.NotADBError as error:
        raise SpoolDamagedError(f"{path}: not a spool, nor any SQLite file") from error
    except apsw.CorruptError as error:
        raise SpoolDamagedError(f"{path} is damaged: {error}") from error
    except apsw.FullError as error:
        raise SpoolFullError(f"{path}: the disk is full") from error
    except (apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError, apsw.BusyError) as error:
        raise SpoolUnavailableError(f"{path}: {error}") from error
    except apsw.Error as error:
        raise SpoolError(f"{path}: {error}") from error


def page_faults(connection: apsw.Connection, *, full: bool) -> list[str]:
    """What SQLite finds wrong with the file's pages, in its words; with `full` indexes as well."""
    check = "integrity_check" if full else "quick_check"
    try:
        found = [str(row[0]) for row in connection.execute(f"PRAGMA {check}({_FAULTS_MAX})")]
    except (apsw.CorruptError, apsw.NotADBError) as error:
        return [str(error)]
    return [text for text in found if text != "ok"]


@contextlib.contextmanager
def disk_faults(place: Path) -> Iterator[None]:
    """Turn what the disk says into the spool's exceptions."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise SpoolFullError(f"{place}: the disk is full") from error
        raise SpoolUnavailableError(f"{place}: {error.strerror or error}") from error
