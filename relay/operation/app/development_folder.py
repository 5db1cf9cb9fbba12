"""The directory of the development relay: its lock, its marked files, its removal.

Each user has one temporary directory; a second development relay gets a new one. If enough memory
is free, the directory is in /dev/shm, where its removal is quick. A directory given by --dir is
kept. It is refused if its configuration does not begin with MARK, or if it has an OwnEntry and no
configuration: resets and starts remove or overwrite these. The other commands find a relay by a
symbolic link in two directories that only this user can write, whatever TMPDIR is.
"""

import contextlib
import os
import secrets
import shutil
import socket
import stat
import struct
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from relay.base.clock import ADVANCED_S_MAX
from relay.base.files import disk_of, replace_file
from relay.operation.app.state_dir import AlreadyRunningError, OwnerLock

MARK = "# Written by `relay dev`"
ACCOUNTS = "accounts.toml"
_PLACE_BYTES_MAX = 50  # macOS, where names of sockets are shorter, has 48
_DISK = Path("/tmp")  # noqa: S108 - what is in it belongs to this user
_MEMORY = Path("/dev/shm")  # noqa: S108 - as above
_MEMORY_FREE_BYTES = 2 << 30
_SESSIONS = Path("/run/user")  # has a directory of each user that is logged in
_LINKS = Path("/tmp")  # noqa: S108 - as above
_OF_PROGRAM = ".program"  # the end of a link to a relay that a program started
_ANSWER_S_MAX = 1.0
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class OwnEntry(StrEnum):
    """What a development relay makes in its directory, besides its configuration and `run`.

    `run` has only a lock: it is made before the configuration, and harms nothing.
    """

    CA = "ca"
    CLOCK = "clock.toml"
    CLOUD = "cloud"
    MAIL = "mail"
    NO_RULES = "no-rules"
    RELEASE_LOGIN = "release-password"
    SEARCH_INDEX = "search-index"
    STATE = "state"
    TLS = "tls"
    TRASH = "trash"


class ForeignFolderError(Exception):
    """`relay dev` did not write the files in the directory, or cannot write there."""


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
        path = self.path / OwnEntry.CLOCK
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
        replace_file(self.path / OwnEntry.CLOCK, text.encode(), mode=0o600)

    def remove(self) -> None:
        """Remove a temporary directory, and release the lock."""
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        self.lock.give_back()


def open_folder(path: Path | None) -> DevelopmentFolder:
    """Lock and return the directory `path`, or the user's own, or a new one if that is in use.

    Raises ForeignFolderError, AlreadyRunningError, OSError.
    """
    if path is not None:
        return _open_given(Path(os.path.realpath(path)))
    own = short_place(_new_place()) / _own_name()
    with contextlib.suppress(FileExistsError):
        own.mkdir(mode=0o700)
    if _is_own(own):
        with contextlib.suppress(AlreadyRunningError):
            return _open(own, temporary=True)
    return open_new_folder()


def open_new_folder() -> DevelopmentFolder:
    """Return a new temporary directory. Raises OSError."""
    new = Path(tempfile.mkdtemp(prefix="relay-dev-", dir=short_place(_new_place())))
    return _open(new, temporary=True)


def open_inner_folder(outer: DevelopmentFolder, name: OwnEntry) -> DevelopmentFolder:
    """Return a directory inside `outer`, which is removed with `outer`. Raises OSError,
    AlreadyRunningError.
    """
    path = outer.path / name
    path.mkdir(mode=0o700, exist_ok=True)
    return _open(path, temporary=False)


def short_place(place: Path) -> Path:
    """Return `place`, or /tmp if the paths of sockets in `place` would be too long."""
    return place if len(os.fsencode(place)) <= _PLACE_BYTES_MAX else _DISK


def _open_given(path: Path) -> DevelopmentFolder:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # before the configuration: a start in progress makes the entries after it
    entries = [path / name for name in OwnEntry if os.path.lexists(path / name)]
    files = [file for file in (path / "relay.toml", path / ACCOUNTS) if file.exists()]
    foreign = [file for file in files if not file.read_bytes().startswith(MARK.encode())]
    for file in foreign or ([] if files else entries):
        raise ForeignFolderError(f"{file} was not written by `relay dev`; name another directory")
    return _open(path, temporary=False)


def _open(path: Path, *, temporary: bool) -> DevelopmentFolder:
    """Lock the directory, and write a file with MARK before any OwnEntry: a start may be killed."""
    folder = DevelopmentFolder(path, temporary=temporary, lock=_locked(path))
    if temporary:
        _empty(path)  # a killed relay leaves its files
    if not (path / ACCOUNTS).exists():
        folder.write(ACCOUNTS, ", which uses this directory.\n")
    return folder


@contextlib.contextmanager
def linked(folder: DevelopmentFolder, *, of_program: bool) -> Iterator[Callable[[], str]]:
    """Let the other commands find a relay that listens, during the block; one `of_program` only
    where no other runs. Provide a function that makes the links which are missing, and returns why
    there is none, else "". It is called again and again: systems remove old files of /tmp.
    """
    name = secrets.token_hex(8) + (_OF_PROGRAM if of_program else "")

    def make_links() -> str:
        places, faults = link_places(), []
        for place in places:
            try:
                place.mkdir(mode=0o700, exist_ok=True)
                if not _is_private(place):
                    faults.append(f"{place}: no directory that this user alone can read and write")
                elif not (place / name).is_symlink():
                    (place / name).symlink_to(folder.path)
            except OSError as error:
                faults.append(f"{place}: {error.strerror}")
        return "; ".join(faults) if len(faults) == len(places) else ""

    try:
        yield make_links
    finally:
        for place in link_places():
            with contextlib.suppress(OSError):
                (place / name).unlink()


def running_configs() -> list[Path]:
    """Return the configurations of this user's development relays that listen: first that in the
    user's own temporary directory, then the last one started. Remove the links to others.

    Those that programs started count only where no other listens.
    """
    ranks: dict[Path, tuple[bool, bool, int]] = {}
    for link in [link for place in link_places() if _is_private(place) for link in place.iterdir()]:
        with contextlib.suppress(OSError):  # another command has removed it
            folder = link.readlink()
            if _listens(folder):
                is_other, began = folder.name != _own_name(), (folder / "relay.toml").stat()
                rank = (link.suffix == _OF_PROGRAM, is_other, -began.st_mtime_ns)
                ranks[folder] = min(rank, ranks.get(folder, rank))
            else:
                link.unlink()
    folders = sorted(ranks, key=ranks.__getitem__)
    started = [folder for folder in folders if not ranks[folder][0]]
    return [folder / "relay.toml" for folder in started or folders]


def link_places() -> list[Path]:
    """Return the directories of the links, which need not exist."""
    session = _SESSIONS / str(os.getuid())
    return [*([session / "relay"] if _is_own(session) else []), _LINKS / f"relay-{os.getuid()}"]


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


def _locked(path: Path) -> OwnerLock:
    lock = OwnerLock(path / "run")
    lock.take()
    return lock


def _own_name() -> str:
    return f"relay-dev-{os.getuid()}"


def _is_own(folder: Path) -> bool:
    """Return whether it is a directory of this user, and no link to one."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _is_private(folder: Path) -> bool:
    """Return whether no other user can write links there, or read them."""
    return _is_own(folder) and not stat.S_IMODE(folder.lstat().st_mode) & 0o077


def _listens(folder: Path) -> bool:
    """Return whether a relay of this user listens on its control socket. Raises OSError."""
    if not _is_own(folder):
        return False
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_ANSWER_S_MAX)  # real time: a peer
        try:
            client.connect(str(folder / OwnEntry.STATE / "run/control.sock"))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        if not hasattr(socket, "SO_PEERCRED"):  # only Linux has it
            return True
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        return bool(_PEER.unpack(peer)[1] == os.getuid())


def _empty(own: Path) -> None:
    for path in own.iterdir():
        if path.name == "run":  # holds our lock
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
