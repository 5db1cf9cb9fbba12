"""How much memory and how many open files the process may have, and giving memory back.

On the path: beside it; the monitor of pressure asks.
Holds: nothing of its own.
Fails: never; what the system does not tell counts as nothing, what it cannot do is left.
Standards: proc(5), cgroups(7), malloc_trim(3), getrlimit(2).
"""

import gc
import os
import resource
from contextlib import suppress
from pathlib import Path

_STATM = Path("/proc/self/statm")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_OPEN_FILES = 65536


def resident_bytes() -> int:
    """How much memory this process has; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def memory_there_is() -> int:
    """How much memory the machine has, or the control group of this process if that is less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):
        for line in _CGROUP.read_text().splitlines():
            group = _CGROUPS / line.rpartition(":")[2].strip("/")
            for place in (group, *group.parents):
                with suppress(OSError, ValueError):  # none here, or "max"
                    found.append(int((place / "memory.max").read_text()))
    return min(found)


def allow_open_files() -> int:
    """Raise the limit of open files as far as this process may, and return it.

    A shell's soft limit is often 1024, for programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < possible:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
            soft = possible
    return _OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def give_memory_back() -> None:
    """Return to the system what was freed: the C library keeps it, and would be short for ever."""
    gc.collect()
    with suppress(Exception):  # what is not glibc has no such call
        import ctypes  # noqa: PLC0415 - to import it is what a sandbox may forbid

        ctypes.CDLL(None).malloc_trim(0)
