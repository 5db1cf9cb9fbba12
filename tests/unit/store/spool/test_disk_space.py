"""A nearly full disk: new mail is refused, queued mail is still delivered."""

import asyncio
import os
from types import SimpleNamespace

import pytest

from relay.store.spool.sqlite import disk_space
from relay.store.spool.sqlite.storage import SqliteStorage
from relay.store.spool.types import ClaimResult, Selector, SpoolFullError
from tests.support.operator import OK

MIB = 1024 * 1024


@pytest.fixture
def disk(monkeypatch):
    """A disk of 64 MiB as statvfs reports it; set `free_bytes` to change its free space. `asked`
    counts how often it was asked for.
    """
    figures = SimpleNamespace(free_bytes=0, asked=0)

    def statvfs(_path: os.PathLike[str]) -> SimpleNamespace:
        figures.asked += 1
        return SimpleNamespace(
            f_frsize=1024,
            f_blocks=64 * 1024,
            f_bavail=figures.free_bytes // 1024,
            f_files=0,
            f_favail=0,
            f_flag=0,
        )

    monkeypatch.setattr(disk_space.os, "statvfs", statvfs)
    return figures


@pytest.mark.parametrize(
    ("free_bytes", "size_bytes", "fits"),
    [(4 * MIB, 0, True), (4 * MIB, 1, False), (5 * MIB, MIB, True), (0, 0, False)],
)
def test_one_sixteenth_of_a_small_disk_is_kept_free(disk, tmp_path, free_bytes, size_bytes, fits):
    disk.free_bytes = free_bytes
    if fits:
        disk_space.check_free_space(tmp_path, size_bytes)
    else:
        with pytest.raises(SpoolFullError):
            disk_space.check_free_space(tmp_path, size_bytes)


async def test_a_refused_message_does_not_fail_an_outcome_of_its_batch(spool, make, disk) -> None:
    disk.free_bytes = 64 * MIB
    claim = (await spool.accept(make())).claims[0]
    disk.free_bytes = MIB
    *refused, recorded = await asyncio.gather(  # one batch
        *(spool.accept(make()) for _ in range(3)),
        spool.record(ClaimResult(claim, 5, {1: OK})),
        return_exceptions=True,
    )
    assert [type(each) for each in refused] == [SpoolFullError] * 3
    assert recorded == (True, ())
    assert await spool.queue_admin.list(Selector(all=True), limit=10) == []


async def test_messages_of_a_batch_are_compared_with_the_free_space_together(spool, make, disk):
    disk.free_bytes, disk.asked = 4 * MIB + 3000, 0
    both = await asyncio.gather(*(spool.accept(make(contents=(b"x" * 2000,))) for _ in range(2)))
    assert all(one.claims for one in both)  # each alone fits
    assert disk.asked == 3
    disk.free_bytes, disk.asked = 64 * MIB, 0
    await asyncio.gather(*(spool.accept(make(contents=(b"x" * 2000,))) for _ in range(9)))
    assert disk.asked == 1


async def test_a_repeated_submission_needs_no_free_space(spool, make, disk) -> None:
    disk.free_bytes = 64 * MIB
    first = await spool.accept(make(), submission_key="draft.1")
    disk.free_bytes = 0
    again = await spool.accept(make(), submission_key="draft.1")
    assert (again.repeated, again.queue_id) == (True, first.queue_id)


async def test_a_refused_message_leaves_no_file(spool, make, disk, tmp_path) -> None:
    disk.free_bytes = MIB
    with pytest.raises(SpoolFullError):
        await spool.accept(make(contents=(b"x" * 300_000,)))
    assert [path for path in tmp_path.rglob("*-content/*") if path.is_file()] == []


async def test_no_backup_is_begun_without_room(spool, disk, path, tmp_path) -> None:
    (tmp_path / "copy").mkdir()
    disk.free_bytes = 4096
    with pytest.raises(SpoolFullError):
        SqliteStorage(path).back_up(tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []
