"""What the file systems of state_dir and of the mail root must be able to do.

A start and `relay check` ask each folder for what is later done there. A probe works in a folder of
its own, named PREFIX and a random end, which no other code reads. Only an error that says "cannot"
counts: on a disk that is full, read-only or failing, the start goes on.
"""

import errno
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw

from relay.base.files import nearest_existing, open_to_others, replace_file
from relay.base.settings.document import Fault
from relay.base.settings.tree import Settings
from relay.operation.app.state_dir import lock_file

PREFIX = ".relay-probe-"
_FILE = "file"
_ERRORS = ("EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL", "ENODEV", "ENOLCK")
_CANNOT = frozenset(getattr(errno, name) for name in _ERRORS)


def missing_capabilities(
    settings: Settings, *, with_root: bool, is_start: bool = False
) -> dict[str, Fault]:
    """Return the first capability that a folder lacks, by its key in relay.toml. `with_root` asks
    the mail root, too. A start removes the folders of probes that were killed.
    """
    database = [_DATABASE] if settings.spool.is_file else []
    places = [
        ("state_dir", settings.state_dir, [_MODES, _RENAMES, _LINKS, *database]),
        ("state_dir", settings.run_dir, [_LOCKS, _SOCKETS]),
        ("mailboxes.root", settings.mailboxes.root, [_RENAMES, _LINKS, _LOCKS, _DATABASE]),
    ]
    missing = dict[str, Fault]()
    for key, path, needs in places if with_root else places[:-1]:
        folder = nearest_existing(path)
        for left in folder.glob(f"{PREFIX}*") if is_start else ():
            shutil.rmtree(left, ignore_errors=True)
        with (
            suppress(OSError),
            TemporaryDirectory(prefix=PREFIX, dir=folder, ignore_cleanup_errors=True) as own,
        ):
            if (need := _first_missing(Path(own), needs)) and key not in missing:
                missing[key] = Fault(path, 0, key, f"needs {need}")
    return missing


def _first_missing(folder: Path, needs: Sequence[str]) -> str:
    for need in needs:
        try:
            _PROBES[need](folder)
        except OSError as error:
            if error.errno in _CANNOT:
                return need
    return ""


def _keep_mode(folder: Path) -> None:
    (folder / _FILE).touch(0o600)
    if open_to_others(folder / _FILE, to_read=True):
        raise OSError(errno.ENOTSUP, "others can read it")


def _replace(folder: Path) -> None:
    (folder / _FILE).touch()
    replace_file(folder / _FILE, b"", mode=0o600)


def _listen(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))


def _write_database(folder: Path) -> None:
    name = str(folder / "database")
    with suppress(apsw.Error), closing(apsw.Connection(name)) as connection:
        try:
            connection.execute("PRAGMA journal_mode = WAL; CREATE TABLE probe (x)").fetchall()
        except apsw.Error as error:
            raise OSError(connection.system_errno, str(error)) from error


_PROBES: Mapping[str, Callable[[Path], object]] = {
    "file modes: NTFS has the mount option `umask=077`": _keep_mode,
    "renames over a file, and fsync of its directory": _replace,
    "hard links": lambda folder: os.link(folder / _FILE, folder / "link"),
    "flock": lambda folder: os.close(lock_file(folder / "lock")),
    "Unix sockets": _listen,
    "mmap and locks, for SQLite: mergerfs has `cache.files=partial`": _write_database,
}
_MODES, _RENAMES, _LINKS, _LOCKS, _SOCKETS, _DATABASE = _PROBES
