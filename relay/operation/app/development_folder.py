"""The directory of the development relay: its lock, its marked files, its removal.

Each user has one temporary directory, which the other commands find; a second development relay
gets a new one. If enough memory is free, the directory is in /dev/shm, where its removal is quick.
A directory given by --dir is kept, and its files that do not begin with MARK are never overwritten.
The other commands find it by a symbolic link in the directory of temporary files.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import tomllib
from pathlib import Path

from msgspec import Struct

from relay.base.clock import ADVANCED_S_MAX
from relay.base.files import disk_of, replace_file
from relay.operation.app.state_dir import AlreadyRunningError, OwnerLock

_CLOCK = "clock.toml"
MARK = "# Written by `relay dev`"
_PLACE_BYTES_MAX = 50  # macOS, where names of sockets are shorter, has 48
_DISK = Path("/tmp")  # noqa: S108 - what is in it belongs to this user
_MEMORY = Path("/dev/shm")  # noqa: S108 - as above
_MEMORY_FREE_BYTES = 2 << 30


class ForeignFolderError(Exception):
    """`relay dev` did not write the configuration in the directory, or cannot write one there."""


class DevelopmentFolder(Struct, frozen=True):
    """The directory of a development relay; a `temporary` one is removed at the end."""

    path: Path
    temporary: bool
    lock: OwnerLock

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.path / "relay.toml"

    def write(self, name: str, text: str) -> None:
        """Write a file atomically, beginning with MARK. Raises OSError, ForeignFolderError."""
        try:
            octets = f"{MARK}{text}".encode()
        except UnicodeEncodeError:
            text = "found the name of a directory that is not UTF-8, expected one that is"
            raise ForeignFolderError(f"{self.path / name}: {text}") from None
        part = self.path / f"{name}.part"
        part.touch(mode=0o600)
        part.write_bytes(octets)
        part.replace(self.path / name)

    def advanced_s(self) -> float:
        """Return by how much the clock of earlier runs was advanced, in seconds.

        Raises OSError, and ForeignFolderError for a file that `relay dev` did not write.
        """
        path = self.path / _CLOCK
        try:
            advanced_s = float(tomllib.loads(path.read_text("utf-8"))["advanced_s"])
        except FileNotFoundError:
            return 0.0
        except (ValueError, KeyError, TypeError):
            advanced_s = -1.0
        if not 0 <= advanced_s <= ADVANCED_S_MAX:
            raise ForeignFolderError(
                f"{path}: expected advanced_s, a number of seconds from 0 to {ADVANCED_S_MAX:.0f}"
            )
        return advanced_s

    def write_advanced(self, advanced_s: float) -> None:
        """Write by how much the clock was advanced, durably. Raises OSError."""
        text = f"{MARK}: its clock is ahead of that of the machine.\nadvanced_s = {advanced_s!r}\n"
        replace_file(self.path / _CLOCK, text.encode(), mode=0o600)

    def remove(self) -> None:
        """Remove a temporary directory, or the link to another one, and release the lock."""
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        elif self.path in _given():
            _link(self.path).unlink()
        self.lock.give_back()


def open_folder(path: Path | None) -> DevelopmentFolder:
    """Lock and return the directory `path`, or the user's own, or a new one if that is in use.

    Raises ForeignFolderError, AlreadyRunningError, OSError.
    """
    if path is not None:
        return _open_given(Path(os.path.realpath(path)))
    own = _own_folder(_new_place())
    if not _is_foreign(own):
        own.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(AlreadyRunningError):
            lock = _locked(own)
            _empty(own)  # a killed relay leaves its files
            return DevelopmentFolder(own, temporary=True, lock=lock)
    return open_new_folder()


def open_new_folder() -> DevelopmentFolder:
    """Return a temporary directory that no other command finds. Raises OSError."""
    new = Path(tempfile.mkdtemp(prefix="relay-dev-", dir=short_place(_new_place())))
    return DevelopmentFolder(new, temporary=True, lock=_locked(new))


def open_inner_folder(outer: DevelopmentFolder, name: str) -> DevelopmentFolder:
    """Return a directory inside `outer`, which is removed with `outer`. Other commands need
    --config to find it. Raises OSError, AlreadyRunningError.
    """
    path = outer.path / name
    path.mkdir(mode=0o700, exist_ok=True)
    return DevelopmentFolder(path, temporary=False, lock=_locked(path))


def short_place(place: Path) -> Path:
    """Return `place`, or /tmp if the paths of sockets in `place` would be too long."""
    return place if len(os.fsencode(place)) <= _PLACE_BYTES_MAX else _DISK


def _open_given(path: Path) -> DevelopmentFolder:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in (path / "relay.toml", path / "accounts.toml"):
        if file.exists() and not file.read_bytes().startswith(MARK.encode()):
            raise ForeignFolderError(
                f"{file} was not written by `relay dev`; name another directory"
            )
    folder = DevelopmentFolder(path, temporary=False, lock=_locked(path))
    with contextlib.suppress(OSError):  # another user's file: --config names the relay
        for linked in _given():
            if linked == path or not _in_use(linked):  # a killed relay leaves its link
                _link(linked).unlink()
        _link(path).symlink_to(path)
    return folder


def running_config() -> Path | None:
    """Return the configuration of this user's running development relay, or None."""
    folders: list[Path] = []
    with contextlib.suppress(FileNotFoundError):  # there is no place for temporary files
        folders = [own for own in map(_own_folder, _places()) if not _is_foreign(own)] + _given()
    configs = (folder / "relay.toml" for folder in folders)
    return next((file for file in configs if file.exists() and _in_use(file.parent)), None)


def memory_place(free_bytes: int) -> Path | None:
    """Return /dev/shm; None if it has less than `free_bytes`, or cannot be written."""
    try:
        is_roomy = disk_of(_MEMORY).free_bytes >= free_bytes
    except OSError:
        return None
    return _MEMORY if is_roomy and os.access(_MEMORY, os.W_OK | os.X_OK) else None


def _places() -> list[Path]:
    """Return where a temporary directory may be: $TMPDIR, else /dev/shm or /tmp."""
    place = Path(tempfile.gettempdir())
    return [_MEMORY, place] if place == _DISK else [place]


def _new_place() -> Path:
    *memory, place = _places()
    return (memory and memory_place(_MEMORY_FREE_BYTES)) or place


def _link(folder: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()
    return Path(tempfile.gettempdir()) / f"relay-dev-{os.getuid()}.{digest[:16]}.dir"


def _given() -> list[Path]:
    """Return the directories that this user gave with --dir, the last one first."""
    folders = []
    for link in Path(tempfile.gettempdir()).glob(f"relay-dev-{os.getuid()}.*.dir"):
        with contextlib.suppress(OSError):
            if (made := link.lstat()).st_uid == os.getuid():
                folders.append((made.st_mtime_ns, link.readlink()))
    return [path for _, path in sorted(folders, reverse=True)]


def _locked(path: Path) -> OwnerLock:
    lock = OwnerLock(path / "run")
    lock.take()
    return lock


def _own_folder(temporary: Path) -> Path:
    return temporary / f"relay-dev-{os.getuid()}"


def _is_foreign(own: Path) -> bool:
    """Return whether the path exists and is not a directory of this user."""
    try:
        status = own.lstat()
    except FileNotFoundError:
        return False
    return not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid()


def _empty(own: Path) -> None:
    for path in own.iterdir():
        if path.name == "run":  # holds our lock
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _in_use(own: Path) -> bool:
    if not (own / "run" / "lock").exists():
        return False
    try:
        _locked(own).give_back()
    except AlreadyRunningError:
        return True
    return False
