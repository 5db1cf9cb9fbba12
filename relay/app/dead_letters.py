"""Keep what strangers cause in the dead-letter mailbox within a size; the oldest go.

That is answers to reports, and notices on strangers' mail. What else Relay put there, for the
postmaster, stays: undeliverable reports, and copies that rules made.
"""

import os
from contextlib import suppress
from pathlib import Path

KEPT_BYTES_MAX = 100_000_000
_HEAD_BYTES = 2000  # delivery writes its fields first
_FOR_POSTMASTER = b"\nDelivered-To: postmaster\r\n"  # without a domain: only Relay writes to it
_NOTICE = b">\r\nTo: <postmaster@"  # the begin of its header


def prune_answers(mailbox: Path, *, kept_bytes: int = KEPT_BYTES_MAX) -> int:
    """Remove the oldest of these from a Maildir until all of it has at most `kept_bytes`; return
    their number.
    """
    files: list[tuple[float, int, Path]] = []
    for part in ("new", "cur"):
        with suppress(FileNotFoundError), os.scandir(mailbox / part) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    found = entry.stat()
                    files.append((found.st_mtime, found.st_size, Path(entry.path)))
    excess = sum(size for _, size, _ in files) - kept_bytes
    removed = 0
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        with suppress(FileNotFoundError):
            if _is_of_strangers(path):
                path.unlink()
                excess -= size
                removed += 1
    return removed


def _is_of_strangers(path: Path) -> bool:
    with path.open("rb") as file:
        head = b"\n" + file.read(_HEAD_BYTES)
    return _FOR_POSTMASTER not in head or _NOTICE in head
