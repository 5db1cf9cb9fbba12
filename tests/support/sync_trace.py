"""Watch a process and its children with strace while they take mail: does a sync stand before each
250 and each 202?

    with SyncTrace(pid) as trace:
        ... messages go in, as many at the same time as one likes ...
    assert trace.missing == 0 and trace.synced == 5

What counts is a sync that began after the last octet that came on the connection of the answer,
and that returned 0 before the answer was written. Raises CannotTraceError where strace is missing
or may not attach. See RFC 5321 6.1 (what a 250 promises).
"""

import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_SYNCS = "fsync,fdatasync"
_CALLS = f"{_SYNCS},sync_file_range,read,recvfrom,recvmsg,write,writev,sendto,sendmsg"
_NAMING = "link,linkat,rename,renameat,renameat2"
_ATTACH_S = 10.0
_SHOWN_OCTETS = 200
_QUEUED = "250 2.0.0 Ok: queued"
_ACCEPTED = "HTTP/1.1 202"
_READ = re.compile(r"(?:read|recvfrom|recvmsg)\((\d+(?:<[^>]*>)?),.* = [1-9]\d*$")
_WRITE = re.compile(r"(?:write|writev|sendto|sendmsg)\((\d+(?:<[^>]*>)?),")
_SYNC = re.compile(r"(?:fsync|fdatasync)\(\d+(?:<([^>]*)>)?.*\) += 0$")
_LINE = re.compile(r"(\d+) +(?:<\.\.\. \w+ resumed>)?(.*?)( <(?:unfinished|detached) \.\.\.>)?$")

_DIRECTORIES = ("preparing", "ready", "cur", "tmp")
_ACT = re.compile(
    r"(?P<what>fsync|sync_file_range|link|rename)(?:at2?)?"
    r"\((?:\d+<(?P<file>[^>]+)>|.*\"(?P<target>[^\"]+)\")"
)


class CannotTraceError(Exception):
    """Why strace cannot be used here."""


class Strace:
    """strace at a process that runs, while the block runs. `output` is what it wrote, behind it."""

    def __init__(self, pid: int, *words: str) -> None:
        strace = shutil.which("strace")
        if strace is None:
            raise CannotTraceError("strace is not installed")
        self._folder = Path(tempfile.mkdtemp(prefix="relay-trace-"))
        self._file = self._folder / "trace"
        self._said = self._folder / "said"
        self._watched = [str(pid), *_children_of(pid)]
        pids = ",".join(self._watched)
        self._command = [strace, "-f", "-p", pids, "-o", str(self._file), *words]
        self.output = ""

    def __enter__(self) -> Self:
        with self._said.open("wb") as said:
            self._strace = subprocess.Popen(self._command, stderr=said)
        deadline = time.monotonic() + _ATTACH_S
        while not self._is_attached():
            if self._strace.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise CannotTraceError(f"strace may not attach: {self._said.read_text().strip()}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self.output = self._file.read_text(errors="replace")
        shutil.rmtree(self._folder)

    def _is_attached(self) -> bool:
        said = self._said.read_text()
        return all(f"Process {pid} attached" in said for pid in self._watched)

    def _end(self) -> None:
        if self._strace.poll() is None:
            self._strace.send_signal(signal.SIGINT)
            self._strace.wait(10)


def _children_of(pid: int) -> list[str]:
    """Return the processes that a process has started: one of them may have the SMTP sessions."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for one in lists for child in one.read_text().split()]


class SyncTrace(Strace):
    """Counts, after its block, the 250s with (`synced`) and without (`missing`) a sync before them.

    `queued` has what was synced for each 250, and `accepted` for each 202: the files' paths.
    `submissions` has what was done on disk for each 202 of one client, as acts_before_202() says it.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(pid, "-y", "-s", str(_SHOWN_OCTETS), "-e", f"trace={_CALLS},{_NAMING}")
        self.synced = self.missing = 0
        self.queued: list[list[str]] = []
        self.accepted: list[list[str]] = []
        self.submissions: list[list[str]] = []

    def __exit__(self, *why: object) -> None:
        super().__exit__(*why)
        self.queued = synced_before(self.output, _QUEUED)
        self.accepted = synced_before(self.output, _ACCEPTED)
        self.missing = self.queued.count([])
        self.synced = len(self.queued) - self.missing
        self.submissions = acts_before_202(self.output)


@dataclass(frozen=True)
class _Call:
    """A call, and the numbers of the lines where it began and ended. One that had not returned when
    strace left ended where it began: an answer may be with its client before its write returns.
    """

    text: str
    began: int
    ended: int


def _calls(trace: str) -> Iterator[_Call]:
    """Put together again what strace tore apart because other threads came between."""
    begun: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(trace.splitlines()):
        if (found := _LINE.match(line)) is None:
            continue
        thread, text, unfinished = found.groups()
        if unfinished:
            begun[thread] = (text, number)
            continue
        before, began = begun.pop(thread, ("", number)) if "resumed>" in line else ("", number)
        yield _Call(before + text, began, number)
    for text, began in begun.values():
        yield _Call(text, began, began)


def synced_before(trace: str, answer: str) -> list[list[str]]:
    """Return, for each answer that begins so, which files were synced since its last octet came."""
    answered: list[list[str]] = []
    last_read: dict[str, int] = {}
    syncs: list[tuple[_Call, str]] = []
    for call in _calls(trace):
        if found := _SYNC.match(call.text):
            syncs.append((call, found[1] or "?"))
        elif found := _READ.match(call.text):
            last_read[found[1]] = call.ended
        elif (found := _WRITE.match(call.text)) and f'"{answer}' in call.text:
            came = last_read.get(found[1], -1)
            between = [path for sync, path in syncs if came < sync.began <= sync.ended < call.began]
            answered.append(between)
    return answered


def is_in_order(syncs: Sequence[str], *endings: str) -> bool:
    """Whether among `syncs` there are some whose paths end so, one behind the other."""
    coming = iter(syncs)
    return all(any(path.endswith(ending) for path in coming) for ending in endings)


def acts_before_202(trace: str) -> list[list[str]]:
    """Return, for each 202, what was synced and named between its request and it, in order.

    An act is "fsync", "sync_file_range", "link" or "rename", and the directory by its last name,
    with a slash behind it where a file in it is meant.
    """
    answered: list[list[str]] = []
    acts: list[str] | None = None
    for call in _calls(trace):
        if _READ.match(call.text) and "POST /v1.0/me/sendMail" in call.text:
            acts = []
        elif _WRITE.match(call.text) and _ACCEPTED in call.text and acts is not None:
            answered.append(acts)
            acts = None
        elif acts is not None and call.text.endswith("= 0") and (found := _ACT.match(call.text)):
            acts.append(f"{found['what']} {_directory(found['file'] or found['target'])}")
    return answered


def _directory(path: str) -> str:
    names = path.split("/")
    if names[-1] in _DIRECTORIES:
        return names[-1]
    return next((f"{name}/" for name in reversed(names) if name in _DIRECTORIES), "")
