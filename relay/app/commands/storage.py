"""Verify the store and the spool of a configuration, with the rights of whoever owns it.

On the path: beside it; the command line comes here, whether a daemon runs or not.
Holds: what root starts works as the owner of the mailboxes, so that it leaves nothing that the
    relay cannot write; no relay starts in the middle of mending.
Fails: UnknownAccountError; SettingsError for accounts with faults; OSError, of which
    PermissionError is for who may not read what is to be verified.
Standards: none.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from relay.accounts import DEAD_LETTER, load_accounts
from relay.app.lock import AlreadyRunningError, OwnerLock, is_taken
from relay.clock import Clock
from relay.files import check_readable
from relay.mailbox.verify import Finding, Surroundings, Tally, Verifier
from relay.settings import Settings
from relay.spool.sqlite.disk.presence import is_or_was_there
from relay.spool.sqlite.storage.verify import Finding as InSpool
from relay.spool.sqlite.storage.verify import Mode, SpoolVerifier

_FINDINGS_MAX = 10_000  # of one document
_ROOT = 0


class UnknownAccountError(Exception):
    """There is no such account, and no mailbox of that name."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be verified, and how: every account where none is named."""

    accounts: Sequence[str] = ()
    dry_run: bool = False
    full: bool = False
    recount: bool = False


@dataclass(frozen=True, slots=True)
class Verified:
    """What came of it; `document` is what --json prints."""

    tally: Tally
    document: dict[str, Any]


def verify(
    settings: Settings,
    wishes: Wishes,
    *,
    environ: Mapping[str, str],
    clock: Clock,
    on_finding: Callable[[dict[str, Any]], None] = lambda _: None,
    on_mailbox: Callable[[int], None] = lambda _: None,
) -> Verified:
    """Verify, and mend what can be mended. Raises what the module says."""
    boxes = settings.mailboxes
    check_readable(boxes.accounts)
    if not wishes.accounts:
        check_readable(settings.spool_file)
    accounts = load_accounts(boxes.accounts, boxes.domains, clock=clock, environ=environ)
    findings: list[dict[str, Any]] = []

    def found(finding: Finding | InSpool) -> None:
        one = asdict(finding)
        if len(findings) < _FINDINGS_MAX:
            findings.append(one)
        on_finding(one)

    with (
        closing(accounts),
        as_owner(boxes.root),
        _locked(settings, dry_run=wishes.dry_run) as is_owner,
    ):
        surroundings = Surroundings(
            clock=clock,
            hostname=settings.hostname,
            dead_letter=settings.state_dir / DEAD_LETTER,
            is_account=lambda address: accounts.by_address(address) is not None,
        )
        verifier = Verifier(
            boxes.root, surroundings, dry_run=wishes.dry_run, full=wishes.full,
            on_finding=found, on_mailbox=on_mailbox,
        )  # fmt: skip
        wanted = []
        for name in wishes.accounts:
            account = accounts.by_address(name)
            address = account.address if account else name.lower()
            if account is None and not verifier.has_mailbox(address):
                raise UnknownAccountError(f"there is no account and no mailbox {name!r}")
            wanted.append(address)
        tally = verifier.run(list(dict.fromkeys(wanted)) if wanted else None)
        spool = (
            None
            if wanted
            else _verify_spool(
                settings, wishes, clock=clock, is_owner=is_owner, found=found, tally=tally
            )
        )
    return Verified(tally, _document(tally, findings, spool))


def _verify_spool(
    settings: Settings,
    wishes: Wishes,
    *,
    clock: Clock,
    is_owner: bool,
    found: Callable[[InSpool], None],
    tally: Tally,
) -> dict[str, int] | None:
    if not is_or_was_there(settings.spool_file):
        return None
    if wishes.dry_run:
        mode = Mode.BESIDE if is_taken(settings.run_dir) else Mode.DRY_RUN
    else:
        mode = Mode.MEND if is_owner else Mode.BESIDE

    def report(finding: InSpool) -> None:
        tally.mended += finding.mended
        tally.remaining += not finding.mended
        found(finding)

    verifier = SpoolVerifier(
        settings.spool_file,
        mode=mode,
        full=wishes.full,
        recount=wishes.recount,
        clock=clock,
        report=report,
    )
    return verifier.run()


@contextmanager
def as_owner(root: Path) -> Iterator[None]:
    """Let root act as the owner of the mailboxes."""
    if os.geteuid() != _ROOT or not root.exists() or root.stat().st_uid == _ROOT:
        yield
        return
    status, groups, group = root.stat(), os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    try:
        yield
    finally:
        os.seteuid(_ROOT)
        os.setegid(group)
        os.setgroups(groups)


@contextmanager
def _locked(settings: Settings, *, dry_run: bool) -> Iterator[bool]:
    """Hold the locks of a relay, where none holds one of them: beside that, verify works as well.
    Yield whether they are held.

    Nothing is made where nothing is to be changed, or there is no store.
    """
    root = settings.mailboxes.root
    lock, is_held = OwnerLock(settings.run_dir, notes=root / ".submissions"), False
    if not dry_run and root.is_dir():
        with suppress(AlreadyRunningError, OSError):  # no relay starts where no lock can be had
            lock.take()
            is_held = True
    try:
        yield is_held
    finally:
        lock.give_back()


def _document(
    tally: Tally, findings: list[dict[str, Any]], spool: dict[str, int] | None
) -> dict[str, Any]:
    return {
        "mailboxes": tally.mailboxes,
        "messages": tally.messages,
        "indexes": tally.indexes,
        "uploads": tally.uploads,
        "notes": asdict(tally.notes),
        "spool": spool,
        "mended": tally.mended,
        "remaining": tally.remaining,
        "findings": findings,
    }
