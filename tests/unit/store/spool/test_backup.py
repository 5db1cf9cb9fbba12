"""A backup of a running spool: consistent, complete, and usable in place of the spool."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import apsw
import pytest

from relay.base.message.outcome import Evidence, Relayed
from relay.store.spool.sqlite import disk_space, storage
from relay.store.spool.sqlite.content_files import INLINE_BYTES_MAX
from relay.store.spool.sqlite.database import open_database
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.sqlite.spool_files import contents_of
from relay.store.spool.sqlite.storage import SqliteStorage
from relay.store.spool.types import (
    ClaimResult,
    Selector,
    SpoolError,
    SpoolFormatError,
    SpoolFullError,
)
from tests.support import next_schema

LARGE = b"Subject: large\r\n\r\n" + b"x" * INLINE_BYTES_MAX
OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "copy").mkdir()
    return tmp_path / "copy"


async def opened(open_spool: Callable[[Path], SqliteSpool], folder: Path) -> SqliteSpool:
    spool = open_spool(folder / "spool.sqlite")
    await spool.start()
    return spool


async def test_a_backup_can_replace_the_spool(spool, path, folder, make, open_spool) -> None:
    (done,) = (await spool.accept(make(), submission_key="draft.1")).claims
    await spool.record(ClaimResult(done, 5, {1: OK}))
    (in_work,) = (await spool.accept(make(content=LARGE))).claims
    (waiting,) = (await spool.accept(make())).claims
    await spool.release([waiting])
    copied = await asyncio.to_thread(SqliteStorage(path).back_up, folder)
    assert copied.missing == ()
    assert copied.counts["entries"] == {"queued": 2}
    assert (copied.counts["recipients"], copied.counts["submissions"]) == (2, 1)
    assert not list(folder.glob("*-wal"))
    await spool.record(ClaimResult(in_work, 5, {1: OK}))  # goes on without the copy

    copy = await opened(open_spool, folder)
    listed = {one["id"]: one for one in await copy.queue_admin.list(Selector(all=True), limit=10)}
    assert {one: listed[one]["state"] for one in listed} == {
        in_work.message.id: "deferred",
        waiting.message.id: "queued",
    }
    journey = await copy.journey(in_work.message.id)
    (attempt,) = journey.recipients[0].attempts
    assert attempt.outcome == "indeterminate"
    assert await copy.read_content(in_work.content_id) == LARGE
    again = await copy.accept(make(), submission_key="draft.1")
    assert (again.repeated, again.queue_id) == (True, done.message.id)
    assert (await copy.counts()).unaccounted == 0
    await copy.stop()


async def test_a_backup_during_deliveries_is_consistent(
    spool, path, folder, make, open_spool
) -> None:
    for _ in range(20):
        await spool.accept(make(content=LARGE))
    going = True

    async def traffic() -> None:
        while going:
            (claim,) = (await spool.accept(make(content=LARGE))).claims
            await spool.record(ClaimResult(claim, 5, {1: OK}))

    moving = asyncio.gather(*(traffic() for _ in range(4)))
    copied = await asyncio.to_thread(SqliteStorage(path).back_up, folder)
    going = False
    await moving
    assert copied.missing == ()
    copy = await opened(open_spool, folder)
    assert (await copy.counts()).unaccounted == 0
    named = apsw.Connection(str(copied.database)).execute("SELECT id, file FROM content").get
    assert len(named) >= 20
    for content_id, _ in named:
        assert await copy.read_content(content_id) == LARGE
    assert sorted(file for _, file in named) == sorted(
        one.name for one in copied.contents.iterdir()
    )
    await copy.stop()


async def test_a_content_removed_during_the_backup_is_not_reported_missing(
    spool, path, folder, make, monkeypatch
) -> None:
    """Its file no longer exists, so the backup must be of a later time."""
    contents = contents_of(path)
    claims = [(await spool.accept(make(content=LARGE))).claims[0] for _ in range(3)]
    taken, kept, missed = sorted(claims, key=lambda claim: claim.message.id)
    loop = asyncio.get_running_loop()
    really = storage.link_or_copy

    def recorded_first(source: Path, target: Path) -> None:
        if source.name == f"{missed.message.id}-0" and source.exists():
            for claim in (taken, missed):
                claim_result = spool.record(ClaimResult(claim, 5, {1: OK}))
                asyncio.run_coroutine_threadsafe(claim_result, loop).result(5)
                (contents / f"{claim.message.id}-0").unlink(missing_ok=True)
        really(source, target)

    monkeypatch.setattr(storage, "link_or_copy", recorded_first)
    copied = await asyncio.to_thread(SqliteStorage(path).back_up, folder)
    assert copied.missing == ()
    assert copied.counts["entries"] == {"queued": 1}
    assert [one.name for one in copied.contents.iterdir()] == [f"{kept.message.id}-0"]


async def test_a_lost_content_is_reported(spool, path, folder, make) -> None:
    (claim,) = (await spool.accept(make(content=LARGE))).claims
    (contents_of(path) / f"{claim.message.id}-0").unlink()
    copied = await asyncio.to_thread(SqliteStorage(path).back_up, folder)
    assert copied.missing == (f"{claim.message.id}-0",)


async def test_contents_are_copied_where_hard_links_are_impossible(
    spool, path, folder, make, monkeypatch
):
    (claim,) = (await spool.accept(make(content=LARGE))).claims

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    copied = await asyncio.to_thread(SqliteStorage(path).back_up, folder)
    (file,) = copied.contents.iterdir()
    assert (file.read_bytes(), file.stat().st_nlink, file.stat().st_mode & 0o777) == (
        LARGE, 1, 0o600,
    )  # fmt: skip
    assert file.name == f"{claim.message.id}-0"


async def test_no_backup_is_started_without_free_space(spool, path, folder, monkeypatch) -> None:
    full = SimpleNamespace(
        f_frsize=1024, f_blocks=1024, f_bavail=7, f_files=9, f_favail=9, f_flag=0
    )
    monkeypatch.setattr(disk_space.os, "statvfs", lambda _: full)
    with pytest.raises(SpoolFullError):
        SqliteStorage(path).back_up(folder)
    assert list(folder.iterdir()) == []


async def test_a_damaged_spool_is_reported_with_its_copy(path, folder, make, open_spool) -> None:
    spool = await opened(open_spool, path.parent)
    for _ in range(50):
        await spool.accept(make())
    await spool.stop()
    octets = bytearray(path.read_bytes())
    root = (
        apsw.Connection(str(path))
        .execute("SELECT rootpage FROM sqlite_schema WHERE name = 'recipient'")
        .get
    )
    octets[(root - 1) * 4096 : (root - 1) * 4096 + 200] = b"\xff" * 200
    path.write_bytes(octets)
    with pytest.raises(SpoolError, match="damaged, and its copy too"):
        SqliteStorage(path).back_up(folder)


def test_a_spool_of_an_older_schema_is_refused(path: Path, folder: Path, monkeypatch) -> None:
    open_database(path).close()
    next_schema.use(monkeypatch.setattr)
    with pytest.raises(SpoolFormatError, match="a start brings it forward"):
        SqliteStorage(path).back_up(folder)


async def test_backup_size(spool, path, make) -> None:
    await spool.accept(make(content=LARGE))
    extent = SqliteStorage(path).backup_size()
    assert extent["contents"] == {"files": 1, "bytes": len(LARGE)}
    assert extent["database"]["bytes"] >= 4096


def test_the_copy_of_another_kind_of_spool_is_none(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "spool.dump").touch()
    with (
        pytest.raises(FileNotFoundError, match="has no copy of a spool"),
        SqliteStorage(path).restored(folder),
    ):
        pass
    assert not path.exists()
