"""What the memory of an idle relay is: by kind of mapping, and by package of Python.

    python -m tests.bench.memory                    smtp, serve, pages and dev
    python -m tests.bench.memory --relays dev --packages 30

`smtp` is a service without HTTP listeners, `serve` has the Graph API, `pages` the pages as well, and
`dev` is `relay dev`. Sizes are MB of PSS, some seconds after the start; a library counts in part where
other programs use it. What Python has allocated, by package, and the modules are those of a second
start, in which tracemalloc follows each allocation; "code" is what is read from compiled modules. It
exits with 1 if a relay takes more than its bound.
"""

import argparse
import json
import os
import re
import runpy
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from tests.support.dev_process import DevProcess
from tests.support.relay_process import ROOT, RelayProcess, until

IDLE_S = 5.0
RELAYS: Mapping[str, Mapping[str, Any]] = {
    "smtp": {"http": {"listen": []}},
    "serve": {},
    "pages": {"http": {"pages": True}},
    "dev": {},
}
BOUNDS_MB = {"smtp": 60, "serve": 85, "pages": 85, "dev": 85}
KINDS = ("anonymous", "heap", "libraries", "stacks", "files")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+) *(.*)")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ORDER, _ANSWER = "memory.order", "memory.json"  # in the folder of a traced relay


def main() -> int:
    """Measure, and print; return the exit status."""
    parser = argparse.ArgumentParser(description="What the memory of an idle relay is.")
    parser.add_argument("--relays", default=",".join(RELAYS), help="some of them, by commas")
    parser.add_argument("--packages", type=int, default=12, help="those that allocated most")
    given = parser.parse_args()
    print("MB      bound    PSS ", " ".join(f"{kind:>9}" for kind in KINDS), " modules")
    is_over = False
    for name in given.relays.split(","):
        sizes, processes, threads = idle(name)
        total_mb = sum(sizes.values()) / 1e6
        is_over |= total_mb > BOUNDS_MB[name]
        found = traced(name)
        parts = " ".join(f"{sizes[kind] / 1e6:9.1f}" for kind in KINDS)
        print(f"{name:6} {BOUNDS_MB[name]:6} {total_mb:6.1f}  {parts}  {len(found['modules'])}")
        print(f"       {processes} processes with {threads} threads; allocated by Python:", end=" ")
        largest = Counter(found["allocated"]).most_common(given.packages)
        print(", ".join(f"{package} {size / 1e6:.1f}" for package, size in largest), flush=True)
    return int(is_over)


def relay_of(name: str, environment: Mapping[str, str]) -> RelayProcess:
    """Return a relay that is not started, with the rules that are shipped."""
    if name == "dev":
        return DevProcess("--no-demo", environment=environment)
    policies = {"policy": {"directory": str(ROOT / "policies")}}
    return RelayProcess(config={**RELAYS[name], **policies}, environment=environment)


def idle(name: str) -> tuple[Counter[str], int, int]:
    """Return the PSS of an idle relay by kind of mapping, its processes and their threads."""
    own_python = {"PYTHONHASHSEED": "random"}  # not a fork of a process that starts relays
    with redirect_stderr(StringIO()), relay_of(name, own_python) as relay:  # it shows its log
        time.sleep(IDLE_S)
        assert relay.process is not None
        pids = process_tree(relay.process.pid)
        sizes = sum((kinds_of(Path(f"/proc/{pid}/smaps").read_text()) for pid in pids), Counter())
        threads = sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids)
    return sizes, len(pids), threads


def process_tree(pid: int) -> list[int]:
    """Return a process and all that it has started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += process_tree(int(child))
    return found


def kinds_of(smaps: str) -> Counter[str]:
    """Return the PSS in bytes by kind of mapping, from the text of a smaps file (proc(5))."""
    found: Counter[str] = Counter()
    kind, guard_end = "", 0
    for line in smaps.splitlines():
        if mapping := _MAPPING.fullmatch(line):
            start, end = int(mapping[1], 16), int(mapping[2], 16)
            permissions, inode, name = mapping.groups()[2:]
            if inode != "0":
                kind = "libraries" if re.search(r"\.so\b", name) else "files"
            elif name == "[heap]":
                kind = "heap"
            else:
                kind = "stacks" if start == guard_end or name == "[stack]" else "anonymous"
            is_guard = permissions == "---p" and end - start == _PAGE_BYTES
            guard_end = end if is_guard else 0
        elif line.startswith("Pss:"):
            found[kind] += int(line.split()[1]) * 1024
    return found


def traced(name: str) -> dict[str, Any]:
    """Return the modules of an idle relay, and the bytes that Python has allocated by package."""
    relay = relay_of(name, {"PYTHONTRACEMALLOC": "1"})
    words = relay._start_command()
    command = [words[0], "-m", "tests.bench.memory", "--inside", str(relay.folder), *words[3:]]
    relay._start_command = lambda: command  # type: ignore[method-assign]
    with redirect_stderr(StringIO()), relay:
        time.sleep(IDLE_S)
        (relay.folder / _ORDER).touch()
        answer = relay.folder / _ANSWER
        until("its answer", lambda: answer.exists() or relay.process_ended)
        return dict(json.loads(answer.read_text()))


def run_inside(folder: Path, words: Sequence[str]) -> None:
    """Run the relay command, and write what it has allocated into `folder` when asked to."""

    def answer() -> None:
        while not (folder / _ORDER).exists():
            time.sleep(0.1)
        allocated: Counter[str] = Counter()
        for one in tracemalloc.take_snapshot().statistics("filename"):
            allocated[package_of(one.traceback[0].filename)] += one.size
        part = folder / (_ANSWER + ".part")
        part.write_text(json.dumps({"modules": sorted(sys.modules), "allocated": allocated}))
        part.rename(folder / _ANSWER)

    threading.Thread(target=answer, daemon=True).start()
    sys.argv = ["relay", *words]
    runpy.run_module("relay", run_name="__main__")


def package_of(file: str) -> str:
    """Return the room of Relay, the library, or the module of Python that a file belongs to."""
    if "importlib._bootstrap" in file:
        return "code"
    if found := re.search(r"/(relay/\w+)[/.]", file.removeprefix(str(ROOT.parent))):
        return found[1]
    if found := re.search(r".*(?:site-packages|python3\.\d+)/(\w+)", file):
        return found[1]
    return "other"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        run_inside(Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(main())
