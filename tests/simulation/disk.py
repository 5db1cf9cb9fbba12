"""The disk of a world: real files through an SQLite VFS that can fail, fill up and forget.

A dead process writes nothing; after a loss of power any write that was not synced may be gone. As
it is reported to: IOError for a sync, FullError for a write. See SQLite's VFS; fsync of POSIX.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from unittest.mock import patch

import apsw

from relay.store.spool.sqlite.spool_files import last_commit_of
from tests.simulation.life import Death, Life
from tests.simulation.world import World

VFS = "simulated"
_SPOOL = "spool.sqlite"
CONTENTS = f"{_SPOOL}-content"
_RESERVE_FILE = "ballast"
POLICIES = "policies"
_SIZE_BYTES = 1 << 30
_BLOCK_BYTES = 4096
_BASE = apsw.vfs_names()[0]  # where files really are


class Disk(apsw.VFS):
    """The default VFS while it is there; what is not under `folder` it leaves alone."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.owner: Life | None = None  # whose folder is written
        self.home = folder
        self.full = False
        self.unreadable = False  # contents that did not come with a claim
        self.spare_bytes = 0  # of a reserve file released while the disk is full
        self.is_just_given = False  # and nothing was committed since
        self.sync_fails = 0  # how many more times
        self.failing_since_s: float | None = None  # since when no sync of the log succeeded
        self.forgets = False  # whether unsynced writes are written down
        self._unsynced: dict[str, list[tuple[int, bytes, int]]] = {}
        self._sizes: dict[int, int] = {}  # of content files by inode, as far as they are synced
        self._names: frozenset[str] = frozenset()  # of content files when their folder was synced
        self._synced_note = self._named_note = b""  # the last commit's number: its file, its name
        super().__init__(VFS, _BASE, makedefault=True)

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path is None or not str(path).startswith(str(self.home)):
            return apsw.VFSFile(_BASE, name, flags)
        return _File(self, name, flags, path=Path(path).name)

    def next_home(self, *, power_lost: bool) -> Path:
        """What the next process finds; the one before has no file there any more."""
        old, new = self.home, self.folder / f"{len(self.world.lives)}"
        new.mkdir()
        for name in (_SPOOL, f"{_SPOOL}-wal"):
            if (old / name).exists():
                shutil.copyfile(old / name, new / name)
                if power_lost:
                    forget(new / name, self._unsynced.get(name, []), self.world.rng)
        self._move_note(last_commit_of(old / _SPOOL), last_commit_of(new / _SPOOL), power_lost)
        if (old / POLICIES).exists():
            shutil.copytree(old / POLICIES, new / POLICIES)
        if (old / _RESERVE_FILE).exists():
            (old / _RESERVE_FILE).rename(new / _RESERVE_FILE)
        if (old / CONTENTS).exists():
            (new / CONTENTS).mkdir()
            for name in _names_in(old / CONTENTS):
                self._move_file(old / CONTENTS / name, new / CONTENTS / name, power_lost)
            self._names = frozenset(_names_in(new / CONTENTS))
        self._unsynced.clear()
        self.failing_since_s = None
        self.home = new
        return new

    def _move_note(self, old: Path, new: Path, power_lost: bool) -> None:
        """Let the last commit's number come over; with the power, it may be as it was synced."""
        note = old.read_bytes() if old.exists() else b""
        if power_lost and Random(f"{len(self.world.lives)} {note!r}").random() < 0.5:
            note = self._named_note
        if note:
            new.write_bytes(note)
        self._synced_note = self._named_note = note

    def _move_file(self, old: Path, new: Path, power_lost: bool) -> None:
        """Let a content file come over; what of it was not synced may be gone with the power."""
        rng, size = self.world.rng, old.stat().st_size
        kept = size
        if power_lost and self._sizes.get(old.stat().st_ino, 0) < size:
            kept = rng.randrange(size + 1)
        if power_lost and old.name not in self._names and rng.random() < 0.5:
            return
        shutil.copyfile(old, new)
        os.truncate(new, kept)
        self._sizes[new.stat().st_ino] = kept

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have os.fsync tell of files that are not SQLite's, around each of which the process may
        die, and os.statvfs of its room.
        """
        fsync, statvfs = os.fsync, os.statvfs

        def sync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            contents, note = self.home / CONTENTS, last_commit_of(self.home / _SPOOL)
            if self.home != path and self.home not in path.parents:
                fsync(descriptor)
                return
            self.reached()
            fsync(descriptor)
            if path == note:
                self._synced_note = note.read_bytes()
                self._named_note = self._named_note and self._synced_note
            elif path == self.home:
                self._named_note = self._synced_note if note.exists() else b""
            elif path == contents:
                self._names = frozenset(_names_in(contents))
            elif path.parent == contents:
                found = os.fstat(descriptor)
                self._sizes[found.st_ino] = found.st_size
            self.reached()

        def room(path: Path) -> os.statvfs_result:
            if not Path(path).is_relative_to(self.folder):
                return statvfs(path)
            free = (self.spare_bytes if self.full else _SIZE_BYTES // 2) // _BLOCK_BYTES
            blocks = _SIZE_BYTES // _BLOCK_BYTES
            return os.statvfs_result(
                (_BLOCK_BYTES, _BLOCK_BYTES, blocks, free, free, 0, 0, 0, 0, 255)
            )

        with patch.object(os, "fsync", sync), patch.object(os, "statvfs", room):
            yield

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """For what is none of the relay's doing: nothing fails, and nobody dies of it."""
        was = self.owner, self.full, self.sync_fails
        self.owner, self.full, self.sync_fails = None, False, 0
        try:
            yield
        finally:
            self.owner, self.full, self.sync_fails = was

    def take_spare(self, size_bytes: int) -> None:
        """Find room on a full disk. Raises apsw.FullError."""
        self.world.reached["disk: full"] += 1
        if self.spare_bytes < size_bytes:
            raise apsw.FullError("simulated")
        self.spare_bytes -= size_bytes

    def reached(self) -> None:
        """Say that something is about to be written or has been: the process may die here."""
        life = self.owner
        if life is None:
            return
        if not life.dead:
            life.writes += 1
            if life.writes == life.dies_at_write:
                self.world.kill(life)
        if life.dead:
            raise Death

    def synced(self) -> None:
        """Say that a commit is durable, and nobody knows yet."""
        life = self.owner
        if life is not None and not life.dead:
            life.commits += 1
            if life.commits == life.dies_at_commit:
                self.world.kill(life)
        self.reached()


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: object, flags: list[int], *, path: str) -> None:
        super().__init__(_BASE, name, flags)
        self._disk = disk
        self._path = path

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        disk = self._disk
        if disk.full and self.xFileSize() < offset + len(data):
            disk.take_spare(len(data))
        disk.reached()
        if disk.forgets:
            size = self.xFileSize()
            there = max(0, min(len(data), size - offset))
            old = super().xRead(there, offset) if there else b""
            disk._unsynced.setdefault(self._path, []).append((offset, old, size))
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        disk = self._disk
        disk.reached()
        if disk.sync_fails:
            disk.sync_fails -= 1
            disk.world.note("a sync fails")
            if disk.failing_since_s is None:
                disk.failing_since_s = disk.world.time()
            disk.world.reached["disk: a sync failed"] += 1
            if disk.owner is not None:
                disk.owner.doomed_by_sync()
            raise apsw.IOError("simulated")
        super().xSync(flags)
        if self._path.endswith("-wal"):
            disk.failing_since_s = None
        disk._unsynced.pop(self._path, None)
        disk.synced()


def forget(path: Path, unsynced: list[tuple[int, bytes, int]], rng: Random) -> None:
    """Undo some of the writes that were not synced, the last first."""
    how_many = rng.choice((0.5, 1.0))
    with path.open("r+b") as file:
        for offset, old, size in reversed(unsynced):
            if rng.random() < how_many:
                file.seek(offset)
                file.write(old)
                if how_many == 1.0:
                    file.truncate(size)
