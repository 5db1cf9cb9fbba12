"""The file `subscriptions`: which folders mail clients show, kept right when folders change.

On the path: the folder tree, after it made, renamed or removed folders.
Holds: other programs' lines stay as they are; the file is replaced whole, under Dovecot's own lock.
Fails: OSError when the disk refuses; a lock that stays taken is logged and the file left alone.
Standards: Dovecot's subscriptions file (version 2: a tab between a folder and one within it).
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from relay.mailbox.maildir import remove, sync_directory, write_synced
from relay.observe.logs import get_logger

_FILE = "subscriptions"
_HEADER = b"V\t2\n"
_LOOKS = 20
_LOOK_S = 0.05
_STALE_S = 30  # Dovecot's own limit for this lock

_log = get_logger("mailbox")


def resubscribe(
    mailbox: Path, *, added: Sequence[str] = (), changed: Mapping[str, str] | None = None
) -> None:
    """Change the lines of some folders, each named by its directory.

    `changed` has a folder's new directory, "" for one that is gone. Raises OSError.
    """
    lock = mailbox / f"{_FILE}.lock"
    if not _lock(lock):
        _log.warning("subscriptions locked", lock=str(lock))
        return
    fresh = mailbox / f"{_FILE}.relay"
    try:
        before = _read(mailbox / _FILE)
        after = resubscribed(before, added=added, changed=changed or {})
        if after != before:
            remove(fresh)  # what a crash left; the lock is ours
            write_synced(fresh, after)
            fresh.rename(mailbox / _FILE)
            sync_directory(mailbox)
    finally:
        remove(fresh)
        remove(lock)


def resubscribed(content: bytes, *, added: Sequence[str], changed: Mapping[str, str]) -> bytes:
    """Return the file's content after a change; pure."""
    content = content or _HEADER + b"\n"
    separator = b"\t" if content.startswith(_HEADER) else b"."
    lines = content.removesuffix(b"\n").split(b"\n")
    renamed = {
        _line(old, separator): _line(new, separator) if new else None
        for old, new in changed.items()
    }
    kept = [new for line in lines if (new := renamed.get(line, line)) is not None]
    wanted = (_line(name, separator) for name in added)
    kept += [line for line in wanted if line not in kept]
    return b"\n".join(kept) + b"\n"


def _line(directory: str, separator: bytes) -> bytes:
    return directory[1:].encode("utf-8", "surrogateescape").replace(b".", separator)


def _lock(lock: Path) -> bool:
    """Take the lock, one that a crash left as well; False if others keep it."""
    for _ in range(_LOOKS):
        with suppress(FileExistsError):
            write_synced(lock, b"")
            return True
        with suppress(FileNotFoundError):
            if _now_s(lock) - lock.stat().st_mtime > _STALE_S:
                remove(lock)
                continue
        threading.Event().wait(_LOOK_S)
    return False


def _now_s(lock: Path) -> float:
    """Return the time by the clock that the lock's own time is of."""
    probe = lock.with_suffix(".probe")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        remove(probe)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
