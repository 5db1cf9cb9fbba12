"""Old files in tmp/ go after 36 hours, at first use and then once a day; nothing else does."""

import os

import pytest

from relay.base.advanceable_clock import AdvanceableClock
from relay.base.clock import SystemClock

ALICE = "alice@example.test"
HOUR_US = 3600 * 1_000_000


@pytest.fixture
async def home(place, store):
    """The mailbox, made but not written to by any store that is asked later."""
    place.clock.now_us = SystemClock().time_us()  # the files' own times are the machine's
    await store.folders.every(ALICE)
    return place.root / "example.test/alice"


async def use(store):
    await store.deliver(ALICE, unique="0123456789abcdef.1", content=b"Subject: s\r\n\r\n")


@pytest.mark.parametrize("folder", ["", ".Archive", ".Of others"])
@pytest.mark.parametrize(("hours", "stays"), [(35, True), (37, False)])
async def test_old_files_go_in_every_folder(place, home, folder, hours, stays):
    for name in ("cur", "tmp"):
        (home / folder / name).mkdir(parents=True, exist_ok=True)
    (home / folder / "tmp/1.M1P1.other").write_bytes(b"half")
    (home / folder / "tmp/directory").mkdir()
    os.mkfifo(home / folder / "tmp/fifo")
    place.clock.now_us += hours * HOUR_US
    await use(place.store())
    expected = {"1.M1P1.other", "fifo", "directory"} if stays else {"directory"}
    assert {path.name for path in (home / folder / "tmp").iterdir()} == expected


@pytest.mark.parametrize("days", [3, -3, "advanced"])
async def test_no_jump_or_advance_of_the_clock_makes_a_file_old(place, home, days):
    left = home / "tmp/1.M1P1.other"
    left.write_bytes(b"being written")
    if days == "advanced":
        place.clock = AdvanceableClock(advanced_s=3 * 86400)
    else:
        place.clock.jumped_us = days * 24 * HOUR_US
    await use(place.store())
    assert left.exists()


async def test_a_mailbox_in_use_is_cleaned_once_a_day(place, store, home):
    await use(store)
    left = home / "tmp/1.M1P1.other"
    left.write_bytes(b"half")
    place.clock.now_us += 37 * HOUR_US
    place.clock.now_s += 23 * 3600
    await use(store)
    assert left.exists()
    place.clock.now_s += 3601
    await use(store)
    assert not left.exists()


async def test_half_written_drafts_go_at_first_use_only(place, store, home, draft):
    ours = home / ".Drafts/tmp/1.R0123456789abcdef_1.h"
    ours.write_bytes(b"half")
    theirs = ours.with_name("1.M1P1.other")
    theirs.write_bytes(b"half")
    await store.messages.create(ALICE, draft())
    assert (ours.exists(), theirs.exists()) == (False, True)
    ours.write_bytes(b"in work")
    place.clock.now_s += 25 * 3600
    await store.messages.create(ALICE, draft())
    assert ours.exists()
