"""Watch a process with strace while it takes mail: does a sync stand before each 250?

    with SyncTrace(pid) as trace:
        ... messages go in, one after the other ...
    assert trace.missing == 0 and trace.synced == 5

On the path: an interop test and tests/bench/sync_check.py use it.
Holds: what counts is a sync that returned 0 between the read of the final dot and the write of the 250.
Fails: CannotTraceError where strace is missing or may not attach.
Standards: RFC 5321 6.1 (what a 250 promises).
"""

import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

_CALLS = "fsync,fdatasync,read,recvfrom,recvmsg,write,writev,sendto,sendmsg"
_ATTACH_S = 10.0
_DOT = r"\r\n.\r\n"
_READ = re.compile(r" (?:read|recvfrom|recvmsg)\(|<\.\.\. (?:read|recvfrom|recvmsg) resumed>")
_WRITE = re.compile(r" (?:write|writev|sendto|sendmsg)\(")
_SYNC = re.compile(r" (?:fsync|fdatasync)\(.*\) += 0|<\.\.\. (?:fsync|fdatasync) resumed>.* = 0")


class CannotTraceError(Exception):
    """Why strace cannot be used here."""


class SyncTrace:
    """Counts, after its block, the 250s with (`synced`) and without (`missing`) a sync before them."""

    def __init__(self, pid: int) -> None:
        strace = shutil.which("strace")
        if strace is None:
            raise CannotTraceError("strace is not installed")
        self._folder = Path(tempfile.mkdtemp(prefix="relay-trace-"))
        self._output = self._folder / "trace"
        self._said = self._folder / "said"
        self._command = [strace, "-f", "-s", "300000", "-e", f"trace={_CALLS}", "-p", str(pid)]
        self._command += ["-o", str(self._output)]
        self.synced = self.missing = 0

    def __enter__(self) -> Self:
        with self._said.open("wb") as said:
            self._strace = subprocess.Popen(self._command, stderr=said)
        deadline = time.monotonic() + _ATTACH_S
        while "attached" not in self._said.read_text():
            if self._strace.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise CannotTraceError(f"strace may not attach: {self._said.read_text().strip()}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self.synced, self.missing = count_synced(self._output.read_text(errors="replace"))
        shutil.rmtree(self._folder)

    def _end(self) -> None:
        if self._strace.poll() is None:
            self._strace.send_signal(signal.SIGINT)
            self._strace.wait(10)


def count_synced(trace: str) -> tuple[int, int]:
    """Return how many 250s to a final dot had a sync behind the dot, and how many had none."""
    synced = missing = 0
    dot_seen = sync_seen = False
    for line in trace.splitlines():
        if _SYNC.search(line):
            sync_seen = dot_seen
        elif _WRITE.search(line) and "250 2.0.0 Ok: queued" in line:
            synced += dot_seen and sync_seen
            missing += not (dot_seen and sync_seen)
            dot_seen = sync_seen = False
        elif _READ.search(line) and _DOT in line:
            dot_seen, sync_seen = True, False
    return synced, missing
