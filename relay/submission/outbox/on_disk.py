"""The submission directory: one hard link to each submitted draft, in `.submissions/`.

A pending submission is a snapshot of the draft: it is sent unchanged even if the draft changes. It
is prepared in preparing/ and renamed to ready/, or to deferred/ if it is a scheduled send. Only a
start reads preparing/. A file that cannot be sent is moved to corrupt/ and never deleted.

A held submission is in deferred/, and its name has a time that no clock reaches. One that an
operator has released into ready/ has a zero in front of its time.

The functions raise OSError. docs/flow.md has the order of the operations.
"""

import os
import re
import threading
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from relay.base.clock import Anchor
from relay.base.files import FileOctets
from relay.base.message.content import LARGE_BYTES, MemoryOctets, Octets
from relay.base.observe.logs import get_logger
from relay.formats import draft
from relay.store.journeys.submission_log import SubmissionLog
from relay.store.mailbox.errors import NoSuchItemError
from relay.store.mailbox.maildir import (
    DirectorySync,
    exists,
    list_names,
    make_directories,
    make_directory,
    open_message,
    place,
    remove,
)
from relay.store.mailbox.pending_submission import PendingSubmission, SendOptions, SubmissionKey
from relay.store.mailbox.store_part import StorePart

# of a draft made by sendMail: the draft is removed if the submission never became ready
FIRST_SUBMISSION = 1
SUBMISSION_FILE_NAME = re.compile(r"([0-9a-z]{16})\.(\d{1,20})@(\d{1,18})")
_PREPARED = re.compile(r"([0-9a-z]{16}\.\d{1,20})(?:(~)|@([0-9a-z-]{1,100}))?")

# In the name of a held submission in place of its time: one of these, plus the time since when it
# is held. Both are later than the year 9999. The second is of one that an operator holds.
HELD_US = 3 * 10**17
HELD_BY_OPERATOR_US = 4 * 10**17
OF_ACCOUNT = "account"  # the reason of the first: the account was removed or disabled

_ANCHOR = "clock"

_NO_ORIGIN = draft.DraftOrigin("", "", "", 0, 0)  # of a damaged record
_anchor_decoder = msgspec.json.Decoder(Anchor)
_log = get_logger("outbox")


class PreparedFile(Struct, frozen=True):
    """A file in preparing/.

    `is_cancelled`: an operator has cancelled a scheduled send. `slot` is the slot of a submission
    with a key. `submission_id` is "" for other files.
    """

    path: Path
    submission_id: str
    is_cancelled: bool = False
    slot: str = ""


class ClockAnchorFile:
    """The clock anchor in `.submissions`, from which a start continues queue time.

    The spool has its own anchor, which is used if this one is missing.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _ANCHOR

    def read(self) -> Anchor | None:
        """Return the anchor written last, or None if it cannot be read."""
        try:
            return _anchor_decoder.decode(self._path.read_bytes())
        except (OSError, ValueError):
            return None

    def write(self, anchor: Anchor) -> None:
        """Replace the anchor. It is not synced: after a power loss the previous one is sufficient.

        Raises OSError.
        """
        part = self._path.with_name(f"{_ANCHOR}.new")
        part.write_bytes(msgspec.json.encode(anchor))
        part.replace(self._path)


class SubmissionDirectory:
    """`<root>/.submissions`: preparing/, ready/, deferred/, restored/ and corrupt/."""

    def __init__(self, directory: Path, syncs: DirectorySync) -> None:
        self.preparing = directory / "preparing"
        self.ready = directory / "ready"
        self.scheduled = directory / "deferred"
        self.restored_ready = directory / "restored" / self.ready.name
        self.restored_scheduled = directory / "restored" / self.scheduled.name
        # in the order in which a submission is moved through them
        self._places = (self.restored_scheduled, self.restored_ready, self.scheduled, self.ready)
        self.uploads = directory / "uploads"  # see upload_sessions.py
        self._corrupt = directory / "corrupt"
        self._has_copies = False  # submissions that are no hard links, of a copied mail root
        self._syncs = syncs
        # Whether a disk failure has left submissions in preparing/ that may exist already.
        # UnfinishedSubmissions finishes or removes them, while no other call of the store runs.
        self.is_unfinished = False
        self._made = False
        self._lock = threading.Lock()

    def make(self) -> None:
        """Create the directories on first use."""
        if self._made:
            return
        with self._lock:  # a second caller waits until they are durable
            if not self._made:
                make_directories(self.ready.parent, self._names())
                self._made = True

    def _names(self) -> tuple[str, ...]:
        return tuple(directory.name for directory in (self.preparing, self.ready, self.scheduled))

    def _make_again(self) -> None:
        """Create the directories that were removed while others of them exist."""
        with self._lock:  # make() may be between two of them
            missing = [name for name in self._names() if not (self.ready.parent / name).is_dir()]
        if missing and (self._made or len(missing) < len(self._names())):
            self._made = False
            self.make()
            _log.error(
                "submissions are lost: their directory was removed, and is made again",
                directories=missing,
                see="relay log --state converting",
            )

    def forget(self) -> None:
        """Create the directories again on next use, if they are missing."""
        self._made = False

    def ready_path(self, submission_id: str, ready_us: int, *, released: bool = False) -> Path:
        """The path of a submission that is ready; `released`: an operator has released it."""
        return self.ready / f"{submission_id}@{'0' * released}{ready_us}"

    def scheduled_path(self, submission_id: str, due_us: int) -> Path:
        """The path of a scheduled send until its time."""
        return self.scheduled / f"{submission_id}@{due_us}"

    def prepared_path(self, submission_id: str, key: SubmissionKey | None) -> str:
        """The path of a submission that is not ready yet.

        A start looks for the record of its key: if there is one, the submission exists; if not, the
        file is removed.
        """
        name = submission_id if key is None else f"{submission_id}@{key.slot}"
        return f"{self.preparing}/{name}"

    def marker(self, draft_id: str) -> Path:
        """The path of an empty file that exists while the send of a draft may differ from it.

        0.4.0 has the id of the submission before the plus sign.
        """
        return self.preparing / f"{draft_id}.+"

    def cancelled(self, submission_id: str) -> Path:
        """The path of a scheduled send that an operator has cancelled, until it is recorded."""
        return self.preparing / f"{submission_id}~"

    def look_for_copies(self) -> None:
        """Note, at a start, whether a submission is no hard link: then link counts prove nothing.

        A backup is restored, and a mail root may be copied, without hard links.
        """
        self._has_copies = any(
            _links(directory / name) == 1
            for directory in self._places
            for name in list_names(directory)
        )

    def find(self, draft_id: str, file: Path) -> Path | None:
        """The submission of the draft in `file`, scheduled, ready or held; None if it has none.

        A file with a single link has no submission: no directory is listed for it, unless
        submissions are copies or the draft was changed. Raises FileNotFoundError if the file
        does not exist.
        """
        is_linked = file.stat().st_nlink > 1 or self._has_copies
        return self._first(f"{draft_id}.") if is_linked or exists(self.marker(draft_id)) else None

    def waiting(self, draft_id: str) -> PendingSubmission | None:
        """The scheduled send of a draft, None if none waits."""
        path = _first(self.scheduled, f"{draft_id}.")
        return self.read(path) if path is not None and self.may_change(path) else None

    def may_change(self, submission: Path) -> bool:
        """Whether the submission at a path returned by find() waits for its time."""
        return submission.parent == self.scheduled and not held_since(submission.name)

    def find_submission(self, submission_id: str) -> Path | None:
        """The path of a submission, scheduled, ready or held; None if it does not exist."""
        return self._first(f"{submission_id}@")

    def has_unfinished(self, beginning: str) -> bool:
        """Whether a disk failure left a submission in preparing/ whose name begins so."""
        return self.is_unfinished and _first(self.preparing, beginning) is not None

    def _first(self, beginning: str) -> Path | None:
        for directory in self._places:
            if (name := _first(directory, beginning)) is not None:
                return name
        return None

    def clear(self) -> int:
        """Remove all submissions that are ready or scheduled, or corrupt; return their number."""
        removed = 0
        for directory in (self.ready, self.scheduled, self._corrupt):
            for name in list_names(directory):
                remove(directory / name)
                removed += 1
        return removed

    def changed_ns(self) -> int:
        """When ready/ last changed, by the file system's clock; 0 if it does not exist yet.

        If it was removed, it is created again.
        """
        changed_ns = _changed_ns(self.ready)
        if not changed_ns:
            self._make_again()
        return changed_ns

    def scheduled_changed_ns(self) -> int:
        """When deferred/ last changed, like changed_ns()."""
        return _changed_ns(self.scheduled)

    def list_ready(self, known: Container[str], limit: int) -> list[PendingSubmission]:
        """Up to `limit` submissions that are not in `known`, the longest ready first.

        An unreadable file does not block the others. Raises OSError if no submission can be read.
        """
        submissions: list[PendingSubmission] = []
        trouble: OSError | None = None
        for _, name in sorted(_listed(self.ready)):
            if name.partition("@")[0] in known:
                continue
            if len(submissions) >= limit:
                break
            try:
                if (submission := self.read(self.ready / name)) is not None:
                    submissions.append(submission)
            except OSError as error:
                trouble = error
        try:
            if trouble is not None and not submissions:
                raise trouble
        finally:
            del trouble
        return submissions

    def list_scheduled(self) -> list[tuple[int, str]]:
        """The due time and file name of each scheduled send that is not held. No file is read."""
        return [(due_us, name) for due_us, name in _listed(self.scheduled) if due_us < HELD_US]

    def read(self, path: Path) -> PendingSubmission | None:
        """Return the submission in a file of ready/ or deferred/, or in those below restored/.

        None if the file does not exist. A submission with a damaged record has neither account nor
        base name: pickup ends it with a report.
        """
        match = SUBMISSION_FILE_NAME.fullmatch(path.name)
        if match is None:
            return None
        try:
            block = read_block_of(path)
        except FileNotFoundError:
            return None
        due_us = at_us = int(match[3])
        origin = block.origin if block is not None else _NO_ORIGIN
        if origin.scheduled_us is not None:
            due_us = origin.scheduled_us
        return PendingSubmission(
            submission_id=f"{match[1]}.{match[2]}",
            account=origin.account,
            base_name=origin.base_name,
            path=path,
            ready_us=at_us,
            is_released=match[3].startswith("0"),
            options=SendOptions(
                origin.save_to_sent_items,
                origin.sent_folder,
                due_us if path.parent.name == self.scheduled.name else 0,
                origin.on_behalf_of,
            ),
        )

    def prepared(self) -> list[PreparedFile]:
        """The files in preparing/: at a start, those that a crash left."""
        files = []
        for name in list_names(self.preparing):
            match, path = _PREPARED.fullmatch(name), self.preparing / name
            if match is None:
                files.append(PreparedFile(path, ""))
            else:
                files.append(PreparedFile(path, match[1], bool(match[2]), match[3] or ""))
        return files

    def sync(self, submission: PendingSubmission) -> None:
        """Sync the directory that a submission is in."""
        self._syncs.sync(self.scheduled if submission.options.scheduled_us else self.ready)

    def sync_preparing(self) -> None:
        """Sync preparing/."""
        self._syncs.sync(self.preparing)

    def finish(self, prepared: Path, place: str) -> None:
        """Move a prepared submission to its place, "ready/…" or "deferred/…", unless it has one.

        The directories are listed, because a scheduled send may have become ready meanwhile.
        """
        path = self.find_submission(prepared.name.partition("@")[0])
        self.make_ready(prepared, path or self.preparing.parent / place)

    def make_ready(self, prepared: Path, submission: Path) -> None:
        """Move a prepared submission durably to its place, unless it is there already.

        It has one of the two names at any time, also after a power loss.
        """
        if not exists(submission):
            place(prepared, submission)
        self._syncs.sync(submission.parent)
        with suppress(FileNotFoundError):
            prepared.unlink()

    def sync_ready(self) -> None:
        """Sync ready/."""
        self._syncs.sync(self.ready)

    def sync_scheduled(self) -> None:
        """Sync deferred/."""
        self._syncs.sync(self.scheduled)

    def move_to_corrupt(self, path: Path) -> Path:
        """Move a file that cannot be processed to corrupt/, for the operator to inspect; return its
        path there.
        """
        make_directory(self._corrupt)
        moved = path.rename(self._corrupt / path.name)
        self._syncs.sync(self._corrupt)
        _log.error("submission corrupt", submission=path.name, moved_to=str(self._corrupt))
        return moved


def held_since(name: str) -> int:
    """Return since when the submission with this file name is held, 0 if it is not."""
    at_us = int(name.partition("@")[2])
    return at_us % 10**17 if at_us >= HELD_US else 0


def content_of(submission: PendingSubmission) -> Octets:
    """Return the content of a submission, in memory if it is small.

    Raises NoSuchItemError, OSError.
    """
    try:
        descriptor = os.open(submission.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NoSuchItemError(f"The submission {submission.submission_id} was removed.") from None
    try:  # few system calls: after each one another thread may run first
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes > LARGE_BYTES:
            return FileOctets(submission.path, 0, size_bytes)
        return MemoryOctets(os.read(descriptor, size_bytes))
    finally:
        os.close(descriptor)


def draft_of(file_name: str) -> str:
    """Return the draft's id, with which a submission's file name begins."""
    return file_name.partition(".")[0]


def read_block_of(path: Path) -> draft.PrivateBlock | None:
    """Read only the private block of a draft's file.

    Raises OSError.
    """
    with open_message(path) as file:
        head = file.read(draft.FIRST_FIELD_BYTES)
        length = draft.private_block_length(head)
        if not draft.FIRST_FIELD_BYTES < length <= draft.PRIVATE_BYTES_MAX:
            return None
        return draft.read_block(head + file.read(length - len(head)))


def _changed_ns(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _links(file: Path) -> int:
    try:
        return file.stat().st_nlink
    except FileNotFoundError:
        return 0


def _listed(directory: Path) -> list[tuple[int, str]]:
    """The time in the name, and the name, of each submission in a directory."""
    names = list_names(directory)
    return [
        (int(match[3]), name) for name in names if (match := SUBMISSION_FILE_NAME.fullmatch(name))
    ]


def _first(directory: Path, beginning: str) -> Path | None:
    """The first name with this beginning; the rest of the directory is not read."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(beginning):
                    return directory / entry.name
    except FileNotFoundError:
        pass
    return None


@dataclass(kw_only=True, eq=False, repr=False)
class OutboxPart(StorePart):
    """A part of the store that works with submissions."""

    directory: SubmissionDirectory  # `.submissions/`
    log: SubmissionLog  # of steps 1 to 4
