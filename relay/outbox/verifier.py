"""Verify the whole store, or some mailboxes: submissions, mailboxes, indexes.

`relay storage verify` runs this in its own process, also while a relay runs. Memory grows with the
number of messages in the largest folder and of mailboxes in a domain. Raises OSError if the root
cannot be listed. See docs/design.md 1 and 3.
"""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from msgspec import Struct

from relay.base.clock import Clock, Ids
from relay.mailbox.mailbox_list import mailbox_directories
from relay.mailbox.maildir import DirectorySync, list_names
from relay.mailbox.message_file import mailbox_directory
from relay.mailbox.types import NoSuchItemError
from relay.mailbox.verify.check_mailboxes import IndexCheck, MailboxCheck
from relay.mailbox.verify.check_messages import MessageCheck
from relay.mailbox.verify.findings import (
    QuietPeriod,
    Repairer,
    StoreCounts,
    StoreFinding,
    wait,
)
from relay.outbox.check_submissions import SubmissionCheck
from relay.outbox.on_disk import SubmissionDirectory


class VerifierDependencies(Struct, frozen=True):
    """The surroundings of the verifier.

    `dead_letter` is a Maildir outside the root. `is_account` returns whether an account exists.
    `pause` waits for a number of seconds.
    """

    clock: Clock
    hostname: str
    dead_letter: Path
    is_account: Callable[[str], bool]
    pause: Callable[[float], None] = wait


class Verifier:
    """Verifies a store. Blocking.

    `on_finding` is called with each finding, `on_mailbox` with a number before each mailbox.
    """

    def __init__(
        self,
        root: Path,
        dependencies: VerifierDependencies,
        *,
        dry_run: bool = False,
        full: bool = False,
        on_finding: Callable[[StoreFinding], None] = lambda _: None,
        on_mailbox: Callable[[int], None] = lambda _: None,
    ) -> None:
        """With `dry_run`, change nothing; with `full`, read every octet and every header."""
        self._root = root
        self._dependencies = dependencies
        self._on_mailbox = on_mailbox
        self._counts = StoreCounts()

        def report(finding: StoreFinding) -> None:
            self._counts.count(finding)
            on_finding(finding)

        clock = dependencies.clock
        self._quiet_period = QuietPeriod(clock, dependencies.pause)
        self._repairer = Repairer(root, dry_run=dry_run, report=report)
        owner = root.stat().st_uid if root.exists() else os.geteuid()
        self._mailboxes = MailboxCheck(
            self._repairer,
            self._quiet_period,
            messages=MessageCheck(self._repairer, self._quiet_period, owner=owner, full=full),
            indexes=IndexCheck(self._repairer, self._quiet_period, clock=clock, full=full),
            ids=Ids(clock),
            hostname=dependencies.hostname,
            owner=owner,
            counts=self._counts,
        )

    def run(self, accounts: Collection[str] | None = None) -> StoreCounts:
        """Verify everything, or what belongs to these accounts. Raises OSError."""
        self._check_submissions(accounts)
        for number, mailbox in enumerate(self._directories(accounts)):
            self._on_mailbox(number)
            self._mailboxes.check(mailbox)
        return self._counts

    def has_mailbox(self, account: str) -> bool:
        """Return whether a mailbox of that name exists, also without an account."""
        try:
            return mailbox_directory(self._root, account).is_dir()
        except NoSuchItemError:
            return False

    def _check_submissions(self, accounts: Collection[str] | None) -> None:
        check = SubmissionCheck(
            self._root,
            SubmissionDirectory(self._root / ".submissions", DirectorySync()),
            self._repairer,
            quiet_period=self._quiet_period,
            is_account=self._dependencies.is_account,
            accounts=accounts,
        )
        try:
            check.check(self._counts.submissions)
            if accounts is None:
                uploads = self._root / ".submissions" / "uploads"
                self._counts.uploads = sum(one.endswith(".json") for one in list_names(uploads))
        except OSError as error:
            self._repairer.report_unreadable(error, self._root / ".submissions")

    def _directories(self, accounts: Collection[str] | None) -> Iterator[Path]:
        if accounts is not None:
            yield from (mailbox_directory(self._root, one) for one in accounts)
            return
        yield from (one for one in mailbox_directories(self._root) if one.is_dir())
        if self._dependencies.dead_letter.is_dir():
            yield self._dependencies.dead_letter
