"""The limit of memory by control groups, and which memory counts as used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from relay.base.child_process import ChildProcess, status_of_children
from relay.operation.app import memory
from relay.operation.app.memory import MemoryBound, anonymous_bytes, counted_bytes, memory_bound
from tests.support.relay_process import until
from tests.support.tables import each_row

MIB = 1 << 20
ANON, SHMEM = 70 * MIB, 3 * MIB
V2 = f"anon {ANON}\nfile {900 * MIB}\nkernel 7\nshmem {SHMEM}\nslab {134 * MIB}\nanon_thp 9\n"
V1 = (
    f"cache {900 * MIB}\nrss 5\nshmem 6\nhierarchical_memory_limit 9\ntotal_cache {900 * MIB}\n"
    f"total_rss {ANON}\ntotal_rss_huge 7\ntotal_shmem {SHMEM}\ntotal_active_anon 8\n"
)
OF_V1, OF_V2 = "memory.limit_in_bytes", "memory.max"
UNLIMITED = {OF_V1: str((1 << 63) - 4096), OF_V2: "max"}
SERVICE = "system.slice/relay.service"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The control groups, and a /proc with the processes of this machine."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/status").symlink_to("/proc/self/status")
    for pid in (os.getpid(), os.getppid()):
        (proc / str(pid)).symlink_to(f"/proc/{pid}")
    monkeypatch.setattr(memory, "_PROC", proc)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    return tmp_path


def group_at(groups: Path, path: str, limit: int | None, *pids: int) -> Path:
    """Make a group of version 1 if its path is below `memory`, else of version 2."""
    is_v1 = path.startswith("memory")
    place = groups / "cgroup" / path
    place.mkdir(parents=True, exist_ok=True)
    name = OF_V1 if is_v1 else OF_V2
    (place / name).write_text(f"{UNLIMITED[name] if limit is None else limit}\n")
    (place / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    (place / "memory.stat").write_text(V1 if is_v1 else V2)
    return place


@pytest.mark.parametrize("text", [V1, V2], ids=["version 1", "version 2"])
def test_page_cache_and_slab_do_not_count(text: str) -> None:
    assert counted_bytes(text) == ANON + SHMEM


@pytest.mark.parametrize(
    ("line", "path", "limits", "counts_group"),
    [
        (f"0::/{SERVICE}", SERVICE, (None, 128 * MIB), True),
        (f"4:memory:/{SERVICE}", f"memory/{SERVICE}", (None, 128 * MIB), True),
        (f"4:hugetlb,memory:/{SERVICE}", f"memory/{SERVICE}", (256 * MIB, 128 * MIB), True),
        # in a container, the path is that outside, and its group is at the top
        ("0::/", "", (128 * MIB,), True),
        ("4:memory:/docker/1f", "memory", (128 * MIB,), True),
        # a parent has the limit, as for all containers of a pod
        (f"0::/{SERVICE}", SERVICE, (128 * MIB, None), False),
        (f"0::/{SERVICE}", SERVICE, (128 * MIB, 256 * MIB), False),
        (f"4:memory:/{SERVICE}", f"memory/{SERVICE}", (128 * MIB, None), False),
        # both have the same, as a pod with one container
        (f"0::/{SERVICE}", SERVICE, (128 * MIB, 128 * MIB), True),
        # no limit of memory
        (f"0::/{SERVICE}", SERVICE, (None, None), False),
        (f"5:pids:/{SERVICE}", f"memory/{SERVICE}", (None, 128 * MIB), False),
    ],
)
def test_the_group_is_measured_that_has_the_limit(
    groups: Path, settings_with, line, path, limits, counts_group
) -> None:
    (groups / "proc/self/cgroup").write_text(f"9:name=systemd:/\n{line}\n")
    *parents, own = limits
    for limit in parents:
        group_at(groups, str(Path(path).parent), limit)
    place = group_at(groups, path, own, os.getpid())
    bound = memory_bound(settings_with())
    limited = [limit for limit in limits if limit is not None]
    if limited and ":pids:" not in line:
        assert bound.limit_bytes == min(limited)
        assert bound.size_bytes == int(0.75 * min(limited))
    assert bound.group == (place if counts_group else None)
    assert (bound.used_bytes() == ANON + SHMEM) is counts_group
    set_to = memory_bound(settings_with(pressure={"memory": "300 MiB"}))
    assert (set_to.size_bytes, set_to.group) == (300 * MIB, bound.group)


def test_programs_of_others_in_the_group_do_not_count(groups: Path) -> None:
    """A job has a limit for all that it runs. What is hidden or has ended is not another's."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with child:
        (groups / f"proc/{child.pid}").symlink_to(f"/proc/{child.pid}")
        place = group_at(groups, "job", 128 * MIB, os.getpid(), child.pid, 1 << 30)
        bound = MemoryBound(128 * MIB, place, 0)
        assert bound.used_bytes() == ANON + SHMEM
        group_at(groups, "job", 128 * MIB, os.getpid(), child.pid, os.getppid())
        assert MIB < bound.used_bytes() != ANON + SHMEM
        child.communicate(b"\n")


def test_the_anonymous_memory_of_a_child_process_counts_until_it_ends() -> None:
    child = ChildProcess("json.tool")  # waits for its input
    try:
        until("its modules are loaded", lambda: max(map(anonymous, status_of_children())) > 3 * MIB)
    finally:
        child.end()
    assert f"Pid:\t{child.process.pid}\n".encode() not in b"".join(status_of_children())
    assert anonymous_bytes() >= anonymous(Path("/proc/self/status").read_bytes()) - MIB > 0


def anonymous(status: bytes) -> int:
    return 1024 * int((status.partition(b"RssAnon:")[2].split() or [b"0"])[0])


@each_row(
    "limit, configured, idle, expected",
    [
        (128, 0, 75, ""),
        (96, 0, 75, "the memory limit is 96 MiB, expected 128 MiB: an idle relay uses 75 MiB,"),
        (96, 0, 72, "the memory limit is 96 MiB, expected 128 MiB: an idle relay uses 72 MiB,"),
        (512, 64, 75, "pressure.memory is 64 MiB, expected 96 MiB: an idle relay uses 75 MiB,"),
        (64, 128, 75, ""),
    ],
)
def test_an_idle_relay_above_its_bound_names_the_size_that_would_do(
    limit: int, configured: int, idle: int, expected: str
) -> None:
    fault = MemoryBound(limit * MIB, None, configured * MIB).fault(idle * MIB)
    assert fault.startswith(expected)
    assert bool(fault) is bool(expected)
