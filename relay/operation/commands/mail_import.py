"""Put messages from .eml, mbox and Maildir into a mailbox, as another mail program does.

The file of a message is named by the digest of its content and folder, so a repeated import adds
nothing. Line ends become CRLF, and the fields X-Relay-* are removed; nothing else is changed.
Messages of any size are read in blocks. A Maildir may have its folders as Maildir++ (`.A.B`) or as
directories (`A/B`). No symbolic link is followed; links in a directory are reported. Raises
BadMailError with file and position, and OSError; messages that were imported before are kept.
"""

import contextlib
import hashlib
import os
import re
import time
from calendar import timegm
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Ids
from relay.store.mailbox.errors import FolderError
from relay.store.mailbox.folder_tree import create_folder, same_named
from relay.store.mailbox.folders import (
    DIRECTORIES,
    SEPARATOR,
    checked_directory,
    encode_folder_name,
    find_folder,
    imap_name,
    list_folders,
)
from relay.store.mailbox.maildir import list_names, open_message, place, remove, sync_directory
from relay.store.mailbox.message_file import DRAFT, FLAGGED, SEEN
from relay.store.mailbox.stored_message import Folder, WellKnown

_LINE_BYTES = 64 * 1024  # of a longer line, at once
_FROM = b"From "
_QUOTED = re.compile(rb">+From ")
_SEPARATOR = re.compile(
    rb"From (?:-\s|.*?\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) +"
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +\d)"
)
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
_OWN_FIELD = b"x-relay-"
_IMPORTED = re.compile(r"\d+\.I([0-9a-f]{32})\.")
_SHOWN = 60
_KEPT_FLAGS = frozenset((DRAFT, SEEN, FLAGGED, "R", "P"))  # DRAFT in Drafts only
FOLDERS_MAX = 1000  # of one Maildir
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# What mail servers keep next to mail, and hidden files.
_NO_MAIL = re.compile(
    r"\..*|(dovecot|courier).*(?<!\.eml)|maildir(folder|size)|sieve|subscriptions"
)
_HEADER_OCTETS_MAX = 256 * 1024
_HEADER = re.compile(rb"(?:From .*\n)?(?:[!-9;-~]+[ \t]*:.*\n(?:[ \t].*\n)*)+\r?\n")
_OF_MAIL = re.compile(rb"(?im)^(?:From|Date|Received|Message-ID|Return-Path)[ \t]*:")
# What mail programs call the folders, and the display names of Relay's.
_USUAL_NAMES = {
    "sent": "Sent Items",
    "sent mail": "Sent Items",
    "sent messages": "Sent Items",
    "junk": "Junk Email",
    "spam": "Junk Email",
    "trash": "Deleted Items",
    "deleted messages": "Deleted Items",
    "archives": "Archive",
}


class BadMailError(Exception):
    """A file is not what was expected; the text names file and position."""


_LeaveOut = Callable[[BadMailError], object]


class FoundMail(Struct, frozen=True):
    """A message in a file: its octets from `start` to `end`, and its place for error messages.

    In an mbox file, `from_line` is the line before the message, and a > is removed from lines that
    begin with >From (mboxrd).
    """

    path: Path  # of the file
    top: Path  # the directory above what the user named; no link below it is followed
    start: int  # in octets
    end: int  # in octets
    place: str  # the path, in an mbox file with the line
    at_s: int  # when it came: the time of the file, or of the separator
    from_line: bytes = b""  # the separator of an mbox file
    flags: str | None = None  # of Maildir; None for new mail
    folder: tuple[str, ...] = ()  # names of its folder and those above it; () for the inbox

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, very long ones in pieces, with the line ends that they have."""
        with _opened(self.path, self.top) as file:
            file.seek(self.start)
            at_begin = True
            while file.tell() < self.end:
                line = file.readline(min(_LINE_BYTES, self.end - file.tell()))
                if line.endswith(b"\r") and file.tell() < self.end:
                    line += file.read(1)  # do not split a CRLF
                if self.from_line and at_begin and _QUOTED.match(line):
                    line = line[1:]
                at_begin = line.endswith(b"\n")
                yield line


def find_mail(path: Path, leave_out: _LeaveOut) -> Iterator[FoundMail]:
    """Yield the messages of a file, a Maildir with its folders, or a directory of files.

    `leave_out` gets the error of each link, and of each file in a directory that has no mail.
    Raises BadMailError, OSError.
    """
    if path.is_symlink():
        raise BadMailError(f"{path}: found a symbolic link, expected mail: name what it leads to")
    if not path.is_dir():
        yield from _in_file(path, path.parent)
        return
    waiting, number, is_empty = [path], 0, True
    while waiting:
        directory = waiting.pop()
        below, files = _entries(directory, path.parent, leave_out)
        places = [inner for inner in below if inner.name in ("cur", "new")]
        number += bool(places)
        if number > FOLDERS_MAX:
            raise BadMailError(f"{path}: found more than {FOLDERS_MAX} folders")
        for inside in places:
            folder = _folder_names(directory.relative_to(path))
            _, messages = _entries(inside, path.parent, leave_out)
            yield from _in_files(messages, path.parent, leave_out, folder=folder)
        if not places and (directory == path or not _NO_MAIL.fullmatch(directory.name)):
            yield from _in_files(files, path.parent, leave_out, folder=None)
        is_empty = is_empty and not (places or files)
        waiting += [sub for sub in reversed(below) if not (places and sub.name in DIRECTORIES)]
    if is_empty:
        raise BadMailError(f"{path}: found no file with mail and no Maildir (cur, new)")


def _folder_names(path: Path) -> tuple[str, ...]:
    """Return the names of a folder and of those above it, by its directory in the Maildir."""
    return tuple(
        imap_name(name)
        for part in path.parts
        for name in (part[1:].split(SEPARATOR) if part.startswith(SEPARATOR) else (part,))
    )


@contextlib.contextmanager
def _directory(path: Path, top: Path) -> Iterator[int]:
    """Open a directory for the block. Raises BadMailError for a link below `top`, OSError."""
    descriptor = os.open(top, _DIRECTORY)
    try:
        for part in path.relative_to(top).parts:
            below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    except NotADirectoryError as error:
        raise BadMailError(f"{path}: found no directory, expected mail") from error
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened(path: Path, top: Path) -> Iterator[BinaryIO]:
    """Open a file for the block. Raises BadMailError for a link or another kind, OSError."""
    try:
        with _directory(path.parent, top) as above, open_message(Path(path.name), above) as file:
            yield file
    except FileNotFoundError as error:
        raise BadMailError(f"{path}: found no regular file, expected mail") from error


def _entries(directory: Path, top: Path, leave_out: _LeaveOut) -> tuple[list[Path], list[Path]]:
    """Return the directories, and the files that may be mail, each sorted."""
    directories, files = [], []
    with _directory(directory, top) as descriptor, os.scandir(descriptor) as entries:
        for listed in sorted(entries, key=attrgetter("name")):
            path = directory / listed.name
            if listed.is_dir(follow_symlinks=False):
                if not listed.name.startswith("..DOVECOT-TRASHED"):
                    directories.append(path)
            elif listed.is_symlink() and listed.name != ".dovecot.sieve":
                leave_out(BadMailError(f"{path}: found a symbolic link"))
            elif not _NO_MAIL.fullmatch(listed.name):
                files.append(path)
    return directories, files


def _in_files(
    files: list[Path], top: Path, leave_out: _LeaveOut, *, folder: tuple[str, ...] | None
) -> Iterator[FoundMail]:
    """Yield the messages of the files in a directory; `folder` is None outside a Maildir."""
    for file in files:
        flags = None
        if folder is not None and (file.parent.name == "cur" or ":2," in file.name):
            flags = "".join(sorted(_KEPT_FLAGS & set(file.name.partition(":2,")[2])))
        try:
            if folder is None and file.suffix.lower() != ".eml":
                _expect_mail(file, top)
            for mail in _in_file(file, top):
                yield replace(mail, flags=flags, folder=folder or ())
        except BadMailError as error:
            leave_out(error)


def _expect_mail(path: Path, top: Path) -> None:
    """Raise BadMailError if a file of any name does not begin with the header of a message."""
    with _opened(path, top) as file:
        header = _HEADER.match(file.read(_HEADER_OCTETS_MAX))
    if header is None or not _OF_MAIL.search(header[0]):
        raise BadMailError(f"{path}: found no header of a message, such as From: or Date:")


def _in_file(path: Path, top: Path) -> Iterator[FoundMail]:
    with _opened(path, top) as file:
        status = os.fstat(file.fileno())
        whole = FoundMail(path, top, 0, status.st_size, str(path), max(0, int(status.st_mtime)))
        if file.read(len(_FROM)) != _FROM:
            yield whole
            return
        file.seek(0)
        yield from _in_mbox(whole, file)


def _in_mbox(whole: FoundMail, file: BinaryIO) -> Iterator[FoundMail]:
    """Yield the messages of an mbox file. A separator is a line "From " at the begin of the file or
    after an empty line, which does not belong to the message before. Some programs write no empty
    line. Then the separator must have a date, or "-" for the sender, and a header must follow.
    """
    begun: tuple[int, int, bytes] | None = None  # its line number, its start, its line
    number = position = last_start = 0
    was_empty = at_begin = True
    while line := file.readline(_LINE_BYTES):
        after = position + len(line)
        if (was_empty and line.startswith(_FROM)) or (
            at_begin and _SEPARATOR.match(line) and _begins_with_field(file)
        ):
            if begun is not None:
                yield _of_mbox(whole, begun, last_start if was_empty else position)
            begun = (number + 1, after, line)
        last_start, position = position, after
        was_empty = at_begin and line in (b"\n", b"\r\n")
        at_begin = line.endswith(b"\n")
        number += at_begin
    if begun is not None:
        yield _of_mbox(whole, begun, last_start if was_empty else position)


def _begins_with_field(file: BinaryIO) -> bool:
    """Return whether the next line is a field. The position in the file does not change."""
    place = file.tell()
    match = _FIELD.match(file.readline(_LINE_BYTES))
    file.seek(place)
    return match is not None


def _of_mbox(whole: FoundMail, begun: tuple[int, int, bytes], end: int) -> FoundMail:
    number, start, line = begun
    words = line.decode("ascii", "replace").split()
    at_s = whole.at_s
    with contextlib.suppress(ValueError):
        at_s = max(0, timegm(time.strptime(" ".join(words[-5:]), "%a %b %d %H:%M:%S %Y")))
    place = f"{whole.path}:{number}"
    return replace(whole, start=start, end=end, place=place, at_s=at_s, from_line=line)


class MailImport:
    """Adds messages to a mailbox: those of an inbox to the folder `base`, other folders below it.

    Without a `base` these are the Inbox and the folders of the mailbox, by the usual names.
    """

    def __init__(
        self, mailbox: Path, base: Folder | None = None, *, hostname: str, ids: Ids
    ) -> None:
        self._mailbox = mailbox
        self._base = base
        self._hostname = hostname
        self._ids = ids
        self._folders: dict[tuple[str, ...], Folder] = {}
        self._listed = list_folders(mailbox)
        self._present = {  # by digest: the directory of the folder
            match[1]: stored.path
            for stored in self._listed
            for directory in ("new", "cur")
            for name in list_names(stored.path / directory)
            if (match := _IMPORTED.match(name))
        }
        self.imported = self.present = 0

    def add(self, mail: FoundMail) -> None:
        """Add a message unless it was added before from the same folder.

        Raises BadMailError, OSError.
        """
        try:
            folder = self._folder(mail.folder)
        except FolderError as error:
            raise BadMailError(f"{mail.place}: {error}") from error
        temporary = folder.path / "tmp" / f"import.{os.getpid()}.{self._hostname}"
        digest = hashlib.sha256()
        try:
            with temporary.open("xb") as file:
                for piece in _normalized(mail):
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.utime(file.fileno(), (mail.at_s, mail.at_s))
                os.fsync(file.fileno())
                size = file.tell()
            name = content_name = digest.hexdigest()[:32]
            if folder.well_known is not WellKnown.INBOX:  # a name, and so an id, for each folder
                digest.update(folder.id.encode())
                name = digest.hexdigest()[:32]
            if name in self._present or self._present.get(content_name) == folder.path:
                self.present += 1
                return
            base_name = f"{mail.at_s}.I{name}.{self._hostname},S={size}"
            flags = mail.flags
            if flags and folder.well_known is not WellKnown.DRAFTS:
                flags = flags.replace(DRAFT, "")
            target = f"new/{base_name}" if flags is None else f"cur/{base_name}:2,{flags}"
            place(temporary, folder.path / target)
            self._present[name] = folder.path
            self.imported += 1
        finally:
            remove(temporary)

    def _folder(self, names: tuple[str, ...]) -> Folder:
        """Return the folder for a folder of the source; make it. Raises FolderError, OSError."""
        if names in self._folders:
            return self._folders[names]
        if any(".." in name or "/" in name for name in names):
            raise FolderError(f"The name of the folder has '..' or '/': {names}.")
        checked_directory(SEPARATOR.join(map(encode_folder_name, names)))
        folder = self._base
        for name in names:
            known = name if folder else _USUAL_NAMES.get(name.casefold(), name)
            parent_id = folder.id if folder else ""
            while not (child := next(same_named(self._listed, parent_id, known), None)):
                create_folder(self._mailbox, name, folder, folder_id=f"f{self._ids.new()}")
                self._listed = list_folders(self._mailbox)
            folder = child
        self._folders[names] = folder or find_folder(self._mailbox, WellKnown.INBOX)
        return self._folders[names]

    def finish(self) -> None:
        """Make what was added durable. Raises OSError."""
        for folder in self._folders.values():
            for directory in ("new", "cur"):
                sync_directory(folder.path / directory)


def _normalized(mail: FoundMail) -> Iterator[bytes]:
    """Yield the octets with CRLF line ends and without Relay's fields. Raises BadMailError.

    A CR before the LF belongs to the line end.
    """
    in_header, is_dropped, is_first = True, False, True
    last = b""
    for line in mail.lines():
        if is_first and not _FIELD.match(line):
            begin = line[:_SHOWN].decode("ascii", "backslashreplace").rstrip()
            raise BadMailError(
                f"{mail.place}: found {begin!r}, expected the header of a message, such as From:"
            )
        is_first = False
        if in_header and not last.endswith(b"\n") and last:
            pass  # the rest of a very long line
        elif in_header:
            in_header = line.rstrip(b"\r\n") != b""
            if not line.startswith((b" ", b"\t")):
                is_dropped = line[: len(_OWN_FIELD)].lower() == _OWN_FIELD
        last = line
        if in_header and is_dropped:
            continue
        yield line[:-1].removesuffix(b"\r") + b"\r\n" if line.endswith(b"\n") else line
    if is_first:
        raise BadMailError(f"{mail.place}: found no octets, expected a message")
    if not last.endswith(b"\n"):
        yield b"\r\n"
