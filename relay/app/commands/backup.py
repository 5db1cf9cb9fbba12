"""Copy everything of state_dir that a relay could not make anew into a directory.

On the path: beside it; the command line comes here, whether a relay runs or not.
Holds: the manifest is written last: a directory without one is no whole copy. It is on the disk
    when this returns.
Fails: BackupRefusedError; SpoolError, OSError.
Standards: docs/operation.md (Back-up); SHA256SUMS as sha256sum(1) checks them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from relay.accounts import DEAD_LETTER
from relay.clock import Clock, rfc3339
from relay.files import check_readable
from relay.settings import Settings
from relay.spool.sqlite.disk.copying import sync
from relay.spool.sqlite.disk.presence import is_or_was_there
from relay.spool.sqlite.storage import backup

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
_MISSING_SHOWN = 1000


class BackupRefusedError(Exception):
    """There is nothing to copy, or no place for it."""


def extent(settings: Settings) -> dict[str, Any]:
    """What would be copied. Raises BackupRefusedError, SpoolError."""
    found = backup.extent(_spool_of(settings))
    dead_letters = sum(1 for _ in _letters(settings.state_dir / DEAD_LETTER))
    return {
        "database": {"bytes": found.database_bytes},
        "contents": {"files": found.contents, "bytes": found.content_bytes},
        "dead_letters": dead_letters,
    }


def back_up(
    settings: Settings,
    folder: Path,
    *,
    clock: Clock,
    on_part: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Copy into `folder`, which is made, or empty; return the manifest.

    Raises BackupRefusedError, SpoolError, OSError.
    """
    database = _spool_of(settings)
    folder.mkdir(mode=0o700, exist_ok=True)
    if any(folder.iterdir()):
        raise BackupRefusedError(f"{folder} is not empty")
    made = rfc3339(clock.time_us())
    copied = backup.back_up(database, folder, on_part=on_part)
    letters = _copy_letters(settings.state_dir / DEAD_LETTER, folder / DEAD_LETTER)
    files, content_bytes = _write_checksums(folder, contents=copied.contents)
    manifest = {
        "made": made,
        "hostname": settings.hostname,
        "database": {"file": copied.database.name, "bytes": copied.database.stat().st_size},
        "contents": {
            "files": files,
            "bytes": content_bytes,
            "missing": list(copied.missing[:_MISSING_SHOWN]),
        },
        "dead_letters": letters,
        **copied.counts,
    }
    _write_synced(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    sync(folder)
    sync(folder.parent)
    return manifest


def _spool_of(settings: Settings) -> Path:
    database = settings.spool_file
    if not is_or_was_there(database):
        raise BackupRefusedError(f"there is no {database}")
    check_readable(database)
    return database


def _letters(maildir: Path) -> Iterator[Path]:
    """The messages of a Maildir; its indexes are made anew."""
    for place, folders, names in os.walk(maildir):
        folders.sort()
        for name in sorted(names):
            if Path(place).name in ("new", "cur") or name == "maildirfolder":
                yield Path(place) / name


def _copy_letters(source: Path, target: Path) -> int:
    """Copy a Maildir; what moves meanwhile may be in two places, or, removed, in none."""
    copied = 0
    folders = set()
    for letter in _letters(source):
        place = target / letter.relative_to(source).parent
        if place not in folders:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            folders.add(place)
        with suppress(FileNotFoundError):
            backup.link_or_copy(letter, place / letter.name)
            copied += 1
    for place in sorted(folders):
        sync(place)
    return copied


def _write_checksums(folder: Path, *, contents: Path) -> tuple[int, int]:
    """Write SHA256SUMS; return the number of contents, and their bytes."""
    number = size_bytes = 0
    path = folder / CHECKSUMS
    with path.open("w") as sums:
        path.chmod(0o600)
        for file, checksum in backup.checksums(folder):
            if file == path:
                continue
            sums.write(f"{checksum}  {file.relative_to(folder)}\n")
            if file.parent == contents:
                number += 1
                size_bytes += file.stat().st_size
        sums.flush()
        os.fsync(sums.fileno())
    return number, size_bytes


def _write_synced(path: Path, octets: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
