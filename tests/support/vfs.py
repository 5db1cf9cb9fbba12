"""The disk under SQLite, in this process: it counts, it refuses, and it forgets what was not synced.

    with FaultyDisk() as disk:
        ... open a spool, use it ...
        disk.refuses("sync")                # until disk.is_well()
        assert disk.syncs["-wal"] == 1
    disk.after_loss_of_power(folder, rng)

A failed sync is reported once; what it should have written is clean for the system from then on,
visible, and on the disk in part or not at all, unless it is written again. As SQLite's own layer
does, with the same codes. See SQLite's VFS; Rebello et al., "Can Applications Recover from fsync
Failures?" (USENIX ATC 2020).
"""

import copy
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import apsw

_NAME = "faulty"
_SYSTEM = "unix"
_CODES = {
    "read": (apsw.IOError, apsw.SQLITE_IOERR_CORRUPTFS),  # EIO; SQLite then says "malformed"
    "sync": (apsw.IOError, apsw.SQLITE_IOERR_FSYNC),
    "write": (apsw.IOError, apsw.SQLITE_IOERR_WRITE),
    "full": (apsw.FullError, apsw.SQLITE_FULL),
}


@dataclass
class _Image:
    """What is on the disk of one file; `changes` are not, so far: places with octets, or a new size."""

    octets: bytearray = field(default_factory=bytearray)
    changes: list[tuple[int, bytes | None]] = field(default_factory=list)

    def flush(self) -> None:
        for change in self.changes:
            _apply(self.octets, change)
        self.changes.clear()

    def lose(self, rng: random.Random) -> None:
        """Let some of the changes come to the disk, and the system forget that the others did not."""
        some = [one for one in self.changes if rng.random() < 0.5]
        self.changes.clear()
        for change in some:
            _apply(self.octets, change)


def _apply(octets: bytearray, change: tuple[int, bytes | None]) -> None:
    place, written = change
    if written is None:
        del octets[place:]
        return
    octets.extend(bytes(max(0, place - len(octets))))
    octets[place : place + len(written)] = written


class FaultyDisk(apsw.VFS):
    """SQLite's default disk inside the block. Faults are for files whose names end with `suffix`."""

    def __init__(self, *, rng: random.Random | None = None) -> None:
        self.syncs: Counter[str] = Counter()  # by what stands behind the database's name
        self.refusals: Counter[str] = Counter()
        self.on_sync: Callable[[str], None] = lambda _suffix: None
        self._rng = rng or random.Random(0)
        self._faults: dict[str, str] = {}
        self._images: dict[Path, _Image] = {}
        self._lock = threading.RLock()
        super().__init__(_NAME, _SYSTEM, makedefault=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        apsw.set_default_vfs(_SYSTEM)
        self.unregister()

    def refuses(self, what: str, *, suffix: str = "-wal") -> None:
        """Refuse to "read", to "sync" or to "write", or be "full"."""
        self._faults[what] = suffix

    def is_well(self) -> None:
        """Refuse nothing from here on."""
        self._faults.clear()

    def written_anew(self, path: Path) -> None:
        """Say that somebody else wrote all of a file again, as it is, and synced it."""
        with self._lock:
            self._images[path] = _Image(bytearray(path.read_bytes()))

    def remembered(self) -> "dict[Path, _Image]":
        """What is on the disk now, to be put back() when a process that was killed comes back."""
        with self._lock:
            return copy.deepcopy(self._images)

    def put_back(self, images: "dict[Path, _Image]") -> None:
        """Let the disk be as it was; the files themselves are the caller's to put back."""
        with self._lock:
            self._images = images

    def after_loss_of_power(self, folder: Path, rng: random.Random) -> None:
        """Put what is on the disk into `folder`, under the same names."""
        with self._lock:
            for path, image in self._images.items():
                left = _Image(bytearray(image.octets), list(image.changes))
                left.lose(rng)
                (folder / path.name).write_bytes(left.octets)

    # -- for SQLite
    def xOpen(self, name: Any, flags: Any) -> "_File":  # noqa: N802 - SQLite's names
        path = Path(str(name.filename() if isinstance(name, apsw.URIFilename) else name))
        with self._lock:
            if path not in self._images:
                there = path.read_bytes() if path.exists() else b""
                self._images[path] = _Image(bytearray(there))
        return _File(self, path, name, flags)

    def xDelete(self, name: str, sync_directory: bool) -> None:  # noqa: N802
        super().xDelete(name, sync_directory)
        with self._lock:
            self._images.pop(Path(name), None)

    def _check(self, what: str, path: Path) -> None:
        suffix = self._faults.get(what)
        if suffix is not None and path.name.endswith(suffix):
            self.refusals[what] += 1
            kind, code = _CODES[what]
            fault = kind(f"{what} refused by the test")
            fault.extendedresult = code
            raise fault

    def synced(self, path: Path) -> None:
        suffix = "-" + path.name.rpartition("-")[2] if "-" in path.name else ""
        self.syncs[suffix] += 1
        self.on_sync(suffix)
        try:
            self._check("sync", path)
        except apsw.Error:
            with self._lock:
                self._images[path].lose(self._rng)
            raise
        with self._lock:
            self._images[path].flush()

    def changed(self, path: Path, place: int, written: bytes | None) -> None:
        with self._lock:
            self._images[path].changes.append((place, written))

    def check_read(self, path: Path) -> None:
        self._check("read", path)

    def check_write(self, path: Path) -> None:
        self._check("write", path)
        self._check("full", path)


class _File(apsw.VFSFile):
    def __init__(self, disk: FaultyDisk, path: Path, name: Any, flags: Any) -> None:
        self._disk, self._path = disk, path
        super().__init__(_SYSTEM, name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        self._disk.check_read(self._path)
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.check_write(self._path)
        super().xWrite(data, offset)
        self._disk.changed(self._path, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        super().xTruncate(newsize)
        self._disk.changed(self._path, newsize, None)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.synced(self._path)
        super().xSync(flags)
