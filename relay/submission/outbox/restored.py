"""The submissions that `relay restore` holds, in `.submissions/restored/`.

Neither pickup nor the timer reads that directory. As with ready submissions, the drafts cannot be
changed. Each file keeps the name that it had in ready/ or deferred/. A release moves it back: a
ready submission counts as submitted at the release, a scheduled one is sent at its time. Blocking;
all methods raise OSError.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path

from msgspec import Struct

from relay.base.clock import Clock
from relay.base.message.content import LARGE_BYTES
from relay.base.phrases import named
from relay.store.journeys.details import NotifiedDetail
from relay.store.journeys.submission_log import SubmissionFacts, SubmissionLog
from relay.store.mailbox.draft_files import submission_facts
from relay.store.mailbox.maildir import (
    SYNC_FAILURES,
    DirectorySync,
    list_names,
    make_directories,
    open_message,
    place,
    remove,
)
from relay.store.mailbox.pending_submission import PendingSubmission
from relay.submission.outbox.on_disk import SUBMISSION_FILE_NAME, SubmissionDirectory, held_since

_AT_ONCE = 256  # submissions that are moved with the same syncs


class NotHeldError(Exception):
    """A submission would be sent although it was restored: an internal error."""


class HeldSubmission(Struct, frozen=True):
    """A held submission; `scheduled_us` is the time to send it, 0: when it is released."""

    facts: SubmissionFacts
    scheduled_us: int
    size_bytes: int


@dataclass(kw_only=True, eq=False, repr=False)
class RestoredSubmissions:
    """Holds, lists, releases and cancels restored submissions."""

    directory: SubmissionDirectory  # `.submissions/`
    syncs: DirectorySync  # shares fsyncs among threads
    clock: Clock  # for the times at which submissions are ready
    log: SubmissionLog  # of steps 1 to 4
    offer: Callable[[PendingSubmission], None] = lambda _: None  # to pickup, or to the timer

    def pending_ids(self) -> list[str]:
        """Return the ids of all submissions, held or not."""
        places = (self.directory.scheduled, self.directory.ready, *self._held)
        return list(
            dict.fromkeys(submission_id for place in places for submission_id in _by_id(place))
        )

    def count(self) -> int:
        """Return the number of held submissions."""
        return sum(len(_by_id(held)) for held in self._held)

    def hold(self, accepted: Collection[str], recorded: Mapping[str, str]) -> list[Path]:
        """Hold all pending submissions of a restored directory. The directory is not synced.

        Submissions that the spool has `accepted` become ready: pickup only files their originals.
        A file in preparing/ is a submission only if its id is in `recorded`, which has its place.
        If a submission has several files, the first is held, and a file in ready/ or deferred/ has
        precedence over one that was held. Equal files are removed; different ones are moved to
        corrupt/, and their paths there are returned. Raises NotHeldError.
        """
        directory = self.directory
        for prepared in directory.prepared():
            if prepared.submission_id in recorded and not prepared.is_cancelled:
                directory.finish(prepared.path, recorded[prepared.submission_id])
            remove(prepared.path)
        for folder in self._held:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_ready: set[str] = set()
        differing: list[Path] = []
        for source, held in zip((directory.ready, directory.scheduled), self._held, strict=True):
            first: dict[str, Path] = {}
            for path in [folder / name for folder in (source, held) for name in _names(folder)]:
                if (other := first.setdefault(_id_of(path.name), path)) is path:
                    continue
                if cmp(other, path, shallow=False):
                    path.unlink()
                else:
                    differing.append(directory.move_to_corrupt(path))
            for submission_id, path in first.items():
                if submission_id in is_ready:  # it became ready between two copies
                    path.unlink()
                elif submission_id in accepted:
                    path.rename(directory.ready_path(submission_id, self.clock.queue_us()))
                elif path.parent != held:
                    path.rename(held / path.name)
                if source == directory.ready:
                    is_ready.add(submission_id)
        left = _by_id(directory.scheduled) | _by_id(directory.ready)
        if names := [left[submission_id] for submission_id in left.keys() - set(accepted)]:
            raise NotHeldError(f"{directory.ready.parent}: would be sent: {named(names)}")
        return differing

    def listed(self, limit: int) -> Iterator[HeldSubmission]:
        """Yield held submissions, at most `limit`."""
        names = [(held, name) for held in self._held for name in sorted(_by_id(held).values())]
        for held, name in names[:limit]:
            submission_id, _, at_us = name.partition("@")
            with suppress(FileNotFoundError), open_message(held / name) as file:
                facts = submission_facts(file.read(LARGE_BYTES), submission_id)
                is_due = held == self.directory.restored_scheduled and not held_since(name)
                scheduled_us = int(at_us) if is_due else 0
                yield HeldSubmission(facts, scheduled_us, (held / name).stat().st_size)

    def release(self) -> int:
        """Release all submissions durably; return their number. Repeat it after a crash."""
        released = 0
        SYNC_FAILURES.begin()
        places = (self.directory.ready, self.directory.scheduled)
        for held, to in zip(self._held, places, strict=True):
            names = _by_id(held)
            if names:
                make_directories(to.parent, (to.name,))
            for part in _slices(names):
                self._move(part, held, to)
                released += len(part)
        return released

    def cancel(self) -> int:
        """Remove all held submissions durably; the drafts stay. Return their number."""
        SYNC_FAILURES.begin()
        removed = 0
        for held in self._held:
            for part in _slices(_by_id(held)):
                for submission_id, name in part.items():
                    detail = NotifiedDetail(cancelled="by an operator", reason="it was restored")
                    if (submission := self.directory.read(held / name)) is not None:
                        self.log.remark(submission_id, detail, account=submission.account)
                    remove(held / name)
                self.syncs.sync(held)
                removed += len(part)
        return removed

    @property
    def _held(self) -> tuple[Path, Path]:
        return self.directory.restored_ready, self.directory.restored_scheduled

    def _move(self, names: Mapping[str, str], held: Path, to: Path) -> None:
        """Move submissions to `to`: each gets its new name before the old one is removed."""
        moved = []
        for submission_id, name in names.items():
            target = to / name
            if to == self.directory.ready:
                target = self.directory.ready_path(submission_id, self.clock.queue_us())
            place(held / name, target)
            moved.append(target)
        self.syncs.sync(to)
        for name in names.values():
            remove(held / name)
        self.syncs.sync(held)
        for target in moved:
            submission = self.directory.read(target)
            if submission is not None and not held_since(target.name):
                self.offer(submission)


def _names(directory: Path) -> list[str]:
    """Return the file names of the submissions in a directory, in their order."""
    return sorted(name for name in list_names(directory) if SUBMISSION_FILE_NAME.fullmatch(name))


def _id_of(name: str) -> str:
    return name.partition("@")[0]


def _by_id(directory: Path) -> dict[str, str]:
    """Return the submissions in a directory: id -> file name."""
    return {_id_of(name): name for name in _names(directory)}


def _slices(names: Mapping[str, str]) -> Iterator[dict[str, str]]:
    items = sorted(names.items())
    for start in range(0, len(items), _AT_ONCE):
        yield dict(items[start : start + _AT_ONCE])
