"""A lost write-ahead log is damage; a kill or a power loss is not."""

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import apsw
import pytest

from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.store.spool.sqlite import write_ahead_log
from relay.store.spool.sqlite.database import open_database
from relay.store.spool.sqlite.migrate import check_files
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.sqlite.spool_files import last_commit_of, log_of
from relay.store.spool.sqlite.storage import SqliteStorage
from relay.store.spool.sqlite.write_ahead_log import LastCommit, read_recorded
from relay.store.spool.types import Selector, SpoolDamagedError
from tests.support.long_tests import sampled
from tests.support.spools import new_spool

MESSAGES = 40
FILES = ("", "-wal", "-content", ".last-commit")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state/spool.sqlite"


def copied(path: Path, folder: Path) -> Path:
    """Copy the files as a kill at this moment would leave them."""
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
    """Copies the files at every crash point, as a kill there would leave them."""

    def __init__(self, path: Path, folder: Path, lose: Callable[[Path, Path], None]) -> None:
        """`lose(copy, original)` removes from a copy what a power loss removes."""
        super().__init__()
        folder.mkdir()
        self._path, self._folder, self._lose = path, folder, lose
        self.copies: list[tuple[CrashPoint, Path]] = []

    def reached(self, point: CrashPoint) -> None:
        copy = copied(self._path, self._folder / f"{len(self.copies)}-{point}")
        self._lose(copy, self._path)
        self.copies.append((point, copy))


@pytest.fixture
async def killed(path: Path, tmp_path: Path, running, make) -> Path:
    """A new spool whose process was killed: every row, and the schema, is in its log."""
    async with running(path) as spool:
        await fill(spool, make)
        return copied(path, tmp_path / "killed")


@pytest.fixture
def synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, list[bytes]]:
    """What each file with the number of the last commit had at its syncs. The log is brought in often."""
    monkeypatch.setattr(write_ahead_log, "_PAGES_BUSY", 50)
    found: dict[Path, list[bytes]] = {}
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        if file.name == last_commit_of(path).name:
            found.setdefault(file, []).append(file.read_bytes())

    monkeypatch.setattr(os, "fsync", sync)
    return found


def octets_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def messages_in(path: Path) -> int:
    """Count the messages in the database without its log; none where a checkpoint was copied halfway."""
    address = f"{path.as_uri()}?immutable=1"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    with closing(apsw.Connection(address, flags=flags)) as connection:
        try:
            has_tables = connection.pragma("user_version")
            return connection.execute("SELECT count(*) FROM message").get if has_tables else 0
        except apsw.CorruptError:
            return 0


async def listed(running, path: Path) -> list[str]:
    async with running(path) as spool:
        found = await spool.queue_admin.list(Selector(all=True), limit=1000)
    return sorted(one["id"] for one in found)


def lose_half(log: Path) -> None:
    os.truncate(log, log.stat().st_size // 2)


def lose_the_end(log: Path) -> None:
    os.truncate(log, log.stat().st_size - 1)


def make_empty(log: Path) -> None:
    log.write_bytes(b"")


def overwrite(log: Path) -> None:
    log.write_bytes(bytes(log.stat().st_size))


def damage_the_middle(log: Path) -> None:
    with log.open("r+b") as file:
        file.seek(log.stat().st_size // 2)
        file.write(b"\xff" * 5000)


LOSSES = [os.unlink, make_empty, lose_half, lose_the_end, overwrite, damage_the_middle]


@pytest.mark.parametrize("lose", LOSSES)
async def test_a_lost_log_is_damage_until_an_operator_decides(
    killed: Path, open_spool, running, lose: Callable[[Path], None], tmp_path: Path
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
        SqliteStorage(killed).back_up(tmp_path / "backup")
    last_commit_of(killed).unlink()  # an operator takes what is left
    assert len(await listed(running, killed)) < MESSAGES


async def test_a_restored_backup_next_to_a_newer_last_commit_file_is_explained(
    path: Path, tmp_path: Path, open_spool, running, make
) -> None:
    async with running(path) as spool:
        await fill(spool, make, 2)
        (tmp_path / "backup").mkdir()
        SqliteStorage(path).back_up(tmp_path / "backup")
        await fill(spool, make, 2)
        killed = copied(path, tmp_path / "killed")
    shutil.copyfile(tmp_path / "backup/spool.sqlite", killed)
    log_of(killed).unlink()
    with pytest.raises(SpoolDamagedError, match=r"back-up: remove spool\.sqlite\.last-commit"):
        open_spool(killed)
    last_commit_of(killed).unlink()
    assert len(await listed(running, killed)) == 2


@pytest.mark.parametrize("lost", sampled(["what was not synced", "nothing", "all"]))
async def test_a_kill_at_any_crash_point_is_not_reported_as_damage(
    path: Path, tmp_path: Path, clock, make, synced, lost: str
) -> None:
    """Also after two kills, and when the commit number is lost in a power loss."""

    def lose(copy: Path, original: Path) -> None:
        if lost == "all":
            last_commit_of(copy).unlink(missing_ok=True)
        elif lost == "what was not synced" and last_commit_of(original) in synced:
            last_commit_of(copy).write_bytes(synced[last_commit_of(original)][-1])

    async def live(place: Path, folder: Path, number: int) -> list[tuple[CrashPoint, Path]]:
        crash = Copying(place, folder, lose)
        spool = new_spool(place, clock, crash=crash, inline=True)
        await spool.start()
        await fill(spool, make, number)
        await spool.stop()
        return crash.copies

    seen = set()
    for number, (point, first) in enumerate(await live(path, tmp_path / "first", 4)):
        for again, second in await live(first, tmp_path / f"second-{number}", 2):
            check_files(second, has_owner=False)
            open_database(second).close()
            seen.add((point, again))
    points = {point for point in CrashPoint if point.startswith("spool-")}
    points -= {CrashPoint.SPOOL_BODY_SYNCED}
    assert {point for point, _ in seen} == {point for _, point in seen} == points


@pytest.mark.parametrize("gone", [("",), ("", "-wal")])
async def test_a_missing_file_after_a_kill_is_damage(killed, open_spool, gone):
    for ending in gone:
        killed.with_name(killed.name + ending).unlink()
    with pytest.raises(SpoolDamagedError, match="is missing, but it"):
        open_spool(killed)


async def test_a_lost_log_is_detected_by_the_synced_commit_number(
    path: Path, tmp_path: Path, open_spool, running, make, synced
) -> None:
    """A power loss removes numbers written since the last fsync."""
    async with running(path) as spool:
        lost = 0
        for number in range(30):
            await fill(spool, make, 1)
            left = copied(path, tmp_path / f"left-{number}")
            last_commit_of(left).write_bytes(synced[last_commit_of(path)][-1])
            log_of(left).unlink()
            if messages_in(left) == number + 1:
                check_files(left, has_owner=False)
                continue
            lost += 1
            with pytest.raises(SpoolDamagedError):
                open_spool(left)
    assert lost > 15
    assert len(synced[last_commit_of(path)]) > 4


async def test_a_checkpoint_by_another_program_is_not_damage(killed: Path, running) -> None:
    """SQLite removes the log when its last connection closes."""
    with closing(apsw.Connection(str(killed))) as connection:
        assert connection.execute("SELECT count(*) FROM message").get == MESSAGES
    assert not log_of(killed).exists()
    check_files(killed, has_owner=False)
    assert len(await listed(running, killed)) == MESSAGES


async def test_a_spool_that_was_stopped_may_be_replaced_by_an_older_copy(
    path: Path, tmp_path: Path, running, make
) -> None:
    assert await listed(running, path) == []
    older = copied(path, tmp_path / "older")
    async with running(path) as spool:
        await fill(spool, make, 3)
    older.replace(path)
    assert await listed(running, path) == []


@pytest.mark.parametrize(
    ("line", "noted"),
    [
        ("", 0),
        ("\0" * 32, 0),
        ("00000000000000000007\n", 7),
        ("00000000000000000007 checkpoint\n", 7),  # of 0.2.0
    ],
)
async def test_a_last_commit_file_is_read_after_a_power_loss(path: Path, line: str, noted: int):
    assert read_recorded(path) is None
    last_commit_of(path).write_text(line)
    assert read_recorded(path) == noted


async def test_mail_is_accepted_when_the_commit_number_cannot_be_written(
    path: Path, running, make, monkeypatch, capfd
) -> None:
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(LastCommit, "_write", full)
    async with running(path) as spool:
        names = await fill(spool, make, 3)
        spool._writer.log.shrink()
    assert "".join(capfd.readouterr()).count("last commit not noted") == 1
    assert await listed(running, path) == names
