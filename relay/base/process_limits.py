"""Settings of a process: how it keeps free memory, and the limits of a child process.

A child process has limits against hostile input, and the kernel kills it first when memory runs
out. If a sandbox forbids a limit, the parent still kills the process. A child process ignores the
signals that stop the relay, because the relay finishes its work first; it ends when its input ends.
"""

import gc
import resource
import signal
from contextlib import suppress
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # mallopt(3)
_OWN_PAGES_FROM_BYTES = 1 << 20
_KEPT_FREE_BYTES = 8 << 20  # keeps receive buffers in the heap
_COLLECT_AFTER = 50_000  # objects: with Python's 700, collection takes a tenth of the CPU


def limit_malloc_retention() -> None:
    """Make malloc return the memory of large messages to the system as soon as it is freed.

    glibc keeps freed blocks of up to 32 MiB for reuse in each thread: several times the largest
    body, and malloc_trim(3) leaves the end of a thread's arena: there is one for all threads. Other
    C libraries do not have this call.
    """
    with suppress(Exception):  # not glibc, or forbidden by a sandbox: costs memory only
        import ctypes  # noqa: PLC0415 - a sandbox may forbid the import

        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_FROM_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES)
        libc.mallopt(_M_ARENA_MAX, 1)


def tune_garbage_collector() -> None:
    """Exclude start-up objects from garbage collection, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def trim_memory(*, collect: bool = True) -> None:
    """Return freed memory to the system (malloc_trim(3)); `collect` looks for more.

    malloc returns only the end of its heap: after a burst of mail, a longer-lived object keeps
    the memory below it. If nothing was freed, the call takes a tenth of a millisecond.
    """
    if collect:
        gc.collect()
    with suppress(Exception):  # only glibc has this call
        import ctypes  # noqa: PLC0415 - a sandbox may forbid the import

        ctypes.CDLL(None).malloc_trim(0)


def limit_this_process(memory_bytes: int) -> None:
    """Limit the address space; no core files."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit_cpu(seconds: int) -> None:
    """End this process after that much more CPU time, in case its parent no longer exists."""
    signal.setitimer(signal.ITIMER_PROF, seconds)  # the sandbox refuses RLIMIT_CPU
