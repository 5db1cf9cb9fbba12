"""What a new owner finds and leaves: claims of a dead one, files that no entry needs."""

import asyncio
from pathlib import Path
from unittest.mock import Mock

import apsw
import pytest

from relay.store.spool.sqlite import content_files
from relay.store.spool.sqlite.content_files import INLINE_BYTES_MAX
from relay.store.spool.sqlite.spool_files import last_commit_of
from relay.store.spool.types import SpoolError

LARGE = b"x" * (INLINE_BYTES_MAX + 1)


def names(files: Path) -> list[str]:
    return [path.name for path in files.iterdir()]


async def test_abandoned_held_and_captured_entries_keep_their_state(
    path: Path, make, clock, open_spool, running
) -> None:
    """It was claimed to be expired; there was no attempt."""
    async with running(path) as dead:
        claims = [(await dead.accept(make())).claims[0] for _ in range(2)]
    connection = apsw.Connection(str(path))
    for claim, state in zip(claims, ("held", "captured"), strict=True):
        connection.execute(
            "UPDATE entry SET state = ? WHERE message_id = ?", (state, claim.message.id)
        )
    connection.close()
    alive = open_spool(path)
    assert await alive.start() == 2
    counts = await alive.counts()
    journeys = [await alive.journey(claim.message.id) for claim in claims]
    await alive.stop()
    assert (counts.entries["held"], counts.entries["captured"]) == (1, 1)
    assert [one.recipients[0].attempts for one in journeys] == [(), ()]


async def test_stale_content_files_are_removed(path: Path, files: Path, make, running) -> None:
    async with running(path) as spool:
        claim = (await spool.accept(make(content=LARGE))).claims[0]
    last_commit_of(path).touch()  # as a crash leaves it
    (needed,) = names(files)
    for name in ("orphan-0", "orphan", f"{needed}.part", f"{claim.message.id}-1"):
        (files / name).write_bytes(b"x")
    async with running(path) as spool:
        assert await spool.maintenance.sweep() == 4
    assert names(files) == [needed]


async def test_files_of_a_message_being_accepted_are_kept(spool, make, files: Path) -> None:
    """Between the file and the row, at every moment."""
    accepting = asyncio.gather(*(spool.accept(make(content=LARGE)) for _ in range(20)))
    removed = 0
    while not accepting.done():
        removed += await spool.maintenance.sweep()
    accepted = await accepting
    removed += await spool.maintenance.sweep()
    assert removed == 0
    for one in accepted:
        assert await spool.read_content(one.claims[0].content_id) == LARGE


async def test_a_content_that_cannot_be_made_durable_leaves_no_file(
    spool, make, files: Path, monkeypatch
) -> None:
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(content_files, "fsync_path", full)
    with pytest.raises(SpoolError):
        await spool.accept(make(content=LARGE))
    assert names(files) == []
