"""The files of a tree that were seen while other programs may move them; for a backup.

The record is a table on the disk, in a file without a name: memory does not grow with the number of
files. A message keeps the part of its name before the flags when it is moved, and a submission its
id.
"""

import os
from pathlib import Path

import apsw

_SUBMISSIONS = ("deferred", "ready", "preparing")


class SeenFiles:
    """Which files were seen. Not thread-safe."""

    def __init__(self) -> None:
        self._table = apsw.Connection("")
        self._table.execute("CREATE TABLE seen (name BLOB, path BLOB, PRIMARY KEY (name, path))")

    def close(self) -> None:
        """Forget everything."""
        self._table.close()

    def clear(self) -> None:
        """Begin another tree."""
        self._table.execute("DELETE FROM seen")

    def is_new(self, path: Path) -> bool:
        """Whether a file was not seen yet, neither at its path nor where it was before."""
        name, own = _constant_name(path), os.fsencode(path)
        rows = self._table.execute("SELECT path FROM seen WHERE name = ?", (name,)).fetchall()
        if any(one == own for (one,) in rows):
            return False
        for (one,) in rows:
            if isinstance(one, bytes) and not Path(os.fsdecode(one)).exists():  # it moved here
                self._table.execute("DELETE FROM seen WHERE name = ? AND path = ?", (name, one))
                self.add(path)
                return False
        return True

    def add(self, path: Path) -> None:
        """Add a file."""
        row = (_constant_name(path), os.fsencode(path))
        self._table.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row)


def _constant_name(path: Path) -> bytes:
    """Return the part of a path that stays when a file is moved or gets other flags."""
    if path.parent.name in ("new", "cur"):
        return os.fsencode(path.name.partition(":")[0].partition(",")[0])
    if path.parent.name in _SUBMISSIONS:
        return os.fsencode(path.name.partition("@")[0])
    return os.fsencode(path)
