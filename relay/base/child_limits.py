"""The limits that a child process sets for itself, against what it reads.

It is the first process that the kernel kills when memory runs out. A sandbox may forbid a limit;
the parent kills the process as well. It ignores signals that end the relay, which finishes what it
has begun; it ends when its input ends.
"""

import resource
import signal
from contextlib import suppress
from pathlib import Path


def limit_this_process(memory_bytes: int) -> None:
    """Limit the address space; no core files."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit_cpu(seconds: int) -> None:
    """End this process after that much more CPU time, in case its parent no longer exists."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit_s = int(used.ru_utime + used.ru_stime) + seconds + 1
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, hard))
