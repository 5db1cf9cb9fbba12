"""A disk that fails for a while (EIO): the spool works again without a restart, unless it is older."""

import asyncio
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from relay.base.observe.metrics import Metrics
from relay.store.spool.sqlite import damage, database
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.sqlite.spool_files import damage_mark_of, last_commit_of, log_of
from relay.store.spool.types import (
    Claim,
    ClaimResult,
    DueQuery,
    Selector,
    SpoolDamagedError,
    SpoolError,
    SpoolUnavailableError,
)
from tests.support.events import until
from tests.support.manual_clock import ManualClock
from tests.support.operator import OK
from tests.support.spools import new_spool
from tests.support.vfs import FaultyDisk

MESSAGES = 12
SOON_S = 120.0


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    """The pauses are short; and nothing is in SQLite's cache, so that the writer reads too."""
    monkeypatch.setattr(damage, "_RETRY_S", 0.01)
    monkeypatch.setattr(damage, "_RETRY_S_MAX", 0.05)
    monkeypatch.setattr(database, "_CACHE_KIB", 1)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def spool(disk: FaultyDisk, path: Path, metrics: Metrics):
    spool = new_spool(path, metrics=metrics)
    await spool.start()
    yield spool
    disk.is_well()
    await spool.stop()


async def until_damaged(spool: SqliteSpool) -> None:
    async with asyncio.timeout(SOON_S):
        while not spool.damage.text:
            for read in (
                spool.counts(),
                spool.queue_admin.list(Selector(all=True), limit=100),
                spool.find_queue_ids("nobody@a.test", account=None, limit=10),
            ):
                with suppress(SpoolError):
                    await read


async def until_well(spool: SqliteSpool) -> None:
    await until(lambda: not (spool.damage.text or spool.damage._lock.locked()))


async def tried_again(spool: SqliteSpool, times: int = 3) -> None:
    """Return when the spool was opened again, or this was tried, some more times."""
    seen, retry = [], spool.damage.retry

    def counting(reopen) -> bool:
        def opened() -> None:
            seen.append(1)
            reopen()

        return retry(opened)

    spool.damage.retry = counting
    await until(lambda: len(seen) >= times)
    spool.damage.retry = retry


async def claims_of(spool: SqliteSpool, make, number: int = MESSAGES) -> list[Claim]:
    return [(await spool.accept(make())).claims[0] for _ in range(number)]


@pytest.mark.parametrize(
    ("faults", "suffix"),
    [
        (("read",), ""),
        (("read",), ".sqlite"),
        (("read",), "-wal"),
        (("read", "sync"), ""),
        (("read", "write", "sync"), ""),
    ],
)
async def test_after_a_short_eio_the_spool_works_again_with_the_same_claims(
    disk, spool, metrics, path, make, capfd, faults: tuple[str, ...], suffix: str
) -> None:
    claims = await claims_of(spool, make)
    if suffix == ".sqlite":
        spool._writer.log.shrink()  # else nothing is read there
    for fault in faults:
        disk.refuses(fault, suffix=suffix)
    await until_damaged(spool)
    assert metrics.registry.get_sample_value("relay_spool_damaged") == 1
    with pytest.raises(SpoolUnavailableError, match="no new mail is accepted"):
        await spool.accept(make())
    await tried_again(spool)
    assert spool.health()
    disk.is_well()
    await until_well(spool)
    assert metrics.registry.get_sample_value("relay_spool_damaged") == 0
    assert not damage_mark_of(path).exists()
    for claim in claims:
        assert (await spool.record(ClaimResult(claim, 5, {1: OK})))[0]
    await spool.accept(make())
    listed = await spool.queue_admin.list(Selector(all=True), limit=100)
    assert len(listed) == 1
    assert (await spool.counts()).unaccounted == 0
    text = "".join(capfd.readouterr())
    assert (text.count("spool damaged"), text.count("spool works again")) == (1, 1)


async def test_what_a_failing_write_left_is_not_there_after_the_reopening(
    disk, spool, path, make, tmp_path
) -> None:
    """The frames of a rejected message are in the log while the disk fails."""
    kept = {claim.message.id for claim in await claims_of(spool, make)}
    disk.on_sync = lambda suffix: disk.refuses("read", suffix="") if suffix == "-wal" else None
    disk.refuses("sync")
    with pytest.raises(SpoolError):
        await spool.accept(make())
    await until_damaged(spool)
    disk.on_sync = lambda _suffix: None
    disk.is_well()
    disk.refuses("sync")  # reads only
    await tried_again(spool)
    assert spool.health()
    disk.is_well()
    await until_well(spool)
    listed = await spool.queue_admin.list(Selector(all=True), limit=100)
    assert {one["id"] for one in listed} == kept
    kept.add((await spool.accept(make())).queue_id)
    (tmp_path / "copy").mkdir()
    for one in (path, log_of(path)):
        shutil.copyfile(one, tmp_path / "copy" / one.name)
    connection = apsw.Connection(str(tmp_path / "copy" / path.name))
    assert {row[0] for row in connection.execute("SELECT id FROM message")} == kept
    connection.close()


@pytest.mark.parametrize("record", ["kept", "removed", "older"])
async def test_a_log_cut_to_an_older_commit_stays_damaged_until_it_is_back(
    disk, spool, path, make, record: str
) -> None:
    """Also where the record outside the log is lost as well: the process remembers."""
    older = log_of(path).stat().st_size
    noted = last_commit_of(path).read_bytes()
    claims = await claims_of(spool, make)
    whole, last = log_of(path).read_bytes(), last_commit_of(path).read_bytes()
    disk.refuses("read", suffix="")
    await until_damaged(spool)
    os.truncate(log_of(path), older)
    if record == "removed":
        last_commit_of(path).unlink()
    elif record == "older":
        last_commit_of(path).write_bytes(noted)
    disk.is_well()
    await tried_again(spool)
    assert "its last commit is number" in spool.health()
    for write in (
        spool.accept(make()),
        spool.record(ClaimResult(claims[0], 5, {1: OK})),
        spool.claim_due(1 << 62, 10, DueQuery()),
    ):
        with pytest.raises(SpoolUnavailableError):
            await write
    assert log_of(path).stat().st_size == older  # nothing is written behind what was cut off
    log_of(path).write_bytes(whole)
    last_commit_of(path).write_bytes(last)
    await until_well(spool)
    for claim in claims:
        assert (await spool.record(ClaimResult(claim, 5, {1: OK})))[0]


async def test_a_record_of_a_later_commit_than_any_that_is_remembered_counts(
    disk, spool, path, make
) -> None:
    await claims_of(spool, make)
    last = last_commit_of(path).read_bytes()
    disk.refuses("read", suffix="")
    await until_damaged(spool)
    last_commit_of(path).write_bytes(b"%020d           \n" % (int(last[:20]) + 1))
    disk.is_well()
    await tried_again(spool)
    assert "its last commit is number" in spool.health()
    last_commit_of(path).write_bytes(last)
    await until_well(spool)


async def test_a_stop_with_a_log_that_was_cut_leaves_what_shows_it(disk, path, make) -> None:
    spool = new_spool(path)
    await spool.start()
    older = log_of(path).stat().st_size
    await claims_of(spool, make)
    disk.refuses("read", suffix="")
    await until_damaged(spool)
    os.truncate(log_of(path), older)
    disk.is_well()
    await tried_again(spool)
    await spool.stop()
    with pytest.raises(SpoolDamagedError, match="its last commit is number"):
        new_spool(path)


@pytest.mark.parametrize("lost", ["missing", "empty", "another spool"])
async def test_a_database_that_is_gone_is_not_made_anew(disk, spool, path, make, tmp_path, lost):
    await claims_of(spool, make)
    other = new_spool(tmp_path / "other.sqlite")
    await other.start()
    await other.stop()
    disk.refuses("read", suffix="")
    await until_damaged(spool)
    aside = tmp_path / "aside"
    aside.mkdir()
    for one in (path, log_of(path), last_commit_of(path)):  # as below a mount point
        one.rename(aside / one.name)
    if lost == "empty":
        path.touch()
    elif lost == "another spool":
        shutil.copyfile(tmp_path / "other.sqlite", path)
    disk.is_well()
    await tried_again(spool)
    assert spool.health()
    found = {one.name for one in tmp_path.iterdir()}
    assert not {last_commit_of(path).name, *((path.name,) if lost == "missing" else ())} & found
    for one in (path, log_of(path)):
        one.unlink(missing_ok=True)
    for one in aside.iterdir():
        one.rename(tmp_path / one.name)
    await until_well(spool)
    assert len(await spool.queue_admin.list(Selector(all=True), limit=100)) == MESSAGES


async def test_a_page_that_stays_damaged_keeps_the_spool_damaged(spool, path, make) -> None:
    """Header and log are whole, and so are the other pages; delivery goes on."""
    claims = await claims_of(spool, make)
    for number in range(MESSAGES):
        await spool.accept(make(), submission_key=f"draft.{number}")
    spool._writer.log.shrink()
    root = spool._connection.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'submission'"
    ).get
    page_bytes = spool._connection.pragma("page_size")
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"\xff" * page_bytes, (root - 1) * page_bytes)
    with pytest.raises(SpoolUnavailableError):
        await spool.accept(make(), submission_key="draft.1")
    await tried_again(spool)
    assert "malformed" in spool.health()
    assert (await spool.record(ClaimResult(claims[0], 5, {1: OK})))[0]
    await tried_again(spool)
    assert "malformed" in spool.health()
    assert damage_mark_of(path).exists()


async def test_a_count_that_the_reopening_cuts_off_is_not_a_result(disk, spool, make, monkeypatch):
    """Its steps read one snapshot, which ends with the connection."""
    await claims_of(spool, make)
    steps, run = 0, spool.count

    async def cut_off(query):
        nonlocal steps
        steps += 1
        if steps == 3:
            disk.refuses("read", suffix="")
            await until_damaged(spool)
            disk.is_well()
            await until_well(spool)
        return await run(query)

    monkeypatch.setattr(spool, "count", cut_off)
    with pytest.raises(SpoolUnavailableError, match="cut off"):
        await spool.counts()
    assert (await spool.counts()).unaccounted == 0


def test_a_spool_that_works_again_while_the_mark_is_written_has_none(path, monkeypatch) -> None:
    """A start would find a whole spool damaged."""
    found = damage.Damage(path, Metrics(), ManualClock(0))
    retry = threading.Thread(target=found.retry, args=(lambda: None,))
    write = Path.write_text

    def slowly(mark: Path, text: str) -> int:
        retry.start()
        retry.join(0.5)  # it does not end before the mark is there
        return write(mark, text)

    monkeypatch.setattr(Path, "write_text", slowly)
    found.found(SpoolDamagedError("malformed"), lambda: None)
    retry.join()
    assert (found.text, damage_mark_of(path).exists()) == ("", False)
