"""Find messages: a Protocol, and the plain listing of directories that is behind it.

On the path: the store asks it where a message is and what a folder has, newest first.
Holds: of two generations of one message the higher is the message; the lower one is removed.
Fails: OSError when a directory cannot be read.
Standards: Maildir (a file may change its flags and folder at any time).
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from relay.mailbox.folders import find_folder, list_folders
from relay.mailbox.maildir import list_names, remove
from relay.mailbox.names import MessageName, is_foreign_id, parse_name
from relay.mailbox.types import Folder

_LOOKS = 2  # a listing may miss a file that is renamed meanwhile


@dataclass(frozen=True, slots=True)
class Located:
    """A message's file: `directory` is the folder's new/ or cur/."""

    folder: Folder
    directory: Path
    name: MessageName

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / self.name.file_name


class MessageIndex(Protocol):
    """Where the messages of a mailbox are. `folder_id` "" means all folders."""

    def find(self, mailbox: Path, message_id: str, *, folder_id: str = "") -> Located | None:
        """The file of a message, or None. Raises NoSuchItemError for an unknown folder."""
        ...

    def find_stem(self, mailbox: Path, stem: str) -> Located | None:
        """The file whose base name, `,S=` apart, is `stem`, or None."""
        ...

    def newest_first(self, mailbox: Path, *, folder_id: str = "") -> Sequence[Located]:
        """All messages. Raises NoSuchItemError for an unknown folder."""
        ...


class ListingIndex:
    """Lists the directories anew for each question: never stale, linear in the mailbox's size."""

    def find(self, mailbox: Path, message_id: str, *, folder_id: str = "") -> Located | None:
        """See MessageIndex."""
        part_of_name = "" if is_foreign_id(message_id) else f".R{message_id}_"
        for _ in range(_LOOKS):
            found = _one_generation(
                located
                for located in self._walk(mailbox, folder_id, part_of_name)
                if located.name.message_id == message_id
            )
            if found:
                return found[0]
        return None

    def find_stem(self, mailbox: Path, stem: str) -> Located | None:
        """See MessageIndex."""
        for _ in range(_LOOKS):
            for located in self._walk(mailbox, "", stem):
                if located.name.stem == stem:
                    return located
        return None

    def newest_first(self, mailbox: Path, *, folder_id: str = "") -> Sequence[Located]:
        """See MessageIndex."""
        found = _one_generation(self._walk(mailbox, folder_id, ""))
        return sorted(found, key=lambda located: located.name.order, reverse=True)

    def _walk(self, mailbox: Path, folder_id: str, part_of_name: str) -> Iterator[Located]:
        """new/ before cur/: mail clients move files that way, so none is missed."""
        folders = [find_folder(mailbox, folder_id)] if folder_id else list_folders(mailbox)
        for folder in folders:
            for directory in (folder.path / "new", folder.path / "cur"):
                for file_name in list_names(directory):
                    if part_of_name in file_name and (name := parse_name(file_name)):
                        yield Located(folder, directory, name)


def _one_generation(found: Iterable[Located]) -> list[Located]:
    """Keep the highest generation of each message; a crash between two left the lower one."""
    kept: dict[str, Located] = {}
    for located in found:
        rival = kept.get(located.name.message_id)
        if rival is None:
            kept[located.name.message_id] = located
            continue
        lower, higher = sorted((rival, located), key=lambda one: one.name.generation)
        kept[located.name.message_id] = higher
        if lower.name.generation < higher.name.generation:
            with contextlib.suppress(OSError):
                remove(lower.path)
    return list(kept.values())
