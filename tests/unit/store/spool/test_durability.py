"""Group commit, and disks whose writes or fsyncs fail."""

import asyncio
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import pytest

from relay.store.spool.sqlite import write_ahead_log
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.types import ClaimResult, SpoolError, SpoolFullError, SpoolUnavailableError
from tests.support.events import until
from tests.support.long_tests import sampled
from tests.support.operator import OK
from tests.support.spools import new_spool
from tests.support.vfs import FaultyDisk


@pytest.fixture
async def spool(disk: FaultyDisk, tmp_path: Path, running):
    """The fixture of conftest, on `disk`."""
    async with running(tmp_path / "spool.sqlite") as spool:
        disk.syncs.clear()
        yield spool
        disk.is_well()


async def test_a_database_without_a_log_is_not_used(disk, tmp_path, open_spool, running) -> None:
    """In another mode of SQLite the last commit may be lost with the power."""
    disk.refuses("sync", suffix="-journal")
    disk.on_sync = lambda _suffix: disk.is_well() if disk.refusals["sync"] else None  # once
    with pytest.raises(SpoolUnavailableError, match="sync refused"):
        await open_spool(tmp_path / "spool.sqlite").start()
    async with running(tmp_path / "spool.sqlite") as spool:
        assert spool._connection.execute("PRAGMA journal_mode").get == "wal"


def seen_after_a_crash(spool_path: Path, folder: Path) -> set[str]:
    """Return the queue ids that the next process would find after a kill at this moment."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in (spool_path, spool_path.with_name(spool_path.name + "-wal")):
        if path.exists():
            shutil.copyfile(path, folder / path.name)
    return ids_in(folder / spool_path.name)


def ids_in(path: Path) -> set[str]:
    connection = apsw.Connection(str(path), vfs="unix")
    try:
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        return {str(row[0]) for row in connection.execute("SELECT id FROM message")}
    finally:
        connection.close()


# -- group commit


async def test_one_message_costs_one_fsync_and_its_outcome_another(disk, spool, make) -> None:
    for number in range(1, 6):
        accepted = await spool.accept(make())
        assert disk.syncs == {"-wal": 2 * number - 1}
        await spool.record(ClaimResult(accepted.claims[0], 5, {1: OK}))
        assert disk.syncs == {"-wal": 2 * number}


# -- a disk that fails


@pytest.mark.parametrize(
    ("fault", "error"),
    [("sync", SpoolUnavailableError), ("write", SpoolUnavailableError), ("full", SpoolFullError)],
)
async def test_a_message_whose_commit_failed_is_refused_and_not_stored(
    disk, spool, make, tmp_path: Path, fault: str, error: type[Exception]
) -> None:
    path, copy = tmp_path / "spool.sqlite", tmp_path / "copy"
    kept = {(await spool.accept(make())).queue_id}
    disk.refuses(fault)
    results = await asyncio.gather(
        *(spool.accept(make()) for _ in range(20)), return_exceptions=True
    )
    assert [type(one) for one in results] == [error] * 20
    assert (await spool.counts()).unaccounted == 0
    assert seen_after_a_crash(path, copy) == kept
    disk.is_well()
    kept.add((await spool.accept(make())).queue_id)
    assert seen_after_a_crash(path, copy) == kept


# -- power loss


@dataclass
class Answers:
    """The answers for the messages, by queue id."""

    accepted: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)


@pytest.mark.parametrize("seed", sampled(range(10)))
async def test_after_a_power_loss_every_accepted_message_exists_and_no_refused_one(
    tmp_path: Path, clock, make, monkeypatch, seed: int
) -> None:
    """Messages arrive, fsyncs fail, the process is killed and restarted, then the power fails."""
    rng = random.Random(seed)
    monkeypatch.setattr(write_ahead_log, "_PAGES_BUSY", rng.choice([40, 4000]))
    answered, path = Answers(), tmp_path / "spool.sqlite"
    with FaultyDisk(rng=rng) as disk:
        monkeypatch.setattr(write_ahead_log, "rewrite_log", rewriting_on(disk))
        for life in range(4):
            spool = new_spool(path, clock, inline=True)
            await spool.start()
            await live(spool, disk, make, answered=answered, rng=rng)
            left = tmp_path / f"left-{life}"
            left.mkdir()
            disk.after_loss_of_power(left, rng)
            assert answered.accepted <= ids_in(left / path.name)
            await killed(spool, disk, path)
            assert seen_after_a_crash(path, left) & answered.refused == set()
            disk.is_well()
    assert len(answered.accepted) > 10
    assert answered.refused


def rewriting_on(disk: FaultyDisk) -> Callable[[Path], None]:
    rewrite = write_ahead_log.rewrite_log

    def rewrite_log(database: Path) -> None:
        rewrite(database)
        if (log := database.with_name(database.name + "-wal")).exists():
            disk.written_anew(log)

    return rewrite_log


async def live(
    spool: SqliteSpool, disk: FaultyDisk, make, *, answered: Answers, rng: random.Random
) -> None:
    """Send messages on a disk that fails at random; it may still fail at the end."""
    for _ in range(rng.randrange(20, 40)):
        match rng.randrange(8):
            case 0:
                disk.refuses("sync", suffix=rng.choice(["-wal", ".sqlite"]))
            case 1:
                disk.refuses("write", suffix=rng.choice(["-wal", ".sqlite"]))
            case 2 | 3:
                disk.is_well()
            case _:
                content = rng.randbytes(rng.choice([100, 30_000]))
                message = make(content=b"Subject: s\r\n\r\n" + content)
                try:
                    accepted = await spool.accept(message)
                except SpoolError:
                    answered.refused.add(message.facts.id)
                    continue
                answered.accepted.add(message.facts.id)
                if rng.random() < 0.5:
                    with suppress(SpoolError):
                        await spool.record(ClaimResult(accepted.claims[0], 5, {1: OK}))


async def killed(spool: SqliteSpool, disk: FaultyDisk, path: Path) -> None:
    """Stop a spool and leave its files as a kill would."""
    names = [path.name, f"{path.name}-wal"]
    files = {name: path.with_name(name).read_bytes() for name in names}
    images = disk.remembered()
    disk.is_well()
    await spool.stop()
    for name, octets in files.items():
        path.with_name(name).write_bytes(octets)
    disk.put_back(images)


async def test_a_stop_with_a_failed_fsync_keeps_the_log_for_the_next_start(
    disk: FaultyDisk, make, open_spool, running, tmp_path: Path
) -> None:
    """SQLite checkpoints the log when the last connection closes."""
    async with running(tmp_path / "spool.sqlite") as spool:
        accepted = await spool.accept(make())
        disk.refuses("sync", suffix="")
    assert disk.refusals["sync"]
    disk.is_well()
    again = open_spool(tmp_path / "spool.sqlite")
    assert await again.start() == 1
    assert await again.journey(accepted.queue_id)
    await again.stop()


async def test_a_disk_that_failed_is_tried_again_without_new_mail(disk, spool, make, monkeypatch):
    monkeypatch.setattr(write_ahead_log, "_RETRY_S", 0.01)
    disk.refuses("sync")
    with pytest.raises(SpoolUnavailableError):
        await spool.accept(make())
    disk.is_well()
    await until(lambda: not spool.load().is_failing)
