"""The notes of submitted drafts, and the store's log: whether each submission has what it needs.

On the path: verifier.py, before the mailboxes.
Holds: nothing that pickup or a start would do is done here, so that nobody's work is met: a note is
put aside only when it cannot be read, as pickup would.
Fails: OSError when a directory cannot be read.
Standards: docs/design.md 1.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from relay.journeys.submission_log import LoggedSubmissions, UnfinishedSubmission, read_submissions
from relay.mailbox.folders import list_folders, well_known_path
from relay.mailbox.maildir import list_names
from relay.mailbox.message_file import DRAFT, mailbox_directory, parse_name
from relay.mailbox.stale_files import STALE_S
from relay.mailbox.submissions import NOTE_NAME, SubmissionDirectory, read_block_of
from relay.mailbox.types import NoSuchItemError, WellKnown
from relay.mailbox.verify.findings import (
    QuietPeriod,
    Repair,
    Repairer,
    StoreFault,
    StoreFindingKind,
    SubmissionCounts,
    named,
    removed,
    shown,
)

_PREPARED = re.compile(r"[0-9a-z]{16}\.\d{1,20}[+~]?")
_IN_WORK_S = 60.0


@dataclass(frozen=True, slots=True)
class _Note:
    path: Path
    submission_id: str
    account: str
    base_name: str


class SubmissionCheck:
    """Checks `.submissions`; only what `accounts` sent where it is not None."""

    def __init__(
        self,
        root: Path,
        notes: SubmissionDirectory,
        mender: Repairer,
        *,
        flight: QuietPeriod,
        is_account: Callable[[str], bool],
        accounts: Collection[str] | None,
    ) -> None:
        self._root = root
        self._notes = notes
        self._mender = mender
        self._flight = flight
        self._is_account = is_account
        self._accounts = accounts

    def check(self, tally: SubmissionCounts) -> None:
        """Check the notes; raise OSError."""
        notes = [*self._read(self._notes.ready), *self._read(self._notes.deferred)]
        if self._accounts is not None:
            notes = [one for one in notes if one.account in self._accounts]
        for note in notes:
            if note.path.parent == self._notes.ready:
                tally.ready += 1
            else:
                tally.scheduled += 1
        self._check_prepared(tally)
        for name in sorted(list_names(self._mender.corrupt)):
            named(tally.corrupt, shown(self._mender.corrupt / name))
        self._check_accounts(notes)
        self._check_drafts(notes, tally)
        self._check_log({one.submission_id: one for one in notes}, tally)

    def _read(self, directory: Path) -> Iterator[_Note]:
        for name in sorted(list_names(directory)):
            path = directory / name
            match = NOTE_NAME.fullmatch(name)
            if match is None:
                fault = StoreFault(
                    StoreFindingKind.SUBMISSION_NAME,
                    path,
                    "a name that is no note's",
                    "ID.NUMBER@TIME",
                )
                if self._flight.land(path):
                    self._mender.settle(fault, self._mender.move_to_corrupt(path, is_whole=True))
                continue
            try:
                block = read_block_of(path) if path.is_file() else None
            except FileNotFoundError:
                continue
            except OSError as error:
                found = error.strerror or str(error)
                self._mender.settle(StoreFault(StoreFindingKind.UNREADABLE, path, found, "a note"))
                continue
            if block is not None:
                submission_id = f"{match[1]}.{match[2]}"
                yield _Note(path, submission_id, block.origin.account, block.origin.base_name)
            elif self._flight.land(path):
                fault = StoreFault(
                    StoreFindingKind.BROKEN_SUBMISSION,
                    path,
                    "no private block",
                    "a draft's beginning",
                )
                self._mender.settle(fault, self._mender.move_to_corrupt(path))

    def _check_prepared(self, tally: SubmissionCounts) -> None:
        """Count requests that go on; a start sees to what a crash left, and knows the drafts."""
        for name in sorted(list_names(self._notes.preparing)):
            path = self._notes.preparing / name
            if _PREPARED.fullmatch(name) is None:
                if self._flight.land(path):
                    fault = StoreFault(
                        StoreFindingKind.SUBMISSION_NAME,
                        path,
                        "a name that is no note's",
                        "ID.NUMBER",
                    )
                    self._mender.settle(fault, self._mender.move_to_corrupt(path, is_whole=True))
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            tally.preparing += 1
            age_s = self._flight.age_s(status.st_ctime)
            if age_s >= STALE_S and status.st_nlink == 1:
                found = f"untouched for {age_s / 3600:.0f} hours"
                self._mender.settle(
                    StoreFault(StoreFindingKind.STALE_FILE, path, found, "at most 36"),
                    removed(path),
                )

    def _check_accounts(self, notes: list[_Note]) -> None:
        for note in notes:
            if not self._is_account(note.account) and note.path.exists():
                fault = StoreFault(
                    StoreFindingKind.NO_ACCOUNT, note.path, note.account, "a note of an account"
                )
                self._mender.settle(fault)

    def _check_drafts(self, notes: list[_Note], tally: SubmissionCounts) -> None:
        """Look for the draft of each note, and whether that is the note's file."""
        of_account: dict[str, dict[str, _Note]] = {}
        for note in notes:
            of_account.setdefault(note.account, {})[note.base_name] = note
        for account, wanted in of_account.items():
            for path in self._drafts(account, wanted):
                base_name = _stem_of(path.name)
                note = wanted.pop(base_name)
                self._check_link(note, path)
            for note in wanted.values():
                change = self._notes.preparing / f"{note.submission_id}+"  # a start puts it there
                if note.path.exists() and not change.exists():
                    named(tally.without_draft, note.submission_id)

    def _drafts(self, account: str, wanted: Collection[str]) -> Iterator[Path]:
        """The files with these base names in a mailbox, each once: in Drafts, or wherever."""
        left = set(wanted)
        for folder in self._folders(account):
            for directory in (folder / "new", folder / "cur"):
                if not left:
                    return
                for name in list_names(directory):
                    if (base_name := _stem_of(name)) in left:
                        left.discard(base_name)
                        yield directory / name

    def _folders(self, account: str) -> Iterator[Path]:
        try:
            mailbox = mailbox_directory(self._root, account)
        except NoSuchItemError:
            return
        drafts = well_known_path(mailbox, WellKnown.DRAFTS)
        yield drafts
        yield from (one.path for one in list_folders(mailbox) if one.path != drafts)

    def _check_link(self, note: _Note, draft: Path) -> None:
        """A draft that is no link of its note's file looks as if it had none."""
        if self._is_linked(note, draft) or self._notes.knows_copies():
            return
        if not self._flight.land(draft) or self._is_linked(note, draft):
            return
        fault = StoreFault(
            StoreFindingKind.UNMARKED_COPY,
            note.path,
            f"a copy of {draft}",
            "another name of the same file",
        )
        cure = Repair("told by a mark, so that drafts know of their notes", self._notes.say_copied)
        self._mender.settle(fault, cure)

    def _is_linked(self, note: _Note, draft: Path) -> bool:
        try:
            return note.path.samefile(draft)
        except FileNotFoundError:  # done with, or renamed
            return True

    def _check_log(self, notes: dict[str, _Note], tally: SubmissionCounts) -> None:
        told = self._told(notes)
        lost = self._lost(told, notes)
        if lost or told.accepted:  # the log goes on while it is read
            self._flight.pass_by(max([one.at_us for one in lost.values()], default=0) / 1_000_000)
            told = self._told(notes)
        for submission_id in sorted(told.accepted):
            if notes[submission_id].path.exists():
                named(tally.accepted, submission_id)
        for submission_id, one in sorted(self._lost(told, notes).items()):
            draft = self._waiting_draft(one.account, one.draft_id)
            if submission_id in lost and draft is not None:
                found = f"the draft of submission {submission_id}, which has no note any more"
                self._mender.settle(
                    StoreFault(
                        StoreFindingKind.LOST_SUBMISSION,
                        draft,
                        found,
                        "a note, or a draft that can be sent again",
                    )
                )

    def _told(self, notes: Collection[str]) -> LoggedSubmissions:
        return read_submissions(self._notes.ready.parent / "log", among=notes)

    def _lost(
        self, told: LoggedSubmissions, notes: Collection[str]
    ) -> dict[str, UnfinishedSubmission]:
        """Submissions that were notified and have neither note nor end."""
        there = {*notes}
        for directory in (self._notes.ready, self._notes.deferred, self._mender.corrupt):
            there |= {name.partition("@")[0] for name in list_names(directory)}
        there |= {name.rstrip("+~") for name in list_names(self._notes.preparing)}
        return {
            submission_id: one
            for submission_id, one in told.open.items()
            if submission_id not in there
            and (self._accounts is None or one.account in self._accounts)
            and self._flight.age_s(one.at_us / 1_000_000) > _IN_WORK_S
        }

    def _waiting_draft(self, account: str, draft_id: str) -> Path | None:
        """The draft of an id if it is still one, in Drafts."""
        try:
            drafts = well_known_path(mailbox_directory(self._root, account), WellKnown.DRAFTS)
        except NoSuchItemError:
            return None
        for directory in (drafts / "new", drafts / "cur"):
            for file_name in list_names(directory):
                name = parse_name(file_name)
                if name is not None and name.message_id == draft_id and DRAFT in name.flags:
                    return directory / file_name
        return None


def _stem_of(file_name: str) -> str:
    return file_name.partition(":")[0].partition(",")[0]


_RECEIVED = re.compile(r"[0-9a-f]{64}@(\d{1,18})")
_FACTS = ".json"


def check_uploads(directory: Path, mender: Repairer, flight: QuietPeriod) -> int:
    """Put aside what cannot be gone on with; return how many sessions there are."""
    count = 0
    for name in sorted(list_names(directory)):
        path = directory / name
        count += name.endswith(_FACTS)
        if _fault(path) is not None and flight.land(path) and (fault := _fault(path)) is not None:
            mender.settle(fault, mender.move_to_corrupt(path))
    return count


def _fault(path: Path) -> StoreFault | None:
    """What is wrong with a file, None if nothing is or it is gone."""
    try:
        if path.name.endswith(_FACTS):
            return None if _is_table(path) else _broken(path, "no JSON", "a session's facts")
        match = _RECEIVED.fullmatch(path.name)
        size_bytes = path.stat().st_size
        if match and size_bytes < int(match[1]):
            return _broken(path, f"{size_bytes} bytes", f"the {match[1]} that were confirmed")
    except FileNotFoundError:
        return None
    return None


def _is_table(path: Path) -> bool:
    try:
        return isinstance(msgspec.json.decode(path.read_bytes()), dict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _broken(path: Path, found: str, expected: str) -> StoreFault:
    return StoreFault(StoreFindingKind.BROKEN_UPLOAD, path, found, expected)
