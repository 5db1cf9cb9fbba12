"""A spool that lost its log is damaged; one that was killed or lost power is not."""

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from relay.crashpoints import CrashPoint, CrashPoints
from relay.observe.metrics import Metrics
from relay.spool import SqliteSpool
from relay.spool.sqlite import last_commit, write_ahead_log
from relay.spool.sqlite.backup import back_up
from relay.spool.sqlite.database import open_database
from relay.spool.sqlite.last_commit import LastCommit, RecordedCommit, check_commits, read_recorded
from relay.spool.sqlite.migrate import check_files
from relay.spool.sqlite.recover import recover_spool
from relay.spool.sqlite.spool_files import last_commit_of
from relay.spool.sqlite.write_ahead_log import log_of
from relay.spool.types import Selector, SpoolDamagedError

MESSAGES = 40
FILES = ("", "-wal", "-content", ".last-commit")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state/spool.sqlite"


def copied(path: Path, folder: Path) -> Path:
    """Copy the files as they are now: what a process leaves that is killed now."""
    folder.mkdir()
    for ending in FILES:
        source = path.with_name(path.name + ending)
        if source.is_dir():
            shutil.copytree(source, folder / source.name)
        elif source.exists():
            shutil.copyfile(source, folder / source.name)
    return folder / path.name


async def fill(spool: SqliteSpool, make, number: int = MESSAGES) -> list[str]:
    return sorted([(await spool.accept(make())).queue_id for _ in range(number)])


class Copying(CrashPoints):
    """Copies the files at every point: what a process leaves that is killed there."""

    def __init__(self, path: Path, folder: Path, lose: Callable[[Path, Path], None]) -> None:
        """`lose` takes from a copy what a loss of power takes, and knows what it is a copy of."""
        super().__init__()
        folder.mkdir()
        self._path, self._folder, self._lose = path, folder, lose
        self.copies: list[tuple[CrashPoint, Path]] = []

    def reached(self, point: CrashPoint) -> None:
        copy = copied(self._path, self._folder / f"{len(self.copies)}-{point}")
        self._lose(copy, self._path)
        self.copies.append((point, copy))


@pytest.fixture
async def killed(path: Path, tmp_path: Path, open_spool, make) -> Path:
    """A new spool with messages whose process was killed: all is in its log, also the tables."""
    spool = open_spool(path)
    await spool.start()
    await fill(spool, make)
    copy = copied(path, tmp_path / "killed")
    await spool.stop()
    return copy


def octets_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def messages_in(path: Path) -> int:
    """How many there are in the database without its log."""
    address = f"{path.as_uri()}?immutable=1"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    with closing(apsw.Connection(address, flags=flags)) as connection:
        has_tables = connection.pragma("user_version")
        return connection.execute("SELECT count(*) FROM message").get if has_tables else 0


async def listed(open_spool, path: Path) -> list[str]:
    spool = open_spool(path)
    await spool.start()
    found = await spool.queue_admin.list(Selector(all=True), limit=1000)
    await spool.stop()
    return sorted(one["id"] for one in found)


def lose_half(log: Path) -> None:
    os.truncate(log, log.stat().st_size // 2)


def lose_the_end(log: Path) -> None:
    os.truncate(log, log.stat().st_size - 1)


def make_empty(log: Path) -> None:
    log.write_bytes(b"")


def overwrite(log: Path) -> None:
    log.write_bytes(bytes(log.stat().st_size))


@pytest.mark.parametrize("lose", [os.unlink, make_empty, lose_half, lose_the_end, overwrite])
async def test_a_log_that_is_lost_is_damage_until_it_is_salvaged(
    killed: Path, open_spool, lose: Callable[[Path], None], tmp_path: Path
) -> None:
    lose(log_of(killed))
    for _ in range(2):
        before = octets_in(killed.parent)
        with pytest.raises(SpoolDamagedError, match="write-ahead log is missing or was cut"):
            check_files(killed, has_owner=False)
        assert octets_in(killed.parent) == before
        with pytest.raises(SpoolDamagedError, match="write-ahead log is missing or was cut"):
            open_spool(killed)
    (tmp_path / "backup").mkdir()
    with pytest.raises(SpoolDamagedError):
        back_up(killed, tmp_path / "backup")
    found = recover_spool(killed, stamp="now")
    assert (found.is_whole, found.log_damaged) == (False, True)
    assert killed.with_name("spool.sqlite.damaged-now.last-commit").exists()
    assert not last_commit_of(killed).exists()
    assert len(await listed(open_spool, killed)) < MESSAGES


async def test_a_backup_that_is_put_back_beside_the_number_of_the_other_says_what_to_remove(
    path: Path, tmp_path: Path, open_spool, make
) -> None:
    spool = open_spool(path)
    await spool.start()
    await fill(spool, make, 2)
    (tmp_path / "backup").mkdir()
    back_up(path, tmp_path / "backup")
    await fill(spool, make, 2)
    killed = copied(path, tmp_path / "killed")
    await spool.stop()
    shutil.copyfile(tmp_path / "backup/spool.sqlite", killed)
    log_of(killed).unlink()
    with pytest.raises(SpoolDamagedError, match=r"back-up: remove spool\.sqlite\.last-commit"):
        open_spool(killed)
    last_commit_of(killed).unlink()
    assert len(await listed(open_spool, killed)) == 2


@pytest.mark.parametrize("lost", ["nothing", "what was not synced", "all"])
async def test_no_kill_at_any_point_makes_a_whole_spool_look_damaged(
    path: Path, tmp_path: Path, clock, make, monkeypatch, lost: str
) -> None:
    """Nor does one after another, nor when what was noted is lost with the power."""
    monkeypatch.setattr(write_ahead_log, "_PAGES_BUSY", 30)
    synced, fsync = {}, os.fsync

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        if file.name == last_commit_of(path).name:
            synced[file] = file.read_bytes()

    def lose(copy: Path, original: Path) -> None:
        if lost == "all":
            last_commit_of(copy).unlink(missing_ok=True)
        elif lost == "what was not synced" and last_commit_of(original) in synced:
            last_commit_of(copy).write_bytes(synced[last_commit_of(original)])

    async def live(place: Path, folder: Path, number: int) -> list[tuple[CrashPoint, Path]]:
        crash = Copying(place, folder, lose)
        spool = SqliteSpool(
            place, clock=clock, crash=crash, metrics=Metrics(), submission_keep_s=60, inline=True
        )
        await spool.start()
        await fill(spool, make, number)
        await spool.stop()
        return crash.copies

    monkeypatch.setattr(os, "fsync", sync)
    seen = set()
    for number, (point, first) in enumerate(await live(path, tmp_path / "first", 8)):
        for again, second in await live(first, tmp_path / f"second-{number}", 2):
            check_files(second, has_owner=False)
            open_database(second).close()
            seen.add((point, again))
    points = {point for point in CrashPoint if point.startswith("spool-")}
    points -= {CrashPoint.SPOOL_BODY_SYNCED}
    assert {point for point, _ in seen} == {point for _, point in seen} == points


async def test_a_killed_spool_is_whole(killed: Path, open_spool) -> None:
    check_files(killed, has_owner=False)
    assert len(await listed(open_spool, killed)) == MESSAGES
    assert not last_commit_of(killed).exists()


@pytest.mark.parametrize("gone", [("",), ("", "-wal")])
async def test_a_file_that_is_gone_without_a_stop_is_damage(
    killed: Path, open_spool, gone: tuple[str, ...]
) -> None:
    for ending in gone:
        killed.with_name(killed.name + ending).unlink()
    with pytest.raises(SpoolDamagedError, match="is missing, but it"):
        open_spool(killed)


@pytest.mark.parametrize("is_ended", [True, False])
async def test_a_log_is_missed_by_what_was_noted_and_synced(
    path: Path, tmp_path: Path, open_spool, make, monkeypatch, is_ended: bool
) -> None:
    """A loss of power takes what was noted since, but for the end of a checkpoint perhaps."""
    monkeypatch.setattr(write_ahead_log, "_PAGES_BUSY", 50)
    synced, fsync = [], os.fsync

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink() == last_commit_of(path):
            synced.append(last_commit_of(path).read_bytes())

    monkeypatch.setattr(os, "fsync", sync)
    spool = open_spool(path)
    await spool.start()
    lost = 0
    for number in range(30):
        await fill(spool, make, 1)
        left = copied(path, tmp_path / f"left-{number}")
        noted = synced[-1].replace(b"checkpoint", b" " * 10) if is_ended else synced[-1]
        last_commit_of(left).write_bytes(noted)
        log_of(left).unlink()
        if is_ended and messages_in(left) == number + 1:
            check_files(left, has_owner=False)
            continue
        lost += 1
        with pytest.raises(SpoolDamagedError):
            open_spool(left)
    await spool.stop()
    assert lost > 15
    assert len(synced) > 6


async def test_what_another_program_brings_into_the_database_is_not_lost(
    killed: Path, open_spool
) -> None:
    """SQLite removes the log when its last connection closes."""
    with closing(apsw.Connection(str(killed))) as connection:
        assert connection.execute("SELECT count(*) FROM message").get == MESSAGES
    assert not log_of(killed).exists()
    check_files(killed, has_owner=False)
    assert len(await listed(open_spool, killed)) == MESSAGES


async def test_a_spool_that_was_stopped_may_be_replaced_by_an_older_copy(
    path: Path, tmp_path: Path, open_spool, make
) -> None:
    assert await listed(open_spool, path) == []
    older = copied(path, tmp_path / "older")
    spool = open_spool(path)
    await spool.start()
    await fill(spool, make, 3)
    await spool.stop()
    older.replace(path)
    assert await listed(open_spool, path) == []


async def test_a_checkpoint_that_was_cut_off_needs_its_log(
    killed: Path, open_spool, tmp_path: Path
) -> None:
    """The database may have the newest count of commits, and not the pages of all of them."""
    count = LastCommit(killed, read_recorded(killed).number, crash=CrashPoints())
    count.checkpoint_begins()
    whole = copied(killed, tmp_path / "whole")
    with closing(apsw.Connection(str(killed))) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with pytest.raises(SpoolDamagedError, match="cut off halfway"):
        open_spool(killed)
    assert len(await listed(open_spool, whole)) == MESSAGES


async def test_a_disk_that_is_full_may_end_the_process_behind_a_log_that_was_emptied(
    path: Path, tmp_path: Path, open_spool, make
) -> None:
    spool = open_spool(path)
    await spool.start()
    await fill(spool, make)
    spool._writer._log.shrink()
    assert log_of(path).stat().st_size == 0
    left = copied(path, tmp_path / "left")
    await spool.stop()
    assert len(await listed(open_spool, left)) == MESSAGES


async def test_a_count_that_cannot_be_written_refuses_no_mail(
    path: Path, open_spool, make, monkeypatch, capfd
) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(last_commit.LastCommit, "_write", refuse)
    spool = open_spool(path)
    await spool.start()
    names = await fill(spool, make, 3)
    spool._writer._log.shrink()
    await spool.stop()
    assert "".join(capfd.readouterr()).count("last commit not noted") == 1
    assert await listed(open_spool, path) == names


@pytest.mark.parametrize(
    ("line", "noted"),
    [
        ("", RecordedCommit(0, is_checkpoint=False)),
        ("\0" * 32, RecordedCommit(0, is_checkpoint=False)),
        ("00000000000000000007           \n", RecordedCommit(7, is_checkpoint=False)),
        ("00000000000000000007 checkpoint\n", RecordedCommit(7, is_checkpoint=True)),
    ],
)
async def test_what_a_loss_of_power_leaves_of_the_file_is_read(
    path: Path, open_spool, line: str, noted: RecordedCommit
) -> None:
    assert read_recorded(path) is None
    last_commit_of(path).write_text(line)
    assert read_recorded(path) == noted


async def test_a_running_spool_may_be_read_while_it_commits(path: Path, open_spool, make) -> None:
    """The number is read first, so that a commit in between makes the spool newer, never older."""
    spool = open_spool(path)
    await spool.start()
    noted = read_recorded(path)
    await fill(spool, make, 3)
    with closing(open_database(path, read_only=True)) as connection:
        check_commits(connection, path, noted, with_log=True)
    await spool.stop()
