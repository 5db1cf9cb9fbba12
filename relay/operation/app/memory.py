"""Memory as the kernel counts it: the limit, what Relay uses, and whether an idle relay has enough.

If the limit is that of Relay's own control group, and only processes of Relay are in it, the use is
`anon` and `shmem` of the group (version 1: `total_rss`, `total_shmem`): the page cache and the
kernel's slab go when memory is needed. Otherwise it is the anonymous memory of Relay's processes,
which share none: each child process is a program of its own. See cgroups(7), proc(5), and the
kernel's admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from relay.base.child_process import status_of_children
from relay.base.pressure import PressureReason, slow_from
from relay.base.settings.tree import Settings

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_BOUND_PART = 0.75  # of the limit, unless pressure.memory is set
_MIB = 1 << 20
_STEP_BYTES = 32 * _MIB  # of the sizes that are recommended
IDLE_BYTES = 76 * _MIB  # of an idle relay with its process of the SMTP sessions
_RSS_ANON = re.compile(rb"^RssAnon:\s++(\d++) kB", re.MULTILINE)


class MemoryBound(Struct, frozen=True):
    """The limit of memory, and from which use on Relay refuses mail."""

    limit_bytes: int  # of the machine, or of a control group if less
    group: Path | None  # Relay's own control group if the limit is that of this group
    configured_bytes: int  # pressure.memory, 0: not set

    @property
    def size_bytes(self) -> int:
        """The use from which on Relay refuses mail."""
        return self.configured_bytes or int(_BOUND_PART * self.limit_bytes)

    def used_bytes(self) -> int:
        """Return how much memory Relay uses now."""
        with suppress(OSError):
            if self.group is not None and not _has_others(self.group):
                return counted_bytes((self.group / "memory.stat").read_text())
        return anonymous_bytes()

    def fault(self, idle_bytes: int) -> str:
        """Return why mail is refused if an idle relay uses `idle_bytes`, "" if it is not."""
        if idle_bytes < self.size_bytes:
            return ""
        key, size_bytes, part = "pressure.memory", self.configured_bytes, 1.0
        if not size_bytes:
            key, size_bytes, part = "the memory limit", self.limit_bytes, _BOUND_PART
        needed_bytes = idle_bytes / slow_from(PressureReason.MEMORY) / part
        steps = int(needed_bytes // _STEP_BYTES) + 1
        return (
            f"{key} is {size_bytes // _MIB} MiB, expected {steps * _STEP_BYTES // _MIB} MiB: "
            f"an idle relay uses {idle_bytes // _MIB} MiB, and mail is refused from "
            f"{self.size_bytes // _MIB} MiB on"
        )


def memory_bound(settings: Settings) -> MemoryBound:
    """Return the bound of the settings, for the limit of this process."""
    limits: list[tuple[int, Path | None]] = []
    own: Path | None = None
    with suppress(OSError):
        for line in (_PROC / "self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                top, name = _CGROUPS / "memory", "memory.limit_in_bytes"
            elif number == "0":
                top, name = _CGROUPS, "memory.max"
            else:
                continue
            group = top / path.strip("/")
            # in a container, the path may be that outside: its own group is the top
            for place in (group, *group.parents):
                with suppress(OSError, ValueError):  # no such file, or "max"
                    if own is None and os.getpid() in _processes(place):
                        own = place
                    limits.append((int((place / name).read_text()), place))
    limits.append((os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None))
    limit_bytes, owner = min(limits, key=lambda limit: limit[0])
    return MemoryBound(limit_bytes, owner if owner == own else None, settings.pressure.memory)


def left_bytes(settings: Settings) -> int:
    """Return what an idle relay leaves of the limit of memory."""
    return memory_bound(settings).limit_bytes - IDLE_BYTES


def listener_bytes(settings: Settings) -> int:
    """Return what of left_bytes() the SMTP sessions of one listener may have."""
    return left_bytes(settings) // max(1, len(settings.smtp))


def counted_bytes(stat: str) -> int:
    """Return what a control group uses and cannot give back, by its memory.stat."""
    figures = dict(line.split() for line in stat.splitlines())
    names = ("total_rss", "total_shmem") if "total_rss" in figures else ("anon", "shmem")
    return sum(int(figures.get(name, 0)) for name in names)


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process and its child processes; 0 if unknown."""
    statuses = status_of_children()
    with suppress(OSError):  # only Linux has it
        statuses.append((_PROC / "self/status").read_bytes())
    return 1024 * sum(int(match[1]) for text in statuses if (match := _RSS_ANON.search(text)))


def _processes(group: Path) -> list[int]:
    return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]


def _has_others(group: Path) -> bool:
    """Return whether a process other than this and its children is in a group. Raises OSError."""
    own = os.getpid()
    for pid in _processes(group):
        with suppress(OSError):  # it has ended, or is hidden as the children may be
            stat = (_PROC / str(pid) / "stat").read_text()
            if own not in (pid, int(stat.rpartition(")")[2].split()[1])):
                return True
    return False
