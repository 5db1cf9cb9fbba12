"""Where a development relay keeps its files, and how the other commands find it.

On the path: before it; development fills the folder, the command line looks into it.
Holds: a folder of our own choice goes with the relay; one that was given stays, and nothing in it
    that `relay dev` did not write is overwritten; a folder has one relay at a time.
Fails: OSError for a folder that cannot be made, ForeignFolderError for one with other files,
    AlreadyRunningError for one that is in use.
Standards: none.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from relay.app.state_dir import AlreadyRunningError, OwnerLock

MARK = "# Written by `relay dev`"


class ForeignFolderError(Exception):
    """The folder has a configuration that somebody else wrote."""


@dataclass(frozen=True, slots=True)
class DevelopmentFolder:
    """Where a development relay keeps its files; `temporary` ones go with it."""

    path: Path
    temporary: bool
    lock: OwnerLock

    @property
    def config(self) -> Path:
        """The configuration that it runs with."""
        return self.path / "relay.toml"

    def write(self, name: str, text: str) -> None:
        """Write one of its files, whole or not at all; they all begin with MARK. Raises OSError."""
        part = self.path / f"{name}.part"
        part.touch(mode=0o600)
        part.write_text(f"{MARK}{text}")
        part.replace(self.path / name)

    def remove(self) -> None:
        """Leave nothing behind, where nothing should stay."""
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        self.lock.give_back()


def open_folder(given: Path | None) -> DevelopmentFolder:
    """Return the folder `given`, else the user's own, else, if that is in use, a new one; it is
    locked. Raises ForeignFolderError, AlreadyRunningError, OSError.
    """
    if given is not None:
        return _open_given(given.absolute())
    own = _own_folder(Path(tempfile.gettempdir()))
    if not _is_foreign(own):
        own.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(AlreadyRunningError):
            lock = _locked(own)
            _empty(own)  # a killed one could not remove its own
            return DevelopmentFolder(own, temporary=True, lock=lock)
    new = Path(tempfile.mkdtemp(prefix="relay-dev-"))
    return DevelopmentFolder(new, temporary=True, lock=_locked(new))


def _open_given(path: Path) -> DevelopmentFolder:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in (path / "relay.toml", path / "accounts.toml"):
        if file.exists() and not file.read_bytes().startswith(MARK.encode()):
            raise ForeignFolderError(f"{file} was not written by `relay dev`; name another folder")
    return DevelopmentFolder(path, temporary=False, lock=_locked(path))


def running_config(temporary: Path) -> Path | None:
    """The configuration of this user's running development relay, so that `relay trace` finds it;
    `temporary` is where temporary folders are.
    """
    own = _own_folder(temporary)
    config = own / "relay.toml"
    if _is_foreign(own) or not config.exists():
        return None
    return config if _in_use(own) else None


def _locked(path: Path) -> OwnerLock:
    lock = OwnerLock(path / "run")
    lock.take()
    return lock


def _own_folder(temporary: Path) -> Path:
    return temporary / f"relay-dev-{os.getuid()}"


def _is_foreign(own: Path) -> bool:
    """Whether somebody else put something where our folder should be."""
    try:
        found = own.lstat()
    except FileNotFoundError:
        return False
    return not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid()


def _empty(own: Path) -> None:
    for one in own.iterdir():
        if one.name == "run":  # the lock that we hold
            continue
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one, ignore_errors=True)
        else:
            one.unlink(missing_ok=True)


def _in_use(own: Path) -> bool:
    if not (own / "run" / "lock").exists():
        return False
    try:
        _locked(own).give_back()
    except AlreadyRunningError:
        return True
    return False
