"""The folders of a mailbox: made on first use, found by id or well-known name.

On the path: every module of the store asks it for a mailbox's and a folder's directory.
Holds: folders of other programs are shown and kept; a folder's id stays when its directory is
    renamed, by whomever, since it is written into the folder's marker file.
Fails: NoSuchItemError for a folder that is not there; OSError when the disk refuses.
Standards: Maildir++ (`.A.B` is B within A; the marker `maildirfolder`); Graph's mailFolder.
"""

import hashlib
import os
import re
import threading
import unicodedata
from base64 import b32encode, b64encode
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from relay.mailbox.maildir import list_names, make_directory, remove, sync_directory, write_synced
from relay.mailbox.types import Folder, FolderError, NoSuchItemError, WellKnown

SEPARATOR = "."
DIRECTORY_BYTES_MAX = 255
# The one separates folders, the other directories, and an encoded one shows as "&AC4-" in Dovecot.
# These look alike, hardly anybody types them, and every IMAP client shows them.
_STAND_INS = {".": "\N{ONE DOT LEADER}", "/": "\N{DIVISION SLASH}"}
_TO_STAND_INS = str.maketrans(_STAND_INS)
_FROM_STAND_INS = str.maketrans({stand_in: sign for sign, stand_in in _STAND_INS.items()})


def folder_name(display_name: str) -> str:
    """Return the part of a directory's name that stands for a folder.

    Raises FolderError.
    """
    name = unicodedata.normalize("NFC", display_name)
    if not name.strip():
        raise FolderError("A folder's name needs a visible character.")
    for position, character in enumerate(name):
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise FolderError(
                f"A folder's name cannot have the character U+{ord(character):04X}"
                f" (found at position {position})."
            )
    if name.startswith("~"):
        raise FolderError("A folder's name cannot begin with '~': IMAP servers refuse to open it.")
    return _to_modified_utf7(name.translate(_TO_STAND_INS))


def one_name(name: str) -> str:
    """Return a part of a directory's name, perhaps of several folders, as that of one."""
    return name.replace(SEPARATOR, _to_modified_utf7(_STAND_INS[SEPARATOR]))


def shown_name(name: str) -> str:
    """Return what people call the folder of a (part of a) directory's name."""
    text = os.fsencode(name).decode("utf-8", "replace")
    shown = SEPARATOR.join(_from_modified_utf7(each) for each in text.split(SEPARATOR))
    return shown.translate(_FROM_STAND_INS)


def same_name(one: str, other: str) -> bool:
    """Whether two display names are the same for people."""
    return _compared(one) == _compared(other)


def checked_directory(name: str) -> str:
    """Return a directory's name if it is not too long. Raises FolderError."""
    if (length := len(os.fsencode(name))) > DIRECTORY_BYTES_MAX:
        raise FolderError(
            "The folder's name is too long: together with those of the folders above it, and"
            f" encoded for the disk, it has {length} bytes, expected at most"
            f" {DIRECTORY_BYTES_MAX}."
        )
    return name


def _compared(name: str) -> str:
    return unicodedata.normalize("NFC", name).translate(_FROM_STAND_INS).casefold()


def _to_modified_utf7(text: str) -> str:
    pieces: list[str] = []
    coded = ""
    for character in f"{text}\0":  # the end is no text: what is gathered goes out before it
        if character != "\0" and not " " <= character <= "~":
            coded += character
            continue
        if coded:
            octets = b64encode(coded.encode("utf-16-be")).decode().rstrip("=")
            pieces.append(f"&{octets.replace('/', ',')}-")
            coded = ""
        pieces.append("&-" if character == "&" else character)
    return "".join(pieces[:-1])


def _from_modified_utf7(name: str) -> str:
    """Read a name as IMAP servers write it; one that is written otherwise stays as it is."""
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


ROOT_ID = "msgfolderroot"
DELETED_PREFIX = "relay-deleted."  # a folder that is being removed: no dot, so nobody's folder
MARKER = "maildirfolder"
# What is there last makes the directory a folder: a crash before leaves nothing to be seen.
DIRECTORIES = ("tmp", "new", "cur")
_ROOT_NAME = "Top of Information Store"
_MARKED = re.compile(rb"relay-folder-id ([a-z0-9]{2,64})\n")
_MARKER_BYTES_MAX = 100
_MAILBOXES_REMEMBERED = 10_000
_INBOX_AS_PARENT = ".INBOX"  # the Inbox is the mailbox itself; what is within it is called so
_DOVECOT_DELETES = "..DOVECOT-TRASHED"


@dataclass(frozen=True, slots=True)
class _Known:
    """A well-known folder: its directory in the mailbox ("" is the mailbox itself).

    Those that people look into are subscribed to when the mailbox is made.
    """

    directory: str
    display_name: str
    subscribed: bool = True


_WELL_KNOWN = {
    WellKnown.INBOX: _Known("", "Inbox"),
    WellKnown.DRAFTS: _Known(".Drafts", "Drafts"),
    WellKnown.SENT_ITEMS: _Known(".Sent", "Sent Items"),
    WellKnown.DELETED_ITEMS: _Known(".Trash", "Deleted Items"),
    WellKnown.JUNK_EMAIL: _Known(".Junk", "Junk Email"),
    WellKnown.ARCHIVE: _Known(".Archive", "Archive"),
    WellKnown.OUTBOX: _Known(".Outbox", "Outbox", subscribed=False),
}
_BY_DIRECTORY = {known.directory: name for name, known in _WELL_KNOWN.items()}
_IDS = {str(name): known.directory for name, known in _WELL_KNOWN.items()}
_SUBSCRIPTIONS = "V\t2\n\n" + "".join(
    f"{known.directory[1:]}\n"
    for known in _WELL_KNOWN.values()
    if known.directory and known.subscribed
)
# Graph's other well-known folders: of Exchange's own machinery, or of clients that are no more.
_NOT_HERE = frozenset(
    (
        *("clutter", "conflicts", "conversationhistory", "localfailures", "scheduled"),
        *("recoverableitemsdeletions", "searchfolders", "serverfailures", "syncissues"),
    )
)


@dataclass(frozen=True, slots=True)
class _Made:
    """A mailbox that was made or seen, and what is looked for to know that it is still there."""

    mailbox: Path
    drafts: Path
    inbox: Path


class Folders:
    """The mailboxes under one root, as directories."""

    def __init__(self, directory_of: Callable[[str], Path]) -> None:
        """`directory_of` gives an account's Maildir, or raises NoSuchItemError."""
        self._directory_of = directory_of
        self._lock = threading.Lock()
        self._made: dict[str, _Made] = {}

    def mailbox(self, account: str) -> Path:
        """Return the account's Maildir, made with all its folders on first use."""
        made = self._made.get(account)
        if made is not None and made.drafts.is_dir() and made.inbox.is_dir():
            return made.mailbox
        mailbox = self._directory_of(account)
        with self._lock:
            for known in _WELL_KNOWN.values():
                _make_maildir(mailbox / known.directory, is_folder=bool(known.directory))
            subscriptions = mailbox / "subscriptions"
            if not subscriptions.exists():
                write_synced(subscriptions, _SUBSCRIPTIONS.encode())
                sync_directory(mailbox)
            if len(self._made) >= _MAILBOXES_REMEMBERED:
                self._made.clear()
            drafts = well_known_path(mailbox, WellKnown.DRAFTS) / "cur"
            self._made[account] = _Made(mailbox, drafts=drafts, inbox=mailbox / "cur")
        return mailbox

    def remake(self, mailbox: Path, folder: WellKnown) -> None:
        """Make a folder that another program removed."""
        _make_maildir(mailbox / _WELL_KNOWN[folder].directory, is_folder=folder != WellKnown.INBOX)


def make_folder(path: Path, folder_id: str) -> None:
    """Make a folder's directory, durable with its id in it; it is seen when it is whole."""
    make_directory(path)
    write_id(path, folder_id)
    _make_maildir(path, is_folder=True)


def write_id(path: Path, folder_id: str) -> None:
    """Write a folder's id into its marker file."""
    fresh = path / f"{MARKER}.{folder_id}"
    remove(fresh)  # what a crash left
    try:
        write_synced(fresh, f"relay-folder-id {folder_id}\n".encode())
        fresh.rename(path / MARKER)
    finally:
        remove(fresh)
    sync_directory(path)


def write_ids(folders: Iterable[Folder]) -> None:
    """Write down the ids that follow from directory names only, as long as those are the names."""
    for folder in folders:
        if folder.well_known is None and marked_id(folder.path) != folder.id:
            write_id(folder.path, folder.id)


def well_known_path(mailbox: Path, folder: WellKnown) -> Path:
    """The directory of a well-known folder."""
    return mailbox / _WELL_KNOWN[folder].directory


def folder_directories(mailbox: Path) -> list[str]:
    """The names of the directories of all folders but the well-known ones, in order."""
    return sorted(
        name
        for name in list_names(mailbox)
        if name.startswith(".")
        and name not in _BY_DIRECTORY
        and not name.startswith(_DOVECOT_DELETES)
        and (mailbox / name / "cur").is_dir()
    )


def parent_directory(name: str, there: Iterable[str]) -> str:
    """Return the directory of the folder that `name` is within, "" for the mailbox's root.

    A folder whose parent has no directory is within the next one above that has: `.A.B` without
    `.A` is "A.B" in the root. `there` are the directories of all folders.
    """
    parent = name
    while parent := parent.rpartition(SEPARATOR)[0]:
        if parent in there:
            return parent
    return ""


def directory_within(parent: Folder | None, name: str) -> str:
    """Return the directory of the folder `name` (on disk) within `parent`, None for the root."""
    above = "" if parent is None else parent.path.name
    if parent is not None and parent.well_known is WellKnown.INBOX:
        above = _INBOX_AS_PARENT
    return f"{above}{SEPARATOR}{name}"


def is_deleted(folder: Folder) -> bool:
    """Whether a folder is Deleted Items or within it: what goes from there goes for good."""
    deleted = _WELL_KNOWN[WellKnown.DELETED_ITEMS].directory
    return (folder.path.name + SEPARATOR).startswith(deleted + SEPARATOR)


def list_folders(mailbox: Path) -> list[Folder]:
    """Every folder without its counts, well-known ones first, the others by name."""
    others = folder_directories(mailbox)
    there = {_INBOX_AS_PARENT, *_BY_DIRECTORY, *others} - {""}
    ids = _ids(mailbox, others)
    parents = {name: parent_directory(name, there - {name}) for name in others}
    children = Counter(ids[parent] for parent in parents.values() if parent)
    found = [
        Folder(str(name), known.display_name, mailbox / known.directory, name)
        for name, known in _WELL_KNOWN.items()
    ]
    for name in others:
        parent = parents[name]
        shown = shown_name(name[len(parent) + 1 :])
        parent_id = ids[parent] if parent else ""
        found.append(Folder(ids[name], shown, mailbox / name, parent_id=parent_id))
    return [replace(one, children=children[one.id]) for one in found]


def find_folder(mailbox: Path, folder_id: str) -> Folder:
    """Find a folder by id or well-known name, case-insensitively.

    Raises NoSuchItemError.
    """
    wanted = folder_id.lower()
    for folder in list_folders(mailbox):
        if folder.id == wanted:
            return folder
    if wanted in _NOT_HERE:
        raise NoSuchItemError(
            f"There is no folder {folder_id!r} here: of Graph's well-known folders a mailbox has"
            f" {', '.join(_IDS)} and {ROOT_ID}."
        )
    if wanted == ROOT_ID:
        raise NoSuchItemError("The top of a mailbox has folders and no messages.")
    raise NoSuchItemError(f"There is no folder {folder_id!r} in this mailbox.")


def root_folder(mailbox: Path, folders: Iterable[Folder]) -> Folder:
    """Return what stands above all folders; no directory is behind it."""
    children = sum(not folder.parent_id for folder in folders)
    return Folder(ROOT_ID, _ROOT_NAME, mailbox, children=children)


def _ids(mailbox: Path, others: Iterable[str]) -> dict[str, str]:
    """Return each directory's folder id; one that is copied with its marker gets one of its own."""
    ids = {known.directory: str(name) for name, known in _WELL_KNOWN.items()}
    ids[_INBOX_AS_PARENT] = str(WellKnown.INBOX)
    taken = set(ids.values()) | {ROOT_ID} | _NOT_HERE
    unmarked = []
    for name in others:
        folder_id = marked_id(mailbox / name)
        if folder_id and folder_id not in taken:
            ids[name] = folder_id
            taken.add(folder_id)
        else:
            unmarked.append(name)
    for name in unmarked:
        number = 0
        while (folder_id := _derived_id(name, number)) in taken:
            number += 1
        ids[name] = folder_id
        taken.add(folder_id)
    return ids


def marked_id(path: Path) -> str:
    """Return the id in a folder's marker file, "" if there is none."""
    with suppress(OSError):
        descriptor = os.open(path / MARKER, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            marked = _MARKED.fullmatch(os.read(descriptor, _MARKER_BYTES_MAX))
        finally:
            os.close(descriptor)
        return marked[1].decode() if marked else ""
    return ""


def _derived_id(directory: str, number: int) -> str:
    octets = os.fsencode(directory) + (b"/%d" % number if number else b"")
    return "f" + b32encode(hashlib.sha256(octets).digest()).decode().lower()[:15]


def _make_maildir(path: Path, *, is_folder: bool) -> None:
    if all((path / name).is_dir() for name in DIRECTORIES):
        return
    if is_folder and not (path / MARKER).exists():
        make_directory(path)
        (path / MARKER).touch(0o600)
    for name in DIRECTORIES:
        make_directory(path / name)
