"""Check one mailbox: its directories, messages, subscriptions, states and index.

Folders that other programs created are checked too. Memory grows with the number of messages in one
folder. A file or directory that cannot be read is a finding, not an error. See Maildir++.
"""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from relay.base.clock import Clock, Ids
from relay.base.phrases import counted
from relay.mailbox.folder_tree import resubscribe
from relay.mailbox.folders import DIRECTORIES, MARKER, list_folders, read_folder_id, write_folder_id
from relay.mailbox.index.consistency import (
    check_file,
    compare,
    find_file,
    index_path,
)
from relay.mailbox.index.database import (
    IndexDamagedError,
    IndexUnusableError,
    remove_database,
)
from relay.mailbox.maildir import list_names, remove, write_synced
from relay.mailbox.message_file import (
    MessageName,
    delivered_id,
    is_draft_file,
    make_base_name,
    parse_name,
)
from relay.mailbox.state_file import FILE_NAME as STATES
from relay.mailbox.state_file import state_faults
from relay.mailbox.types import Folder, StoreError
from relay.mailbox.verify.check_messages import MessageCheck, owner_fault
from relay.mailbox.verify.findings import (
    QuietPeriod,
    Repair,
    Repairer,
    StoreCounts,
    StoreFault,
    StoreFindingKind,
    create_directory,
    remove_file,
    rename_file,
)

_COMPARISONS = 3


class IndexCheck:
    """Checks indexes; with `full` it reads every octet of them."""

    def __init__(
        self, repairer: Repairer, quiet_period: QuietPeriod, *, clock: Clock, full: bool
    ) -> None:
        self._repairer = repairer
        self._quiet_period = quiet_period
        self._clock = clock
        self._full = full

    def check(self, mailbox: Path) -> bool:
        """Check a mailbox's index; return whether it exists.

        A damaged one is removed: it is a cache, and its next use builds it.
        """
        path = index_path(mailbox)
        if not path.exists():
            return False
        try:
            found = self._fault(mailbox)
        except (IndexUnusableError, StoreError) as error:
            fault = StoreFault(StoreFindingKind.UNREADABLE, path, str(error), "a usable index")
            self._repairer.handle(fault)
        else:
            if found:
                expected = "the state of the files"
                fault = StoreFault(StoreFindingKind.DAMAGED_INDEX, path, found, expected)
                self._repairer.handle(fault, _remove_index(path))
        return True

    def _fault(self, mailbox: Path) -> str:
        """Return what every comparison finds, "" if nothing; other processes may use the mailbox.

        An update is a change: a dry run reads the file only.
        """
        try:
            check_file(mailbox, full=self._full)
            found = set() if self._repairer.dry_run else compare(mailbox, self._clock)
            for _ in range(_COMPARISONS - 1):
                if found:
                    self._quiet_period.wait_since(self._clock.file_time_us() / 1_000_000)
                    found &= compare(mailbox, self._clock)
        except IndexDamagedError as error:
            return str(error)
        return f"{counted(len(found), 'difference')}, one at {min(found)}" if found else ""


def _remove_index(path: Path) -> Repair:
    def act() -> None:
        if not remove_database(path):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    return Repair("removed", act)


_STATES_EXPECTED = (  # an old log would be written into a file that is put back
    "the states of messages; while Relay is stopped, remove it with its -wal and -shm, and put it"
    " back from a backup"
)
_SUBSCRIPTIONS = "subscriptions"
_SUBSCRIPTIONS_BYTES_MAX = 16 << 20
_TEXT = frozenset((0x09, 0x0A, 0x0D))


class MailboxCheck:
    """Checks mailboxes.

    `hostname` is used in new names of copies. `owner` is the expected owner of all files.
    """

    def __init__(
        self,
        repairer: Repairer,
        quiet_period: QuietPeriod,
        *,
        messages: MessageCheck,
        indexes: IndexCheck,
        ids: Ids,
        hostname: str,
        owner: int,
        counts: StoreCounts,
    ) -> None:
        self._repairer = repairer
        self._quiet_period = quiet_period
        self._messages = messages
        self._indexes = indexes
        self._ids = ids
        self._hostname = hostname
        self._owner = owner
        self._counts = counts

    def check(self, mailbox: Path) -> None:
        """Check a mailbox, if there is one."""
        if not _is_mailbox(mailbox):
            return
        self._counts.mailboxes += 1
        for check in (
            self._check_directories,
            self._check_owners,
            self._check_folder_ids,
            self._check_messages,
            self._check_subscriptions,
            self._check_states_and_index,
        ):
            self._readable(mailbox, check)

    def _readable(self, path: Path, check: Callable[[Path], None]) -> None:
        """Check a mailbox or a directory; report what cannot be read."""
        try:
            check(path)
        except (FileNotFoundError, NotADirectoryError):
            return  # renamed or removed meanwhile, or reported already
        except OSError as error:
            self._repairer.report_unreadable(error, path)

    # -- directories

    def _check_owners(self, mailbox: Path) -> None:
        expected = "usable by its owner, not writable by everybody"
        for folder in _folders(mailbox):
            for path in (folder, *(folder / name for name in DIRECTORIES)):
                if path.is_dir() and (
                    fault := owner_fault(
                        path, path.stat(), owner=self._owner, needed=0o700, expected=expected
                    )
                ):
                    self._repairer.handle(fault)

    def _check_directories(self, mailbox: Path) -> None:
        for folder in _folders(mailbox):
            missing = [name for name in DIRECTORIES if not (folder / name).is_dir()]
            is_marked = folder == mailbox or (folder / MARKER).exists()
            if (not missing and is_marked) or not self._quiet_period.wait_until_unchanged(folder):
                continue
            for name in missing:  # cur/ last: it makes the directory a folder
                path = folder / name
                if not path.is_dir():
                    fault = StoreFault(
                        StoreFindingKind.MISSING_DIRECTORY, path, _what_exists(path), "a directory"
                    )
                    if _what_exists(path) == "nothing" or self._move_away(fault):
                        self._repairer.handle(fault, create_directory(path))
            if not is_marked and not (folder / MARKER).exists():
                marker = folder / MARKER
                fault = StoreFault(
                    StoreFindingKind.MISSING_MARKER, marker, "nothing", "the marker of a folder"
                )
                self._repairer.handle(fault, _create_file(marker, b""))

    def _move_away(self, fault: StoreFault) -> bool:
        """Move a file that has the name of a directory to corrupt/."""
        return self._repairer.handle(
            fault, self._repairer.move_to_corrupt(fault.where, is_complete=True)
        )

    def _check_folder_ids(self, mailbox: Path) -> None:
        for folder in list_folders(mailbox):
            marked = read_folder_id(folder.path) if folder.well_known is None else ""
            if marked and marked != folder.id:
                self._replace_folder_id(folder, marked)

    def _replace_folder_id(self, folder: Folder, marked: str) -> None:
        marker = folder.path / MARKER
        if (
            not self._quiet_period.wait_until_unchanged(marker)
            or read_folder_id(folder.path) != marked
        ):
            return
        fault = StoreFault(
            StoreFindingKind.SHARED_FOLDER_ID,
            marker,
            f"{marked}, which another folder has",
            folder.id,
        )
        repair = Repair("rewritten", lambda: write_folder_id(folder.path, folder.id))
        self._repairer.handle(fault, repair)

    # -- messages

    def _check_messages(self, mailbox: Path) -> None:
        for folder in list_folders(mailbox):
            self._check_folder(mailbox, folder)

    def _check_folder(self, mailbox: Path, folder: Folder) -> None:
        known: set[str] = set()
        shared: set[str] = set()

        def on_name(name: MessageName) -> None:
            if name.message_id in known:
                shared.add(name.message_id)
            elif name.base_name:
                known.add(name.message_id)

        def check(directory: Path) -> None:
            self._counts.messages += self._messages.check(directory, on_name)

        for directory in (folder.path / "new", folder.path / "cur"):
            self._readable(directory, check)
        if shared:
            self._check_shared_ids(mailbox, folder, shared)

    def _check_shared_ids(self, mailbox: Path, folder: Folder, shared: set[str]) -> None:
        """Leave each id to one file of a folder, after renames in progress have ended.

        A file in another folder may have the same name: some IMAP servers copy in this way.
        """
        for _, path in list(_with_ids(folder, shared)):
            self._quiet_period.wait_until_unchanged(path)
        by_id: dict[str, list[tuple[MessageName, Path]]] = {}
        for name, path in _with_ids(folder, shared):
            by_id.setdefault(name.message_id, []).append((name, path))
        for message_id, files in by_id.items():
            if len(files) > 1:
                self._separate(find_file(mailbox, message_id), folder, files)

    def _separate(
        self, indexed: Path | None, folder: Folder, files: list[tuple[MessageName, Path]]
    ) -> None:
        highest = max(name.generation for name, _ in files)
        rest = [
            (name, path)
            for name, path in files  # the index removes a draft's lower generation
            if (name.generation == highest or not is_draft_file(name.flags, folder))
            and path.exists()
        ]
        rest.sort(key=lambda one: _keep_order(one[1], indexed))
        for name, path in rest[1:]:
            kept = rest[0][1]
            fault = StoreFault(StoreFindingKind.SHARED_ID, path, f"the id of {kept}", "its own id")
            is_second_name = name.base_name == _base_name(kept) and path.samefile(kept)
            self._repairer.handle(
                fault, remove_file(path) if is_second_name else self._new_name(name, path)
            )

    def _new_name(self, name: MessageName, path: Path) -> Repair:
        """Return the repair that gives a copy its own name."""
        base_name = make_base_name(
            delivered_id(self._ids.new()),
            1,
            time_us=name.seconds * 1_000_000,
            hostname=self._hostname,
        )
        return rename_file(path, path.with_name(base_name + name.file_name[len(name.base_name) :]))

    # -- subscriptions and index

    def _check_subscriptions(self, mailbox: Path) -> None:
        path = mailbox / _SUBSCRIPTIONS
        found = _subscriptions_fault(path)
        if (
            not found
            or not self._quiet_period.wait_until_unchanged(path)
            or not _subscriptions_fault(path)
        ):
            return
        moved = self._repairer.move_to_corrupt(path)
        directories = [one.path.name for one in list_folders(mailbox) if one.path != mailbox]

        def act() -> None:
            moved.act()
            resubscribe(mailbox, added=directories)

        fault = StoreFault(StoreFindingKind.SUBSCRIPTIONS, path, found, "lines of text")
        repair = Repair(f"{moved.text}, and created again with all folders", act)
        self._repairer.handle(fault, repair)

    def _check_states_and_index(self, mailbox: Path) -> None:
        path = mailbox / STATES
        found = [*state_faults(path)] if path.exists() else []
        for one in found:
            kind = StoreFindingKind.DAMAGED_PROPERTIES
            self._repairer.handle(StoreFault(kind, path, one, _STATES_EXPECTED))
        if not found:  # else the index may have the only copies of them
            self._counts.indexes += self._indexes.check(mailbox)


def _base_name(path: Path) -> str:
    """Return the base name of a message's file, without `,S=`."""
    name = parse_name(path.name)
    return name.base_name if name else ""


def _is_mailbox(path: Path) -> bool:
    names = set(list_names(path))
    return bool(names.intersection(DIRECTORIES)) or any(
        _is_folder(path / name) for name in names if name.startswith(".")
    )


def _folders(mailbox: Path) -> Iterator[Path]:
    """Yield the directories that are folders, also incomplete ones."""
    yield mailbox
    for name in sorted(list_names(mailbox)):
        if name.startswith(".") and not name.startswith("..") and _is_folder(mailbox / name):
            yield mailbox / name


def _is_folder(path: Path) -> bool:
    return not path.is_symlink() and bool({*DIRECTORIES, MARKER}.intersection(list_names(path)))


def _with_ids(folder: Folder, message_ids: set[str]) -> Iterator[tuple[MessageName, Path]]:
    for directory in (folder.path / "new", folder.path / "cur"):
        for file_name in list_names(directory):
            name = parse_name(file_name)
            if name is not None and name.base_name and name.message_id in message_ids:
                yield name, directory / file_name


def _keep_order(path: Path, indexed: Path | None) -> tuple[bool, bool, bool, float, str]:
    """Return a sort key; the first file keeps the id.

    It is the indexed one, then a submitted draft, then one in cur/, then the oldest.
    """
    status = path.stat()
    is_alone = status.st_nlink == 1
    return path != indexed, is_alone, path.parent.name == "new", status.st_mtime, str(path)


def _subscriptions_fault(path: Path) -> str:
    """Return the fault of the file, "" if there is none or no file."""
    try:
        with path.open("rb") as file:
            content = file.read(_SUBSCRIPTIONS_BYTES_MAX + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    if len(content) > _SUBSCRIPTIONS_BYTES_MAX:
        return f"more than {_SUBSCRIPTIONS_BYTES_MAX} bytes"
    odd = next((one for one in content if one < 0x20 and one not in _TEXT), None)
    return "" if odd is None else f"an octet {odd}"


def _what_exists(path: Path) -> str:
    return "something else" if path.is_symlink() or path.exists() else "nothing"


def _create_file(path: Path, content: bytes) -> Repair:
    def act() -> None:
        remove(path)  # a dangling symbolic link
        write_synced(path, content)

    return Repair("created", act)
