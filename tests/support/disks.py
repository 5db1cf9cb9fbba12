"""Where temporary folders are; and disks that are small, full or read-only: mounted where we may, else
by the mode of a directory.

What was mounted is gone at the end of the with block. The test is skipped, with the reason, where
nobody may mount. See mount(8).
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")  # tmpfs(5)
_BLOCK = b"\0" * 65536


def short_place() -> str:
    """Return where a folder with sockets is made: sockets have short names only. tests/conftest.py
    has set TMPDIR where memory may be used.
    """
    return str(MEMORY) if os.environ.get("TMPDIR") == str(MEMORY) else "/tmp"


def small_disk(path: Path, *, size_bytes: int) -> AbstractContextManager[None]:
    """Mount an empty file system of `size_bytes` at the directory `path`."""
    return _mounted(path, "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "none")


@contextmanager
def journaled_disk(path: Path, *, size_bytes: int) -> Iterator[None]:
    """Mount an empty ext4 that has a journal at the directory `path`."""
    image = path.with_name(f"{path.name}.image")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    make_ext4(image)
    try:
        with mounted(image, path):
            yield
    finally:
        image.unlink()


def mounted(image: Path, path: Path, *, by: str = "-o loop") -> AbstractContextManager[None]:
    """Mount a file with a file system in it, or what mount(8) takes, at the directory `path`."""
    return _mounted(path, *by.split(), str(image))


def make_ext4(image: Path) -> None:
    """Make a file system in a file that is there."""
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    if shutil.which("mkfs.ext4", path=search) is None:
        pytest.skip("mkfs.ext4 is not installed")
    words = ["mkfs.ext4", "-q", "-F", "-E", "nodiscard", str(image)]
    subprocess.run(words, check=True, env={"PATH": search})


def break_off(path: Path) -> None:
    """Let the ext4 at `path` find itself broken: it refuses all changes until it is mounted again."""
    _mount("-o", "remount,abort", str(path))


def disk_of_its_own(path: Path) -> AbstractContextManager[None]:
    """Let the directory `path` be a file system of its own: no link, no rename goes across."""
    return covered(path, path)


@contextmanager
def filled(path: Path) -> Iterator[None]:
    """Leave no room on the disk of the directory `path`."""
    filler = path / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            for block in (_BLOCK, _BLOCK[:1]):
                _write_until_full(file.fileno(), block)
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Refuse every change below the directory `path`."""
    with disk_of_its_own(path):
        _mount("-o", "remount,bind,ro", str(path))
        yield


def _write_until_full(descriptor: int, block: bytes) -> None:
    try:
        while True:
            os.write(descriptor, block)
    except OSError:
        return


@contextmanager
def _mounted(path: Path, *words: str) -> Iterator[None]:
    _mount(*words, str(path))
    try:
        yield
    finally:
        _unmount(path)


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


def _unmount(path: Path) -> None:
    """Lazily: the relay may have a file open there."""
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def covered(path: Path, by: Path) -> AbstractContextManager[None]:
    """Let the path of the directory `path` lead to the directory `by`, as before it was mounted."""
    return _mounted(path, "--bind", str(by))
