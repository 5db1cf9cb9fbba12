"""Commits: shared by whoever waits, and honest about a disk that does not take them."""

import asyncio
import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import pytest

from relay.crashpoints import CrashPoints
from relay.message.outcome import Evidence, Relayed
from relay.observe.metrics import Metrics
from relay.spool import SqliteSpool
from relay.spool.sqlite import write_ahead_log
from relay.spool.sqlite.write_ahead_log import check_log
from relay.spool.types import (
    Accepted,
    NewMessage,
    Settlement,
    SpoolError,
    SpoolFullError,
    SpoolUnavailableError,
)
from tests.support.vfs import FaultyDisk

OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok", "mx.a.test", remote=True))
SENDERS = 64
MESSAGES_EACH = 15
PER_SYNC = 8


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with FaultyDisk() as disk:
        yield disk


@pytest.fixture
async def spool(disk: FaultyDisk, tmp_path: Path, open_spool):
    """As conftest's, but on `disk`."""
    spool = open_spool(tmp_path / "spool.sqlite")
    await spool.start()
    disk.syncs.clear()
    yield spool
    disk.is_well()
    await spool.stop()


def seen_after_a_crash(spool_path: Path, folder: Path) -> set[str]:
    """The queue ids that the next process would find, if this one were killed now."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in (spool_path, spool_path.with_name(spool_path.name + "-wal")):
        if path.exists():
            shutil.copyfile(path, folder / path.name)
    return ids_in(folder / spool_path.name)


def ids_in(path: Path) -> set[str]:
    connection = apsw.Connection(str(path), vfs="unix")
    try:
        check_log(connection, path)  # what a loss of power takes is no damage
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        return {str(row[0]) for row in connection.execute("SELECT id FROM message")}
    finally:
        connection.close()


# -- group commit


async def test_a_lone_sender_pays_one_sync_for_each_message_and_one_for_its_outcome(
    disk, spool, make
) -> None:
    for number in range(1, 6):
        accepted = await spool.accept(make())
        assert disk.syncs == {"-wal": 2 * number - 1}
        await spool.settle(Settlement(accepted.claims[0], 5, {1: OK}))
        assert disk.syncs == {"-wal": 2 * number}


async def test_many_senders_share_their_syncs(disk, spool, make) -> None:
    async def sender() -> None:
        for _ in range(MESSAGES_EACH):
            accepted = await accept_as_a_session(spool, make())
            await spool.settle(Settlement(accepted.claims[0], 5, {1: OK}))

    await asyncio.gather(*(sender() for _ in range(SENDERS)))
    assert SENDERS * MESSAGES_EACH / disk.syncs["-wal"] >= PER_SYNC


async def test_who_is_ready_in_the_same_turn_comes_into_the_same_commit(disk, spool, make) -> None:
    for number in range(1, 6):
        await asyncio.gather(*(accept_as_a_session(spool, make()) for _ in range(SENDERS)))
        assert disk.syncs == {"-wal": number}


async def accept_as_a_session(spool: SqliteSpool, message: NewMessage) -> Accepted:
    """A session has done something for which other threads may run before it comes to the spool."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 300)
    return await spool.accept(message)


# -- a disk that refuses


@pytest.mark.parametrize(
    ("fault", "error"),
    [("sync", SpoolUnavailableError), ("write", SpoolUnavailableError), ("full", SpoolFullError)],
)
async def test_what_could_not_be_committed_is_refused_and_is_not_there(
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


async def test_a_commit_whose_sync_failed_would_come_back_if_nothing_were_done(
    disk, spool, make, tmp_path: Path, monkeypatch
) -> None:
    """What the next test's tested code is good for."""
    monkeypatch.setattr(write_ahead_log.WriteAheadLog, "confirm_writable", lambda _self: None)
    disk.refuses("sync")
    message = make()
    with pytest.raises(SpoolUnavailableError):
        await spool.accept(message)
    assert seen_after_a_crash(tmp_path / "spool.sqlite", tmp_path / "copy") == {message.id}


async def test_nothing_is_taken_while_the_disk_cannot_sync_and_it_is_tried_unasked(
    disk, spool, make, monkeypatch
) -> None:
    monkeypatch.setattr(write_ahead_log, "_RETRY_S", 0.01)
    disk.refuses("sync")
    for _ in range(3):
        with pytest.raises(SpoolUnavailableError):
            await spool.accept(make())
    looked = asyncio.Event()
    loop = asyncio.get_running_loop()
    disk.on_sync = lambda _suffix: loop.call_soon_threadsafe(looked.set)
    async with asyncio.timeout(10):
        await looked.wait()
    disk.is_well()
    assert (await spool.accept(make())).claims


async def test_an_outcome_is_not_lost_with_the_commit_that_fails(disk, spool, make) -> None:
    claim = (await spool.accept(make())).claims[0]
    settlement = Settlement(claim, 5, {1: OK})
    disk.refuses("sync")
    with pytest.raises(SpoolUnavailableError):
        await spool.settle(settlement)
    disk.is_well()
    assert (await spool.settle(settlement))[0]
    journey = await spool.journey(claim.message.id)
    assert journey["state"] == "relayed"


async def test_a_submission_that_was_refused_is_accepted_once_when_it_is_repeated(
    disk, spool, make
) -> None:
    disk.refuses("sync")
    with pytest.raises(SpoolUnavailableError):
        await spool.accept(make(), submission_key="draft.1")
    disk.is_well()
    accepted = await spool.accept(make(), submission_key="draft.1")
    assert not accepted.repeated
    assert (await spool.accept(make(), submission_key="draft.1")).queue_id == accepted.queue_id


# -- what a loss of power leaves


@dataclass
class Told:
    """What was said of the messages, by queue id."""

    accepted: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)


@pytest.mark.parametrize("seed", range(10))
async def test_no_answer_was_a_lie_when_the_power_goes(
    tmp_path: Path, clock, make, monkeypatch, seed: int
) -> None:
    """Messages come, syncs fail, the process is killed and another comes; then the power goes."""
    chance = random.Random(seed)
    monkeypatch.setattr(write_ahead_log, "_PAGES_BUSY", chance.choice([40, 4000]))
    told, path = Told(), tmp_path / "spool.sqlite"
    with FaultyDisk(chance=chance) as disk:
        monkeypatch.setattr("relay.spool.sqlite.spool.rewrite_log", syncing_anew_on(disk))
        for life in range(4):
            spool = SqliteSpool(
                path, clock=clock, crash=CrashPoints(), metrics=Metrics(), submission_keep_s=60,
                inline=True,
            )  # fmt: skip
            await spool.start()
            await live(spool, disk, make, told=told, chance=chance)
            left = tmp_path / f"left-{life}"
            left.mkdir()
            disk.after_loss_of_power(left, chance)
            assert told.accepted <= ids_in(left / path.name)
            await killed(spool, disk, path)
            assert seen_after_a_crash(path, left) & told.refused == set()
            disk.is_well()
    assert len(told.accepted) > 10
    assert told.refused


def syncing_anew_on(disk: FaultyDisk) -> Callable[[Path], None]:
    def rewrite_log(database: Path) -> None:
        write_ahead_log.rewrite_log(database)
        if (log := database.with_name(database.name + "-wal")).exists():
            disk.written_anew(log)

    return rewrite_log


async def live(
    spool: SqliteSpool, disk: FaultyDisk, make, *, told: Told, chance: random.Random
) -> None:
    """Send for a while, on a disk that now and then refuses; it may end while it does."""
    for _ in range(chance.randrange(20, 40)):
        match chance.randrange(8):
            case 0:
                disk.refuses("sync", suffix=chance.choice(["-wal", ".sqlite"]))
            case 1:
                disk.refuses("write", suffix=chance.choice(["-wal", ".sqlite"]))
            case 2 | 3:
                disk.is_well()
            case _:
                content = chance.randbytes(chance.choice([100, 30_000]))
                message = make(content=b"Subject: s\r\n\r\n" + content)
                try:
                    accepted = await spool.accept(message)
                except SpoolError:
                    told.refused.add(message.id)
                    continue
                told.accepted.add(message.id)
                if chance.random() < 0.5:
                    with suppress(SpoolError):
                        await spool.settle(Settlement(accepted.claims[0], 5, {1: OK}))


async def killed(spool: SqliteSpool, disk: FaultyDisk, path: Path) -> None:
    """End a spool, and leave its files as if it had been killed."""
    names = [path.name, f"{path.name}-wal"]
    files = {name: path.with_name(name).read_bytes() for name in names}
    images = disk.remembered()
    disk.is_well()
    await spool.stop()
    for name, octets in files.items():
        path.with_name(name).write_bytes(octets)
    disk.put_back(images)


async def test_a_stop_whose_last_sync_fails_leaves_all_to_the_next_start(
    disk: FaultyDisk, make, open_spool, tmp_path: Path
) -> None:
    """SQLite brings the log into the database when the last connection closes."""
    spool = open_spool(tmp_path / "spool.sqlite")
    await spool.start()
    accepted = await spool.accept(make())
    disk.refuses("sync", suffix="")
    await spool.stop()
    assert disk.refusals["sync"]
    disk.is_well()
    again = open_spool(tmp_path / "spool.sqlite")
    assert await again.start() == 1
    assert await again.journey(accepted.queue_id)
    await again.stop()
