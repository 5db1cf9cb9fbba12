"""Copy a folder with its subfolders and all messages.

The copies are made in directories that are no folders, and appear by a rename when all of them are
durable: a crash before leaves nothing that is shown, and the remains are removed later as stale
files. Each copied message has its own id. A message that other programs rename meanwhile is copied
once; one that they remove may be copied or not.

Raises NoSuchItemError, FolderError, FolderExistsError, MailboxFullError, and OSError when the disk
rejects a change. See Maildir++ and Graph's mailFolder: copy.
"""

import os
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from relay.mailbox.dependencies import StoreDependencies
from relay.mailbox.folder_tree import (
    FOLDERS_MAX,
    FolderTree,
    own_name,
    parent_folder,
    reject_existing,
    reject_same_name,
    rename_directory,
    resubscribe,
)
from relay.mailbox.folders import (
    COPY_PREFIX,
    SEPARATOR,
    checked_directory,
    directory_within,
    encode_folder_name,
    find_folder,
    folder_directories,
    make_folder,
)
from relay.mailbox.maildir import list_names, place_again, sync_directory
from relay.mailbox.message_file import MessageName, delivered_id, make_base_name, parse_name
from relay.mailbox.moving import KEYWORDS_FILE
from relay.mailbox.stale_files import StaleFiles
from relay.mailbox.types import Folder, FolderError

_LISTINGS_MAX = 20  # another program may rename files faster than they are copied


@dataclass(frozen=True, slots=True)
class _FolderPair:
    """A folder's directory, the directory in which its copy is made, and the copy's final name."""

    source: Path
    temporary: Path
    directory: str
    folder_id: str


class FolderCopier:
    """Copies folders. Blocking; the store calls it in its threads."""

    def __init__(
        self, shared: StoreDependencies, tree: FolderTree, stale_files: StaleFiles
    ) -> None:
        self._shared = shared
        self._tree = tree
        self._stale_files = stale_files

    def copy(self, account: str, folder_id: str, *, parent_id: str) -> Folder:
        """See MailStore.copy_folder()."""
        mailbox = self._shared.folders.mailbox(account)
        self._stale_files.clean(mailbox)
        with self._tree.lock_of(account):
            folder = find_folder(mailbox, folder_id)
            pairs = self._pairs(mailbox, folder, parent_id)
            sources = {pair.source for pair in pairs}
            counted = [one for one in self._shared.index.folders(mailbox) if one.path in sources]
            with self._shared.quota.room_for(
                account,
                mailbox,
                sum(one.size_bytes for one in counted),
                base_name=f"copy {pairs[0].folder_id}",
                messages=sum(one.total for one in counted),
            ):
                self._make(mailbox, pairs)
            return find_folder(mailbox, pairs[0].folder_id)

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
        within = sorted((one for one in existing if one.startswith(above)), key=len)
        if len(existing) + len(within) >= FOLDERS_MAX:
            raise FolderError(f"The mailbox has reached the maximum of {FOLDERS_MAX} folders.")
        named = {folder.path: target}
        named |= {mailbox / one: target + SEPARATOR + one[len(above) :] for one in within}
        for directory in named.values():
            checked_directory(directory)
        reject_existing(mailbox, named.values())
        new_id = self._shared.ids.new
        return [
            _FolderPair(source, mailbox / f"{COPY_PREFIX}{new_id()}", directory, f"f{new_id()}")
            for source, directory in named.items()
        ]

    def _make(self, mailbox: Path, pairs: list[_FolderPair]) -> None:
        """Make the copies, then show them. If that fails, those that are shown already stay."""
        try:
            for pair in pairs:
                make_folder(pair.temporary, pair.folder_id)
                self._fill(pair.source, pair.temporary)
            for pair in pairs:
                rename_directory(pair.temporary, mailbox / pair.directory)
        except BaseException:
            for pair in pairs:
                shutil.rmtree(pair.temporary, ignore_errors=True)
            raise
        sync_directory(mailbox)
        resubscribe(mailbox, added=[pair.directory for pair in pairs])

    def _fill(self, source: Path, target: Path) -> None:
        """Copy the messages of a folder, durably."""
        with suppress(FileNotFoundError):
            shutil.copyfile(source / KEYWORDS_FILE, target / KEYWORDS_FILE)
        done: set[str] = set()
        for _ in range(_LISTINGS_MAX):
            if not self._fill_once(source, target, done):
                break
        sync_directory(target / "cur")

    def _fill_once(self, source: Path, target: Path, done: set[str]) -> bool:
        """Copy the messages that are not `done`; return whether one was renamed meanwhile."""
        was_renamed = False
        for directory in (source / "new", source / "cur"):
            for file_name in list_names(directory):
                name = parse_name(file_name)
                if name is None or name.base_name in done:
                    continue
                try:
                    self._copy(directory / file_name, target, name)
                    done.add(name.base_name)
                except FileNotFoundError:
                    was_renamed = True
        return was_renamed

    def _copy(self, file: Path, target: Path, name: MessageName) -> None:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            return
        base_name = make_base_name(
            # no clock id, so that the time of receipt is the original's
            delivered_id(self._shared.ids.new()),
            1,
            time_us=name.seconds * 1_000_000,
            hostname=self._shared.hostname,
        )
        copy = target / "cur" / f"{base_name},S={status.st_size}:2,{name.flags}"
        if not place_again(file, copy):
            os.utime(copy, ns=(status.st_mtime_ns, status.st_mtime_ns))
