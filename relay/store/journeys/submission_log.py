"""The submission log: steps 1 to 4 of every submission, one JSON line each, one file per day and
role.

The log is append-only. A line is written with one write(2); incomplete and damaged lines are
skipped. Writing raises OSError.
"""

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, to_builtins
from msgspec.structs import asdict, replace

from relay.base.clock import Clock, id_time_us, now_at_least_us, time_us_of
from relay.base.files import lines_backwards
from relay.base.message.address import own_mailbox
from relay.base.message.envelope import Client
from relay.store.journeys import message_list
from relay.store.journeys.details import NotifiedDetail, read_known
from relay.store.journeys.document import JourneyStep, details_in
from relay.store.journeys.events import Event, LogLine, Step, journey_step, parse_line
from relay.store.journeys.open_submissions import OpenSubmissions

_DAY_US, _HOUR_US = 86_400_000_000, 3_600_000_000
_LINES_AT_ONCE = 1000
KeptOf = Callable[[Sequence[str]], Awaitable[Collection[str]]]
_RECIPIENTS_MAX = 1000  # in a line


class SubmissionFacts(Struct, frozen=True):
    """The facts of a submission, in its line of step 1. `recipients` include Bcc."""

    submission_id: str
    graph_id: str
    account: str
    sender: str
    message_id: str = ""
    subject: str = ""
    recipients: tuple[str, ...] = ()


class SubmissionRecord(Struct, frozen=True):
    """What the log has of a submission: its facts, and steps 1 to 4 in their order."""

    facts: SubmissionFacts
    steps: list[JourneyStep]


@dataclass(eq=False, repr=False)
class SubmissionLog:
    """Appends the steps of one role and finds submissions in the logs of all roles.

    `directory` is `<mailboxes.root>/.submissions/log`; on first use it is created within
    `.submissions`. Each step names `node`, if that is given.
    """

    directory: Path
    role: str
    clock: Clock
    on_append: Callable[[], None] = lambda: None  # in its thread, once the step can be read
    node: str = ""

    def __post_init__(self) -> None:
        self._node = {"node": self.node} if self.node else {}
        self._lock = threading.Lock()  # the store appends in its threads, pickup on the loop
        self._file: int | None = None
        self._day = -1  # the day of the open file, counted from 1970
        self._followed = OpenSubmissions(self._files)

    def append(self, facts: SubmissionFacts, *events: Event, queue_id: str = "") -> None:
        """Write steps with one write(2), so that readers never see a part of a line."""
        lines = []
        for event in events:
            line: dict[str, Any] = {
                "submission_id": facts.submission_id,
                "step": event.detail.step,
                "at_us": event.at_us,
                "detail": {**to_builtins(event.detail), **self._node},
            }
            if event.detail.step == Step.CREATED:  # the other steps are joined to this line
                line |= _names(facts)
            else:
                line["owner"] = facts.account
            if queue_id:
                line["queue_id"] = queue_id
            lines.append(line)
        self._write(*lines)

    def withdraw(self, facts: SubmissionFacts) -> None:
        """Record that a submission was rejected and has no journey."""
        line = self._remark_of(facts.submission_id) | {"withdrawn": True}
        self._write(line | _names(facts))

    def remark(self, submission_id: str, detail: NotifiedDetail, *, account: str) -> None:
        """Add `detail` to step 2 of a submission, for what happened before step 3."""
        line = self._remark_of(submission_id)
        self._write(line | {"detail": detail, "owner": account})

    def _remark_of(self, submission_id: str) -> dict[str, Any]:
        return {"submission_id": submission_id, "step": 0, "at_us": self.clock.time_us()}

    def _write(self, *lines: dict[str, Any]) -> None:
        octets = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        with self._lock:
            file = self._todays_file()
            written = os.write(file, octets)
            if written < len(octets):  # the disk is full: a partial line would damage the next one
                os.ftruncate(file, os.fstat(file).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.on_append()

    def _todays_file(self) -> int:
        now_us = self.clock.time_us()
        day = now_us // _DAY_US
        if self._file is None or day > self._day:
            self._close()
            self.directory.mkdir(exist_ok=True)
            # The day never goes back, even if the clock does: readers follow the days.
            names = [path.name for path in self._files() if path.name.endswith(f"-{self.role}")]
            path = self.directory / max([*names, f"{_day_of(now_us)}-{self.role}"])
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            self._day = day
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":  # a crash left a partial line
                os.write(self._file, b"\n")
        return self._file

    def clear(self) -> None:
        """Remove all files."""
        with self._lock:
            self._close()
            for path in self._files():
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close today's file; the next step opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    async def submission(self, submission_id: str) -> SubmissionRecord | None:
        """Return the steps of a submission, None if there are none or it was withdrawn."""
        return await asyncio.to_thread(self._submission, submission_id)

    async def find_submission_ids(
        self, key: str, *, account: str | None, limit: int
    ) -> Sequence[str]:
        """Return the ids of submissions that have this name or address, newest first."""
        return await asyncio.to_thread(self._find, key, account, limit)

    async def submitted_by(self, search: message_list.MessageSearch) -> tuple[frozenset[str], int]:
        """Return the submissions that a client has made by HTTP, and since when they are complete.

        At most SCAN_MAX are read, and the others of that day. The time is 0 if there are no more.
        """
        return await asyncio.to_thread(self._submitted_by, search)

    async def open_submissions(self) -> Sequence[message_list.OpenSubmission]:
        """Return the newest submissions that are not recorded as accepted."""
        return await asyncio.to_thread(self._followed.read)

    def hold_reasons(self) -> dict[str, str]:
        """Return why submissions are held, by their ids; blocks."""
        read = self._followed.read()
        return {left.submission_id: left.reply for left in read if left.state == "held"}

    async def prune(self, before_us: int, kept_of: KeptOf) -> int:
        """Remove the files of the days before `before_us` in which no submission is kept; return
        their number. `kept_of` returns some of the submissions that are kept, if any are.
        """
        removed = 0
        # the file of an hour ago may still be written
        first = _day_of(min(before_us, now_at_least_us(self.clock) - _HOUR_US))
        for path in self._files():
            if path.name[:_DAY_CHARACTERS] < first and not await _has_kept(path, kept_of):
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def client_of(self, submission_id: str) -> Client | None:
        """Return the client that step 2 of a submission names; blocks."""
        submission = self._submission(submission_id)
        notified = details_in(submission.steps if submission else (), NotifiedDetail)
        return next((step.client for step in notified), None)

    def _submission(self, submission_id: str) -> SubmissionRecord | None:
        earliest = self._created_us(submission_id)
        facts = SubmissionFacts(submission_id, graph_id="", account="", sender="")
        steps: dict[int, LogLine] = {}
        remark: dict[str, Any] = {}
        needle = submission_id.lower().encode()
        for path in self._files():
            if earliest is not None and path.name[:10] < _day_of(earliest):
                break
            for line in lines_backwards(path, needle):
                if (logged := parse_line(line)) is None or logged.submission_id != submission_id:
                    continue
                if logged.withdrawn:
                    return None
                if not logged.step:
                    remark = {**logged.detail, **remark}
                    continue
                if logged.step == Step.REPORT and logged.step in steps:
                    continue  # the last report counts; of other steps, the first line
                steps[logged.step] = logged
                if logged.step == Step.CREATED:
                    facts = SubmissionFacts(*(getattr(logged, name) for name in _FACTS))
                    break  # its other steps are later in the file and were read before
        if not steps:
            return None
        if remark and (notified := steps.get(Step.NOTIFIED)):
            steps[Step.NOTIFIED] = replace(notified, detail={**notified.detail, **remark})
        lines = [steps[step] for step in sorted(steps)]
        return SubmissionRecord(facts, [journey_step(x.step, x.at_us, x.detail) for x in lines])

    def _created_us(self, identifier: str) -> int | None:
        """Return when an id was created, None if unknown. No earlier line has the id.

        An id from the future was created under a wrong clock, so its time is unknown.
        """
        created_us = id_time_us(identifier)
        return created_us if created_us is None or created_us <= self.clock.time_us() else None

    def _find(self, key: str, account: str | None, limit: int) -> list[str]:
        submission_ids: dict[str, None] = {}
        withdrawn: set[str] = set()  # written after the steps, so read before them
        lowered = own_mailbox(key)
        # bytes.lower() changes ASCII only, and old lines have U-labels
        plain = key != "last" and key.isascii() and "xn--" not in lowered
        needle = msgspec.json.encode(lowered)[1:-1] if plain else b""
        created_us = None if "@" in key else self._created_us(key)
        for path in self._files():
            if created_us is not None and path.name[:10] < _day_of(created_us):
                break  # no earlier log contains an id
            for line in lines_backwards(path, needle):
                if (logged := parse_line(line)) is None:
                    continue
                if not logged.has_facts or account not in (None, logged.account):
                    continue
                names = (logged.submission_id, logged.graph_id, logged.message_id)
                addresses = (logged.sender, *logged.recipients)
                if logged.submission_id in withdrawn:
                    continue
                if logged.withdrawn:
                    withdrawn.add(logged.submission_id)
                elif key == "last" or key in names or lowered in map(own_mailbox, addresses):
                    submission_ids[logged.submission_id] = None
                    if len(submission_ids) >= limit:
                        return list(submission_ids)
        return list(submission_ids)

    def _submitted_by(self, search: message_list.MessageSearch) -> tuple[frozenset[str], int]:
        submissions: set[str] = set()
        literal = max(search.client.lower().replace("?", "*").split("*"), key=len)
        needle = b"" if "/" in search.client else literal.encode()
        first = _day_of(search.from_us)
        begin = last = _day_of(search.until_us) if search.until_us else "~"
        for path in self._files():
            day = path.name[:_DAY_CHARACTERS]
            if len(submissions) >= message_list.SCAN_MAX and first <= day < begin:
                return frozenset(submissions), time_us_of(f"{begin}T00:00:00Z")
            for line in lines_backwards(path, needle) if first <= day <= last else ():
                begin = day
                logged = parse_line(line)
                if logged and logged.step == Step.NOTIFIED and search.is_in_time(logged.at_us):
                    client = read_known(NotifiedDetail, logged.detail).client or Client()
                    if message_list.matches_client(search.client, client.address):
                        submissions.add(logged.submission_id)
        return frozenset(submissions), 0

    def _files(self) -> list[Path]:
        """Return the files, newest day first."""
        return _files(self.directory)[::-1]


_FACTS = SubmissionFacts.__struct_fields__
_LAST_S = 253_402_300_799  # of the year 9999


def _names(facts: SubmissionFacts) -> dict[str, Any]:
    """Return the facts by which a submission can be found."""
    subject = facts.subject[: message_list.SUBJECT_CHARACTERS_MAX]
    return asdict(replace(facts, subject=subject, recipients=facts.recipients[:_RECIPIENTS_MAX]))


def _day_of(time_us: int) -> str:
    return f"{datetime.fromtimestamp(min(time_us // 1_000_000, _LAST_S), UTC):%Y-%m-%d}"


_READ_BYTES_MAX = 1 << 20
_DAY_CHARACTERS = 10


def read_accepted(directory: Path, *, since_us: int) -> Iterator[LogLine]:
    """Yield every step 4 since a time, with the recipients of its step 1. Raises OSError."""
    recipients: dict[str, tuple[str, ...]] = {}  # of what was not accepted yet
    for path in _files(directory):
        if path.name[:_DAY_CHARACTERS] >= _day_of(since_us):
            for line in _lines(path):
                if line.step == Step.CREATED:
                    recipients[line.submission_id] = line.recipients
                elif line.step == Step.ACCEPTED and line.at_us >= since_us:
                    yield replace(line, recipients=recipients.pop(line.submission_id, ()))


def _lines(path: Path) -> Generator[LogLine, None, None]:
    try:
        file = path.open("rb")
    except FileNotFoundError:  # pruned meanwhile
        return
    with file:
        while line := file.readline(_READ_BYTES_MAX):
            if (logged := parse_line(line)) is not None:
                yield logged


async def _has_kept(path: Path, kept_of: KeptOf) -> bool:
    with closing(_lines(path)) as lines:
        while batch := await asyncio.to_thread(lambda: [*islice(lines, _LINES_AT_ONCE)]):
            if await kept_of([*{line.submission_id for line in batch}]):
                return True
    return False


def _files(directory: Path) -> list[Path]:
    """Return the files, oldest day first."""
    try:
        names = [path for path in directory.iterdir() if path.name[:1].isdigit()]
    except FileNotFoundError:
        return []
    return sorted(names, key=lambda path: (path.name[:_DAY_CHARACTERS], path.name))
