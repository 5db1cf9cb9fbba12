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

_CALLS = "fsync,fdatasync,sync_file_range,read,recvfrom,recvmsg,write,writev,sendto,sendmsg"
_NAMING = "link,linkat,rename,renameat,renameat2"
_ATTACH_S = 10.0
_DOT = r"\r\n.\r\n"
_READ = re.compile(r" (?:read|recvfrom|recvmsg)\(|<\.\.\. (?:read|recvfrom|recvmsg) resumed>")
_WRITE = re.compile(r" (?:write|writev|sendto|sendmsg)\(")
_SYNC = re.compile(r" (?:fsync|fdatasync)\(.*\) += 0|<\.\.\. (?:fsync|fdatasync) resumed>.* = 0")

_DIRECTORIES = ("preparing", "ready", "cur", "tmp")
_ACT = re.compile(
    r" (?P<what>fsync|sync_file_range|link|rename)(?:at2?)?"
    r"\((?:\d+<(?P<file>[^>]+)>|.*\"(?P<target>[^\"]+)\")"
)


class CannotTraceError(Exception):
    """Why strace cannot be used here."""


class SyncTrace:
    """Counts, after its block, the 250s with (`synced`) and without (`missing`) a sync before them.

    `submissions` has what was done on disk for each 202, as acts_before_202() says it.
    """

    def __init__(self, pid: int) -> None:
        strace = shutil.which("strace")
        if strace is None:
            raise CannotTraceError("strace is not installed")
        self._folder = Path(tempfile.mkdtemp(prefix="relay-trace-"))
        self._output = self._folder / "trace"
        self._said = self._folder / "said"
        self._command = [strace, "-f", "-y", "-s", "300000", "-p", str(pid)]
        self._command += ["-e", f"trace={_CALLS},{_NAMING}", "-o", str(self._output)]
        self.synced = self.missing = 0
        self.submissions: list[list[str]] = []

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
        trace = self._output.read_text(errors="replace")
        self.synced, self.missing = count_synced(trace)
        self.submissions = acts_before_202(trace)
        shutil.rmtree(self._folder)

    def _end(self) -> None:
        if self._strace.poll() is None:
            self._strace.send_signal(signal.SIGINT)
            self._strace.wait(10)


def acts_before_202(trace: str) -> list[list[str]]:
    """Return, for each 202, what was synced and named between its request and it, in order.

    An act is "fsync", "sync_file_range", "link" or "rename", and the directory by its last name,
    with a slash behind it where a file in it is meant.
    """
    answered: list[list[str]] = []
    acts: list[str] | None = None
    begun: dict[str, str] = {}  # a call that had not returned, by thread
    for line in trace.splitlines():
        thread = line.split(" ", 1)[0]
        if _READ.search(line) and "POST /v1.0/me/sendMail" in line:
            acts = []
        elif _WRITE.search(line) and "HTTP/1.1 202" in line and acts is not None:
            answered.append(acts)
            acts = None
        elif "<unfinished ...>" in line:
            begun[thread] = line
        elif acts is not None and line.rstrip().endswith("= 0"):
            whole = begun.pop(thread, "") + line if "resumed>" in line else line
            if match := _ACT.search(whole):
                acts.append(f"{match['what']} {_directory(match['file'] or match['target'])}")
    return answered


def _directory(path: str) -> str:
    names = path.split("/")
    if names[-1] in _DIRECTORIES:
        return names[-1]
    return next((f"{name}/" for name in reversed(names) if name in _DIRECTORIES), "")


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
