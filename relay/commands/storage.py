"""Verify, prune, recover and back up the store and the spool, whether the relay runs or not.

If root starts a command, it works as the owner of state_dir, so that the relay can write all files
that the command creates. No relay can start during a repair.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from relay import spool
from relay.accounts.account import DEAD_LETTER
from relay.accounts.directory import load_accounts
from relay.app.srs_key import UnusableKeyError, srs_in
from relay.app.state_dir import AlreadyRunningError, OwnerLock, as_owner, is_running
from relay.base.clock import Clock, rfc3339
from relay.base.files import check_readable
from relay.commands.backup import BackupCopy
from relay.journeys.submission_log import read_accepted
from relay.mailbox.verify.findings import StoreCounts, StoreFinding
from relay.message.address import own_mailbox
from relay.outbox.idempotency import damaged_records
from relay.outbox.verifier import Verifier, VerifierDependencies
from relay.settings.tree import Settings
from relay.spool.engine import SpoolFinding, SpoolStorage, VerifyMode
from relay.spool.shared_spool import SUBMISSION_KEEP_S
from relay.spool.types import SpoolDamagedError, SpoolError, SpoolUnsupportedError

_FINDINGS_MAX = 10_000  # of one document
_LINES_AT_ONCE = 1000


class UnknownAccountError(Exception):
    """No account and no mailbox has that name."""


class VerifyOptions(Struct, frozen=True):
    """The options of verify; without `accounts`, it checks all accounts and the spool."""

    accounts: Sequence[str] = ()
    dry_run: bool = False
    full: bool = False
    recount: bool = False


class StateFinding(Struct, frozen=True):
    """A fault of a file in state_dir; its keys are those of other findings."""

    kind: str
    where: str
    found: str
    expected: str
    repaired: bool = False
    action: str = ""


class VerifyResult(Struct, frozen=True):
    """The result of verify; `document` is the JSON output."""

    counts: StoreCounts
    document: dict[str, Any]


def verify(
    settings: Settings,
    options: VerifyOptions,
    *,
    environ: Mapping[str, str],
    clock: Clock,
    on_finding: Callable[[dict[str, Any]], None] = lambda _: None,
    on_mailbox: Callable[[int], None] = lambda _: None,
) -> VerifyResult:
    """Verify the store and the spool, and repair what can be repaired.

    Raises UnknownAccountError; SettingsError for an accounts file with faults; OSError,
    PermissionError if the user may not read a file.
    """
    boxes = settings.mailboxes
    check_readable(boxes.accounts)
    if not options.accounts:
        _check_readable(spool.storage(settings))
    accounts = load_accounts(boxes.accounts, settings.domains, clock=clock, environ=environ)
    findings: list[dict[str, Any]] = []

    def found(finding: StoreFinding | SpoolFinding | StateFinding) -> None:
        one = asdict(finding)
        if len(findings) < _FINDINGS_MAX:
            findings.append(one)
        on_finding(one)

    with (
        closing(accounts),
        as_owner(settings, boxes.root),
        _locked(settings, dry_run=options.dry_run) as is_owner,
    ):
        dependencies = VerifierDependencies(
            clock=clock,
            hostname=settings.hostname,
            dead_letter=settings.state_dir / DEAD_LETTER,
            is_account=lambda address: accounts.by_address(address) is not None,
        )
        verifier = Verifier(
            boxes.root, dependencies, dry_run=options.dry_run, full=options.full,
            on_finding=found, on_mailbox=on_mailbox,
        )  # fmt: skip
        wanted = []
        for name in options.accounts:
            account = accounts.by_address(name)
            address = account.address if account else own_mailbox(name)
            if account is None and not verifier.has_mailbox(address):
                raise UnknownAccountError(f"there is no account and no mailbox {name!r}")
            wanted.append(address)
        counts = verifier.run(list(dict.fromkeys(wanted)) if wanted else None)
        in_spool = None
        if not wanted:
            for fault in _faults_beside(settings):
                counts.remaining += 1
                found(fault)
            in_spool = _verify_spool(
                settings, options, clock=clock, is_owner=is_owner, found=found, counts=counts
            )
    return VerifyResult(counts, _document(counts, findings, in_spool))


def _faults_beside(settings: Settings) -> Iterator[StateFinding]:
    try:
        srs_in(settings)
    except UnusableKeyError as error:
        yield StateFinding("srs-key", str(error.path), error.found, error.expected)
    for path, why in damaged_records(settings.mailboxes.root / ".submissions"):
        yield StateFinding("damaged-key", str(path), why, "the record of an Idempotency-Key")


def _verify_spool(
    settings: Settings,
    options: VerifyOptions,
    *,
    clock: Clock,
    is_owner: bool,
    found: Callable[[SpoolFinding | StateFinding], None],
    counts: StoreCounts,
) -> dict[str, int] | None:
    stored = spool.storage(settings)
    if not stored.exists():
        return None
    with suppress(SpoolDamagedError):  # its tools report that
        for lost in _lost_messages(settings, stored, clock):
            counts.remaining += 1
            found(lost)
    if options.dry_run:
        mode = VerifyMode.READ_ONLY if is_running(settings.run_dir) else VerifyMode.DRY_RUN
    else:
        mode = VerifyMode.REPAIR if is_owner else VerifyMode.READ_ONLY

    def report(finding: SpoolFinding) -> None:
        counts.repaired += finding.repaired
        counts.remaining += not finding.repaired
        found(finding)

    with suppress(SpoolUnsupportedError):  # those of the database check it
        return stored.tools().verify(
            mode=mode, full=options.full, recount=options.recount, clock=clock, report=report
        )
    return None


def _lost_messages(
    settings: Settings, stored: SpoolStorage, clock: Clock
) -> Iterator[StateFinding]:
    """Yield what was accepted, by the submission log, and what the spool does not know, as one that
    is older than the mail root. The spool knows a submission for longer than this looks back.

    What is older than all that it knows was accepted into an earlier spool, as before an upgrade
    with an empty queue.
    """
    is_of_this_spool = False
    since_us = clock.time_us() - int(SUBMISSION_KEEP_S * 1_000_000)
    lines = read_accepted(settings.mailboxes.root / ".submissions/log", since_us=since_us)
    while some := {one.submission_id: one for one in islice(lines, _LINES_AT_ONCE)}:
        known = {key for key, _ in stored.accepted_since(None, some)}
        for key, line in some.items():
            is_of_this_spool |= key in known
            if key in known or not is_of_this_spool:
                continue
            when = f"step 4 at {rfc3339(line.at_us)}, as {line.queue_id}, and no message"
            where = f"submission {key} of {line.owner}"
            yield StateFinding("lost-message", where, when, "its message in the spool")


@contextmanager
def _locked(settings: Settings, *, dry_run: bool) -> Iterator[bool]:
    """Hold the owner locks if no relay holds them; yield whether they are held.

    With `dry_run`, or without a mail store, nothing is created.
    """
    root = settings.mailboxes.root
    with ExitStack() as held:
        is_held = False
        if not dry_run and root.is_dir():
            lock = OwnerLock(settings.run_dir, submissions=root / ".submissions")
            with suppress(AlreadyRunningError, OSError):  # without it, no relay can start either
                held.enter_context(lock)
                is_held = True
        yield is_held


def _document(
    counts: StoreCounts, findings: list[dict[str, Any]], in_spool: dict[str, int] | None
) -> dict[str, Any]:
    return {
        "mailboxes": counts.mailboxes,
        "messages": counts.messages,
        "indexes": counts.indexes,
        "uploads": counts.uploads,
        "submissions": dataclasses.asdict(counts.submissions),
        "spool": in_spool,
        "repaired": counts.repaired,
        "remaining": counts.remaining,
        "findings": findings,
    }


class NothingToRecoverError(SpoolError):
    """There is no spool to recover."""


def recover(settings: Settings, clock: Clock) -> dict[str, Any]:
    """Recover a damaged spool and return the result. Raises NothingToRecoverError, SpoolError."""
    stored = spool.storage(settings)
    tools = stored.tools()
    with as_owner(settings):
        if not stored.exists():
            raise NothingToRecoverError(f"there is no {stored}")
        with OwnerLock(settings.run_dir):
            found = tools.recover(stamp=_stamp(clock))
    return dataclasses.asdict(found) | {"rows": dict(found.rows), "whole": found.is_whole}


def _stamp(clock: Clock) -> str:
    return rfc3339(clock.time_us())[:19].replace(":", "").replace("-", "")


_MISSING_SHOWN = 1000


class BackupRefusedError(Exception):
    """There is nothing to copy, or the target cannot be used."""


def extent(settings: Settings) -> dict[str, Any]:
    """Return what a backup would copy. Raises BackupRefusedError, SpoolError."""
    found = _stored(settings).tools().backup_size()
    dead_letters = sum(1 for _ in _letters(settings.state_dir / DEAD_LETTER))
    return {
        "database": {"bytes": found.database_bytes},
        "contents": {"files": found.contents, "bytes": found.content_bytes},
        "dead_letters": dead_letters,
    }


def back_up(
    settings: Settings,
    folder: Path,
    *,
    clock: Clock,
    on_part: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Copy into `folder`, which is new or empty; return the manifest.

    Raises BackupRefusedError, SpoolError, OSError.
    """
    stored = _stored(settings)
    folder.mkdir(mode=0o700, exist_ok=True)
    if any(folder.iterdir()):
        raise BackupRefusedError(f"{folder} is not empty")
    made = rfc3339(clock.time_us())
    copied = stored.back_up(folder, on_part=on_part)
    dead_letters = settings.state_dir / DEAD_LETTER
    with closing(BackupCopy(folder)) as copy:
        copy.all_written(folder)
        letters = sum(
            copy.file(letter, letter.relative_to(settings.state_dir))
            for letter in _letters(dead_letters)
        )
        sizes = [one.stat().st_size for one in copied.contents.iterdir()]
        manifest = {
            "made": made,
            "hostname": settings.hostname,
            "database": {"file": copied.database.name, "bytes": copied.database.stat().st_size},
            "contents": {
                "files": len(sizes),
                "bytes": sum(sizes),
                "missing": list(copied.missing[:_MISSING_SHOWN]),
            },
            "dead_letters": letters,
            **copied.counts,
        }
        copy.write_manifest(manifest)
    return manifest


def _stored(settings: Settings) -> SpoolStorage:
    """Return a spool that exists and can be read, and has tools of Relay's."""
    stored = spool.storage(settings)
    stored.tools()
    _check_readable(stored)
    if not stored.exists():
        raise BackupRefusedError(f"there is no {stored}")
    return stored


def _check_readable(stored: SpoolStorage) -> None:
    """Raise PermissionError if this user may not read its files."""
    for file in stored.files():
        check_readable(file)


def _letters(maildir: Path) -> Iterator[Path]:
    """Yield the messages of a Maildir; its index is a cache and is not copied. One that is moved
    meanwhile may come twice.
    """
    for place, folders, names in os.walk(maildir):
        folders.sort()
        for name in sorted(names):
            if Path(place).name in ("new", "cur") or name == "maildirfolder":
                yield Path(place) / name
