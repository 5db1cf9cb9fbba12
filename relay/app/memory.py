"""How much memory the process has, how much there is, and giving back what it does not need.

On the path: beside it; the monitor of pressure asks.
Holds: nothing of its own.
Fails: never; what the system does not tell counts as nothing, what it cannot do is left.
Standards: proc(5), cgroups(7), malloc_trim(3).
"""

import gc
import os
from contextlib import suppress
from pathlib import Path

_STATM = Path("/proc/self/statm")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


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


def give_memory_back() -> None:
    """Return to the system what was freed: the C library keeps it, and would be short for ever."""
    gc.collect()
    with suppress(Exception):  # what is not glibc has no such call
        import ctypes  # noqa: PLC0415 - to import it is what a sandbox may forbid

        ctypes.CDLL(None).malloc_trim(0)
