"""Move, copy and delete messages.

A moved message keeps its id. A file is renamed or linked, its content never changes, and no file
is replaced. A message that is being sent cannot be moved. Dovecot's keywords are lower-case
letters among a file's flags, whose names each folder's `dovecot-keywords` lists; a letter is
converted to the one with the same name in the other folder, or dropped.

Raises NoSuchItemError, BeingSentError, MailboxFullError, and OSError when the disk rejects a
change. See Maildir and Graph's message: move, copy, delete, permanentDelete.
"""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from relay.mailbox.dependencies import StoreDependencies
from relay.mailbox.folders import find_folder, is_deleted
from relay.mailbox.maildir import (
    place_again,
    remove,
    rename,
    retry_if_renamed,
)
from relay.mailbox.message_file import MessageFile, delivered_id, loaded, make_base_name, parse_name
from relay.mailbox.stale_files import StaleFiles
from relay.mailbox.types import NO_PRECONDITION, Folder, Precondition, StoredMessage, WellKnown

KEYWORDS_FILE = "dovecot-keywords"
_LINE = re.compile(rb"(\d{1,2}) ([^\n]+)")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BYTES_MAX = 64 * 1024


def convert_keywords(flags: str, source: Path, target: Path) -> str:
    """Return flags with their keyword letters converted from folder `source` to `target`."""
    if not any(flag in _LETTERS for flag in flags):
        return flags
    target_letters = {name: letter for letter, name in _keywords(target).items()}
    source_names = _keywords(source)
    kept = (
        target_letters.get(source_names.get(flag, b"")) if flag in _LETTERS else flag
        for flag in flags
    )
    return "".join(sorted({flag for flag in kept if flag}))


def _keywords(folder: Path) -> dict[str, bytes]:
    with suppress(OSError), (folder / KEYWORDS_FILE).open("rb") as file:
        found = _LINE.findall(file.read(_BYTES_MAX))
        return {_LETTERS[int(number)]: name for number, name in found if int(number) < 26}
    return {}


class MessageMover:
    """Moves, copies and deletes messages. Blocking; the store calls it in its threads."""

    def __init__(self, shared: StoreDependencies, stale_files: StaleFiles) -> None:
        self._shared = shared
        self._stale_files = stale_files

    @retry_if_renamed
    def move(
        self,
        account: str,
        message_id: str,
        destination_id: str,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """See MailStore.move_message()."""
        mailbox = self._shared.folders.mailbox(account)
        with self._shared.stripes.of(message_id):
            located = self._shared.found(mailbox, message_id, condition)
            destination = self._destination(mailbox, destination_id)
            if destination.path == located.folder.path:
                return loaded(located)
            self._shared.scheduled.cancel_scheduled(
                message_id, located, reason="the draft was moved"
            )
            return loaded(self._moved(located, destination))

    @retry_if_renamed
    def delete(
        self,
        account: str,
        message_id: str,
        *,
        condition: Precondition = NO_PRECONDITION,
        permanently: bool = False,
    ) -> None:
        """See MailStore.delete() and remove_message()."""
        mailbox = self._shared.folders.mailbox(account)
        with self._shared.stripes.of(message_id):
            located = self._shared.found(mailbox, message_id, condition)
            self._shared.scheduled.cancel_scheduled(
                message_id, located, reason="the draft was deleted"
            )
            if permanently or is_deleted(located.folder):
                remove(located.path)
                self._shared.syncs.sync(located.directory)
            else:
                self._moved(located, self._destination(mailbox, WellKnown.DELETED_ITEMS))

    @retry_if_renamed
    def copy(
        self,
        account: str,
        message_id: str,
        destination_id: str,
        *,
        condition: Precondition = NO_PRECONDITION,
    ) -> StoredMessage:
        """See MailStore.copy_message()."""
        mailbox = self._shared.folders.mailbox(account)
        self._stale_files.clean(mailbox)
        located = self._shared.found(mailbox, message_id, condition)
        destination = self._destination(mailbox, destination_id)
        size_bytes = located.path.stat().st_size
        base_name = make_base_name(
            # no clock id, so that the time of receipt is the original's
            delivered_id(self._shared.ids.new()),
            1,
            time_us=located.name.seconds * 1_000_000,
            hostname=self._shared.hostname,
        )
        copy = _in_folder(located, destination, f"{base_name},S={size_bytes}")
        copy = replace(copy, message_id=copy.name.message_id, generation=1, received_us=0)
        with self._shared.quota.room_for(account, mailbox, size_bytes, base_name=base_name):
            self._link(located, copy)
        return loaded(copy)

    def _link(self, located: MessageFile, copy: MessageFile) -> None:
        try:
            place_again(located.path, copy.path)
            self._shared.syncs.sync(copy.directory)
        except OSError:
            self._shared.root.remove(copy.path)
            raise

    def _moved(self, located: MessageFile, destination: Folder) -> MessageFile:
        """Rename a message's file into another folder, durably; undo the rename after an error.

        A client repeats a failed request, and a repeated DELETE would delete permanently.
        """
        moved = _in_folder(located, destination, located.name.name_with_size)
        rename(located.path, moved.path)
        try:
            self._shared.syncs.sync(moved.directory)
            self._shared.syncs.sync(located.directory)
        except OSError:
            places = self._shared.root.places
            for now, before in zip(places(moved.path), places(located.path), strict=False):
                with suppress(OSError):
                    rename(now, before)
            raise
        return moved

    def _destination(self, mailbox: Path, folder_id: str) -> Folder:
        folder = find_folder(mailbox, folder_id)
        if folder.well_known is not None:
            self._shared.folders.recreate(mailbox, folder.well_known)
        return folder


def _in_folder(located: MessageFile, folder: Folder, base: str) -> MessageFile:
    """Return the file of a message after a move to `folder` under a base name."""
    flags = convert_keywords(located.name.flags, located.folder.path, folder.path)
    name = parse_name(f"{base}:2,{flags}")
    assert name is not None
    return replace(located, folder=folder, directory=folder.path / "cur", name=name)
