"""Write the messages of a mailbox as .eml files, an mbox file or a Maildir.

A message is written as `$value` gives it: a draft as MIME. In .eml files and a Maildir every octet
stays. A message with a state (relay/mailbox/message_state.py), or in .eml and mbox with flags, gets
X-Relay-Properties as its first field, which mail_import reads. mbox has LF line ends, and lines
that begin with From get a > (mboxrd). A message whose first line ends in a bare CR keeps CRLF
there, with its From line: mail_import takes the line ends of a message from these two lines.
Messages of any size are read in blocks. Raises OSError.
"""

import os
import re
import shutil
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import reduce
from glob import escape
from pathlib import Path
from stat import S_ISREG
from tempfile import TemporaryDirectory
from typing import BinaryIO

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock
from relay.base.files import OpenOctets
from relay.mailbox.folders import list_folders
from relay.mailbox.index.mailbox_index import MailboxIndex
from relay.mailbox.index.rows import state_ids_in
from relay.mailbox.index.watch import InotifyWatcher
from relay.mailbox.maildir import list_names, open_message
from relay.mailbox.message_file import FLAGGED, OTHER, SEEN, MessageName, parse_name
from relay.mailbox.message_state import united
from relay.mailbox.state_file import StateFile, StatePosition
from relay.mailbox.types import Folder
from relay.message.content import blocks
from relay.mime.convert import render

FORMATS = ("eml", "mbox", "maildir")
_FROM = re.compile(rb"^(>*From )", re.MULTILINE)
_RETURN_PATH = re.compile(rb"Return-Path:[ \t]*<([^<>\r\n ]+)>", re.IGNORECASE)
STATE_FIELD = b"X-Relay-Properties:"
KEPT_FLAGS = frozenset((SEEN, FLAGGED, OTHER, "R", "P"))  # by an import
_STATE_LINE = 76
_LINE_BYTES_MAX = 1 << 20  # of a line that is kept until it is complete


class StoredMail(Struct, frozen=True):
    """A message of a mailbox. Its file is open until the next one is asked for."""

    folder: Folder
    directory: str
    name: MessageName
    file: BinaryIO
    state: bytes = b""  # of message_state.encode_state()

    def pieces(self) -> Iterator[bytes]:
        """Yield its MIME."""
        yield from blocks(render(OpenOctets.of(self.file)))

    def state_field(self, before: bytes, line_end: bytes, *, with_flags: bool) -> bytes:
        """Return the field with its flags and its state, b"" if it has none, for the message that
        begins with `before`.
        """
        flags = "".join(sorted(KEPT_FLAGS & set(self.name.flags))) if with_flags else ""
        text = b64encode(self.state)
        lines = [text[at : at + _STATE_LINE] for at in range(0, len(text), _STATE_LINE)]
        field = STATE_FIELD + (f" {flags};".encode() if flags else b"")
        # A field of that name that the message has must not become its state.
        is_needed = flags or lines or before[: len(STATE_FIELD)].lower() == STATE_FIELD.lower()
        return (line_end + b" ").join((field, *lines)) + line_end if is_needed else b""

    def with_state(self, *, with_flags: bool) -> Iterator[bytes]:
        """Yield its MIME behind the field with its state."""
        pieces = self.pieces()
        first = next(pieces, b"")
        line_end = b"\r\n" if first.partition(b"\n")[0].endswith(b"\r") else b"\n"
        yield self.state_field(first, line_end, with_flags=with_flags)
        yield first
        yield from pieces


class MailStates:
    """The states of a mailbox's messages, by the ids that its index gives their files.

    It is updated as for a query, also while a relay runs. Where the disk takes none, it is made in
    memory: then a file has the id in its name, else that of X-Relay-Id if no other file has it.
    """

    def __init__(self, mailbox: Path, clock: Clock) -> None:
        self._index = MailboxIndex(mailbox, clock=clock, watcher=InotifyWatcher(watches_max=0))
        self._copy = TemporaryDirectory()
        path = self._index.states.path
        if path.exists() and not (os.access(mailbox, os.W_OK) and os.access(path, os.W_OK)):
            for name in (path.name, f"{path.name}-wal"):  # it cannot be read there
                with suppress(FileNotFoundError):
                    shutil.copyfile(mailbox / name, Path(self._copy.name, name))
            self._index.states = StateFile(Path(self._copy.name))

    def of_folder(self, folder: Folder) -> Callable[[MessageName], bytes]:
        """Return what finds the states of its messages. Raises StoreUnavailableError, as it does
        itself.
        """
        if self._index.states.position() == StatePosition():
            return lambda _: b""
        ids = self._index.run(lambda cursor, _: state_ids_in(cursor, folder.id))

        def state_of(name: MessageName) -> bytes:  # its flags may have changed, or it is new
            found = ids.get(name.file_name) or ids.get(name.base_name) or (name.message_id,)
            return reduce(united, map(self._index.states.find, found))

        return state_of

    def close(self) -> None:
        """Close the index, and the file with the states."""
        self._index.close()
        self._copy.cleanup()


def stored_mail(
    folders: Iterable[Folder], states: MailStates | None = None
) -> Iterator[StoredMail]:
    """Yield the messages of these folders, the oldest of each first. Mail programs may change flags
    meanwhile; what they remove or move out of the folder before its turn is left out. Raises
    StoreUnavailableError if their states cannot be read.
    """
    for folder in folders:
        state_of = states.of_folder(folder) if states is not None else lambda _: b""
        listed = [(name.seconds, name.file_name, at, name) for at, name in _names_in(folder)]
        for *_, directory, name in sorted(listed, key=lambda one: one[:2]):
            if (mail := _opened(folder, directory, name)) is not None:
                with mail.file:
                    yield replace(mail, state=state_of(mail.name))


def _names_in(folder: Folder) -> Iterator[tuple[str, MessageName]]:
    """Yield the directory and the name of each message."""
    for directory in ("new", "cur"):
        for file_name in list_names(folder.path / directory):
            if (name := parse_name(file_name)) is not None:
                yield directory, name


def _opened(folder: Folder, directory: str, name: MessageName) -> StoredMail | None:
    """Open a message under the name that it has now, None if it is gone, or no regular file but a
    symbolic link, a directory, a pipe. Raises FileNotFoundError
    if it has another name each time.
    """
    for is_last in (False, False, True):
        path = folder.path / directory / name.file_name
        try:
            return StoredMail(folder, directory, name, open_message(path))
        except FileNotFoundError:
            with suppress(FileNotFoundError):
                if not S_ISREG(path.lstat().st_mode):
                    return None
            if is_last:
                raise
        same = [one for one in _names_in(folder) if one[1].base_name == name.base_name]
        if not same:
            break
        directory, name = same[-1]  # a flag is set in cur
    return None


def folders_of(mailbox: Path, wanted: str) -> list[Folder]:
    """Return the folders with this name or id, or all for ""."""
    folders = list_folders(mailbox)
    names = wanted.casefold()
    return [one for one in folders if names in ("", one.id.casefold(), one.display_name.casefold())]


def export_eml(mail: Iterable[StoredMail], target: Path) -> int:
    """Write TARGET/FOLDER/NAME.eml; a repetition writes the same files. Return the number."""
    number = 0
    for one in mail:
        directory = target / _folder_name(one.folder)
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / f"{one.name.base_name}.eml", one, is_maildir=False)
        number += 1
    return number


def export_maildir(mail: Iterable[StoredMail], target: Path) -> int:
    """Write a Maildir++ with the same flags; a repetition replaces what is there."""
    number = 0
    for one in mail:
        is_inbox = not one.folder.path.name.startswith(".")
        folder = target if is_inbox else target / one.folder.path.name
        for name in ("tmp", "new", "cur"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if not is_inbox:
            (folder / "maildirfolder").touch()
        base = one.name.base_name
        is_new = one.directory == "new" and not one.name.flags
        flagged = f"new/{base}" if is_new else f"cur/{base}:2,{one.name.flags}"
        (folder / "new" / base).unlink(missing_ok=True)
        for other in (folder / "cur").glob(f"{escape(base)}:2,*"):
            other.unlink()
        _write(folder / flagged, one, is_maildir=True)
        number += 1
    return number


def export_mbox(mail: Iterable[StoredMail], target: Path) -> int:
    """Write one mbox file. Raises FileExistsError."""
    part = target.with_name(f"{target.name}.part")
    number = 0
    with target.open("xb"), part.open("wb") as file:
        for one in mail:
            for piece in _mboxrd(one):
                file.write(piece)
            number += 1
    part.replace(target)
    return number


def _mboxrd(mail: StoredMail) -> Iterator[bytes]:
    rest, line_end = b"", b"\n"
    is_begin = is_line_begin = True
    for piece in filter(None, mail.pieces()):
        if is_begin:
            if piece.partition(b"\n")[0].endswith(b"\r\r"):
                line_end = b"\r\n"
            found = _RETURN_PATH.match(piece)
            sender = found[1].decode("ascii", "replace") if found else "MAILER-DAEMON"
            at = time.asctime(time.gmtime(mail.name.seconds))
            yield f"From {sender} {at}".encode() + line_end
            yield mail.state_field(piece, line_end, with_flags=True)
            is_begin = False
        complete, ended, rest = (rest + piece).rpartition(b"\n")
        yield _quoted(complete + ended, line_end, is_line_begin=is_line_begin)
        is_line_begin = is_line_begin or bool(ended)
        if len(rest) > _LINE_BYTES_MAX:
            yield _quoted(rest[:-1], line_end, is_line_begin=is_line_begin)
            is_line_begin, rest = False, rest[-1:]  # perhaps the CR of its end
    if not is_begin:  # a file without octets is no message of an mbox
        yield _quoted(rest, line_end, is_line_begin=is_line_begin)
        yield line_end * 2 if rest else line_end


def _quoted(lines: bytes, line_end: bytes, *, is_line_begin: bool) -> bytes:
    first = 0 if is_line_begin else lines.find(b"\n") + 1 or len(lines)
    quoted = lines[:first] + _FROM.sub(rb">\1", lines[first:])
    return quoted.replace(b"\r\n", line_end)


def _folder_name(folder: Folder) -> str:
    name = folder.path.name
    if not name.startswith("."):
        return "INBOX"
    return name[1:] if name.strip(".") else name  # never ".."


def _write(path: Path, mail: StoredMail, *, is_maildir: bool) -> None:
    part = path.with_name(f"{path.name}.part")
    if is_maildir:
        part = path.parent.with_name("tmp") / mail.name.base_name
    with part.open("wb") as file:
        file.writelines(mail.with_state(with_flags=not is_maildir))
    times = os.fstat(mail.file.fileno())  # when it was received
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))
    part.replace(path)
