"""The reserve file on a full disk: outcomes and bounces are written, new mail is refused."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from relay.base.message.envelope import ForwardPath, Source
from relay.base.message.nexthop import LOCAL
from relay.base.message.outcome import Evidence, Failed
from relay.store.spool.sqlite.disk_space import ReserveFile
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.types import ClaimResult, DueQuery, NewEntry, NewRecipient, SpoolFullError
from tests.support.disks import filled, journaled_disk, small_disk
from tests.support.manual_clock import ManualClock
from tests.support.operator import OK
from tests.support.spools import new_spool

MIB = 1024 * 1024
NO = Failed(Evidence("5.1.1", "550 5.1.1 no such user", "mx.a.test", remote=True))
IN_A_FILE, INLINE = 300_000, 120_000
SIZE = MIB // 2


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request, tmp_path: Path):
    path = tmp_path / "disk"
    path.mkdir()
    with ExitStack() as mounted:
        if request.param == "tmpfs":
            mounted.enter_context(small_disk(path, size_bytes=8 * MIB))
        else:
            mounted.enter_context(journaled_disk(path, size_bytes=16 * MIB))
        yield path


@contextmanager
def full(path: Path):
    """Fill the disk. Some file systems free blocks late, so it is filled three times."""
    folders = [path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(filled(folder))
        yield


@pytest.fixture
async def open_here(disk: Path, clock: ManualClock) -> AsyncIterator:
    opened = []

    async def open_here(size_bytes: int = SIZE) -> SqliteSpool:
        kept = ReserveFile(disk / "ballast", size_bytes=size_bytes, reserve_bytes=64 * MIB)
        spool = new_spool(disk / "spool.sqlite", clock, reserve_file=kept)
        opened.append(spool)
        await spool.start()
        spool.reserve_file.make()
        return spool

    yield open_here
    await opened[-1].stop()


def failed(claim, make, size_bytes: int, *, reports: int = 1) -> ClaimResult:
    """A permanent failure with bounces of `size_bytes` each."""
    entries = (NewEntry(LOCAL, (NewRecipient(ForwardPath("alice@example.test")),)),)
    bounces = tuple(
        make(
            contents=(b"Subject: report\r\n\r\n" + b"x" * size_bytes,),
            entries=entries,
            reverse_path="",
            source=Source.REPORT,
        )
        for _ in range(reports)
    )
    return ClaimResult(claim, 5, {1: NO}, reports=bounces)


@pytest.mark.parametrize(("size_bytes", "reports"), [(IN_A_FILE, 1), (INLINE, 1), (INLINE // 6, 5)])
async def test_a_bounce_is_written_on_a_full_disk(disk, open_here, make, size_bytes, reports):
    spool = await open_here()
    claim = (await spool.accept(make())).claims[0]
    assert (disk / "ballast").stat().st_blocks * 512 >= SIZE
    with full(disk):
        held, claims = await spool.record(failed(claim, make, size_bytes, reports=reports))
        assert held
        assert len(claims) == reports
        assert not (disk / "ballast").exists()
        assert spool.reserve_file.missing_bytes == SIZE
        with pytest.raises(SpoolFullError):
            await spool.accept(make())
        outcomes = [await spool.record(ClaimResult(one, 6, {1: OK})) for one in claims]
        assert outcomes == [(True, ())] * reports
        spool.reserve_file.make()
        assert spool.reserve_file.missing_bytes == SIZE  # there is no space for it yet
    spool.reserve_file.make()
    assert spool.reserve_file.missing_bytes == 0
    assert (disk / "ballast").stat().st_blocks * 512 >= SIZE
    assert (await spool.accept(make())).claims


async def test_new_mail_never_uses_the_reserve_file(disk, open_here, make):
    spool = await open_here()
    with full(disk):
        answers = await asyncio.gather(
            *(spool.accept(make(contents=(b"x" * size,))) for size in (10, INLINE, IN_A_FILE)),
            return_exceptions=True,
        )
        assert [type(one) for one in answers] == [SpoolFullError] * 3
        assert (disk / "ballast").exists()


async def test_the_space_of_a_released_reserve_file_is_not_for_new_mail(disk, open_here, make):
    spool = await open_here()
    assert spool.reserve_file.release()
    assert not spool.reserve_file.release()
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    reserve = os.statvfs(disk).f_blocks * os.statvfs(disk).f_frsize // 16
    spool.reserve_file.check_free_space(free - reserve - SIZE)
    with pytest.raises(SpoolFullError):
        spool.reserve_file.check_free_space(free - reserve - SIZE + 4096)


async def test_a_spool_opens_on_a_full_disk(disk, open_here, make, clock):
    spool = await open_here()
    await spool.accept(make(), claim=False)
    await spool.stop()
    with full(disk):
        again = await open_here()
        claim = (await again.claim_due(clock.time_us(), 10, DueQuery())).claims[0]
        assert (await again.record(ClaimResult(claim, 5, {1: OK})))[0]


def test_a_truncated_or_oversized_reserve_file_is_repaired(tmp_path):
    path = tmp_path / "ballast"
    path.write_bytes(b"half")
    ReserveFile(path, size_bytes=MIB).make()
    assert (path.stat().st_size, path.stat().st_blocks * 512 >= MIB) == (MIB, True)
    os.truncate(path, 8 * MIB)  # a sparse file reserves no space
    ReserveFile(path, size_bytes=2 * MIB).make()
    assert (path.stat().st_size, path.stat().st_blocks * 512 >= 2 * MIB) == (2 * MIB, True)
    ReserveFile(path, size_bytes=MIB).make()
    assert path.stat().st_size == MIB
