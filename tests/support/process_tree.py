"""The processor time of a process and all that it started."""

import os
from collections import defaultdict
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree_cpu_s(root: int) -> float:
    """Return the user and system time of a live process tree, and of its children that ended."""
    stats: dict[int, list[str]] = {}
    children: defaultdict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(") ")[2].split()
        except OSError:  # it has just ended
            continue
        stats[int(path.name)] = fields
        children[int(fields[1])].append(int(path.name))
    ticks, left = 0, [root]
    while left:
        pid = left.pop()
        ticks += sum(map(int, stats[pid][11:15]))
        left += children[pid]
    return ticks / _TICKS
