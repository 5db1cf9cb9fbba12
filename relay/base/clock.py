"""Time, random bytes and identifiers. They are passed in everywhere, so that tests control them.

There are three times. Wall time is only recorded and shown. Timers use the monotonic clock. Due and
expiry times are in queue time, which does not jump when the wall clock is changed: neither while
the process runs nor between two processes, because a start continues from an anchor on disk. Nodes
that share a spool use the wall clock of its database.

Relay waits only through the Clock, so that a clock that can be advanced (`advanceable_clock`)
replaces only `call_later`. Real time is separate from these three, and no clock advances it. It is
for time-outs of a peer, a child process or a disk, for how long something took or may take, and for
the times of files.

Ids are time-ordered, like those of RFC 9562 5.7.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from msgspec import Meta, Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    import asyncio

TimeUs = Annotated[int, Meta(ge=0, lt=253_402_300_800_000_000)]  # rfc3339() goes to the year 9999
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
_LETTERS = frozenset(_ALPHABET)
_DIGITS = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")  # of int()
ID_LENGTH = 16
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS = range(5 * (ID_LENGTH - 2), -1, -10)
_RANDOM_BITS = 32
_JUMP_US_MIN = 1_000_000
_FOLLOWING_PARTS = 10  # the correction is at most this part of the time that passed
DOUBT_US = 86_400_000_000  # after this time of running, a doubtful gap is believed
_GAP_US_MIN = 3_600_000_000  # a shorter gap is never doubtful
ADVANCED_S_MAX = 400 * 86400.0  # of the clock of a development relay, in all
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Time since boot, including suspend where the system reports it.
_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Anchor(Struct, frozen=True):
    """One moment on all clocks of a machine, kept on disk: a start continues queue time from it.

    `elapsed_us` counts from the boot that `boot_id` identifies. `doubtful_us` is the part of the
    queue time that may not have passed really; from `doubt_ends_us` it counts as passed.
    """

    queue_us: int
    wall_us: int
    elapsed_us: int
    boot_id: str
    doubtful_us: int = 0
    doubt_ends_us: int = 0


class ResumedTime(Struct, frozen=True):
    """How a start continues queue time from its anchors.

    `is_exact`: the machine was not rebooted, so the time since the anchor is known. Otherwise
    `wall_passed_us` is the difference of the wall clock, which may be negative.
    """

    queue_us: int
    is_exact: bool
    wall_passed_us: int
    doubtful_us: int
    doubt_ends_us: int


class Timer(Protocol):
    """A call that waits for its time."""

    def cancel(self) -> None:
        """Do not call any more."""


class Clock(Protocol):
    """The time. Methods that wait need a running event loop.

    They import asyncio themselves, because commands without an event loop start faster without it.
    """

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""

    def queue_us(self) -> int:
        """Queue time: the wall clock without its jumps. Queue times are compared with it."""

    def confirmed_us(self) -> int:
        """Queue time without the part that is doubtful.

        For removals by age alone, before which there is no further attempt.
        """

    def anchor(self) -> Anchor:
        """Return the present moment, to be stored."""

    def sample_wall(self, read: Callable[[], int]) -> None:
        """Follow the wall clock of another machine, whose time `read` returns.

        Call it before resume(), before any time is used, and then from time to time. Between two
        calls, that clock is computed from the time that passes on this machine.
        """

    def resume(self, anchor: Anchor | None) -> None:
        """Continue from an anchor, if there is one; call it before any time is used."""

    def resume_as_node(self, anchors: Sequence[Anchor]) -> None:
        """Continue from the anchors of nodes that share a spool.

        If there is one, anchors of earlier calls are ignored: at that time, this node may have had
        only its own clock.
        """

    @property
    def resumed(self) -> ResumedTime | None:
        """How this start continues from its anchors; None without any."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back, including the time by which it was advanced.

        For rates, and for how long something is remembered.
        """

    def real_s(self) -> float:
        """Seconds of real time on a clock that never goes back: for durations and their limits."""

    def file_time_us(self) -> int:
        """Wall clock of this machine in real time, with which the times of files are compared."""

    @property
    def advanced_s(self) -> float:
        """By how many seconds the clock was advanced; 0 where it is not a development relay's."""
        return 0.0

    def call_later(
        self,
        seconds: float,
        callback: Callable[..., object],
        *args: Any,
        slack_s: float = 0.0,  # noqa: ARG002 - nothing advances this clock
    ) -> Timer:
        """Call `callback` in the running event loop when `seconds` have passed.

        When the clock is advanced, the call may come up to `slack_s` later, because the advance
        need not stop earlier.
        """
        import asyncio  # noqa: PLC0415

        return asyncio.get_running_loop().call_later(seconds, callback, *args)

    async def sleep(self, seconds: float, *, slack_s: float = 0.0) -> None:
        """Return when `seconds` have passed; `slack_s` as in call_later()."""
        import asyncio  # noqa: PLC0415

        over = asyncio.Event()
        timer = self.call_later(seconds, over.set, slack_s=slack_s)
        try:
            await over.wait()
        finally:
            timer.cancel()

    async def wait(self, event: "asyncio.Event", seconds: float, *, slack_s: float = 0.0) -> bool:
        """Wait for `event`, for at most `seconds`; return whether it is set.

        `slack_s` as in call_later().
        """
        import asyncio  # noqa: PLC0415

        with suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                timer = self.call_later(seconds, limit.reschedule, 0.0, slack_s=slack_s)
                try:
                    await event.wait()
                finally:
                    timer.cancel()
        return event.is_set()


class Machine(Struct, frozen=True):
    """The clocks that a SystemClock reads; `elapsed_ns` counts from the boot `boot_id`."""

    wall_ns: Callable[[], int]
    elapsed_ns: Callable[[], int]
    boot_id: str


def boot_s() -> float:
    """Return seconds of real time since the boot, also those in which the machine was suspended."""
    return time.clock_gettime(_ELAPSED)


def read_boot_id() -> str:
    """Return the id of this boot of the machine, "" if it is not known."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""  # each start then counts as a reboot


def this_machine() -> Machine:
    """Return the clocks of this machine."""
    return Machine(time.time_ns, partial(time.clock_gettime_ns, _ELAPSED), read_boot_id())


class SystemClock(Clock):
    """A machine's clocks."""

    def __init__(self, machine: Machine | None = None) -> None:
        """Without `machine`, the clocks are those of this machine."""
        self._machine = machine or this_machine()
        self._reference = ReferenceWall()
        self._queue_time = QueueTime(
            wall_us=self._machine.wall_ns() // 1000,
            elapsed_us=self._machine.elapsed_ns() // 1000,
            boot_id=self._machine.boot_id,
        )
        self._lock = threading.Lock()

    @property
    def resumed(self) -> ResumedTime | None:
        """See Clock."""
        return self._queue_time.resumed

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""
        offset_us = self._reference.offset_us
        if offset_us is None:
            return self._machine.wall_ns() // 1000
        return self._machine.elapsed_ns() // 1000 + offset_us

    def queue_us(self) -> int:
        """See Clock."""
        with self._lock:  # called several times for each message
            elapsed_us = self._machine.elapsed_ns() // 1000
            return self._queue_time.read(wall_us=self.time_us(), elapsed_us=elapsed_us)

    def confirmed_us(self) -> int:
        """See Clock."""
        queue_us = self.queue_us()
        return queue_us - self._queue_time.doubtful_us(queue_us)

    def anchor(self) -> Anchor:
        """See Clock."""
        with self._lock:
            elapsed_us = self._machine.elapsed_ns() // 1000
            return self._queue_time.anchor(wall_us=self.time_us(), elapsed_us=elapsed_us)

    def sample_wall(self, read: Callable[[], int]) -> None:
        """See Clock. The first sample is before any time counts: queue time begins with it."""
        began_us = self._machine.elapsed_ns() // 1000
        wall_us = read()
        ended_us = self._machine.elapsed_ns() // 1000
        with self._lock:
            is_first = self._reference.offset_us is None
            self._reference.take(wall_us, began_us=began_us, ended_us=ended_us)
            if is_first:
                self._queue_time.begin(wall_us=self.time_us(), elapsed_us=ended_us)

    def resume(self, anchor: Anchor | None) -> None:
        """See Clock."""
        if anchor is None:
            return
        with self._lock:
            elapsed_us = self._machine.elapsed_ns() // 1000
            self._queue_time.resume(anchor, wall_us=self.time_us(), elapsed_us=elapsed_us)

    def resume_as_node(self, anchors: Sequence[Anchor]) -> None:
        """See Clock."""
        if anchors:
            self._queue_time.forget_anchors()
        for anchor in anchors:
            self.resume(anchor)

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def real_s(self) -> float:
        """See Clock."""
        return time.monotonic()

    def file_time_us(self) -> int:
        """See Clock."""
        return self._machine.wall_ns() // 1000


class ReferenceWall:
    """The wall clock of another machine, as an offset from the time that passes on this one.

    A sample was read between two moments of this machine, which give a lower and an upper bound of
    the offset. The offset changes only as far as these bounds require: a sample that took long
    changes it little, and a missing sample not at all.
    """

    def __init__(self) -> None:
        self.offset_us: int | None = None  # from elapsed time; None before the first sample

    def take(self, wall_us: int, *, began_us: int, ended_us: int) -> None:
        """Take a sample: that clock was `wall_us` between these two elapsed times."""
        least_us, most_us = wall_us - ended_us, wall_us - began_us
        now_us = (least_us + most_us) // 2 if self.offset_us is None else self.offset_us
        self.offset_us = max(least_us, min(most_us, now_us))


class QueueTime:
    """Queue time: it begins at an anchor, or else at the wall clock, and approaches the wall clock.

    A wall clock that is slewed is followed exactly. After a jump, queue time needs ten times the
    jump to reach the wall clock, so that nothing becomes due or expires at once. It never goes
    back.
    """

    def __init__(self, *, wall_us: int, elapsed_us: int, boot_id: str = "") -> None:
        """`elapsed_us` is of a clock that never goes back and includes suspend."""
        self._now_us = wall_us
        self._elapsed_us = elapsed_us
        self._boot_id = boot_id
        self._anchors: list[Anchor] = []
        self.resumed: ResumedTime | None = None

    def read(self, *, wall_us: int, elapsed_us: int) -> int:
        """Return the queue time, in microseconds since 1970 UTC."""
        passed_us = elapsed_us - self._elapsed_us
        if passed_us > 0:
            self._elapsed_us = elapsed_us
            self._now_us = _followed(self._now_us, passed_us=passed_us, wall_us=wall_us)
        return self._now_us

    def doubtful_us(self, queue_us: int) -> int:
        """Return how much of `queue_us` is doubtful."""
        start = self.resumed
        return start.doubtful_us if start and queue_us < start.doubt_ends_us else 0

    def anchor(self, *, wall_us: int, elapsed_us: int) -> Anchor:
        """Return the anchor from which another start continues."""
        queue_us = self.read(wall_us=wall_us, elapsed_us=elapsed_us)
        doubtful_us = self.doubtful_us(queue_us)
        ends_us = self.resumed.doubt_ends_us if self.resumed and doubtful_us else 0
        return Anchor(queue_us, wall_us, elapsed_us, self._boot_id, doubtful_us, ends_us)

    def resume(self, anchor: Anchor, *, wall_us: int, elapsed_us: int) -> None:
        """Continue from this anchor and from those of earlier calls."""
        self._anchors.append(anchor)
        self.begin(wall_us=wall_us, elapsed_us=elapsed_us)

    def forget_anchors(self) -> None:
        """Ignore the anchors of earlier calls as soon as there is a further one."""
        self._anchors.clear()

    def begin(self, *, wall_us: int, elapsed_us: int) -> None:
        """Begin at the anchors, or else at this wall clock; before any time is used."""
        self._now_us, self._elapsed_us = wall_us, elapsed_us
        if self._anchors:
            self.resumed = resumed(
                self._anchors, wall_us=wall_us, elapsed_us=elapsed_us, boot_id=self._boot_id
            )
            self._now_us = self.resumed.queue_us


def resumed(
    anchors: Sequence[Anchor], *, wall_us: int, elapsed_us: int, boot_id: str
) -> ResumedTime:
    """Return how a start continues from one or more anchors, read at these times.

    Anchors of this boot take precedence; among these, the latest is used, because the wall clock
    may have jumped after an earlier one. The result is not before the time of any anchor; if it is
    moved to such a time, it is as doubtful as that anchor.
    """
    latest = max(anchors, key=lambda anchor: anchor.queue_us)
    preferred, _ = max(
        (
            (
                _resumed(anchor, wall_us=wall_us, elapsed_us=elapsed_us, boot_id=boot_id),
                anchor.queue_us,
            )
            for anchor in anchors
        ),
        key=lambda pair: (pair[0].is_exact, pair[1]),
    )
    if preferred.queue_us >= latest.queue_us:
        return preferred
    return replace(
        preferred,
        queue_us=latest.queue_us,
        doubtful_us=max(preferred.doubtful_us, latest.doubtful_us),
        doubt_ends_us=max(preferred.doubt_ends_us, latest.doubt_ends_us),
    )


def _resumed(anchor: Anchor, *, wall_us: int, elapsed_us: int, boot_id: str) -> ResumedTime:
    """Return how a start continues from one anchor.

    Within one boot, the time since the anchor is known independently of the wall clock. After a
    reboot it is the difference of the wall clock, but not negative. A wrong clock looks like a long
    stop: the time is therefore doubtful unless it is short.

    Doubtful time is believed when the relay has run for a day since the first doubtful gap. Further
    gaps do not prolong this day; otherwise it would never end on a machine that never runs for a
    day. Only a gap longer than all earlier ones together begins another day: the first start with a
    wrong clock. A gap soon after a longer stop is therefore believed at the end of the day that
    began with that stop.
    """
    doubtful_us, ends_us = anchor.doubtful_us, anchor.doubt_ends_us
    wall_passed_us = wall_us - anchor.wall_us
    passed_us = elapsed_us - anchor.elapsed_us
    if boot_id and boot_id == anchor.boot_id and passed_us >= 0:
        queue_us = _followed(anchor.queue_us, passed_us=passed_us, wall_us=wall_us)
        return ResumedTime(queue_us, True, wall_passed_us, doubtful_us, ends_us)
    gap_us = max(0, wall_passed_us)
    queue_us = anchor.queue_us + gap_us
    ends_us = queue_us + DOUBT_US if gap_us > doubtful_us else ends_us + gap_us
    if doubtful_us or gap_us >= _GAP_US_MIN:
        doubtful_us += gap_us
    return ResumedTime(queue_us, False, wall_passed_us, doubtful_us, ends_us)


def _followed(now_us: int, *, passed_us: int, wall_us: int) -> int:
    """Return the queue time `passed_us` after `now_us`."""
    at_speed_us = now_us + passed_us
    most_us = passed_us // _FOLLOWING_PARTS
    if -most_us <= wall_us - at_speed_us <= most_us:  # nearly always
        return wall_us
    return at_speed_us + (most_us if wall_us > at_speed_us else -most_us)


def wall_offset_us(clock: Clock) -> int:
    """Return how far the wall clock is ahead of queue time.

    Queue time plus this offset is the time to show.
    """
    return offset_us(wall_us=clock.time_us(), queue_us=clock.queue_us())


def offset_us(*, wall_us: int, queue_us: int) -> int:
    """Return how far the wall time is ahead of the queue time, 0 for less than a second.

    The two are read at different moments, and a time that has not changed must not change in
    output.
    """
    ahead = wall_us - queue_us
    return ahead if abs(ahead) >= _JUMP_US_MIN else 0


def now_at_least_us(clock: Clock) -> int:
    """Return a lower bound of the present time, which a jump of the wall clock does not change."""
    return min(clock.time_us(), clock.confirmed_us())


def advanced_us(clock: Clock) -> int:
    """Return how far the clock was advanced, to the second; the clock of a service never is."""
    return round(clock.advanced_s) * 1_000_000


class Ids:
    """Time-ordered ids: 16 characters of [0-9a-z], 48 bits of milliseconds and 32 random bits.

    Ids of one process sort in the order in which they were made (RFC 9562 6.2, method 2). In the
    same millisecond, or after the wall clock has gone back, an id is the last id plus a random step
    of 16 bits. The first id of a millisecond has 31 random bits, so that further ids have room.
    """

    def __init__(self, clock: Clock, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._clock = clock
        self._chance = random_bytes
        self._last = 0

    def new(self) -> str:
        """Return an id that sorts after all earlier ones."""
        chance = int.from_bytes(self._chance(_RANDOM_BITS // 8), "big")
        number = self._clock.time_us() // 1000 << _RANDOM_BITS
        if number >> _RANDOM_BITS > self._last >> _RANDOM_BITS:
            number |= chance >> 1
        else:
            number = self._last + 1 + (chance & 0xFFFF)
        self._last = number
        return _encode(number)


def first_id_after(time_us: int) -> str:
    """Return an id that sorts after each id made until `time_us`, and before later ids."""
    return _encode((time_us // 1000 + 1) << _RANDOM_BITS)


def _encode(number: int) -> str:
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def id_time_us(identifier: str) -> int | None:
    """Return when `identifier` was made, in microseconds (to the millisecond), or None if it is not
    an id.
    """
    first = identifier[:ID_LENGTH]
    if len(first) < ID_LENGTH or not _LETTERS.issuperset(first):
        return None
    return (int(first.translate(_DIGITS), 32) >> _RANDOM_BITS) * 1000


async def sleep_in_step(pause_s: float) -> None:
    """Sleep for about `pause_s` of real time.

    A pause of a second or more ends at a whole second of the event loop's time: all periodic tasks
    then wake an idle process at the same moment.
    """
    import asyncio  # noqa: PLC0415

    now_s = asyncio.get_running_loop().time()
    until_s = round(now_s + pause_s) if pause_s >= 1 else now_s + pause_s
    await asyncio.sleep(until_s - now_s)  # real time: the caller says why


def pause_after(
    took_s: float, *, least_s: float = 0.0, most_s: float = 60.0, factor: int = 20
) -> float:
    """Return the seconds to wait after work that took `took_s`: it takes a twentieth of the time.

    The work may have waited, such as for a server that hung; so the pause has a maximum.
    """
    return min(max(least_s, factor * took_s), most_s)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(time_us: int) -> str:
    """Return `time_us` as RFC 3339 UTC with six fraction digits and Z."""
    seconds, fraction = divmod(time_us, 1_000_000)
    return f"{_whole_second(seconds)}.{fraction:06d}Z"


@lru_cache(8)
def _whole_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[: len("2026-01-01T00:00:00")]


def time_us_of(text: str, zone: tzinfo = UTC) -> int:
    """Return a time of ISO 8601, such as rfc3339() writes, in microseconds since 1970; without a
    zone it is in `zone`. Raises ValueError, OverflowError.
    """
    at = datetime.fromisoformat(text)
    return ((at if at.tzinfo else at.replace(tzinfo=zone)) - _EPOCH) // timedelta(microseconds=1)
