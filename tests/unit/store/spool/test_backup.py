"""A backup of a running spool: consistent, complete, and usable in place of the spool."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

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
)
from tests.support import next_schema
from tests.support.operator import OK

LARGE = b"Subject: large\r\n\r\n" + b"x" * INLINE_BYTES_MAX


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


async def test_a_lost_content_is_reported(spool, path, folder, make) -> None:
    (claim,) = (await spool.accept(make(content=LARGE))).claims
    (contents_of(path) / f"{claim.message.id}-0").unlink()
    copied = await asyncio.to_thread(SqliteStorage(path).back_up, folder)
    assert copied.missing == (f"{claim.message.id}-0",)


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
