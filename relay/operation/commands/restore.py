"""`relay restore`: restore a service from a backup of `relay backup`.

The whole backup is verified before anything is written. It has regular files and directories only,
and no file is restored with a setuid or setgid bit. state_dir and the mail root must be empty.
During a restoration `state_dir/restoring` exists, and no relay starts; after an error everything is
removed again. Waiting mail is held: entries of the queue in the spool, submissions and scheduled
sends in `.submissions/restored`. Root makes the user of the service the owner of all files.
"""

import grp
import hashlib
import os
import pwd
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from msgspec import Struct

from relay.base.clock import Clock
from relay.base.files import fsync_path, sync_disk
from relay.base.phrases import named
from relay.base.settings.reader import load
from relay.base.settings.tree import Settings
from relay.operation.app.state_dir import RESTORING, OwnerLock, as_owner
from relay.operation.commands.backup import (
    CHECKSUMS,
    CONFIG,
    FORMAT,
    MAIL,
    MANIFEST,
    SPOOL,
    STATE,
    SUBMISSIONS,
    DamagedFile,
    Manifest,
    NotEmptyError,
    OnFile,
    Place,
    empty,
    path_in,
    sum_line,
)
from relay.operation.commands.offline import opened_spool, restored_submissions
from relay.store import spool
from relay.store.journeys.submission_log import SubmissionLog
from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.maildir import DirectorySync
from relay.store.mailbox.state_file import FILE_NAME as STATES
from relay.store.mailbox.state_file import StateFile
from relay.store.spool.queue_commands import CommandResult, Operation, QueueCommand
from relay.store.spool.types import Selector
from relay.submission.outbox.idempotency import KeyedSubmissions
from relay.transport.ingress.maildrop import ASIDE

_LOST_AND_FOUND = "lost+found"
# what the Debian package installs first; its accounts.toml is empty
_OF_PACKAGE = Path("/usr/share/graph-relay/relay.toml")
_ASIDE = ".before-restore"
_LINE_BYTES_MAX = 64 * 1024


class DamagedBackupError(Exception):
    """A backup is incomplete, or was changed; the text says how."""


class UnknownOwnerError(Exception):
    """The user who owned the service does not exist on this machine."""


class HeldMail(Struct, frozen=True):
    """The mail that a restoration holds."""

    entries: int  # of the queue
    submissions: int  # with scheduled sends
    differing: list[DamagedFile]  # other files of the same submissions, which are in corrupt/


class Restored(Struct, frozen=True):
    """What was restored: where, and what is held."""

    config: Path
    settings: Settings
    manifest: Manifest
    kept: list[Path]  # existing files of the configuration that differ from the backup
    replaced: list[Path]  # those of a new installation, each with the name that it has now
    left: list[Path]  # mail of the drop directory that is only in the backup
    held: HeldMail


def restore(
    folder: Path,
    config: Path | None,
    *,
    clock: Clock,
    environ: Mapping[str, str],
    who: str,
    allow: Callable[[list[Path]], object],
    on_file: OnFile = lambda _: None,
) -> Restored:
    """Restore the backup in `folder` to the places that its configuration names, or `config`.

    Before anything is written, `allow` is called with the paths that would be created outside the
    directories of the service; it raises an error to refuse.
    Raises DamagedBackupError, NotEmptyError, UnknownOwnerError; SettingsError, SpoolError, OSError.
    """
    manifest = _verified(folder, on_file)
    written: list[Path] = []
    kept: list[Path] = []
    replaced: list[Path] = []
    file = config or Path(manifest.config)
    try:
        if config is None:
            _check_places(_normal(manifest.state_dir.path), _normal(manifest.root.path))
            kept = _restore_config(
                folder, manifest, written=written, replaced=replaced, allow=allow
            )
        settings = load(file, environ)
        owner = _owner(settings, manifest)
        held = _restore(folder, settings, manifest, clock=clock, owner=owner, who=who)
    except BaseException:
        for path in reversed(written):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        for path in replaced:
            path.rename(path.with_name(path.name.removesuffix(_ASIDE)))
        raise
    left = [] if config is None else list(_dropped(folder, manifest))
    return Restored(file, settings, manifest, kept, replaced, left, held)


# -- the backup


def _verified(folder: Path, on_file: OnFile) -> Manifest:
    """Return the manifest, after each file of the backup was compared with its SHA-256."""
    try:
        octets = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        what = "the backup was cut short" if (folder / CHECKSUMS).exists() else "it is no backup"
        raise DamagedBackupError(f"{folder} has no {MANIFEST}: {what}") from None
    try:
        manifest = msgspec.json.decode(octets, type=Manifest)
    except ValueError as error:
        raise DamagedBackupError(f"{folder / MANIFEST}: {error}") from None
    if manifest.format != FORMAT:
        text = f"found format {manifest.format}, expected {FORMAT}: another Relay made it"
        raise DamagedBackupError(f"{folder / MANIFEST}: {text}")
    for path in folder.rglob("*"):
        if not (stat.S_ISREG(mode := path.lstat().st_mode) or stat.S_ISDIR(mode)):
            text = f"found {path} ({stat.filemode(mode)}), expected files and directories"
            raise DamagedBackupError(text)
    sums = folder / CHECKSUMS
    with sums.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.checksums:
            raise DamagedBackupError(f"{sums} was changed or cut short")
    number = 0
    for number, (path, line) in enumerate(_sums(folder), start=1):
        _verify(folder, path, line)
        on_file(number)
    if number != manifest.files:
        raise DamagedBackupError(f"{sums}: found {number} files, expected {manifest.files}")
    return manifest


def _sums(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield the relative path of each file, and its line in SHA256SUMS."""
    with (folder / CHECKSUMS).open("rb") as file:
        while line := file.readline(_LINE_BYTES_MAX):
            if ".." in (path := path_in(line)).parts or path.is_absolute():
                raise DamagedBackupError(f"{folder / CHECKSUMS}: found {path}, which is elsewhere")
            yield path, line


def _verify(folder: Path, path: Path, line: bytes) -> None:
    try:
        with (folder / path).open("rb") as file:
            actual = sum_line(hashlib.file_digest(file, "sha256").hexdigest(), path)
    except FileNotFoundError:
        raise DamagedBackupError(f"{folder / path} is missing") from None
    if actual != line:
        raise DamagedBackupError(f"{folder / path} was changed or cut short: see {CHECKSUMS}")


# -- the places


def _check_places(state_dir: Path, root: Path) -> None:
    """Raise NotEmptyError unless both are empty or do not exist."""
    for place in (state_dir, root):
        if not place.exists() and not place.is_symlink():
            continue
        if not place.is_dir():
            raise NotEmptyError(f"{place} is no directory")
        inner = {root, *root.parents} if place == state_dir else set()
        names = sorted(path.name for path in place.iterdir() if path not in inner)
        if others := [name for name in names if name != _LOST_AND_FOUND]:
            raise NotEmptyError(f"{place} is not empty: found {named(others)}")


def _owner(settings: Settings, manifest: Manifest) -> tuple[int, int] | None:
    """Return the user and group of the service if this is root, else None."""
    if os.geteuid():
        return None
    for place in (settings.state_dir, settings.mailboxes.root):
        if place.exists() and place.stat().st_uid:
            return place.stat().st_uid, place.stat().st_gid
    return _owner_of(manifest.state_dir)


def _owner_of(place: Place) -> tuple[int, int]:
    """Return the user and group that a file or directory had. Raises UnknownOwnerError."""
    kind, name = "user", place.user
    try:
        user = int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
        kind, name = "group", place.group
        return user, int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise UnknownOwnerError(f"{place.path} belonged to the {kind} {name}") from None


# -- the files


def _restore_config(
    folder: Path,
    manifest: Manifest,
    *,
    written: list[Path],
    replaced: list[Path],
    allow: Callable[[list[Path]], object],
) -> list[Path]:
    """Create the directories and files of the configuration as they were.

    An existing file in the directory of relay.toml must be the same as in the backup, or that of a
    new installation, which is renamed. Existing files in other directories, such as certificates,
    are not changed. Created paths are added to `written`, renamed files to `replaced`. Return the
    existing files that differ from the backup.
    """
    home = _normal(manifest.config).parent
    differing: list[Path] = []
    kept: list[Path] = []
    missing = []
    installed = {home / "accounts.toml": b""}
    with suppress(OSError):
        installed[_normal(manifest.config)] = _OF_PACKAGE.read_bytes()
    directories = [(_normal(place.path), place) for place in manifest.directories]
    new = [(path, place) for path, place in directories if not path.exists()]
    for place in manifest.config_files:
        path = _normal(place.path)
        source = folder / CONFIG / path.relative_to("/")
        present = path.read_bytes() if path.is_file() else None
        if not os.path.lexists(path):
            missing.append((path, place, source))
        elif present == source.read_bytes():
            continue
        elif present is not None and present == installed.get(path):
            missing.append((path, place, source))
        else:
            (differing if path.is_relative_to(home) else kept).append(path)
    if differing:
        names = named([str(path) for path in differing])
        raise NotEmptyError(
            f"the configuration here differs from that in the backup: found {names};"
            f" move it away, or restore with --config {manifest.config}"
        )
    service = [_normal(manifest.state_dir.path), _normal(manifest.root.path)]
    if len(home.parts) > 2:  # /etc is not the directory of one service
        service.append(home)
    outside = [
        path
        for path in (*(path for path, _ in new), *(path for path, _, _ in missing))
        if not any(path.is_relative_to(own) or path in own.parents for own in service)
    ]
    if outside:
        allow(outside)
    for path in (path for path, _, _ in missing if os.path.lexists(path)):
        aside = path.with_name(path.name + _ASIDE)
        path.rename(aside)
        replaced.append(aside)
    for path, place in new:
        path.mkdir(mode=0o700)
        written.append(path)
        _restore_owner(path, place)
    for path, place, source in missing:
        path.touch(0o600, exist_ok=False)
        written.append(path)
        shutil.copyfile(source, path)
        _restore_owner(path, place)
    return kept


def _dropped(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Yield the mail of the drop directory in a backup. It is among the files of the configuration,
    which are not restored if --config is given.
    """
    for file in manifest.config_files:
        if Path(file.path).parent.name == ASIDE:
            yield folder / CONFIG / _normal(file.path).relative_to("/")


def _normal(path: str) -> Path:
    """Return an absolute path without "..", because paths of a manifest are not trusted."""
    return Path(os.path.normpath("/" + path.lstrip("/")))


def _restore_owner(path: Path, place: Place) -> None:
    """Set the owner and the mode that a file or directory had."""
    if not os.geteuid():
        os.chown(path, *_owner_of(place))
    _set_mode(path, place.mode)


def _set_mode(path: Path, mode: int) -> None:
    """Set the mode that a file or directory had. No file runs as its owner or group; a directory
    for mail of all users is setgid and sticky.
    """
    path.chmod(mode & (0o3777 if path.is_dir() else 0o777))


def _restore(
    folder: Path,
    settings: Settings,
    manifest: Manifest,
    *,
    clock: Clock,
    owner: tuple[int, int] | None,
    who: str,
) -> HeldMail:
    """Restore state_dir and the mail root. Return the mail that is held."""
    state_dir, root = settings.state_dir, settings.mailboxes.root
    _check_places(state_dir, root)
    made = [place for place in (state_dir, root) if not place.exists()]
    try:
        for place, mode in ((state_dir, manifest.state_dir.mode), (root, manifest.root.mode)):
            place.mkdir(parents=True, exist_ok=True)
            if place in made:
                _set_mode(place, mode)
        (state_dir / RESTORING).touch(0o600)
        fsync_path(state_dir)
        with ExitStack() as restoring:
            if owner is not None:
                os.chown(state_dir, *owner)
            if manifest.spool:
                stored = spool.storage(settings, as_owner=partial(as_owner, settings))
                try:
                    restoring.enter_context(stored.restored(folder / SPOOL))
                except FileNotFoundError:  # all files of the backup are there
                    text = f"found the copy of another kind of spool, expected one for {stored}"
                    raise DamagedBackupError(f"{folder / SPOOL}: {text}") from None
            for name, target in (
                (STATE, state_dir),
                (MAIL, root),
                (SUBMISSIONS, root / ".submissions"),
            ):
                _copy_tree(folder / name, target)
            for path in root.glob(f"*/*/{STATES}"):
                states = StateFile(path.parent)
                with closing(states), suppress(StoreUnavailableError):  # it is damaged
                    states.skip_numbers()
            if owner is not None:
                _change_owner(state_dir, owner)
                _change_owner(root, owner)
            with as_owner(settings, root):
                held = uvloop.run(_hold(settings, manifest, clock=clock, who=who))
            sync_disk(root)
            sync_disk(state_dir)
        (state_dir / RESTORING).unlink()
        fsync_path(state_dir)
    except BaseException:
        for place in (root, state_dir):
            if place.is_dir():
                _empty(place, besides=root)
            if place in made:
                with suppress(OSError):
                    place.rmdir()
        raise
    return held


def _empty(place: Path, *, besides: Path) -> None:
    """Remove what was restored, but not lost+found, which belongs to the file system."""
    for path in place.iterdir():
        if path.name == _LOST_AND_FOUND or path == besides:
            continue
        if path in besides.parents:
            _empty(path, besides=besides)
        elif path.is_dir():
            empty(path)
            path.rmdir()
        else:
            path.unlink()


def _copy_tree(source: Path, target: Path) -> None:
    """Copy files with their times into directories that may exist."""
    target.mkdir(mode=0o700, exist_ok=True)
    folders = [source]
    while folders:
        folder = folders.pop()
        place = target / folder.relative_to(source)
        with os.scandir(folder) as entries:
            for entry in entries:
                path = place / entry.name
                if entry.is_dir(follow_symlinks=False):
                    path.mkdir(mode=0o700, exist_ok=True)
                    folders.append(folder / entry.name)
                else:
                    shutil.copyfile(entry.path, path)
                    path.chmod(0o600)
                    times = entry.stat()
                    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _change_owner(place: Path, owner: tuple[int, int]) -> None:
    os.chown(place, *owner)
    for folder, folders, names in os.walk(place):
        for name in (*folders, *names):
            os.chown(Path(folder, name), *owner, follow_symlinks=False)


# -- what waits


async def _hold(settings: Settings, manifest: Manifest, *, clock: Clock, who: str) -> HeldMail:
    """Hold the waiting mail."""
    root = settings.mailboxes.root
    with (
        OwnerLock(settings.run_dir, submissions=root / ".submissions"),
        closing(SubmissionLog(root / ".submissions" / "log", role="cli", clock=clock)) as log,
    ):
        waiting = restored_submissions(settings, clock, log)
        ids, accepted, entries = waiting.pending_ids(), set(), 0
        keyed = KeyedSubmissions(root / ".submissions", clock, DirectorySync())
        prepared = waiting.directory.prepared()
        recorded = {ref.submission_id: place for ref in prepared if (place := keyed.place_of(ref))}
        alone = bool(manifest.spool)
        if alone or spool.storage(settings).exists():  # another node may have restored the spool
            async with opened_spool(settings, clock, alone=alone) as engine:
                accepted = set(await engine.renew_submission_keys([*ids, *recorded]))
                command = QueueCommand(
                    Operation.HOLD,
                    Selector(all=True),
                    who=who,
                    why=f"restored from the backup of {manifest.made}",
                    backed_up_us=manifest.queue_us,
                )
                if alone:
                    await engine.note_restored()
                    report = await engine.queue_admin.execute(command)
                    entries = report.counts[CommandResult.DONE]
        text = "another file of a submission; one is held, or accepted"
        differing = [DamagedFile(str(path), text) for path in waiting.hold(accepted, recorded)]
        return HeldMail(entries, waiting.count(), differing)


def document(restored: Restored) -> dict[str, Any]:
    """Return the JSON of `relay restore`."""
    return {
        "made": restored.manifest.made,
        "config": str(restored.config),
        "state_dir": str(restored.settings.state_dir),
        "root": str(restored.settings.mailboxes.root),
        "files": restored.manifest.files,
        "bytes": restored.manifest.bytes,
        "kept": [str(path) for path in restored.kept],
        "replaced": [str(path) for path in restored.replaced],
        "left": [str(path) for path in restored.left],
        "damaged": msgspec.to_builtins([*restored.manifest.damaged, *restored.held.differing]),
        "held": {"entries": restored.held.entries, "submissions": restored.held.submissions},
    }
