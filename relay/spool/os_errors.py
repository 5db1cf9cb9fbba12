"""Translate errors of the operating system into the spool's exceptions; each names the file."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from relay.spool.types import SpoolFullError, SpoolUnavailableError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def translate_os_errors(place: Path) -> Iterator[None]:
    """Turn an OSError into the spool's exceptions."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise SpoolFullError(f"{place}: the disk is full") from error
        raise SpoolUnavailableError(f"{place}: {error.strerror or error}") from error
