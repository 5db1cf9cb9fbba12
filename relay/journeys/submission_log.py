"""The store's log: steps 1 to 4 of every submission, one JSON line each, a file a day and role.

On the path: mailbox and pickup append; the journey reads.
Holds: append-only; a line is whole or it is not read; unique by step when read.
Fails: OSError when the disk refuses; a damaged line is skipped.
Standards: none.
"""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from relay.clock import Clock, id_time_us, now_at_least_us
from relay.journeys.events import Event, Step

_DAY_US = 86_400_000_000
_CHUNK_BYTES = 1 << 20
_RECIPIENTS_MAX = 1000  # in a line
_LINE_BYTES_MAX = 512 * 1024  # so many addresses of 320 characters, and room for the rest


@dataclass(frozen=True, slots=True)
class SubmissionFacts:
    """What every line says of its submission. `recipients` are addresses, Bcc included."""

    submission_id: str
    graph_id: str
    account: str
    sender: str
    message_id: str = ""
    subject: str = ""
    recipients: tuple[str, ...] = ()


class SubmissionLog:
    """Appends the steps of one role and finds submissions in the logs of all roles."""

    def __init__(
        self,
        directory: Path,
        *,
        role: str,
        clock: Clock,
        on_append: Callable[[], None] = lambda: None,
    ) -> None:
        """`directory` is `<mailboxes.root>/.submissions/log`; it is made on first use.

        `on_append` is called in the thread that appended, when the step can be read.
        """
        self._directory = directory
        self._role = role
        self._clock = clock
        self._on_append = on_append
        self._lock = threading.Lock()  # the store appends in its threads, pickup on the loop
        self._file: int | None = None
        self._day = -1  # whose file that is, counted from 1970

    def append(self, facts: SubmissionFacts, *events: Event, queue_id: str = "") -> None:
        """Write steps in one write(2), so that readers never see a part of a line."""
        lines = []
        for event in events:
            line: dict[str, Any] = {
                "submission_id": facts.submission_id,
                "step": int(event.step),
                "at_us": event.at_us,
                "detail": event.detail,
            }
            if event.step is Step.CREATED:  # the other steps are joined to this line
                line |= _names(facts)
            if queue_id:
                line["queue_id"] = queue_id
            lines.append(line)
        self._write(*lines)

    def withdraw(self, facts: SubmissionFacts) -> None:
        """Say that a submission came to nothing: its client was told so, and it has no journey."""
        line = {"submission_id": facts.submission_id, "step": 0, "withdrawn": True}
        self._write(line | _names(facts))

    def remark(self, submission_id: str, detail: Mapping[str, Any]) -> None:
        """Add to what step 2 of a submission says: what became of it before step 3."""
        self._write({"submission_id": submission_id, "step": 0, "detail": dict(detail)})

    def _write(self, *lines: dict[str, Any]) -> None:
        octets = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        with self._lock:
            file = self._todays_file()
            written = os.write(file, octets)
            if written < len(octets):  # the disk is full: half a line would spoil the next one
                os.ftruncate(file, os.fstat(file).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._on_append()

    def _todays_file(self) -> int:
        now_us = self._clock.time_us()
        day = now_us // _DAY_US
        if self._file is None or day > self._day:  # ids do not go back with the clock either
            self.close()
            self._directory.mkdir(parents=True, exist_ok=True)
            path = self._directory / f"{_day_of(now_us)}-{self._role}"
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            self._day = day
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":  # a crash cut a line short
                os.write(self._file, b"\n")
        return self._file

    def close(self) -> None:
        """Close today's file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    async def submission(self, submission_id: str) -> dict[str, Any] | None:
        """Facts and steps 1 to 4 of one submission (StoreJourneys)."""
        return await asyncio.to_thread(self._submission, submission_id)

    async def find_submission_ids(
        self, key: str, *, account: str | None, limit: int
    ) -> Sequence[str]:
        """Submission ids by any of their names, newest first (StoreJourneys)."""
        return await asyncio.to_thread(self._find, key, account, limit)

    def prune(self, keep_days: int) -> int:
        """Remove whole days older than `keep_days`; return how many files went."""
        before_us = now_at_least_us(self._clock) - keep_days * _DAY_US
        oldest = datetime.fromtimestamp(before_us // 1_000_000, UTC)
        old = [path for path in self._files() if path.name[:10] < f"{oldest:%Y-%m-%d}"]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def client_of(self, submission_id: str) -> dict[str, str] | None:
        """Return the client that step 2 of a submission names; blocks while it reads the logs."""
        steps = (self._submission(submission_id) or {}).get("steps", ())
        found = [step["detail"].get("client") for step in steps if step["step"] == Step.NOTIFIED]
        return found[0] if found else None

    def _submission(self, submission_id: str) -> dict[str, Any] | None:
        earliest = self._made_us(submission_id)
        found: dict[str, Any] = {"submission_id": submission_id, "queue_id": None, "steps": []}
        steps: dict[int, Event] = {}
        remark: dict[str, Any] = {}
        wanted = submission_id.encode()
        for path in self._files():
            if earliest is not None and path.name[:10] < _day_of(earliest):
                break
            for line in _lines_backwards(path):
                if wanted not in line or (told := _decoded(line)) is None:
                    continue
                if told.get("submission_id") != submission_id:
                    continue
                if "withdrawn" in told:
                    return None
                step = int(told["step"])
                if not step:
                    remark = {**told.get("detail", {}), **remark}
                    continue
                if step == Step.REPORT and step in steps:
                    continue  # where it went at last is told last; of the others the first holds
                steps[step] = Event(Step(step), int(told["at_us"]), told.get("detail", {}))
                if told.get("queue_id"):
                    found["queue_id"] = told["queue_id"]
                if step == Step.CREATED:
                    found |= {name: told[name] for name in _FACTS if name in told}
                    break  # its other steps come later in the file, and were seen
        if not steps:
            return None
        if remark and (noted := steps.get(Step.NOTIFIED)):
            steps[Step.NOTIFIED] = replace(noted, detail={**noted.detail, **remark})
        found["steps"] = [steps[step].as_json() for step in sorted(steps)]
        return found

    def _made_us(self, identifier: str) -> int | None:
        """When an id was made, before which no line is about it; None if that is not known.

        An id from the future was made by a wrong clock, whose days come before those of now.
        """
        made_us = id_time_us(identifier)
        return made_us if made_us is None or made_us <= self._clock.time_us() else None

    def _find(self, key: str, account: str | None, limit: int) -> list[str]:
        found: dict[str, None] = {}
        withdrawn: set[str] = set()  # said behind the steps, and so read before them
        lowered = key.lower()
        plain = key != "last" and key.isascii()  # bytes know no other letters' small ones
        wanted = msgspec.json.encode(lowered)[1:-1] if plain else b""
        made_us = None if "@" in key else self._made_us(key)
        for path in self._files():
            if made_us is not None and path.name[:10] < _day_of(made_us):
                break  # an id is in no log of a day before its own
            for line in _lines_backwards(path):
                if wanted not in line.lower() or (told := _decoded(line)) is None:
                    continue
                if "account" not in told or account not in (None, told["account"]):
                    continue
                names = (told["submission_id"], told["graph_id"], told["message_id"])
                people = (told["sender"], *told["recipients"])
                if told["submission_id"] in withdrawn:
                    continue
                if "withdrawn" in told:
                    withdrawn.add(told["submission_id"])
                elif key == "last" or key in names or lowered in map(str.lower, people):
                    found[told["submission_id"]] = None
                    if len(found) >= limit:
                        return list(found)
        return list(found)

    def _files(self) -> list[Path]:
        """Newest day first."""
        try:
            names = [path for path in self._directory.iterdir() if path.name[:1].isdigit()]
        except FileNotFoundError:
            return []
        return sorted(names, key=lambda path: (path.name[:10], path.name), reverse=True)


_FACTS = ("graph_id", "account", "sender", "message_id", "subject", "recipients")


def _names(facts: SubmissionFacts) -> dict[str, Any]:
    """What a submission can be found by."""
    return {
        "graph_id": facts.graph_id,
        "account": facts.account,
        "sender": facts.sender,
        "message_id": facts.message_id,
        "subject": facts.subject[:200],
        "recipients": facts.recipients[:_RECIPIENTS_MAX],
    }


def _day_of(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us // 1_000_000, UTC):%Y-%m-%d}"


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        told = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return told if isinstance(told, dict) and "submission_id" in told and "step" in told else None


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """Yield a file's lines from the last to the first in bounded memory;
    overlong lines are skipped.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:  # pruned meanwhile
        return
    with file:
        end = file.seek(0, os.SEEK_END)
        rest = b""
        while end > 0:
            start = max(0, end - _CHUNK_BYTES)
            file.seek(start)
            block = file.read(end - start) + rest
            first, _, complete = block.partition(b"\n")
            if start == 0:
                complete, first = block, b""
            yield from reversed(complete.splitlines())
            rest = first + b"\n" if start and len(first) < _LINE_BYTES_MAX else b""
            end = start


_READ_BYTES_MAX = 1 << 20
_DAY_CHARACTERS = 10


@dataclass(frozen=True, slots=True)
class UnfinishedSubmission:
    """A submission that was notified, when, and by whom."""

    account: str
    draft_id: str
    at_us: int


@dataclass(slots=True)
class LoggedSubmissions:
    """`accepted`: those whose step 4 is recorded, among the ones that were asked for.

    `open`: by submission id, those that were notified and came to no end.
    """

    accepted: set[str] = field(default_factory=set)
    open: dict[str, UnfinishedSubmission] = field(default_factory=dict)


def read_submissions(directory: Path, *, among: Collection[str]) -> LoggedSubmissions:
    """Read the log of all roles. Raises OSError."""
    found = LoggedSubmissions()
    for _, files in groupby(_files(directory), key=lambda path: path.name[:_DAY_CHARACTERS]):
        ended: set[str] = set()
        for path in files:
            _read_file(path, found, ended, among=among)
        for submission_id in ended & found.open.keys():
            del found.open[submission_id]
    return found


def _read_file(
    path: Path, found: LoggedSubmissions, ended: set[str], *, among: Collection[str]
) -> None:  # fmt: skip
    names: dict[str, tuple[str, str]] = {}
    for told in _lines(path):
        submission_id, step = str(told.get("submission_id")), told.get("step")
        detail = told.get("detail") or {}
        if step == Step.CREATED:
            names[submission_id] = str(told.get("account")), str(told.get("graph_id"))
        elif step == Step.NOTIFIED and submission_id in names:
            account, draft_id = names.pop(submission_id)
            at_us = int(told.get("at_us", 0))
            found.open[submission_id] = UnfinishedSubmission(account, draft_id, at_us)
        elif step in (Step.ACCEPTED, Step.REPORT) or told.get("withdrawn") or "cancelled" in detail:
            ended.add(submission_id)
            if step == Step.ACCEPTED and submission_id in among:
                found.accepted.add(submission_id)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = path.open("rb")
    except FileNotFoundError:  # pruned meanwhile
        return
    with file:
        while line := file.readline(_READ_BYTES_MAX):
            try:
                told = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if isinstance(told, dict):
                yield told


def _files(directory: Path) -> list[Path]:
    """Oldest day first."""
    try:
        names = [path for path in directory.iterdir() if path.name[:1].isdigit()]
    except FileNotFoundError:
        return []
    return sorted(names, key=lambda path: (path.name[:_DAY_CHARACTERS], path.name))
