"""Decide which message a file is when files appear, vanish or change their names.

A message keeps its id when any program moves it or changes its flags. Two files never have the
same id. A file claims an id by its name, by a draft's private block, or by the header field that
local delivery writes; Dovecot's MOVE and COPY give a file another name. Only the first 2 KiB of a
file are read, and only if its name is not the store's own. A file that cannot be read claims
nothing.

Of two generations of a draft the higher is the message. A crash can leave the lower one, which is
then removed. See Maildir (a base name is never used twice) and docs/design.md 3.
"""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from relay.base.files import opened
from relay.formats.headers import read_relay_id
from relay.store.mailbox.index import rows
from relay.store.mailbox.maildir import exists, rename
from relay.store.mailbox.message_file import (
    MessageName,
    foreign_id,
    is_delivered_id,
    is_relay_name,
    parse_name,
)

_HEAD_BYTES = 2048
_BLOCK = b"X-Relay-Draft: 1 "  # also where a mail server has copied it with other line ends
_BASE_NAME = re.compile(rb'"base_name":"([^"\\]{1,255})"')


class IdClaim(Struct, frozen=True):
    """The id that a file claims: by its name if `in_file_name`, otherwise by its content."""

    message_id: str
    generation: int
    in_file_name: bool


def read_id_claim(path: str, name: MessageName) -> IdClaim | None:
    """Return the id that a file claims, None for a file that another program made."""
    if is_relay_name(name.file_name):
        return IdClaim(name.message_id, name.generation, in_file_name=True)
    head = _head(path)
    if head.startswith(_BLOCK):
        return _claim_of_block(head)
    message_id = read_relay_id(head)
    return IdClaim(message_id, 1, in_file_name=False) if is_delivered_id(message_id) else None


def _claim_of_block(head: bytes) -> IdClaim | None:
    match = _BASE_NAME.search(head.replace(b"\r\n", b"\n").replace(b"\n ", b""))
    if match is None:
        return None
    base_name = match[1].decode("utf-8", "surrogateescape")
    name = parse_name(base_name) if is_relay_name(base_name) else None
    return IdClaim(name.message_id, name.generation, in_file_name=False) if name else None


def _head(path: str) -> bytes:
    with suppress(OSError), opened(path, os.O_NOFOLLOW | os.O_NONBLOCK) as descriptor:
        return os.pread(descriptor, _HEAD_BYTES, 0)
    return b""


# An IMAP server moves a message by a link in the new folder and an unlink in the old one. With many
# messages the unlink comes much later. A copy whose original is removed within this time is a move.
_MOVE_US = 60_000_000


class MessageMatcher:
    """Matches files without a row to rows without a file (`missing`).

    An instance is used once.
    """

    def __init__(
        self,
        table: rows.MessageTable,
        missing: Iterable[rows.IndexedMessage],
        *,
        path_of: Callable[[rows.FileLocation], str],
    ) -> None:
        self._table = table
        self._path_of = path_of
        self._missing = {row.uid: row for row in missing}
        self._missing_by_id = {row.message_id: row for row in self._missing.values()}
        self._missing_by_base_name: dict[bytes, list[rows.IndexedMessage]] = {}
        self._missing_by_stat_data: dict[rows.StatData, list[rows.IndexedMessage]] = {}
        for row in self._missing.values():
            self._missing_by_base_name.setdefault(row.base_name, []).append(row)
            self._missing_by_stat_data.setdefault(row.stat_data, []).append(row)
        self._superseded: list[rows.FileLocation] = []

    def match(self, files: Iterable[rows.ScannedFile]) -> list[rows.FileLocation]:
        """Update the rows; return the locations of superseded files, which are to be removed."""
        ordered = sorted(files, key=self._may_be_new_copy)
        rest = [file for file in ordered if not self._match_by_base_name(file)]
        claimed_id = [
            (file, read_id_claim(self._path_of(file.location), file.name)) for file in rest
        ]
        claimed_id.sort(key=_claim_order)
        for file, claim in claimed_id:
            if not self._match_by_claimed_id(file, claim) and not self._match_by_stat_data(file):
                self._add(file, claim)
        for row in list(self._missing.values()):
            self._remove_or_transfer(row)
        return self._superseded

    def _may_be_new_copy(self, file: rows.ScannedFile) -> bool:
        """Return whether no file with that base name vanished from its folder."""
        missing = self._missing_by_base_name.get(file.base_name, ())
        return all(row.location.folder != file.location.folder for row in missing)

    def _match_by_base_name(self, file: rows.ScannedFile) -> bool:
        """Match a file that was renamed: other flags, another folder, or new/ to cur/."""
        candidates = [
            row
            for row in self._missing_by_base_name.get(file.base_name, ())
            if self._is_missing(row)
        ]
        if not candidates:
            return False
        self._assign(max(candidates, key=lambda row: _similarity(row, file)), file)
        return True

    def _match_by_claimed_id(self, file: rows.ScannedFile, claim: IdClaim | None) -> bool:
        """Match a file by the id that it claims, if no other message has that id."""
        if claim is None:
            return False
        row = self._missing_by_id.get(claim.message_id)
        if row is not None and self._is_missing(row):
            self._assign(row, file, generation=claim.generation)
            return True
        holder = self._table.by_id(claim.message_id)
        if holder is None:
            if not claim.in_file_name and self._table.is_claimed(claim.message_id):
                return False  # the message was removed, and had copies
            self._table.add(file, claim.message_id, claimed_id="", generation=claim.generation)
            return True
        if not exists(self._path_of(holder.location)):  # it was moved after the scan
            self._table.change(holder, file, generation=claim.generation)
            return True
        is_higher = claim.generation > holder.generation
        lower = holder.location if is_higher else file.location
        if (
            not claim.in_file_name
            or claim.generation == holder.generation
            or not self._table.is_draft(lower)
            or self._may_be_copy(holder.location, file.location)
        ):
            return False
        self._superseded.append(lower)
        if is_higher:
            self._table.change(holder, file, generation=claim.generation)
        return True

    def _may_be_copy(self, location: rows.FileLocation, other: rows.FileLocation) -> bool:
        """Return whether a generation may be an IMAP server's copy of the lower one.

        That is so while the index is built only: later, such a copy gets an id of its own.
        """
        return self._table.is_first and location.folder != other.folder

    def _match_by_stat_data(self, file: rows.ScannedFile) -> bool:
        """Match a file that vanished elsewhere at the same time."""
        for row in self._missing_by_stat_data.get(file.stat_data, ()):
            if self._is_missing(row):
                self._assign(row, file)
                return True
        return False

    def _add(self, file: rows.ScannedFile, claim: IdClaim | None) -> None:
        """Insert a file as a new message, which may be a copy."""
        file = self._with_flags(file)
        base_name = file.name.base_name
        message_id, number = file.name.message_id, 0
        if is_relay_name(base_name):  # another message has that id
            message_id = foreign_id(base_name)
        while self._table.by_id(message_id) is not None:
            number += 1
            message_id = foreign_id(f"{base_name}/{number}")
        claimed_id = claim.message_id if claim else ""
        generation = claim.generation if claim else 1
        self._table.add(file, message_id, claimed_id=claimed_id, generation=generation)

    def _with_flags(self, file: rows.ScannedFile) -> rows.ScannedFile:
        """Give a copy that no program has opened yet the flags of its original.

        Dovecot copies with the flags that its session has seen: a client of Relay may have marked
        the message since.
        """
        flags = self._table.flags_of_original(file) if file.location.in_new else ""
        name = parse_name(f"{file.name.name_with_size}:2,{flags}")
        if flags and name is not None:
            location = rows.FileLocation(file.location.folder, False, os.fsencode(name.file_name))
            with suppress(OSError):
                rename(Path(self._path_of(file.location)), Path(self._path_of(location)))
                return replace(file, location=location, name=name)
        return file

    def _remove_or_transfer(self, row: rows.IndexedMessage) -> None:
        """Delete a message, unless a copy was made a moment ago: then the message was moved."""
        copies_of = [copy for copy in self._table.copies_of(row) if copy.uid not in self._missing]
        copies = [copy for copy in copies_of if self._was_copied_from(copy, row)]
        del self._missing[row.uid]
        if copies:
            self._table.transfer_id(row, max(copies, key=lambda copy: copy.first_seen_us))
        else:
            self._table.remove(row)

    def _was_copied_from(self, copy: rows.IndexedMessage, row: rows.IndexedMessage) -> bool:
        """Return whether another program made `copy` from `row`, and not `row` from `copy`."""
        is_claimed = copy.claimed_id == row.message_id  # else either may be the copy
        is_newer = (
            copy.first_seen_us >= row.first_seen_us
            if is_claimed
            else copy.first_seen_us > row.first_seen_us
        )
        is_recent = copy.first_seen_us >= max(self._table.now_us - _MOVE_US, 1)
        # The store never gives two files the same base name.
        is_foreign = copy.base_name == row.base_name or not is_relay_name(
            os.fsdecode(copy.base_name)
        )
        return is_newer and is_recent and is_foreign

    def _assign(
        self, row: rows.IndexedMessage, file: rows.ScannedFile, *, generation: int = 0
    ) -> None:
        del self._missing[row.uid]
        self._table.change(row, file, generation=generation or row.generation)

    def _is_missing(self, row: rows.IndexedMessage) -> bool:
        return row.uid in self._missing


def _similarity(row: rows.IndexedMessage, file: rows.ScannedFile) -> tuple[bool, bool]:
    return row.stat_data == file.stat_data, row.location.folder == file.location.folder


def _claim_order(claimed: tuple[rows.ScannedFile, IdClaim | None]) -> tuple[bool, int, int, bytes]:
    """Order files that the store named first, by descending generation; then the oldest."""
    file, claim = claimed
    in_file_name = claim is not None and claim.in_file_name
    generation = claim.generation if claim and in_file_name else 0
    return not in_file_name, -generation, file.stat_data.mtime_ns, file.location.file_name
