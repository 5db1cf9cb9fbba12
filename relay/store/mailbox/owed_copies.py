"""Watch the copies of messages whose read receipts are owed: other programs read and delete them.

look() returns what became of copies since the last call. Only directories with such a copy are
looked at, by inode and time of change; if one has changed, the copies of its mailbox are searched
with the index. One caller follows copies: it calls look(), add() and remove() in turn. Raises
StoreError's children.

The keyword $MDNSent (RFC 3503) says that a program has sent the receipt. It is set only where
Dovecot has a letter for it.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.receipt import OwedReceipt
from relay.store.mailbox.folders import is_deleted
from relay.store.mailbox.keywords import letter_of
from relay.store.mailbox.message_file import SEEN, MessageFile, with_flags
from relay.store.mailbox.store_part import StorePart, in_thread

MDN_SENT = b"$MDNSent"
_MAILBOXES_AT_ONCE = 100  # that are searched in one call; the others are at the next
_FRESH_NS = 2_000_000_000  # a directory may change again within one tick of its time
_LOOKS_MAX = 10
_UNSEEN = (-1, -1)
_MISSING = (*_UNSEEN, -1)


class Sighting(Struct, frozen=True):
    """What became of a copy.

    `is_missing`: it is in no folder of the mailbox. `is_place_there`: the folder where it was seen
    last is the same directory as then.
    """

    owed: OwedReceipt
    is_moved: bool = False  # to another folder: that of `owed`
    is_read: bool = False
    is_deleted: bool = False  # it is in Deleted Items
    is_missing: bool = False
    is_place_there: bool = True


@dataclass(slots=True)
class _OwedCopy:
    owed: OwedReceipt  # with the folder where it was seen last
    place: tuple[int, int] = _UNSEEN  # device and inode of the folder's cur/


@dataclass(slots=True)
class _Mailbox:
    path: Path
    copies: dict[str, _OwedCopy] = field(default_factory=dict)  # by id
    # device, inode and time of the directories with copies; None: it may change again within a tick
    states: dict[Path, tuple[int, int, int] | None] = field(default_factory=dict)
    is_due: bool = True  # to be searched


@dataclass(kw_only=True, eq=False, repr=False)
class OwedCopies(StorePart):
    """The copies that are watched. Its coroutines work in a thread of the store."""

    def __post_init__(self) -> None:
        self._mailboxes: dict[str, _Mailbox] = {}

    def add(self, owed: OwedReceipt) -> None:
        """Watch a copy from now on; the next look() looks for it."""
        mailbox = self._mailboxes.get(owed.mailbox)
        if mailbox is None:
            mailbox = _Mailbox(self.folders.directory(owed.mailbox))
            self._mailboxes[owed.mailbox] = mailbox
        if owed.copy_id not in mailbox.copies:
            mailbox.copies[owed.copy_id] = _OwedCopy(owed)
            mailbox.is_due = True

    def remove(self, owed: OwedReceipt) -> None:
        """Watch a copy no longer."""
        mailbox = self._mailboxes.get(owed.mailbox)
        if mailbox and mailbox.copies.pop(owed.copy_id, None) and not mailbox.copies:
            del self._mailboxes[owed.mailbox]

    def look_again(self, owed: OwedReceipt) -> None:
        """Let the next look() search the mailbox of a copy, even if it has not changed."""
        if (mailbox := self._mailboxes.get(owed.mailbox)) is not None:
            mailbox.is_due = True

    @in_thread
    def look(self) -> list[Sighting]:
        """Return what became of the copies in directories that have changed."""
        sightings: list[Sighting] = []
        left = _MAILBOXES_AT_ONCE
        for mailbox in self._mailboxes.values():
            mailbox.is_due = mailbox.is_due or any(
                state is None or _state(directory) != state
                for directory, state in mailbox.states.items()
            )
            # a mailbox that is missing, or was moved, stays due
            if left and mailbox.is_due and (mailbox.path / "cur").is_dir():
                left -= 1
                mailbox.is_due = False
                sightings += self._searched(mailbox)
        return sightings

    # -- where the copies are

    def _note_states(self, mailbox: _Mailbox) -> None:
        """Note the states of the directories with copies, before they are searched."""
        old_ns = self.clock.file_time_us() * 1000 - _FRESH_NS
        mailbox.states.clear()
        for folder in {copy.owed.folder for copy in mailbox.copies.values()}:
            for directory in (mailbox.path / folder / part for part in ("new", "cur")):
                state = _state(directory)
                mailbox.states[directory] = state if state[2] < old_ns else None

    def _searched(self, mailbox: _Mailbox) -> list[Sighting]:
        self._note_states(mailbox)
        ids = list(mailbox.copies)
        located = {file.message_id: file for file in self.index.find_all(mailbox.path, ids)}
        copied = self.index.claimed(
            mailbox.path, [copy_id for copy_id in ids if copy_id not in located]
        )
        sightings: list[Sighting] = []
        for copy_id, copy in mailbox.copies.items():
            file = located.get(copy_id)
            if file is not None:
                sightings.append(_seen(mailbox.path, copy, file))
            elif copy_id not in copied:  # otherwise a copy in another folder may be the message
                place = _identity(mailbox.path / copy.owed.folder)
                is_there = place != _UNSEEN and copy.place in (_UNSEEN, place)
                sightings.append(Sighting(copy.owed, is_missing=True, is_place_there=is_there))
        if any(sighting.is_moved for sighting in sightings):
            self._note_states(mailbox)
        return sightings

    # -- the keyword

    @in_thread
    def is_marked(self, account: str, copy_id: str) -> bool | None:
        """Whether a copy has $MDNSent; None if its folder has no letter for it, or it is gone."""
        located, letter = self._file_and_letter(account, copy_id)
        return letter in located.name.flags if located is not None and letter else None

    @in_thread
    def mark(self, account: str, copy_id: str) -> None:
        """Set $MDNSent where there is a letter for it.

        The change is not synced. A power failure may undo it, and this relay does not depend on it.
        """
        with self.stripes.of(copy_id):
            for _ in range(_LOOKS_MAX):
                located, letter = self._file_and_letter(account, copy_id)
                if located is None or not letter or letter in located.name.flags:
                    return
                flags = with_flags(located.name.flags, add=letter)
                name = f"{located.name.name_with_size}:2,{flags}"
                with suppress(FileNotFoundError):  # renamed meanwhile
                    located.path.rename(located.folder.path / "cur" / name)
                    return

    def _file_and_letter(self, account: str, copy_id: str) -> tuple[MessageFile | None, str]:
        mailbox = self.folders.directory(account)
        located = self.index.find(mailbox, copy_id) if mailbox.is_dir() else None
        return located, letter_of(located.folder.path, MDN_SENT) if located is not None else ""


def _seen(mailbox: Path, copy: _OwedCopy, file: MessageFile) -> Sighting:
    """Return what became of a copy that is in the mailbox."""
    folder = "" if file.folder.path == mailbox else file.folder.path.name
    is_moved = folder != copy.owed.folder
    copy.owed, copy.place = replace(copy.owed, folder=folder), _identity(file.folder.path)
    in_deleted_items = is_moved and is_deleted(file.folder)
    return Sighting(copy.owed, is_moved, SEEN in file.name.flags, in_deleted_items)


def _state(directory: Path) -> tuple[int, int, int]:
    """Return device, inode and time of change of a directory; _MISSING if it is not there."""
    try:
        status = directory.stat()
    except OSError:
        return _MISSING
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _identity(folder: Path) -> tuple[int, int]:
    return _state(folder / "cur")[:2]
