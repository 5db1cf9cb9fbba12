"""Notes on disk: the second names of submitted drafts, beside the mailboxes.

On the path: step 2 makes them; pickup reads those that are ready; step 4 removes them.
Holds: a note is the exact snapshot that is sent; nothing is read from preparing/ but at start.
Fails: OSError when the disk refuses; a note that cannot be read is moved to corrupt/, never lost.
Standards: none; docs/design.md 1.
"""

import re
import threading
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import structlog

from relay.mailbox.maildir import DirectorySync, list_names, make_directory, remove
from relay.mailbox.types import BeingSentError, Note, SendOptions
from relay.message.draft import FIRST_FIELD_BYTES, PrivateBlock, private_length, read_block

FIRST_SUBMISSION = (
    1  # the number of a draft that sendMail made: it goes if its note never got ready
)
_READY = re.compile(r"([0-9a-z]{16})\.(\d{1,20})@(\d{1,18})")
_PREPARED = re.compile(r"([0-9a-z]{16})\.(\d{1,20})")
_BLOCK_BYTES_MAX = 16 << 20

_log = structlog.get_logger("relay.mailbox")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file in preparing/; `is_new`: its draft was made by the same request."""

    path: Path
    submission_id: str
    is_new: bool


class NotesDirectory:
    """`<root>/.submissions`: preparing/, ready/ and corrupt/."""

    def __init__(self, directory: Path, syncs: DirectorySync) -> None:
        self.preparing = directory / "preparing"
        self.ready = directory / "ready"
        self._corrupt = directory / "corrupt"
        self._syncs = syncs
        self._made = False
        self._lock = threading.Lock()

    def make(self) -> None:
        """Make the directories on first use."""
        with self._lock:  # who comes second waits until they are durable
            if not self._made:
                make_directory(self.preparing)
                make_directory(self.ready)
                self._made = True

    def ready_path(self, submission_id: str, ready_us: int) -> Path:
        """The note's name once it is ready."""
        return self.ready / f"{submission_id}@{ready_us}"

    def refuse_while_sent(self, draft_id: str) -> None:
        """Raise BeingSentError while a note of this draft is ready."""
        if any(name.startswith(f"{draft_id}.") for name in list_names(self.ready)):
            raise BeingSentError("The message is being sent and cannot be changed until it is.")

    def is_ready(self, submission_id: str) -> bool:
        """Whether the note of this submission is ready."""
        return any(name.startswith(f"{submission_id}@") for name in list_names(self.ready))

    def changed_ns(self) -> int:
        """When ready/ last changed, by the file system's clock; 0 if it is not there yet."""
        try:
            return self.ready.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def list_ready(self, known: Container[str], limit: int) -> list[Note]:
        """Up to `limit` notes that are not in `known`, longest ready first."""
        waiting = []
        for name in list_names(self.ready):
            match = _READY.fullmatch(name)
            if match and f"{match[1]}.{match[2]}" not in known:
                waiting.append((int(match[3]), name))
        waiting.sort()
        found = (self.read(self.ready / name) for _, name in waiting[:limit])
        return [note for note in found if note is not None]

    def read(self, path: Path) -> Note | None:
        """Return the note of a file in ready/; None if it is gone, or damaged and put aside."""
        match = _READY.fullmatch(path.name)
        if match is None:
            return None
        try:
            block = read_block_of(path)
        except FileNotFoundError:
            return None
        if block is None:
            self._put_aside(path)
            return None
        return Note(
            submission_id=f"{match[1]}.{match[2]}",
            draft_id=match[1],
            account=block.origin.account,
            base_name=block.origin.base_name,
            path=path,
            ready_us=int(match[3]),
            options=SendOptions(block.origin.save_to_sent_items),
        )

    def prepared(self) -> list[Prepared]:
        """What a crash left in preparing/."""
        found = []
        for name in list_names(self.preparing):
            match = _PREPARED.fullmatch(name)
            is_new = match is not None and int(match[2]) == FIRST_SUBMISSION
            found.append(Prepared(self.preparing / name, name, is_new))
        return found

    def remove_ready(self, note: Note) -> None:
        """Unlink a note; the caller makes it durable."""
        remove(note.path)

    def sync_ready(self) -> None:
        """Make what happened in ready/ durable."""
        self._syncs.sync(self.ready)

    def _put_aside(self, path: Path) -> None:
        make_directory(self._corrupt)
        path.rename(self._corrupt / path.name)
        _log.error("note.corrupt", note=path.name, moved_to=str(self._corrupt))


def read_block_of(path: Path) -> PrivateBlock | None:
    """Read the private block of a draft's file, and no more of it.

    Raises OSError.
    """
    with path.open("rb") as file:
        head = file.read(FIRST_FIELD_BYTES)
        length = private_length(head)
        if not FIRST_FIELD_BYTES < length <= _BLOCK_BYTES_MAX:
            return None
        return read_block(head + file.read(length - len(head)))
