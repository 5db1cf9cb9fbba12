"""Check pending submissions against their drafts, accounts and the submission log.

The check leaves to pickup and to the start of a relay what they do, because they may run at the
same time: it moves no submission. Raises OSError if a directory cannot be read.
See docs/design.md 1.
"""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from msgspec import Struct

from relay.journeys.submission_log import LoggedSubmissions, UnfinishedSubmission, read_submissions
from relay.mailbox.folders import list_folders, well_known_path
from relay.mailbox.maildir import list_names
from relay.mailbox.message_file import DRAFT, mailbox_directory, parse_name
from relay.mailbox.types import NoSuchItemError, WellKnown
from relay.mailbox.verify.findings import (
    QuietPeriod,
    Repair,
    Repairer,
    StoreFault,
    StoreFindingKind,
    SubmissionCounts,
    add_name,
    shown,
)
from relay.outbox.on_disk import (
    SUBMISSION_FILE_NAME,
    SubmissionDirectory,
    read_block_of,
)

_PREPARED = re.compile(r"[0-9a-z]{16}\.\d{1,20}([+~]|@.+)?")
_IN_PROGRESS_S = 60.0


class _SubmissionFile(Struct, frozen=True):
    path: Path
    submission_id: str
    account: str
    base_name: str


class SubmissionCheck:
    """Checks `.submissions/`, or only the submissions of `accounts` if that is not None."""

    def __init__(
        self,
        root: Path,
        submissions: SubmissionDirectory,
        repairer: Repairer,
        *,
        quiet_period: QuietPeriod,
        is_account: Callable[[str], bool],
        accounts: Collection[str] | None,
    ) -> None:
        self._root = root
        self._directory = submissions
        self._repairer = repairer
        self._quiet_period = quiet_period
        self._is_account = is_account
        self._accounts = accounts

    def check(self, counts: SubmissionCounts) -> None:
        """Check the submissions. Raises OSError."""
        submissions = [*self._read(self._directory.ready), *self._read(self._directory.scheduled)]
        if self._accounts is not None:
            submissions = [one for one in submissions if one.account in self._accounts]
        for submission in submissions:
            if submission.path.parent == self._directory.ready:
                counts.ready += 1
            else:
                counts.scheduled += 1
        prepared = list_names(self._directory.preparing)
        counts.preparing = sum(_PREPARED.fullmatch(name) is not None for name in prepared)
        for name in sorted(list_names(self._repairer.corrupt)):
            add_name(counts.corrupt, shown(self._repairer.corrupt / name))
        self._check_accounts(submissions)
        self._check_drafts(submissions, counts)
        self._check_log({one.submission_id: one for one in submissions}, counts)

    def _read(self, directory: Path) -> Iterator[_SubmissionFile]:
        for name in sorted(list_names(directory)):
            path = directory / name
            match = SUBMISSION_FILE_NAME.fullmatch(name)
            if match is None:
                continue
            try:
                block = read_block_of(path) if path.is_file() else None
            except FileNotFoundError:
                continue
            except OSError as error:
                self._repairer.report_unreadable(error, path, expected="a submission")
                continue
            if block is not None:
                submission_id = f"{match[1]}.{match[2]}"
                yield _SubmissionFile(
                    path, submission_id, block.origin.account, block.origin.base_name
                )
            elif self._quiet_period.wait_until_unchanged(path):
                fault = StoreFault(
                    StoreFindingKind.BROKEN_SUBMISSION,
                    path,
                    "a damaged record",
                    "the beginning of a draft",
                )
                self._repairer.handle(fault)

    def _check_accounts(self, submissions: list[_SubmissionFile]) -> None:
        for submission in submissions:
            if not self._is_account(submission.account) and submission.path.exists():
                fault = StoreFault(
                    StoreFindingKind.NO_ACCOUNT,
                    submission.path,
                    submission.account,
                    "an existing account",
                )
                self._repairer.handle(fault)

    def _check_drafts(self, submissions: list[_SubmissionFile], counts: SubmissionCounts) -> None:
        """Find the draft of each submission, and check that both are one file."""
        of_account: dict[str, dict[str, _SubmissionFile]] = {}
        for submission in submissions:
            of_account.setdefault(submission.account, {})[submission.base_name] = submission
        for account, wanted in of_account.items():
            for path in self._drafts(account, wanted):
                base_name = _base_name_of(path.name)
                submission = wanted.pop(base_name)
                self._check_link(submission, path)
            for submission in wanted.values():
                # the next start puts it into Drafts
                change = self._directory.preparing / f"{submission.submission_id}+"
                if submission.path.exists() and not change.exists():
                    add_name(counts.without_draft, submission.submission_id)

    def _drafts(self, account: str, wanted: Collection[str]) -> Iterator[Path]:
        """Yield the files with these base names in a mailbox, each once; search Drafts first."""
        left = set(wanted)
        for folder in self._folders(account):
            for directory in (folder / "new", folder / "cur"):
                if not left:
                    return
                for name in list_names(directory):
                    if (base_name := _base_name_of(name)) in left:
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

    def _check_link(self, submission: _SubmissionFile, draft: Path) -> None:
        """Check the hard link, by which a draft is known to be submitted."""
        if self._is_linked(submission, draft) or self._directory.has_copies():
            return
        if not self._quiet_period.wait_until_unchanged(draft) or self._is_linked(submission, draft):
            return
        fault = StoreFault(
            StoreFindingKind.UNMARKED_COPY,
            submission.path,
            f"a copy of {draft}",
            "another name of the same file",
        )
        repair = Repair("marked in .submissions/copied", self._directory.mark_copied)
        self._repairer.handle(fault, repair)

    def _is_linked(self, submission: _SubmissionFile, draft: Path) -> bool:
        try:
            return submission.path.samefile(draft)
        except FileNotFoundError:  # sent or renamed
            return True

    def _check_log(self, submissions: dict[str, _SubmissionFile], counts: SubmissionCounts) -> None:
        logged = self._read_log(submissions)
        lost = self._lost_submissions(logged, submissions)
        if lost or logged.accepted:  # the log grows while it is read
            self._quiet_period.wait_since(
                max([one.at_us for one in lost.values()], default=0) / 1_000_000
            )
            logged = self._read_log(submissions)
        for submission_id in sorted(logged.accepted):
            if submissions[submission_id].path.exists():
                add_name(counts.accepted, submission_id)
        for submission_id, one in sorted(self._lost_submissions(logged, submissions).items()):
            draft = self._waiting_draft(one.account, one.draft_id)
            if submission_id in lost and draft is not None:
                found = f"the draft of submission {submission_id}, which does not exist any more"
                self._repairer.handle(
                    StoreFault(
                        StoreFindingKind.LOST_SUBMISSION,
                        draft,
                        found,
                        "a submission, or no draft",
                    )
                )

    def _read_log(self, submissions: Collection[str]) -> LoggedSubmissions:
        return read_submissions(self._directory.ready.parent / "log", among=submissions)

    def _lost_submissions(
        self, logged: LoggedSubmissions, submissions: Collection[str]
    ) -> dict[str, UnfinishedSubmission]:
        """Return logged submissions that have neither a file nor an end."""
        known = {*submissions}
        in_use = (self._directory.ready, self._directory.scheduled)
        held = (self._directory.restored_ready, self._directory.restored_scheduled)
        for directory in (*in_use, *held):
            matches = map(SUBMISSION_FILE_NAME.fullmatch, list_names(directory))
            known |= {f"{match[1]}.{match[2]}" for match in matches if match}
        known |= {name.partition("@")[0] for name in list_names(self._repairer.corrupt)}
        prepared = list_names(self._directory.preparing)
        known |= {name.partition("@")[0].rstrip("+~") for name in prepared}
        return {
            submission_id: one
            for submission_id, one in logged.open.items()
            if submission_id not in known
            and (self._accounts is None or one.account in self._accounts)
            and self._quiet_period.age_s(one.at_us / 1_000_000) > _IN_PROGRESS_S
        }

    def _waiting_draft(self, account: str, draft_id: str) -> Path | None:
        """Return the file of a draft if it is still a draft, in Drafts."""
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


def _base_name_of(file_name: str) -> str:
    return file_name.partition(":")[0].partition(",")[0]
