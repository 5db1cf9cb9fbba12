"""A backup of a running spool: consistent, complete, and usable in place of the spool."""

import asyncio
from pathlib import Path

import apsw
import pytest

from relay.store.spool.sqlite import storage
from relay.store.spool.sqlite.content_files import INLINE_BYTES_MAX
from relay.store.spool.sqlite.database import open_database
from relay.store.spool.sqlite.spool_files import contents_of
from relay.store.spool.sqlite.storage import SqliteStorage
from relay.store.spool.types import ClaimResult, SpoolError, SpoolFormatError
from tests.support import next_schema
from tests.support.operator import OK

LARGE = b"Subject: large\r\n\r\n" + b"x" * INLINE_BYTES_MAX


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "copy").mkdir()
    return tmp_path / "copy"


async def test_a_lost_content_is_reported(spool, path, folder, make) -> None:
    (claim,) = (await spool.accept(make(content=LARGE))).claims
    (contents_of(path) / f"{claim.message.id}-0").unlink()
    copied = await asyncio.to_thread(SqliteStorage(path).back_up, folder)
    assert copied.missing == (f"{claim.message.id}-0",)


async def test_a_damaged_spool_is_reported_with_its_copy(path, folder, make, running) -> None:
    async with running(path) as spool:
        for _ in range(50):
            await spool.accept(make())
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


async def test_a_content_removed_during_the_backup_is_not_missing(
    spool, path, folder, make, monkeypatch
) -> None:
    """The backup is of a later time, and has no more than is needed then."""
    claims = [(await spool.accept(make(content=LARGE))).claims[0] for _ in range(3)]
    taken, kept, missed = [f"{claim.message.id}-0" for claim in claims]
    loop, really = asyncio.get_running_loop(), storage.link_or_copy

    def recorded_first(source: Path, target: Path) -> None:
        if source.name == missed and source.exists():
            for claim in (claims[0], claims[2]):
                recorded = spool.record(ClaimResult(claim, 5, {1: OK}))
                asyncio.run_coroutine_threadsafe(recorded, loop).result(5)
            for name in (taken, missed):
                (contents_of(path) / name).unlink(missing_ok=True)
        really(source, target)

    monkeypatch.setattr(storage, "link_or_copy", recorded_first)
    copied = await asyncio.to_thread(SqliteStorage(path).back_up, folder)
    assert (copied.missing, [one.name for one in copied.contents.iterdir()]) == ((), [kept])
