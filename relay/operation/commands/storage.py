"""Verify and back up the spool, whether the relay runs or not; accept another mail root while none
runs. A start takes only the mail root that the spool knows (relay/store/mailbox/mail_root.py).

If root starts a command, it works as the owner of state_dir, so that the relay can write all files
that the command creates. No relay can start while the spool is verified.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import uvloop
from msgspec import Struct
from msgspec.structs import asdict

from relay.base.accounts.account import DEAD_LETTER
from relay.base.clock import Clock, id_time_us, rfc3339
from relay.base.files import check_readable
from relay.base.message.lifecycle import LIVE
from relay.base.observe.logs import get_logger
from relay.base.settings.document import SettingsError
from relay.base.settings.tree import Settings
from relay.operation.app.configuration import srs_in
from relay.operation.app.state_dir import AlreadyRunningError, OwnerLock, as_owner
from relay.operation.commands.backup import BackupCopy
from relay.operation.commands.logged_mail import LEFT, read_log, what_became
from relay.operation.commands.offline import opened_spool
from relay.store import spool
from relay.store.journeys.submission_log import read_accepted
from relay.store.mailbox.mail_root import NEW_ID, read_id, write_id
from relay.store.mailbox.maildir import DirectorySync, list_names
from relay.store.spool.engine import SpoolFinding, SpoolStorage, VerifyRequest
from relay.store.spool.types import SpoolDamagedError, SpoolUnsupportedError
from relay.submission.outbox.on_disk import SubmissionDirectory
from relay.submission.pickup.decisions import KEY_MARGIN_S

_FINDINGS_MAX = 10_000  # of one document
_LINES_AT_ONCE = 1000


def verify(
    settings: Settings,
    *,
    full: bool = False,
    recount: bool = False,
    log: Iterable[bytes] | None = None,
    clock: Clock,
    on_finding: Callable[[SpoolFinding], None] = lambda _: None,
) -> dict[str, Any]:
    """Verify the spool, the SRS key and the pending submissions; return the JSON output. `log` has
    lines of the logs of all nodes, with which the spool is compared.

    Raises OSError, PermissionError if the user may not read a file; SpoolError.
    """
    _check_readable(spool.storage(settings))
    root = settings.mailboxes.root
    findings: list[SpoolFinding] = []
    remaining = 0

    def add(finding: SpoolFinding) -> None:
        nonlocal remaining
        remaining += not finding.repaired
        if len(findings) < _FINDINGS_MAX:
            findings.append(finding)
        on_finding(finding)

    with as_owner(settings, root), _locked(settings) as is_owner:
        for fault in _faults_beside(settings):
            add(fault)
        stored, in_spool = spool.storage(settings), None
        if stored.exists():
            with suppress(SpoolDamagedError):  # its tools report that
                for finding in _differences(settings, stored, log=log, clock=clock):
                    add(finding)
            with suppress(SpoolUnsupportedError):  # the tools of the database check it
                request = VerifyRequest(add, is_owner=is_owner, full=full, recount=recount)
                in_spool = stored.verify(request)
        submissions = SubmissionDirectory(root / ".submissions", DirectorySync())
        waiting = {
            "ready": len(list_names(submissions.ready)),
            "scheduled": len(list_names(submissions.scheduled)),
        }
    return {
        "submissions": waiting,
        "spool": in_spool,
        "remaining": remaining,
        "findings": [asdict(finding) for finding in findings],
    }


def _faults_beside(settings: Settings) -> Iterator[SpoolFinding]:
    try:
        srs_in(settings)
    except SettingsError as error:
        for fault in error.faults:
            found, _, expected = fault.message.removeprefix("found ").partition(", expected ")
            yield SpoolFinding("srs-key", str(fault.file), found, expected)


def _differences(
    settings: Settings, stored: SpoolStorage, *, log: Iterable[bytes] | None, clock: Clock
) -> Iterator[SpoolFinding]:
    """Yield what the submission log or `log` has as accepted and the spool does not know, for
    example because the spool is older than the mail root; and what waits although it has left by
    `log`. The spool remembers a message for longer than this function looks back.

    Without `log`, messages before the first one that the spool knows are skipped: they were
    accepted into an earlier spool, for example before an upgrade with an empty queue.
    """
    since_us = clock.time_us() - int(min(KEY_MARGIN_S, settings.spool.keep) * 1_000_000)
    accepted, results = read_log(log or ())
    named: dict[str, Sequence[str]] = {}
    times = {queue_id: id_time_us(queue_id) or 0 for queue_id in accepted}
    recent = (queue_id for queue_id, at_us in times.items() if at_us >= since_us)
    places = {queue_id: f"message {queue_id} of {accepted[queue_id][0]}" for queue_id in recent}
    for line in read_accepted(settings.mailboxes.root / ".submissions/log", since_us=since_us):
        times[line.queue_id] = line.at_us
        places[line.queue_id] = f"submission {line.submission_id} of {line.owner}"
        named[line.queue_id] = line.recipients
    is_of_this_spool, left = log is not None, iter(sorted(places))
    while batch := [*islice(left, _LINES_AT_ONCE)]:
        recipients = [*stored.recipients(batch)]
        known = {queue_id for queue_id, _, _ in recipients}
        for queue_id in batch:
            is_of_this_spool |= queue_id in known
            if queue_id in known or not is_of_this_spool:
                continue
            when = f"step 4 at {rfc3339(times[queue_id])}, as {queue_id}, and no message"
            _, number = accepted.get(queue_id, ("", 0))
            said = what_became(results[queue_id], named=named.get(queue_id, ()), number=number)
            action = f"log: {said}" if log else "--log says whether it left"
            expected = "its message in the spool"
            yield SpoolFinding("lost-message", places[queue_id], when, expected, action=action)
        for queue_id, to, state in recipients:
            if state in LIVE and (status := results[queue_id].get(to, "")) in LEFT:
                where, what = f"message {queue_id} to {to}", f"{status} in the log, and {state}"
                action = f"relay queue cancel {queue_id}"
                yield SpoolFinding("sent-before", where, what, "its end", action=action)


@contextmanager
def _locked(settings: Settings) -> Iterator[bool]:
    """Hold the owner locks for the block if no relay holds them; yield whether they are held. If
    there is no mail root, nothing is created.
    """
    root = settings.mailboxes.root
    with ExitStack() as held:
        is_held = False
        if root.is_dir():
            lock = OwnerLock(settings.run_dir, submissions=root / ".submissions")
            with suppress(AlreadyRunningError, OSError):  # without it, no relay can start either
                held.enter_context(lock)
                is_held = True
        yield is_held


_MISSING_SHOWN = 1000


class BackupRefusedError(Exception):
    """There is nothing to copy, or the target cannot be used."""


def back_up(settings: Settings, folder: Path, *, clock: Clock) -> dict[str, Any]:
    """Copy into `folder`, which is new or empty; return the manifest.

    Raises BackupRefusedError, SpoolError, OSError.
    """
    stored = spool.storage(settings)
    stored.require_tools()
    _check_readable(stored)
    if not stored.exists():
        raise BackupRefusedError(f"there is no {stored}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if any(folder.iterdir()):
        raise BackupRefusedError(f"{folder} is not empty")
    made = rfc3339(clock.time_us())
    copied = stored.back_up(folder)
    dead_letters = settings.state_dir / DEAD_LETTER
    with closing(BackupCopy(folder)) as copy:
        copy.all_written(folder)
        letters = sum(
            copy.file(letter, letter.relative_to(settings.state_dir))
            for letter in _letters(dead_letters)
        )
        sizes = [file.stat().st_size for file in copied.contents.iterdir()]
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


def _check_readable(stored: SpoolStorage) -> None:
    """Raise PermissionError if this user may not read the files of the spool."""
    for file in stored.files():
        check_readable(file)


def _letters(maildir: Path) -> Iterator[Path]:
    """Yield the messages of a Maildir, without the index, which is a cache. A message that is moved
    at the same time may be yielded twice.
    """
    for place, folders, names in os.walk(maildir):
        folders.sort()
        for name in sorted(names):
            if Path(place).name in ("new", "cur") or name == "maildirfolder":
                yield Path(place) / name


_log = get_logger("commands")


class NotAdoptedError(Exception):
    """The mail root is not what the operator named, or was not confirmed."""


class FoundRoot(Struct, frozen=True):
    """A mail root and its id, and the id that the spool knows; "" where there is none."""

    path: str
    id: str
    known_id: str


def adopt(
    settings: Settings, clock: Clock, root_id: str, *, confirm: Callable[[FoundRoot], bool]
) -> FoundRoot:
    """Record the id of the mail root in the spool; with NEW_ID, give the mail root an id first.

    `confirm` is called before. Return the mail root, its id, and the id that the spool had. Raises
    NotAdoptedError, AlreadyRunningError, SpoolError, OSError.
    """
    with as_owner(settings):
        if not spool.storage(settings).exists():
            raise NotAdoptedError(
                "there is no spool yet: a start takes the mail root that is there"
            )
        with OwnerLock(settings.run_dir):
            return uvloop.run(_adopt(settings, clock, root_id, confirm=confirm))


async def _adopt(
    settings: Settings, clock: Clock, root_id: str, *, confirm: Callable[[FoundRoot], bool]
) -> FoundRoot:
    path = settings.mailboxes.root
    if not path.is_dir():
        raise NotAdoptedError(f"{path} is no directory; is its file system mounted?")
    found_id = read_id(path)
    if found_id != root_id and (found_id or root_id != NEW_ID):
        has = f"the id {found_id}" if found_id else f"no id: expected {NEW_ID}"
        raise NotAdoptedError(f"{path} has {has}")
    store = settings.mailboxes.store
    async with opened_spool(settings, clock) as engine:
        known_id, _ = await engine.mail_root(store)
        if not confirm(FoundRoot(str(path), found_id, known_id)):
            raise NotAdoptedError("nothing was changed")
        adopted = FoundRoot(str(path), found_id or write_id(path), known_id)
        await engine.record_mail_root(store, adopted.id, instead_of=known_id)
    _log.warning("mail root adopted", path=adopted.path, id=adopted.id, before=known_id)
    return adopted
