"""The processes that a process started, and their processor time."""

import contextlib
import os
from collections import defaultdict
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> dict[int, list[str]]:
    """Return the processes of a live process tree, each with the fields of its stat from the state on."""
    stats: dict[int, list[str]] = {}
    children: defaultdict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(") ")[2].split()
        except OSError:  # it has just ended
            continue
        stats[int(path.name)] = fields
        children[int(fields[1])].append(int(path.name))
    found, left = {}, [root]
    while left:
        pid = left.pop()
        found[pid] = stats[pid]
        left += children[pid]
    return found


def tree_cpu_s(root: int) -> float:
    """Return the user and system time of a live process tree, and of its children that ended."""
    return sum(int(one) for fields in tree(root).values() for one in fields[11:15]) / _TICKS


def child_processes() -> set[int]:
    """Return the children of this process that have not ended."""
    found = set()
    gone = (FileNotFoundError, ProcessLookupError)
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(*gone):  # a thread that has ended has no children
            for child in map(int, (task / "children").read_text().split()):
                with contextlib.suppress(*gone):
                    if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                        found.add(child)
    return found
