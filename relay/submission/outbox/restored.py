"""The submissions that `relay restore` holds, in `.submissions/restored/`; a list of all that wait.

Neither pickup nor the timer reads that directory. As with ready submissions, the drafts cannot be
changed. Each file keeps the name that it had in ready/ or deferred/. A release moves it back: a
ready submission counts as submitted at the release, a scheduled one is sent at its time. Blocking;
all methods raise OSError.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path

from msgspec import Struct

from relay.base.clock import Clock
from relay.base.message.content import LARGE_BYTES
from relay.base.phrases import named
from relay.store.journeys.submission_log import SubmissionFacts, SubmissionLog
from relay.store.mailbox.draft_files import submission_facts
from relay.store.mailbox.maildir import list_names, open_message, remove
from relay.submission.outbox import on_disk

_LISTINGS_MAX = 5  # while files get other names


class NotHeldError(Exception):
    """A submission would be sent although it was restored: an internal error."""


class ListedSubmission(Struct, frozen=True):
    """A submission that waits.

    `due_us` is the time of a scheduled send, 0: when it is released. `reason` says why it is held,
    `held_us` since when; "" and 0 if it is not held, or by a restore.
    """

    facts: SubmissionFacts
    size_bytes: int
    due_us: int
    reason: str
    held_us: int
    path: Path = Path()


@dataclass(kw_only=True, eq=False, repr=False)
class RestoredSubmissions:
    """Holds restored submissions; lists these and all that wait."""

    directory: on_disk.SubmissionDirectory  # `.submissions/`
    clock: Clock  # for the times at which submissions are ready
    log: SubmissionLog  # of steps 1 to 4

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

    def listed(self) -> Iterator[ListedSubmission]:
        """Yield the submissions that a restore holds."""
        for path in [held / name for held in self._held for name in _names(held)]:
            yield from _listed(path, {})

    def waiting(self, drafts: Collection[str] = ()) -> Iterator[ListedSubmission]:
        """Yield scheduled sends and other held submissions, of these drafts or of all, each once.

        The file of one that is held, released or rescheduled meanwhile has another name.
        """
        directory, seen = self.directory.scheduled, set[str]()
        for _ in range(_LISTINGS_MAX):
            is_complete, reasons = True, self.log.hold_reasons()
            # one listing may miss a file that is renamed during it
            for name in sorted({*_names(directory), *_names(directory)}):
                is_wanted = not drafts or on_disk.draft_of(name) in drafts
                if is_wanted and _id_of(name) not in seen:
                    read = [*_listed(directory / name, reasons)]
                    is_complete &= bool(read)
                    seen.update(_id_of(name) for _ in read)
                    yield from read
            if is_complete:
                return

    def count_held(self) -> int:
        """Return the number of submissions that are held, but not by a restore."""
        return sum(on_disk.held_since(name) > 0 for name in _names(self.directory.scheduled))

    @property
    def _held(self) -> tuple[Path, Path]:
        return self.directory.restored_ready, self.directory.restored_scheduled


def _listed(path: Path, reasons: Mapping[str, str]) -> Iterator[ListedSubmission]:
    """Yield the submission in a file that is still there; `reasons` are those of holds, by id."""
    submission_id, _, at_us = path.name.partition("@")
    held_us = on_disk.held_since(path.name)
    by = "an operator" if int(at_us) >= on_disk.HELD_BY_OPERATOR_US else on_disk.OF_ACCOUNT
    reason = reasons.get(submission_id, by) if held_us else ""
    due_us = 0 if held_us or path.parent.name == "ready" else int(at_us)
    with suppress(FileNotFoundError), open_message(path) as file:
        facts = submission_facts(file.read(LARGE_BYTES), submission_id)
        yield ListedSubmission(facts, path.stat().st_size, due_us, reason, held_us, path)


def _names(directory: Path) -> list[str]:
    """Return the file names of the submissions in a directory, in their order."""
    return sorted(
        name for name in list_names(directory) if on_disk.SUBMISSION_FILE_NAME.fullmatch(name)
    )


def _id_of(name: str) -> str:
    return name.partition("@")[0]


def _by_id(directory: Path) -> dict[str, str]:
    """Return the submissions in a directory: id -> file name."""
    return {_id_of(name): name for name in _names(directory)}
