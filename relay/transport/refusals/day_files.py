"""Refusals as JSON lines, one file per day (UTC) in STATE/refused.

The event loop only appends to a bounded queue; a thread writes what has waited for a tenth of a
second. A day has at most FILE_BYTES_MAX, and CLIENT_LINES_MAX lines of one client (an IPv4 address,
or an IPv6 network of 64 bits). Further refusals are only counted: in `times` of the last line of
the client, which is overwritten in place; or, if the file is full, in one line for each reason. The
files are not synced: a loss of power may cost lines. A damaged line is skipped.
"""

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace

from relay.base.clock import rfc3339
from relay.base.files import lines_backwards, write_all
from relay.base.observe.logs import ContainedErrors, RepeatedError, get_logger
from relay.base.socket_address import client_of
from relay.base.task_set import end_all
from relay.transport.refusals.refusal import (
    Refusal,
    RefusalPage,
    RefusalReason,
    RefusalSearch,
    place_after,
    select,
)

FILE_BYTES_MAX = 16 * 1024 * 1024  # a day
CLIENT_LINES_MAX = 1000  # a day, of one client
WAITING_MAX = 10_000  # records that no thread has written yet
_RESERVED_BYTES = 64 * 1024  # of a file, for the lines of reasons
_PAUSE_S = 0.1
_TIMES = b'"times":'
_DIGITS = 10  # of a number that is overwritten
_log = get_logger("refusals")
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Refusal)


class RefusalFiles:
    """Writes the records of SMTP sessions into a directory, and reads them.

    The directory has no other writer. The object belongs to the event loop.
    """

    def __init__(self, directory: Path, on_record: Callable[[], None] = lambda: None) -> None:
        """`directory` is created for the first record; `on_record` is called for each record."""
        self._on_record = on_record
        self._directory = directory
        self._waiting: list[Refusal] = []
        self._uncounted: Counter[RefusalReason] = Counter()  # did not fit into the queue
        self._writing: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # to write
        self._last = ""
        self._lock = threading.Lock()  # of the files
        self._day: _DayFile | None = None
        self._fault = RepeatedError()

    def record(self, refusal: Refusal) -> None:
        """Keep a record, or count it. Does not wait, and raises nothing."""
        if len(self._waiting) >= WAITING_MAX:
            self._uncounted[refusal.reason] += 1
            return
        self._waiting.append(refusal)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_until_done())
        self._on_record()

    async def page(self, search: RefusalSearch) -> RefusalPage:
        """Return the newest records that match; with `after`, the oldest records after it.

        Raises OSError.
        """
        await self._flush()
        return await asyncio.to_thread(self._page, search)

    async def prune(self, before_us: int, *, dry_run: bool = False) -> int:
        """Remove, or only count, the records of days whose last record is older than `before_us`.

        Raises OSError.
        """
        await self._flush()
        return await asyncio.to_thread(self._prune, rfc3339(max(0, before_us)), dry_run)

    async def clear(self) -> None:
        """Remove all records. Raises OSError."""
        async with self._turn:
            self._waiting, self._uncounted = [], Counter()
            await asyncio.to_thread(self._clear)

    async def close(self) -> None:
        """Write the records that wait; nothing is recorded after that."""
        if self._writing is not None:
            await end_all([self._writing])
        await self._flush()
        await asyncio.to_thread(self._close)

    async def _write_until_done(self) -> None:
        try:
            with ContainedErrors(_log, "refusals not recorded"):  # the next record begins again
                while self._waiting or self._uncounted:
                    await asyncio.sleep(_PAUSE_S)  # real time: spares the machine
                    await self._flush()
        finally:
            self._writing = None

    async def _flush(self) -> None:
        """Write the records that wait; return when those of other calls are written too."""
        async with self._turn:
            waiting, self._waiting = self._waiting, []
            uncounted, self._uncounted = self._uncounted, Counter()
            if waiting or uncounted:
                # cancelled, a call that waits for a thread would never begin
                await asyncio.shield(asyncio.to_thread(self._write, waiting, uncounted))

    # -- in a thread

    def _write(self, waiting: Sequence[Refusal], uncounted: Counter[RefusalReason]) -> None:
        with self._lock:
            try:
                self._append(waiting, uncounted)
            except OSError as error:
                self._close_day()
                self._fault.log(_log.warning, "refusals not recorded", error)
            else:
                self._fault.clear()

    def _append(self, waiting: Sequence[Refusal], uncounted: Counter[RefusalReason]) -> None:
        last = self._last or self._last_recorded()
        for refusal in waiting:
            last = place_after(last, refusal.at)
            self._file_of(last).add(replace(refusal, at=last))
        for reason, times in uncounted.items():
            last = place_after(last, waiting[-1].at)  # a full queue
            self._file_of(last).count(reason, times, at=last)
        self._last = last
        if self._day is not None:
            self._day.write()

    def _file_of(self, at: str) -> "_DayFile":
        """Return the file of a time, which becomes the open one."""
        if self._day is None or self._day.name != at[:10]:
            if self._day is not None:
                self._day.write()
            self._close_day()
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._day = _DayFile(self._directory / at[:10])
        return self._day

    def _last_recorded(self) -> str:
        return next((refusal.at for path in self._files() for refusal in _backwards(path)), "")

    def _page(self, search: RefusalSearch) -> RefusalPage:
        with self._lock:  # a line is not read while its number is written
            last = self._last or self._last_recorded()
            return select(self._newest_first(search), search, last=last)

    def _newest_first(self, search: RefusalSearch) -> Iterator[Refusal]:
        text = search.address or search.account or ""
        # a line may have the other form of an internationalized domain
        has_one_form = text.isascii() and "xn--" not in text.lower()
        needle = _encoder.encode(text.lower())[1:-1] if has_one_form else b""
        for path in self._files():
            if search.after and path.name < search.after[:10]:
                return
            if not search.before or path.name <= search.before[:10]:
                yield from _backwards(path, needle)

    def _prune(self, before: str, dry_run: bool) -> int:
        removed = 0
        with self._lock:
            for path in self._files():
                if path.name > before[:10]:
                    continue
                lines = path.read_bytes().splitlines(keepends=True)
                if lines and (last := _decoded(lines[-1])) and last.at >= before:
                    continue
                removed += len(lines)
                if self._day is not None and self._day.name == path.name:
                    self._close_day()
                if not dry_run:
                    path.unlink()
        return removed

    def _clear(self) -> None:
        with self._lock:
            self._close_day()
            for path in self._files():
                path.unlink(missing_ok=True)

    def _close(self) -> None:
        with self._lock:
            self._close_day()

    def _close_day(self) -> None:
        if self._day is not None:
            self._day.close()
            self._day = None

    def _files(self) -> list[Path]:
        """Return the files, newest day first."""
        try:
            return sorted(filter(_is_day, self._directory.iterdir()), reverse=True)
        except FileNotFoundError:
            return []


@dataclass(slots=True)
class _Number:
    """A `times` that is overwritten: its value, and the position of its digits."""

    value: int
    place: int


class _DayFile:
    """The open file of a day. `write()` writes what was added."""

    def __init__(self, path: Path) -> None:
        """Open the file, and read what it has. Raises OSError."""
        self.name = path.name
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = 0  # the size, with lines that are not written yet
        self._lines: Counter[str] = Counter()  # of each client; the file bounds their number
        self._numbers: dict[str, _Number] = {}  # by client, or by reason
        self._new: list[bytes] = []
        self._changed: set[str] = set()
        try:
            self._read(path)
        except BaseException:
            self.close()
            raise

    def _read(self, path: Path) -> None:
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, self._end)  # a crash left a partial line
                    return
                self._end += len(line)
                if (refusal := _decoded(line)) is not None:
                    self._note(refusal, line)

    def _note(self, refusal: Refusal, line: bytes) -> None:
        """Count the last line, and remember the position of a number in it."""
        # only the line of a reason has no reply
        key = client_of(refusal.client) if refusal.reply else refusal.reason
        self._lines[key] += 1
        if line[line.rfind(_TIMES) + len(_TIMES) :].startswith(b" "):
            self._numbers[key] = _Number(refusal.times, self._end - len(b"}\n") - _DIGITS)

    def add(self, refusal: Refusal) -> None:
        """Add a line, or count the refusal."""
        key = client_of(refusal.client)
        if number := self._numbers.get(key):
            self._raise(key, number, refusal.times)
            return
        is_last = self._lines[key] + 1 >= CLIENT_LINES_MAX
        if not self._append(refusal, FILE_BYTES_MAX - _RESERVED_BYTES, is_counted=is_last):
            self.count(refusal.reason, refusal.times, at=refusal.at)

    def count(self, reason: RefusalReason, times: int, *, at: str) -> None:
        """Count refusals in the line of their reason."""
        if number := self._numbers.get(reason):
            self._raise(reason, number, times)
        else:
            line = Refusal(at=at, reason=reason, times=times)
            self._append(line, FILE_BYTES_MAX, is_counted=True)

    def _append(self, refusal: Refusal, limit_bytes: int, *, is_counted: bool) -> bool:
        line = _encoder.encode(refusal) + b"\n"
        if is_counted:
            head = line[: line.rfind(_TIMES) + len(_TIMES)]
            line = head + b"%*d}\n" % (_DIGITS, refusal.times)
        if self._end + len(line) > limit_bytes:
            return False
        self._new.append(line)
        self._end += len(line)
        self._note(refusal, line)
        return True

    def _raise(self, key: str, number: _Number, times: int) -> None:
        number.value += times
        self._changed.add(key)

    def write(self) -> None:
        """Write what was added. Raises OSError."""
        if self._new:
            octets = b"".join(self._new)
            os.lseek(self._file, self._end - len(octets), os.SEEK_SET)
            write_all(self._file, octets)
            self._new.clear()
        for key in self._changed:
            number = self._numbers[key]
            os.pwrite(self._file, b"%*d" % (_DIGITS, number.value), number.place)
        self._changed.clear()

    def close(self) -> None:
        """Close the file without writing."""
        os.close(self._file)


def _is_day(path: Path) -> bool:
    return len(path.name) == len("2027-01-31") and path.name[:1].isdigit()


def _decoded(line: bytes) -> Refusal | None:
    try:
        return _decoder.decode(line)
    except ValueError:
        return None


def _backwards(path: Path, needle: bytes = b"") -> Iterator[Refusal]:
    """Yield the records of a file, the last one first; only those whose lines have `needle`."""
    for line in lines_backwards(path, needle):
        if refusal := _decoded(line):
            yield refusal
