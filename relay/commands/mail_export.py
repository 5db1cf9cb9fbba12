"""Write the messages of a mailbox as .eml files, an mbox file or a Maildir.

A message is written as `$value` gives it: a draft as MIME. In .eml files and a Maildir every octet
stays; a message with a state (relay/mailbox/message_state.py) gets X-Relay-Properties as its first
field, which mail_import reads. mbox has LF line ends, and lines that begin with From get a >
(mboxrd). A message whose first line ends in a bare CR keeps CRLF there, with its From line:
mail_import takes the line ends of a message from these two lines. Messages of any size are read in
blocks. Raises OSError.
"""

import re
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from glob import escape
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from relay.files import OpenOctets
from relay.mailbox.folders import list_folders
from relay.mailbox.index.identity import read_id_claim
from relay.mailbox.maildir import list_names, open_message
from relay.mailbox.message_file import MessageName, is_relay_name, parse_name
from relay.mailbox.state_file import StateFile
from relay.mailbox.types import Folder
from relay.message.content import blocks
from relay.mime.convert import render

FORMATS = ("eml", "mbox", "maildir")
_FROM = re.compile(rb"^(>*From )", re.MULTILINE)
_RETURN_PATH = re.compile(rb"Return-Path:[ \t]*<([^<>\r\n ]+)>", re.IGNORECASE)
STATE_FIELD = b"X-Relay-Properties:"
_STATE_LINE = 76
_LINE_BYTES_MAX = 1 << 20  # of a line that is kept until it is complete


class StoredMail(Struct, frozen=True):
    """A message of a mailbox."""

    folder: Folder
    directory: str
    name: MessageName
    state: bytes = b""  # of message_state.encode_state()

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder.path / self.directory / self.name.file_name

    def pieces(self) -> Iterator[bytes]:
        """Yield its MIME."""
        with open_message(self.path) as file:
            yield from blocks(render(OpenOctets.of(file)))

    def state_field(self, line_end: bytes) -> bytes:
        """Return the header field with its state, b"" if it has none."""
        text = b64encode(self.state)
        lines = [text[at : at + _STATE_LINE] for at in range(0, len(text), _STATE_LINE)]
        folded = (line_end + b" ").join((STATE_FIELD, *lines))
        return folded + line_end if lines else b""

    def with_state(self) -> Iterator[bytes]:
        """Yield its MIME behind the field with its state."""
        pieces = self.pieces()
        first = next(pieces, b"")
        yield self.state_field(b"\r\n" if first.partition(b"\n")[0].endswith(b"\r") else b"\n")
        yield first
        yield from pieces


def stored_mail(folders: Iterable[Folder], states: StateFile | None = None) -> Iterator[StoredMail]:
    """Yield the messages of these folders, the oldest of each first. Raises StoreUnavailableError
    if their states cannot be read.
    """
    for folder in folders:
        found = [
            (name.seconds, name.file_name, StoredMail(folder, directory, name))
            for directory in ("new", "cur")
            for file_name in list_names(folder.path / directory)
            if (name := parse_name(file_name)) is not None
        ]
        for *_, mail in sorted(found, key=lambda one: one[:2]):
            yield mail if states is None else replace(mail, state=_state_of(mail, states))


def _state_of(mail: StoredMail, states: StateFile) -> bytes:
    if not states.mark():
        return b""
    ids = [mail.name.message_id]
    if not is_relay_name(mail.name.file_name):  # a mail server may have given the file its name
        claim = read_id_claim(str(mail.path), mail.name)
        ids += [claim.message_id] if claim is not None else []
    return next((state for one in ids if (state := states.find(one))), b"")


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
        _write(directory / f"{one.name.base_name}.eml", one.with_state())
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
        flagged = f"{base}:2,{one.name.flags}" if one.directory == "cur" else base
        (folder / "new" / base).unlink(missing_ok=True)
        for other in (folder / "cur").glob(f"{escape(base)}:2,*"):
            other.unlink()
        _write(folder / one.directory / flagged, one.with_state(), part=folder / "tmp" / base)
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
    for piece in mail.pieces():
        if is_begin:
            if piece.partition(b"\n")[0].endswith(b"\r\r"):
                line_end = b"\r\n"
            found = _RETURN_PATH.match(piece)
            sender = found[1].decode("ascii", "replace") if found else "MAILER-DAEMON"
            at = time.asctime(time.gmtime(mail.name.seconds))
            yield f"From {sender} {at}".encode() + line_end + mail.state_field(line_end)
            is_begin = False
        complete, ended, rest = (rest + piece).rpartition(b"\n")
        yield _quoted(complete + ended, line_end, is_line_begin=is_line_begin)
        is_line_begin = is_line_begin or bool(ended)
        if len(rest) > _LINE_BYTES_MAX:
            yield _quoted(rest[:-1], line_end, is_line_begin=is_line_begin)
            is_line_begin, rest = False, rest[-1:]  # perhaps the CR of its end
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


def _write(path: Path, pieces: Iterable[bytes], *, part: Path | None = None) -> None:
    part = part or path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.writelines(pieces)
    part.replace(path)
