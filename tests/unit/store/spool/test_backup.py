"""A backup of a running spool: consistent, complete, and usable in place of the spool."""

import asyncio
from pathlib import Path

import apsw
import pytest

from relay.store.spool.sqlite.content_files import INLINE_BYTES_MAX
from relay.store.spool.sqlite.database import open_database
from relay.store.spool.sqlite.spool_files import contents_of
from relay.store.spool.sqlite.storage import SqliteStorage
from relay.store.spool.types import (
    SpoolError,
    SpoolFormatError,
)
from tests.support import next_schema

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
