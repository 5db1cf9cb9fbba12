"""Where a development relay keeps its files, and how the other commands find it.

On the path: before it; development fills the folder, the command line looks into it.
Holds: a folder of our own choice goes with the relay; one that was given stays, and nothing in it
    that `relay dev` did not write is overwritten.
Fails: OSError for a folder that cannot be made, NotOurFolderError for one with other files.
Standards: none.
"""

import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from relay.app.lock import AlreadyRunningError, OwnerLock

MARK = "# Written by `relay dev`"


class NotOurFolderError(Exception):
    """The folder has a configuration that somebody else wrote."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a development relay keeps its files; `temporary` ones go with it."""

    path: Path
    temporary: bool
    lock: OwnerLock | None = None  # of the user's own folder, for as long as it is used

    @property
    def config(self) -> Path:
        """The configuration that it runs with."""
        return self.path / "relay.toml"

    def write(self, name: str, text: str) -> None:
        """Write one of its files; they all begin with MARK. Raises NotOurFolderError, OSError."""
        file = self.path / name
        if file.exists() and not file.read_bytes().startswith(MARK.encode()):
            raise NotOurFolderError(f"{file} was not written by `relay dev`; name another folder")
        part = file.with_name(f"{name}.part")
        part.write_text(f"{MARK}{text}")
        part.replace(file)

    def remove(self) -> None:
        """Leave nothing behind, where nothing should stay."""
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        if self.lock is not None:
            self.lock.give_back()


def open_folder(given: Path | None) -> Folder:
    """Return the folder `given`, else the user's own, else, if that is in use, a new one."""
    if given is not None:
        given.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Folder(given.absolute(), temporary=False)
    own = _own_folder(Path(tempfile.gettempdir()))
    lock = OwnerLock(own / "run")
    try:
        if not _is_foreign(own):
            own.mkdir(mode=0o700, exist_ok=True)
            lock.take()
            _empty(own)  # a killed one could not remove its own
            return Folder(own, temporary=True, lock=lock)
    except AlreadyRunningError:
        pass
    return Folder(Path(tempfile.mkdtemp(prefix="relay-dev-")), temporary=True)


def running_config(temporary: Path) -> Path | None:
    """The configuration of this user's running development relay, so that `relay trace` finds it;
    `temporary` is where temporary folders are.
    """
    own = _own_folder(temporary)
    config = own / "relay.toml"
    if _is_foreign(own) or not config.exists():
        return None
    return config if _in_use(own) else None


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
    lock = OwnerLock(own / "run")
    try:
        lock.take()
    except AlreadyRunningError:
        return True
    lock.give_back()
    return False
