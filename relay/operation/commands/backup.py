"""`relay backup`: copy everything of a service into a directory, whether it runs or not.

The parts are copied in the order in which a message moves: records of submission keys, pending
submissions, spool, mailboxes. A message that moves during the backup is then in two parts rather
than in none. `relay restore` recognises it by its submission id, and local delivery by its id in
the mailbox. A message may be copied as a submission, be missing in the copy of the spool, and be
delivered before its mailbox is copied. It is then left out of the mailbox, because the restored
submission will be delivered.

A file can be missed if it is renamed while its directory is listed. A tree is therefore listed
again until a listing finds nothing new. Files are copied, not linked: a damaged disk or another
program that changes the original does not change the backup, and the copy may have another owner
and mode. No symbolic link in state_dir or the mail root is followed; a mailbox that is a symbolic
link is noted as damaged. SHA256SUMS has the sums of the octets that were read. manifest.json is
written last, after everything was synced: a backup without it was cut short. Memory does not grow
with the number of messages.
"""

import dataclasses
import grp
import hashlib
import os
import pwd
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import apsw
import msgspec

from relay.base.clock import Clock, rfc3339
from relay.base.files import fsync_path, replace_file, sync_disk, write_all
from relay.base.phrases import named
from relay.base.settings.document import Document, parse_document, read_document
from relay.base.settings.reader import read_again
from relay.base.settings.tree import Settings
from relay.base.settings.values import referenced_files
from relay.operation.app.probes import PREFIX
from relay.operation.app.state_dir import as_owner
from relay.operation.app.tenant_sets import KEPT_SETS
from relay.store import spool
from relay.store.mailbox.maildir import exists, list_names, open_message
from relay.store.mailbox.message_file import delivered_id, is_delivered_id, parse_name
from relay.store.mailbox.state_file import FILE_NAME as STATES
from relay.store.mailbox.state_file import DamagedStatesError, copy_states, state_faults
from relay.submission.outbox.idempotency import KEYS
from relay.submission.outbox.on_disk import ClockAnchorFile
from relay.transport.ingress.dropped_mail import DroppedFile, HostileFileError
from relay.transport.ingress.maildrop import ASIDE

MANIFEST, CHECKSUMS = "manifest.json", "SHA256SUMS"
CONFIG, SUBMISSIONS, SPOOL, STATE, MAIL = "config", "submissions", "spool", "state", "mail"
FORMAT = 1
_BLOCK_BYTES = 1 << 20
_LOOKS_MAX = 10
# the largest difference of the clocks of database and node; the database gives the times in names
_CLOCKS_DIFFER_US = 86_400_000_000
# the directories in the order in which a submission moves through them
_IN_ORDER = (KEYS, "restored", "preparing", "deferred", "ready")
_SETS = Path(STATE) / KEPT_SETS
_INDEX = "relay-index"

OnFile = Callable[[int], object]


class NotEmptyError(Exception):
    """A directory that has to be empty is not; the text says what is there."""


class Place(msgspec.Struct, frozen=True):
    """A file or directory as it was. User and group are names, or numbers if there is no name."""

    path: str
    mode: int
    user: str
    group: str


class DamagedFile(msgspec.Struct, frozen=True):
    """A file that was damaged."""

    path: str
    found: str  # what is wrong with it, and whether it was copied


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup contains, and what its restoration needs to know."""

    format: int  # FORMAT
    made: str  # when it began, RFC 3339
    queue_us: int  # the same moment in queue time
    hostname: str  # of the service
    config: str  # the path of relay.toml
    config_files: list[Place]  # relay.toml, and the files that it names
    directories: list[Place]  # of config_files, and all above these, state_dir and root
    state_dir: Place  # as it was
    root: Place  # mailboxes.root
    files: int  # the number of files in the backup
    bytes: int  # the size of these files
    checksums: str  # the SHA-256 of SHA256SUMS
    spool: dict[str, Any]  # counts; empty without a spool
    damaged: list[DamagedFile] = []


def back_up(
    settings: Settings,
    config: Path,
    folder: Path,
    *,
    clock: Clock,
    environ: Mapping[str, str],
    on_file: OnFile = lambda _: None,
    with_database: bool = True,
    text: str = "",
) -> Manifest:
    """Copy into `folder`, which is new or empty; after an error it is as before. If the file
    `config` has a fault, `text` is the text that the running service has read.

    Without `with_database` a spool on a server is left out: another node has saved it. Raises
    NotEmptyError, SpoolError, OSError.
    """
    root = settings.mailboxes.root
    for place in (settings.state_dir, root):
        if folder.resolve().is_relative_to(place.resolve()):
            raise NotEmptyError(f"{folder} is inside {place}, expected a directory elsewhere")
    is_new = not folder.exists()
    folder.mkdir(mode=0o700, exist_ok=True)
    if names := sorted(path.name for path in folder.iterdir()):
        raise NotEmptyError(f"{folder} is not empty: found {named(names)}")
    folder.chmod(0o700)
    try:
        with closing(BackupCopy(folder, on_file)) as copy:
            return _back_up(
                settings,
                config,
                copy,
                clock=clock,
                environ=environ,
                with_database=with_database,
                text=text,
            )
    except BaseException:
        empty(folder)
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def _back_up(
    settings: Settings,
    config: Path,
    copy: "BackupCopy",
    *,
    clock: Clock,
    environ: Mapping[str, str],
    with_database: bool,
    text: str,
) -> Manifest:
    stored = spool.storage(settings, as_owner=partial(as_owner, settings))
    is_there = stored.exists()
    made_us = clock.time_us()
    root, submissions = settings.mailboxes.root, settings.mailboxes.root / ".submissions"
    clock.resume(ClockAnchorFile(submissions).read())
    queue_us = clock.queue_us()
    config = Path(os.path.normpath(config.absolute()))
    document = parse_document(config, text) if text else read_document(config)
    named_paths = sorted(_named_paths(settings, document, environ))
    config_files = [
        _place(path)
        for path in named_paths
        if copy.file(path.resolve(), _kept(path), instead=text.encode() * (path == config))
    ]
    config_files += (dropped := list(_dropped(settings, copy)))
    named_paths += [Path(place.path) for place in dropped]
    if settings.spool.is_file and is_there and not exists(submissions):  # each start makes it
        copy.leave_out(root, "no mail root")
    _submissions(submissions, copy)
    counts: dict[str, Any] = {}
    copied = copy.path(Path(SPOOL))
    copied.mkdir(mode=0o700)
    if is_there and with_database:
        result = stored.back_up(copied)
        copy.all_written(copied)
        counts = {**result.counts, "missing": len(result.missing)}
    not_state = (settings.run_dir, root)
    copy.tree(
        settings.state_dir,
        Path(STATE),
        skip=lambda path: (
            path in not_state or stored.has_part(path) or path.name.startswith(PREFIX)
        ),
    )
    copy.withhold_since(made_us - _CLOCKS_DIFFER_US)
    copy.path(Path(MAIL)).mkdir(mode=0o700)
    for mailbox in _mailboxes(root):
        if copy.leaves_out(mailbox):
            continue
        target = Path(MAIL) / mailbox.relative_to(root)
        copy.tree(mailbox, target, skip=lambda path: path.name.startswith((_INDEX, STATES)))
        copy.states(mailbox, target)  # after the messages: states are about messages
    since = copied if counts else None
    late = list(stored.accepted_since(since, _submission_ids(copy))) if is_there else []
    _make_ready(copy, {submission_id for submission_id, _ in late})
    # Without a copy of the database, it is not known which messages the database has.
    copy.end_withholding({delivered_id(name) for _, name in late} if counts else ())
    return copy.finish(
        made=rfc3339(made_us),
        queue_us=queue_us,
        hostname=settings.hostname,
        config=str(config),
        config_files=config_files,
        directories=_directories(named_paths, settings.state_dir, root),
        state_dir=_place(settings.state_dir),
        root=_place(root),
        spool=counts,
    )


def _kept(path: Path) -> Path:
    """Return where a backup has a file of the configuration."""
    return Path(CONFIG) / path.relative_to("/")


def _dropped(settings: Settings, copy: "BackupCopy") -> Iterator[Place]:
    """Copy the mail of the drop directory. It is restored into ASIDE there, which holds it."""
    drop = settings.sendmail.drop if settings.sendmail else None
    for path in sorted(drop.iterdir()) if drop and drop.is_dir() else ():
        with suppress(HostileFileError, OSError):
            DroppedFile(path).close()
            original, place = _place(path), path.parent / ASIDE / path.name
            if copy.file(path, _kept(place)):
                yield msgspec.structs.replace(original, path=str(place))


def _submissions(source: Path, copy: "BackupCopy") -> None:
    target = Path(SUBMISSIONS)
    copy.path(target).mkdir(mode=0o700)
    if copy.leaves_out(source):
        return
    for name in _IN_ORDER:
        if not copy.leaves_out(source / name):
            copy.tree(source / name, target / name)
    held = target / "deferred"  # again: a hold moves a submission back to it
    if not (source / held.name).is_symlink():
        copy.tree(source / held.name, held, skip=lambda path: copy.path(held / path.name).exists())
    copied = {*_IN_ORDER, "lock", "session", "probe"}
    copy.tree(source, target, skip=lambda path: path.parent == source and path.name in copied)


def _submission_ids(copy: "BackupCopy", place: Path = Path(SUBMISSIONS)) -> Iterator[str]:
    for path in copy.path(place).rglob("*"):
        if path.parent.name in _IN_ORDER and path.is_file():
            yield path.name.partition("@")[0]


def _make_ready(copy: "BackupCopy", accepted: Collection[str]) -> None:
    """Copy scheduled sends to `ready` if they were accepted after they were copied. Their drafts
    may have been filed or removed since, and the timer sends nothing without a draft.
    """
    scheduled, ready = (Path(SUBMISSIONS) / name for name in ("deferred", "ready"))
    # If it became due between the two copies, it is in both directories, under different times.
    left = set(accepted).difference(_submission_ids(copy, ready))
    for path in copy.path(scheduled).glob("*"):
        if path.name.partition("@")[0] in left:
            copy.file(path, ready / path.name)


def _mailboxes(root: Path) -> Iterator[Path]:
    """Yield the directories of mailboxes, ROOT/DOMAIN/NAME, and other files of ROOT."""
    for domain in sorted(root.iterdir()) if root.is_dir() else ():
        if domain.name == ".submissions" or domain.name.startswith(PREFIX):
            continue
        if domain.is_symlink() or not domain.is_dir():
            yield domain
            continue
        yield from sorted(domain.iterdir())


class BackupCopy:
    """A backup that is being made: its files and SHA256SUMS."""

    def __init__(self, folder: Path, on_file: OnFile = lambda _: None) -> None:
        self.folder = folder
        self._on_file = on_file
        self._files = self._bytes = 0
        self._withheld_from_s = 1 << 62
        self._sums = self._new(folder / CHECKSUMS)
        self._withheld = TemporaryFile(dir=folder)  # noqa: SIM115 - lines of SHA256SUMS
        self._seen = SeenFiles()
        self._damaged: list[DamagedFile] = []

    def close(self) -> None:
        """Close the files of this object."""
        for part in (self._seen, self._withheld, self._sums):
            part.close()

    def path(self, target: Path) -> Path:
        """Return the path in the backup of a relative path."""
        return self.folder / target

    def leaves_out(self, path: Path) -> bool:
        """Note a path that is a symbolic link; return whether it is one."""
        if is_link := path.is_symlink():
            self.leave_out(path, "a symbolic link")
        return is_link

    def leave_out(self, path: Path, kind: str) -> None:
        """Note that a path is not in the backup; `kind` says what is there."""
        self._damaged.append(DamagedFile(str(path), f"{kind}; not in the backup"))

    def file(self, source: Path, target: Path, *, instead: bytes = b"") -> bool:
        """Copy a file; if `instead` is given, it is the content of the copy. Return whether the
        file exists and is not a symbolic link.
        """
        try:
            opened = open_message(source)
        except (FileNotFoundError, NotADirectoryError):
            return False
        with opened as file:
            facts = os.fstat(file.fileno())
            path = self.path(target)
            _make_parents(path.parent, self.folder)
            digest = hashlib.sha256()
            with self._new(path) as copy:
                octets = BytesIO(instead) if instead else file
                while block := octets.read(_BLOCK_BYTES):
                    digest.update(block)
                    _write(copy, block, path)
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        self._add(target, digest.hexdigest())
        return True

    def written(self, target: Path) -> None:
        """Add a file that other code has written into the backup."""
        self.path(target).chmod(0o600)
        with self.path(target).open("rb") as file:
            self._add(target, hashlib.file_digest(file, "sha256").hexdigest())

    def all_written(self, folder: Path) -> None:
        """Add the files that other code has written into a directory of the backup."""
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path != self.path(Path(CHECKSUMS)):
                self.written(path.relative_to(self.folder))

    def states(self, mailbox: Path, target: Path) -> None:
        """Copy relay-properties. A damaged file is copied as it is, with its log."""
        source, place = mailbox / STATES, target / STATES
        if STATES not in list_names(mailbox):
            return
        faults, is_copied = ["no file"], False
        if source.is_file() and not source.is_symlink():
            faults = list(state_faults(source))
            try:
                if source.stat().st_size:  # else the database would remove its log
                    copy_states(source, self.path(place))
            except DamagedStatesError as error:
                faults = faults or [str(error)]
                self.path(place).unlink(missing_ok=True)
            if self.path(place).exists():
                self.written(place)
                is_copied = True
            else:
                is_copied = self.file(source, place)
                self.file(source.with_name(f"{STATES}-wal"), target / f"{STATES}-wal")
        if faults:
            end = "copied as it is" if is_copied else "not in the backup"
            self._damaged.append(DamagedFile(str(source), f"{faults[0]}; {end}"))

    def tree(
        self, source: Path, target: Path, *, skip: Callable[[Path], bool] = lambda _: False
    ) -> None:
        """Copy a directory, or a file. A message that is moved during the copy is copied once.

        The directory is listed until nothing new is found, at most ten times. A message that a
        program moves all the time may be missed by each listing.
        """
        if source.exists() and not source.is_dir():
            self.file(source, target)
            return
        self._seen.clear()
        for _ in range(_LOOKS_MAX):
            if not self._look(source, target, skip):
                return

    def withhold_since(self, wall_us: int) -> None:
        """From now on, do not list messages in SHA256SUMS that were delivered after this time,
        until end_withholding().
        """
        self._withheld_from_s = wall_us // 1_000_000

    def end_withholding(self, unwanted: Collection[str]) -> None:
        """Remove the withheld messages with these ids, and list the others."""
        self._withheld.seek(0)
        for line in self._withheld:
            target = path_in(line)
            name = parse_name(target.name)
            if name is not None and name.message_id in unwanted:
                self.path(target).unlink()
            else:
                self._count(target, line)

    def finish(self, **facts: Any) -> Manifest:
        """Sync everything, then write the manifest."""
        with self.path(Path(CHECKSUMS)).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = Manifest(
            format=FORMAT,
            files=self._files,
            bytes=self._bytes,
            checksums=digest,
            damaged=self._damaged,
            **facts,
        )
        self.write_manifest(manifest)
        return manifest

    def write_manifest(self, manifest: object) -> None:
        """Sync everything, then write manifest.json."""
        sync_disk(self.folder)
        octets = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
        replace_file(self.path(Path(MANIFEST)), octets, mode=0o600)
        fsync_path(self.folder.parent)

    def _look(self, source: Path, target: Path, skip: Callable[[Path], bool]) -> bool:
        """List the directory and copy files that are new since the last listing. Return whether
        there were any.
        """
        has_new = False
        _make_parents(self.path(target), self.folder)
        folders = [source]
        while folders:
            folder = folders.pop()
            place = target / folder.relative_to(source)
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    path = folder / entry.name
                    if skip(path) or entry.is_symlink():
                        continue
                    if entry.is_dir():
                        _make_parents(self.path(place / entry.name), self.folder)
                        if entry.name != "tmp" or place == _SETS:  # a tenant may have this name
                            folders.append(path)
                    elif self._seen.is_new(path):
                        has_new = True
                        if self.file(path, place / entry.name):
                            self._seen.add(path)
        return has_new

    def _add(self, target: Path, digest: str) -> None:
        line = sum_line(digest, target)
        name = parse_name(target.name) if target.parent.name in ("new", "cur") else None
        is_new = name is not None and name.seconds >= self._withheld_from_s
        if name is not None and is_new and is_delivered_id(name.message_id):
            self._withheld.write(line)
        else:
            self._count(target, line)

    def _count(self, target: Path, line: bytes) -> None:
        _write(self._sums, line, self.path(Path(CHECKSUMS)))
        self._files += 1
        self._bytes += self.path(target).stat().st_size
        self._on_file(self._files)

    @staticmethod
    def _new(path: Path) -> BinaryIO:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "wb", buffering=0)


def sum_line(digest: str, target: Path) -> bytes:
    """Return a line of SHA256SUMS, as sha256sum writes it."""
    name = os.fsencode(target)
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != name else b"") + digest.encode() + b"  " + escaped + b"\n"


def path_in(line: bytes) -> Path:
    """Return the path in a line of SHA256SUMS."""
    name = line.rstrip(b"\n").partition(b"  ")[2]
    if line.startswith(b"\\"):
        parts = name.split(b"\\\\")
        name = b"\\".join(part.replace(b"\\n", b"\n").replace(b"\\r", b"\r") for part in parts)
    return Path(os.fsdecode(name))


def _write(file: BinaryIO, octets: bytes, path: Path) -> None:
    try:
        write_all(file.fileno(), octets)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None


def _make_parents(folder: Path, top: Path) -> None:
    if folder != top and not folder.is_dir():
        _make_parents(folder.parent, top)
        folder.mkdir(mode=0o700)


def _named_paths(settings: Settings, config: Document, environ: Mapping[str, str]) -> set[Path]:
    """Return relay.toml, the files that it and the accounts name, and all files in directories that
    they name.
    """
    accounts = settings.mailboxes.accounts
    named_paths = {config.file, *_paths_in(settings)}
    named_paths |= {domain.file for domain in settings.domain if domain.file is not None}
    named_paths |= {path for _, path in read_again(config, environ).secret_files}
    for file in (config.file, accounts):
        with suppress(FileNotFoundError):
            text = file.read_text("utf-8", "replace")
            named_paths |= set(referenced_files(text, base=file.parent))
    named_paths -= {settings.state_dir, settings.mailboxes.root, settings.policy.shipped}
    if (sendmail := settings.sendmail) is not None:  # mail that passes is not copied
        named_paths -= {sendmail.socket, sendmail.drop}
    named_paths |= {inner for path in named_paths if path.is_dir() for inner in path.rglob("*")}
    return {Path(os.path.normpath(path)) for path in named_paths if path.exists()}


def _directories(paths: Collection[Path], *others: Path) -> list[Place]:
    """Return the directories among the paths, and the directories above all; upper ones first."""
    folders = {path for path in paths if path.is_dir()}
    folders |= {above for path in (*paths, *others) for above in path.parents}
    return [_place(path) for path in sorted(folders)]


def _paths_in(value: object) -> Iterator[Path]:
    """Yield every path in a tree of settings."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _paths_in(part)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _paths_in(getattr(value, field.name))


def _place(path: Path) -> Place:
    try:
        facts = path.stat()
    except FileNotFoundError:  # it would get the owner of the directory above
        above = _place(path.parent)
        return Place(str(path), 0o700, above.user, above.group)
    user, group = _name(pwd.getpwuid, facts.st_uid), _name(grp.getgrgid, facts.st_gid)
    return Place(str(path), stat.S_IMODE(facts.st_mode), user, group)


def _name(entry_of: Callable[[int], Sequence[Any]], number: int) -> str:
    """Return the name of a user or group, which begins its entry, or else the number."""
    try:
        return str(entry_of(number)[0])
    except KeyError:
        return str(number)


def empty(folder: Path) -> None:
    """Remove the content of a directory, as far as possible."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


class SeenFiles:
    """The files of a tree that were copied, while other programs may move them. Not thread-safe.

    They are in a table in a temporary file, so memory does not grow. When a message is moved, the
    part of its name before the flags does not change; when a submission is moved, its id does not.
    """

    def __init__(self) -> None:
        self._table = apsw.Connection("")
        self._table.execute("CREATE TABLE seen (name BLOB, path BLOB, PRIMARY KEY (name, path))")

    def close(self) -> None:
        """Forget everything."""
        self._table.close()

    def clear(self) -> None:
        """Begin another tree."""
        self._table.execute("DELETE FROM seen")

    def is_new(self, path: Path) -> bool:
        """Return whether a file was not yet copied, at its path or at the path it had before."""
        name, own = _constant_name(path), os.fsencode(path)
        rows = self._table.execute("SELECT path FROM seen WHERE name = ?", (name,)).fetchall()
        if any(seen == own for (seen,) in rows):
            return False
        for (seen,) in rows:
            if isinstance(seen, bytes) and not Path(os.fsdecode(seen)).exists():  # it moved here
                self._table.execute("DELETE FROM seen WHERE name = ? AND path = ?", (name, seen))
                self.add(path)
                return False
        return True

    def add(self, path: Path) -> None:
        """Add a file."""
        row = (_constant_name(path), os.fsencode(path))
        self._table.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row)


def _constant_name(path: Path) -> bytes:
    """Return the part of a path that does not change when a file is moved or gets other flags."""
    if path.parent.name in ("new", "cur"):
        return os.fsencode(path.name.partition(":")[0].partition(",")[0])
    if path.parent.name in ("deferred", "ready", "preparing"):
        return os.fsencode(path.name.partition("@")[0])
    return os.fsencode(path)
