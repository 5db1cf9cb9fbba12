"""How short the relay is of room, and what it takes on no more because of that.

On the path: app's monitor puts figures in; sessions, the front door and pickup ask what follows.
Holds: pure; a level is left only when its reason is gone by a margin; what is in the queue goes on
    at every level, for it is delivery that relieves the relay.
Fails: never.
Standards: RFC 5321 4.5.3.1.10, RFC 3463 3.4 (X.3.1), 3.4 (X.3.2); docs/design.md 6.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

RESERVE_PARTS = 16  # of a small disk, one in so many is kept free
_FILES_FREE_MAX = 1000
_RELIEF = 0.9  # of the strain at which a level began: below that it ends


class Level(IntEnum):
    """The values of relay_pressure_level."""

    NORMAL = 0
    SLOW = 1
    REFUSE = 2


class Reason(StrEnum):
    """What is short: the labels of relay_pressure_reason."""

    SPOOL_DISK = "spool-disk"
    SPOOL_FILES = "spool-files"
    MAIL_DISK = "mail-disk"
    MAIL_FILES = "mail-files"
    QUEUE = "queue"
    MEMORY = "memory"
    COMMITS = "commits"
    BACKLOG = "backlog"


# From which strain on it is SLOW; from 1 on it is REFUSE.
_SLOW_FROM: Mapping[Reason, float] = {
    Reason.SPOOL_DISK: 0.5,
    Reason.SPOOL_FILES: 0.5,
    Reason.MAIL_DISK: 0.5,
    Reason.MAIL_FILES: 0.5,
    Reason.QUEUE: 0.9,
    Reason.MEMORY: 0.85,
    Reason.COMMITS: 0.4,
    Reason.BACKLOG: 0.5,
}
_WORDS: Mapping[Reason, str] = {
    Reason.SPOOL_DISK: "the queue's disk is nearly full or cannot be written",
    Reason.SPOOL_FILES: "the queue's disk has nearly no room for more files",
    Reason.MAIL_DISK: "the mailboxes' disk is nearly full or cannot be written",
    Reason.MAIL_FILES: "the mailboxes' disk has nearly no room for more files",
    Reason.QUEUE: "the queue is full",
    Reason.MEMORY: "memory is short",
    Reason.COMMITS: "the queue's disk is too slow",
    Reason.BACKLOG: "too much waits for the queue's disk",
}
OF_MAILBOXES = frozenset({Reason.MAIL_DISK, Reason.MAIL_FILES})
# A full mailbox disk stops no mail: it is taken on and waits in the queue.
OF_QUEUE = frozenset(Reason) - OF_MAILBOXES


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where REFUSE begins: the keys of `[pressure]`, sizes in bytes."""

    disk_free: int
    queue_entries: int
    memory: int
    commit_latency_s: float


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system as it is now. `files` is 0 where it has no fixed number of them."""

    size_bytes: int
    free_bytes: int
    files: int = 0
    files_free: int = 0
    is_writable: bool = True

    def reserve_bytes(self, wanted_bytes: int) -> int:
        """How much of it is to stay free, where so much is asked for."""
        return min(wanted_bytes, self.size_bytes // RESERVE_PARTS)


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured. `spool` and `mail` are None while their disks do not answer, or fail.

    `kept_bytes` of the spool's disk are free, but to be taken back: its ballast's, when that was
    given up. `commit_s` is how long commits take, or the one that is running; `backlog` the part
    of what may wait for them.
    """

    spool: Disk | None
    mail: Disk | None
    kept_bytes: int = 0
    queue_entries: int = 0
    memory_bytes: int = 0
    commit_s: float = 0.0
    backlog: float = 0.0


def strains(figures: Figures, bounds: Bounds) -> dict[Reason, float]:
    """Return how near each figure is to its bound: 1 is there."""
    spool, mail = figures.spool, figures.mail
    return {
        Reason.SPOOL_DISK: _disk_strain(spool, bounds.disk_free, kept_bytes=figures.kept_bytes),
        Reason.SPOOL_FILES: _files_strain(spool),
        Reason.MAIL_DISK: _disk_strain(mail, bounds.disk_free),
        Reason.MAIL_FILES: _files_strain(mail),
        Reason.QUEUE: figures.queue_entries / bounds.queue_entries,
        Reason.MEMORY: figures.memory_bytes / bounds.memory,
        Reason.COMMITS: figures.commit_s / bounds.commit_latency_s,
        Reason.BACKLOG: figures.backlog,
    }


def _disk_strain(disk: Disk | None, wanted_bytes: int, *, kept_bytes: int = 0) -> float:
    if disk is None or not disk.is_writable:
        return 1.0
    free_bytes = disk.free_bytes - kept_bytes
    return disk.reserve_bytes(wanted_bytes) / free_bytes if free_bytes > 0 else 1.0


def _files_strain(disk: Disk | None) -> float:
    if disk is None or not disk.files:
        return 0.0
    kept = min(_FILES_FREE_MAX, disk.files // RESERVE_PARTS)
    return kept / disk.files_free if disk.files_free > 0 else 1.0


def level_of(reason: Reason, strain: float, before: Level) -> Level:
    """Return the level of a strain; `before` is left only when it is eased by a margin."""
    slow_from = _SLOW_FROM[reason]
    if strain >= 1.0 or (before is Level.REFUSE and strain >= _RELIEF):
        return Level.REFUSE
    if strain >= slow_from or (before is not Level.NORMAL and strain >= _RELIEF * slow_from):
        return Level.SLOW
    return Level.NORMAL


@dataclass(frozen=True, slots=True)
class State:
    """The level of each reason that is not NORMAL.

    `room_bytes` is how much the largest message may have on the spool's disk, None: not known.
    """

    levels: Mapping[Reason, Level] = field(default_factory=dict)
    room_bytes: int | None = None

    @property
    def level(self) -> Level:
        """The highest of all."""
        return max(self.levels.values(), default=Level.NORMAL)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Those that make the level what it is."""
        level = self.level
        return tuple(reason for reason in Reason if self.levels.get(reason) is level)

    @property
    def queue(self) -> Level:
        """How it is with taking on messages."""
        found = (level for reason, level in self.levels.items() if reason in OF_QUEUE)
        return max(found, default=Level.NORMAL)

    def refusing(self, among: Collection[Reason]) -> Reason | None:
        """The first reason of `among` that is at REFUSE."""
        for reason, level in self.levels.items():  # in the order of Reason
            if level is Level.REFUSE and reason in among:
                return reason
        return None

    def has(self, reason: Reason) -> bool:
        """Whether it is short of that at all."""
        return reason in self.levels


def assess(before: State, figures: Figures, bounds: Bounds) -> State:
    """Return the state that follows from what was measured."""
    levels = {
        reason: level
        for reason, strain in strains(figures, bounds).items()
        if (level := level_of(reason, strain, before.levels.get(reason, Level.NORMAL)))
    }
    room_bytes = None
    if figures.spool is not None:
        kept_bytes = figures.spool.reserve_bytes(bounds.disk_free) + figures.kept_bytes
        room_bytes = max(0, figures.spool.free_bytes - kept_bytes)
    return State(levels, room_bytes)


def words_of(reason: Reason) -> str:
    """What is short, for people."""
    return _WORDS[reason]


class Pressure:
    """The state that holds now: one writes it, all others read."""

    def __init__(self) -> None:
        self.state = State()

    @property
    def turns_strangers_away(self) -> bool:
        """Whether whoever is not trusted begins no session."""
        return self.state.queue is not Level.NORMAL

    def refusal(self, size_bytes: int = 0) -> str:
        """Why no message of so many bytes is taken on now, "" if it is."""
        state = self.state
        if (reason := state.refusing(OF_QUEUE)) is not None:
            return words_of(reason)
        if state.room_bytes is not None and size_bytes > state.room_bytes:
            return "there is no room for a message of that size"
        return ""
