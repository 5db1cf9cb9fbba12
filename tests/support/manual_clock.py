"""A clock that a test advances."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay.base.clock import Anchor, Clock, ResumedTime


@dataclass
class ManualClock(Clock):
    """A clock that a test advances. Its waits take real time."""

    now_us: int = 1_700_000_000_000_000
    now_s: float = 1000.0
    jumped_us: int = 0  # how far the wall clock is ahead of queue time
    doubtful_us: int = 0  # of queue time, how much may never have passed
    advanced_us: int = 0  # how far it is ahead of the times of files, as in a development relay
    resumed: ResumedTime | None = None

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""
        return self.now_us + self.jumped_us

    def queue_us(self) -> int:
        """See Clock: it does not follow a wall clock that has jumped."""
        return self.now_us

    def confirmed_us(self) -> int:
        """See Clock."""
        return self.now_us - self.doubtful_us

    def anchor(self) -> Anchor:
        """See Clock."""
        return Anchor(self.now_us, self.time_us(), int(self.now_s * 1_000_000), "manual")

    def sample_wall(self, read: Callable[[], int]) -> None:
        """See Clock: a test sets the time."""

    def resume(self, anchor: Anchor | None) -> None:
        """See Clock: a test sets the time."""

    def resume_as_node(self, anchors: Sequence[Anchor]) -> None:
        """See Clock: a test sets the time."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return self.now_s

    def real_s(self) -> float:
        """See Clock: a test advances it as well."""
        return self.now_s

    def file_time_us(self) -> int:
        """See Clock: a test advances it as well."""
        return self.time_us() - self.advanced_us

    @property
    def advanced_s(self) -> float:
        """See Clock."""
        return self.advanced_us / 1_000_000

    def advance(self, seconds: float) -> None:
        """Advance both clocks."""
        self.now_s += seconds
        self.now_us += int(seconds * 1_000_000)
