"""The spool's Protocol, on the real SQLite file."""

import asyncio
from pathlib import Path

import apsw
import pytest

from relay.message.envelope import ForwardPath
from relay.message.lifecycle import RecipientState
from relay.message.outcome import Evidence, Failed, Relayed
from relay.spool.sqlite.content_files import INLINE_BYTES_MAX
from relay.spool.types import (
    DueQuery,
    NewRecipient,
    Selector,
    Settlement,
    SpoolError,
    SpoolFormatError,
)

OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok", "mx.a.test", remote=True))


NO = Failed(Evidence("5.1.1", "550 5.1.1 no such user", "mx.a.test", remote=True))


async def test_large_contents_are_files_and_are_removed_with_their_entry(
    spool, make, tmp_path: Path
) -> None:
    large = b"x" * (INLINE_BYTES_MAX + 1)
    claim = (await spool.accept(make(content=large))).claims[0]
    files = tmp_path / "spool.sqlite-content"
    assert claim.content is None
    assert [path.stat().st_size for path in files.iterdir()] == [len(large)]
    assert await spool.read_content(claim.content_id) == large
    await spool.settle(Settlement(claim, 5, {1: OK}))
    with pytest.raises(SpoolError):  # the reader runs jobs in order, so the removal has run
        await spool.read_content(claim.content_id)
    assert list(files.iterdir()) == []


async def test_unaccounted_is_zero_and_rises_when_a_row_is_lost(
    spool, make, tmp_path: Path
) -> None:
    final = NewRecipient(
        ForwardPath("bad@example.test"), state=RecipientState.FAILED, status="5.1.1", reply="550"
    )
    await spool.accept(make({"mx:a.test": ["x@a.test", "y@a.test"]}, final_recipients=(final,)))
    claim = (await spool.accept(make())).claims[0]
    await spool.settle(Settlement(claim, 5, {1: NO}))
    counts = await spool.counts()
    assert counts.unaccounted == 0
    assert counts.entries["queued"] == 1
    other = apsw.Connection(str(tmp_path / "spool.sqlite"))
    other.execute("DELETE FROM recipient WHERE address = 'y@a.test'")
    other.close()
    assert (await spool.counts()).unaccounted == 1


async def test_concurrent_accepts_share_commits(spool, make) -> None:
    await asyncio.gather(*(spool.accept(make()) for _ in range(50)))
    samples = {
        s.name: s.value for s in spool._metrics.commit_batch.collect()[0].samples if not s.labels
    }
    assert samples["relay_commit_batch_size_sum"] >= 50
    assert samples["relay_commit_batch_size_count"] < 50


async def test_an_unreadable_entry_does_not_block_others(
    spool, make, clock, tmp_path: Path
) -> None:
    damaged = (await spool.accept(make(), claim=False)).queue_id
    whole = (await spool.accept(make(), claim=False)).queue_id
    other = apsw.Connection(str(tmp_path / "spool.sqlite"))
    other.execute("UPDATE entry SET next_hop = '?' WHERE message_id = ?", (damaged,))
    other.close()
    (claim,) = (await spool.claim_due(clock.time_us(), 10, DueQuery())).claims
    assert claim.message.id == whole
    listed = await spool.queue_admin.list(Selector(all=True), limit=10)
    assert {one["id"] for one in listed} == {damaged, whole}
    assert (await spool.counts()).unaccounted == 0


async def test_other_users_cannot_read_the_files(spool, make, tmp_path: Path) -> None:
    await spool.accept(make())
    found = open_to_others(tmp_path)
    assert set(found) > {"spool.sqlite", "spool.sqlite-wal"}
    assert set(found.values()) == {0}


def open_to_others(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o077 for path in folder.glob("spool.sqlite*")}


@pytest.mark.parametrize(
    ("make_file", "words"),
    [
        (lambda path: path.write_bytes(b"not a database at all " * 200), "not a spool"),
        (lambda path: apsw.Connection(str(path)).execute("PRAGMA user_version = 99"), "before 0.2"),
    ],
    ids=["no database", "before the first release"],
)
def test_a_file_that_is_not_a_spool_is_reported(tmp_path: Path, open_spool, make_file, words):
    path = tmp_path / "spool.sqlite"
    make_file(path)
    with pytest.raises(SpoolFormatError, match=words):
        open_spool(path)
