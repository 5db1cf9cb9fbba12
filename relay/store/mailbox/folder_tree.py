"""Create, rename, move, copy and delete folders, with their subfolders and `subscriptions`.

Only directory names change, never files, and a folder keeps its id. Subfolders are renamed before
their parent, so that a repeated request completes what a crash interrupted. The file
`subscriptions` says which folders IMAP clients show. It is replaced as a whole under Dovecot's
lock, and the lines of other programs stay (version 2: a tab separates a folder from its subfolder).
If the lock stays taken, this is logged and the file is not changed.

Raises FolderError and its children, NoSuchItemError, and OSError when the disk rejects a change.
See Maildir++ and Graph's mailFolder.
"""

import errno
import shutil
import stat
from collections.abc import Callable, Container, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from relay.base.observe.logs import get_logger
from relay.store.mailbox import maildir
from relay.store.mailbox.draft_files import NewNames
from relay.store.mailbox.errors import FolderError, FolderExistsError, ProtectedFolderError
from relay.store.mailbox.folders import (
    COPY_PREFIX,
    DELETED_PREFIX,
    ROOT_ID,
    SEPARATOR,
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
from relay.store.mailbox.keywords import KEYWORDS_FILE
from relay.store.mailbox.message_file import MessageName, parse_name
from relay.store.mailbox.store_part import StorePart, in_thread
from relay.store.mailbox.stored_message import Folder, WellKnown
from relay.store.mailbox.threads import AccountQueues

_FILE = "subscriptions"
_HEADER = b"V\t2\n"
_STALE_S = 30  # Dovecot's own limit for this lock
_LISTINGS_MAX = 20  # another program may rename files faster than they are copied

_log = get_logger("mailbox")


def resubscribe(
    mailbox: Path, *, added: Sequence[str] = (), changed: Mapping[str, str] | None = None
) -> None:
    """Change the lines of some folders, each named by its directory.

    `changed` has a folder's new directory, "" for a removed one. Raises OSError.
    """
    lock = mailbox / f"{_FILE}.lock"
    if not maildir.take_lock(lock, stale_s=_STALE_S):
        _log.repeated("warning", "subscriptions locked", lock=str(lock))
        return
    try:
        before = _read(mailbox / _FILE)
        after = resubscribed(before, added=added, changed=changed or {})
        if after != before:
            maildir.replace_durably(mailbox / _FILE, after, part=mailbox / f"{_FILE}.relay")
    finally:
        maildir.remove(lock)


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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


FOLDERS_MAX = 10_000
_DELETED_NAMES_MAX = 1000


_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def _in_turn(
    method: Callable[Concatenate["FolderTree", str, _Parameters], _Result],
) -> Callable[Concatenate["FolderTree", str, _Parameters], Coroutine[Any, Any, _Result]]:
    """Make a blocking change of folders a coroutine.

    Only a few run at the same time, so that mail does not wait for them.
    """

    @wraps(method)
    def call(
        tree: "FolderTree", account: str, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> Coroutine[Any, Any, _Result]:
        return tree.changes.run(account, method, tree, account, *args, **kwargs)

    return call


class _FolderPair(Struct, frozen=True):
    """A folder's directory, the directory in which its copy is made, and the copy's final name."""

    source: Path
    temporary: Path
    directory: str
    folder_id: str


@dataclass(kw_only=True, eq=False, repr=False)
class FolderTree(StorePart):
    """The folders of all mailboxes. `parent_id` "" is the mailbox's root."""

    changes: AccountQueues  # they take long: they have threads of their own
    _stripes: maildir.Stripes = field(default_factory=maildir.Stripes, init=False)

    @in_thread
    def every(self, account: str) -> list[Folder]:
        """Return every folder, well-known ones first. Creates the mailbox on first use."""
        return self._counted(self.folders.mailbox(account), self._every(account))

    @in_thread
    def get(self, account: str, folder_id: str) -> Folder:
        """Return a folder by its id or well-known name, case-insensitively; "msgfolderroot" is the
        root.

        Raises NoSuchItemError.
        """
        folders, mailbox = self._every(account), self.folders.mailbox(account)
        if folder_id.lower() == ROOT_ID:
            return root_folder(mailbox, folders)
        return self._found(mailbox, folder_id)

    def _every(self, account: str) -> list[Folder]:
        """Return every folder without its counts.

        Clients may keep the ids. Ids that are only derived from names are therefore stored, if the
        disk allows it.
        """
        folders = list_folders(self.folders.mailbox(account))
        with suppress(OSError), self._stripes.of(account):
            write_folder_ids(folders)
        return folders

    def _found(self, mailbox: Path, folder_id: str) -> Folder:
        return self._counted(mailbox, [find_folder(mailbox, folder_id)])[0]

    def _counted(self, mailbox: Path, folders: Sequence[Folder]) -> list[Folder]:
        counts = {folder.id: folder for folder in self.index.folders(mailbox)}
        pairs = ((folder, counts.get(folder.id, folder)) for folder in folders)
        return [
            replace(folder, total=count.total, unread=count.unread, size_bytes=count.size_bytes)
            for folder, count in pairs
        ]

    @_in_turn
    def create(self, account: str, name: str, *, parent_id: str = "") -> Folder:
        """Create a folder.

        Raises NoSuchItemError, FolderExistsError, FolderError, StoreUnavailableError.
        """
        mailbox = self.folders.mailbox(account)
        with self._stripes.of(account):
            folder_id = f"f{self.names.ids.new()}"
            create_folder(mailbox, name, parent_folder(mailbox, parent_id), folder_id=folder_id)
            return find_folder(mailbox, folder_id)

    @_in_turn
    def rename(self, account: str, folder_id: str, name: str) -> Folder:
        """Rename a folder. Its id and content do not change.

        Raises ProtectedFolderError for a well-known folder, and what create() raises.
        """
        mailbox = self.folders.mailbox(account)
        with self._stripes.of(account):
            folder = _changeable(find_folder(mailbox, folder_id), "renamed")
            parent = parent_folder(mailbox, folder.parent_id)
            reject_same_name(mailbox, parent, name, but=folder)
            if folder.display_name != name:
                self._relocate(folder, directory_within(parent, encode_folder_name(name)))
        return self._found(mailbox, folder.id)

    @_in_turn
    def move(self, account: str, folder_id: str, *, parent_id: str) -> Folder:
        """Move a folder and its content into another one. Raises what rename() does."""
        mailbox = self.folders.mailbox(account)
        with self._stripes.of(account):
            folder = _changeable(find_folder(mailbox, folder_id), "moved")
            parent = parent_folder(mailbox, parent_id)
            if folder.parent_id != ("" if parent is None else parent.id):
                reject_same_name(mailbox, parent, folder.display_name)
                self._relocate(folder, directory_within(parent, own_name(mailbox, folder)))
        return self._found(mailbox, folder.id)

    @_in_turn
    def delete(self, account: str, folder_id: str, *, permanently: bool = False) -> None:
        """Move a folder to Deleted Items. If it is there, or `permanently`, remove it.

        Raises NoSuchItemError, ProtectedFolderError, FolderError, StoreUnavailableError.
        """
        mailbox = self.folders.mailbox(account)
        with self._stripes.of(account):
            folder = _changeable(find_folder(mailbox, folder_id), "deleted")
            removed: list[Path] = []
            if permanently or is_deleted(folder):
                removed = self._detach(folder)
            else:
                self.folders.recreate(mailbox, WellKnown.DELETED_ITEMS)
                parent = find_folder(mailbox, WellKnown.DELETED_ITEMS)
                self._relocate(folder, _free_directory(mailbox, parent, own_name(mailbox, folder)))
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)  # the rest is removed later as stale files

    @_in_turn
    def copy(self, account: str, folder_id: str, *, parent_id: str) -> Folder:
        """Copy a folder, with its subfolders and messages, to another folder.

        A well-known folder can be copied too. The copies are made in directories that are not
        folders, and are renamed when all of them are durable. After a crash before that, no copy is
        visible. What it left is removed later as stale files. Raises NoSuchItemError,
        FolderExistsError, FolderError, MailboxFullError, StoreUnavailableError.
        """
        mailbox = self.folders.mailbox(account)
        self.old_files.clean(mailbox)
        with self._stripes.of(account):
            folder = find_folder(mailbox, folder_id)
            pairs = self._pairs(mailbox, folder, parent_id)
            sources = {pair.source for pair in pairs}
            used = self.index.usage(mailbox, within=sources).usage
            with self.quota.room_for(
                account,
                mailbox,
                used.size_bytes,
                base_name=f"copy {pairs[0].folder_id}",
                messages=used.messages,
            ):
                self._make(mailbox, pairs)
        return self._found(mailbox, pairs[0].folder_id)

    def _pairs(self, mailbox: Path, folder: Folder, parent_id: str) -> list[_FolderPair]:
        """Return what to copy, the folder itself first. Raises FolderError, NoSuchItemError."""
        parent = parent_folder(mailbox, parent_id)
        reject_same_name(mailbox, parent, folder.display_name)
        name = encode_folder_name(folder.display_name)
        if folder.well_known is None:
            name = own_name(mailbox, folder)
        target = directory_within(parent, name)
        above = directory_within(folder, "")  # the beginning of the names of its subfolders
        if target.startswith(above):
            raise FolderError("A folder cannot be copied into itself or one of its subfolders.")
        existing = folder_directories(mailbox)
        within = sorted((child for child in existing if child.startswith(above)), key=len)
        if len(existing) + len(within) >= FOLDERS_MAX:
            raise FolderError(f"The mailbox has reached the maximum of {FOLDERS_MAX} folders.")
        named = {folder.path: target}
        named |= {mailbox / child: target + SEPARATOR + child[len(above) :] for child in within}
        for directory in named.values():
            checked_directory(directory)
        reject_existing(mailbox, named.values())
        new_id = self.names.ids.new
        return [
            _FolderPair(source, mailbox / f"{COPY_PREFIX}{new_id()}", directory, f"f{new_id()}")
            for source, directory in named.items()
        ]

    def _make(self, mailbox: Path, pairs: list[_FolderPair]) -> None:
        """Make the copies, then rename them to folders.

        When a rename fails, the folders that were renamed before it stay.
        """
        try:
            for pair in pairs:
                make_folder(pair.temporary, pair.folder_id)
                copies = copy_messages(pair.source, pair.temporary, self.names)
                states = self.index.states_in(mailbox, pair.source)
                copied = {
                    copies[base_name]: state
                    for base_name, state in states.items()
                    if base_name in copies
                }
                if copied:
                    self.index.states(mailbox).write(copied)
            for pair in pairs:
                rename_directory(pair.temporary, mailbox / pair.directory)
        except BaseException:
            for pair in pairs:
                shutil.rmtree(pair.temporary, ignore_errors=True)
            raise
        maildir.sync_directory(mailbox)
        resubscribe(mailbox, added=[pair.directory for pair in pairs])

    def _relocate(self, folder: Folder, directory: str) -> None:
        """Rename the directories of a folder and its subfolders."""
        mailbox, source = folder.path.parent, folder.path.name
        if directory.startswith(source + SEPARATOR):
            raise FolderError("A folder cannot be moved into one of its subfolders.")
        changed = {name: directory + name[len(source) :] for name in _tree(mailbox, source)}
        for name in changed.values():
            checked_directory(name)
        reject_existing(mailbox, changed.values(), but=changed)
        write_folder_ids(moved for moved in list_folders(mailbox) if moved.path.name in changed)
        _rename_all(mailbox, changed, subscribed=changed)

    def _detach(self, folder: Folder) -> list[Path]:
        """Rename a folder and its subfolders, durably, to directories that are not folders.

        Return these directories. After a crash during their removal, no folder has only half of its
        messages.
        """
        mailbox = folder.path.parent
        names = _tree(mailbox, folder.path.name)
        removed = {name: f"{DELETED_PREFIX}{self.names.ids.new()}" for name in names}
        _rename_all(mailbox, removed, subscribed=dict.fromkeys(names, ""))
        return [mailbox / name for name in removed.values()]


def create_folder(mailbox: Path, name: str, parent: Folder | None, *, folder_id: str) -> None:
    """Create a folder. Raises what FolderTree.create() raises, but OSError for the disk."""
    reject_same_name(mailbox, parent, name)
    if len(folder_directories(mailbox)) >= FOLDERS_MAX:
        raise FolderError(f"The mailbox has reached the maximum of {FOLDERS_MAX} folders.")
    directory = checked_directory(directory_within(parent, encode_folder_name(name)))
    reject_existing(mailbox, [directory])
    make_folder(mailbox / directory, folder_id)
    resubscribe(mailbox, added=[directory])


def _rename_all(
    mailbox: Path, changed: Mapping[str, str], *, subscribed: Mapping[str, str]
) -> None:
    """Rename directories, durably; after an error none is renamed."""
    with maildir.undone_after_errors() as undo:
        undo.append(partial(maildir.sync_directory, mailbox))
        for name, new_name in changed.items():
            rename_directory(mailbox / name, mailbox / new_name)
            undo.append(partial(rename_directory, mailbox / new_name, mailbox / name))
        maildir.sync_directory(mailbox)
        resubscribe(mailbox, changed=subscribed)


def parent_folder(mailbox: Path, parent_id: str) -> Folder | None:
    """Return the parent folder, None for the mailbox's root."""
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
        is_same = same_name(folder.display_name, display_name) and folder.parent_id == parent_id
        if is_same and (but is None or folder.id != but.id):
            raise _existing(display_name)


def reject_existing(mailbox: Path, directories: Iterable[str], *, but: Container[str] = ()) -> None:
    """Reject existing directories, also those of well-known folders: `.Sent` is Sent Items."""
    for name in directories:
        if name not in but and (mailbox / name / "cur").is_dir():
            raise _existing(name[1:])


def _existing(name: str) -> FolderExistsError:
    return FolderExistsError(f"A folder with the specified name already exists: {name!r}.")


def own_name(mailbox: Path, folder: Folder) -> str:
    """Return the part of the folder's directory name that follows its parents, as one name."""
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
    """Return the directories of a folder's subfolders, and then the folder's directory."""
    names = folder_directories(mailbox)
    within = [name for name in names if name.startswith(directory + SEPARATOR)]
    return [*sorted(within, key=len, reverse=True), directory]


def rename_directory(source: Path, target: Path) -> None:
    """Rename a folder's directory. Raises FolderExistsError if the target exists."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            raise _existing(target.name[1:]) from error
        raise


def copy_messages(source: Path, target: Path, names: NewNames) -> Mapping[str, str]:
    """Copy the messages of a folder to the directory `target`, durably. Return the ids of the
    copies, by the base name of the original.

    A message that other programs rename meanwhile is copied once; one that they remove may be
    copied or not.
    """
    with suppress(FileNotFoundError):
        shutil.copyfile(source / KEYWORDS_FILE, target / KEYWORDS_FILE)
    done: dict[str, str] = {}
    for _ in range(_LISTINGS_MAX):
        if not _copy_once(source, target, names, done=done):
            break
    maildir.sync_directory(target / "cur")
    return done


def _copy_once(source: Path, target: Path, names: NewNames, *, done: dict[str, str]) -> bool:
    """Copy the messages that are not `done`; return whether one was renamed meanwhile."""
    was_renamed = False
    for directory in (source / "new", source / "cur"):
        for file_name in maildir.list_names(directory):
            name = parse_name(file_name)
            if name is None or name.base_name in done:
                continue
            try:
                base_name = names.of_copy(name)
                _copy(directory / file_name, target, name, base_name=base_name)
                copied = parse_name(base_name)
                assert copied is not None
                done[name.base_name] = copied.message_id
            except FileNotFoundError:
                was_renamed = True
    return was_renamed


def _copy(file: Path, target: Path, name: MessageName, *, base_name: str) -> None:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        return
    copy = target / "cur" / f"{base_name},S={status.st_size}:2,{name.flags}"
    maildir.place(file, copy)
