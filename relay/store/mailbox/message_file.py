"""The file of a message: what its name says, its id, where it is, and its content.

A Maildir file name has a base name, `,S=` with the size, and `:2,` with the flags. A message's id
does not depend on its flags and its folder. An account's directory is always below the mail root:
mailbox_directory() raises NoSuchItemError for an account that can have none.

Readers get CRLF where a file has LF alone. Of a large file only the requested parts are in memory.
A FIFO or a symbolic link in a mailbox is not opened. Reading raises FileNotFoundError for a file
that was removed or is no regular file, and OSError.
"""

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import ID_LENGTH, id_time_us
from relay.base.files import OpenOctets
from relay.base.message.content import LARGE_BYTES, MemoryOctets, Octets
from relay.base.message.header import header_section
from relay.formats.draft import AttachmentFacts, read_private_block, with_defaults
from relay.formats.headers import ID_WITHIN_BYTES, read_relay_id
from relay.formats.read_mime import (
    WHOLE,
    AttachedOctets,
    ReadExtent,
    read_attachments,
    read_message,
)
from relay.formats.transfer_encoding import CrlfCoding, recode
from relay.store.mailbox import message_state
from relay.store.mailbox.errors import NoSuchItemError
from relay.store.mailbox.maildir import open_message
from relay.store.mailbox.stored_message import Folder, StoredMessage, WellKnown

DRAFT = "D"
SEEN = "S"
FLAGGED = "F"
NEW_DRAFT = DRAFT + SEEN  # the flags of a draft that the store creates
_RELAY_NAME = re.compile(r"(\d{1,15})\.(?:M\d{6}\.)?R([0-9a-z]{16})_(\d{1,15})\.[^,:]*")
_SIZE = re.compile(r",S=(\d+)")
_SIZES = re.compile(r",[SW]=\d+")  # W: Dovecot's, with CRLF
_SECONDS = re.compile(r"\d{1,15}")
_NAME_BYTES_MAX = 255
_HEADER_BYTES_MAX = 256 * 1024
_BARE_LF_FIRST = re.compile(rb"[^\r\n]*+\n")  # in the first line
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_SAFE_IN_NAMES = "!#$&'*+=^_`{|}~-."
# Clock ids use neither letter, so these ids never collide with them and contain no time.
_FOREIGN = "o"  # a file that another program delivered
_DELIVERED = "l"  # a file that local delivery created


class MessageName(Struct, frozen=True):
    """The name of a file in new/ or cur/."""

    file_name: str  # all of it
    name_with_size: str  # without flags
    base_name: str  # without flags and `,S=`
    message_id: str  # in the name, or made of the base name of another program
    generation: int  # of a draft; 1 for other messages
    seconds: int  # when the file was made, by its name
    size: int | None  # by `,S=`; None: unknown
    flags: str  # of Maildir

    @property
    def name_elsewhere(self) -> str:
        """The name, without flags, in another folder.

        What programs add to a name is valid only in this folder and is left out, such as the UID of
        mbsync (`,U=`). It does not read a folder in which two files have the same UID.
        """
        return self.base_name + "".join(_SIZES.findall(self.name_with_size))


def parse_name(file_name: str) -> MessageName | None:
    """Parse a file name; return None for a name that is not a message's."""
    if file_name.startswith("."):
        return None
    name_with_size, _, info = file_name.partition(":")
    base_name, _, _ = name_with_size.partition(",")
    size = _SIZE.search(name_with_size)
    flags = info[2:] if info.startswith("2,") else ""
    if relay_name := _RELAY_NAME.fullmatch(base_name):
        seconds, message_id, generation = int(relay_name[1]), relay_name[2], int(relay_name[3])
    else:
        match = _SECONDS.match(base_name)
        seconds, message_id, generation = int(match[0]) if match else 0, foreign_id(base_name), 1
    return MessageName(
        file_name=file_name,
        name_with_size=name_with_size,
        base_name=base_name,
        message_id=message_id,
        generation=generation,
        seconds=seconds,
        size=int(size[1]) if size else None,
        flags=flags,
    )


def is_relay_name(file_name: str) -> bool:
    """Return whether the store created this file name."""
    return _RELAY_NAME.fullmatch(file_name.partition(":")[0].partition(",")[0]) is not None


def id_of_name(name: MessageName) -> str:
    """Return the id that a file has only by its name, "" if the store created the name.

    A file that the store created keeps its id under any name.
    """
    return "" if is_relay_name(name.base_name) else name.message_id


def make_base_name(message_id: str, generation: int, *, time_us: int, hostname: str) -> str:
    """Return a new base name without `,S=`."""
    host = hostname.replace("/", r"\057").replace(":", r"\072").replace(",", r"\054")
    return f"{time_us // 1_000_000}.R{message_id}_{generation}.{host}"


def foreign_id(base_name: str) -> str:
    """Return the id of a message that another program delivered."""
    return _FOREIGN + _digest(base_name)


@lru_cache(maxsize=64)  # a delivery asks several times
def delivered_id(unique: str) -> str:
    """Return the id of the message that local delivery makes from `unique`."""
    return _DELIVERED + _digest(unique)


def is_delivered_id(message_id: str) -> bool:
    """Return whether local delivery created the message with that id."""
    return message_id.startswith(_DELIVERED)


def delivered_base_name(unique: str, *, hostname: str) -> str:
    """Return a base name that depends only on `unique`, so that a repeated delivery uses the same
    name.

    Its time is that of the id with which `unique` begins, 0 if there is none. IMAP servers number
    the files of a second in the order of their names: the microseconds come first, and the id of a
    delivery contains no time.
    """
    time_us = id_time_us(unique[:ID_LENGTH]) or 0
    name = make_base_name(delivered_id(unique), 1, time_us=time_us, hostname=hostname)
    return name.replace(".R", f".M{time_us % 1_000_000:06}.R", 1)


def with_flags(flags: str, *, add: str = "", remove: str = "") -> str:
    """Return flags in ASCII order without duplicates, as Maildir requires."""
    return "".join(sorted((set(flags) | set(add)) - set(remove)))


def mailbox_directory(root: Path, account: str) -> Path:
    """Return `root/<domain>/<local-part>`.

    Raises NoSuchItemError for an invalid address or one that is too long for a file name.
    """
    local_part, _, domain = account.rpartition("@")
    names = [_safe(domain), _safe(local_part)]
    if not all(names) or any(len(name) > _NAME_BYTES_MAX for name in names):
        raise NoSuchItemError(f"There is no mailbox {account!r}: expected local-part@domain.")
    return root.joinpath(*names)


def _safe(text: str) -> str:
    """Return a path component that is not hidden and cannot leave its directory."""
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


class MessageFile(Struct, frozen=True):
    """A message's file."""

    folder: Folder  # where it is
    directory: Path  # the folder's new/ or cur/
    name: MessageName  # of the file
    message_id: str  # not always the id in the name: another program may have named the file
    generation: int = 1  # of a draft
    received_us: int = 0  # 0 if it must be read from the file
    state: message_state.MessageState = message_state.NO_STATE  # as the index has it
    state_ids: tuple[str, ...] = ()  # the ids under which the state is stored
    stay: int = 0  # which stay in its folder this is; 0 if it began before the index
    article: int = 0  # see StoredMessage

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.directory / self.name.file_name

    @property
    def is_draft(self) -> bool:
        """Whether it is a draft: by its flag, or because it is in Drafts."""
        return is_draft_file(self.name.flags, self.folder)

    @property
    def change_key(self) -> str:
        """A text that changes with content, folder, flags and state of the message."""
        flags = "".join(sorted(self.name.flags))
        place = f"{self.folder.id}/{self.name.name_with_size}:{flags}"
        facts = os.fsencode(place) + message_state.encode_state(self.state)
        return hashlib.sha256(facts).hexdigest()[:16]


def is_draft_file(flags: str, folder: Folder) -> bool:
    """Return whether a file is a draft: by its flag, or because it is in Drafts."""
    return DRAFT in flags or folder.well_known is WellKnown.DRAFTS


def received_at_us(message_id: str, written_us: int) -> int:
    """Return the time of receipt: the time in the message's id, else when its file was written.

    It is the same for all generations of a draft, and after a move.
    """
    return min(max(id_time_us(message_id) or written_us, 0), TIME_US_MAX)


def open_octets(path: Path) -> Octets:
    """Return a message with CRLF line ends; it stays readable after a rename or removal."""
    with open_message(path) as file:
        return _with_crlf(_octets(file))


def loaded(located: MessageFile, extent: ReadExtent = WHOLE) -> StoredMessage:
    """Load a file as a message."""
    with open_message(located.path) as file:
        mtime_us = os.fstat(file.fileno()).st_mtime_ns // 1000
        return load(located, _octets(file), mtime_us=mtime_us, extent=extent)


def _octets(file: BinaryIO) -> Octets:
    """Read a small file at once; leave a large one on disk."""
    if os.fstat(file.fileno()).st_size > LARGE_BYTES:
        return OpenOctets.of(file)
    return MemoryOctets(file.read())


def _with_crlf(stored: Octets) -> Octets:
    """Return a message's file as readers get it: with CRLF where it has LF alone.

    A draft with Graph's properties stays, because its block has places in the file. The block of a
    draft that another program copied with LF is removed, because its places are wrong. A file stays
    too if its header has CRLF and it has LF alone only in binary parts.
    """
    block, length = read_private_block(stored)
    if block is not None and block.properties is not None:
        return stored
    octets = recode(stored, CrlfCoding(keeps_nul=True, keeps_cr=True))
    if octets.size == stored.size or not (
        _BARE_LF_FIRST.match(stored.read(length, 1000)) or read_message(stored).has_bare_lf
    ):
        return stored
    copied = 0 if block is not None else read_private_block(octets)[1]
    return octets.part(copied, octets.size - copied)


def load(
    located: MessageFile, stored: Octets, *, mtime_us: int, extent: ReadExtent = WHOLE
) -> StoredMessage:
    """Return a file as a message; `mtime_us` is when it was last written.

    Reading blocks; raises OSError.
    """
    block, length = read_private_block(stored)
    if _BARE_LF_FIRST.match(stored.read(length, 1000)):
        stored = _with_crlf(stored)
    message = read_message(stored, extent)
    if message.has_bare_lf:
        stored = _with_crlf(stored)
        message = read_message(stored, extent)
    created_us = block.origin.created_us if block else mtime_us
    state = located.state
    properties = message_state.with_state(with_defaults(message.properties, block), state)
    flags = located.name.flags
    attachments = tuple(_with_id(facts, at) for at, facts in enumerate(message.attachments))
    written_us = block.origin.modified_us if block else mtime_us
    return StoredMessage(
        id=located.message_id,
        folder=located.folder,
        path=located.path,
        properties=properties,
        attachments=attachments,
        is_draft=located.is_draft,
        is_read=SEEN in flags,
        size=stored.size,
        created_us=created_us,
        modified_us=max(written_us, state.modified_us),
        sent_us=written_us if message.date_us is None else message.date_us,
        received_us=located.received_us or received_at_us(located.message_id, mtime_us),
        change_key=located.change_key,
        flag=message_state.flag_of(state, is_flagged=FLAGGED in flags),
        is_mime=block is None or block.is_mime,
        is_other=bool(state.is_other),
        message_class=message.message_class,
        page_id=_page_id(located, stored, is_own=block is not None),
        article=located.article,
        header=b"" if located.is_draft else header_section(stored.read(0, _HEADER_BYTES_MAX)),
    )


def _page_id(located: MessageFile, stored: Octets, *, is_own: bool) -> str:
    """Return the id of a message's journey: that of its submission, or of its delivery."""
    if is_own:
        return "" if located.is_draft else located.message_id
    return read_relay_id(stored.read(0, min(ID_WITHIN_BYTES, stored.size)))


def attachments_of(stored: Octets) -> tuple[AttachedOctets, ...]:
    """Return the attachments of a file, each with its id. Reading blocks; raises OSError."""
    numbered = enumerate(read_attachments(stored))
    return tuple(
        replace(attachment, facts=_with_id(attachment.facts, at)) for at, attachment in numbered
    )


def _with_id(facts: AttachmentFacts, position: int) -> AttachmentFacts:
    """Return an attachment; its id is its position unless the draft has stored one."""
    return facts if facts.id else replace(facts, id=str(position))
