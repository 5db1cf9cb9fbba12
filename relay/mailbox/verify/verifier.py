"""Go through the whole store, or some mailboxes: notes, mailboxes, indexes.

On the path: beside it; `relay storage verify` runs this in a process of its own.
Holds: memory grows with the largest folder and with the names of a domain's, not with the mail.
Fails: OSError when the root cannot be listed.
Standards: docs/design.md 1 and 3.
"""

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from relay.clock import Clock, Ids
from relay.mailbox.maildir import DirectorySync, list_names
from relay.mailbox.message_file import mailbox_directory
from relay.mailbox.submissions import SubmissionDirectory
from relay.mailbox.types import NoSuchItemError
from relay.mailbox.verify.check_mailboxes import IndexCheck, MailboxCheck
from relay.mailbox.verify.check_messages import MessageCheck
from relay.mailbox.verify.check_submissions import SubmissionCheck, check_uploads
from relay.mailbox.verify.findings import (
    QuietPeriod,
    Repairer,
    StoreCounts,
    StoreFault,
    StoreFinding,
    StoreFindingKind,
    wait,
)


@dataclass(frozen=True, slots=True)
class VerifierDependencies:
    """What verify needs of others. `dead_letter` is a Maildir beside the root;
    `is_account` tells accounts that there are; `pause` lets seconds go by.
    """

    clock: Clock
    hostname: str
    dead_letter: Path
    is_account: Callable[[str], bool]
    pause: Callable[[float], None] = wait


class Verifier:
    """Blocking. `on_finding` is called as things are found, `on_mailbox` before each mailbox."""

    def __init__(
        self,
        root: Path,
        surroundings: VerifierDependencies,
        *,
        dry_run: bool = False,
        full: bool = False,
        on_finding: Callable[[StoreFinding], None] = lambda _: None,
        on_mailbox: Callable[[int], None] = lambda _: None,
    ) -> None:
        """With `dry_run` nothing is changed; `full` reads every octet and every header."""
        self._root = root
        self._surroundings = surroundings
        self._on_mailbox = on_mailbox
        self._tally = StoreCounts()

        def report(finding: StoreFinding) -> None:
            self._tally.count(finding)
            on_finding(finding)

        clock = surroundings.clock
        self._flight = QuietPeriod(clock, surroundings.pause)
        self._mender = Repairer(root, dry_run=dry_run, report=report)
        owner = root.stat().st_uid if root.exists() else os.geteuid()
        self._mailboxes = MailboxCheck(
            self._mender,
            self._flight,
            messages=MessageCheck(self._mender, self._flight, owner=owner, full=full),
            indexes=IndexCheck(self._mender, self._flight, clock=clock, full=full),
            ids=Ids(clock),
            hostname=surroundings.hostname,
            owner=owner,
        )

    def run(self, accounts: Collection[str] | None = None) -> StoreCounts:
        """Verify everything, or what is of these accounts. Raises OSError."""
        self._check_notes(accounts)
        for number, mailbox in enumerate(self._directories(accounts)):
            self._on_mailbox(number)
            self._mailboxes.check(mailbox, self._tally)
        return self._tally

    def has_mailbox(self, account: str) -> bool:
        """Whether there is a mailbox of that name, whoever's it is."""
        try:
            return mailbox_directory(self._root, account).is_dir()
        except NoSuchItemError:
            return False

    def _check_notes(self, accounts: Collection[str] | None) -> None:
        check = SubmissionCheck(
            self._root,
            SubmissionDirectory(self._root / ".submissions", DirectorySync()),
            self._mender,
            flight=self._flight,
            is_account=self._surroundings.is_account,
            accounts=accounts,
        )
        try:
            check.check(self._tally.submissions)
            if accounts is None:
                uploads = self._root / ".submissions" / "uploads"
                self._tally.uploads = check_uploads(uploads, self._mender, self._flight)
        except OSError as error:
            where = Path(str(error.filename or self._root / ".submissions"))
            found = error.strerror or str(error)
            self._mender.settle(
                StoreFault(StoreFindingKind.UNREADABLE, where, found, "what can be read")
            )

    def _directories(self, accounts: Collection[str] | None) -> Iterator[Path]:
        if accounts is not None:
            yield from (mailbox_directory(self._root, one) for one in accounts)
            return
        for domain in sorted(_directories_in(self._root)):
            for name in sorted(_directories_in(self._root / domain)):
                yield self._root / domain / name
        if self._surroundings.dead_letter.is_dir():
            yield self._surroundings.dead_letter


def _directories_in(path: Path) -> list[str]:
    """The directories in one, but hidden ones: no domain and no local part begins with a dot."""
    return [
        name for name in list_names(path) if not name.startswith(".") and (path / name).is_dir()
    ]
