"""From figures to levels and back, and what each level stops."""

import pytest
from msgspec import structs

from relay.base.pressure import (
    MAILBOX_REASONS,
    QUEUE_REASONS,
    Bounds,
    ConcurrencyCounter,
    Disk,
    Measurements,
    Pressure,
    PressureLevel,
    PressureReason,
    PressureState,
    assess,
)
from tests.support.tables import each_row

MIB = 1024 * 1024
GIB = 1024 * MIB
BOUNDS = Bounds(disk_free=64 * MIB, queue_entries=1000, memory=GIB, commit_latency_s=5.0)
ROOMY = Disk(size_bytes=100 * GIB, free_bytes=50 * GIB, files=10_000_000, files_free=9_000_000)
CALM = Measurements(spool=ROOMY, mail=ROOMY)


def with_free(free_bytes: int, *, size_bytes: int = 100 * GIB) -> Disk:
    return structs.replace(ROOMY, size_bytes=size_bytes, free_bytes=free_bytes)


def with_files(free: int, *, of: int = 10_000_000) -> Disk:
    return structs.replace(ROOMY, files=of, files_free=free)


def levels(**changed) -> dict[PressureReason, PressureLevel]:
    return dict(assess(PressureState(), structs.replace(CALM, **changed), BOUNDS).levels)


NORMAL, SLOW, REFUSE = PressureLevel.NORMAL, PressureLevel.SLOW, PressureLevel.REFUSE
SMALL = 8 * MIB
LEVELS = [
    (PressureReason.SPOOL_DISK, "spool", with_free(129 * MIB), NORMAL),
    (PressureReason.SPOOL_DISK, "spool", with_free(128 * MIB), SLOW),
    (PressureReason.SPOOL_DISK, "spool", with_free(65 * MIB), SLOW),
    (PressureReason.SPOOL_DISK, "spool", with_free(64 * MIB), REFUSE),
    (PressureReason.SPOOL_DISK, "spool", with_free(0), REFUSE),
    (PressureReason.SPOOL_DISK, "spool", with_free(MIB, size_bytes=SMALL), SLOW),
    (PressureReason.SPOOL_DISK, "spool", with_free(2 * MIB, size_bytes=SMALL), NORMAL),
    (PressureReason.SPOOL_DISK, "spool", with_free(MIB // 2, size_bytes=SMALL), REFUSE),
    (PressureReason.SPOOL_DISK, "spool", structs.replace(ROOMY, is_writable=False), REFUSE),
    (PressureReason.SPOOL_DISK, "spool", None, REFUSE),
    (PressureReason.MAIL_DISK, "mail", with_free(128 * MIB), SLOW),
    (PressureReason.MAIL_DISK, "mail", with_free(64 * MIB), REFUSE),
    (PressureReason.MAIL_DISK, "mail", None, REFUSE),
    (PressureReason.SPOOL_FILES, "spool", with_files(2001), NORMAL),
    (PressureReason.SPOOL_FILES, "spool", with_files(2000), SLOW),
    (PressureReason.SPOOL_FILES, "spool", with_files(1000), REFUSE),
    (PressureReason.SPOOL_FILES, "spool", with_files(0), REFUSE),
    (PressureReason.SPOOL_FILES, "spool", with_files(0, of=0), NORMAL),  # btrfs has no number
    (PressureReason.MAIL_FILES, "mail", with_files(10, of=160), REFUSE),
    (PressureReason.QUEUE, "queue_entries", 899, NORMAL),
    (PressureReason.QUEUE, "queue_entries", 900, SLOW),
    (PressureReason.QUEUE, "queue_entries", 1000, REFUSE),
    (PressureReason.MEMORY, "memory_bytes", GIB // 2, NORMAL),
    (PressureReason.MEMORY, "memory_bytes", 900 * MIB, SLOW),
    (PressureReason.MEMORY, "memory_bytes", GIB, REFUSE),
    (PressureReason.COMMITS, "commit_s", 1.9, NORMAL),
    (PressureReason.COMMITS, "commit_s", 2.0, SLOW),
    (PressureReason.COMMITS, "commit_s", 5.0, REFUSE),
    (PressureReason.BACKLOG, "backlog", 0.4, NORMAL),
    (PressureReason.BACKLOG, "backlog", 0.5, SLOW),
    (PressureReason.BACKLOG, "backlog", 1.0, REFUSE),
]


@each_row("reason, figure, value, level", LEVELS)
def test_where_each_level_begins(reason, figure, value, level):
    assert levels(**{figure: value}).get(reason, NORMAL) is level


def test_the_room_of_the_reserve_file_is_nobodys():
    free = {"spool": with_free(140 * MIB)}
    assert levels(**free) == {}
    assert levels(**free, kept_bytes=16 * MIB) == {PressureReason.SPOOL_DISK: PressureLevel.SLOW}
    assert levels(**free, kept_bytes=80 * MIB) == {PressureReason.SPOOL_DISK: PressureLevel.REFUSE}


# Of 1000 entries: 1000 refuses until there are fewer than 900; 900 is slow until fewer than 810.
@pytest.mark.parametrize(
    "course",
    [
        [(999, 1), (1000, 2), (950, 2), (900, 2), (899, 1), (890, 1), (810, 1), (809, 0)],
        [(900, 1), (899, 1), (811, 1), (810, 1), (809, 0), (899, 0), (900, 1)],
        [(5000, 2), (0, 0)],
    ],
)
def test_a_level_ends_only_behind_a_margin(course):
    state = PressureState()
    for entries, level in course:
        state = assess(state, structs.replace(CALM, queue_entries=entries), BOUNDS)
        assert state.level == level, entries


def test_reasons_are_those_of_the_highest_level():
    figures = structs.replace(CALM, queue_entries=2000, memory_bytes=900 * MIB, commit_s=9.0)
    state = assess(PressureState(), figures, BOUNDS)
    assert state.level is PressureLevel.REFUSE
    assert state.reasons == (PressureReason.QUEUE, PressureReason.COMMITS)
    assert state.has(PressureReason.MEMORY)
    assert PressureState().reasons == ()


def test_a_full_mailbox_disk_stops_no_message():
    pressure = Pressure()
    pressure.state = assess(PressureState(), structs.replace(CALM, mail=with_free(0)), BOUNDS)
    assert pressure.state.level is PressureLevel.REFUSE
    assert pressure.state.queue is PressureLevel.NORMAL
    assert not pressure.rejects_untrusted
    assert pressure.rejection() == ""
    assert pressure.state.refusing(MAILBOX_REASONS) is PressureReason.MAIL_DISK
    assert pressure.state.refusing(QUEUE_REASONS) is None


@pytest.mark.parametrize(
    ("entries", "away", "rejection"),
    [(0, False, ""), (900, True, ""), (1000, True, "the queue is full")],
)
def test_strangers_are_turned_away_first(entries, away, rejection):
    pressure = Pressure()
    pressure.state = assess(PressureState(), structs.replace(CALM, queue_entries=entries), BOUNDS)
    assert (pressure.rejects_untrusted, pressure.rejection()) == (away, rejection)


@pytest.mark.parametrize(
    ("size_bytes", "fits"), [(0, True), (136 * MIB, True), (136 * MIB + 1, False), (10**20, False)]
)
def test_a_message_is_asked_against_the_room(size_bytes, fits):
    pressure = Pressure()
    pressure.state = assess(
        PressureState(), structs.replace(CALM, spool=with_free(200 * MIB)), BOUNDS
    )
    assert (pressure.rejection(size_bytes) == "") is fits


def test_what_is_in_progress_is_counted_by_key_and_leaves_nothing_behind() -> None:
    counter = ConcurrencyCounter()
    with counter.counted("a"), counter.counted("a"), counter.counted(None):
        assert [counter.count(key) for key in ("a", "b", None)] == [2, 0, 0]
        assert not counter.has_room("a", per_key=2)
        assert counter.has_room("b", per_key=2)
        assert counter.has_room(None, per_key=1, in_all=4)
        assert not counter.has_room("b", per_key=2, in_all=3)
    assert (counter.total, counter._by_key) == (0, {})
