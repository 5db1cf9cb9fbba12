"""A folder on the weakest disk that POSIX allows: what no fsync covered may be there or not.

    with ForgetfulDisk(folder) as disk:
        ... let the store work below folder ...
        for left in disk.after_loss(elsewhere):     # every state that a loss of power may leave now
            ...

Each directory is durable by its own fsync alone, and independent of all others: after a loss it
has the names of its last fsync, or those of any later moment at which something was synced; a file
has its octets if it was synced, none if not. No real file system keeps less. See POSIX fsync(2),
rename(2), link(2).
"""

import errno
import itertools
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import relay

_RELAY = str(Path(relay.__file__).parent)
# These do the syncs of others: a site is who asked them.
_PLUMBING = ("store/mailbox/maildir.py", "submission/outbox/on_disk.py:sync")
# Nothing is promised of the index and the store's log.
_CACHES = ("relay-index", "log")
_STATES_MAX = 64

Names = dict[str, int]  # the inode of each name


class KilledError(BaseException):
    """The process is killed: nothing that handles errors handles this one."""


class ForgetfulDisk:
    """`sites` counts the syncs by who asked for them: module:function:line. `fate` says of a site what
    its sync does: "works", "is left out", "fails", or "is never reached": the process is killed there.
    With `in_order` it has a journal: all names are those of one moment, at or after the last fsync of a
    directory. look() adds a moment.
    """

    def __init__(self, folder: Path) -> None:
        self.sites: Counter[str] = Counter()
        self.fate: Callable[[str], str] = lambda _site: "works"
        self.in_order = False
        self._folder = folder
        self._top = 0
        self._moments: list[dict[int, Names]] = []  # the names in all directories
        self._names: dict[int, list[Names]] = {}  # of each directory: as synced, and later ones
        self._octets: dict[int, bytes] = {}  # of each file that was synced
        self._pins: dict[int, int] = {}  # descriptors: no inode's number is given again
        self._fsync = os.fsync

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._top = self._folder.stat().st_ino
        self.settle()
        os.fsync = self._synced  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync = self._fsync
        for descriptor in self._pins.values():
            os.close(descriptor)

    def after_loss(self, elsewhere: Path) -> Iterator[Path]:
        """Yield folders, each with what one loss of power may leave, the least first."""
        self.look()
        seen: set[frozenset[tuple[str, int]]] = set()
        for number, names in enumerate(self._choices()):
            tree = dict(self._tree(self._top, "", names))
            if (left := frozenset(tree.items())) not in seen:
                seen.add(left)
                yield self._made(elsewhere / str(number), tree)

    def write_back(self, descriptor: int) -> None:
        """Take a file's octets as there whenever one of its names is: an ordered journal does so."""
        self._octets[os.fstat(descriptor).st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def settle(self) -> None:
        """Let everything be as durable as if all of it had been synced now."""
        self.look()
        for seen in (self._moments, *self._names.values()):
            del seen[:-1]
        for path in self._folder.rglob("*"):
            if path.is_file():
                self._octets[path.stat().st_ino] = path.read_bytes()

    def look(self) -> None:
        """Remember the names of every directory as they are now."""
        self._look_into(self._folder, self._top)
        self._moments.append({inode: seen[-1] for inode, seen in self._names.items()})

    # -- what is there

    def _synced(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not path.is_relative_to(self._folder):
            return
        self.look()
        kind = "directory" if path.is_dir() else "file"
        site = _site()
        self.sites[site] += 1
        fate = self.fate(site)
        if fate == "is never reached":
            raise KilledError
        if fate == "fails":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        if fate == "is left out":
            return
        inode = os.fstat(descriptor).st_ino
        if kind == "directory":
            for seen in (self._moments, self._names[inode]):
                del seen[:-1]
        else:
            self._octets[inode] = path.read_bytes()

    def _look_into(self, directory: Path, inode: int) -> None:
        names: Names = {}
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(_CACHES):
                    continue
                names[entry.name] = number = entry.inode()
                if number not in self._pins:
                    self._pins[number] = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
                if entry.is_dir():
                    self._look_into(Path(entry.path), number)
        seen = self._names.setdefault(inode, [] if directory == self._folder else [{}])
        if not seen or seen[-1] != names:
            seen.append(names)

    # -- what may be left

    def _choices(self) -> Iterator[dict[int, Names]]:
        """Yield names for each directory; a sample if there are too many."""
        if self.in_order:
            yield from self._moments
            return
        inodes, candidates = zip(*self._names.items(), strict=True)
        states = 1
        for one in candidates:
            states *= len(one)
        if states <= _STATES_MAX:
            for chosen in itertools.product(*candidates):
                yield dict(zip(inodes, chosen, strict=True))
            return
        rng = random.Random(1)
        for place in (0, -1):
            yield {inode: names[place] for inode, names in self._names.items()}
        for _ in range(_STATES_MAX):
            yield {inode: rng.choice(names) for inode, names in self._names.items()}

    def _tree(self, inode: int, path: str, names: dict[int, Names]) -> Iterator[tuple[str, int]]:
        for name, number in names[inode].items():
            yield f"{path}{name}", number
            if number in names:
                yield from self._tree(number, f"{path}{name}/", names)

    def _made(self, folder: Path, tree: dict[str, int]) -> Path:
        folder.mkdir(parents=True)
        files: dict[int, Path] = {}
        for name, inode in tree.items():
            path = folder / name
            if inode in self._names:
                path.mkdir()
            elif inode in files:
                path.hardlink_to(files[inode])
            else:
                path.write_bytes(self._octets.get(inode, b""))
                files[inode] = path
        return folder


def _site() -> str:
    """Return module, function and line of who asked for a sync."""
    frame = sys._getframe(2)
    while True:
        code = frame.f_code
        if code.co_filename.startswith(_RELAY):
            place = f"{code.co_filename.removeprefix(_RELAY + '/')}:{code.co_name}"
            if not place.startswith(_PLUMBING):
                return f"{place}:{frame.f_lineno}"
        assert frame.f_back is not None
        frame = frame.f_back
