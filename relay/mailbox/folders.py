"""The folders of a mailbox: made on first use, found by id or well-known name.

On the path: every module of the store asks it for a mailbox's and a folder's directory.
Holds: folders of other programs are shown and kept; ids follow from directory names alone.
Fails: NoSuchItemError for a folder that is not there; OSError when the disk refuses.
Standards: Maildir++; RFC 3501 5.1.3 (modified UTF-7); Graph's mailFolder.
"""

import hashlib
import os
import threading
from base64 import b32encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from relay.mailbox.maildir import list_names, make_directory, sync_directory, write_synced
from relay.mailbox.names import parse_name
from relay.mailbox.types import Folder, NoSuchItemError, WellKnown

_DIRECTORIES = ("cur", "new", "tmp")
_MAILBOXES_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class _Known:
    """A well-known folder: its directory in the mailbox ("" is the mailbox itself)."""

    directory: str
    display_name: str


_WELL_KNOWN = {
    WellKnown.INBOX: _Known("", "Inbox"),
    WellKnown.DRAFTS: _Known(".Drafts", "Drafts"),
    WellKnown.SENT_ITEMS: _Known(".Sent", "Sent Items"),
    WellKnown.DELETED_ITEMS: _Known(".Trash", "Deleted Items"),
    WellKnown.JUNK_EMAIL: _Known(".Junk", "Junk Email"),
    WellKnown.ARCHIVE: _Known(".Archive", "Archive"),
}
_BY_DIRECTORY = {known.directory: name for name, known in _WELL_KNOWN.items()}
_SUBSCRIPTIONS = "V\t2\n\n" + "".join(
    f"{known.directory[1:]}\n" for known in _WELL_KNOWN.values() if known.directory
)


class Folders:
    """The mailboxes under one root, as directories."""

    def __init__(self, directory_of: Callable[[str], Path]) -> None:
        """`directory_of` gives an account's Maildir, or raises NoSuchItemError."""
        self._directory_of = directory_of
        self._lock = threading.Lock()
        self._made: set[Path] = set()

    def mailbox(self, account: str) -> Path:
        """Return the account's Maildir, made with all its folders on first use."""
        mailbox = self._directory_of(account)
        drafts = mailbox / _WELL_KNOWN[WellKnown.DRAFTS].directory
        if mailbox in self._made and (drafts / "cur").is_dir() and (mailbox / "cur").is_dir():
            return mailbox
        with self._lock:
            for known in _WELL_KNOWN.values():
                _make_maildir(mailbox / known.directory, is_folder=bool(known.directory))
            subscriptions = mailbox / "subscriptions"
            if not subscriptions.exists():
                write_synced(subscriptions, _SUBSCRIPTIONS.encode())
                sync_directory(mailbox)
            if len(self._made) >= _MAILBOXES_REMEMBERED:
                self._made.clear()
            self._made.add(mailbox)
        return mailbox

    def remake(self, mailbox: Path, folder: WellKnown) -> None:
        """Make a folder that another program removed."""
        _make_maildir(mailbox / _WELL_KNOWN[folder].directory, is_folder=folder != WellKnown.INBOX)


def well_known_path(mailbox: Path, folder: WellKnown) -> Path:
    """The directory of a well-known folder."""
    return mailbox / _WELL_KNOWN[folder].directory


def list_folders(mailbox: Path) -> list[Folder]:
    """Every folder without its counts, well-known ones first, the others by name."""
    others = sorted(
        name
        for name in list_names(mailbox)
        if name.startswith(".") and name not in _BY_DIRECTORY and (mailbox / name / "cur").is_dir()
    )
    return [_folder(mailbox, name) for name in (*_BY_DIRECTORY, *others)]


def find_folder(mailbox: Path, folder_id: str) -> Folder:
    """Find a folder by id or well-known name, case-insensitively.

    Raises NoSuchItemError.
    """
    wanted = folder_id.lower()
    for folder in list_folders(mailbox):
        if folder.id == wanted:
            return folder
    raise NoSuchItemError(f"There is no folder {folder_id!r} in this mailbox.")


def counted(folder: Folder) -> Folder:
    """Return the folder with how many messages it has, and how many are unread."""
    unseen = [name for name in list_names(folder.path / "new") if parse_name(name)]
    seen = [parsed for name in list_names(folder.path / "cur") if (parsed := parse_name(name))]
    unread = len(unseen) + sum("S" not in one.flags for one in seen)
    return replace(folder, total=len(unseen) + len(seen), unread=unread)


def _folder(mailbox: Path, directory: str) -> Folder:
    if (well_known := _BY_DIRECTORY.get(directory)) is not None:
        known = _WELL_KNOWN[well_known]
        return Folder(str(well_known), known.display_name, mailbox / directory, well_known)
    octets = os.fsencode(directory)
    digest = b32encode(hashlib.sha256(octets).digest()).decode().lower()[:15]
    shown = _from_modified_utf7(octets[1:].decode("utf-8", "replace"))
    return Folder(f"f{digest}", shown, mailbox / directory)


def _make_maildir(path: Path, *, is_folder: bool) -> None:
    if all((path / name).is_dir() for name in _DIRECTORIES):
        return
    for name in _DIRECTORIES:
        make_directory(path / name)
    if is_folder and not (path / "maildirfolder").exists():
        (path / "maildirfolder").touch(0o600)
        sync_directory(path)


def _from_modified_utf7(name: str) -> str:
    """Read a folder name as IMAP servers write it; one that is written otherwise stays as it is."""
    pieces = name.split("&")
    text = pieces[0]
    for piece in pieces[1:]:
        coded, found, rest = piece.partition("-")
        if not found:
            return name
        try:
            text += f"+{coded.replace(',', '/')}-".encode().decode("utf-7") if coded else "&"
            text.encode()  # half of a surrogate pair is no text
        except UnicodeError:
            return name
        text += rest
    return text
