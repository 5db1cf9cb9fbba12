"""Notes on disk: the second names of submitted drafts, beside the mailboxes.

On the path: step 2 makes them; pickup reads those that are ready; step 4 removes them.
Holds: a note is the exact snapshot that is sent; nothing is read from preparing/ but at start.
Fails: OSError when the disk refuses; a note that cannot be read is moved to corrupt/, never lost.
Standards: none; docs/design.md 1.
"""

import os
import re
import threading
from collections.abc import Container
from dataclasses import astuple, dataclass
from pathlib import Path

import msgspec

from relay.clock import Anchor
from relay.files import FileOctets
from relay.mailbox.maildir import (
    DirectorySync,
    link_or_copy,
    list_names,
    make_directory,
    open_message,
    remove,
)
from relay.mailbox.types import NoSuchItemError, PendingSubmission, SendOptions
from relay.message.content import LARGE_BYTES, MemoryOctets, Octets
from relay.mime.draft import (
    FIRST_FIELD_BYTES,
    PRIVATE_BYTES_MAX,
    PrivateBlock,
    private_block_length,
    read_block,
)
from relay.observe.logs import get_logger

FIRST_SUBMISSION = (
    1  # the number of a draft that sendMail made: it goes if its note never got ready
)
SUBMISSION_FILE_NAME = re.compile(r"([0-9a-z]{16})\.(\d{1,20})@(\d{1,18})")
_PREPARED = re.compile(r"([0-9a-z]{16})\.(\d{1,20})(\+?)")
_COPIED = "copied"  # a file of that name: notes here may be copies, not second names

_ANCHOR = "clock"


class _StoredAnchor(msgspec.Struct, frozen=True):
    """An Anchor in its file, where the queue time is called `steady_us`."""

    steady_us: int
    wall_us: int
    elapsed_us: int
    boot_id: str
    doubtful_us: int = 0
    doubt_ends_us: int = 0


_anchor_decoder = msgspec.json.Decoder(_StoredAnchor)
_log = get_logger("mailbox")


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """A file in preparing/. `is_new`: its draft was made by the same request; `is_change`: it is
    the next generation of a draft whose note waits. `submission_id` is "" for what is neither a
    submission nor a change of one.
    """

    path: Path
    submission_id: str
    is_new: bool
    is_change: bool


class ClockAnchorFile:
    """The anchor in `.submissions`, from which a start continues the time that notes' names have.

    The spool has an anchor of its own: without this one, that decides.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _ANCHOR

    def read(self) -> Anchor | None:
        """Return what was written last; None if that cannot be read."""
        try:
            stored = _anchor_decoder.decode(self._path.read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None
        return Anchor(*msgspec.structs.astuple(stored))

    def write(self, anchor: Anchor) -> None:
        """Replace it. Not synced: after a loss of power the one before is as good.

        Raises OSError.
        """
        part = self._path.with_name(f"{_ANCHOR}.new")
        part.write_bytes(msgspec.json.encode(_StoredAnchor(*astuple(anchor))))
        part.replace(self._path)


class SubmissionDirectory:
    """`<root>/.submissions`: preparing/, ready/, deferred/ and corrupt/."""

    def __init__(self, directory: Path, syncs: DirectorySync) -> None:
        self.preparing = directory / "preparing"
        self.ready = directory / "ready"
        self.scheduled = directory / "deferred"
        self._corrupt = directory / "corrupt"
        self._copied = directory / _COPIED
        self._syncs = syncs
        self._made = False
        self._lock = threading.Lock()

    def make(self) -> None:
        """Make the directories on first use."""
        if self._made:
            return
        with self._lock:  # who comes second waits until they are durable
            if not self._made:
                for directory in (self.preparing, self.ready, self.scheduled):
                    make_directory(directory)
                self._made = True

    def ready_path(self, submission_id: str, ready_us: int) -> Path:
        """The note's name once it is ready."""
        return self.ready / f"{submission_id}@{ready_us}"

    def scheduled_path(self, submission_id: str, due_us: int) -> Path:
        """The note's name while it waits for its time."""
        return self.scheduled / f"{submission_id}@{due_us}"

    def prepare(self, source: Path, name: str) -> Path:
        """Give a draft's file a second name in preparing/."""
        prepared = self.preparing / name
        link_or_copy(source, prepared)
        if prepared.stat().st_nlink == 1:
            self.mark_copied()
        return prepared

    def has_copies(self) -> bool:
        """Whether say_copied() was called, ever."""
        return self._copied.exists()

    def mark_copied(self) -> None:
        """Remember for good that notes here may be copies: the number of links tells nothing."""
        if not self._copied.exists():
            self._copied.touch(0o600)
            self._syncs.sync(self._copied.parent)

    def find(self, draft_id: str, file: Path) -> Path | None:
        """The note of the draft in `file`, deferred or ready; None if it has none.

        Nothing is listed for a file that has no second name: where notes are links, it has no note.
        Raises FileNotFoundError when the file is gone.
        """
        if file.stat().st_nlink == 1 and not self._copied.exists():
            return None
        return _first(self.scheduled, f"{draft_id}.") or _first(self.ready, f"{draft_id}.")

    def is_ready(self, submission: Path) -> bool:
        """Whether a note that find() gave is ready, not deferred."""
        return submission.parent == self.ready

    def find_submission(self, submission_id: str) -> Path | None:
        """The note of a submission, deferred or ready."""
        return _first(self.scheduled, f"{submission_id}@") or _first(
            self.ready, f"{submission_id}@"
        )

    def changed_ns(self) -> int:
        """When ready/ last changed, by the file system's clock; 0 if it is not there yet."""
        return _changed_ns(self.ready)

    def scheduled_changed_ns(self) -> int:
        """When deferred/ last changed, as changed_ns()."""
        return _changed_ns(self.scheduled)

    def list_ready(self, known: Container[str], limit: int) -> list[PendingSubmission]:
        """Up to `limit` notes that are not in `known`, longest ready first.

        One that cannot be read keeps none of the others back: OSError when there are no others.
        """
        waiting = []
        for name in list_names(self.ready):
            match = SUBMISSION_FILE_NAME.fullmatch(name)
            if match and f"{match[1]}.{match[2]}" not in known:
                waiting.append((int(match[3]), name))
        found: list[PendingSubmission] = []
        trouble: OSError | None = None
        for _, name in sorted(waiting):
            if len(found) >= limit:
                break
            try:
                if (submission := self.read(self.ready / name)) is not None:
                    found.append(submission)
            except OSError as error:
                trouble = error
        if trouble is not None and not found:
            raise trouble
        return found

    def list_scheduled(self) -> list[tuple[int, str]]:
        """When each note in deferred/ is due, and its name; none is read."""
        names = list_names(self.scheduled)
        return [
            (int(match[3]), name)
            for name in names
            if (match := SUBMISSION_FILE_NAME.fullmatch(name))
        ]

    def read(self, path: Path) -> PendingSubmission | None:
        """Return the note of a file in ready/ or deferred/; None if it is gone, or damaged and put
        aside.
        """
        match = SUBMISSION_FILE_NAME.fullmatch(path.name)
        if match is None:
            return None
        try:
            block = read_block_of(path)
        except FileNotFoundError:
            return None
        if block is None:
            self.move_to_corrupt(path)
            return None
        at_us = int(match[3])
        origin = block.origin
        return PendingSubmission(
            submission_id=f"{match[1]}.{match[2]}",
            draft_id=match[1],
            account=origin.account,
            base_name=origin.base_name,
            path=path,
            ready_us=at_us,
            options=SendOptions(
                origin.save_to_sent_items,
                origin.sent_folder,
                0 if self.is_ready(path) else at_us,
                origin.on_behalf_of,
            ),
        )

    def prepared(self) -> list[PreparedFile]:
        """What a crash left in preparing/."""
        found = []
        for name in list_names(self.preparing):
            match = _PREPARED.fullmatch(name)
            is_change = match is not None and bool(match[3])
            is_new = match is not None and not is_change and int(match[2]) == FIRST_SUBMISSION
            submission_id = name.removesuffix("+") if match is not None else ""
            found.append(PreparedFile(self.preparing / name, submission_id, is_new, is_change))
        return found

    def remove_ready(self, submission: PendingSubmission) -> None:
        """Unlink a note; the caller makes it durable."""
        remove(submission.path)

    def sync(self, submission: PendingSubmission) -> None:
        """Make a note durable where it is."""
        self._syncs.sync(submission.path.parent)

    def sync_ready(self) -> None:
        """Make what happened in ready/ durable."""
        self._syncs.sync(self.ready)

    def sync_scheduled(self) -> None:
        """Make what happened in deferred/ durable."""
        self._syncs.sync(self.scheduled)

    def move_to_corrupt(self, path: Path) -> None:
        """Move a note that nothing can be done with to corrupt/, for people to look at."""
        make_directory(self._corrupt)
        path.rename(self._corrupt / path.name)
        self._syncs.sync(self._corrupt)
        _log.error("submission corrupt", submission=path.name, moved_to=str(self._corrupt))


def content_of(submission: PendingSubmission) -> Octets:
    """Return a note's file, in memory while it is small. Raises NoSuchItemError, OSError."""
    try:
        descriptor = os.open(submission.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NoSuchItemError(f"The submission {submission.submission_id} was removed.") from None
    try:  # by few calls: behind each one a submission may have to wait for this thread
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes > LARGE_BYTES:
            return FileOctets(submission.path, 0, size_bytes)
        return MemoryOctets(os.read(descriptor, size_bytes))
    finally:
        os.close(descriptor)


def draft_of(file_name: str) -> str:
    """Return the draft's id that a note's name begins with."""
    return file_name.partition(".")[0]


def read_block_of(path: Path) -> PrivateBlock | None:
    """Read the private block of a draft's file, and no more of it.

    Raises OSError.
    """
    with open_message(path) as file:
        head = file.read(FIRST_FIELD_BYTES)
        length = private_block_length(head)
        if not FIRST_FIELD_BYTES < length <= PRIVATE_BYTES_MAX:
            return None
        return read_block(head + file.read(length - len(head)))


def _changed_ns(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _first(directory: Path, beginning: str) -> Path | None:
    """The first name that begins so; the directory is read only as far as that."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(beginning):
                    return directory / entry.name
    except FileNotFoundError:
        pass
    return None
