"""From figures to levels and back, and what each level stops."""

import itertools
from dataclasses import replace

import pytest

from relay.pressure import (
    OF_MAILBOXES,
    OF_QUEUE,
    Bounds,
    Disk,
    Figures,
    Level,
    Pressure,
    Reason,
    State,
    assess,
    words_of,
)

MIB = 1024 * 1024
GIB = 1024 * MIB
BOUNDS = Bounds(disk_free=64 * MIB, queue_entries=1000, memory=GIB, commit_latency_s=5.0)
ROOMY = Disk(size_bytes=100 * GIB, free_bytes=50 * GIB, files=10_000_000, files_free=9_000_000)
CALM = Figures(spool=ROOMY, mail=ROOMY)


def with_free(free_bytes: int, *, size_bytes: int = 100 * GIB) -> Disk:
    return replace(ROOMY, size_bytes=size_bytes, free_bytes=free_bytes)


def with_files(free: int, *, of: int = 10_000_000) -> Disk:
    return replace(ROOMY, files=of, files_free=free)


def levels(**changed) -> dict[Reason, Level]:
    return dict(assess(State(), replace(CALM, **changed), BOUNDS).levels)


@pytest.mark.parametrize(
    ("changed", "reason", "level"),
    [
        ({"spool": with_free(129 * MIB)}, Reason.SPOOL_DISK, Level.NORMAL),
        ({"spool": with_free(128 * MIB)}, Reason.SPOOL_DISK, Level.SLOW),
        ({"spool": with_free(65 * MIB)}, Reason.SPOOL_DISK, Level.SLOW),
        ({"spool": with_free(64 * MIB)}, Reason.SPOOL_DISK, Level.REFUSE),
        ({"spool": with_free(0)}, Reason.SPOOL_DISK, Level.REFUSE),
        ({"spool": with_free(MIB, size_bytes=8 * MIB)}, Reason.SPOOL_DISK, Level.SLOW),
        ({"spool": with_free(2 * MIB, size_bytes=8 * MIB)}, Reason.SPOOL_DISK, Level.NORMAL),
        ({"spool": with_free(MIB // 2, size_bytes=8 * MIB)}, Reason.SPOOL_DISK, Level.REFUSE),
        ({"spool": replace(ROOMY, is_writable=False)}, Reason.SPOOL_DISK, Level.REFUSE),
        ({"spool": None}, Reason.SPOOL_DISK, Level.REFUSE),
        ({"mail": with_free(128 * MIB)}, Reason.MAIL_DISK, Level.SLOW),
        ({"mail": with_free(64 * MIB)}, Reason.MAIL_DISK, Level.REFUSE),
        ({"mail": None}, Reason.MAIL_DISK, Level.REFUSE),
        ({"spool": with_files(2001)}, Reason.SPOOL_FILES, Level.NORMAL),
        ({"spool": with_files(2000)}, Reason.SPOOL_FILES, Level.SLOW),
        ({"spool": with_files(1000)}, Reason.SPOOL_FILES, Level.REFUSE),
        ({"spool": with_files(0)}, Reason.SPOOL_FILES, Level.REFUSE),
        ({"spool": with_files(0, of=0)}, Reason.SPOOL_FILES, Level.NORMAL),  # btrfs has no number
        ({"mail": with_files(10, of=160)}, Reason.MAIL_FILES, Level.REFUSE),
        ({"queue_entries": 899}, Reason.QUEUE, Level.NORMAL),
        ({"queue_entries": 900}, Reason.QUEUE, Level.SLOW),
        ({"queue_entries": 1000}, Reason.QUEUE, Level.REFUSE),
        ({"memory_bytes": GIB // 2}, Reason.MEMORY, Level.NORMAL),
        ({"memory_bytes": 900 * MIB}, Reason.MEMORY, Level.SLOW),
        ({"memory_bytes": GIB}, Reason.MEMORY, Level.REFUSE),
        ({"commit_s": 1.9}, Reason.COMMITS, Level.NORMAL),
        ({"commit_s": 2.0}, Reason.COMMITS, Level.SLOW),
        ({"commit_s": 5.0}, Reason.COMMITS, Level.REFUSE),
        ({"backlog": 0.4}, Reason.BACKLOG, Level.NORMAL),
        ({"backlog": 0.5}, Reason.BACKLOG, Level.SLOW),
        ({"backlog": 1.0}, Reason.BACKLOG, Level.REFUSE),
    ],
    ids=lambda value: str(value)[:60],
)
def test_where_each_level_begins(changed, reason, level):
    assert levels(**changed).get(reason, Level.NORMAL) is level


def test_the_ballasts_room_is_nobodys():
    free = {"spool": with_free(140 * MIB)}
    assert levels(**free) == {}
    assert levels(**free, kept_bytes=16 * MIB) == {Reason.SPOOL_DISK: Level.SLOW}
    assert levels(**free, kept_bytes=80 * MIB) == {Reason.SPOOL_DISK: Level.REFUSE}


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
    state = State()
    for entries, level in course:
        state = assess(state, replace(CALM, queue_entries=entries), BOUNDS)
        assert state.level == level, entries


def test_a_figure_that_trembles_changes_nothing():
    state, seen = State(), []
    for entries in itertools.islice(itertools.cycle((995, 1005)), 100):
        state = assess(state, replace(CALM, queue_entries=entries), BOUNDS)
        seen.append(state.level)
    assert [level for level, _ in itertools.groupby(seen)] == [Level.SLOW, Level.REFUSE]


def test_reasons_are_those_of_the_highest_level():
    figures = replace(CALM, queue_entries=2000, memory_bytes=900 * MIB, commit_s=9.0)
    state = assess(State(), figures, BOUNDS)
    assert state.level is Level.REFUSE
    assert state.reasons == (Reason.QUEUE, Reason.COMMITS)
    assert state.has(Reason.MEMORY)
    assert State().reasons == ()


def test_a_full_mailbox_disk_stops_no_message():
    pressure = Pressure()
    pressure.state = assess(State(), replace(CALM, mail=with_free(0)), BOUNDS)
    assert pressure.state.level is Level.REFUSE
    assert pressure.state.queue is Level.NORMAL
    assert not pressure.turns_strangers_away
    assert pressure.refusal() == ""
    assert pressure.state.refusing(OF_MAILBOXES) is Reason.MAIL_DISK
    assert pressure.state.refusing(OF_QUEUE) is None


@pytest.mark.parametrize(
    ("entries", "away", "refusal"),
    [(0, False, ""), (900, True, ""), (1000, True, "the queue is full")],
)
def test_strangers_are_turned_away_first(entries, away, refusal):
    pressure = Pressure()
    pressure.state = assess(State(), replace(CALM, queue_entries=entries), BOUNDS)
    assert (pressure.turns_strangers_away, pressure.refusal()) == (away, refusal)


@pytest.mark.parametrize(
    ("size_bytes", "fits"), [(0, True), (136 * MIB, True), (136 * MIB + 1, False), (10**20, False)]
)
def test_a_message_is_asked_against_the_room(size_bytes, fits):
    pressure = Pressure()
    pressure.state = assess(State(), replace(CALM, spool=with_free(200 * MIB)), BOUNDS)
    assert (pressure.refusal(size_bytes) == "") is fits


def test_before_the_first_look_everything_fits():
    assert Pressure().refusal(10**20) == ""


def test_every_reason_has_words():
    assert all(words_of(reason) for reason in Reason)
