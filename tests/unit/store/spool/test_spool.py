"""The spool's Protocol, on the real SQLite file."""

from pathlib import Path

import pytest

from relay.base.message.outcome import Evidence, Relayed
from relay.store.spool.sqlite.content_files import INLINE_BYTES_MAX
from relay.store.spool.types import ClaimResult, SpoolError, SpoolFormatError

OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok", "mx.a.test", remote=True))


async def test_large_contents_are_files_and_are_removed_with_their_entry(
    spool, make, tmp_path: Path
) -> None:
    large = b"x" * (INLINE_BYTES_MAX + 1)
    claim = (await spool.accept(make(content=large))).claims[0]
    files = tmp_path / "spool.sqlite-content"
    assert claim.content is None
    assert [path.stat().st_size for path in files.iterdir()] == [len(large)]
    assert await spool.read_content(claim.content_id) == large
    await spool.record(ClaimResult(claim, 5, {1: OK}))
    with pytest.raises(SpoolError):  # the reader runs jobs in order, so the removal has run
        await spool.read_content(claim.content_id)
    assert list(files.iterdir()) == []


async def test_other_users_cannot_read_the_files(spool, make, tmp_path: Path) -> None:
    await spool.accept(make())
    found = open_to_others(tmp_path)
    assert set(found) > {"spool.sqlite", "spool.sqlite-wal"}
    assert set(found.values()) == {0}


def open_to_others(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o077 for path in folder.glob("spool.sqlite*")}


def test_a_file_that_is_not_a_spool_is_reported(tmp_path: Path, open_spool):
    path = tmp_path / "spool.sqlite"
    path.write_bytes(b"not a database at all " * 200)
    with pytest.raises(SpoolFormatError, match="not a spool"):
        open_spool(path)
