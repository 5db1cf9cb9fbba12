"""Put messages from .eml, mbox and Maildir into a mailbox, as another mail program does.

The file of a message is named by the digest of its content, so a repeated import adds nothing. Line
ends become CRLF, and the fields X-Relay-* are removed; nothing else is changed. Messages of any
size are read in blocks. No symbolic link is followed; links in a directory are noted. Raises
BadMailError with file and position, and OSError; messages that were imported before are kept.
"""

import contextlib
import hashlib
import os
import re
import time
from calendar import timegm
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from relay.store.mailbox.folders import list_folders
from relay.store.mailbox.maildir import list_names, open_message, place, remove, sync_directory
from relay.store.mailbox.message_file import FLAGGED, SEEN

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
_KEPT_FLAGS = frozenset((SEEN, FLAGGED, "R", "P"))


class BadMailError(Exception):
    """A file is not what was expected; the text names file and position."""


class FoundMail(Struct, frozen=True):
    """A message in a file: its octets from `start` to `end`, and its place for error messages.

    In an mbox file, `from_line` is the line before the message, and a > is removed from lines that
    begin with >From (mboxrd). `flags` are the flags of Maildir, None for new mail.
    """

    path: Path
    start: int
    end: int
    place: str
    at_s: int
    from_line: bytes = b""
    flags: str | None = None

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, very long ones in pieces, with the line ends that they have."""
        with open_message(self.path) as file:
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


def find_mail(
    path: Path,
    note: Callable[[str], object] = lambda _: None,
    pass_over: Callable[[BadMailError], object] | None = None,
) -> Iterator[FoundMail]:
    """Yield the messages of a file or directory. `note` gets remarks for the user, `pass_over` the
    error of each file in a directory that has no mail.

    Raises BadMailError, OSError.
    """
    if path.is_symlink():
        raise BadMailError(f"{path}: found a symbolic link, expected mail: name what it leads to")
    if not path.is_dir():
        yield from _in_file(path)
    elif (path / "cur").is_dir() or (path / "new").is_dir():
        yield from _in_maildir(path, note)
    else:
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".eml")
        if not files:
            raise BadMailError(f"{path}: found no .eml file and no Maildir (cur, new)")
        for file in files:
            if file.is_symlink():
                note(_left_out(file))
            else:
                try:
                    yield from _in_file(file)
                except BadMailError as error:
                    if pass_over is None:
                        raise
                    pass_over(error)


def _left_out(link: Path) -> str:
    return f"left out {link}: a symbolic link"


def _in_file(path: Path) -> Iterator[FoundMail]:
    if not path.is_file():
        raise BadMailError(f"{path}: found no regular file, expected mail")
    with open_message(path) as file:
        begin = file.read(len(_FROM))
    if begin == _FROM:
        yield from _in_mbox(path)
    else:
        status = path.stat()
        yield FoundMail(path, 0, status.st_size, str(path), _mtime_s(status))


def _in_mbox(path: Path) -> Iterator[FoundMail]:
    """Yield the messages of an mbox file. A separator is a line "From " at the begin of the file or
    after an empty line, which does not belong to the message before. Some programs write no empty
    line. Then the separator must have a date, or "-" for the sender, and a header must follow.
    """
    begun: tuple[int, int, bytes] | None = None  # its line number, its start, its line
    number = position = last_start = 0
    was_empty = at_begin = True
    with open_message(path) as file:
        while line := file.readline(_LINE_BYTES):
            after = position + len(line)
            if (was_empty and line.startswith(_FROM)) or (
                at_begin and _SEPARATOR.match(line) and _begins_with_field(file)
            ):
                if begun is not None:
                    yield _of_mbox(path, begun, last_start if was_empty else position)
                begun = (number + 1, after, line)
            last_start, position = position, after
            was_empty = at_begin and line in (b"\n", b"\r\n")
            at_begin = line.endswith(b"\n")
            number += at_begin
    if begun is not None:
        yield _of_mbox(path, begun, last_start if was_empty else position)


def _begins_with_field(file: BinaryIO) -> bool:
    """Return whether the next line is a field. The position in the file does not change."""
    place = file.tell()
    match = _FIELD.match(file.readline(_LINE_BYTES))
    file.seek(place)
    return match is not None


def _of_mbox(path: Path, begun: tuple[int, int, bytes], end: int) -> FoundMail:
    number, start, line = begun
    words = line.decode("ascii", "replace").split()
    at_s = _mtime_s(path.stat())
    with contextlib.suppress(ValueError):
        at_s = timegm(time.strptime(" ".join(words[-5:]), "%a %b %d %H:%M:%S %Y"))
    return FoundMail(path, start, end, f"{path}:{number}", max(at_s, 0), from_line=line)


def _in_maildir(path: Path, note: Callable[[str], object]) -> Iterator[FoundMail]:
    for directory in ("cur", "new"):
        if (path / directory).is_symlink():
            note(_left_out(path / directory))
            continue
        for name in sorted(list_names(path / directory)):
            file = path / directory / name
            if file.is_symlink():
                note(_left_out(file))
                continue
            if name.startswith(".") or not file.is_file():
                continue
            flags = None
            if directory == "cur" or ":2," in name:
                flags = "".join(sorted(_KEPT_FLAGS & set(name.partition(":2,")[2])))
            status = file.stat()
            yield FoundMail(file, 0, status.st_size, str(file), _mtime_s(status), flags=flags)


def _mtime_s(status: os.stat_result) -> int:
    return max(0, int(status.st_mtime))  # a name has no sign


class MailImport:
    """Adds messages to a folder; `folder` is the directory of one of the folders of `mailbox`."""

    def __init__(self, mailbox: Path, folder: Path, *, hostname: str) -> None:
        self._folder = folder
        self._hostname = hostname
        self._present = {
            match[1]
            for stored in list_folders(mailbox)
            for directory in ("new", "cur")
            for name in list_names(stored.path / directory)
            if (match := _IMPORTED.match(name))
        }
        self.imported = self.present = 0

    def add(self, mail: FoundMail) -> None:
        """Add a message unless the mailbox has it. Raises BadMailError, OSError."""
        temporary = self._folder / "tmp" / f"import.{os.getpid()}.{self._hostname}"
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
            name = digest.hexdigest()[:32]
            if name in self._present:
                self.present += 1
                return
            base_name = f"{mail.at_s}.I{name}.{self._hostname},S={size}"
            is_new = mail.flags is None
            target = f"new/{base_name}" if is_new else f"cur/{base_name}:2,{mail.flags}"
            place(temporary, self._folder / target)
            self._present.add(name)
            self.imported += 1
        finally:
            remove(temporary)

    def finish(self) -> None:
        """Make what was added durable. Raises OSError."""
        for directory in ("new", "cur"):
            sync_directory(self._folder / directory)


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
