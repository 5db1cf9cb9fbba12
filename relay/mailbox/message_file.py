"""Names on disk: an account's directory, and what a message's file name tells.

On the path: every module of the store asks it where something is and what it is called.
Holds: no account's name leaves the root; a message's id is the same whatever its flags and folder.
Fails: NoSuchItemError for an account that can have no directory.
Standards: Maildir (base name, `,S=`, `:2,` and flags); Maildir++.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from relay.clock import ID_LENGTH, id_time_us
from relay.mailbox.types import Folder, NoSuchItemError, WellKnown

DRAFT = "D"
SEEN = "S"
FLAGGED = "F"
NEW_DRAFT = DRAFT + SEEN  # the flags of a draft that the store made
_OURS = re.compile(r"(\d+)\.R([0-9a-z]{16})_(\d+)\.[^,:]*")
_SIZE = re.compile(r",S=(\d+)")
_SECONDS = re.compile(r"\d{1,15}")
_NAME_BYTES_MAX = 255
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_SAFE_IN_NAMES = "!#$&'*+=^_`{|}~-."
# Clock ids use neither letter, so these ids never collide with them and never tell a time.
_FOREIGN = "o"  # a file that another program made
_DELIVERED = "l"  # a file that local delivery made


@dataclass(frozen=True, slots=True)
class MessageName:
    """A file in new/ or cur/. `stem` is the base name without its `,S=`; `size` None if unknown."""

    file_name: str
    base: str
    stem: str
    message_id: str
    generation: int
    seconds: int
    size: int | None
    flags: str


def parse_name(file_name: str) -> MessageName | None:
    """Take a file's name apart; None for a name that is no message's."""
    if file_name.startswith("."):
        return None
    base, _, info = file_name.partition(":")
    stem, _, _ = base.partition(",")
    size = _SIZE.search(base)
    flags = info[2:] if info.startswith("2,") else ""
    if ours := _OURS.fullmatch(stem):
        seconds, message_id, generation = int(ours[1]), ours[2], int(ours[3])
    else:
        told = _SECONDS.match(stem)
        seconds, message_id, generation = int(told[0]) if told else 0, foreign_id(stem), 1
    return MessageName(
        file_name=file_name,
        base=base,
        stem=stem,
        message_id=message_id,
        generation=generation,
        seconds=seconds,
        size=int(size[1]) if size else None,
        flags=flags,
    )


def is_our_name(file_name: str) -> bool:
    """Whether the store named this file."""
    return _OURS.fullmatch(file_name.partition(":")[0].partition(",")[0]) is not None


def message_stem(message_id: str, generation: int, *, time_us: int, hostname: str) -> str:
    """Return a base name without `,S=` for a file of ours."""
    host = hostname.replace("/", r"\057").replace(":", r"\072").replace(",", r"\054")
    return f"{time_us // 1_000_000}.R{message_id}_{generation}.{host}"


def foreign_id(stem: str) -> str:
    """Return the id of a message that another program put there."""
    return _FOREIGN + _digest(stem)


def delivered_id(unique: str) -> str:
    """Return the id of the message that local delivery makes from `unique`."""
    return _DELIVERED + _digest(unique)


def is_delivered_id(message_id: str) -> bool:
    """Whether local delivery made the message of that id."""
    return message_id.startswith(_DELIVERED)


def delivered_stem(unique: str, *, hostname: str) -> str:
    """Return a base name that follows from `unique` alone: the same delivery, the same name.

    Its time is that of the id with which `unique` begins, 0 if there is none.
    """
    time_us = id_time_us(unique[:ID_LENGTH]) or 0
    return message_stem(delivered_id(unique), 1, time_us=time_us, hostname=hostname)


def with_flags(flags: str, *, add: str = "", remove: str = "") -> str:
    """Return flags in ASCII order, each once, as Maildir wants them."""
    return "".join(sorted((set(flags) | set(add)) - set(remove)))


def mailbox_directory(root: Path, account: str) -> Path:
    """Return `root/<domain>/<local-part>`.

    Raises NoSuchItemError for what is no address, or too long to be a name.
    """
    local_part, _, domain = account.rpartition("@")
    names = [_safe(domain), _safe(local_part)]
    if not all(names) or any(len(name) > _NAME_BYTES_MAX for name in names):
        raise NoSuchItemError(f"There is no mailbox {account!r}: expected local-part@domain.")
    return root.joinpath(*names)


def _safe(text: str) -> str:
    """Return one path component that cannot be "..", hidden, or lead elsewhere."""
    name = quote(text, safe=_SAFE_IN_NAMES, errors="replace")
    return "%2E" + name[1:] if name.startswith(".") else name


def _digest(text: str) -> str:
    """Return the beginning of a text's SHA-256 in base 32; b32encode() takes much longer."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    number = int.from_bytes(digest, "big") >> (len(digest) * 8 - (ID_LENGTH - 1) * 5)
    letters = ""
    for _ in range(ID_LENGTH - 1):
        letters = _BASE32[number & 31] + letters
        number >>= 5
    return letters


TIME_US_MAX = (1 << 52) - 1  # in the year 2112


@dataclass(frozen=True, slots=True)
class Located:
    """`directory` is the folder's new/ or cur/; `received_us` 0 if the file has to tell it."""

    folder: Folder
    directory: Path
    name: MessageName
    message_id: str
    generation: int = 1
    received_us: int = 0

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / self.name.file_name


def is_draft_file(flags: str, folder: Folder) -> bool:
    """Whether a file is a draft: by its flag, or because a mail client keeps it in Drafts."""
    return DRAFT in flags or folder.well_known is WellKnown.DRAFTS


def received_at_us(message_id: str, written_us: int) -> int:
    """Return when a message came: what its id tells, if that is a time; else when it was written.

    It is the same for all generations of a draft, and after its file has been moved.
    """
    return min(max(id_time_us(message_id) or written_us, 0), TIME_US_MAX)
