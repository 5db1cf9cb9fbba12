"""Run a relay, and write to the file $STAGES which share of its processor time each stage takes.

    make bench ARGS=stages                          small
    make bench ARGS=stages WORKLOADS="fresh,large"

Each millisecond of processor time, a signal looks at what the event loop's thread does, and counts the
time that this thread has used since the last look for the first stage that its stack names, from the
inside. What other threads used is counted as theirs. It begins with the first session.
"""

import atexit
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from relay.cli import main

SESSION = "SMTP session and commands"
STAGES = (
    (r"/aiosmtplib/|/relay/smtp/", "outbound SMTP"),
    (r"/relay/policy/", "rules"),
    (r"/relay/mime/|/relay/ingress/header", "header"),
    (r"/relay/observe/|/prometheus_client/", "log and metrics"),
    (r"/relay/spool/", "spool, in the event loop"),
    (r"/relay/delivery/|/relay/routing/", "scheduler, routing, delivery"),
    (r"/relay/ingress/(acceptance|fanout|data)", "acceptance"),
    (r"/relay/ingress/|/aiosmtpd/", SESSION),
)
OTHER = "asyncio and uvloop"
THREADS = "threads: the spool's, files"
PATTERNS = [(re.compile(pattern), stage) for pattern, stage in STAGES]
EVERY_S = 0.001


class Sampler:
    """Counts seconds of processor time by stage."""

    def __init__(self) -> None:
        self.used_s: Counter[str] = Counter()
        self._before_s: tuple[float, float] | None = None  # of the thread, of the process

    def sample(self, _: int, frame: FrameType | None) -> None:
        """Count what was used since the last time."""
        stage = stage_of(frame)
        if self._before_s is not None:
            thread_s = time.thread_time() - self._before_s[0]
            self.used_s[stage] += thread_s
            self.used_s[THREADS] += time.process_time() - self._before_s[1] - thread_s
        if self._before_s is not None or stage == SESSION:
            self._before_s = time.thread_time(), time.process_time()

    def write(self, path: Path) -> None:
        """Append the shares, the largest first."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        total_s = self.used_s.total() or 1.0
        shares = "".join(f"{s / total_s:6.1%}  {stage}\n" for stage, s in self.used_s.most_common())
        with path.open("a") as file:
            file.write(shares + "\n")


def stage_of(frame: FrameType | None) -> str:
    """Return the first stage that a stack names, from the inside."""
    while frame is not None:
        for pattern, stage in PATTERNS:
            if pattern.search(frame.f_code.co_filename):
                return stage
        frame = frame.f_back
    return OTHER


if __name__ == "__main__":
    sampler = Sampler()
    atexit.register(sampler.write, Path(os.environ["STAGES"]))
    signal.signal(signal.SIGPROF, sampler.sample)
    signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
    main()
