"""The file that `relay sendmail` leaves for a relay that is down: how it is written and opened.

Every user may write into the drop directory, so only the owner of a file is trusted: the owner is
the sender. The name is not trusted, and the file may change while it is read. The first line is the
envelope as JSON, the rest is the content. A file whose name begins with a dot is being written. A
name that ends with a key of KEY_PARAMETER is of a message that may be accepted already.
"""

import errno
import os
import stat
from contextlib import suppress
from io import BufferedReader, FileIO
from pathlib import Path

import msgspec
from msgspec import Struct

from relay.base.files import write_all
from relay.base.message.envelope import is_key
from relay.base.phrases import shown

PART = "."
MODE = 0o640  # the group is that of the directory: the relay's
DROP_MODE = 0o3733  # of the directory: others cannot list it, or remove files of other users
FILE_BYTES_MAX = 100_000_000
RECIPIENTS_MAX = 1000
Identity = tuple[int, int, int]  # device, inode, time of the last change
LINE_BYTES_MAX = 1 << 20
# O_NONBLOCK: opening a FIFO must not wait for a writer.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# a link, closed to us, a socket, a directory
_NOT_OURS = (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.EISDIR)


class DroppedEnvelope(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The first line; addresses without a domain get the domain of the relay."""

    sender: str
    recipients: tuple[str, ...]
    notify: str = ""  # of NOTIFY, for all recipients; "": none
    ret: str = ""  # of RET
    envid: str = ""  # of ENVID

    @property
    def line(self) -> bytes:
        """The first line."""
        return msgspec.json.encode(self) + b"\n"


class HostileFileError(Exception):
    """The file is not one that `relay sendmail` writes."""


def submission_key(uid: int, key: str) -> str:
    """Return the submission key of a message that a user sends with this KEY_PARAMETER."""
    return f"sendmail-{uid}-{key}"


def key_of_name(name: str, facts: os.stat_result) -> str:
    """Return the submission key of a file that drop_mail() wrote, "" for another name."""
    key = name.rpartition("-")[2]
    return submission_key(facts.st_uid, key) if is_key(key) else ""


def identity_of(facts: os.stat_result) -> Identity:
    """Return values that differ for another file of the same name."""
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns


class DroppedFile:
    """An open file of the drop directory, at the beginning of its content. The caller closes it."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises FileNotFoundError, HostileFileError, OSError."""
        self._name = path.name
        if path.name.startswith(PART):
            raise HostileFileError("it was not finished")
        try:
            opened = FileIO(path, opener=lambda name, _: os.open(name, _FLAGS))
        except OSError as error:
            if error.errno in _NOT_OURS:
                raise HostileFileError(f"it cannot be opened: {error.strerror}") from None
            raise
        self._file = BufferedReader(opened)
        try:
            self._facts = os.fstat(self._file.fileno())
            self._check()
            self.line = self._file.readline(LINE_BYTES_MAX)  # the envelope as it is written
            self.envelope = self._read_envelope()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def uid(self) -> int:
        """The uid of the user who wrote it, from the kernel."""
        return self._facts.st_uid

    @property
    def size(self) -> int:
        """The octets of the file."""
        return self._facts.st_size

    @property
    def key(self) -> str:
        """See key_of_name()."""
        return key_of_name(self._name, self._facts)

    @property
    def identity(self) -> Identity:
        """Which file it is."""
        return identity_of(self._facts)

    def read(self, size: int) -> bytes:
        """Return the next octets of the content, which do not end between CR and LF.

        Raises HostileFileError at its end if the file was changed meanwhile.
        """
        octets = self._file.read(size)
        if octets.endswith(b"\r"):
            octets += self._file.read(1)
        before, now = self._facts, os.fstat(self._file.fileno())
        is_changed = (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (
            before.st_size,
            before.st_mtime_ns,
            before.st_ctime_ns,
        )
        if is_changed:
            raise HostileFileError("it was changed while it was read")
        return octets

    def _check(self) -> None:
        facts = self._facts
        if not stat.S_ISREG(facts.st_mode):
            raise HostileFileError("it is no regular file")
        if facts.st_nlink != 1:
            raise HostileFileError(f"it has {facts.st_nlink} names, expected one")
        if (mode := stat.S_IMODE(facts.st_mode)) != MODE:
            raise HostileFileError(f"it has the mode {mode:04o}, expected {MODE:04o}")
        if facts.st_size > FILE_BYTES_MAX:
            raise HostileFileError(f"it has more than {FILE_BYTES_MAX // 1_000_000} MB")

    def _read_envelope(self) -> DroppedEnvelope:
        try:
            envelope = msgspec.json.decode(self.line, type=DroppedEnvelope)
        except ValueError as error:
            raise HostileFileError(f"its first line is no envelope: {shown(str(error))}") from None
        if not 0 < len(envelope.recipients) <= RECIPIENTS_MAX:
            count = len(envelope.recipients)
            raise HostileFileError(f"it has {count} recipients, expected 1 to {RECIPIENTS_MAX}")
        return envelope


def drop_mail(directory: Path, envelope: DroppedEnvelope, content: bytes, *, name: str) -> None:
    """Leave a message in the drop directory, durably. Raises OSError.

    Relays of 0.4.0 take any `name` without a dot in front, so the key is there and not in the file.

    A user who may not read the directory cannot sync it. The second sync of the file makes its new
    name durable too.
    """
    part = directory / f"{PART}{name}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    number = os.open(part, flags, 0o600)
    try:
        write_all(number, envelope.line + content)
        os.fsync(number)
        os.fchmod(number, MODE)
        part.rename(directory / name)
        os.fsync(number)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    finally:
        os.close(number)
