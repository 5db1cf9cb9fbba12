"""The mail root: the directory of all mailboxes, and whether its path still leads to it.

A file system can be unmounted and a directory renamed at any time; another directory may then be
at the path, even with old mailboxes in it. So the root that a start has opened stays open, and
check() compares it with what the path leads to. The store calls it before each call, and after
each sync of a directory. Once it fails, the root counts as missing until reopen().

The id of the root is in `.submissions/id`; a copy of the root has the same id. The spool records
to which root it delivered, and a start takes no other root. A copy from before the start, such as
one below a mount point, is not taken for the root. The file `.submissions/session` shows this,
because it names the start. docs/design.md 3.
"""

import errno
import os
import re
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from relay.base.files import replace_file
from relay.base.observe.logs import get_logger
from relay.store.mailbox import maildir

SUBMISSIONS = ".submissions"
NEW_ID = "new"
_ID_FILE = "id"
_SESSION_FILE = "session"
_ID = re.compile(r"[0-9a-f]{16}")
_ID_BYTES = 8
_PROBE = b"\0" * 4096
_OF_THE_DISK = frozenset((errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT))
_READ_BYTES = 100

_log = get_logger("mailbox")


class ForeignRootError(ValueError):
    """The mail root is missing, cannot be used, or is not the one that the spool knows (exit code
    78).
    """


class MailRoot:
    """One mail root. check() and `trouble` may be called in any thread."""

    def __init__(self, path: Path, *, take_lock: Callable[[Path], int] | None = None) -> None:
        """`take_lock` locks a file and returns its descriptor; without it there is no lock."""
        self.path = path
        self.id = ""
        self.trouble = "it was not opened yet"  # why it counts as missing; "" while it is there
        self._name = os.fspath(path)
        self._take_lock = take_lock
        self._known_id, self._may_take = "", False
        self._directory: int | None = None
        self._identity = (-1, -1)  # device and inode
        self._lock_file: int | None = None
        self._session = ""  # of this start
        self.fault = ""  # why all writes fail; "" if they do not
        self._has_failed = False  # a call, since the last probe
        self._noting = threading.Lock()

    def open(self, known_id: str, *, may_take: bool) -> None:
        """Open and lock the root with the id `known_id`.

        Without a known id, open a root that has submissions; with `may_take`, open any directory,
        or create it. A crash leaves nothing that the next start refuses. First the root is created,
        then `.submissions`, then the id is written, each durably. At last the caller records `id`
        in the spool. If the disk fails, the root counts as missing, and reopen() tries again.
        Raises ForeignRootError, and what `take_lock` raises except OSError.
        """
        self._known_id, self._may_take = known_id, may_take
        try:
            self._open()
        except OSError as error:
            self.trouble = error.strerror or str(error)
            _log.error("the mail root cannot be used", path=self._name, reason=self.trouble)

    def check_id(self, known_id: str) -> None:
        """Raise ForeignRootError if this is not the root with the id `known_id`; "" is any."""
        if known_id and known_id != self.id:
            self._known_id = known_id
            raise self._foreign(f"it has the id {self.id}")

    def reopen(self) -> bool:
        """Open a root that was missing, if it is back. Raises what `take_lock` raises."""
        try:
            self._open()
        except (OSError, ForeignRootError):
            return False
        _log.info("the mail root is back", path=self._name, id=self.id)
        return True

    def check(self) -> None:
        """Raise MissingRootError unless the path leads to the root that was opened."""
        if self.trouble:
            raise maildir.MissingRootError
        try:
            status = os.stat(self._name)  # noqa: PTH116 - called for each message
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            if (status.st_dev, status.st_ino) == self._identity:
                return
            reason = "another directory is at its path"
        with self._noting:
            if not self.trouble:
                self.trouble = reason
                _log.error(
                    "the mail root is missing: local mail waits until it is back",
                    path=self._name,
                    id=self.id,
                    reason=reason,
                )
        raise maildir.MissingRootError

    def is_there(self) -> bool:
        """Whether check() raises nothing."""
        with suppress(maildir.MissingRootError):
            self.check()
            return True
        return False

    def note_failure(self, error: OSError) -> None:
        """Record that a call of the store has failed; probe() finds out whether all calls fail."""
        self._has_failed |= error.errno in _OF_THE_DISK

    def attend(self) -> bool:
        """Return whether the root is there. After a failure, probe() it. Called each second."""
        is_there = self.is_there()
        if is_there and (self._has_failed or self.fault):
            self.probe()
        return is_there

    def probe(self) -> None:
        """Write a file, and set `fault` while that fails.

        The log gets one line when the failures begin, and one when they end.
        """
        self._has_failed = False
        path = self.path / SUBMISSIONS / "probe"
        try:
            maildir.remove(path)
            maildir.write_synced(path, _PROBE)
            maildir.remove(path)
        except OSError as error:
            reason = error.strerror or str(error)
            if not self.fault:
                _log.error(
                    "the mail store refuses all writes: local mail waits until it works again",
                    path=self._name,
                    reason=reason,
                )
            self.fault = reason
        else:
            if self.fault:
                _log.info("the mail store works again", path=self._name)
            self.fault = ""

    def close(self) -> None:
        """Close the root and release its lock."""
        self.trouble = "it was closed"
        for descriptor in (self._directory, self._lock_file):
            if descriptor is not None:
                os.close(descriptor)
        self._directory = self._lock_file = None

    def _open(self) -> None:
        if not self._known_id:
            self._make()
        try:
            descriptor = os.open(self._name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._foreign(f"{error.strerror}: is its file system mounted?") from None
        try:
            status = os.fstat(descriptor)
            identity = (status.st_dev, status.st_ino)
            root_id = self._checked_id()
            if self._session and identity != self._identity:
                self._check_session()
            self._lock()
            if not root_id:
                root_id = write_id(self.path)
            if not self._session:
                self._begin_session()
        except BaseException:
            os.close(descriptor)
            raise
        old, self._directory = self._directory, descriptor
        if old is not None:
            os.close(old)
        self._identity = identity
        self.id = self._known_id = root_id
        self.trouble = ""

    def _checked_id(self) -> str:
        root_id = read_id(self.path)
        if self._known_id and root_id != self._known_id:
            has = f"the id {root_id}" if root_id else "no id"
            raise self._foreign(f"it has {has}", accept=root_id or NEW_ID)
        return root_id

    def _check_session(self) -> None:
        if (self.path / SUBMISSIONS / _SESSION_FILE).read_text() != self._session:
            raise self._foreign("it is a copy from before the start of the relay")

    def _begin_session(self) -> None:
        """Mark the root as opened by this start.

        The mark is not synced, because it is used only while the process runs.
        """
        session = secrets.token_hex(_ID_BYTES)
        with suppress(OSError):  # without the mark, only the inode identifies the root
            (self.path / SUBMISSIONS / _SESSION_FILE).write_text(session)
        self._session = session

    def _make(self) -> None:
        if (self.path / SUBMISSIONS).is_dir():
            return
        if not self._may_take:
            raise self._foreign(f"it has no {SUBMISSIONS}", accept=NEW_ID)
        _make_with_parents(self.path)
        maildir.make_directory(self.path / SUBMISSIONS)

    def _foreign(self, reason: str, *, accept: str = "") -> ForeignRootError:
        known = f"the one with the id {self._known_id}" if self._known_id else "the one used before"
        how = f"; `relay storage adopt {accept}` accepts it" if accept else ""
        return ForeignRootError(f"mailboxes.root: {self._name} is not {known}: {reason}{how}")

    def _lock(self) -> None:
        """Lock the root. A read-only root needs no lock."""
        path = self.path / SUBMISSIONS / "lock"
        if self._take_lock is None or (self._lock_file is not None and _is(path, self._lock_file)):
            return
        with suppress(OSError):
            old, self._lock_file = self._lock_file, self._take_lock(path)
            if old is not None:
                os.close(old)


def read_id(root: Path) -> str:
    """Return the id of the root at a path, "" if it has none. Raises OSError."""
    try:
        with (root / SUBMISSIONS / _ID_FILE).open("rb") as file:
            text = file.read(_READ_BYTES).decode("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return text if _ID.fullmatch(text) else ""


def write_id(root: Path) -> str:
    """Give the root at a path a new id, durably, and return it. Raises OSError."""
    maildir.make_directory(root / SUBMISSIONS)
    root_id = secrets.token_hex(_ID_BYTES)
    replace_file(root / SUBMISSIONS / _ID_FILE, f"{root_id}\n".encode(), mode=0o600)
    return root_id


def _make_with_parents(path: Path) -> None:
    if not path.is_dir():
        _make_with_parents(path.parent)
        maildir.make_directory(path)


def _is(path: Path, descriptor: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False
