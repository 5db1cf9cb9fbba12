"""What a new owner finds and leaves: claims of a dead one, files that no entry needs."""

from dataclasses import replace
from pathlib import Path

import pytest

from relay.message.lifecycle import State
from relay.message.outcome import Evidence, Relayed
from relay.spool.sqlite.contents import INLINE_BYTES_MAX
from relay.spool.types import NewRecipient, Settlement, SpoolUnavailableError

LARGE = b"x" * (INLINE_BYTES_MAX + 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite-content"


def names(files: Path) -> list[str]:
    return [path.name for path in files.iterdir()]


async def test_what_a_dead_owner_had_claimed_is_an_indeterminate_attempt_of_each_recipient(
    path: Path, make, clock, open_spool
) -> None:
    dead = open_spool(path)
    await dead.start()
    claim = (await dead.accept(make({"mx:a.test": ["x@a.test", "y@a.test"]}))).claims[0]
    await dead.settle(Settlement(claim, 5, {1: Relayed(Evidence("2.0.0", "250"))}, due_us=6))
    await dead.claim_due(6, 10)
    await dead.stop()
    alive = open_spool(path)
    assert await alive.start() == 1
    (taken,) = await alive.claim_due(clock.time_us(), 10)
    journey = await alive.journey(claim.message.id)
    await alive.stop()
    assert taken.epoch > claim.epoch
    assert taken.attempts == 2  # it counts, so that a message that kills us expires as well
    assert [one.address for one in taken.recipients] == ["y@a.test"]
    done, cut_off = journey["recipients"]
    assert (done["state"], done["attempts"]) == ("relayed", [])
    assert cut_off["state"] == "deferred"
    assert [one["outcome"] for one in cut_off["attempts"]] == ["indeterminate"]


async def test_a_start_removes_the_files_that_no_entry_needs(
    path: Path, files: Path, make, open_spool
) -> None:
    spool = open_spool(path)
    await spool.start()
    claim = (await spool.accept(make(content=LARGE))).claims[0]
    await spool.stop()
    (needed,) = names(files)
    for name in ("orphan-0", "orphan", f"{needed}.part", f"{claim.message.id}-1"):
        (files / name).write_bytes(b"x")
    spool = open_spool(path)
    await spool.start()
    await spool.stop()
    assert names(files) == [needed]


async def test_a_content_that_no_entry_needs_is_not_stored(spool, make, files: Path) -> None:
    refused = NewRecipient("x@a.test", state=State.FAILED, status="5.7.1", reply="550")
    await spool.accept(make({}, content=LARGE, final_recipients=(refused,)))
    assert names(files) == []


async def test_a_report_that_cannot_be_stored_leaves_no_file_of_its_message(
    spool, make, files: Path
) -> None:
    impossible = make(content=LARGE, id="n" * 300)
    with pytest.raises(SpoolUnavailableError):
        await spool.accept(make(content=LARGE), reports=(impossible,))
    assert names(files) == []


async def test_an_acceptance_that_fails_leaves_no_file(spool, make, files: Path) -> None:
    message = make(content=LARGE)
    await spool.accept(make(), submission_key="once")
    await spool.accept(message, submission_key="once")
    with pytest.raises(UnicodeEncodeError):
        await spool.accept(replace(message, subject="\ud800"))  # no such text can be stored
    assert names(files) == []


async def test_what_was_never_started_can_be_stopped(path: Path, open_spool) -> None:
    spool = open_spool(path)
    await spool.stop()
    again = open_spool(path)
    assert await again.start() == 0
    await again.stop()
