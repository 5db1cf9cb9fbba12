"""A disk that remembers each write and flush, and can be had as it was when the power went.

    with LoggedDisk(folder, size_bytes=...) as disk:
        ... make a file system on disk.file, mount it by loop, work, unmount ...
    disk.after_loss(position, rng)     # a position is what disk.position() was at some moment

What was flushed is in an image; of what was not, any part, each write as a whole or not at all.
The test is skipped, with the reason, where there is no FUSE or nobody may mount. See the kernel's
fuse.h, protocol 7.31; the cache of a disk as T10's SYNCHRONIZE CACHE has it.
"""

import ctypes
import errno
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE = 1, 2, 3, 4, 14, 15, 16
_STATFS, _RELEASE, _FSYNC, _FLUSH, _INIT, _OPENDIR, _RELEASEDIR = 17, 18, 20, 25, 26, 27, 29
_INTERRUPT, _DESTROY, _BATCH_FORGET = 36, 38, 42
_MAX_WRITE = 1 << 20
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_ROOT, _FILE = 1, 2
_FOR_EVER_S = 3600
_HEADER, _ANSWER, _PLACE = struct.Struct("<IIQQ16x"), struct.Struct("<IiQ"), struct.Struct("<8xQI")
_WRITTEN = struct.Struct("<cQI")
_NAME = "disk"


class LoggedDisk:
    """`file` is the disk while the block runs; what became of it can be asked for behind it."""

    def __init__(self, folder: Path, *, size_bytes: int) -> None:
        self.file = folder / "served" / _NAME
        self._log = folder / "log"
        self._size_bytes = size_bytes

    def __enter__(self) -> Self:
        if os.geteuid() != 0 or not Path("/dev/fuse").exists():
            pytest.skip("only root can have a disk by FUSE here")
        self.file.parent.mkdir()
        words = [str(self.file.parent), str(self._size_bytes), str(self._log)]
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__, *words], stdout=subprocess.PIPE
        )
        assert self._server.stdout is not None
        if not self._server.stdout.readline():
            self._server.wait(10)
            pytest.skip("no disk by FUSE can be mounted here")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.file.parent)], check=True)
        self._server.communicate(timeout=120)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let every write and flush wait until the end of the block."""
        self._server.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._server.send_signal(signal.SIGCONT)

    def break_down(self) -> None:
        """Fail every write and flush from now on, as a disk does that loses its power."""
        self._server.send_signal(signal.SIGUSR1)

    def position(self) -> int:
        """Where in the disk's history we are."""
        return self._log.stat().st_size

    def after_loss(self, position: int, rng: random.Random) -> bytearray:
        """The disk when the power went then; what was not flushed is there in part, or not."""
        image, unflushed = bytearray(self._size_bytes), []
        for write in self._history(position):
            if write is not None:
                unflushed.append(write)
                continue
            for place, octets in unflushed:
                image[place : place + len(octets)] = octets
            unflushed.clear()
        kept = rng.choice((0.0, 0.3, 0.7, 1.0))
        for place, octets in unflushed:
            if rng.random() < kept:
                image[place : place + len(octets)] = octets
        return image

    def _history(self, position: int) -> Iterator[tuple[int, bytes] | None]:
        """Yield each write's place and octets; None is a flush."""
        with self._log.open("rb") as log:
            while log.tell() < position:
                if (kind := log.read(1)) == b"F":
                    yield None
                else:
                    _, place, size = _WRITTEN.unpack(kind + log.read(_WRITTEN.size - 1))
                    yield place, log.read(size)


class _Server:
    """The file system: a directory with one file in it."""

    def __init__(self, size_bytes: int, log: int) -> None:
        self._disk = bytearray(size_bytes)
        self._log = log
        self.is_broken = False

    def answer(self, kind: int, node: int, body: bytes) -> bytes | int | None:
        """Return what to say: octets, the number of an error, or None for nothing."""
        if kind in (_FORGET, _BATCH_FORGET, _INTERRUPT):
            return None
        if kind == _LOOKUP:
            return self._entry() if body == f"{_NAME}\0".encode() else errno.ENOENT
        if self.is_broken and kind in (_WRITE, _FSYNC):
            return errno.EIO
        if kind == _WRITE:
            place, size = _PLACE.unpack_from(body)
            octets = body[40 : 40 + size]
            self._disk[place : place + size] = octets
            os.write(self._log, _WRITTEN.pack(b"W", place, size) + octets)
            return struct.pack("<II", size, 0)
        if kind == _FSYNC:
            os.write(self._log, b"F")
        if kind == _READ:
            place, size = _PLACE.unpack_from(body)
            return bytes(self._disk[place : place + size])
        plain = {
            _INIT: struct.pack(
                "<IIIIHHIIHHI28x",
                7,
                31,
                1 << 17,
                _BIG_WRITES | _MAX_PAGES,
                12,
                9,
                _MAX_WRITE,
                1,
                256,
                0,
                0,
            ),
            _GETATTR: struct.pack("<QII", _FOR_EVER_S, 0, 0) + self._attributes(node),
            _SETATTR: struct.pack("<QII", _FOR_EVER_S, 0, 0) + self._attributes(node),
            _OPEN: struct.pack("<QII", 1, 0, 0),
            _OPENDIR: struct.pack("<QII", 1, 0, 0),
            _STATFS: struct.pack("<5Q10I", 1, 0, 0, 9, 9, 4096, 255, 4096, *[0] * 7),
        } | dict.fromkeys((_FSYNC, _RELEASE, _FLUSH, _RELEASEDIR, _DESTROY), b"")
        return plain.get(kind, errno.ENOSYS)

    def _entry(self) -> bytes:
        seconds = struct.pack("<4QII", _FILE, 1, _FOR_EVER_S, _FOR_EVER_S, 0, 0)
        return seconds + self._attributes(_FILE)

    def _attributes(self, node: int) -> bytes:
        mode, links, size = (0o40755, 2, 0) if node == _ROOT else (0o100600, 1, len(self._disk))
        blocks = (size // 512, 0, 0, 0, 0, 0, 0)
        return struct.pack("<6Q10I", node, size, *blocks, mode, links, 0, 0, 0, 4096, 0)


def serve(mount_point: str, size_bytes: int, log_path: str) -> None:
    """Serve until the file system is unmounted; a line to stdout says that it can be used."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"logged", mount_point.encode(), b"fuse", 0, options) != 0:
        raise OSError(ctypes.get_errno(), "cannot mount")
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    server, kind = _Server(size_bytes, log), 0

    def break_down(*_: object) -> None:
        server.is_broken = True

    signal.signal(signal.SIGUSR1, break_down)
    print("ready", flush=True)
    while kind != _DESTROY:
        try:
            request = os.read(device, _MAX_WRITE + 8192)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                break
            continue  # interrupted, or withdrawn
        _, kind, number, node = _HEADER.unpack_from(request)
        said = server.answer(kind, node, request[_HEADER.size :])
        if said is not None:
            octets, code = (said, 0) if isinstance(said, bytes) else (b"", -said)
            os.write(device, _ANSWER.pack(_ANSWER.size + len(octets), code, number) + octets)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
