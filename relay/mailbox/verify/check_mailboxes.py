"""One mailbox: its directories, its messages, its subscriptions and its index.

On the path: verifier.py goes through all mailboxes with it.
Holds: memory grows with the ids of one folder; folders of other programs are folders as well.
Fails: never; what cannot be read is a finding.
Standards: Maildir++.
"""

import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from relay.clock import Clock, Ids
from relay.mailbox.folder_tree import resubscribe
from relay.mailbox.folders import DIRECTORIES, MARKER, list_folders, read_folder_id, write_folder_id
from relay.mailbox.index.consistency import (
    Difference,
    check_file,
    compare,
    compare_without_update,
    find_file,
    index_path,
    rebuild,
)
from relay.mailbox.index.database import IndexDamagedError, IndexUnusableError
from relay.mailbox.maildir import list_names, remove, write_synced
from relay.mailbox.message_file import (
    MessageName,
    delivered_id,
    is_draft_file,
    make_base_name,
    parse_name,
)
from relay.mailbox.types import Folder, StoreError
from relay.mailbox.verify.check_messages import MessageCheck
from relay.mailbox.verify.findings import (
    QuietPeriod,
    Repair,
    Repairer,
    StoreCounts,
    StoreFault,
    StoreFindingKind,
    made,
    removed,
    renamed,
)

_LOOKS = 3
_SHOWN = 3


class IndexCheck:
    """Checks indexes; `full` reads the header of every message, not of a sample."""

    def __init__(self, mender: Repairer, flight: QuietPeriod, *, clock: Clock, full: bool) -> None:
        self._mender = mender
        self._flight = flight
        self._clock = clock
        self._full = full

    def check(self, mailbox: Path) -> bool:
        """Check a mailbox's index; return whether there is one."""
        path = index_path(mailbox)
        if not path.exists():
            return False
        try:
            check_file(mailbox, full=self._full)
            found = self._persistent(mailbox)
        except IndexDamagedError as error:
            fault = StoreFault(
                StoreFindingKind.DAMAGED_INDEX, path, str(error), "an index that can be read"
            )
            self._mender.settle(fault, self._made_anew(mailbox))
        except (IndexUnusableError, StoreError) as error:
            fault = StoreFault(
                StoreFindingKind.UNREADABLE, path, str(error), "an index that can be used"
            )
            self._mender.settle(fault)
        else:
            if found:
                fault = StoreFault(
                    StoreFindingKind.INDEX_MISMATCH, path, _told(found), "what the files say"
                )
                self._mender.settle(fault, self._made_anew(mailbox))
        return True

    def _persistent(self, mailbox: Path) -> list[Difference]:
        """What differs every time: others may be at work in the mailbox meanwhile."""
        found = self._differences(mailbox)
        for _ in range(_LOOKS - 1):
            if not found:
                break
            self._flight.pass_by(self._clock.time_us() / 1_000_000)
            found &= self._differences(mailbox)
        return sorted(found)

    def _differences(self, mailbox: Path) -> set[Difference]:
        if self._mender.dry_run:
            return compare_without_update(mailbox, full=self._full)
        return compare(mailbox, self._clock, full=self._full)

    def _made_anew(self, mailbox: Path) -> Repair:
        def act() -> None:
            try:
                rebuild(mailbox, self._clock)
            except StoreError as error:
                raise OSError(str(error)) from error

        return Repair("made anew", act)


def keeper_of(mailbox: Path, message_id: str) -> Path | None:
    """The file that has an id by the mailbox's index; None where there is none that tells."""
    if index_path(mailbox).exists():
        with suppress(IndexDamagedError, IndexUnusableError):
            return find_file(mailbox, message_id)
    return None


def _told(found: list[Difference]) -> str:
    shown = "; ".join(f"{one.where}: {one.what}".removeprefix(": ") for one in found[:_SHOWN])
    return shown if len(found) <= _SHOWN else f"{shown}; and {len(found) - _SHOWN} more"


_SUBSCRIPTIONS = "subscriptions"
_SUBSCRIPTIONS_BYTES_MAX = 16 << 20
_TEXT = frozenset((0x09, 0x0A, 0x0D))


class MailboxCheck:
    """Checks mailboxes. `hostname` is for the names that copies get, `owner` the user of all."""

    def __init__(
        self,
        mender: Repairer,
        flight: QuietPeriod,
        *,
        messages: MessageCheck,
        indexes: IndexCheck,
        ids: Ids,
        hostname: str,
        owner: int,
    ) -> None:
        self._mender = mender
        self._flight = flight
        self._messages = messages
        self._indexes = indexes
        self._ids = ids
        self._hostname = hostname
        self._owner = owner

    def check(self, mailbox: Path, tally: StoreCounts) -> bool:
        """Check a mailbox; False where there is none."""
        if not _is_mailbox(mailbox):
            return False
        tally.mailboxes += 1
        self._readable(mailbox, lambda: self._check_directories(mailbox))
        self._readable(mailbox, lambda: self._check_owners(mailbox))
        self._readable(mailbox, lambda: self._check_folder_ids(mailbox))
        self._readable(mailbox, lambda: self._check_messages(mailbox, tally))
        self._readable(mailbox, lambda: self._check_subscriptions(mailbox))
        self._readable(mailbox, lambda: self._check_index(mailbox, tally))
        return True

    def _readable(self, mailbox: Path, check: Callable[[], None]) -> None:
        """Go on with the next check where one cannot read what it has to."""
        try:
            check()
        except (FileNotFoundError, NotADirectoryError):
            return  # renamed or removed meanwhile, or told already
        except OSError as error:
            where = Path(str(error.filename or mailbox))
            found = error.strerror or str(error)
            self._mender.settle(
                StoreFault(StoreFindingKind.UNREADABLE, where, found, "what can be read")
            )

    # -- directories

    def _check_owners(self, mailbox: Path) -> None:
        for folder in _folders(mailbox):
            for path in (folder, *(folder / name for name in DIRECTORIES)):
                if path.is_dir() and (fault := self._owner_fault(path)):
                    self._mender.settle(fault)

    def _owner_fault(self, path: Path) -> StoreFault | None:
        status = path.stat()
        permissions = stat.S_IMODE(status.st_mode)
        if status.st_uid != self._owner:
            expected = f"{self._owner}, as the root's"
            return StoreFault(StoreFindingKind.OWNER, path, f"the user {status.st_uid}", expected)
        if permissions & 0o700 != 0o700 or permissions & 0o002:
            expected = "a directory that its owner uses and not everybody writes"
            return StoreFault(StoreFindingKind.OWNER, path, f"mode {permissions:04o}", expected)
        return None

    def _check_directories(self, mailbox: Path) -> None:
        for folder in _folders(mailbox):
            missing = [name for name in DIRECTORIES if not (folder / name).is_dir()]
            is_marked = folder == mailbox or (folder / MARKER).exists()
            if (not missing and is_marked) or not self._flight.land(folder):
                continue
            for name in missing:  # cur/ last: it makes a folder of the directory
                path = folder / name
                if not path.is_dir():
                    fault = StoreFault(
                        StoreFindingKind.MISSING_DIRECTORY, path, _found(path), "a directory"
                    )
                    if _found(path) == "nothing" or self._aside(fault):
                        self._mender.settle(fault, made(path))
            if not is_marked and not (folder / MARKER).exists():
                marker = folder / MARKER
                fault = StoreFault(
                    StoreFindingKind.MISSING_MARKER, marker, "nothing", "the mark of a folder"
                )
                self._mender.settle(fault, _written(marker, b""))

    def _aside(self, fault: StoreFault) -> bool:
        """Put what is in a directory's place aside."""
        return self._mender.settle(fault, self._mender.move_to_corrupt(fault.where, is_whole=True))

    def _check_folder_ids(self, mailbox: Path) -> None:
        for folder in list_folders(mailbox):
            marked = read_folder_id(folder.path) if folder.well_known is None else ""
            if marked and marked != folder.id:
                self._settle_folder_id(folder, marked)

    def _settle_folder_id(self, folder: Folder, marked: str) -> None:
        marker = folder.path / MARKER
        if not self._flight.land(marker) or read_folder_id(folder.path) != marked:
            return
        fault = StoreFault(
            StoreFindingKind.SHARED_FOLDER_ID,
            marker,
            f"{marked}, which another folder has",
            folder.id,
        )
        cure = Repair("written anew", lambda: write_folder_id(folder.path, folder.id))
        self._mender.settle(fault, cure)

    # -- messages

    def _check_messages(self, mailbox: Path, tally: StoreCounts) -> None:
        for folder in list_folders(mailbox):
            self._check_folder(mailbox, folder, tally)

    def _check_folder(self, mailbox: Path, folder: Folder, tally: StoreCounts) -> None:
        known: set[str] = set()
        shared: set[str] = set()

        def take(name: MessageName) -> None:
            if name.message_id in known:
                shared.add(name.message_id)
            elif name.base_name:
                known.add(name.message_id)

        def check(directory: Path) -> None:
            tally.messages += self._messages.check(directory, take)

        new, cur, tmp = (folder.path / name for name in ("new", "cur", "tmp"))
        self._readable(new, partial(check, new))
        self._readable(cur, partial(check, cur))
        self._readable(tmp, partial(self._messages.check_leftovers, tmp))
        if shared:
            self._settle_shared(mailbox, folder, shared)

    def _settle_shared(self, mailbox: Path, folder: Folder, shared: set[str]) -> None:
        """Let one file of a folder have each id, once what was on its way to a new name has it.

        In another folder it may have the same name: IMAP servers copy so.
        """
        for _, path in list(_with_ids(folder, shared)):
            self._flight.land(path)
        files: dict[str, list[tuple[MessageName, Path]]] = {}
        for name, path in _with_ids(folder, shared):
            files.setdefault(name.message_id, []).append((name, path))
        for message_id, those in files.items():
            if len(those) > 1:
                self._settle_one_id(keeper_of(mailbox, message_id), folder, those)

    def _settle_one_id(
        self, keeper: Path | None, folder: Folder, those: list[tuple[MessageName, Path]]
    ) -> None:
        highest = max(name.generation for name, _ in those)
        rest = []
        for name, path in those:
            if name.generation < highest and is_draft_file(name.flags, folder):
                found = f"generation {name.generation} beside {highest}"
                fault = StoreFault(
                    StoreFindingKind.SUPERSEDED_DRAFT, path, found, "the newest of a draft alone"
                )
                self._mender.settle(fault, self._mender.move_to_corrupt(path, is_whole=True))
            elif path.exists():
                rest.append((name, path))
        rest.sort(key=lambda one: _likeness(one[1], keeper))
        for name, path in rest[1:]:
            kept = rest[0][1]
            fault = StoreFault(
                StoreFindingKind.SHARED_ID, path, f"the id of {kept}", "an id of its own"
            )
            is_second_name = name.base_name == parse_base_name(kept) and path.samefile(kept)
            self._mender.settle(fault, removed(path) if is_second_name else self._own(name, path))

    def _own(self, name: MessageName, path: Path) -> Repair:
        """Give a copy a name of its own."""
        base_name = make_base_name(
            delivered_id(self._ids.new()),
            1,
            time_us=name.seconds * 1_000_000,
            hostname=self._hostname,
        )
        return renamed(path, path.with_name(base_name + name.file_name[len(name.base_name) :]))

    # -- beside the messages

    def _check_subscriptions(self, mailbox: Path) -> None:
        path = mailbox / _SUBSCRIPTIONS
        found = _subscriptions_fault(path)
        if not found or not self._flight.land(path) or not _subscriptions_fault(path):
            return
        aside = self._mender.move_to_corrupt(path)
        directories = [one.path.name for one in list_folders(mailbox) if one.path != mailbox]

        def act() -> None:
            aside.act()
            resubscribe(mailbox, added=directories)

        fault = StoreFault(StoreFindingKind.SUBSCRIPTIONS, path, found, "lines of text")
        cure = Repair(f"{aside.text}, and made anew with all folders", act)
        self._mender.settle(fault, cure)

    def _check_index(self, mailbox: Path, tally: StoreCounts) -> None:
        tally.indexes += self._indexes.check(mailbox)


def parse_base_name(path: Path) -> str:
    """The base name of a message's file, `,S=` apart."""
    name = parse_name(path.name)
    return name.base_name if name else ""


def _is_mailbox(path: Path) -> bool:
    names = set(list_names(path))
    return bool(names.intersection(DIRECTORIES)) or any(
        _is_folder(path / name) for name in names if name.startswith(".")
    )


def _folders(mailbox: Path) -> Iterator[Path]:
    """The directories that are folders, or were to be."""
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


def _likeness(path: Path, keeper: Path | None) -> tuple[bool, bool, bool, float, str]:
    """Sorts first what keeps the id: the index's, a note's draft, in cur/, the oldest."""
    status = path.stat()
    is_alone = status.st_nlink == 1
    return path != keeper, is_alone, path.parent.name == "new", status.st_mtime, str(path)


def _subscriptions_fault(path: Path) -> str:
    """What is wrong with the file, "" if nothing is, or if there is none."""
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


def _found(path: Path) -> str:
    return "something else" if path.is_symlink() or path.exists() else "nothing"


def _written(path: Path, content: bytes) -> Repair:
    def act() -> None:
        remove(path)  # a link that leads nowhere
        write_synced(path, content)

    return Repair("made", act)
