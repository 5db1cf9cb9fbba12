"""Read the submission log forward from a position, and find its end.

The files of one role follow each other by day. Listing them comes before reading: a file is no
longer written when the next day's exists. A position names the line before it, so that a file that
was replaced or cut off since is noticed.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from msgspec import Struct

from relay.base.clock import id_time_us
from relay.store.journeys.details import read_detail
from relay.store.journeys.events import LogPosition, RecordedEvent, Step, parse_line
from relay.store.journeys.open_submissions import state_before_queue

_NAME = re.compile(r"(\d{4}-\d\d-\d\d)-([a-z]{1,20})", re.ASCII)
_BLOCK_BYTES = 256 * 1024
_LINE_BYTES_MAX = 1 << 20
_BATCH_BYTES_MAX = 1 << 20  # in one answer, and one line more
_ROLES_MAX = 8
_BEFORE_LOG = LogPosition("0000-00-00", 0)  # while there is no file


class LogEvents(Struct, frozen=True):
    """Events of one role, each with the position after it; None for a line that is not an event.

    `is_missing`: the requested position is not kept. `is_complete`: there were no more events, and
    `end` is the end of the log.
    """

    events: Sequence[tuple[LogPosition, RecordedEvent | None]]
    end: LogPosition
    is_missing: bool
    is_complete: bool


class LogReader:
    """Reads the files of all roles; its functions block. Raises OSError."""

    def __init__(self, directory: Path, *, store: str = "main") -> None:
        """`directory` is that of the SubmissionLog; it need not exist.

        If the mail root is not named "main", the names of the roles contain a hash of its name: a
        position in the log of one mail root means nothing in the log of another.
        """
        self._directory = directory
        self._part = "" if store == "main" else f"-{crc32(store.encode()):08x}"

    def ends(self) -> dict[str, LogPosition]:
        """Return the end of each role's log: at least one, so that the cursor names this log."""
        ends = {files.role + self._part: files.end() for files in self._roles()}
        return ends or {f"relay{self._part}": _BEFORE_LOG}

    def is_new_to(self, positions: Mapping[str, LogPosition]) -> bool:
        """Whether positions are all in the logs of other mail roots."""
        parts = {"".join(role.partition("-")[1:]) for role in positions}
        return bool(parts) and self._part not in parts

    def read(self, after: Mapping[str, LogPosition], *, limit: int) -> dict[str, LogEvents]:
        """Return the first events of each role after its position.

        The log of a role without a position is read from its beginning.
        """
        roles = {files.role + self._part: files for files in self._roles()}
        read = {name: files.read(after.get(name), limit=limit) for name, files in roles.items()}
        own = f"relay{self._part}"  # as in ends()
        place = after.get(own, _BEFORE_LOG)
        return read or {own: LogEvents((), place, is_missing=False, is_complete=True)}

    def _roles(self) -> list["_RoleFiles"]:
        try:
            names = [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            return []
        days: dict[str, list[str]] = {}
        for name in sorted(names):
            if match := _NAME.fullmatch(name):
                days.setdefault(match[2], []).append(match[1])
        roles = sorted(days)[:_ROLES_MAX]
        return [_RoleFiles(self._directory, role, days[role]) for role in roles]


class _RoleFiles:
    """The files of one role, of these days."""

    def __init__(self, directory: Path, role: str, days: Sequence[str]) -> None:
        self._directory = directory
        self.role = role
        self._days = days

    def end(self) -> LogPosition:
        """Return the position after the last complete line."""
        day = self._days[-1]
        try:
            with self._path(day).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = file.seek(max(0, size - _LINE_BYTES_MAX))
                block = file.read(size - start)
        except FileNotFoundError:  # removed meanwhile
            return LogPosition(day, 0)
        end = block.rfind(b"\n") + 1
        line = block[block.rfind(b"\n", 0, max(0, end - 1)) + 1 : end]
        return LogPosition(day, start + end, len(line), crc32(line))

    def read(self, after: LogPosition | None, *, limit: int) -> LogEvents:
        """Return the first events after a position, or from the beginning."""
        position = after or _BEFORE_LOG
        if position == _BEFORE_LOG:
            position = LogPosition(self._days[0], 0)
        days = [day for day in self._days if day >= position.day]
        is_missing = not self._is_there(position)
        if is_missing:
            if not days:  # the next file does not exist yet
                return LogEvents((), position, is_missing=False, is_complete=True)
            position = LogPosition(days[0], 0)
        events: list[tuple[LogPosition, RecordedEvent | None]] = []
        size_bytes = 0
        for day in days:
            if day > position.day:
                position = LogPosition(day, 0)
            while lines := self._lines(position):
                for place, line in lines:
                    if len(events) == limit or size_bytes > _BATCH_BYTES_MAX:
                        return LogEvents(events, position, is_missing, is_complete=False)
                    events.append((place, _event_of(line)))
                    position = place
                    size_bytes += place.size
        return LogEvents(events, position, is_missing, is_complete=True)

    def _is_there(self, position: LogPosition) -> bool:
        """Whether the file still has the line before the position. (The position comes from a
        client.)
        """
        if position.size > _LINE_BYTES_MAX or (position.offset and not position.size):
            return False
        try:
            with self._path(position.day).open("rb") as file:
                if position.offset > os.fstat(file.fileno()).st_size:
                    return False
                file.seek(max(0, position.offset - position.size))
                line = file.read(position.size)
        except FileNotFoundError:
            return False
        return len(line) == position.size and crc32(line) == position.crc

    def _lines(self, position: LogPosition) -> list[tuple[LogPosition, bytes]]:
        """Return some complete lines after a position, each with the position after it."""
        try:
            with self._path(position.day).open("rb") as file:
                file.seek(position.offset)
                block = file.read(_BLOCK_BYTES)
                if b"\n" not in block:
                    block += file.read(_LINE_BYTES_MAX - len(block))
        except FileNotFoundError:  # removed meanwhile
            return []
        if b"\n" not in block:  # an incomplete line, or one that no SubmissionLog has written
            complete = [block] if len(block) == _LINE_BYTES_MAX else []
        else:
            complete = [line + b"\n" for line in block.split(b"\n")[:-1]]
        ends = []
        offset = position.offset
        for line in complete:
            offset += len(line)
            ends.append((LogPosition(position.day, offset, len(line), crc32(line)), line))
        return ends

    def _path(self, day: str) -> Path:
        return self._directory / f"{day}-{self.role}"


def _event_of(line: bytes) -> RecordedEvent | None:
    """Return the event of a line; None for a damaged line."""
    if (logged := parse_line(line)) is None:
        return None
    step = Step(logged.step or Step.NOTIFIED)  # a remark belongs to step 2
    detail: dict[str, Any] = {"withdrawn": True} if logged.withdrawn else logged.detail
    detail.pop("client", None)
    at_us = logged.at_us or id_time_us(logged.submission_id) or 0
    known = read_detail(step, detail)
    return RecordedEvent(
        logged.queue_id or None,
        logged.submission_id,
        logged.account or logged.owner,
        step,
        at_us,
        detail,
        known,
        # step 4 says nothing of the state: it is recorded after step 5
        None if step is Step.ACCEPTED or logged.withdrawn else state_before_queue([known]).state,
    )
