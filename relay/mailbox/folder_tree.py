"""Create, rename, move and delete folders with their subfolders, and keep `subscriptions` right.

Only directory names change, never files, and a folder keeps its id. Subfolders are renamed before
their parent, so that a repeated request completes what a crash interrupted. The file
`subscriptions` says which folders IMAP clients show; it is replaced as a whole under Dovecot's
lock, and other programs' lines stay (version 2: a tab separates a folder from its subfolder). If
the lock stays taken, this is logged and the file is not changed.

Raises FolderError and its children, NoSuchItemError, and OSError when the disk rejects a change.
See Maildir++ and Graph's mailFolder.
"""

import errno
import shutil
import threading
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from relay.clock import Ids
from relay.mailbox.folders import (
    DELETED_PREFIX,
    ROOT_ID,
    SEPARATOR,
    Folders,
    as_single_name,
    checked_directory,
    directory_within,
    encode_folder_name,
    find_folder,
    folder_directories,
    is_deleted,
    list_folders,
    make_folder,
    root_folder,
    same_name,
    write_folder_ids,
)
from relay.mailbox.maildir import Stripes, remove, sync_directory, write_synced
from relay.mailbox.types import (
    Folder,
    FolderError,
    FolderExistsError,
    ProtectedFolderError,
    WellKnown,
)
from relay.observe.logs import get_logger

_FILE = "subscriptions"
_HEADER = b"V\t2\n"
_LOCK_ATTEMPTS = 20
_LOCK_PAUSE_S = 0.05
_STALE_S = 30  # Dovecot's own limit for this lock

_log = get_logger("mailbox")


def resubscribe(
    mailbox: Path, *, added: Sequence[str] = (), changed: Mapping[str, str] | None = None
) -> None:
    """Change the lines of some folders, each named by its directory.

    `changed` has a folder's new directory, "" for a removed one. Raises OSError.
    """
    lock = mailbox / f"{_FILE}.lock"
    if not _lock(lock):
        _log.warning("subscriptions locked", lock=str(lock))
        return
    fresh = mailbox / f"{_FILE}.relay"
    try:
        before = _read(mailbox / _FILE)
        after = resubscribed(before, added=added, changed=changed or {})
        if after != before:
            remove(fresh)  # left by a crash; we hold the lock
            write_synced(fresh, after)
            fresh.rename(mailbox / _FILE)
            sync_directory(mailbox)
    finally:
        remove(fresh)
        remove(lock)


def resubscribed(content: bytes, *, added: Sequence[str], changed: Mapping[str, str]) -> bytes:
    """Return the file's content after a change."""
    content = content or _HEADER + b"\n"
    separator = b"\t" if content.startswith(_HEADER) else b"."
    lines = content.removesuffix(b"\n").split(b"\n")
    renamed = {
        _line(old, separator): _line(new, separator) if new else None
        for old, new in changed.items()
    }
    kept = [new for line in lines if (new := renamed.get(line, line)) is not None]
    kept += [_line(name, separator) for name in added]
    return b"\n".join(dict.fromkeys(kept)) + b"\n"  # a line of another program may be the same


def _line(directory: str, separator: bytes) -> bytes:
    return directory[1:].encode("utf-8", "surrogateescape").replace(b".", separator)


def _lock(lock: Path) -> bool:
    """Take the lock, also one that a crash left; return False if another program holds it."""
    for _ in range(_LOCK_ATTEMPTS):
        with suppress(FileExistsError):
            write_synced(lock, b"")
            return True
        with suppress(FileNotFoundError):
            if _now_s(lock) - lock.stat().st_mtime > _STALE_S:
                remove(lock)
                continue
        threading.Event().wait(_LOCK_PAUSE_S)
    return False


def _now_s(lock: Path) -> float:
    """Return the current time of the file system that holds the lock."""
    probe = lock.with_suffix(".probe")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        remove(probe)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


_EXISTS = frozenset((errno.EEXIST, errno.ENOTEMPTY))
FOLDERS_MAX = 10_000
_DELETED_NAMES_MAX = 1000


class FolderTree:
    """Changes folders. Blocking; the store calls it in its threads."""

    def __init__(self, folders: Folders, ids: Ids) -> None:
        self._folders = folders
        self._ids = ids
        self._stripes = Stripes()  # one change of a mailbox's folders at a time

    def every(self, account: str) -> list[Folder]:
        """Return every folder without its counts.

        Clients may keep the ids. Ids that are only derived from names are therefore stored, if the
        disk allows it.
        """
        folders = list_folders(self._folders.mailbox(account))
        with suppress(OSError), self._stripes.of(account):
            write_folder_ids(folders)
        return folders

    def find(self, account: str, folder_id: str) -> Folder:
        """See MailStore.get_folder(); the counts are not set."""
        folders = self.every(account)
        mailbox = self._folders.mailbox(account)
        if folder_id.lower() == ROOT_ID:
            return root_folder(mailbox, folders)
        return find_folder(mailbox, folder_id)

    def create(self, account: str, name: str, *, parent_id: str = "") -> Folder:
        """See MailStore.create_folder()."""
        mailbox = self._folders.mailbox(account)
        with self._stripes.of(account):
            parent = parent_folder(mailbox, parent_id)
            reject_same_name(mailbox, parent, name)
            if len(folder_directories(mailbox)) >= FOLDERS_MAX:
                raise FolderError(f"The mailbox has reached the maximum of {FOLDERS_MAX} folders.")
            directory = checked_directory(directory_within(parent, encode_folder_name(name)))
            reject_existing(mailbox, [directory])
            folder_id = f"f{self._ids.new()}"
            make_folder(mailbox / directory, folder_id)
            resubscribe(mailbox, added=[directory])
            return find_folder(mailbox, folder_id)

    def lock_of(self, account: str) -> threading.Lock:
        """Return the lock of the changes of an account's folders."""
        return self._stripes.of(account)

    def rename(self, account: str, folder_id: str, name: str) -> Folder:
        """See MailStore.rename_folder()."""
        mailbox = self._folders.mailbox(account)
        with self._stripes.of(account):
            folder = _changeable(find_folder(mailbox, folder_id), "renamed")
            parent = parent_folder(mailbox, folder.parent_id)
            reject_same_name(mailbox, parent, name, but=folder)
            if folder.display_name != name:
                self._relocate(folder, directory_within(parent, encode_folder_name(name)))
            return find_folder(mailbox, folder.id)

    def move(self, account: str, folder_id: str, parent_id: str) -> Folder:
        """See MailStore.move_folder()."""
        mailbox = self._folders.mailbox(account)
        with self._stripes.of(account):
            folder = _changeable(find_folder(mailbox, folder_id), "moved")
            parent = parent_folder(mailbox, parent_id)
            if folder.parent_id != ("" if parent is None else parent.id):
                reject_same_name(mailbox, parent, folder.display_name)
                self._relocate(folder, directory_within(parent, own_name(mailbox, folder)))
            return find_folder(mailbox, folder.id)

    def delete(self, account: str, folder_id: str, *, permanently: bool = False) -> None:
        """See MailStore.delete_folder()."""
        mailbox = self._folders.mailbox(account)
        with self._stripes.of(account):
            folder = _changeable(find_folder(mailbox, folder_id), "deleted")
            removed: list[Path] = []
            if permanently or is_deleted(folder):
                removed = self._detach(folder)
            else:
                self._folders.recreate(mailbox, WellKnown.DELETED_ITEMS)
                parent = find_folder(mailbox, WellKnown.DELETED_ITEMS)
                self._relocate(folder, _free_directory(mailbox, parent, own_name(mailbox, folder)))
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)  # the rest is removed later as stale files

    def _relocate(self, folder: Folder, directory: str) -> None:
        """Rename the directories of a folder and its subfolders."""
        mailbox, source = folder.path.parent, folder.path.name
        if directory.startswith(source + SEPARATOR):
            raise FolderError("A folder cannot be moved into one of its subfolders.")
        changed = {name: directory + name[len(source) :] for name in _tree(mailbox, source)}
        for name in changed.values():
            checked_directory(name)
        reject_existing(mailbox, changed.values(), but=changed)
        write_folder_ids(one for one in list_folders(mailbox) if one.path.name in changed)
        for name, new_name in changed.items():
            rename_directory(mailbox / name, mailbox / new_name)
        sync_directory(mailbox)
        resubscribe(mailbox, changed=changed)

    def _detach(self, folder: Folder) -> list[Path]:
        """Durably rename a folder and its subfolders to directories that are no folders.

        Return them. A crash while they are removed leaves no folder with half of its messages.
        """
        mailbox = folder.path.parent
        names = _tree(mailbox, folder.path.name)
        removed = [mailbox / f"{DELETED_PREFIX}{self._ids.new()}" for _ in names]
        for name, path in zip(names, removed, strict=True):
            (mailbox / name).rename(path)
        sync_directory(mailbox)
        resubscribe(mailbox, changed=dict.fromkeys(names, ""))
        return removed


def parent_folder(mailbox: Path, parent_id: str) -> Folder | None:
    """Return the parent folder, None for the root."""
    if parent_id.lower() in ("", ROOT_ID):
        return None
    return find_folder(mailbox, parent_id)


def _changeable(folder: Folder, what: str) -> Folder:
    if folder.well_known is not None:
        raise ProtectedFolderError(f"The folder {folder.display_name!r} cannot be {what}.")
    return folder


def reject_same_name(
    mailbox: Path, parent: Folder | None, display_name: str, *, but: Folder | None = None
) -> None:
    """Raise FolderExistsError if another folder in `parent` has that name, in any case."""
    parent_id = "" if parent is None else parent.id
    for folder in list_folders(mailbox):
        if folder.parent_id != parent_id or (but is not None and folder.id == but.id):
            continue
        if same_name(folder.display_name, display_name):
            raise _existing(display_name)


def reject_existing(mailbox: Path, directories: Iterable[str], *, but: Container[str] = ()) -> None:
    """Reject existing directories, also those of well-known folders: `.Sent` is Sent Items."""
    for name in directories:
        if name not in but and (mailbox / name / "cur").is_dir():
            raise _existing(name[1:])


def _existing(name: str) -> FolderExistsError:
    return FolderExistsError(f"A folder with the specified name already exists: {name!r}.")


def own_name(mailbox: Path, folder: Folder) -> str:
    """Return the folder's own part of its directory's name, as one name."""
    parent = parent_folder(mailbox, folder.parent_id)
    above = directory_within(parent, "")
    return as_single_name(folder.path.name[len(above) :])


def _free_directory(mailbox: Path, parent: Folder, name: str) -> str:
    """Return a new directory name within `parent`; with a number if `name` exists."""
    for number in range(1, _DELETED_NAMES_MAX):
        directory = directory_within(parent, name if number == 1 else f"{name} ({number})")
        if not (mailbox / directory).exists():
            return directory
    raise _existing(name)


def _tree(mailbox: Path, directory: str) -> list[str]:
    """Return the directories of a folder and its subfolders, the folder's own last."""
    names = folder_directories(mailbox)
    within = [name for name in names if name.startswith(directory + SEPARATOR)]
    return [*sorted(within, key=len, reverse=True), directory]


def rename_directory(source: Path, target: Path) -> None:
    """Rename a folder's directory. Raises FolderExistsError if the target exists."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in _EXISTS:
            raise _existing(target.name[1:]) from error
        raise
