"""Load levels of the relay: when new mail is slowed down or rejected for lack of resources.

relay/operation/app/pressure_monitor.py provides the measurements. SMTP sessions
(relay/transport/ingress/smtp_commands.py), the Graph API (relay/front_door/graph/admission.py) and
pickup (relay/submission/pickup/dispatch.py) check the result. A level ends with hysteresis, so that
it does not flap. Delivery of queued mail continues at every level, because it relieves the relay.
This module is pure.

See RFC 5321 4.2.3 (452), RFC 3463 3.4 (X.3.1, X.3.2) and docs/design.md 6.
"""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum, StrEnum

from msgspec import Struct

RESERVE_PARTS = 16  # a sixteenth of a small disk is kept free
_FILES_FREE_MAX = 1000
_HYSTERESIS = 0.9  # of the load at which a level began: below that it ends


class PressureLevel(IntEnum):
    """The values of relay_pressure_level."""

    NORMAL = 0
    SLOW = 1
    REFUSE = 2


class PressureReason(StrEnum):
    """The resource that is short: the labels of relay_pressure_reason."""

    SPOOL_DISK = "spool-disk"
    SPOOL_FILES = "spool-files"
    MAIL_DISK = "mail-disk"
    MAIL_FILES = "mail-files"
    QUEUE = "queue"
    MEMORY = "memory"
    COMMITS = "commits"
    BACKLOG = "backlog"


# The load from which the level is SLOW; from 1 it is REFUSE.
_SLOW_FROM: Mapping[PressureReason, float] = {
    PressureReason.SPOOL_DISK: 0.5,
    PressureReason.SPOOL_FILES: 0.5,
    PressureReason.MAIL_DISK: 0.5,
    PressureReason.MAIL_FILES: 0.5,
    PressureReason.QUEUE: 0.9,
    PressureReason.MEMORY: 0.85,
    PressureReason.COMMITS: 0.4,
    PressureReason.BACKLOG: 0.5,
}
_TEXTS: Mapping[PressureReason, str] = {
    PressureReason.SPOOL_DISK: "the queue's disk is nearly full or cannot be written",
    PressureReason.SPOOL_FILES: "the queue's disk has nearly no room for more files",
    PressureReason.MAIL_DISK: "the mailboxes' disk is nearly full or cannot be written",
    PressureReason.MAIL_FILES: "the mailboxes' disk has nearly no room for more files",
    PressureReason.QUEUE: "the queue is full",
    PressureReason.MEMORY: "memory is short",
    PressureReason.COMMITS: "the queue's disk is too slow",
    PressureReason.BACKLOG: "too much waits for the queue's disk",
}
MAILBOX_REASONS = frozenset({PressureReason.MAIL_DISK, PressureReason.MAIL_FILES})
# A full mailbox disk does not stop mail: it is accepted and waits in the queue.
QUEUE_REASONS = frozenset(PressureReason) - MAILBOX_REASONS


class Bounds(Struct, frozen=True):
    """The load at which REFUSE begins: the keys of `[pressure]`, sizes in bytes."""

    disk_free: int
    queue_entries: int
    memory: int
    commit_latency_s: float


class Disk(Struct, frozen=True):
    """A file system. `files` is 0 where the number of files is not limited."""

    size_bytes: int
    free_bytes: int
    files: int = 0
    files_free: int = 0
    is_writable: bool = True

    def reserve_bytes(self, wanted_bytes: int) -> int:
        """Return how much must stay free if `wanted_bytes` are configured."""
        return min(wanted_bytes, self.size_bytes // RESERVE_PARTS)


UNKNOWN_DISK = Disk(1 << 62, 1 << 62)  # of another machine, which monitors it itself


class Measurements(Struct, frozen=True):
    """The measurements. `spool` and `mail` are None while their disks do not answer, or fail.

    `kept_bytes` of the spool's disk are free but reserved: the size of a released reserve file.
    `commit_s` is the duration of the last or running commit. `backlog` is the used part (0 to 1) of
    the queue of writes that wait for a commit.
    """

    spool: Disk | None
    mail: Disk | None
    kept_bytes: int = 0
    queue_entries: int = 0
    memory_bytes: int = 0
    commit_s: float = 0.0
    backlog: float = 0.0


def loads(figures: Measurements, bounds: Bounds) -> dict[PressureReason, float]:
    """Return each measurement as a part of its bound: 1 is the bound."""
    spool, mail = figures.spool, figures.mail
    return {
        PressureReason.SPOOL_DISK: _disk_load(
            spool, bounds.disk_free, kept_bytes=figures.kept_bytes
        ),
        PressureReason.SPOOL_FILES: _files_load(spool),
        PressureReason.MAIL_DISK: _disk_load(mail, bounds.disk_free),
        PressureReason.MAIL_FILES: _files_load(mail),
        PressureReason.QUEUE: figures.queue_entries / bounds.queue_entries,
        PressureReason.MEMORY: figures.memory_bytes / bounds.memory,
        PressureReason.COMMITS: figures.commit_s / bounds.commit_latency_s,
        PressureReason.BACKLOG: figures.backlog,
    }


def _disk_load(disk: Disk | None, wanted_bytes: int, *, kept_bytes: int = 0) -> float:
    if disk is None or not disk.is_writable:
        return 1.0
    free_bytes = disk.free_bytes - kept_bytes
    return disk.reserve_bytes(wanted_bytes) / free_bytes if free_bytes > 0 else 1.0


def _files_load(disk: Disk | None) -> float:
    if disk is None or not disk.files:
        return 0.0
    kept = min(_FILES_FREE_MAX, disk.files // RESERVE_PARTS)
    return kept / disk.files_free if disk.files_free > 0 else 1.0


def slow_from(reason: PressureReason) -> float:
    """Return the load from which the level is SLOW."""
    return _SLOW_FROM[reason]


def level_of(reason: PressureReason, load: float, before: PressureLevel) -> PressureLevel:
    """Return the level of a load; a level ends only below its start, with hysteresis."""
    slow_from = _SLOW_FROM[reason]
    if load >= 1.0 or (before is PressureLevel.REFUSE and load >= _HYSTERESIS):
        return PressureLevel.REFUSE
    if load >= slow_from or (
        before is not PressureLevel.NORMAL and load >= _HYSTERESIS * slow_from
    ):
        return PressureLevel.SLOW
    return PressureLevel.NORMAL


class PressureState(Struct, frozen=True):
    """The level of each reason that is not NORMAL.

    `room_bytes` is the largest message that fits on the spool's disk, None: not known.
    """

    levels: Mapping[PressureReason, PressureLevel] = {}
    room_bytes: int | None = None

    @property
    def level(self) -> PressureLevel:
        """The highest level."""
        return max(self.levels.values(), default=PressureLevel.NORMAL)

    @property
    def reasons(self) -> tuple[PressureReason, ...]:
        """The reasons with the highest level."""
        level = self.level
        return tuple(reason for reason in PressureReason if self.levels.get(reason) is level)

    @property
    def queue(self) -> PressureLevel:
        """The level that applies to accepting messages."""
        levels = (level for reason, level in self.levels.items() if reason in QUEUE_REASONS)
        return max(levels, default=PressureLevel.NORMAL)

    def refusing(self, among: Collection[PressureReason]) -> PressureReason | None:
        """Return the first reason of `among` with the level REFUSE."""
        for reason, level in self.levels.items():  # in the order of PressureReason
            if level is PressureLevel.REFUSE and reason in among:
                return reason
        return None

    def has(self, reason: PressureReason) -> bool:
        """Whether `reason` is not NORMAL."""
        return reason in self.levels


def assess(before: PressureState, figures: Measurements, bounds: Bounds) -> PressureState:
    """Return the state that follows from the measurements."""
    levels = {
        reason: level
        for reason, load in loads(figures, bounds).items()
        if (level := level_of(reason, load, before.levels.get(reason, PressureLevel.NORMAL)))
    }
    room_bytes = None
    if figures.spool is not None:
        kept_bytes = figures.spool.reserve_bytes(bounds.disk_free) + figures.kept_bytes
        room_bytes = max(0, figures.spool.free_bytes - kept_bytes)
    return PressureState(levels, room_bytes)


def describe(reason: PressureReason) -> str:
    """Return the text for a reason."""
    return _TEXTS[reason]


class Pressure:
    """The present state. The monitor writes it; sessions, the API and pickup read it."""

    def __init__(self, paused: Callable[[], str] = str) -> None:
        """`paused` returns a sentence if an operator has paused acceptance, else ""."""
        self.state = PressureState()
        self.paused = paused
        self.idle_fault = ""  # why the idle relay refuses mail: it has too little memory

    @property
    def rejects_untrusted(self) -> bool:
        """Whether sessions of untrusted clients are rejected."""
        return self.state.queue is not PressureLevel.NORMAL

    def rejection(self, size_bytes: int = 0) -> str:
        """Return why a message of `size_bytes` is rejected now, "" if it is not."""
        state = self.state
        if (reason := state.refusing(QUEUE_REASONS)) is not None:
            return describe(reason)
        if state.room_bytes is not None and size_bytes > state.room_bytes:
            return "there is no room for a message of that size"
        return ""


class ConcurrencyCounter:
    """Counts operations in progress, in total and by key (an account, a client, an address).

    Operations with the key None count only in the total. A key without operations takes no memory.
    """

    def __init__(self) -> None:
        self._by_key: Counter[Hashable] = Counter()
        self.total = 0

    def count(self, key: Hashable | None) -> int:
        """Return the number of operations of a key."""
        return self._by_key[key] if key is not None else 0

    def has_room(self, key: Hashable | None, *, per_key: int, in_all: int = sys.maxsize) -> bool:
        """Return whether another operation of a key may begin under these limits."""
        return self.total < in_all and self.count(key) < per_key

    def begin(self, *keys: Hashable | None) -> None:
        """Count another operation, which may have several keys, until end()."""
        self.total += 1
        for key in keys:
            if key is not None:
                self._by_key[key] += 1

    def end(self, *keys: Hashable | None) -> None:
        """Count the end of an operation."""
        self.total -= 1
        for key in keys:
            if key is not None:
                self._by_key[key] -= 1
                if not self._by_key[key]:
                    del self._by_key[key]

    @contextmanager
    def counted(self, key: Hashable | None) -> Iterator[None]:
        """Count another operation inside the with block."""
        self.begin(key)
        try:
            yield
        finally:
            self.end(key)
