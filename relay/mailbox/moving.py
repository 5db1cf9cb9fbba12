"""Move, copy and delete messages.

On the path: graph, outside of sending; no step of a message's way.
Holds: a moved message keeps its id; a file is renamed or linked, its octets are never touched, and
    nothing is replaced; a message that is being sent stays where it is.
Fails: NoSuchItemError, BeingSentError, MailboxFullError; OSError when the disk refuses.
Standards: Maildir; Graph's message: move, copy, delete, permanentDelete.
"""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from relay.mailbox.dependencies import StoreDependencies
from relay.mailbox.folders import find_folder, is_deleted
from relay.mailbox.index import Located
from relay.mailbox.maildir import (
    looking_again,
    place_again,
    remove,
    rename,
)
from relay.mailbox.message_file import delivered_id, message_stem, parse_name
from relay.mailbox.messages import loaded
from relay.mailbox.stale_files import StaleFiles
from relay.mailbox.types import UNCONDITIONAL, Condition, Folder, StoredMessage, WellKnown

_FILE = "dovecot-keywords"
_LINE = re.compile(rb"(\d{1,2}) ([^\n]+)")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BYTES_MAX = 64 * 1024


def translated(flags: str, source: Path, target: Path) -> str:
    """Return flags with the letters that mean in folder `target` what they meant in `source`."""
    if not any(flag in _LETTERS for flag in flags):
        return flags
    there = {name: letter for letter, name in _keywords(target).items()}
    meant = _keywords(source)
    kept = (there.get(meant.get(flag, b"")) if flag in _LETTERS else flag for flag in flags)
    return "".join(sorted({flag for flag in kept if flag}))


def _keywords(folder: Path) -> dict[str, bytes]:
    with suppress(OSError), (folder / _FILE).open("rb") as file:
        found = _LINE.findall(file.read(_BYTES_MAX))
        return {_LETTERS[int(number)]: name for number, name in found if int(number) < 26}
    return {}


class Moving:
    """Blocking; the store calls it in its threads."""

    def __init__(self, equipment: StoreDependencies, leftovers: StaleFiles) -> None:
        self._shared = equipment
        self._leftovers = leftovers

    @looking_again
    def move(
        self,
        account: str,
        message_id: str,
        destination_id: str,
        *,
        condition: Condition = UNCONDITIONAL,
    ) -> StoredMessage:
        """See MailStore.move_message()."""
        mailbox = self._shared.folders.mailbox(account)
        with self._shared.stripes.of(message_id):
            located = self._shared.found(mailbox, message_id, condition)
            destination = self._destination(mailbox, destination_id)
            if destination.path == located.folder.path:
                return loaded(located)
            self._shared.deferred.set_free(message_id, located, reason="the draft was moved")
            return loaded(self._moved(located, destination))

    @looking_again
    def delete(
        self,
        account: str,
        message_id: str,
        *,
        condition: Condition = UNCONDITIONAL,
        permanently: bool = False,
    ) -> None:
        """See MailStore.delete() and remove_message()."""
        mailbox = self._shared.folders.mailbox(account)
        with self._shared.stripes.of(message_id):
            located = self._shared.found(mailbox, message_id, condition)
            self._shared.deferred.set_free(message_id, located, reason="the draft was deleted")
            if permanently or is_deleted(located.folder):
                remove(located.path)
                self._shared.syncs.sync(located.directory)
            else:
                self._moved(located, self._destination(mailbox, WellKnown.DELETED_ITEMS))

    @looking_again
    def copy(
        self,
        account: str,
        message_id: str,
        destination_id: str,
        *,
        condition: Condition = UNCONDITIONAL,
    ) -> StoredMessage:
        """See MailStore.copy_message()."""
        mailbox = self._shared.folders.mailbox(account)
        self._leftovers.clean(mailbox)
        located = self._shared.found(mailbox, message_id, condition)
        destination = self._destination(mailbox, destination_id)
        size_bytes = located.path.stat().st_size
        stem = message_stem(
            delivered_id(self._shared.ids.new()),  # no clock id: it is as old as the original
            1,
            time_us=located.name.seconds * 1_000_000,
            hostname=self._shared.hostname,
        )
        copy = _in_folder(located, destination, f"{stem},S={size_bytes}")
        copy = replace(copy, message_id=copy.name.message_id, generation=1, received_us=0)
        with self._shared.quota.room_for(account, mailbox, size_bytes, stem=stem):
            self._link(located, copy)
        return loaded(copy)

    def _link(self, located: Located, copy: Located) -> None:
        try:
            place_again(located.path, copy.path)
            self._shared.syncs.sync(copy.directory)
        except OSError:
            remove(copy.path)
            raise

    def _moved(self, located: Located, destination: Folder) -> Located:
        """Rename a message's file into another folder, durably; after an error it is where it was.

        A client repeats what was refused: a repeated DELETE would delete the message for good.
        """
        moved = _in_folder(located, destination, located.name.base)
        rename(located.path, moved.path)
        try:
            self._shared.syncs.sync(moved.directory)
            self._shared.syncs.sync(located.directory)
        except OSError:
            with suppress(OSError):
                rename(moved.path, located.path)
            raise
        return moved

    def _destination(self, mailbox: Path, folder_id: str) -> Folder:
        folder = find_folder(mailbox, folder_id)
        if folder.well_known is not None:
            self._shared.folders.remake(mailbox, folder.well_known)
        return folder


def _in_folder(located: Located, folder: Folder, base: str) -> Located:
    """Return where a message is once it is in `folder` under a base name."""
    flags = translated(located.name.flags, located.folder.path, folder.path)
    name = parse_name(f"{base}:2,{flags}")
    assert name is not None
    return replace(located, folder=folder, directory=folder.path / "cur", name=name)
