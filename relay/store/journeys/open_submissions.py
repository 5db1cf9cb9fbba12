"""The submissions in the log that are not recorded as accepted: they wait, or ended before step 4.

state_before_queue() derives the state of a message before the queue from its events. It is
scheduled, converting, held, cancelled or failed; it is expired if it is not known whether it was
sent.

The log is read once, from its end backwards, and later only what was appended to it. Accepted
submissions are not kept: the spool has them.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from relay.base.files import LINE_BYTES_MAX, lines_backwards
from relay.base.message.lifecycle import RecipientState, SubmissionState
from relay.store.journeys import details
from relay.store.journeys.events import Step, parse_line
from relay.store.journeys.message_list import OpenSubmission

_READ_BYTES_MAX = 32 << 20  # of the log, at one time
_OPEN_MAX = 10_000
_OPEN_BYTES_MAX = 16 << 20
_FileKey = tuple[str, int]  # name and inode


class OpenSubmissions:
    """Follows the files of the log; thread-safe, and blocks."""

    def __init__(self, files: Callable[[], Sequence[Path]]) -> None:
        """`files` returns the files, newest day first."""
        self._files = files
        self._lock = threading.Lock()
        self._ends: dict[_FileKey, int] = {}  # how far each file was read
        self._open: dict[str, list[bytes]] = {}  # lines by submission, in the order of creation
        self._open_bytes = 0
        self._known: dict[str, OpenSubmission | None] = {}
        self._ended_first: set[str] = set()  # whose end was read before step 1, in another file

    def read(self) -> list[OpenSubmission]:
        """Return the open submissions. Raises OSError."""
        with self._lock:
            if not self._read_on():
                self._read_all()
            self._forget_oldest()
            for name, lines in self._open.items():
                if name not in self._known:
                    self._known[name] = _submission(name, lines)
            return [submission for submission in self._known.values() if submission is not None]

    def _read_all(self) -> None:
        """Read the log backwards, as far as the limits allow."""
        self._ends, self._open, self._known, self._open_bytes = {}, {}, {}, 0
        ended: set[str] = set()
        lines_by_id: dict[str, list[bytes]] = {}
        later: dict[str, list[bytes]] = {}  # lines after step 1, which is read last
        left_bytes = _READ_BYTES_MAX
        for path in self._files():
            key, end = _end_of(path)
            if key is None:
                continue
            self._ends[key] = end
            for line in lines_backwards(path) if left_bytes > 0 else ():
                left_bytes -= len(line)
                if left_bytes <= 0:
                    break
                head = parse_line(line)
                if head is None or head.submission_id in ended:
                    if head is not None and head.step == Step.CREATED:
                        ended.discard(head.submission_id)
                elif head.step == Step.ACCEPTED or head.withdrawn:
                    ended.add(head.submission_id)
                    later.pop(head.submission_id, None)
                elif head.step == Step.CREATED:
                    lines = [line, *reversed(later.pop(head.submission_id, []))]
                    lines_by_id.setdefault(head.submission_id, lines)  # its newest step 1 counts
                else:
                    later.setdefault(head.submission_id, []).append(line)
        for name in reversed(lines_by_id):
            self._add(name, lines_by_id[name])

    def _read_on(self) -> bool:
        """Read what was appended. Return False if a file was removed: then all must be read."""
        appended: list[bytes] = []
        seen: set[_FileKey] = set()
        left_bytes = _READ_BYTES_MAX
        if not self._ends:
            return False
        for path in reversed(self._files()):
            key, end = _end_of(path)
            if key is None:
                continue
            seen.add(key)
            begin = self._ends.get(key, 0)
            left_bytes -= end - begin
            if end < begin or left_bytes < 0:
                return False
            if end > begin:
                appended += _lines_between(path, begin, end)
                self._ends[key] = end
        if not seen >= self._ends.keys():
            return False
        self._apply(appended)
        return True

    def _apply(self, lines: Sequence[bytes]) -> None:
        ended_before, self._ended_first = self._ended_first, set()
        heads = [(head, line) for line in lines if (head := parse_line(line)) is not None]
        for head, line in heads:
            if head.step == Step.CREATED and head.submission_id not in ended_before:
                self._remove(head.submission_id)
                self._add(head.submission_id, [line])
        for head, line in heads:
            name = head.submission_id
            if head.step == Step.ACCEPTED or head.withdrawn:
                if name in self._open:
                    self._remove(name)
                else:
                    self._ended_first.add(name)
            elif head.step != Step.CREATED and name in self._open:
                self._open[name].append(line)
                self._open_bytes += len(line)
                self._known.pop(name, None)

    def _add(self, name: str, lines: list[bytes]) -> None:
        self._open[name] = lines
        self._open_bytes += sum(map(len, lines))

    def _remove(self, name: str) -> None:
        self._known.pop(name, None)
        self._open_bytes -= sum(map(len, self._open.pop(name, ())))

    def _forget_oldest(self) -> None:
        while len(self._open) > _OPEN_MAX or self._open_bytes > _OPEN_BYTES_MAX:
            self._remove(next(iter(self._open)))


class StateBeforeQueue(Struct, frozen=True):
    """The state of a submission that the spool does not know, why it ended, and when it is sent."""

    state: RecipientState | SubmissionState
    reply: str = ""
    send_at: str = ""  # of a scheduled send, RFC 3339

    @property
    def of_recipients(self) -> RecipientState:
        """The state of each recipient."""
        is_waiting = isinstance(self.state, SubmissionState)
        return RecipientState.QUEUED if is_waiting else RecipientState(self.state)


def state_before_queue(recorded: Sequence[details.Detail]) -> StateBeforeQueue:
    """Return the state that follows from the recorded steps 1 to 4, and reports, in their order."""
    is_converted = False  # also in an attempt before it was held
    for detail in reversed(recorded):
        match detail:
            case details.ReportDetail():
                is_unknown = detail.kind == "unknown"
                state = RecipientState.EXPIRED if is_unknown else RecipientState.FAILED
                return StateBeforeQueue(state, detail.reply)
            case details.ConvertedDetail():
                is_converted = True
            case details.NotifiedDetail() if detail.cancelled and (detail.held or not is_converted):
                return StateBeforeQueue(RecipientState.CANCELLED, f"cancelled: {detail.reason}")
            case details.NotifiedDetail() if detail.held > detail.released:
                return StateBeforeQueue(RecipientState.HELD, detail.reason)
            case details.NotifiedDetail(sent_now="") if detail.deferred_until and not is_converted:
                return StateBeforeQueue(SubmissionState.SCHEDULED, send_at=detail.deferred_until)
    return StateBeforeQueue(SubmissionState.CONVERTING)


def _submission(name: str, lines: Sequence[bytes]) -> OpenSubmission | None:
    """Return the submission, None if it was never submitted."""
    read = [logged for line in lines if (logged := parse_line(line)) is not None]
    created = read[0]
    steps: dict[int, dict[str, Any]] = {}
    remarks: dict[str, Any] = {}
    for line in read:
        if not line.step:
            remarks |= line.detail
        elif line.step == Step.REPORT or line.step not in steps:
            steps[line.step] = line.detail
    if Step.NOTIFIED not in steps:
        return None
    steps[Step.NOTIFIED] |= remarks
    reached = state_before_queue([details.read_detail(step, steps[step]) for step in sorted(steps)])
    return OpenSubmission(
        name,
        created.account,
        created.sender,
        created.message_id,
        created.subject,
        created.recipients,
        str(reached.state),
        reached.reply,
        reached.send_at,
    )


def _end_of(path: Path) -> tuple[_FileKey | None, int]:
    """Return the key of a file and the end of its last whole line; (None, 0) if it is gone."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            begin = max(0, status.st_size - LINE_BYTES_MAX)
            end = status.st_size
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                last = os.pread(file.fileno(), end - begin, begin)
                end = begin + last.rfind(b"\n") + 1
            return (path.name, status.st_ino), end
    except FileNotFoundError:
        return None, 0


def _lines_between(path: Path, begin: int, end: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(begin)
            return iter(file.read(end - begin).splitlines())
    except FileNotFoundError:
        return iter(())
