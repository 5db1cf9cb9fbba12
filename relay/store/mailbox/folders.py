"""The folders of a mailbox: Maildir++ directories, their names, and their ids.

The Inbox of a mailbox is created by the first delivery, its other well-known folders by the first
other use; they are listed before. Folders are found by id or well-known name. Folders of other
programs are shown and kept. A folder's id stays when any program renames its directory, because it
is stored in the marker file `maildirfolder`. A display name becomes a directory name in modified
UTF-7 (RFC 3501 5.1.3); Relay and IMAP servers read back the same display name.

Raises NoSuchItemError for an unknown folder, FolderError for a name that a Maildir++ cannot hold,
and OSError when the disk rejects a change. See Maildir++ (`.A.B` is B within A), Graph's
mailFolder and docs/design.md 3.
"""

import hashlib
import os
import re
import unicodedata
from base64 import b32encode, b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from os.path import isdir  # for each message: a Path costs much
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from relay.base.files import opened
from relay.base.phrases import words_in
from relay.store.mailbox import maildir
from relay.store.mailbox.errors import FolderError, NoSuchItemError
from relay.store.mailbox.stored_message import Folder, WellKnown

SEPARATOR = "."
DIRECTORY_BYTES_MAX = 255
# "." separates folders and "/" directories, and Dovecot shows an encoded one as "&AC4-". These
# substitutes look alike, are hardly ever typed, and every IMAP client shows them.
_SUBSTITUTES = {".": "\N{ONE DOT LEADER}", "/": "\N{DIVISION SLASH}"}
_TO_SUBSTITUTES = str.maketrans(_SUBSTITUTES)
_FROM_SUBSTITUTES = str.maketrans({substitute: sign for sign, substitute in _SUBSTITUTES.items()})


def encode_folder_name(display_name: str) -> str:
    """Return a display name as a part of a directory's name.

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
    return _to_modified_utf7(name.translate(_TO_SUBSTITUTES))


def as_single_name(name: str) -> str:
    """Return a part of a directory's name as the name of one folder, even if it names several."""
    return name.replace(SEPARATOR, _to_modified_utf7(_SUBSTITUTES[SEPARATOR]))


def decode_folder_name(name: str) -> str:
    """Return the display name for (a part of) a directory's name."""
    return imap_name(name).translate(_FROM_SUBSTITUTES)


def imap_name(name: str) -> str:
    """Return the name that IMAP clients show for (a part of) a directory's name."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return SEPARATOR.join(_from_modified_utf7(part) for part in text.split(SEPARATOR))


def same_name(name: str, other: str) -> bool:
    """Return whether two display names differ at most in case and normalization."""
    return _compared(name) == _compared(other)


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
    return unicodedata.normalize("NFC", name).translate(_FROM_SUBSTITUTES).casefold()


def _to_modified_utf7(text: str) -> str:
    pieces: list[str] = []
    coded = ""
    for character in f"{text}\0":  # the NUL at the end flushes the pending characters
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
    """Decode modified UTF-7; return a name that is not valid modified UTF-7 unchanged."""
    pieces = name.split("&")
    text = pieces[0]
    for piece in pieces[1:]:
        coded, hyphen, rest = piece.partition("-")
        if not hyphen:
            return name
        try:
            text += f"+{coded.replace(',', '/')}-".encode().decode("utf-7") if coded else "&"
            text.encode()  # rejects an unpaired surrogate
        except UnicodeError:
            return name
        text += rest
    return text


ROOT_ID = "msgfolderroot"
COPY_PREFIX = "relay-copy."  # a folder that is being copied
DELETED_PREFIX = "relay-deleted."  # a folder that is being removed; without a dot it is no folder
MARKER = "maildirfolder"
# cur/ is made last and makes the directory a folder: a crash before it leaves no visible folder.
DIRECTORIES = ("tmp", "new", "cur")
_MARKED = re.compile(rb"relay-folder-id ([a-z0-9]{2,64})\n")
_MARKER_BYTES_MAX = 100
# of others, or none at all; after other errors a folder must not look like another
_NO_MARKER = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_MAILBOXES_CACHED = 10_000
_INBOX_AS_PARENT = ".INBOX"  # the Inbox is the mailbox itself; its subfolders have this prefix
_SUBSCRIPTIONS_FILE = "subscriptions"


class _WellKnownFolder(Struct, frozen=True):
    """A well-known folder: its directory in the mailbox ("" is the mailbox itself).

    With `subscribed`, IMAP clients show it: it is subscribed to when the mailbox is created.
    """

    directory: str
    display_name: str
    subscribed: bool = True


_WELL_KNOWN = {
    WellKnown.INBOX: _WellKnownFolder("", "Inbox"),
    WellKnown.DRAFTS: _WellKnownFolder(".Drafts", "Drafts"),
    WellKnown.SENT_ITEMS: _WellKnownFolder(".Sent", "Sent Items"),
    WellKnown.DELETED_ITEMS: _WellKnownFolder(".Trash", "Deleted Items"),
    WellKnown.JUNK_EMAIL: _WellKnownFolder(".Junk", "Junk Email"),
    WellKnown.ARCHIVE: _WellKnownFolder(".Archive", "Archive"),
    WellKnown.OUTBOX: _WellKnownFolder(".Outbox", "Outbox", subscribed=False),
}
_BY_DIRECTORY = {known.directory: name for name, known in _WELL_KNOWN.items()}
_IDS = {str(name): known.directory for name, known in _WELL_KNOWN.items()}
_OTHER_DIRECTORIES = tuple(
    known.directory
    for known in _WELL_KNOWN.values()
    if known.directory  # all but the Inbox
)
_SUBSCRIPTIONS = "V\t2\n\n" + "".join(
    f"{known.directory[1:]}\n"
    for known in _WELL_KNOWN.values()
    if known.directory and known.subscribed
)
# Graph's other well-known folders, for Exchange's own functions or for former clients.
_UNSUPPORTED = frozenset(
    words_in(
        "clutter conflicts conversationhistory localfailures scheduled recoverableitemsdeletions"
        " searchfolders serverfailures syncissues"
    )
)
WELL_KNOWN_NAMES = _UNSUPPORTED | {*_IDS, ROOT_ID}


class _MailboxPaths(Struct, frozen=True):
    """A mailbox that exists, and the directories that are checked on each use.

    `drafts` is "" while the mailbox has only its Inbox. `is_fresh`: see Folders.
    """

    mailbox: Path
    inbox: str
    drafts: str = ""
    is_fresh: bool = False


class Folders:
    """The directories of mailboxes under one root."""

    def __init__(
        self, directory_of: Callable[[str], Path], syncs: maildir.DirectorySync | None = None
    ) -> None:
        """`directory_of` returns an account's Maildir, or raises NoSuchItemError. `syncs` shares
        the fsyncs of a domain's directory among threads.
        """
        self._directory_of = directory_of
        self._sync = (syncs or maildir.DirectorySync()).sync
        self._stripes = (
            maildir.Stripes()
        )  # a directory that exists while its lock is free is durable
        self.known: dict[str, _MailboxPaths] = {}  # by account; may be cleared

    def directory(self, account: str) -> Path:
        """Return where the account's Maildir is, or will be."""
        return self._directory_of(account)

    def is_fresh(self, account: str) -> bool:
        """Whether this process created the Maildir for a delivery, and only deliveries have used
        it.

        Such a mailbox has no settings and no older messages. Does not block.
        """
        made = self.known.get(account)
        return made is not None and made.is_fresh

    def mailbox(self, account: str) -> Path:
        """Return the account's Maildir; create it with its folders on first use."""
        made = self.known.get(account)
        if made and isdir(made.drafts) and isdir(made.inbox):  # noqa: PTH112 - for each message
            return made.mailbox
        mailbox = self._directory_of(account)
        self._make_domain(mailbox.parent)
        with self._stripes.of(str(mailbox)):
            maildir.make_directory(mailbox, self._sync)
            maildir.make_directories(mailbox, (*DIRECTORIES, *_OTHER_DIRECTORIES))
            for directory in _OTHER_DIRECTORIES:
                _make_maildir(mailbox / directory, is_folder=True)
            if not (mailbox / _SUBSCRIPTIONS_FILE).exists():
                maildir.write_synced(mailbox / _SUBSCRIPTIONS_FILE, _SUBSCRIPTIONS.encode())
                maildir.sync_directory(mailbox)
            paths = _MailboxPaths(mailbox, f"{mailbox}/cur", drafts_directory(mailbox))
            self._remember(account, paths)
        return mailbox

    def inbox(self, account: str) -> Path:
        """Return the account's Maildir, in which only the Inbox must exist; create both on first
        use.
        """
        made = self.known.get(account)
        if made and isdir(made.inbox):  # noqa: PTH112 - called for each message
            return made.mailbox
        mailbox = self._directory_of(account)
        self._make_domain(mailbox.parent)
        with self._stripes.of(str(mailbox)):
            is_fresh = maildir.make_directory(mailbox, self._sync)
            maildir.make_directories(mailbox, DIRECTORIES)
            made = _MailboxPaths(mailbox, f"{mailbox}/cur", is_fresh=is_fresh)
            self._remember(account, made)
        return mailbox

    def _make_domain(self, directory: Path) -> None:
        with self._stripes.of(str(directory)):
            maildir.make_directory(directory, self._sync)

    def _remember(self, account: str, made: _MailboxPaths) -> None:
        if len(self.known) >= _MAILBOXES_CACHED:
            self.known.clear()
        self.known[account] = made

    def recreate(self, mailbox: Path, folder: WellKnown) -> None:
        """Create a folder that another program removed."""
        _make_maildir(mailbox / _WELL_KNOWN[folder].directory, is_folder=folder != WellKnown.INBOX)


def make_folder(path: Path, folder_id: str) -> None:
    """Create a folder, durably, with its id. It becomes visible when it is complete."""
    maildir.make_directory(path)
    write_folder_id(path, folder_id)
    _make_maildir(path, is_folder=True)


def write_folder_id(path: Path, folder_id: str) -> None:
    """Write a folder's id into its marker file."""
    octets = f"relay-folder-id {folder_id}\n".encode()
    maildir.replace_durably(path / MARKER, octets, part=path / f"{MARKER}.{folder_id}")


def write_folder_ids(folders: Iterable[Folder]) -> None:
    """Store the ids that are derived from directory names, before the names change."""
    for folder in folders:
        if folder.well_known is None and read_folder_id(folder.path) != folder.id:
            write_folder_id(folder.path, folder.id)


@lru_cache(maxsize=_MAILBOXES_CACHED)
def well_known_path(mailbox: Path, folder: WellKnown) -> Path:
    """Return the directory of a well-known folder."""
    directory = _WELL_KNOWN[folder].directory
    return mailbox / directory if directory else mailbox


def drafts_directory(mailbox: Path) -> str:
    """Return the directory with a mailbox's drafts."""
    return f"{well_known_path(mailbox, WellKnown.DRAFTS)}/cur"


def folder_directories(mailbox: Path) -> list[str]:
    """Return the directory names of all folders except the well-known ones, sorted."""
    return sorted(
        name
        for name in maildir.list_names(mailbox)
        if _is_folder_name(name)
        and name not in _BY_DIRECTORY
        and maildir.exists(f"{mailbox}/{name}/cur/.")
    )


def message_directories(mailbox: Path) -> Iterator[str]:
    """Yield the paths of new/ and cur/ of all folders; some may not exist."""
    for folder in (".", *filter(_is_folder_name, maildir.list_names(mailbox))):
        yield f"{mailbox}/{folder}/new"
        yield f"{mailbox}/{folder}/cur"


def _is_folder_name(name: str) -> bool:
    return name.startswith(".") and not name.startswith("..DOVECOT-TRASHED")


def parent_directory(name: str, existing: Iterable[str]) -> str:
    """Return the directory of the folder that `name` is within, "" for the mailbox's root.

    A folder whose parent has no directory is within the nearest ancestor that has one: `.A.B`
    without `.A` is "A.B" in the root. `existing` are the directories of all folders.
    """
    parent = name
    while parent := parent.rpartition(SEPARATOR)[0]:
        if parent in existing:
            return parent
    return ""


def directory_within(parent: Folder | None, name: str) -> str:
    """Return the directory of the folder `name` (on disk) within `parent`, None for the root."""
    above = "" if parent is None else parent.path.name
    if parent is not None and parent.well_known is WellKnown.INBOX:
        above = _INBOX_AS_PARENT
    return f"{above}{SEPARATOR}{name}"


def is_deleted(folder: Folder) -> bool:
    """Return whether a folder is Deleted Items or within it: deletion there is permanent."""
    deleted = _WELL_KNOWN[WellKnown.DELETED_ITEMS].directory
    return (folder.path.name + SEPARATOR).startswith(deleted + SEPARATOR)


def list_folders(mailbox: Path) -> list[Folder]:
    """Return every folder without its counts, well-known ones first, the others by name."""
    others = folder_directories(mailbox)
    existing = {_INBOX_AS_PARENT, *_BY_DIRECTORY, *others} - {""}
    ids = _ids(mailbox, others)
    parents = {name: parent_directory(name, existing) for name in others}
    children = Counter(ids[parent] for parent in parents.values() if parent)
    folders = [
        Folder(str(name), known.display_name, mailbox / known.directory, name)
        for name, known in _WELL_KNOWN.items()
    ]
    for name in others:
        parent = parents[name]
        display_name = decode_folder_name(name[len(parent) + 1 :])
        parent_id = ids[parent] if parent else ""
        folders.append(Folder(ids[name], display_name, mailbox / name, parent_id=parent_id))
    return [replace(folder, children=children[folder.id]) for folder in folders]


def find_folder(mailbox: Path, folder_id: str) -> Folder:
    """Find a folder by id or well-known name, case-insensitively.

    Raises NoSuchItemError.
    """
    lower_id = folder_id.lower()
    for folder in list_folders(mailbox):
        if folder.id == lower_id:
            return folder
    if lower_id in _UNSUPPORTED:
        raise NoSuchItemError(
            f"The folder {folder_id!r} is not supported. The well-known folders of a mailbox are"
            f" {', '.join(_IDS)} and {ROOT_ID}."
        )
    if lower_id == ROOT_ID:
        raise NoSuchItemError("The top of a mailbox has folders and no messages.")
    raise NoSuchItemError(f"There is no folder {folder_id!r} in this mailbox.")


def root_folder(mailbox: Path, folders: Iterable[Folder]) -> Folder:
    """Return msgfolderroot, the parent of all folders; it has no directory."""
    children = sum(not folder.parent_id for folder in folders)
    return Folder(ROOT_ID, "Top of Information Store", mailbox, children=children)


def _ids(mailbox: Path, others: Iterable[str]) -> dict[str, str]:
    """Return each directory's folder id. A copied directory gets a new id."""
    ids = {known.directory: str(name) for name, known in _WELL_KNOWN.items()}
    ids[_INBOX_AS_PARENT] = str(WellKnown.INBOX)
    taken = set(ids.values()) | WELL_KNOWN_NAMES
    unmarked = []
    for name in others:
        folder_id = read_folder_id(mailbox / name)
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


def read_folder_id(path: Path) -> str:
    """Return the id in a folder's marker file, "" if there is none."""
    with suppress(*_NO_MARKER), opened(path / MARKER, os.O_NONBLOCK) as descriptor:
        marked = _MARKED.fullmatch(os.read(descriptor, _MARKER_BYTES_MAX))
        return marked[1].decode() if marked else ""
    return ""


def _derived_id(directory: str, number: int) -> str:
    octets = os.fsencode(directory) + (b"/%d" % number if number else b"")
    return "f" + b32encode(hashlib.sha256(octets).digest()).decode().lower()[:15]


def _make_maildir(path: Path, *, is_folder: bool) -> None:
    if all((path / name).is_dir() for name in DIRECTORIES):
        return
    maildir.make_directory(path)
    if is_folder and not (path / MARKER).exists():
        (path / MARKER).touch(0o600)
    maildir.make_directories(path, DIRECTORIES)
